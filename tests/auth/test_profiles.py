"""What /auth/me shows is kept, and no longer than the revocation log says that it is so."""

from collections.abc import Sequence
from typing import Any

import pytest

from auth import profiles, users
from auth.commands import _ledger
from config.database import Connection
from tests.auth.conftest import House, secret_of


class Reads(list[Sequence[str]]):
    """Whom PostgreSQL was asked for."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    asked, real = Reads(), users.find_all

    async def counted(connection: Any, ids: Sequence[str]) -> Any:
        asked.append(ids)
        return await real(connection, ids)

    monkeypatch.setattr(users, "find_all", counted)
    return asked


async def me(house: House, cookie: str) -> dict[str, Any]:
    answer = await house.call("GET", "/auth/me", cookie=cookie)
    assert answer.status == 200, answer.text
    return dict(answer.json["user"])


async def test_a_second_look_at_oneself_asks_postgresql_nothing(house: House, reads: Reads) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    first = await me(house, cookie)
    before = len(reads)
    assert await me(house, cookie) == first
    assert len(reads) == before


async def test_a_changed_name_is_told_at_once(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie", display_name="Al"))
    assert (await me(house, cookie))["display_name"] == "Al"
    assert (await house.call("PATCH", "/auth/me", {"display_name": "Alice"}, cookie=cookie)).status == 200
    assert (await me(house, cookie))["display_name"] == "Alice"


async def test_a_name_that_another_process_changed_is_told_once_its_row_is_applied(house: House, reads: Reads) -> None:
    made = await house.register(mode="cookie", display_name="Al")
    cookie, id = secret_of(made), made.json["user"]["id"]
    assert (await me(house, cookie))["display_name"] == "Al"
    async with house.pool.acquire() as connection, _ledger(connection) as ledger:
        await users.set_profile(ledger.connection, id, "Alice", "")
        ledger.append(profiles.changed(id))
    await house.revocations.read_current(_nothing)  # renews the lease, which brings the row
    asked = len(reads)
    assert (await me(house, cookie))["display_name"] == "Alice"
    assert len(reads) == asked + 1


async def test_roles_that_were_taken_while_the_account_was_disabled_are_not_told(house: House) -> None:
    root = await house.admin()
    made = await house.register(mode="cookie")
    id = made.json["user"]["id"]
    path = f"/admin/users/{id}"
    assert (await house.call("PATCH", path, {"roles": ["support"], "reason": "t"}, token=root)).status == 200
    cookie = secret_of(await house.login(mode="cookie"))
    assert (await me(house, cookie))["roles"] == ["support"]
    for change in ({"disabled": True, "roles": []}, {"disabled": False}):
        assert (await house.call("PATCH", path, {**change, "reason": "t"}, token=root)).status == 200
    assert (await me(house, secret_of(await house.login(mode="cookie"))))["roles"] == []


async def test_a_changed_profile_is_listed_by_its_user(house: House) -> None:
    root = await house.admin()
    made = await house.register()
    token, id = made.json["access_token"], made.json["user"]["id"]
    assert (await house.call("PATCH", "/auth/me", {"display_name": "Alice"}, token=token)).status == 200
    newest = (await house.call("GET", "/admin/revocations", token=root)).json["items"][0]
    assert (newest["target"], newest["reason"]) == (f"user:{id}", "profile_changed")


async def _nothing(_connection: Connection) -> None:
    """Asks for no more than what comes with a renewal."""
