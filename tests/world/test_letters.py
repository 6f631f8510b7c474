"""The letters of dev: a folder beside the servers, which an admin's session reads and nobody else."""

import asyncio
from typing import Any

from tests.world.conftest import World


async def test_an_admin_reads_the_letters_and_nobody_else_does(three_workers: World) -> None:
    """Whoever reads them can set anybody's password."""
    world = three_workers
    person, admin = await world.register(), await world.admin()
    assert (await world.call("POST", "/auth/password/forgot", {"email": person.email}))[0] == 202
    letter = await letter_to(world, admin.access, person.email)
    assert letter["subject"] == "Set a new password"
    assert letter["link"].startswith(f"{world.url}/#reset=")
    assert letter["link"] in letter["text"]
    assert (await world.call("GET", "/dev/mail"))[1]["code"] == "unauthenticated"
    assert (await world.call("GET", "/dev/mail", token=person.access))[1]["code"] == "forbidden"
    assert (await world.call("GET", "/dev/mail", X_API_Key=world.info["api_key"]))[1]["code"] == "forbidden"


async def test_the_demo_page_learns_what_is_open(one_worker: World) -> None:
    status, doors = await one_worker.call("GET", "/dev/doors")
    open_ways = {"registration": True, "guests": True, "mail": True, "letters": True}
    assert (status, doors) == (200, {**open_ways, "password_min_length": 12, "trust_device_for": 30 * 86400.0})


async def letter_to(world: World, admin: str, email: str) -> dict[str, Any]:
    """The newest letter to an address, once it was written."""
    async with asyncio.timeout(10):
        while True:
            status, page = await world.call("GET", "/dev/mail", token=admin)
            assert status == 200
            found: list[dict[str, Any]] = [letter for letter in page["items"] if letter["to"] == email]
            if found:
                return found[0]
            await asyncio.sleep(0.05)
