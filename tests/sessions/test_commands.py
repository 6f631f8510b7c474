"""`run.py sessions`: what it prints, what it ends, and how it exits."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator

import asyncpg
import pytest
from cyclopts import App
from structlog.testing import capture_logs

from config import commands as shared
from config.settings import Settings
from sessions import commands, store
from sessions.commands import app
from sessions.lease import DOUBTED
from sessions.service import Opened, Sessions
from tests.sessions.conftest import Logins, row_of

METACHARACTERS = """'; DROP TABLE sessions; -- " \\ % _ $1 {}"""
Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command as `run.py` would: exit code, stdout, stderr."""
    monkeypatch.setattr(shared, "settings_for", lambda common: settings)
    with capture_logs():  # of the fixtures' own process
        yield _command(capsys)


def _command(capsys: pytest.CaptureFixture[str]) -> Run:

    async def command(*arguments: str) -> tuple[int, str, str]:
        code = await shared_main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


async def shared_main(arguments: tuple[str, ...]) -> int:
    return await asyncio.to_thread(shared.main, app, arguments)


def sid(opened: Opened) -> str:
    return opened.reading.session.sid


async def is_live(sessions: Sessions, opened: Opened) -> bool:
    reading = await sessions.by_sid(sid(opened))
    assert reading is not None
    return reading.session.ended is None


async def test_live_sessions_are_listed(run: Run, login: Logins) -> None:
    opened = [await login("alice", device="curl/8", address="192.0.2.1"), await login("bob", kind="token")]
    code, out, _ = await run("list", "--json")
    assert code == 0
    body = json.loads(out)
    assert [item["sid"] for item in body["items"]] == [sid(o) for o in reversed(opened)]
    assert body["next"] == ""
    assert body["items"][1]["device"] == "curl"
    code, out, _ = await run("list", "--user", "alice")
    assert code == 0
    assert sid(opened[0]) in out
    assert sid(opened[1]) not in out


async def test_a_list_goes_on_where_it_stopped(run: Run, login: Logins) -> None:
    opened = [await login("alice") for _ in range(3)]
    _, out, _ = await run("list", "--limit", "2", "--json")
    _, rest, _ = await run("list", "--limit", "2", "--after", json.loads(out)["next"], "--json")
    listed = [item["sid"] for part in (out, rest) for item in json.loads(part)["items"]]
    assert listed == [sid(o) for o in reversed(opened)]


async def test_one_session_is_shown_live_or_over(run: Run, login: Logins) -> None:
    opened = await login()
    code, out, _ = await run("show", sid(opened), "--json")
    assert (code, json.loads(out)["ended"]) == (0, None)
    await run("end", sid(opened), "--reason", "stolen laptop")
    _, out, _ = await run("show", sid(opened), "--json")
    assert json.loads(out)["ended"]["reason"] == "stolen laptop"
    code, out, _ = await run("show", sid(opened))
    assert code == 0
    assert "stolen laptop" in out


async def test_a_session_ends_through_the_log_and_is_audited(
    run: Run, login: Logins, sessions: Sessions, pool: asyncpg.Pool
) -> None:
    one, other = await login(), await login()
    code, out, _ = await run("end", sid(one), "--reason", "r", "--message", METACHARACTERS, "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 1)
    assert [await is_live(sessions, o) for o in (one, other)] == [False, True]
    row = await row_of(pool, "SELECT * FROM revocation_log ORDER BY seq DESC LIMIT 1")
    assert (row["sid"], row["code"], row["reason"], row["message"]) == (sid(one), 4501, "r", METACHARACTERS)
    audited = await row_of(pool, "SELECT * FROM audit ORDER BY id DESC LIMIT 1")
    assert (audited["actor"], audited["action"], audited["target"]) == ("cli", "session.ended", f"session:{sid(one)}")
    code, out, _ = await run("end", sid(one), "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 0)


async def test_all_sessions_of_a_user_end(run: Run, login: Logins, sessions: Sessions) -> None:
    opened = [await login("alice"), await login("alice"), await login("bob")]
    code, out, _ = await run("end", "--user", "alice", "--json")
    assert (code, json.loads(out)["sessions"]) == (0, 2)
    assert [await is_live(sessions, o) for o in opened] == [False, False, True]


async def test_an_address_for_a_user_looked_like_a_user_without_sessions(run: Run, login: Logins) -> None:
    for command in ("list", "end"):
        code, out, err = await run(command, "--user", "alice@example.org")
        assert (code, out) == (1, "")
        assert "a user id, like u_...; `users list --email` shows it" in err
    opened = await login("corp:alice@example.org")
    code, out, _ = await run("list", "--user", "corp:alice@example.org")
    assert (code, sid(opened) in out) == (0, True)
    assert (await run("list", "--user", "nobody"))[0] == 0


async def test_what_cannot_be_done_fails_with_a_text(run: Run, login: Logins) -> None:
    await login()
    for expected, arguments in (
        (2, ("end",)),
        (2, ("end", "x", "--user", "alice")),
        (1, ("end", "nobody")),
        (1, ("end", METACHARACTERS)),
        (1, ("end", "--user", "nobody")),
        (1, ("end", "x\udcff")),
        (2, ("end", "--user", "x\udcff")),
        (2, ("end", "x", "--reason", "")),
        (2, ("end", "x", "--reason", "r" * 65)),
        (1, ("show", "nobody")),
        (2, ("list", "--limit", "0")),
        (2, ("list", "--after", "x")),
        (2, ("list", "--user", "a\x00b")),
    ):
        code, out, err = await run(*arguments)
        assert (code, out) == (expected, ""), arguments
        assert err.startswith("error: "), arguments
        assert "Traceback" not in err, arguments


async def test_wrong_usage_exits_with_2(run: Run) -> None:
    for arguments in (("nonsense",), ("list", "--nonsense"), ("show",), ("list", "--limit", "x")):
        code, _, _ = await run(*arguments)
        assert code == 2, arguments


async def test_every_command_has_help(run: Run) -> None:
    for arguments in ((), ("list",), ("show",), ("end",)):
        code, out, _ = await run(*arguments, "--help")
        assert code == 0
        assert "Usage" in out


async def test_filters_are_only_text(run: Run, pool: asyncpg.Pool) -> None:
    code, out, _ = await run("list", "--user", METACHARACTERS, "--issuer", METACHARACTERS, "--json")
    assert (code, json.loads(out)["items"]) == (0, [])
    assert await store.count_live(pool, now=1.0) == 0


@pytest.fixture
def restore(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command `restore`."""
    own = App(name="run.py")
    own.command(commands.restore, name="restore")

    async def command(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(shared.main, own, ("restore", *arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


async def test_restore_says_what_it_would_end_and_changes_nothing(
    restore: Run, login: Logins, sessions: Sessions, pool: asyncpg.Pool
) -> None:
    opened = [await login("alice"), await login("alice"), await login("bob")]
    code, out, _ = await restore("--json")
    body = json.loads(out)
    assert (code, body["sessions"], body["users"], body["refused"]) == (0, 3, 2, False)
    # A process that lives would vouch for another name at its next renewal, for what is doubted none does.
    await pool.execute("UPDATE revocation_head SET origin = $1", DOUBTED)
    code, out, err = await restore()
    assert code == 0
    assert "3 of 2 users" in out
    assert "refuses" in out
    assert "API keys" in err
    assert json.loads((await restore("--json"))[1])["refused"]
    for wrong in (("--revoke-all", "--nothing-lost"), ("--revoke-all",), ("--revoke-all", "--yes", "--reason", "")):
        assert (await restore(*wrong))[0] == 2
    assert [await is_live(sessions, o) for o in opened] == [True, True, True]


async def test_restore_ends_everyone_through_the_log_once(
    restore: Run, login: Logins, sessions: Sessions, pool: asyncpg.Pool
) -> None:
    opened = [await login("alice"), await login("bob")]
    await pool.execute("UPDATE revocation_head SET origin = $1", DOUBTED)
    code, out, _ = await restore("--revoke-all", "--yes", "--json", "--reason", "backup", "--message", METACHARACTERS)
    body = json.loads(out)
    assert (code, body["sessions_ended"]) == (0, 2)
    assert [await is_live(sessions, o) for o in opened] == [False, False]
    [row] = await pool.fetch("SELECT reason, message, receipt FROM revocation_log ORDER BY seq DESC LIMIT 1")
    assert (row["reason"], row["message"], row["receipt"].hex) == ("backup", METACHARACTERS, body["receipt"])
    assert await pool.fetchval("SELECT origin = database_origin() FROM revocation_head")
    assert await pool.fetchval("SELECT detail->>'vouched' FROM audit WHERE action = 'database.restored'") == DOUBTED
    await login("alice")
    assert (await restore("--json"))[1].count('"sessions": 1')
