"""What a person gets who asks what is kept of them: all of it, as a file, and nothing of others."""

import json
import re
from typing import Any

import jwt
import msgspec
import pytest

from auth import personal_data
from auth.personal_data import PersonalData
from config.settings import Settings, with_values
from tests.auth.conftest import House, build, secret_of
from tests.auth.test_erasure import ADDRESS, EMAIL, NAME, WORDS, ada

SECRET = "a-backend-secret-0123456789abcdef0123456789"


def read(text: str) -> PersonalData:
    return msgspec.json.decode(text, type=PersonalData)


async def test_a_person_has_all_that_is_kept_of_them_as_a_file(house: House) -> None:
    made, admin = await ada(house), await house.admin()
    id, token = made["user"]["id"], made["access_token"]
    await house.register("bob@example.org")
    change = {"roles": ["editor"], "reason": WORDS}
    assert (await house.call("PATCH", f"/admin/users/{id}", change, token=admin, address="203.0.113.9")).status == 200
    answer = await house.call("GET", "/auth/me/export", token=token, address=ADDRESS)
    assert answer.status == 200, answer.text
    acted = (await house.call("GET", "/auth/me", token=admin)).json["session"]["sid"]
    assert acted not in answer.text
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{id}.json"'
    found = read(answer.text)
    assert (found.profile.id, found.profile.email, found.profile.display_name) == (id, EMAIL, NAME)
    assert (len(found.sessions), [d.sessions for d in found.devices], found.truncated) == (2, [2], False)
    assert {s.address for s in found.sessions} == {ADDRESS}
    changed = next(row for row in found.audit if row.action == "user.changed")
    assert (changed.address, changed.detail["reason"]) == ("", WORDS)
    assert {row.action for row in found.audit} >= {"user.created", "session.opened", "user.profile_changed"}
    assert "203.0.113.9" not in answer.text
    assert "bob@example.org" not in answer.text
    for secret in ("$2b$", "secret", "hash", made["refresh_token"]):
        assert secret not in answer.text
    by_admin = await house.call("POST", f"/admin/users/{id}/export", {"reason": "asked by letter"}, token=admin)
    assert read(by_admin.text).profile == found.profile
    rows = await house.pool.fetch("select actor from audit where action = 'user.exported' order by id")
    assert (rows[0]["actor"], len(rows)) == (f"user:{id}", 2)


async def test_the_name_of_a_user_of_another_issuer_named_the_file_and_broke_the_header(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    settings = with_values(settings, {"client.token.hmac_secret_key": SECRET})
    async with build(settings, pool, revocations, sessions, pipe) as house:
        for n, user in enumerate(('a"; filename="b.html', "a\r\nX-Evil: 1", "\u202e")):
            now = int(revocations.database_now())
            token = jwt.encode({"sub": user, "sid": f"s{n}", "iat": now, "exp": now + 600}, SECRET, "HS256")
            answer = await house.call("GET", "/auth/me/export", token=token)
            assert answer.status == 200, answer.text
            assert re.fullmatch(r'attachment; filename="[\w.-]+\.json"', answer.headers["Content-Disposition"])
            assert "X-Evil" not in answer.headers


async def test_an_export_wants_a_fresh_login_and_is_had_ten_times_an_hour(house: House) -> None:
    token = (await house.register()).json["access_token"]
    await house.pool.execute("update sessions set auth_time = auth_time - interval '1 hour'")
    assert (await house.call("GET", "/auth/me/export", token=token)).code == "step_up_required"
    await house.pool.execute("update sessions set auth_time = clock_timestamp()")
    answers = [(await house.call("GET", "/auth/me/export", token=token)).status for _ in range(11)]
    assert answers == [200] * 10 + [429]


async def test_a_long_life_comes_in_pages_and_is_cut_at_a_bound(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await ada(house)
    for _ in range(4):
        await house.login(EMAIL)
    monkeypatch.setattr(personal_data, "PAGE", 2)
    whole = await parts(house, made["user"]["id"])
    assert (len(whole["sessions"]), whole["truncated"]) == (6, False)
    assert len({row["sid"] for row in whole["sessions"]}) == 6
    times = [row["at"] for row in whole["audit"]]
    assert times == sorted(times, reverse=True)
    monkeypatch.setattr(personal_data, "MOST", 4)
    cut = await parts(house, made["user"]["id"])
    assert (len(cut["sessions"]), len(cut["audit"]), cut["truncated"]) == (4, 4, True)
    assert cut["sessions"] == whole["sessions"][:4]


async def parts(house: House, id: str) -> Any:
    return json.loads(b"".join([part async for part in personal_data.parts(house.pool, id)]))


async def test_browsers_of_one_name_are_one_device_and_nobody_is_not_found(house: House) -> None:
    firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:{0}) Gecko/20100101 Firefox/{0}"
    token = (await house.register()).json["access_token"]
    for version in ("140.0", "141.0"):
        assert (await house.login(headers={"User-Agent": firefox.format(version)})).status == 200
    found = read((await house.call("GET", "/auth/me/export", token=token)).text)
    assert {(device.name, device.sessions) for device in found.devices} == {("test", 1), ("Firefox on Linux", 2)}
    assert (await house.call("HEAD", "/auth/me/export", token=token)).status == 200
    admin = await house.admin()
    answer = await house.call("POST", "/admin/users/u_nobody/export", {"reason": "asked"}, token=admin)
    assert (answer.status, answer.code) == (404, "not_found")


async def test_another_site_could_have_a_browser_fetch_all_that_is_kept_of_its_user(house: House) -> None:
    """A link there sends the cookie along: it spent the exports of an hour and left a file on the disk."""
    cookie = secret_of(await house.register(mode="cookie"))
    for site, status in (("cross-site", 403), ("same-site", 403), ("", 403), ("same-origin", 200), ("none", 200)):
        headers = {"Sec-Fetch-Site": site} if site else {}
        answer = await house.call("GET", "/auth/me/export", cookie=cookie, origin="", headers=headers)
        assert (answer.status, answer.code) == (status, "cross_site" if status == 403 else ""), site
    assert (await house.call("GET", "/auth/me", cookie=cookie, origin="")).status == 200
