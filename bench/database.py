"""A large database: 1,000,000 users and 5,000,000 sessions in a PostgreSQL of the bench's own, and what the queries of
accounts, sessions and the lists take there.

    python -m bench.database [--users 1000000] [--json]

The rows are made by SQL. Each query is the product's own function with other arguments every time; its figure is the
99th percentile of what a caller waits. A query walks a large table when the server says that it read more rows of it in
sequence than anybody asked for. Pruning runs while others log in, and must not hold them up.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from auth import users
from bench.postgres import postgres
from config.database import connect
from config.paging import Cursor
from config.settings import Database, Life
from sessions import audit, store
from sessions.model import Session, Subject
from sessions.store import Filter, Sight

FREE = 10 * 1024**3
PER_USER = 5
LARGE = ("subjects", "users", "sessions", "audit")
WALKED = 20_000
"""So many rows read in sequence by one query are a walk over a table."""
CALLS = 200
BORN = 1 << 32
LIFE = Life(absolute=90 * 86400.0, idle=14 * 86400.0)

_SUBJECTS = """
INSERT INTO subjects (id, roles, state, guest, created_at)
SELECT left('u_' || translate(md5(n::text), '0189', 'wxyz'), 28),
    CASE WHEN n % 50000 = 0 THEN '{admin}'::text[] WHEN n % 1000 = 0 THEN '{editor}' ELSE '{}' END,
    CASE WHEN n % 10000 = 7 THEN 'disabled' ELSE 'active' END, false,
    now() - (n % 700 || ' days')::interval - (n || ' ms')::interval
FROM generate_series(1, $1::int) n
"""
_USERS = """
INSERT INTO users (id, email, email_key, display_name, password_hash, created_at, last_login_at)
SELECT left('u_' || translate(md5(n::text), '0189', 'wxyz'), 28), 'Person' || n || '@example.org',
    'person' || n || '@example.org', 'Person ' || n, repeat('x', 62),
    now() - (n % 700 || ' days')::interval - (n || ' ms')::interval, now()
FROM generate_series(1, $1::int) n
"""
# Ids in the order of time, as ours are; a third is over, one in ten is of another issuer.
_SESSIONS = """
INSERT INTO sessions (sid, subject, kind, issuer, born, secret_hash, device, address, created_at, last_seen_at,
    auth_time, expires_at, idle_seconds, forget_at, ended_at, ended_code, ended_reason)
SELECT overlay(overlay(lpad(to_hex(n), 12, '0') || '7' || left(md5(n::text), 19) placing '-' from 9 for 0)
        placing '-' from 14 for 0),
    left('u_' || translate(md5((n % $1 + 1)::text), '0189', 'wxyz'), 28), kind, '', 4294967296,
    CASE WHEN kind = 'cookie' THEN sha256(int8send(n)) END, 'Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0',
    '198.51.100.7', at, at, at, at + interval '90 days', 14 * 86400.0,
    CASE WHEN kind = 'external' THEN at + interval '91 days' END,
    CASE WHEN n % 3 = 0 THEN at + interval '1 hour' END, CASE WHEN n % 3 = 0 THEN 4501 END,
    CASE WHEN n % 3 = 0 THEN 'logout' ELSE '' END
FROM (
    SELECT n, CASE WHEN n % 10 = 9 THEN 'external' WHEN n % 10 > 5 THEN 'token' ELSE 'cookie' END AS kind,
        now() - interval '13 days' + n * interval '13 days' / $3 AS at
    FROM generate_series($2::bigint, $4::bigint) n
) made
"""
_AUDIT = """
INSERT INTO audit (at, actor, action, target, sid, address)
SELECT now() - n * interval '1 s', 'user:' || left('u_' || translate(md5((n % $1 + 1)::text), '0189', 'wxyz'), 28),
    CASE WHEN n % 1000 = 0 THEN 'user.changed' ELSE 'session.opened' END, 'session:' || md5(n::text), md5(n::text),
    '198.51.100.7'
FROM generate_series(1, $1::int) n
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def fill(connection: Any, count: int) -> None:
    """Rows first, indexes after."""
    indexes = await connection.fetch(
        "SELECT indexdef, indexname FROM pg_indexes i WHERE schemaname = 'public' AND tablename = ANY($1)"
        " AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)",
        ["sessions", "users", "subjects"],
    )
    await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
    for index in indexes:
        await connection.execute(f'DROP INDEX "{index["indexname"]}"')
    say("  users")
    await connection.execute(_SUBJECTS, count, timeout=None)
    await connection.execute(_USERS, count, timeout=None)
    total = PER_USER * count
    step = max(1, total // 10)
    for first in range(1, total + 1, step):
        say(f"  sessions from {first:,}")
        await connection.execute(_SESSIONS, count, first, total, min(total, first + step - 1), timeout=None)
    say("  audit, indexes, statistics")
    await connection.execute(_AUDIT, count, timeout=None)
    await connection.execute("SET maintenance_work_mem = '1GB'")
    for index in indexes:
        await connection.execute(index["indexdef"], timeout=None)
    await connection.execute("VACUUM ANALYZE", timeout=None)
    await connection.execute("RESET session_replication_role")


class Queries:
    """The product's, by name. `any_*` are arguments that somebody would have."""

    def __init__(self, connection: Any, count: int, now: float) -> None:
        self.c, self.count, self.now = connection, count, now
        self.people: list[str] = []
        self.sids: list[str] = []
        self.hashes: list[bytes] = []

    async def look(self) -> None:
        part = min(100.0, 1_000_000 / (PER_USER * self.count))
        rows = await self.c.fetch(
            "SELECT sid, subject, secret_hash FROM sessions TABLESAMPLE SYSTEM ($1::float8) LIMIT 5000", part
        )
        self.people = [row["subject"] for row in rows]
        self.sids = [row["sid"] for row in rows]
        self.hashes = [row["secret_hash"] for row in rows if row["secret_hash"] is not None]

    @property
    def who(self) -> str:
        return random.choice(self.people)

    @property
    def sid(self) -> str:
        return random.choice(self.sids)

    @property
    def email(self) -> str:
        return f"person{random.randint(1, self.count)}@example.org"

    def sessions(self, by: Filter, after: Cursor | None = None) -> Awaitable[Any]:
        return store.page(self.c, by, now=self.now, limit=50, after=after)

    def accounts(self, by: users.Filter, after: Cursor | None = None) -> Awaitable[Any]:
        return users.page(self.c, by, limit=50, after=after)

    def audited(self, **by: str) -> Awaitable[Any]:
        return audit.page(self.c, audit.Filter(**by), limit=50)

    async def in_transaction(self, work: Callable[[], Awaitable[Any]]) -> None:
        transaction = self.c.transaction()
        await transaction.start()
        try:
            await work()
        finally:
            await transaction.rollback()

    async def login(self) -> None:
        subject = Subject(self.who, True, 1)
        now = time.time()
        session = Session(str(uuid.uuid4()), subject, "cookie", "", BORN, now, now, now + LIFE.absolute, LIFE.idle)
        await store.subject(self.c, subject.id, lock=True)
        await store.surplus(self.c, subject.id, but=[], keep=19, now=self.now)
        await store.insert_login(self.c, session, secret_hash=random.randbytes(32), sealed_key=None)
        await users.logged_in(self.c, subject.id, None)

    async def meet(self) -> None:
        sight = Sight(str(uuid.uuid4()), self.who, "", time.time(), "", "")
        await store.meet(self.c, [sight], now=self.now, life=LIFE, roles={})

    def all(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        deep = Cursor(int((self.now - 6 * 86400) * 1e6), "0" * 12)
        late = Cursor(int((self.now - 30 * 86400) * 1e6), "")
        t = self.in_transaction
        return {
            "session of a cookie": lambda: store.by_secret_hashes(self.c, [random.choice(self.hashes)]),
            "50 sessions by sid": lambda: store.by_sids(self.c, random.sample(self.sids, 50)),
            "a user's sessions": lambda: self.sessions(Filter(subject=self.who)),
            "all sessions": lambda: self.sessions(Filter()),
            "all sessions, far behind": lambda: self.sessions(Filter(), deep),
            "sessions by token": lambda: self.sessions(Filter(kind="token")),
            "sessions of an issuer that has none": lambda: self.sessions(Filter(issuer="corp")),
            "sessions of a user that has none": lambda: self.sessions(Filter(subject="nobody")),
            "external sessions": lambda: self.sessions(Filter(kind="external")),
            "how many a user has": lambda: store.count_live(self.c, now=self.now, subject=self.who),
            "a login": lambda: t(self.login),
            "an external token's first sight": lambda: t(self.meet),
            "a user's live sessions, locked": lambda: t(lambda: store.lock_live(self.c, self.who, now=self.now)),
            "a user's sessions, shortened": lambda: t(
                lambda: store.shorten(self.c, self.who, Life(absolute=86400.0, idle=900.0))
            ),
            "whose session it is": lambda: store.owns(self.c, self.who, self.sid),
            "activity of 100 sessions": lambda: t(
                lambda: store.touch(self.c, dict.fromkeys(random.sample(self.sids, 100), self.now))
            ),
            "an account by address": lambda: users.by_email(self.c, self.email),
            "an account by id": lambda: users.by_id(self.c, self.who),
            "a user": lambda: users.find(self.c, self.who),
            "accounts": lambda: self.accounts(users.Filter()),
            "accounts, far behind": lambda: self.accounts(users.Filter(), late),
            "accounts by the beginning of an address": lambda: self.accounts(users.Filter(email="person77")),
            "accounts by no such beginning": lambda: self.accounts(users.Filter(email="zebra")),
            "accounts with a rare role": lambda: self.accounts(users.Filter(role="admin")),
            "accounts with a role that nobody has": lambda: self.accounts(users.Filter(role="captain")),
            "disabled accounts": lambda: self.accounts(users.Filter(active=False)),
            "the audit": lambda: self.audited(),
            "the audit of an actor": lambda: self.audited(actor=f"user:{self.who}"),
            "the audit of a rare action": lambda: self.audited(action="user.changed"),
            "the audit of an action that never was": lambda: self.audited(action="key.made"),
            "the audit of a target": lambda: self.audited(target=f"session:{self.sid}"),
            "the audit of a session": lambda: self.audited(sid=self.sid),
        }


async def rows_in_sequence(connection: Any) -> dict[str, int]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    found = await connection.fetch(
        "SELECT relname, coalesce(seq_tup_read, 0) AS read FROM pg_stat_user_tables WHERE relname ~ $1",
        f"^({'|'.join(LARGE)})",
    )
    return {row["relname"]: row["read"] for row in found}


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1e3


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def measured(queries: Queries) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, call in queries.all().items():
        before = await rows_in_sequence(queries.c)
        first = await timed(call)
        calls = 5 if first > 500 else CALLS  # it is too slow anyhow
        for _ in range(min(calls, 10)):
            await timed(call)
        waits = [await timed(call) for _ in range(calls)]
        after = await rows_in_sequence(queries.c)
        walked = {table: (after[table] - before.get(table, 0)) // (calls + 11) for table in after}
        found[name] = {
            "p50": quantile(waits, 0.5),
            "p99": quantile(waits, 0.99),
            "walks": sorted(table for table, rows in walked.items() if rows > WALKED),
        }
        say(f"  {name}: {found[name]['p50']:.2f} / {found[name]['p99']:.2f} ms {' '.join(found[name]['walks'])}")
    return found


async def pruned(url: str, queries: Queries) -> dict[str, Any]:
    """Old sessions go, a batch after the other, while others log in."""
    connection: Any = await connect(Database.model_validate({"url": url}))
    gone, batches, waits = 0, [], []
    done = asyncio.Event()

    async def prune() -> None:
        nonlocal gone
        before = queries.now - 10 * 86400
        for _ in range(100):
            began = time.perf_counter()
            count = await store.forget_over(connection, before=before, limit=1000)
            batches.append((time.perf_counter() - began) * 1e3)
            gone += count
            if count < 1000:
                break
        done.set()

    async def log_in() -> None:
        while not done.is_set():
            waits.append(await timed(lambda: queries.in_transaction(queries.login)))

    await asyncio.gather(prune(), log_in())
    await connection.close()
    return {"gone": gone, "batch p99": quantile(batches, 0.99), "p99": quantile(waits, 0.99), "logins": len(waits)}


async def main(count: int) -> dict[str, Any]:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < FREE:
        return {"skipped": f"{free / 1024**3:.1f} GB are free, 10 are wanted"}
    async with postgres("database", durable=False) as url:
        connection = await asyncpg.connect(url)
        began = time.monotonic()
        await fill(connection, count)
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        await connection.close()
        say(f"  {size / 1024**3:.1f} GB in {time.monotonic() - began:.0f} s")
        connection = await connect(Database.model_validate({"url": url}), timeout=60.0)
        queries = Queries(connection, count, time.time())
        await queries.look()
        found = {"queries": await measured(queries), "bytes": size}
        found["pruning"] = await pruned(url, queries)
        await connection.close()
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.database")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    seen = asyncio.run(main(chosen.users))
    print(json.dumps(seen) if chosen.json else json.dumps(seen, indent=1))
