"""`python -m gateway.protocol.build`: make wire_pb2.py and its stub from wire.proto.

Generated code belongs to one version of the compiler and refuses an older runtime, so it is made on the spot and not
kept in the repository. Nothing is done when it is there already and newer than its source and its compiler. Several
builds may run at once: files are put in place whole.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("wire.proto")
TARGETS = (SOURCE.with_name("wire_pb2.py"), SOURCE.with_name("wire_pb2.pyi"))


class BuildError(Exception):
    """The compiler is not installed, or did not like the source."""


def build(*, force: bool = False) -> bool:
    """Whether anything was done. BuildError with what to do about it."""
    compiler, plugin = _tool("protoc"), _tool("protoc-gen-mypy")
    if not force and _fresh(compiler):
        return False
    root = SOURCE.parents[2]
    with tempfile.TemporaryDirectory(dir=SOURCE.parent, prefix=".wire-") as folder:
        done = subprocess.run(
            [
                str(compiler),
                f"--proto_path={root}",
                f"--plugin=protoc-gen-mypy={plugin}",
                f"--python_out={folder}",
                f"--mypy_out=quiet:{folder}",
                str(SOURCE.relative_to(root)),
            ],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"protoc failed:\n{done.stderr.strip()}")
        for target in TARGETS:
            os.replace(Path(folder) / target.relative_to(root), target)
    return True


def _fresh(compiler: Path) -> bool:
    newest = max(SOURCE.stat().st_mtime, compiler.stat().st_mtime)
    return all(target.exists() and target.stat().st_mtime > newest for target in TARGETS)


def _tool(name: str) -> Path:
    path = Path(sysconfig.get_path("scripts")) / f"{name}{sysconfig.get_config_var('EXE')}"
    if not path.exists():
        raise BuildError(f"{path} is not there: install requirements/dev.txt into this environment")
    return path


def main() -> int:
    try:
        done = build(force="--force" in sys.argv[1:])
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{TARGETS[0].name}: {'made' if done else 'up to date'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
