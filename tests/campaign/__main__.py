"""`python -m tests.campaign --seed S --minutes M [--nodes N] [--faults F1,F8] [--mutate NAME]`; see `make campaign`.

Runs of a minute, seeds S, S + 1, ..., until M minutes are over. Exit code 0: clean; 3: a violation was found (it stops
there, shrinks the schedule, and writes schedule and timeline into `.wardgate/campaign/<seed>/`); 4: what was found in a
run may be the machine's want of time, so that run judges nothing (and goes on to the next); 2: usage; 130: Ctrl-C.
make itself answers 2 whenever its command failed, and says which code that was. `--runs N`: N runs of a minute instead,
kept in the running total (docs/campaign.json; the table and pictures of docs/guarantee.md, which `--page` makes again).
The last line on stdout is one JSON object.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.campaign.checker import Took
from tests.campaign.crowd import room_for
from tests.campaign.mutations import MUTATIONS
from tests.campaign.run import Outcome, run
from tests.campaign.schedule import CROWD, FAULTS, Schedule, load, make
from tests.campaign.shrink import shrink
from tests.campaign.timeline import svg, text
from tests.campaign.totals import DATA, record, show

CLEAN, USAGE, VIOLATION, BROKEN, INCONCLUSIVE, INTERRUPTED = 0, 2, 3, 1, 4, 130
RUN = 60.0
FOLDER = Path(".wardgate/campaign")


def say(words: str) -> None:
    """Progress, on stderr."""
    print(words, file=sys.stderr, flush=True)


def arguments(given: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=0, help="so many runs of 60 s, into the running total in docs/")
    parser.add_argument("--nodes", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--faults", default="", help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--mutate", default="-", choices=["-", *MUTATIONS])
    parser.add_argument("--lease", type=float, default=0.0, help="L in seconds instead of the seed's")
    parser.add_argument(
        "--standby", default="", choices=["", "sync", "async"], help="PostgreSQL's instead of the seed's"
    )
    parser.add_argument("--replay", type=Path, help="a schedule.json of before")
    parser.add_argument("--page", action="store_true", help="only make the table and pictures of docs/ again")
    parser.add_argument("--crowd", type=int, default=CROWD, help="sockets that come back at once in F18")
    parser.add_argument("--shrink", type=int, default=12, help="at most so many runs to shrink a violating schedule")
    return parser.parse_args(given)


def schedules(wanted: argparse.Namespace) -> list[Schedule]:
    """The runs, in order."""
    if wanted.replay is not None:
        return [load(json.loads(wanted.replay.read_text()))]
    names = tuple(name for name in wanted.faults.split(",") if name)
    room_for(wanted.crowd)
    count = wanted.runs or max(1, round(wanted.minutes * 60 / RUN))
    seconds = RUN if wanted.runs else min(RUN, wanted.minutes * 60)
    return [
        make(
            wanted.seed + n,
            seconds=seconds,
            nodes=wanted.nodes,
            faults=names,
            lease=wanted.lease,
            standby=wanted.standby,
            crowd=wanted.crowd,
        )
        for n in range(count)
    ]


async def campaign(wanted: argparse.Namespace, planned: list[Schedule]) -> int:
    """Run them; the exit code."""
    totals: dict[str, Any] = {"runs": 0, "seed": planned[0].seed, "mutation": wanted.mutate, "schedule": 0, "events": 0}
    faults: dict[str, int] = {}
    times: dict[str, list[Took]] = {}
    inconclusive: dict[int, list[str]] = {}
    worst, outcome = 0.0, None
    for number, schedule in enumerate(planned, 1):
        say(f"run {number} of {len(planned)}: seed {schedule.seed}, L = {schedule.lease:g} s, {schedule.nodes} nodes")
        left = (len(planned) - number) * RUN
        outcome = await run(schedule, wanted.mutate, tell=lambda t, left=left: say(f"  {t} (+ {left:.0f} s)"))  # type: ignore[misc]
        totals["runs"] += 1
        totals["schedule"] += outcome.steps
        totals["events"] += len(outcome.history.events)
        for name, count in outcome.faults.items():
            faults[name] = faults.get(name, 0) + count
        worst = max(worst, outcome.worst)
        for note in outcome.notes:
            say(f"  {note}")
        for took in outcome.times:
            for name in took.during or ("none",):
                times.setdefault(name, []).append(took)
        if wanted.runs:
            await asyncio.to_thread(record, outcome)
        for violation in outcome.starved[:5]:
            say(f"for want of time, {violation.rule}: {violation.what}")
        inconclusive |= {outcome.schedule.seed: sorted({v.rule for v in outcome.starved})} if outcome.starved else {}
        if outcome.violations:
            await report(wanted, outcome)
            break
    violations = outcome.summary()["violations"] if outcome is not None else []
    totals |= {
        "faults": dict(sorted(faults.items())),
        "skipped": outcome.skipped if outcome is not None else {},
        "violations": violations[:50],
        "violation_count": len(violations),
        "inconclusive": inconclusive,
        "last_seed": outcome.schedule.seed if outcome is not None else None,
        "worst_time_to_close": round(worst, 3),
        "time_to_close": {name: spread(found) for name, found in sorted(times.items())},
    }
    print(json.dumps(totals), flush=True)
    return VIOLATION if violations else INCONCLUSIVE if inconclusive else CLEAN


def spread(times: list[Took]) -> dict[str, float]:
    """How many, the median and the worst (s); the worst by a gateway that was not cut off, and the last frame."""
    closes = sorted(took.close for took in times)
    return {
        "count": len(closes),
        "p50": round(closes[len(closes) // 2], 3),
        "max": round(closes[-1], 3),
        "able": round(max(took.able for took in times), 3),
        "frame": round(max(took.frame for took in times), 3),
    }


async def report(wanted: argparse.Namespace, outcome: Outcome) -> None:
    """A violation was found: make the schedule as short as it goes, and show what happened."""
    for violation in outcome.violations[:5]:
        say(f"VIOLATION {violation.rule}: {violation.what}")
    if wanted.shrink:
        outcome = await shrink(outcome, wanted.mutate, runs=wanted.shrink, tell=say)
    folder = FOLDER / str(outcome.schedule.seed)
    await asyncio.to_thread(write, folder, outcome)
    say(f"seed {outcome.schedule.seed}: {len(outcome.schedule.steps)} steps still show it; see {folder}/")


def write(folder: Path, outcome: Outcome) -> None:
    """Schedule and timeline."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schedule.json").write_text(json.dumps(outcome.schedule.dump(), indent=1))
    (folder / "timeline.txt").write_text(text(outcome.history, outcome.violations))
    (folder / "timeline.svg").write_text(svg(outcome.history, outcome.violations))


async def until_told(work: Any) -> int:
    """Ctrl-C and SIGTERM cancel the work, which cleans up; a second one does not wait."""
    task = asyncio.ensure_future(work)

    def told() -> None:
        if task.cancelling():
            os._exit(INTERRUPTED)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told)
    try:
        return int(await task)
    except asyncio.CancelledError:
        return INTERRUPTED


def main(given: list[str]) -> int:
    """The command."""
    wanted = arguments(given)
    if wanted.page:
        show(json.loads(DATA.read_text()))
        return CLEAN
    try:
        planned = schedules(wanted)
    except (ValueError, OSError) as error:
        say(f"campaign: {error}")
        return USAGE
    return uvloop.run(until_told(campaign(wanted, planned)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
