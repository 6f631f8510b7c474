"""The suite fails when too many branches are left untaken, and says where they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import branches

SETTINGS = '[tool.coverage.run]\nbranch = true\nsource = ["auth", "sessions", "other"]\n'
ROOM = "def sign(n):\n    if n < 0:\n        return -1\n    return 1\n"


@pytest.mark.parametrize(("calls", "code"), [("(-1, 1)", 0), ("(1,)", 1)])
def test_too_many_branches_that_no_test_takes_fail_the_suite(tmp_path: Path, calls: str, code: int) -> None:
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    for room in ("auth", "sessions", "other"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(ROOM)
    rooms = "import auth, sessions, other; other.sign(1)"
    (tmp_path / "run.py").write_text(f"{rooms}\nfor n in {calls}: auth.sign(n), sessions.sign(n)\n")
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    subprocess.run([sys.executable, "-m", "coverage", "run", "run.py"], cwd=tmp_path, env=unmeasured, check=True)
    done = subprocess.run(
        [sys.executable, branches.__file__],
        cwd=tmp_path,
        env=unmeasured,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    told = "FAIL: 50.00 % of the branches of auth and sessions were taken, at least 95 % are to be;\n"
    told += "  not taken: 1 in auth/__init__.py, 1 in sessions/__init__.py\n"
    assert done.stdout == (told if code else "")
