"""Jobs a second: a full queue in a PostgreSQL of the bench's own, drained by one process whose jobs do nothing.

    python -m bench.jobs [--jobs 100000]

What is measured is what the product adds to a job: claiming it, doing it as a task, writing down that it is done. The
queue is the product's (`config.jobs`); its rows are durable, so what a commit takes of the disk is in it.
"""

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

from bench.postgres import postgres
from config.database import open_pool
from config.jobs import Job, Jobs, Kind, enqueue
from config.settings import Database

KIND = "bench"
TOGETHER = 1000  # enqueued in one transaction


async def drained(pool: Any, count: int) -> dict[str, float]:
    """How long it took until the last of `count` was gone, and how many were done more than once."""
    for first in range(0, count, TOGETHER):
        async with pool.acquire() as connection, connection.transaction():
            await enqueue(connection, KIND, list(range(first, min(count, first + TOGETHER))))
    await pool.execute("ANALYZE jobs")
    done, again = set[str](), 0
    over = asyncio.Event()

    async def run(job: Job) -> None:
        nonlocal again
        again += job.id in done
        done.add(job.id)
        if len(done) == count:
            over.set()

    jobs = Jobs(pool, node="bench")
    jobs.add(KIND, Kind(run))
    began, cpu = time.perf_counter(), time.process_time()
    jobs.start()
    await over.wait()
    await jobs.close()  # writes down the last ones
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    left = await pool.fetchval("SELECT count(*) FROM jobs WHERE kind = $1", KIND)
    if left or again:
        raise RuntimeError(f"{left} jobs are left, {again} were done again")
    return {"jobs": count, "seconds": took, "rate": count / took, "cpu": cpu * 1e6 / count}


async def main(count: int) -> dict[str, float]:
    async with postgres("jobs") as url, await open_pool(Database.model_validate({"url": url})) as pool:
        return await drained(pool, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.jobs")
    parser.add_argument("--jobs", type=int, default=100_000)
    print(json.dumps(uvloop.run(main(parser.parse_args().jobs))))
