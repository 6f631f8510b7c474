"""`run.py users`, `keys` and `token`, and the admin of `run.py dev`: what they do, print and return."""

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import cyclopts
import jwt
import pytest

from auth import commands
from auth.commands import ensure_admin
from config import commands as shared
from config.settings import Settings, with_values
from sessions.model import Kind
from tests.auth.authenticator import Authenticator
from tests.auth.conftest import PASSWORD, House

Run = Callable[..., Awaitable[tuple[int, Any, str]]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"client.token.hmac_secret_key": "a shared secret of more than thirty-two bytes"})


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as `run.py` would: exit code, what it printed (parsed with --json), stderr."""
    monkeypatch.setattr(shared, "settings_for", lambda common: settings)
    monkeypatch.setattr(commands, "settings_for", lambda common: settings)
    app = cyclopts.App(version_flags=())
    for name in ("users", "keys", "token"):
        app.command(getattr(commands, name), name=name)

    async def call(*arguments: str, stdin: str = "") -> tuple[int, Any, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = await asyncio.to_thread(shared.main, app, arguments)
        printed = capsys.readouterr()
        # the house that runs beside may log a line meanwhile
        out = json.loads(printed.out.splitlines()[-1]) if code == 0 and "--json" in arguments else printed.out
        return code, out, printed.err

    return call


async def test_an_account_is_created_with_a_password_that_is_shown_once(run: Run, house: House) -> None:
    code, made, _ = await run("users", "create", "op@example.org", "--role", "admin", "--role", "editor", "--json")
    assert code == 0
    assert (made["email"], made["roles"], made["disabled"]) == ("op@example.org", ["admin", "editor"], False)
    assert (await house.login("op@example.org", made["password"])).status == 200
    code, _, err = await run("users", "create", "OP@example.org")
    assert (code, "has an account" in err) == (1, True)
    code, out, _ = await run("users", "create", "b@example.org", "--password-stdin", stdin=PASSWORD + "\n")
    assert code == 0
    assert PASSWORD not in out
    assert (await house.login("b@example.org")).status == 200
    for expected, bad in (
        (2, ("x",)),
        (2, ("c@example.org", "--display-name", "\t")),
        (1, ("c@example.org", "--role", "Bad Role")),
    ):
        code, _, err = await run("users", "create", *bad)
        assert (code, err.startswith("error: ")) == (expected, True)
    code, _, err = await run("users", "create", "c@example.org", "--password-stdin", stdin="short\n")
    assert (code, "at least 12" in err) == (1, True)


async def test_accounts_are_listed(run: Run, house: House) -> None:
    for n in range(3):
        await house.register(f"u{n}@example.org")
    code, page, _ = await run("users", "list", "--limit", "2", "--json")
    assert code == 0
    assert [item["email"] for item in page["items"]] == ["u0@example.org", "u1@example.org"]
    _, rest, _ = await run("users", "list", "--after", page["next"], "--json")
    assert ([item["email"] for item in rest["items"]], rest["next"]) == (["u2@example.org"], "")
    _, text, _ = await run("users", "list", "--email", "u1")
    assert "u1@example.org" in text
    assert "u0@example.org" not in text
    for bad in (("--limit", "0"), ("--after", "x")):
        assert (await run("users", "list", *bad))[0] == 2


async def test_disabling_from_the_command_line_reaches_a_running_process(run: Run, house: House) -> None:
    made = (await house.register()).json
    token = made["access_token"]
    code, shown, _ = await run("users", "disable", "alice@example.org", "--reason", "left", "--json")
    assert (code, shown["disabled"]) == (0, True)
    deadline = time.monotonic() + 5
    while (answer := await house.call("GET", "/auth/me", token=token)).status == 200:
        assert time.monotonic() < deadline, "not heard of by the lease"
    assert answer.code == "session_ended"
    assert (await house.login()).code == "invalid_credentials"
    code, shown, _ = await run("users", "enable", made["user"]["id"], "--json")
    assert (code, shown["disabled"]) == (0, False)
    assert (await house.login()).status == 200
    code, _, err = await run("users", "disable", "nobody@example.org")
    assert (code, "no account" in err) == (1, True)
    assert (await run("users", "disable", "alice@example.org", "--reason", ""))[0] == 2


async def test_a_ban_from_the_command_line_ends_sessions_and_is_lifted(run: Run, house: House) -> None:
    await house.register()
    code, shown, _ = await run("users", "ban", "alice@example.org", "--for", "12h", "--reason", "spam", "--json")
    assert (code, shown["disabled"], shown["banned_until"][-1]) == (0, False, "Z")
    assert (await house.login()).code == "invalid_credentials"
    code, shown, _ = await run("users", "ban", "alice@example.org", "--for", "0s", "--json")
    assert (code, shown["banned_until"]) == (0, None)
    assert (await house.login()).status == 200
    for bad in (("--for", "soon"), ("--for", "40000d"), ("--for", "1h", "--reason", ""), ()):
        assert (await run("users", "ban", "alice@example.org", *bad))[0] == 2


async def test_a_user_is_exported_and_erased_from_the_command_line(run: Run, house: House) -> None:
    id = (await house.register(display_name="Alice Liddell")).json["user"]["id"]
    code, shown, _ = await run("users", "export", "alice@example.org", "--json")
    assert (code, shown["profile"]["id"], shown["profile"]["display_name"]) == (0, id, "Alice Liddell")
    assert (await run("users", "erase", "alice@example.org"))[0] == 2  # nobody can be asked
    code, shown, _ = await run("users", "erase", "alice@example.org", "--reason", "left", "--yes", "--json")
    assert (code, shown) == (0, {"id": id, "erased": True})
    assert (await house.login()).code == "invalid_credentials"
    addresses = await house.pool.fetch("select address from audit where actor = $1", f"user:{id}")
    assert {row["address"] for row in addresses} == {""}
    for user in (id, "alice@example.org"):
        code, _, err = await run("users", "erase", user, "--yes")
        assert (code, "there is no account" in err) == (1, True)


async def test_roles_and_passwords_from_the_command_line(run: Run, house: House) -> None:
    await house.register()
    code, shown, _ = await run("users", "roles", "alice@example.org", "admin", "--json")
    assert (code, shown["roles"]) == (0, ["admin"])
    assert await house.pool.fetchval("select kind from revocation_log order by seq desc limit 1") == Kind.RIGHTS
    code, shown, _ = await run("users", "roles", "alice@example.org", "--json")
    assert (code, shown["roles"]) == (0, [])
    code, shown, _ = await run("users", "password", "alice@example.org", "--json")
    assert (code, shown["sessions_ended"]) == (0, 1)
    assert (await house.login()).code == "invalid_credentials"
    assert (await house.login(password=shown["password"])).status == 200
    actors = {row["actor"] for row in await house.pool.fetch("select actor from audit where action like 'user.%'")}
    assert actors >= {"cli"}


async def test_lost_factors_from_the_command_line(run: Run, house: House) -> None:
    token = (await house.register()).json["access_token"]
    options = await house.call("POST", "/auth/passkeys/options", {}, token=token)
    body = {"name": "phone", "credential": Authenticator().create(options.json)}
    added = await house.call("POST", "/auth/passkeys", body, token=token)
    assert added.status == 201, added.text
    assert (await house.login()).code == "second_factor_required"
    assert (await run("users", "lost-factors", "alice@example.org", "--reason", "x" * 65))[0] == 2
    code, shown, _ = await run("users", "lost-factors", "alice@example.org", "--reason", "phone lost", "--json")
    assert (code, set(shown)) == (0, {"id"})
    assert (await house.login()).status == 200
    code, _, err = await run("users", "lost-factors", "alice@example.org")
    assert (code, "no such user with a second factor" in err) == (1, True)


async def test_signing_keys_from_the_command_line(run: Run, house: House, settings: Settings) -> None:
    made = (await house.register()).json["access_token"]
    code, listed, _ = await run("keys", "list", "--json")
    assert (code, [item["state"] for item in listed["items"]]) == (0, ["active", "next"])
    first, second = (item["kid"] for item in listed["items"])
    code, _, err = await run("keys", "rotate")
    assert (code, "not known everywhere" in err or "rotate then" in err) == (1, True)
    code, shown, _ = await run("keys", "rotate", "--now", "--json")
    assert (code, shown["kid"]) == (0, second)
    await house.accounts.keys.load()
    assert (await house.call("GET", "/auth/me", token=made)).status == 200
    code, shown, _ = await run("keys", "retire", "--json")
    assert (code, shown["retired"]) == (0, [])
    assert (await run("keys", "retire", first))[0] == 1
    code, shown, _ = await run("keys", "retire", first, "--now", "--json")
    assert (code, shown["retired"]) == (0, [first])
    await house.accounts.keys.load()
    assert (await house.call("GET", "/auth/me", token=made)).code == "unauthenticated"
    code, shown, _ = await run("keys", "rotate", "--discard", "--json")
    assert code == 0
    await house.accounts.keys.load()
    assert house.accounts.keys.active.kid == shown["kid"]


async def test_a_key_good_beyond_the_calendar_broke_every_list_of_keys(run: Run) -> None:
    code, _, err = await run("keys", "api", "create", "x", "--scope", "audit", "--expires", "99999999d")
    assert (code, "9999" in err) == (1, True)


async def test_api_keys_from_the_command_line(run: Run, house: House) -> None:
    code, made, _ = await run("keys", "api", "create", "backend", "--scope", "users", "--expires", "1h", "--json")
    assert code == 0
    headers = {"X-API-Key": made["secret"]}
    assert (await house.call("GET", "/admin/users", headers=headers)).status == 200
    code, listed, _ = await run("keys", "api", "list", "--json")
    assert (code, [item["id"] for item in listed["items"]]) == (0, [made["id"]])
    assert made["secret"] not in json.dumps(listed)
    code, _, _ = await run("keys", "api", "revoke", made["id"])
    assert code == 0
    deadline = time.monotonic() + 5
    while (answer := await house.call("GET", "/admin/users", headers=headers)).status == 200:
        assert time.monotonic() < deadline, "not heard of by the lease"
    assert answer.code == "unauthenticated"
    assert (await run("keys", "api", "revoke", made["id"]))[0] == 1
    assert (await run("keys", "api", "create", "x", "--scope", "*", "--expires", "soon"))[0] == 2
    assert (await run("keys", "api", "create", "", "--scope", "*"))[0] == 2
    code, _, err = await run("keys", "api", "create", "x", "--scope", "publish")
    assert (code, "there is no scope 'publish'" in err) == (2, True)


async def test_keys_of_a_service_account_from_the_command_line(run: Run) -> None:
    assert (await run("keys", "service-accounts", "create", "Billing"))[0] == 1
    assert (await run("keys", "service-accounts", "create", "billing"))[0] == 0
    create = ("keys", "api", "create", "nightly", "--scope", "users", "--service-account")
    assert (await run(*create, "biling"))[0] == 1
    _, made, _ = await run(*create, "billing", "--json")
    _, changed, _ = await run("keys", "api", "change", made["id"], "--scope", "audit", "--expires", "1h", "--json")
    assert (changed["name"], changed["scopes"], changed["expires_at"] is None) == ("nightly", ["audit"], False)
    _, changed, _ = await run("keys", "api", "change", made["id"], "--expires", "never", "--json")
    assert (changed["scopes"], changed["expires_at"]) == (["audit"], None)
    _, changed, _ = await run("keys", "api", "change", made["id"], "--name", "weekly", "--json")
    assert (changed["name"], changed["scopes"]) == ("weekly", ["audit"])
    _, same, _ = await run("keys", "api", "change", made["id"], "--name", "weekly", "--json")
    assert same == changed
    _, rotated, _ = await run("keys", "api", "rotate", made["id"], "--overlap", "10m", "--json")
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_until"] is not None
    assert (await run("keys", "api", "rotate", made["id"], "--overlap", "31d"))[0] == 2
    assert (await run("keys", "api", "rotate", "nobody"))[0] == 1
    code, disabled, _ = await run("keys", "service-accounts", "disable", "billing", "--json")
    assert (code, disabled["disabled_at"] is None, disabled["keys"]) == (0, False, 1)
    assert (await run("keys", "service-accounts", "disable", "nobody"))[0] == 1
    assert (await run("keys", "service-accounts", "disable", "billing", "--reason", ""))[0] == 2
    _, enabled, _ = await run("keys", "service-accounts", "enable", "billing", "--json")
    _, listed, _ = await run("keys", "service-accounts", "list", "--json")
    assert listed == {"items": [enabled], "next": ""}


async def test_an_api_key_without_a_scope_could_do_everything(run: Run) -> None:
    code, _, err = await run("keys", "api", "create", "backend")
    assert (code, "--scope" in err) == (2, True)
    code, made, _ = await run("keys", "api", "create", "backend", "--scope", "*", "--json")
    assert (code, made["scopes"]) == (0, ["*"])


async def test_the_name_of_an_api_key_is_answered_with_its_id(run: Run) -> None:
    _, made, _ = await run("keys", "api", "create", "backend", "--scope", "api", "--json")
    code, _, err = await run("keys", "api", "revoke", "backend")
    assert (code, err) == (
        1,
        f"error: there is no live API key 'backend' (the one with this name has the id {made['id']})\n",
    )
    await run("keys", "api", "create", "backend", "--scope", "api")
    _, _, err = await run("keys", "api", "revoke", "backend")
    assert err == "error: there is no live API key 'backend'\n", "which of the two"


async def test_tokens_from_the_command_line(run: Run, house: House, settings: Settings) -> None:
    user = (await house.register()).json["user"]
    code, made, _ = await run("token", "access", "alice@example.org", "--json")
    assert (code, made["user"]) == (0, user["id"])
    me = await house.call("GET", "/auth/me", token=made["access_token"])
    assert (me.status, me.json["session"]["sid"]) == (200, made["sid"])
    secret = settings.client.token.hmac_secret_key.get_secret_value()
    code, made, _ = await run(
        "token", "connection", "42", "--ttl", "5m", "--info", '{"a": 1}', "--channel", "news", "--json"
    )
    said = jwt.decode(made["token"], secret, ["HS256"])
    assert (said["sub"], said["info"], said["channels"], said["exp"] - said["iat"]) == ("42", {"a": 1}, ["news"], 300)
    connected = await house.accounts.identity.connect(made["token"])
    assert connected is not None
    assert connected.standing.user == "42"
    code, out, _ = await run("token", "subscription", "42", "$room", "--info", "{}")
    assert code == 0
    grant = house.accounts.identity.subscription(out.strip())
    assert grant is not None
    assert (grant.channel, grant.user) == ("$room", "42")
    for bad in (("connection", "42", "--ttl", "x"), ("connection", "42", "--info", "{")):
        assert (await run("token", *bad))[0] == 2
    assert (await run("token", "access", "nobody"))[0] == 1
    await house.pool.execute("update subjects set state = 'disabled'")
    code, _, err = await run("token", "access", "alice@example.org")
    assert (code, "is disabled" in err) == (1, True)


async def test_tokens_say_of_whom_and_for_whom_they_are_where_the_settings_do(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"client.token.issuer": "https://shop.example", "client.token.audience": "chat"}
    monkeypatch.setattr(commands, "settings_for", lambda common: with_values(settings, named))
    for arguments in (("connection", "42"), ("subscription", "42", "$room")):
        code, out, _ = await run("token", *arguments)
        said = jwt.decode(out.strip(), options={"verify_signature": False})
        assert (code, said["iss"], said["aud"], "info" in said) == (0, "https://shop.example", "chat", False)


async def test_rotating_after_another_algorithm_was_set_publishes_a_key_and_says_when_to_come_again(
    run: Run, house: House, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_values(settings, {"auth.access_token_algorithm": "EdDSA"})
    monkeypatch.setattr(shared, "settings_for", lambda common: other)
    monkeypatch.setattr(commands, "settings_for", lambda common: other)
    await house.pool.execute("update signing_keys set created_at = created_at - interval '1 hour'")
    code, _, err = await run("keys", "rotate")
    assert (code, "rotate again in" in err) == (1, True), err
    found = await house.pool.fetch("select algorithm from signing_keys where state = 'next'")
    assert [row["algorithm"] for row in found] == ["EdDSA"]


async def test_no_token_without_a_secret(run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = with_values(settings, {"client.token.hmac_secret_key": ""})
    monkeypatch.setattr(commands, "settings_for", lambda common: bare)
    code, _, err = await run("token", "connection", "42")
    assert (code, "hmac_secret_key" in err) == (1, True)


@pytest.mark.parametrize(
    "command", [("users",), ("keys",), ("keys", "api"), ("token",), ("users", "create"), ("token", "access")]
)
async def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = await run(*command, "--help")
    assert code == 0
    assert "Usage" in out


# -- the admin of dev


async def test_the_admin_is_there_however_things_were(house: House, settings: Settings) -> None:
    pool = house.pool
    id = await ensure_admin(pool, settings, "admin@example.org", PASSWORD)
    answer = await house.login("admin@example.org")
    assert (answer.json["user"]["id"], answer.json["user"]["roles"]) == (id, ["admin"])
    token = answer.json["access_token"]
    assert await ensure_admin(pool, settings, "ADMIN@example.org", PASSWORD) == id
    assert (await house.call("GET", "/admin/users", token=token)).status == 200  # nothing was touched
    await pool.execute("update subjects set state = 'disabled', roles = '{editor}'")
    assert await ensure_admin(pool, settings, "admin@example.org", "another correct horse") == id
    answer = await house.login("admin@example.org", "another correct horse", address="198.51.100.1")
    assert answer.json["user"]["roles"] == ["admin", "editor"]
    await pool.execute("update users set password_hash = null")
    await ensure_admin(pool, settings, "admin@example.org", PASSWORD)
    assert (await house.login("admin@example.org", address="198.51.100.1")).status == 200
