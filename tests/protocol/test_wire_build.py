"""The generated schema is made once, whole, and again when its source has changed."""

import os
import sysconfig
from pathlib import Path

import pytest

from gateway.protocol import build


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A schema of its own, in the same place of another tree."""
    folder = tmp_path / "gateway" / "protocol"
    folder.mkdir(parents=True)
    source = folder / "wire.proto"
    source.write_text(build.SOURCE.read_text())
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setattr(build, "TARGETS", (folder / "wire_pb2.py", folder / "wire_pb2.pyi"))
    return source


def test_makes_the_module_and_its_stub_once(copy: Path) -> None:
    assert build.build()
    assert {path.name for path in copy.parent.iterdir()} == {"wire.proto", "wire_pb2.py", "wire_pb2.pyi"}
    assert not build.build()
    assert build.build(force=True)


def test_makes_them_again_when_the_source_is_newer(copy: Path) -> None:
    build.build()
    made = build.TARGETS[0].stat().st_mtime
    os.utime(copy, (made + 10, made + 10))
    assert build.build()


def test_says_what_is_wrong_with_the_source_and_leaves_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy.write_text("syntax = 'proto3'; message {")
    assert build.main() == 1
    assert "wire.proto" in capsys.readouterr().err
    assert [path.name for path in copy.parent.iterdir()] == ["wire.proto"]


def test_says_what_to_install(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(build.BuildError, match=r"requirements/dev\.txt"):
        build.build()
