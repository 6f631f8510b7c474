"""Autobahn's cases over the frame reader: 247 here, all 517 by `make autobahn`."""

from tests.protocol import autobahn


async def test_autobahn_finds_no_fault() -> None:
    ended, failed = await autobahn.run(autobahn.SLOW)
    assert failed == []
    assert ended.total() == 247
