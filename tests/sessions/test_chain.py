"""The audit's chain: whatever somebody does to the rows in the database is found, and what we do ourselves is not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from config import commands as shared
from config import jobs as queue
from config.database import Connection
from config.migrate import FOLDER, statements
from config.sealing import Sealer
from config.settings import Settings
from sessions import audit, chain
from sessions.commands import audits
from sessions.service import Sessions
from tests.revocation.cluster import until

OLD, NEW = b"an old secret", b"a new secret"
NOW = datetime(2026, 6, 15, tzinfo=UTC).timestamp()


def sealer(secret: bytes = OLD, *previous: bytes) -> Sealer:
    return Sealer(secret, previous, purpose="audit chain")


@pytest.fixture
async def connection(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    async with pool.acquire() as connection:
        yield connection


async def write(connection: Connection, *targets: str, address: str = "192.0.2.1") -> None:
    for target in targets:
        await audit.append(
            connection, "user.changed", actor="cli", target=target, address=address, detail={"n": [1, 2.50, None]}
        )


async def broken(connection: Connection, by: Sealer | None = None, seen: chain.Head | None = None) -> str:
    return (await chain.verify(connection, by or sealer(), seen)).broken


@pytest.fixture
async def sealed(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of three rows: a to i."""
    monkeypatch.setattr(chain, "AT_ONCE", 3)
    monkeypatch.setattr(chain, "_BATCHES_AT_ONCE", 2)
    await write(connection, *"abcdefghi")
    assert [await chain.seal(connection, sealer()) for _ in range(4)] == [3, 3, 3, 0]


async def test_words_about_a_person_may_go_and_may_not_be_changed(connection: Connection) -> None:
    for target in ("user:x", "user:y", "user:z"):
        await audit.append(
            connection, "user.banned", actor="cli", target=target, personal={"reason": f"\u2603 {target}"}
        )
    await audit.append(connection, "user.banned", actor="cli", target="user:none")
    assert await chain.seal(connection, sealer()) == 4
    assert await broken(connection) == ""
    [entry] = await audit.page(connection, audit.Filter(target="user:x"), limit=1)
    assert entry.detail == {"reason": "\u2603 user:x"}
    await connection.execute("UPDATE audit SET personal = '{}' WHERE target = 'user:x'")
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.blanked) == ("", 1)
    [entry] = await audit.page(connection, audit.Filter(target="user:x"), limit=1)
    assert entry.detail == {}
    for target, words in (
        ("user:y", '{"reason": "other"}'),
        ("user:x", '{"reason": "\u2603 user:x"}'),
        ("user:none", '{"reason": "other"}'),
    ):
        before = await connection.fetchval("SELECT personal FROM audit WHERE target = $1", target)
        await connection.execute("UPDATE audit SET personal = $2::text::jsonb WHERE target = $1", target, words)
        assert "was changed" in await broken(connection), target
        await connection.execute("UPDATE audit SET personal = $2 WHERE target = $1", target, before)
    assert await broken(connection) == ""


async def test_64_what_nobody_touched_is_whole(connection: Connection, sealed: None) -> None:
    await write(connection, "j")
    verdict = await chain.verify(connection, sealer())
    assert verdict.head.startswith("3.")
    assert verdict == chain.Verdict("", batches=3, rows=9, blanked=0, unsealed=1, begins=1, head=verdict.head)
    assert await chain.seal(connection, sealer()) == 1
    assert (await chain.verify(connection, sealer())).rows == 10


async def test_verifying_compared_each_row_with_each(connection: Connection) -> None:
    """Where PostgreSQL had not counted the audit's rows yet."""
    await connection.execute(
        "INSERT INTO audit (actor, action) SELECT 'user:' || n, 'x' FROM generate_series(1, 10000) AS n", timeout=60
    )
    while await chain.seal(connection, sealer()):
        pass
    seen: list[str] = []
    fetchrow: Any = connection.fetchrow

    async def explained(query: str, *values: object, **options: object) -> object:
        if query == chain._STRAY:
            seen.extend(r[0] for r in await connection.fetch(f"EXPLAIN {query}", *values))
        return await fetchrow(query, *values, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(connection), "fetchrow", staticmethod(explained))
        assert (await chain.verify(connection, sealer())).rows == 10000
    assert seen
    assert not [line for line in seen if "Nested Loop" in line]


async def test_an_empty_audit_is_whole(connection: Connection) -> None:
    assert await chain.verify(connection, sealer()) == chain.Verdict("", 0, 0, 0, 0, 1, "")


TAMPERED = {
    "edited": ("UPDATE audit SET target = 'x' WHERE target = 'e'", "batch 2: row 5 of", "was changed"),
    "actor": ("UPDATE audit SET actor = 'system' WHERE target = 'i'", "batch 3: row 9 of", "was changed"),
    "moved from one column to the next": (
        "UPDATE audit SET action = 'user.change', target = 'd' || target WHERE target = 'a'",
        "batch 1: row 1 of",
        "was changed",
    ),
    "detail": ("""UPDATE audit SET detail = '{"n": [1, 2.5, 0]}' WHERE target = 'a'""", "batch 1: row 1", "changed"),
    "address": ("UPDATE audit SET address = '192.0.2.2' WHERE target = 'd'", "batch 2: row 4", "was changed"),
    "deleted": ("DELETE FROM audit WHERE target = 'f'", "batch 2: row 6 of", "is gone"),
    "renumbered": ("UPDATE audit SET id = 77 WHERE target = 'c'", "batch 1: row 3 of", "is gone"),
    "moved in time": ("UPDATE audit SET at = at + interval '1 us' WHERE target = 'h'", "batch 3: row 8", "is gone"),
    "reordered": (
        """UPDATE audit a SET target = b.target FROM audit b
        WHERE (a.target, b.target) IN (('b', 'g'), ('g', 'b'))""",
        "batch 1: row 2 of",
        "was changed",
    ),
    "a batch taken out": ("DELETE FROM audit_batches WHERE number = 2", "batch 2 is gone", ""),
    "the first batch taken out": ("DELETE FROM audit_batches WHERE number = 1", "batch 1 is gone", ""),
    "batches exchanged": (
        "UPDATE audit_batches a SET (members, digest, sealed) = (SELECT members, digest, sealed FROM audit_batches b"
        " WHERE b.number = 5 - a.number) WHERE number IN (2, 3)",
        "batch 2 was changed",
        "",
    ),
    "members changed": (
        "UPDATE audit_batches SET members = overlay(members placing '\\x00' from 40) WHERE number = 3",
        "batch 3 was changed",
        "",
    ),
    "members cut": (
        "UPDATE audit_batches SET members = substr(members, 1, 64) WHERE number = 2",
        "batch 2 was changed",
        "",
    ),
    "sealed later than it was": (
        "UPDATE audit_batches SET sealed_at = sealed_at + interval '1 s' WHERE number = 1",
        "batch 1 was changed",
        "",
    ),
    "another batch's seal": (
        "UPDATE audit_batches SET sealed = (SELECT sealed FROM audit_batches WHERE number = 1) WHERE number = 2",
        "batch 2: damaged, or about something else",
        "",
    ),
    "no seal": (
        "UPDATE audit_batches SET sealed = '' WHERE number = 1",
        "batch 1: sealed with a secret that is not",
        "",
    ),
    "a made-up anchor": (
        "INSERT INTO audit_anchor (sealed) SELECT sealed FROM audit_batches WHERE number = 1",
        "the anchor: damaged",
        "",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_64_what_was_done_to_the_audit_is_found_and_where(connection: Connection, sealed: None, how: str) -> None:
    statement, where, what = TAMPERED[how]
    assert await connection.execute(statement) not in ("UPDATE 0", "DELETE 0", "INSERT 0 0")
    found = await broken(connection)
    assert found.startswith(where)
    assert found.endswith(what)


async def test_64_a_row_that_was_put_in_past_the_trigger_is_found(connection: Connection, sealed: None) -> None:
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(
        "INSERT INTO audit (at, actor, action) SELECT at, 'cli', 'x' FROM audit WHERE target = 'e'"
    )
    await connection.execute("SET session_replication_role = origin")
    assert (await broken(connection)).endswith("is in no batch")
    await write(connection, "j")
    await connection.execute("DELETE FROM audit WHERE action = 'x'")
    assert await broken(connection) == ""
    await connection.execute("DELETE FROM audit_unsealed")  # never to be sealed
    assert (await broken(connection)).endswith("is in no batch")


async def test_a_row_that_was_deleted_before_it_was_sealed_is_found(connection: Connection) -> None:
    await write(connection, "a", "b")
    await connection.execute("DELETE FROM audit WHERE target = 'a'")
    assert await chain.seal(connection, sealer()) == 2
    found = await broken(connection)
    assert found.startswith("batch 1: row 1 of")
    assert found.endswith("is gone")


async def test_a_chain_that_was_sealed_anew_with_another_secret_is_found(connection: Connection, sealed: None) -> None:
    await connection.execute("DELETE FROM audit_batches")
    await connection.execute("UPDATE audit SET actor = 'system' WHERE target = 'a'")
    await connection.execute("INSERT INTO audit_unsealed SELECT at, id FROM audit")
    assert await chain.seal(connection, sealer(b"a guess")) == 3
    assert await broken(connection) == "batch 1: sealed with a secret that is not known here"


async def test_a_chain_whose_end_was_cut_off_is_found_by_a_head_that_was_seen(
    connection: Connection, sealed: None
) -> None:
    seen = chain.read_head((await chain.verify(connection, sealer())).head)
    assert await broken(connection, seen=seen) == ""
    await connection.execute("DELETE FROM audit WHERE target IN ('g', 'h', 'i')")
    await connection.execute("DELETE FROM audit_batches WHERE number = 3")
    assert await broken(connection) == ""
    assert await broken(connection, seen=seen) == "batch 3 is gone: the chain went on to 3"
    await write(connection, "g")
    assert await chain.seal(connection, sealer()) == 1
    assert await broken(connection, seen=seen) == "batch 3 is another than the one that was seen before"


async def test_a_row_that_commits_late_is_sealed_all_the_same(pool: asyncpg.Pool, connection: Connection) -> None:
    """Its id and time are before those of rows that are sealed already."""
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await write(slow, "late")
        await write(connection, "early")
        assert await chain.seal(connection, sealer()) == 1
        assert await chain.seal(connection, sealer()) == 0
        await transaction.commit()
    assert await chain.seal(connection, sealer()) == 1
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.rows, verdict.unsealed) == ("", 2, 0)


async def test_what_was_rolled_back_leaves_nothing_to_seal(connection: Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await write(connection, "a")
    await transaction.rollback()
    assert await chain.seal(connection, sealer()) == 0


async def test_two_who_seal_at_once_make_one_chain(
    pool: asyncpg.Pool, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(connection, *map(str, range(20)))

    async def sealing() -> None:
        async with pool.acquire() as mine:
            while await chain.seal(mine, sealer()):
                pass

    monkeypatch.setattr(chain, "AT_ONCE", 2)
    await asyncio.gather(*(sealing() for _ in range(3)))
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.rows) == ("", 20)
    assert verdict.batches >= 10


async def test_an_address_may_be_blanked_and_the_chain_holds(connection: Connection, sealed: None) -> None:
    await connection.execute("UPDATE audit SET address = '' WHERE target IN ('a', 'e')")
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.blanked) == ("", 2)
    await connection.execute("UPDATE audit SET actor = 'system' WHERE target = 'e'")  # and the rest is held to it
    assert (await broken(connection)).startswith("batch 2: row 5 of")


async def test_nobody_reads_an_address_out_of_the_chain(connection: Connection) -> None:
    """Equal addresses look different in each batch, and without the secret nobody can try them all."""
    for target in "ab":
        await write(connection, target)
        await chain.seal(connection, sealer())
    macs = {bytes(r["members"])[16:32] for r in await connection.fetch("SELECT members FROM audit_batches")}
    assert len(macs) == 2


async def test_a_rotated_secret_verifies_with_the_one_before_and_then_without(
    connection: Connection, sealed: None
) -> None:
    async with connection.transaction():
        assert await chain.prune(connection, sealer(), NOW, limit=10) == 0
    both = sealer(NEW, OLD)
    await write(connection, "j")
    assert await chain.seal(connection, both) == 1
    assert await broken(connection, both) == ""
    assert await broken(connection, sealer(NEW)) == "batch 1: sealed with a secret that is not known here"
    await chain.renew(connection, both)
    assert await broken(connection, sealer(NEW)) == ""
    assert await broken(connection, sealer(OLD)) == "batch 1: sealed with a secret that is not known here"


async def test_what_no_secret_opens_is_not_sealed_again(connection: Connection, sealed: None) -> None:
    await connection.execute("UPDATE audit_batches SET members = '' WHERE number = 1")
    await connection.execute("UPDATE audit_batches SET digest = sha256('x') WHERE number = 2")
    with capture_logs() as logs:
        await chain.renew(connection, sealer(NEW, OLD))
    assert [line["event"] for line in logs] == ["audit_seal_unknown"]
    assert await broken(connection, sealer(NEW, OLD)) == "batch 1 was changed, or the one before it"


# -- pruning


async def months(connection: Connection, *days: str) -> None:
    """A row on each of these days, each in a batch of its own."""
    for day in days:
        await connection.execute("SELECT audit_make_month($1::text::timestamptz)", day)
        await connection.execute(
            "INSERT INTO audit (at, actor, action, target) VALUES ($1::text::timestamptz, 'cli', 'x', $1)", day
        )
        assert await chain.seal(connection, sealer()) == 1


async def test_what_is_left_after_pruning_verifies_from_a_sealed_anchor(connection: Connection) -> None:
    await months(connection, "2024-11-15", "2024-12-15", "2025-01-15", "2025-02-15")
    before = datetime(2025, 1, 20, tzinfo=UTC).timestamp()
    assert await chain.prune(connection, sealer(), before, limit=10) == 2
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.begins, verdict.batches, verdict.rows) == ("", 3, 2, 2)
    await chain.renew(connection, sealer(NEW, OLD))
    assert await broken(connection, sealer(NEW)) == ""
    assert await chain.prune(connection, sealer(NEW), before, limit=10) == 0
    await connection.execute(
        "DELETE FROM audit WHERE target = '2025-01-15'"
    )  # before `before`, but of a month that stays
    assert (await broken(connection, sealer(NEW))).endswith("is gone")


async def test_months_that_somebody_else_took_away_are_found(connection: Connection) -> None:
    await months(connection, "2024-11-15", "2024-12-15", "2025-01-15")
    assert await chain.prune(connection, sealer(), datetime(2024, 12, 2, tzinfo=UTC).timestamp(), limit=10) == 1
    assert await broken(connection) == ""
    await connection.execute("DROP TABLE audit_2024_12")
    await connection.execute("DELETE FROM audit_batches WHERE number = 2")
    assert await broken(connection) == "batch 2 is gone"
    await connection.execute("DELETE FROM audit_anchor")
    assert await broken(connection) == "batch 1 is gone"


async def test_a_batch_with_rows_of_two_months_stays_while_one_of_them_does(connection: Connection) -> None:
    for day in ("2024-11-15", "2024-12-15"):
        await connection.execute("SELECT audit_make_month($1::text::timestamptz)", day)
        await connection.execute(
            "INSERT INTO audit (at, actor, action) VALUES ($1::text::timestamptz, 'cli', 'x')", day
        )
    assert await chain.seal(connection, sealer()) == 2
    assert await chain.prune(connection, sealer(), datetime(2024, 12, 31, tzinfo=UTC).timestamp(), limit=10) == 1
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.batches, verdict.rows) == ("", 1, 1)


async def test_a_chain_goes_on_where_all_of_its_rows_were_pruned(connection: Connection) -> None:
    await months(connection, "2024-11-15", "2024-12-15")
    assert await chain.prune(connection, sealer(), NOW, limit=10) == 2
    await write(connection, "a")
    assert await chain.seal(connection, sealer()) == 1
    verdict = await chain.verify(connection, sealer())
    assert (verdict.broken, verdict.begins, verdict.batches, verdict.rows) == ("", 2, 2, 1)


async def test_a_process_prunes_what_is_older_than_the_settings_say(
    connection: Connection, sessions: Sessions, settings: Settings
) -> None:
    by = chain.sealer(settings.sessions)
    await connection.execute("SELECT audit_make_month('2020-01-01')")
    await connection.execute("INSERT INTO audit (at, actor, action) VALUES ('2020-01-15', 'cli', 'x')")
    assert await chain.seal(connection, by) == 1
    await sessions.tidy()
    assert await connection.fetchval("SELECT count(*) FROM audit") == 0
    assert await broken(connection, by) == ""
    assert await connection.fetchval("SELECT count(*) FROM audit_anchor") == 1


# -- the migration, the command


async def test_rows_from_before_the_migration_are_sealed_and_it_bears_running_twice(
    connection: Connection,
) -> None:
    await connection.execute("DROP TRIGGER audit_to_seal ON audit")
    await write(connection, "a", "b")
    text = next(FOLDER.glob("0016_*.sql")).read_text(encoding="utf-8")
    for _ in range(2):
        for statement in statements(text):
            await connection.execute(statement)
    await write(connection, "c")
    assert await chain.seal(connection, sealer()) == 3
    assert await broken(connection) == ""


Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command as `run.py` would: exit code, stdout, stderr."""
    monkeypatch.setattr(shared, "settings_for", lambda common: settings)

    async def command(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(_main, arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    with capture_logs():  # of the fixtures' own process
        yield command


def _main(arguments: Sequence[str]) -> int:
    return shared.main(audits, arguments)


async def test_the_command_tells_by_its_exit_code_and_the_first_place(
    run: Run, connection: Connection, settings: Settings
) -> None:
    by = chain.sealer(settings.sessions)
    await write(connection, "a", "b")
    await chain.seal(connection, by)
    code, out, _ = await run("verify", "--json")
    told = json.loads(out)
    assert (code, told["whole"], told["broken"], told["rows"]) == (0, True, "", 2)
    code, out, _ = await run("verify", "--head", told["head"])
    assert code == 0
    assert "broken" not in out
    await connection.execute("UPDATE audit SET target = 'x' WHERE target = 'b'")
    code, out, _ = await run("verify", "--json")
    assert (code, json.loads(out)["whole"]) == (3, False)
    assert json.loads(out)["broken"].startswith("batch 1: row 2 of")
    code, out, _ = await run("verify")
    assert code == 3
    assert "row 2 of" in out
    for head in ("x", "1.zz", "0." + "00" * 32, "1.00"):
        code, _, err = await run("verify", "--head", head)
        assert code == 2
        assert "--head is" in err


async def test_the_audit_is_listed_and_filtered(run: Run, connection: Connection) -> None:
    await write(connection, "user:a", "user:b", "user:c")
    await audit.append(connection, "session.ended", actor="user:a", target="session:s", sid="s")
    code, out, _ = await run("list", "--json", "--limit", "3")
    page = json.loads(out)
    assert code == 0
    assert [item["target"] for item in page["items"]] == ["session:s", "user:c", "user:b"]
    _, out, _ = await run("list", "--json", "--after", page["next"])
    assert [item["target"] for item in json.loads(out)["items"]] == ["user:a"]
    assert json.loads(out)["next"] == ""
    for option, value in (("--actor", "user:a"), ("--action", "session"), ("--target", "session:s"), ("--sid", "s")):
        _, out, _ = await run("list", "--json", option, value)
        assert [item["action"] for item in json.loads(out)["items"]] == ["session.ended"]
    code, out, _ = await run("list")
    assert "192.0.2.1" in out
    for wrong in (("--limit", "0"), ("--after", "x"), ("--actor", "\0")):
        assert (await run("list", *wrong))[0] == 2


async def test_a_process_seals_by_itself_and_tells_how_far_behind_it_is(
    settings: Settings, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "POLL", 0.02)
    monkeypatch.setattr(chain, "LOOKED_EVERY", 0.01)
    await pool.execute("INSERT INTO audit (at, actor, action) VALUES (now() - interval '1 h', 'cli', 'x')")
    jobs = queue.Jobs(pool, node="a")
    sealing = chain.Chain(pool, jobs, chain.sealer(settings.sessions))
    await sealing.start()
    try:
        await until(lambda: sealing.figures()["audit_unsealed_seconds"] >= 3600)
        jobs.start()
        await until(lambda: sealing.figures()["audit_unsealed_seconds"] == 0)
    finally:
        await jobs.close()
        await sealing.close()
    assert await pool.fetchval("SELECT count(*) FROM audit_batches") == 1
