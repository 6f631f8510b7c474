"""What /proc says of a process: its processor time, its memory, its descendants, whatever it is called."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Burns processor time in its main thread and in another, says how much, and waits.
BURNER = """
import sys, threading, time

def burn():
    while time.thread_time() < 0.15:
        pass

def work():
    burn()
    done.set()
    threading.Event().wait()

done = threading.Event()
threading.Thread(target=work, daemon=True).start()
burn()
done.wait()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def burner() -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A process, and the seconds that it says it has used."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        assert process.stdout is not None
        yield process, float(process.stdout.readline())
        process.kill()


def test_processor_time_is_that_of_all_threads_by_either_file(burner: tuple[subprocess.Popen[str], float]) -> None:
    process, used = burner
    assert used >= 0.3
    assert machine.cpu_seconds([process.pid]) == pytest.approx(used, abs=0.05)
    assert machine._ticks(process.pid) == pytest.approx(used, abs=0.05)
    assert machine.cpu_seconds([process.pid, process.pid]) == pytest.approx(2 * used, abs=0.1)


def test_memory_is_counted_in_kilobytes(burner: tuple[subprocess.Popen[str], float]) -> None:
    process, _ = burner
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    assert machine.resident_kb([process.pid]) == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE") / 1024, rel=0.2)


def test_a_process_that_is_gone_counts_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert machine.cpu_seconds([process.pid]) == 0.0
    assert machine.resident_kb([process.pid]) == 0


def test_descendants_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    odd = tmp_path / "a) b (c"
    shutil.copy(shutil.which("sleep") or "sleep", odd)
    with subprocess.Popen(["sh", "-c", '"$0" 60 & echo $!; wait', str(odd)], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        try:
            assert sorted(machine.family(shell.pid)) == sorted([shell.pid, grandchild])
            assert {shell.pid, grandchild} < set(machine.family(os.getpid()))
        finally:
            os.kill(grandchild, 9)


def test_processes_are_born_where_they_are_told() -> None:
    core, before = machine.cores()[0], os.sched_getaffinity(0)
    with machine.born_on(core):
        told = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
    assert told.strip() == str(core)
    assert os.sched_getaffinity(0) == before


def test_the_machine_describes_itself() -> None:
    facts = machine.describe()
    assert int(facts["cores"]) >= 1
    assert all(facts[name] for name in ("processor", "memory", "kernel", "python"))
