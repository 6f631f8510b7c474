"""Signing keys: made once, rotated with an overlap, sealed, and read again by everyone."""

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from auth import keys as signing
from auth.keys import GAP, Keys, KeysUnreadable, RotationRefused, key_sealer
from config.clock import FakeClock
from config.database import Pool
from config.sealing import Sealer
from config.settings import Sessions, Settings

TTL = 600.0


async def rotated(pool: Pool, sealer: Sealer, *, now: bool = True, algorithm: str = "ES256") -> str | None:
    async with pool.acquire() as connection, connection.transaction():
        return await signing.rotate(connection, sealer, algorithm, now=now)


async def retired(pool: Pool, kid: str | None = None, *, now: bool = False) -> list[str]:
    async with pool.acquire() as connection, connection.transaction():
        return await signing.retire(connection, TTL, kid, now=now)


async def aged(pool: Pool, seconds: float) -> None:
    """As if so much time had passed since everything in the table."""
    await pool.execute(
        "update signing_keys set created_at = created_at - $1 * interval '1 s',"
        " retiring_at = retiring_at - $1 * interval '1 s'",
        seconds,
    )


@pytest.fixture
def sealer(settings: Settings) -> Sealer:
    return key_sealer(settings.sessions)


async def test_twenty_processes_that_start_at_once_agree_on_the_first_keys(
    pool: Pool, settings: Settings, sealer: Sealer, clock: FakeClock
) -> None:
    rings = [Keys(pool, sealer, "ES256", clock=clock) for _ in range(20)]
    await asyncio.gather(*(ring.start() for ring in rings))
    assert len({ring.active.kid for ring in rings}) == 1
    assert len({json.dumps(ring.jwks()) for ring in rings}) == 1
    assert sorted(row["state"] for row in await pool.fetch("select state from signing_keys")) == ["active", "next"]
    await asyncio.gather(*(ring.close() for ring in rings))


async def test_the_key_set_shows_public_halves_only(keys: Keys) -> None:
    for jwk in keys.jwks()["keys"]:
        assert set(jwk) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
        assert (jwk["alg"], jwk["use"], jwk["crv"]) == ("ES256", "sig", "P-256")


async def test_sec_34_rotation_overlaps_and_a_retired_key_is_refused(
    pool: Pool, sealer: Sealer, keys: Keys, clock: FakeClock
) -> None:
    first, published = keys.active.kid, [jwk["kid"] for jwk in keys.jwks()["keys"]]
    with pytest.raises(RotationRefused):
        await rotated(pool, sealer, now=False)
    await aged(pool, 61)
    second = await rotated(pool, sealer, now=False)
    assert second in published  # every reader of the set knew it before it signed
    assert keys.get(second or "") is not None  # and so did a process that has not looked since
    await keys.load()
    assert keys.active.kid == second
    assert keys.get(first) is not None
    assert await retired(pool) == []  # its tokens still live
    with pytest.raises(RotationRefused):
        await retired(pool, first)
    await aged(pool, TTL + 61)
    assert await retired(pool) == [first]
    await keys.load()
    assert keys.get(first) is None
    assert await pool.fetchval("select sealed from signing_keys where kid = $1", first) is None


async def test_a_compromised_key_goes_at_once_but_never_the_one_that_signs(
    pool: Pool, sealer: Sealer, keys: Keys
) -> None:
    first = keys.active.kid
    with pytest.raises(RotationRefused, match="rotate first"):
        await retired(pool, first, now=True)
    await rotated(pool, sealer)
    assert await retired(pool, first, now=True) == [first]
    with pytest.raises(RotationRefused, match="no such key"):
        await retired(pool, first, now=True)


async def test_another_algorithm_is_published_before_it_signs(pool: Pool, sealer: Sealer, keys: Keys) -> None:
    assert await rotated(pool, sealer, now=False, algorithm="EdDSA") is None
    await keys.load()
    assert keys.active.algorithm == "ES256"
    assert {jwk["alg"] for jwk in keys.jwks()["keys"]} == {"ES256", "EdDSA"}
    await aged(pool, 61)
    kid = await rotated(pool, sealer, now=False, algorithm="EdDSA")
    await keys.load()
    assert (keys.active.kid, keys.active.algorithm) == (kid, "EdDSA")


async def test_discarding_begins_anew(pool: Pool, sealer: Sealer, keys: Keys) -> None:
    before = {jwk["kid"] for jwk in keys.jwks()["keys"]}
    async with pool.acquire() as connection, connection.transaction():
        await signing.discard(connection, sealer, "ES256")
    await keys.load()
    assert before.isdisjoint(jwk["kid"] for jwk in keys.jwks()["keys"])
    async with pool.acquire() as connection:
        states = [info.state for info in await signing.listed(connection)]
    assert sorted(states) == ["active", "next", "retired", "retired"]


# -- at rest


def with_secret(secret: str, *previous: str) -> Sealer:
    return key_sealer(Sessions.model_validate({"secret_key": secret, "previous_secret_keys": list(previous)}))


async def test_sec_18_the_table_alone_gives_no_private_key(pool: Pool, keys: Keys) -> None:
    der = keys.active.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for row in await pool.fetch("select sealed from signing_keys"):
        assert der not in row["sealed"]
        assert der[36:68] not in row["sealed"]


async def test_another_master_secret_needs_the_one_before(pool: Pool, settings: Settings, clock: FakeClock) -> None:
    old, new = settings.sessions.secret_key.get_secret_value(), "another secret of more than 32 characters"
    ring = Keys(pool, with_secret(old), "ES256", clock=clock)
    await ring.start()
    kid = ring.active.kid
    await ring.close()
    with pytest.raises(KeysUnreadable):
        await Keys(pool, with_secret(new), "ES256", clock=clock).start()
    for sealer in (with_secret(new, old), with_secret(new)):  # the first start with both seals it again
        ring = Keys(pool, sealer, "ES256", clock=clock)
        await ring.start()
        assert ring.active.kid == kid
        await ring.close()


async def test_whoever_can_write_the_table_cannot_plant_a_key(pool: Pool, sealer: Sealer, keys: Keys) -> None:
    planted = generate_private_key(SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    await pool.execute("update signing_keys set sealed = $1 where state = 'next'", planted)
    swapped = await pool.fetchval("select sealed from signing_keys where state = 'active'")
    await pool.execute(
        "insert into signing_keys (kid, algorithm, state, sealed) values ('mine', 'ES256', 'retiring', $1)", swapped
    )
    await keys.load()
    assert [jwk["kid"] for jwk in keys.jwks()["keys"]] == [keys.active.kid]


async def test_a_process_with_the_wrong_secret_keeps_what_it_has(
    pool: Pool, keys: Keys, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.execute("update signing_keys set sealed = '\\x00' where state = 'active'")
    clock.advance(GAP)
    kid = keys.active.kid
    await keys.look()
    assert keys.active.kid == kid


# -- looking again


async def test_sec_35_a_flood_of_unknown_kids_causes_one_look(keys: Keys, clock: FakeClock) -> None:
    loads = keys.loads
    await asyncio.gather(*(keys.look() for _ in range(100)))
    assert keys.loads == loads  # it was read just now
    clock.advance(GAP)
    await asyncio.gather(*(keys.look() for _ in range(100)))
    for _ in range(100):
        await keys.look()
    assert keys.loads == loads + 1
    clock.advance(GAP)
    await keys.look()
    assert keys.loads == loads + 2


async def test_a_cancelled_look_leaves_the_others_waiting(keys: Keys, clock: FakeClock) -> None:
    clock.advance(GAP)
    first, second = (asyncio.create_task(keys.look()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert second.exception() is None
    await keys.close()


async def test_a_sealed_key_of_another_kind_is_left_out_and_rotating_at_once_does_without_a_next_one(
    pool: Pool, sealer: Sealer, keys: Keys
) -> None:
    [kid] = [row["kid"] for row in await pool.fetch("select kid from signing_keys where state = 'next'")]
    der = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = sealer.seal(der, signing._about(kid, "ES256"))
    await pool.execute("update signing_keys set sealed = $2 where kid = $1", kid, sealed)
    await keys.load()
    assert [jwk["kid"] for jwk in keys.jwks()["keys"]] == [keys.active.kid]
    await pool.execute("delete from signing_keys where kid = $1", kid)
    made = await rotated(pool, sealer)
    await keys.load()
    assert keys.active.kid == made
