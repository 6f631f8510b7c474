"""`Idempotency-Key`: one call, one revocation, however often it is sent (24 h a caller).

The key is written in the revoking transaction itself, so it is there exactly when the revocation is. Whoever asks again
writes to it too: his COMMIT waits for the standby as the first one should have (6d), so "it was done" is never said of
something that a failover can still lose.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from config.database import Connection
from config.http import Problem
from sessions.log import KEEP_KEYS

_CLAIM = """
INSERT INTO idempotency (caller, key, body_hash, receipt)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[])
ON CONFLICT (caller, key) DO UPDATE
    SET body_hash = excluded.body_hash, receipt = excluded.receipt, created_at = clock_timestamp(), asked = 0
    WHERE idempotency.created_at < clock_timestamp() - $5 * interval '1 second'
RETURNING caller, key
"""

_ASK = """
UPDATE idempotency i SET asked = i.asked + 1
FROM unnest($1::text[], $2::text[]) AS k (caller, key) WHERE i.caller = k.caller AND i.key = k.key
RETURNING i.caller, i.key, i.body_hash, i.receipt
"""


class Key(msgspec.Struct, frozen=True):
    """A caller's key for one call; `body_hash` tells another call under the same key."""

    caller: str
    key: str
    body_hash: bytes

    @property
    def name(self) -> tuple[str, str]:
        """What must be unique."""
        return self.caller, self.key


def key_of(caller: str, key: str, body: object) -> Key:
    """The key of a call with the decoded `body`."""
    return Key(caller, key, hashlib.sha256(msgspec.json.encode(body)).digest())


async def claim(connection: Connection, keys: Mapping[str, Key]) -> dict[str, str]:
    """Claim keys for the receipts that name them; no two of them the same. Returns {receipt: earlier receipt} for those
    that were used before with the same body. With another body the earlier receipt is "" (`conflict`)."""
    if not keys:
        return {}
    by_name = {key.name: receipt for receipt, key in keys.items()}
    taken = await connection.fetch(
        _CLAIM,
        [key.caller for key in keys.values()],
        [key.key for key in keys.values()],
        [key.body_hash for key in keys.values()],
        list(keys),
        KEEP_KEYS,
    )
    ours = {(record["caller"], record["key"]) for record in taken}
    return await _ask(connection, keys, [name for name in by_name if name not in ours], by_name)


async def _ask(
    connection: Connection,
    keys: Mapping[str, Key],
    names: Sequence[tuple[str, str]],
    by_name: Mapping[tuple[str, str], str],
) -> dict[str, str]:
    if not names:
        return {}
    before: dict[str, str] = {}
    for record in await connection.fetch(_ASK, [caller for caller, _ in names], [key for _, key in names]):
        receipt = by_name[record["caller"], record["key"]]
        same = record["body_hash"] == keys[receipt].body_hash
        before[receipt] = record["receipt"].hex if same else ""
    return before


async def ask(connection: Connection, key: Key) -> str | None:
    """The receipt of an earlier call with this key, None without one. Problem `idempotency_conflict`."""
    before = await _ask(connection, {"": key}, [key.name], {key.name: ""})
    if before.get("") == "":
        raise conflict()
    return before.get("")


def conflict() -> Problem:
    """Same key, other body."""
    return Problem("idempotency_conflict")
