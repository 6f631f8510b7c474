"""Keys over HTTP, for admins: API keys, the service accounts they belong to, and the keys that sign access tokens."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec

from auth import key_keeping as keeping
from auth import keys as signing
from auth.api_keys import STATIC
from auth.freshness import Freshness
from auth.key_keeping import KeyInfo, NewKey, ServiceAccount
from auth.keys import Keys, RotationRefused
from auth.service import Ledger
from config import paging
from config.database import Connection, Pool
from config.http import Call, Caller, Nothing, Paging, Problem, Route, invalid, moment, plain, rfc3339
from sessions import audit
from sessions.errors import translated
from sessions.revocations import Revocations

OVERLAP = 3600.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=keeping.MAX_NAME)]
Scopes = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(min_length=1, max_length=keeping.MAX_SCOPES)
]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
ServiceName = Annotated[str, msgspec.Meta(pattern=keeping.SERVICE_NAME)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class NewApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`scopes`: some of one's own. Without `service_account` the key is of the service account or the user who asks."""

    name: Name
    scopes: Scopes
    expires_at: Moment | None = None
    service_account: ServiceName | None = None


class ChangeApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; `expires_at` null: never."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    scopes: Scopes | msgspec.UnsetType = msgspec.UNSET
    expires_at: Moment | msgspec.UnsetType | None = msgspec.UNSET


class RotateApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`overlap_seconds`: how long the secret before is good as well."""

    overlap_seconds: Annotated[float, msgspec.Meta(ge=0, le=keeping.LONGEST_OVERLAP)] = OVERLAP


class KeyFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """`owner`: the id of the user who made it."""

    service_account: str = ""
    owner: str = ""
    revoked: bool | None = None


class KeyView(msgspec.Struct, frozen=True):
    """A key, never its secret. It belongs to a service account, or to the user `owner`, or to nobody. Until
    `previous_until` the secret before the last rotation is good as well."""

    id: str
    name: str
    scopes: list[str]
    service_account: str | None
    owner: str | None
    created_at: str
    created_by: str
    expires_at: str | None
    last_used_at: str | None
    previous_until: str | None
    revoked_at: str | None


class KeyViews(msgspec.Struct, frozen=True):
    items: list[KeyView]
    next: str


class MadeKey(msgspec.Struct, frozen=True):
    """The secret is shown this once."""

    secret: str
    key: KeyView


class NewServiceAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it does is in the audit under `service:` and this name."""

    name: ServiceName


class ChangeServiceAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`disabled`: none of its keys is good. `reason` is kept in the audit."""

    disabled: bool
    reason: Reason


class ServiceAccountView(msgspec.Struct, frozen=True):
    """`keys`: how many it has that are not revoked."""

    name: str
    created_at: str
    created_by: str
    disabled_at: str | None
    keys: int


class ServiceAccountViews(msgspec.Struct, frozen=True):
    items: list[ServiceAccountView]
    next: str


class SigningKeyView(msgspec.Struct, frozen=True):
    """A key that signs access tokens: it goes from "next" by "active" and "retiring" to "retired"."""

    kid: str
    algorithm: str
    state: signing.State
    created_at: str
    activated_at: str | None
    retiring_at: str | None
    retired_at: str | None


class SigningKeyViews(msgspec.Struct, frozen=True):
    items: list[SigningKeyView]
    next: str


class RotateSigningKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`now`: even if a process may not know the next key yet. `discard`: retire every key and begin anew; that ends all
    access tokens."""

    now: bool = False
    discard: bool = False


class RetireSigningKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key `kid`; else every one whose last token has expired. `now`: even if tokens of it are still good."""

    kid: Annotated[str, msgspec.Meta(max_length=64)] = ""
    now: bool = False


class KeyRoutes:
    """The handlers. `ring` is this process's view of the signing keys, `token_ttl` how long an access token is good.

    A secret outlives the session in which it is given: whoever has a second factor shows it again for one."""

    def __init__(
        self, pool: Pool, revocations: Revocations, freshness: Freshness, ring: Keys, *, token_ttl: float
    ) -> None:
        self._pool, self._revocations, self._freshness = pool, revocations, freshness
        self._ring, self._token_ttl = ring, token_ttl

    def routes(self) -> list[Route]:
        keys, one, services, signers = (
            "/admin/keys",
            "/admin/keys/{id}",
            "/admin/service-accounts",
            "/admin/signing-keys",
        )
        read: dict[str, Any] = {"access": "admin", "scope": "keys:read", "tag": "admin"}
        write = read | {"scope": "keys:write", "errors": ("not_found", "outcome_unknown")}
        give = write | {"errors": ("not_found", "step_up_required", "outcome_unknown")}
        return [
            Route(
                "GET",
                keys,
                self.all,
                "API keys, oldest first",
                query=KeyFilter,
                result=KeyViews,
                export=KeyView,
                **read,
            ),
            Route("POST", keys, self.create, "A new API key", body=NewApiKey, result=MadeKey, status=201, **give),
            Route("PATCH", one, self.change, "Change an API key", body=ChangeApiKey, result=KeyView, **write),
            Route("DELETE", one, self.revoke, "Revoke an API key, on every node", **write),
            Route(
                "POST",
                f"{one}/rotation",
                self.rotate,
                "Another secret for an API key; the one before is good for a while",
                body=RotateApiKey,
                result=MadeKey,
                **give,
            ),
            Route(
                "GET",
                services,
                self.all_services,
                "Service accounts, by name",
                query=Paging,
                result=ServiceAccountViews,
                export=ServiceAccountView,
                **read,
            ),
            Route(
                "POST",
                services,
                self.create_service,
                "A new service account",
                body=NewServiceAccount,
                result=ServiceAccountView,
                status=201,
                **write,
            ),
            Route(
                "PATCH",
                f"{services}/{{name}}",
                self.change_service,
                "Disable a service account with all its keys, or enable it again",
                body=ChangeServiceAccount,
                result=ServiceAccountView,
                **write,
            ),
            Route(
                "GET",
                signers,
                self.all_signers,
                "The keys that sign access tokens, oldest first",
                result=SigningKeyViews,
                **(read | {"scope": "signing-keys:read"}),
            ),
            Route(
                "POST",
                f"{signers}/rotation",
                self.rotate_signers,
                "Sign with the next key; what the one before signed stays good until it expires",
                body=RotateSigningKeys,
                result=SigningKeyViews,
                access="admin",
                scope="signing-keys:write",
                errors=("outcome_unknown",),
                tag="admin",
            ),
            Route(
                "POST",
                f"{signers}/retirement",
                self.retire_signers,
                "Refuse what retiring keys signed, and destroy their private halves",
                body=RetireSigningKeys,
                result=SigningKeyViews,
                access="admin",
                scope="signing-keys:write",
                errors=("outcome_unknown",),
                tag="admin",
            ),
        ]

    # -- API keys

    async def all(self, call: Call[None, KeyFilter]) -> KeyViews:
        query = call.query
        service, owner = plain("service_account", query.service_account), plain("owner", query.owner)
        by = keeping.Filter(service or None, owner or None, query.revoked)
        with translated():
            items, cursor = await keeping.page(
                self._pool, by, limit=query.limit, after=paging.asked(query.after, paging.UUID)
            )
        return KeyViews([view(key) for key in items], paging.write(cursor))

    async def create(self, call: Call[NewApiKey, Nothing]) -> MadeKey:
        body, who = call.body, call.who
        service = body.service_account or who.service or None
        if service != (who.service or None) and (who.service or who.owner):
            raise Problem("forbidden", "what a key makes is its own: it ends with whom that belongs to")
        owner = None if service else (who.owner if who.via == "api_key" else who.id) or None
        new = NewKey(body.name, body.scopes, self._expiry(body.expires_at), service, owner)
        if who.sid:
            await self._freshness.require(who.id, who.sid)
        with translated():
            async with self._revocations.acting(who.name, who.sid) as writing:
                until = await self._end(writing, who)
                secret, made = await keeping.create(writing.connection, new, within=who.scopes, until=until, by=call.by)
        return MadeKey(secret, view(made))

    async def change(self, call: Call[ChangeApiKey, Nothing]) -> KeyView:
        wanted = {n: v for n, v in msgspec.structs.asdict(call.body).items() if v is not msgspec.UNSET}
        if "expires_at" in wanted:
            wanted["expires_at"] = self._expiry(wanted["expires_at"])
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                until = await self._end(writing, call.who)
                changed = await keeping.change(
                    writing, _id(call), wanted, within=call.who.scopes, until=until, by=call.by
                )
        return view(changed)

    async def rotate(self, call: Call[RotateApiKey, Nothing]) -> MadeKey:
        overlap, who = call.body.overlap_seconds, call.who
        if who.sid:
            await self._freshness.require(who.id, who.sid)
        with translated():
            async with self._revocations.acting(who.name, who.sid) as writing:
                until = await self._end(writing, who)
                secret, key = await keeping.rotate(
                    writing, _id(call), overlap, within=who.scopes, until=until, by=call.by
                )
        return MadeKey(secret, view(key))

    async def revoke(self, call: Call[None, Nothing]) -> None:
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                if not await keeping.revoke(writing, _id(call), by=call.by):
                    raise Problem("not_found")

    @staticmethod
    async def _end(writing: Ledger, who: Caller) -> float | None:
        """When who asks ends by itself, where that is a key."""
        return await keeping.end_of(writing.connection, who.id) if who.via == "api_key" and who != STATIC else None

    def _expiry(self, at: datetime | None) -> float | None:
        if at is None:
            return None
        if at.timestamp() <= self._revocations.database_now():
            raise invalid("expires_at", "a time that is yet to come")
        return at.timestamp()

    # -- service accounts

    async def all_services(self, call: Call[None, Paging]) -> ServiceAccountViews:
        with translated():
            items, following = await keeping.services(
                self._pool, limit=call.query.limit, after=plain("after", call.query.after)
            )
        return ServiceAccountViews([service_view(account) for account in items], following)

    async def create_service(self, call: Call[NewServiceAccount, Nothing]) -> ServiceAccountView:
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                return service_view(await keeping.create_service(writing.connection, call.body.name, by=call.by))

    async def change_service(self, call: Call[ChangeServiceAccount, Nothing]) -> ServiceAccountView:
        body, name = call.body, plain("name", call.path("name"))
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                changed = await keeping.disable_service(
                    writing, name, body.disabled, reason=body.reason, within=call.who.scopes, by=call.by
                )
        return service_view(changed)

    # -- signing keys

    async def all_signers(self, _call: Call[None, Nothing]) -> SigningKeyViews:
        with translated():
            async with self._pool.acquire() as connection:
                return SigningKeyViews([_signer(key) for key in await signing.listed(connection)], "")

    async def rotate_signers(self, call: Call[RotateSigningKeys, Nothing]) -> SigningKeyViews:
        now, discard = call.body.now, call.body.discard

        async def rotate(connection: Connection) -> None:
            if discard:
                kid: str | None = await self._ring.discard(connection)
            else:
                kid = await self._ring.rotate(connection, now=now, token_ttl=self._token_ttl)
            detail = {"kid": kid, "discard": discard}
            await audit.append(connection, "signing_key.rotated", detail=detail, **call.by)

        return await self._changed_signers(call, rotate, "now")

    async def retire_signers(self, call: Call[RetireSigningKeys, Nothing]) -> SigningKeyViews:
        kid, now = call.body.kid or None, call.body.now

        async def retire(connection: Connection) -> None:
            if gone := await signing.retire(connection, self._token_ttl, kid, now=now):
                await audit.append(connection, "signing_key.retired", detail={"kids": gone}, **call.by)

        return await self._changed_signers(call, retire, "kid")

    async def _changed_signers(
        self, call: Call[Any, Nothing], change: Callable[[Connection], Awaitable[None]], field: str
    ) -> SigningKeyViews:
        """What refuses it is said of that field."""
        try:
            with translated():
                async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                    await change(writing.connection)
                    listed = await signing.listed(writing.connection)
        except RotationRefused as refused:
            raise invalid(field, str(refused)) from None
        await self._ring.load()
        return SigningKeyViews([_signer(key) for key in listed], "")


def view(key: KeyInfo) -> KeyView:
    return KeyView(
        key.id,
        key.name,
        list(key.scopes),
        key.service_account,
        key.owner,
        rfc3339(key.created_at),
        key.created_by,
        moment(key.expires_at),
        moment(key.last_used_at),
        moment(key.previous_until),
        moment(key.revoked_at),
    )


def service_view(account: ServiceAccount) -> ServiceAccountView:
    return ServiceAccountView(
        account.name, rfc3339(account.created_at), account.created_by, moment(account.disabled_at), account.keys
    )


def _signer(key: signing.KeyInfo) -> SigningKeyView:
    return SigningKeyView(
        key.kid,
        key.algorithm,
        key.state,
        rfc3339(key.created_at),
        moment(key.activated_at),
        moment(key.retiring_at),
        moment(key.retired_at),
    )


def _id(call: Call[Any, Any]) -> str:
    try:
        return UUID(call.path("id")).hex
    except ValueError:
        raise Problem("not_found") from None
