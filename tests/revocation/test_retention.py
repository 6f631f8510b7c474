"""What goes from the log's tables after its time, and what stays for ever."""

import asyncpg
import pytest

from sessions import log

TABLES = ["idempotency", "receipt_nodes", "receipts", "revocation_log"]

_ROWS = """
INSERT INTO revocation_log (seq, id, previous, kind, bound, committed_at, receipt)
SELECT h.seq + n, gen_random_uuid(), gen_random_uuid(), CASE WHEN n % 10 = 0 THEN 3 ELSE 1 END, h.seq + n,
    clock_timestamp() - (($1 + 1 - n) * $2::float8) * interval '1 day', gen_random_uuid()
FROM revocation_head h, generate_series(1, $1::int) AS n
"""
_RECEIPTS = """
INSERT INTO receipts (id, seq, era_id, rows, sessions, committed_at)
SELECT receipt, seq, id, 1, 1, committed_at FROM revocation_log WHERE receipt IS NOT NULL
"""
_NODES = """
INSERT INTO receipt_nodes SELECT id, 'node' || n, committed_at, 1 FROM receipts, generate_series(1, 2) AS n
"""
_KEYS = """
INSERT INTO idempotency (caller, key, body_hash, receipt, created_at)
SELECT 'c', id::text, '', id, committed_at FROM receipts
"""
_HEAD = "UPDATE revocation_head SET (seq, id) = (SELECT seq, id FROM revocation_log ORDER BY seq DESC LIMIT 1)"


async def fill(pool: asyncpg.Pool, count: int, apart: float) -> None:
    """So many rows, one every `apart` days up to now, every tenth of them for everyone; each with a receipt."""
    await pool.execute(_ROWS, count, apart)
    for statement in (_RECEIPTS, _NODES, _KEYS, _HEAD):
        await pool.execute(statement)


async def ages(pool: asyncpg.Pool, table: str, column: str, where: str = "true") -> list[int]:
    """Whole days, oldest first."""
    text = f"SELECT round(extract(epoch FROM clock_timestamp() - {column}) / 86400)::int FROM {table} WHERE {where}"
    return [age for (age,) in await pool.fetch(text + " ORDER BY 1 DESC")]


async def test_rows_receipts_and_keys_go_after_their_time_and_everyone_stays(pool: asyncpg.Pool) -> None:
    await fill(pool, 40, 1.0)
    async with pool.acquire() as connection:
        assert await log.prune(connection) > 0
        assert await log.prune(connection) == 0
    # The last row that is old enough stays: it says which seq a token from before the others was born at.
    assert await ages(pool, "revocation_log", "committed_at", "kind = 1") == [
        n for n in range(30, 0, -1) if n % 10 != 1
    ]
    assert await ages(pool, "revocation_log", "committed_at", "kind = 3") == [31, 21, 11, 1]
    assert await pool.fetchval("SELECT count(*) FROM revocation_log WHERE kind = 6") == 1
    receipts = await ages(pool, "receipts", "committed_at")
    assert receipts == list(range(29, 0, -1))
    assert await pool.fetchval("SELECT count(*) FROM receipt_nodes") == 2 * len(receipts)
    assert await pool.fetchval("SELECT count(*) FROM idempotency") == 0


async def test_what_a_process_has_not_applied_stays(pool: asyncpg.Pool) -> None:
    await fill(pool, 40, 1.0)
    behind = await pool.fetchval("SELECT min(seq) + 5 FROM revocation_log")
    await pool.execute(
        "INSERT INTO processes (node, policy, version, applied_seq) VALUES ('n', 'freeze', 1, $1)", behind
    )
    async with pool.acquire() as connection:
        await log.prune(connection)
    assert await pool.fetchval("SELECT min(seq) FROM revocation_log WHERE kind = 1") == behind


async def test_a_receipt_goes_with_its_nodes_whichever_a_batch_takes(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches, and rows that stand in no order."""
    monkeypatch.setattr(log, "BATCH", 3)
    await fill(pool, 40, 1.0)
    await pool.execute("UPDATE receipts SET actor = 'moved' WHERE rows = 1 AND substr(id::text, 1, 1) < '8'")
    async with pool.acquire() as connection:
        for _ in range(2):
            await log.prune(connection)
    lost = "SELECT count(*) FROM receipt_nodes n WHERE NOT EXISTS (SELECT FROM receipts r WHERE r.id = n.receipt)"
    assert await pool.fetchval(lost) == 0
    assert await pool.fetchval("SELECT count(*) FROM receipts") == 34


async def test_pruning_walked_over_the_whole_log_every_minute(pool: asyncpg.Pool) -> None:
    await fill(pool, 20_000, 0.001501)  # little is due, as it is when this runs every minute
    for table in TABLES:
        await pool.execute(f"ANALYZE {table}")
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")  # what filling walked over is not counted below
        async with connection.transaction():
            assert await log.prune(connection, keep_keys=log.KEEP_ROWS) > 0
            walks = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY($1) ORDER BY 1"
            assert [tuple(row) for row in await connection.fetch(walks, TABLES)] == [(table, 0) for table in TABLES]
