"""Passkeys (WebAuthn Level 3): what is asked of a browser, what is made of its answer, and the keys that are kept.

A ceremony has three steps: options, which carry a sealed challenge (`challenges`); the browser's answer, whose
signature is verified by `webauthn`; and taking it, in the transaction of the deed that it is for. An answer is taken
once, and only for the purpose, and by the browser, session or login, that its options were made for. Everyone who uses
a passkey is verified by their device, so that a passkey alone is two factors.

What the maker of a device says of it (attestation) is not asked for. The public keys stand sealed and bound to user and
credential: whoever can write the table cannot plant one. Who may do what stands in `factors` and `service`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import asyncpg
import msgspec
import structlog

from auth.challenges import Ceremony, ChallengeOver, Challenges
from auth.users import User
from auth.webauthn_json import (
    Algorithm,
    Assertion,
    Attestation,
    ClientData,
    CreationOptions,
    Descriptor,
    Person,
    RequestOptions,
)
from auth.webauthn_json import RelyingParty as Site
from config.database import Connection, Pool
from config.http import Problem, address_prefix, invalid
from config.sealing import Sealer, Unsealable
from config.settings import RelyingParty
from config.settings import Sessions as SessionSettings
from sessions import audit
from sessions.errors import translated
from sessions.ids import decode, encode
from sessions.transactions import transaction

log = structlog.get_logger(__name__)

Executor = Connection | Pool
T = TypeVar("T")

MOST = 20
"""Passkeys of one user."""

MAX_NAME = 64
_ALGORITHMS = (-8, -7, -257)  # EdDSA, ES256, RS256
_REFUSAL = "this passkey is not good"
_TRANSPORTS = frozenset({"usb", "nfc", "ble", "smart-card", "hybrid", "internal"})
_TIDIED_AFTER = 86400.0  # s: a clock that steps back a little makes no challenge good again


class Passkey(NamedTuple):
    """As its owner sees it. Times are unix seconds."""

    id: str
    name: str
    created_at: float
    last_used_at: float | None


class Made(NamedTuple):
    """A new passkey whose signature is good; not kept yet."""

    ceremony: Ceremony
    credential_id: bytes
    public_key: bytes
    sign_count: int
    transports: Sequence[str]


class Used(NamedTuple):
    """An answer whose signature is good; not taken yet."""

    ceremony: Ceremony
    id: UUID
    subject: str
    sign_count: int


class CounterWentBack(Problem):
    """The signature is good, and another device has signed since: two hold this key."""

    def __init__(self, used: Used) -> None:
        super().__init__("invalid_credentials", _REFUSAL)
        self.used = used


def login_of(browser: str) -> str:
    """What a login's ceremony is about: the browser with this cookie."""
    return f"login of the browser {browser}"


def login_from(address: str) -> str:
    """The same for who has no cookies."""
    return f"login from {address_prefix(address)}"


def factor_for(challenge: str) -> str:
    """The second half of a login, by the id of its challenge."""
    return f"second factor for {challenge}"


def step_up_of(sid: str) -> str:
    return f"step-up of {sid}"


def new_of(sid: str) -> str:
    return f"new passkey of {sid}"


class Passkeys:
    """One a process. `party` None: no site of ours can have passkeys, and every ceremony is a Problem `forbidden`."""

    def __init__(
        self, pool: Pool, party: RelyingParty | None, settings: SessionSettings, challenges: Challenges, *, product: str
    ) -> None:
        self._pool, self._maybe_party, self._challenges, self._product = pool, party, challenges, product
        self._sealer = Sealer.of(settings, "passkeys")
        if party is not None:
            import webauthn  # noqa: F401 - it takes long to load: not when the first passkey comes

    # -- what is asked for

    async def to_make(self, user: User, about: str) -> CreationOptions:
        """Problem forbidden where a user has MOST of them."""
        party = self._party
        with translated():
            known = await self._pool.fetch(_DESCRIPTORS, user.id)
        if len(known) >= MOST:
            raise Problem("forbidden", f"{MOST} passkeys are enough: remove one first")
        return CreationOptions(
            Site(party.id, self._product),
            Person(encode(user.id.encode()), user.email, user.display_name or user.email),
            encode(self._challenges.begin(about)),
            [Algorithm(number) for number in _ALGORITHMS],
            _descriptors(known),
        )

    async def to_use(self, about: str, subject: str = "") -> RequestOptions:
        """Of `subject`, or of whoever has one. Problem forbidden for somebody who has none."""
        party, known = self._party, []
        if subject:
            with translated():
                known = await self._pool.fetch(_DESCRIPTORS, subject)
            if not known:
                raise Problem("forbidden", "this account has no passkey")
        return RequestOptions(encode(self._challenges.begin(about)), party.id, _descriptors(known))

    # -- what is answered

    def made(self, answer: Attestation, about: str) -> Made:
        """Problems: unauthenticated (its options are over, or were another's), invalid_credentials."""
        asked, ceremony = self._asked(answer.response.client_data_json, about)
        verified = _verified("made", lambda: _verify_new(answer, asked, self._party))
        return Made(
            ceremony,
            verified.credential_id,
            verified.credential_public_key,
            verified.sign_count,
            [transport for transport in answer.response.transports if transport in _TRANSPORTS],
        )

    def begun(self, answer: Assertion, about: str) -> tuple[bytes, Ceremony]:
        """What `answer` answers. Problem unauthenticated for options that are over, or were another's."""
        return self._asked(answer.response.client_data_json, about)

    async def used(self, answer: Assertion, begun: tuple[bytes, Ceremony], subject: str = "") -> Used:
        """Whose passkey it is, where its signature is good. With `subject` it must be theirs, else it must name its
        user itself. Problem invalid_credentials."""
        asked, ceremony = begun
        with translated():
            record = await self._pool.fetchrow(_FIND, decode(answer.id) or b"")
        named = answer.response.user_handle or (subject and encode(subject.encode()))
        if record is None or named != encode(record["subject"].encode()) or subject not in ("", record["subject"]):
            raise refused()
        key = self._opened(record)
        verified = _verified("used", lambda: _verify_used(answer, asked, self._party, key))
        return Used(ceremony, record["id"], record["subject"], verified.new_sign_count)

    # -- what is kept; in the caller's transaction, which holds the subject

    async def keep(self, connection: Connection, subject: str, made: Made, name: str) -> Passkey:
        """Problems: unauthenticated (answered before), invalid (it is kept already), forbidden (too many)."""
        await _answered(connection, made.ceremony)
        if await connection.fetchval("SELECT count(*) FROM passkeys WHERE subject = $1", subject) >= MOST:
            raise Problem("forbidden", f"{MOST} passkeys are enough: remove one first")
        id, sealed = uuid4(), self._sealer.seal(made.public_key, _about(subject, made.credential_id))
        try:
            created: float = await connection.fetchval(
                _KEEP, id, made.credential_id, subject, sealed, made.sign_count, made.transports, name
            )
        except asyncpg.UniqueViolationError:
            raise invalid("credential", "a passkey that is not kept here yet") from None
        return Passkey(str(id), name, created, None)

    async def take(self, connection: Connection, used: Used) -> None:
        """Of twenty that answer the same options at once one succeeds. Problems: unauthenticated (answered before),
        invalid_credentials (removed meanwhile), CounterWentBack."""
        await _answered(connection, used.ceremony)
        record = await connection.fetchrow(_LOCK, used.id)
        if record is None:
            raise refused()
        # Authenticators that do not count say 0 for ever (WebAuthn 6.1.1).
        if used.sign_count <= record["sign_count"] and (used.sign_count or record["sign_count"]):
            raise CounterWentBack(used)
        sealed = record["sealed_key"]
        if not self._sealer.current(sealed):
            sealed = self._sealer.seal(self._opened(record), _about(record["subject"], record["credential_id"]))
        await connection.execute(_TOOK, used.id, used.sign_count, sealed)

    @asynccontextmanager
    async def watched(self, address: str) -> AsyncIterator[None]:
        """A block in which a passkey is taken: that its counter went back is audited, after the deed was undone."""
        try:
            yield
        except CounterWentBack as error:
            used = error.used
            log.warning("passkey_counter_went_back", user=used.subject, passkey=str(used.id))
            async with transaction(self._pool) as connection:
                await _answered(connection, used.ceremony)
                await audit.append(
                    connection,
                    "user.factor_refused",
                    actor="system",
                    target=f"user:{used.subject}",
                    address=address,
                    detail={"factor": "passkey", "passkey": str(used.id), "why": "its counter went back"},
                )
            raise

    # -- parts

    @property
    def _party(self) -> RelyingParty:
        if self._maybe_party is None:
            raise Problem("forbidden", "no site of client.allowed_origins can have passkeys")
        return self._maybe_party

    def _asked(self, client_data_json: str, about: str) -> tuple[bytes, Ceremony]:
        try:
            data = msgspec.json.decode(decode(client_data_json) or b"", type=ClientData)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ChallengeOver from None
        asked = decode(data.challenge)
        if asked is None:
            raise ChallengeOver
        ceremony = self._challenges.begun(asked, about)
        if data.cross_origin:
            raise refused()  # another site's page shows ours in a frame
        return asked, ceremony

    def _opened(self, record: Any) -> bytes:
        try:
            return self._sealer.open(record["sealed_key"], _about(record["subject"], record["credential_id"]))
        except Unsealable:
            log.warning("passkey_not_unsealed", user=record["subject"])
            raise refused() from None


def _verified(what: str, verify: Callable[[], T]) -> T:
    """Whatever stands in the way of it, an answer that cannot be verified is refused: it is a stranger's bytes."""
    try:
        return verify()
    except Exception as error:
        log.info("passkey_refused", ceremony=what, why=f"{type(error).__name__}: {error}"[:200])
        raise refused() from None


def _verify_new(answer: Attestation, asked: bytes, party: RelyingParty) -> Any:
    from webauthn import verify_registration_response  # here, as commands do without
    from webauthn.helpers import parse_attestation_object
    from webauthn.helpers.cose import COSEAlgorithmIdentifier

    said = parse_attestation_object(decode(answer.response.attestation_object) or b"")
    # None was asked for; some sign with the new key itself all the same. Chains of certificates are nobody's business.
    if said.fmt != "none" and (said.fmt != "packed" or said.att_stmt.x5c):
        raise ValueError(f"an attestation of the form {said.fmt}")
    return verify_registration_response(
        credential=msgspec.to_builtins(answer),
        expected_challenge=asked,
        expected_rp_id=party.id,
        expected_origin=list(party.origins),
        require_user_verification=True,
        supported_pub_key_algs=[COSEAlgorithmIdentifier(number) for number in _ALGORITHMS],
    )


def _verify_used(answer: Assertion, asked: bytes, party: RelyingParty, key: bytes) -> Any:
    from webauthn import verify_authentication_response

    return verify_authentication_response(
        credential=msgspec.to_builtins(answer),
        expected_challenge=asked,
        expected_rp_id=party.id,
        expected_origin=list(party.origins),
        credential_public_key=key,
        credential_current_sign_count=0,  # `take` compares it, when the signature is known to be good
        require_user_verification=True,
    )


def refused() -> Problem:
    """One answer for every passkey that is not good."""
    return Problem("invalid_credentials", _REFUSAL)


def _about(subject: str, credential_id: bytes) -> str:
    return f"{subject} {credential_id.hex()}"


def _descriptors(records: Sequence[Any]) -> list[Descriptor]:
    return [Descriptor(encode(record["credential_id"]), list(record["transports"])) for record in records]


async def _answered(connection: Connection, ceremony: Ceremony) -> None:
    """Once; whoever comes at the same time waits for the transaction that was first."""
    if await connection.fetchval(_ANSWERED, ceremony.id, ceremony.until) is None:
        raise ChallengeOver


async def page(connection: Executor, subject: str) -> list[Passkey]:
    """All of a user's, the oldest first."""
    return [_shown(record) for record in await connection.fetch(_PAGE, subject)]


async def rename(connection: Connection, subject: str, id: str, name: str) -> Passkey | None:
    """None where the user has no such passkey."""
    record = await connection.fetchrow(_RENAME, subject, _uuid(id), name)
    return None if record is None else _shown(record)


async def remove(connection: Connection, subject: str, id: str) -> bool:
    """False where the user has no such passkey."""
    return await connection.fetchval(_REMOVE, subject, _uuid(id)) is not None


async def remove_all(connection: Connection, subject: str) -> None:
    await connection.execute("DELETE FROM passkeys WHERE subject = $1", subject)


async def tidy(pool: Pool) -> None:
    """Forget which challenges were answered that have been over for long."""
    await pool.execute(_TIDY, _TIDIED_AFTER)


def _shown(record: Any) -> Passkey:
    return Passkey(str(record["id"]), *list(record)[1:])


def _uuid(id: str) -> UUID | None:
    try:
        return UUID(id)
    except ValueError:
        return None


_COLUMNS = """
id, name, extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM last_used_at)::float8 AS last_used_at
"""
_PAGE = f"SELECT {_COLUMNS} FROM passkeys WHERE subject = $1 ORDER BY created_at, id"  # noqa: S608 - constants
_RENAME = f"UPDATE passkeys SET name = $3 WHERE subject = $1 AND id = $2 RETURNING {_COLUMNS}"  # noqa: S608
_REMOVE = "DELETE FROM passkeys WHERE subject = $1 AND id = $2 RETURNING true"
_DESCRIPTORS = "SELECT credential_id, transports FROM passkeys WHERE subject = $1 ORDER BY created_at, id"
_FIND = "SELECT id, subject, credential_id, sealed_key FROM passkeys WHERE credential_id = $1"
_KEEP = """
INSERT INTO passkeys (id, credential_id, subject, sealed_key, sign_count, transports, name)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING extract(epoch FROM created_at)::float8
"""
_LOCK = "SELECT subject, credential_id, sealed_key, sign_count FROM passkeys WHERE id = $1 FOR NO KEY UPDATE"
_TOOK = "UPDATE passkeys SET sign_count = $2, sealed_key = $3, last_used_at = clock_timestamp() WHERE id = $1"
_ANSWERED = """
INSERT INTO answered_challenges (id, until) VALUES ($1, to_timestamp($2::float8))
ON CONFLICT DO NOTHING RETURNING true
"""
_TIDY = "DELETE FROM answered_challenges WHERE until < clock_timestamp() - make_interval(secs => $1)"
