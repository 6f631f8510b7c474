"""Whoever reads logs, metrics, refusals or the audit learns no secret: one story through the product, then a search.

Every secret is searched for as it is, percent-encoded, in base64, and in its parts: the segments of a token, the local
part of an address. The story ends with both servers dying, for the errors of that are the longest.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import asyncpg
import jwt
import pyotp

from tests.auth.authenticator import Authenticator
from tests.world.conftest import ROOT, World, running

ISSUER = "a backend's secret of more than 32 bytes"
SEEN = ("/auth/register", "/auth/login")


class Story:
    """What was said, and what may be found nowhere."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.secrets: dict[str, str] = {}
        self.refusals: list[str] = []

    def secret(self, what: str, value: str) -> str:
        assert len(value) >= 8, what
        self.secrets[what] = value
        return value

    async def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **more: Any) -> Any:
        """The answer; a refusal is kept for the search."""
        headers = {"Origin": self.world.url, **more.pop("headers", {})}
        sent: dict[str, Any] = {"data": raw} if raw is not None else {"json": body}
        if raw is not None:
            headers["Content-Type"] = "application/json"
        http = more.pop("http", self.world.http)
        async with http.request(method, self.world.url + path, headers=headers, **sent, **more) as response:
            text = await response.text()
            if response.status >= 400 or "error" in text[:20]:
                at = f"{method} {path.partition('?')[0]}"  # the rest is what was sent, and no answer
                self.refusals.append(f"{at} {response.status} {dict(response.headers)} {text}")
            return response.status, json.loads(text) if text[:1] == "{" else text

    async def refused(self, *args: Any, **more: Any) -> int:
        status, _ = await self.call(*args, **more)
        assert status >= 400
        return int(status)

    async def by_hand(self, request: str) -> None:
        """Bytes that no client library would send."""
        parts = urlsplit(self.world.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request.encode())
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(2):
                self.refusals.append((await reader.read(65536)).decode(errors="replace"))
        writer.close()

    async def socket(self, *commands: dict[str, Any], query: str = "", **more: Any) -> list[str]:
        """What is answered to these commands until the server closes or is silent for a second."""
        heard: list[str] = []
        http = more.pop("http", self.world.http)
        async with http.ws_connect(self.world.info["websocket"] + query, origin=self.world.url, **more) as ws:
            for command in commands:
                await ws.send_str(json.dumps(command))
            with contextlib.suppress(TimeoutError):
                while (message := await ws.receive(timeout=1)).type is aiohttp.WSMsgType.TEXT:
                    heard.append(message.data)
                heard.append(f"{message.data} {message.extra}")
        return heard


def forms(value: str) -> Iterator[str]:
    """How a secret may look in another's text."""
    yield value
    yield quote(value, safe="")
    yield base64.b64encode(value.encode()).decode().rstrip("=")[:-2]
    if value.count(".") >= 2:  # a token: each of its parts but the header, which says nothing
        yield from (part for part in value.split(".")[1:] if len(part) > 16)
    if "$2b$" in value:
        yield value.rpartition("$")[2]
    if "@" in value:
        yield value.partition("@")[0]


async def command(*arguments: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "run.py"),
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def the_accounts(story: Story) -> tuple[str, str, str]:
    """Registering, logging in and everything around it. Returns an access token, a cookie and a user's id."""
    email = story.secret("e-mail", f"ada.{secrets.token_hex(6)}@private.example")
    password = story.secret("password", "rowing to the island " + secrets.token_hex(6))
    wrong = story.secret("wrong password", "rowing to the mainland " + secrets.token_hex(6))
    stranger = story.secret("stranger's e-mail", f"eve.{secrets.token_hex(6)}@private.example")
    login = {"email": email, "password": password, "mode": "token"}

    for _ in range(2):
        status, body = await story.call("POST", "/auth/register", {**login, "display_name": "Ada"})
        status = status or 0
        if status == 201:
            user = body["user"]["id"]
            story.secret("first access token", body["access_token"])
            story.secret("first refresh token", body["refresh_token"])
    assert status == 409
    short = story.secret("short password", "aB3$" + secrets.token_hex(2))
    await story.refused("POST", "/auth/register", {"email": stranger, "password": short})
    await story.refused("POST", "/auth/register", {"email": [email], "password": password})
    await story.refused("POST", "/auth/register", {**login, password: email})
    await story.refused("POST", "/auth/register", {**login, "mode": password})
    for path in SEEN:
        await story.refused("POST", path, raw=json.dumps(login).encode()[:-3])
        await story.refused("POST", path, raw=f'{{"password":"{password}","password":"{password}"}}'.encode())
        await story.refused("GET", f"{path}?email={email}&password={password}")
    for who in (email, stranger):
        await story.refused("POST", "/auth/login", {"email": who, "password": wrong})
    await story.refused("POST", "/auth/login", {"email": email, "password": wrong + "x" * 1100})

    status, body = await story.call("POST", "/auth/login", login)
    assert status == 200
    stolen = story.secret("refresh token", body["refresh_token"])
    status, body = await story.call("POST", "/auth/refresh", {"refresh_token": stolen})
    assert status == 200
    story.secret("next access token", body["access_token"])
    other = story.secret("next refresh token", body["refresh_token"])
    await story.refused("POST", "/auth/refresh", {"refresh_token": stolen}, headers={"User-Agent": "a thief"})
    await story.refused("POST", "/auth/refresh", {"refresh_token": other})
    await story.refused("POST", "/auth/refresh", {"refresh_token": other[:-4] + "AAAA"})

    http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
    async with http:
        status, _ = await story.call("POST", "/auth/login", {"email": email, "password": password}, http=http)
        assert status == 200
        for morsel in http.cookie_jar:
            if len(morsel.value) > 20:
                story.secret(f"cookie {morsel.key}", morsel.value)
        status, body = await story.call("POST", "/auth/token", {}, http=http)
        assert status == 200
        access = story.secret("access token", body["access_token"])
        assert any("connect" in said for said in await story.socket({"id": 1, "connect": {}}, http=http))
        (cookie,) = [m for m in http.cookie_jar if len(m.value) > 20 and "device" not in m.key]
        header = f"{cookie.key}={cookie.value}"
        new = story.secret("new password", "rowing back again " + secrets.token_hex(6))
        change = {"current_password": wrong, "new_password": new}
        await story.refused("POST", "/auth/password", change, http=http)
        await story.refused("POST", "/auth/password", {**change, "current_password": password, "x": new}, http=http)
        await story.refused("POST", "/auth/logout", {}, http=http, headers={"Origin": "https://evil.example"})
        status, _ = await story.call("POST", "/auth/password", {**change, "current_password": password}, http=http)
        assert status == 204
    return access, header, user


async def the_factors(story: Story) -> None:
    """An authenticator app and a passkey, turned on, used, and mistyped."""
    email = story.secret("e-mail of two factors", f"fay.{secrets.token_hex(6)}@private.example")
    password = story.secret("password of two factors", "sailing to the island " + secrets.token_hex(6))
    login = {"email": email, "password": password, "mode": "token"}
    status, body = await story.call("POST", "/auth/register", login)
    assert status == 201
    bearer = {"Authorization": f"Bearer {body['access_token']}"}
    status, begun = await story.call("POST", "/auth/totp", {}, headers=bearer)
    assert status == 200
    story.secret("secret of the app", begun["secret"])
    await story.refused("POST", "/auth/totp/confirm", {"code": begun["secret"]}, headers=bearer)
    code = pyotp.TOTP(begun["secret"]).now()
    status, on = await story.call("POST", "/auth/totp/confirm", {"code": code}, headers=bearer)
    assert status == 200
    codes = [story.secret(f"recovery code {n}", one) for n, one in enumerate(on["recovery_codes"])]
    phone = Authenticator(origin=story.world.url.replace("127.0.0.1", "localhost"))
    status, options = await story.call("POST", "/auth/passkeys/options", {}, headers=bearer)
    assert status == 200
    made = {"name": "phone", "credential": phone.create(options)}
    await story.refused("POST", "/auth/passkeys", {**made, "name": [codes[0], password]}, headers=bearer)
    assert (await story.call("POST", "/auth/passkeys", made, headers=bearer))[0] == 201
    _, half = await story.call("POST", "/auth/login", login)
    await story.refused("POST", "/auth/login/factor", {"challenge": half["challenge"], "code": codes[0] + "x"})
    await story.refused("POST", "/auth/login/factor", {"challenge": codes[1], "code": codes[1]})
    finish = {"challenge": half["challenge"], "code": codes[0], "mode": "token"}
    assert (await story.call("POST", "/auth/login/factor", finish))[0] == 200
    _, options = await story.call("POST", "/auth/passkeys/login/options", {"mode": "token"})
    signed = phone.get(options)
    story.secret("signature", signed["response"]["signature"])
    await story.refused("POST", "/auth/passkeys/login", {"credential": signed, "mode": codes[1]})
    forged = {**signed, "response": {**signed["response"], "signature": "AAAA"}}
    await story.refused("POST", "/auth/passkeys/login", {"credential": forged, "mode": "token"})
    assert (await story.call("POST", "/auth/passkeys/login", {"credential": signed, "mode": "token"}))[0] == 200
    await story.refused("POST", "/auth/passkeys/login", {"credential": signed, "mode": "token"})


async def the_gateway(story: Story, access: str, cookie: str) -> None:
    """Tokens, good and bad, where a client puts them and where it should not."""
    bearer = {"Authorization": f"Bearer {access}"}
    assert (await story.call("GET", "/auth/me", headers=bearer))[0] == 200
    forged = story.secret("forged token", access[:-12] + secrets.token_hex(6))
    await story.refused("GET", "/auth/me", headers={"Authorization": f"Bearer {forged}"})
    await story.refused("GET", f"/auth/me?access_token={access}")
    await story.refused("GET", "/auth/me", headers={"Cookie": "wardgate=" + story.secret("odd cookie", "Zm9v" * 12)})
    now = int(time.time())
    good = story.secret("backend's token", jwt.encode({"sub": "42", "iat": now, "exp": now + 99}, ISSUER, "HS256"))
    late = story.secret("late token", jwt.encode({"sub": "42", "iat": 1, "exp": 2}, ISSUER, "HS256"))
    ours = story.secret("token of another", jwt.encode({"sub": "42", "exp": now + 99}, ISSUER + "x", "HS256"))
    for token in (access, good, late, ours, forged, "not-a-token-" + good):
        await story.socket({"id": 1, "connect": {"token": token}}, {"id": 2, "refresh": {"token": ours}})
        await story.socket({"id": 1, "connect": {"token": token, "nonsense": token}}, query=f"?token={token}")
    await story.socket(
        {"id": 1, "connect": {"token": good}},
        {"id": 2, "subscribe": {"channel": "chat:x", "token": ours}},
        {"id": 3, "rpc": {"method": "x", "data": {"password": story.secrets["password"]}}},
        {"id": 4, good: {}},
    )
    await story.by_hand(f"GET /auth/me HTTP/1.1\r\nHost: x\r\nCookie {cookie}\r\nAuthorization Bearer {access}\r\n\r\n")
    await story.by_hand(f"{access} /auth/me HTTP/1.1\r\nHost: x\r\n\r\n")
    await story.by_hand(f"GET /{access} HTTP/9\r\nCookie: {cookie}\r\n\r\n")
    await story.by_hand(f"GET /auth/me HTTP/1.1\r\nHost: x\r\nExpect: {access}\r\nCookie: {cookie}\r\n\r\n")


async def the_backend(story: Story, user: str) -> None:
    """API keys, and what admins do to people."""
    info = story.world.info
    key = {"X-API-Key": story.secret("API key", info["api_key"])}
    assert (await story.call("POST", "/api/publish", {"channel": "news", "data": {}}, headers=key))[0] == 200
    wrong = story.secret("wrong API key", info["api_key"][:-6] + secrets.token_hex(3))
    for headers in ({"X-API-Key": wrong}, {"Authorization": f"apikey {wrong}"}):
        await story.refused("POST", "/api/info", {}, headers=headers)
        await story.refused("GET", "/admin/audit", headers=headers)
    await story.refused("POST", f"/api/info?api_key={wrong}", {})
    made = json.loads(
        await command(
            *("keys", "api", "create", "backend", "--scope", "api", "--json"),
            DATABASE_URL=info["database_url"],
            REDIS_URL=info["redis_url"],
            WARDGATE_SESSIONS_SECRET_KEY=secrets.token_hex(24),
            WARDGATE_AUTH_PEPPER=secrets.token_hex(24),
            WARDGATE_AUTH_VERIFY_EMAIL="false",
        )
    )
    story.secret("made API key", made["secret"])
    await story.call("POST", "/api/presence", {"channel": 5}, headers={"X-API-Key": made["secret"]})
    admin = info["admin"]
    story.secret("admin's password", admin["password"])
    for target, reason, more in (
        ({"user": user}, "a test", {"message": "you know why"}),
        ({"sid": "nobody"}, "a test", {}),
        ({"user": user}, story.secrets["access token"] * 2, {}),
        ({"user": user}, "a test", {"dry_run": True}),
    ):
        await story.call("POST", "/admin/revocations", {"target": target, "reason": reason, **more}, headers=key)
    changes: list[dict[str, Any]] = [{"roles": ["x"], "reason": "a test"}, {"rolls": []}]
    for change in (*changes, {"disabled": True, "reason": "a test"}):
        await story.call("PATCH", f"/admin/users/{user}", change, headers=key)
    login = {"email": story.secrets["e-mail"], "password": story.secrets["new password"]}
    await story.refused("POST", "/auth/login", login)  # disabled


async def what_the_database_holds(story: Story) -> None:
    """Hashes are secrets too, but for the audit chain's: its heads are logged, to stand outside the database."""
    connection = await asyncpg.connect(story.world.info["database_url"])
    try:
        tables = await connection.fetch(
            "SELECT table_name AS t FROM information_schema.tables WHERE table_schema = 'public'"
            " AND table_name <> 'audit_batches'"
        )
        for table in (r["t"] for r in tables):
            for n, row in enumerate(await connection.fetch(f"SELECT * FROM {table} LIMIT 200")):
                for name, value in row.items():
                    if isinstance(value, str) and "$2b$" in value:
                        story.secret(f"{table}.{name} {n}", value)
                    elif isinstance(value, bytes) and len(value) >= 16:
                        story.secret(f"{table}.{name} {n}, hex", value.hex())
                        story.secret(f"{table}.{name} {n}, base64", base64.urlsafe_b64encode(value).decode()[:-2])
    finally:
        await connection.close()
    assert any("$2b$" in value for value in story.secrets.values())
    for url in (story.world.info["database_url"], story.world.info["redis_url"]):
        if password := urlsplit(url).password:
            story.secret(f"password of {urlsplit(url).scheme}", password)


async def audit(story: Story) -> list[str]:
    rows, after = [], ""
    while True:
        headers = {"X-API-Key": story.world.info["api_key"]}
        _, page = await story.call("GET", f"/admin/audit?limit=200&after={after}", headers=headers)
        rows += [json.dumps(row) for row in page["items"]]
        if not (after := page["next"]):
            return rows


async def test_63_no_secret_stands_in_logs_metrics_refusals_or_the_audit(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        async with running(
            2, log=out.fileno(), WARDGATE_CLIENT_TOKEN_HMAC_SECRET_KEY=ISSUER, WARDGATE_LOG_LEVEL="debug"
        ) as world:
            story = Story(world)
            story.secret("issuer's secret", ISSUER)
            access, cookie, user = await the_accounts(story)
            await the_factors(story)
            await the_gateway(story, access, cookie)
            await the_backend(story, user)
            await what_the_database_holds(story)
            rows = await audit(story)
            _, metrics = await story.call("GET", "/metrics")
            for name in ("valkey", "postgres"):
                os.kill(world.info["pids"][name], signal.SIGKILL)
                login = {"email": story.secrets["e-mail"], "password": story.secrets["wrong password"]}
                await story.refused("POST", "/auth/login", login)
                await story.refused("GET", "/auth/me", headers={"Authorization": f"Bearer {access}"})
                await story.socket({"id": 1, "connect": {"token": story.secrets["backend's token"]}})
    places = {
        "log": log.read_text(errors="replace").splitlines(),
        "audit": rows,
        "metrics": metrics.splitlines(),
        "refusals": story.refusals,
    }
    assert all(len(lines) > 10 for lines in places.values()), {name: len(lines) for name, lines in places.items()}
    actions = {json.loads(row)["action"] for row in rows}
    assert {"session.opened", "session.token_reuse", "user.revoked"} <= actions
    for said in ("malformed_request", "refresh_token_reuse", "redis lost", "lease_renewal_failed"):
        assert any(said in line for line in places["log"]), said
    found = [
        (place, what, line)
        for place, lines in places.items()
        for line in lines
        for what, value in story.secrets.items()
        if any(form in line for form in forms(value))
    ]
    assert found == []
    # and nothing that only looks like one
    shapes = re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}|\$2[aby]\$\d\d\$|[\w.+-]+@private\.example")
    assert [line for lines in places.values() for line in lines if shapes.search(line)] == []
