"""How many branches of the two rooms that decide who may go on the whole suite took: `make test` fails below a floor.

Reads what the run before it measured. It says nothing where that is enough: pytest's closing line stays the last one.
"""

import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage

ROOMS = ("auth", "sessions")
ENOUGH = 95.0


def main() -> int:
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(written), include=[f"{room}/*" for room in ROOMS])
        report = json.loads(written.read_bytes())
    taken = report["totals"]["percent_branches_covered"]
    if taken >= ENOUGH:
        return 0
    missing = {name: one["summary"]["missing_branches"] for name, one in report["files"].items()}
    most = sorted(missing, key=lambda name: -missing[name])[:8]
    print(f"FAIL: {taken:.2f} % of the branches of {' and '.join(ROOMS)} were taken, at least {ENOUGH:g} % are to be;")
    print("  not taken: " + ", ".join(f"{missing[name]} in {name}" for name in most))
    return 1


if __name__ == "__main__":
    sys.exit(main())
