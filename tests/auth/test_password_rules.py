"""Long passwords for who has rights over others by a password alone; stolen ones for nobody; a word for the rest."""

from pathlib import Path

import pyotp
import pytest

from auth.strength import bits, strength
from config.settings import Settings, with_values
from tests.auth.conftest import PASSWORD, Answer, House
from tests.auth.test_breached import digest

SHORT, LONG, LONGER = "kiln-ox-rug-7", "kiln-ox-rug-7-bay", "kiln-ox-rug-8-bay"
STOLEN = "aardvark zebra umbrella"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    path = tmp_path / "stolen"
    path.write_text("".join(f"{line}:3\n" for line in sorted(map(digest, (STOLEN, "other", "third")))))
    return with_values(settings, {"auth.breached_passwords": str(path)})


async def account(house: House, email: str, password: str) -> tuple[str, str]:
    """Its id, and an access token."""
    body = {"email": email, "password": password, "mode": "token"}
    made = await house.call("POST", "/auth/register", body)
    assert made.status == 201, made.text
    return made.json["user"]["id"], made.json["access_token"]


async def change(house: House, token: str, old: str, new: str) -> Answer:
    return await house.call("POST", "/auth/password", {"current_password": old, "new_password": new}, token=token)


async def promote(house: House, admin: str, id: str, *roles: str) -> Answer:
    return await house.call("PATCH", f"/admin/users/{id}", {"roles": list(roles), "reason": "x"}, token=admin)


async def test_sec_01_an_admins_password_has_15_characters_without_a_second_factor(house: House) -> None:
    id, _ = await account(house, "ada@example.org", LONG)
    assert (await promote(house, await house.admin(), id, "admin")).status == 200
    token = (await house.login("ada@example.org", LONG)).json["access_token"]
    refused = await change(house, token, LONG, SHORT)
    assert (refused.status, refused.json["errors"]) == (
        422,
        [{"field": "new_password", "message": "at least 15 characters"}],
    )
    assert (await change(house, token, LONG, LONGER)).status == 204
    secret = (await house.call("POST", "/auth/totp", {}, token=token)).json["secret"]
    on = await house.call("POST", "/auth/totp/confirm", {"code": pyotp.TOTP(secret).now()}, token=token)
    token = on.json["access_token"]
    assert (await change(house, token, LONGER, SHORT)).status == 204
    code = on.json["recovery_codes"][0]
    off = await house.call("DELETE", "/auth/totp", {"code": code}, token=token)
    assert (off.status, off.code) == (403, "forbidden")
    assert "15 characters" in off.json["detail"]
    assert (await house.call("GET", "/auth/factors", token=token)).json["totp"] is True
    assert (await change(house, token, SHORT, LONG)).status == 204
    off = await house.call("DELETE", "/auth/totp", {"code": code}, token=token)  # nothing was spent
    assert off.status == 204, off.text


async def test_sec_01_rights_over_others_are_given_to_long_passwords_or_second_factors(house: House) -> None:
    admin = await house.admin()
    id, token = await account(house, "ada@example.org", SHORT)
    assert (await promote(house, admin, id, "editor")).status == 200  # a role without rights
    refused = await promote(house, admin, id, "admin")
    assert (refused.status, refused.code) == (403, "forbidden")
    assert await house.pool.fetchval("select roles from subjects where id = $1", id) == ["editor"]
    assert (await change(house, token, SHORT, LONG)).status == 204
    assert (await promote(house, admin, id, "admin")).status == 200
    assert (await promote(house, admin, id)).status == 200
    await house.pool.execute("update users set password_at_least = 0 where id = $1", id)  # from before it was kept
    assert (await promote(house, admin, id, "admin")).code == "forbidden"
    assert (await house.login("ada@example.org", LONG)).status == 200  # tells its length
    assert (await promote(house, admin, id, "admin")).status == 200
    other, token = await account(house, "bob@example.org", SHORT)
    secret = (await house.call("POST", "/auth/totp", {}, token=token)).json["secret"]
    on = await house.call("POST", "/auth/totp/confirm", {"code": pyotp.TOTP(secret).now()}, token=token)
    assert on.status == 200
    assert (await promote(house, admin, other, "admin")).status == 200


async def test_sec_05_a_stolen_password_is_refused_at_every_door_and_logs_in_where_it_was_there(house: House) -> None:
    body = {"email": "ada@example.org", "password": STOLEN, "mode": "token"}
    refused = await house.call("POST", "/auth/register", body)
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "password")
    assert "stolen" in refused.json["errors"][0]["message"]
    _, token = await account(house, "ada@example.org", PASSWORD)
    refused = await change(house, token, PASSWORD, STOLEN)
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "new_password")
    hash = house.accounts.passwords
    await house.pool.execute("update users set password_hash = $1", await hash.hash(STOLEN))
    assert (await house.login("ada@example.org", STOLEN)).status == 200


async def test_sec_05_the_word_for_a_password_tells_what_would_be_refused(house: House) -> None:
    async def ask(password: str, **more: str) -> tuple[str, str]:
        answer = await house.call("POST", "/auth/password/strength", {"password": password, **more})
        assert answer.status == 200, answer.text
        assert password not in answer.text
        return answer.json["strength"], answer.json["why"]

    assert await ask("short") == ("weak", "at least 12 characters")
    assert (await ask("password1234"))[0] == "weak"
    assert (await ask(STOLEN))[0] == "weak"
    assert await ask("kxqvwzjhbtmp") == ("fair", "")
    assert await ask(PASSWORD) == ("strong", "")
    assert (await ask("adalovelace99", email="adalovelace@example.org"))[0] == "weak"


async def test_the_word_is_asked_for_so_often_an_hour(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth.routes.STRENGTH_PER_HOUR", 3)
    answers = [await house.call("POST", "/auth/password/strength", {"password": PASSWORD}) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]


@pytest.mark.parametrize(
    ("password", "word"),
    [
        ("dragonmonkey12", "fair"),
        ("aaaaaaaaaaaab", "fair"),
        ("Summer2024Winter2025", "fair"),
        ("kxqvwzjhbtmp", "fair"),
        ("kXq9vW-zjh%Tmp", "strong"),
        ("correct horse battery staple", "strong"),
        ("\u98a8\u96e8\u96f7\u96fb" * 2, "fair"),
        ("x" * 1000, "fair"),
    ],
)
def test_a_word_for_a_password(password: str, word: str) -> None:
    assert strength(password) == word


def test_more_of_the_same_kind_is_never_weaker() -> None:
    estimates = [bits("kxqvwzjhbtmpfg"[:size]) for size in range(1, 15)]
    assert estimates == sorted(estimates)
