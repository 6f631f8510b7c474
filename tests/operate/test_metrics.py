"""What the metrics of a whole worker say."""

from collections import Counter

from tests.live.conftest import Worker


async def test_a_frozen_node_was_counted_twice(worker: Worker) -> None:
    """Two parts told of the same thing; figures of one name are added up."""
    told = Counter(name for part in worker.app.sampler.parts for name in part.figures())
    assert {name for name, times in told.items() if times > 1} == {"background_failures"}
