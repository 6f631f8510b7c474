"""What this machine is, and what processes on it have used: all from /proc, Linux only.

CPU is read from `schedstat` (nanoseconds, summed over threads) and where that is missing from `stat` (ticks of 10 ms).
Both count what the kernel did on the process's behalf, which for sending over loopback is most of the cost.
"""

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes with all their threads. A process that is gone counts 0."""
    return sum(_cpu(pid) for pid in pids)


def _cpu(pid: int) -> float:
    total = 0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        for task in tasks:
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    except (OSError, IndexError):
        return _ticks(pid)
    return total / 1e9


def _ticks(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    return 0.0


def resident_kb(pids: Iterable[int]) -> int:
    """Resident memory (VmRSS), shared pages counted in each process."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            total += int(found[1]) if found else 0
    return total


def family(pid: int) -> list[int]:
    """`pid` and all its descendants that are running."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry))
    found, ahead = [], [pid]
    while ahead:
        found.append(ahead.pop())
        ahead += children.get(found[-1], [])
    return found


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Every thread of these processes runs on `cores` only. Does nothing without a core to spare."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task), cores)


@contextlib.contextmanager
def born_on(cores: set[int]) -> Iterator[None]:
    """Processes that are started inside inherit `cores`, so that what asks for the number of processors is told 1."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def cores() -> tuple[set[int], set[int]]:
    """The server's core, and the ones of everything else. With a single core both are that one."""
    all_cores = sorted(os.sched_getaffinity(0))
    return {all_cores[0]}, set(all_cores[1:]) or {all_cores[0]}


def describe() -> dict[str, str]:
    """The machine, for the head of the table."""
    info = (PROC / "cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", info)
    memory = re.search(r"MemTotal:\s+(\d+)", (PROC / "meminfo").read_text())
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": model[1] if model else platform.machine(),
        "memory": f"{int(memory[1]) / 1048576:.0f} GB" if memory else "",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
