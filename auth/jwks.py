"""Keys of external issuers: static ones from the settings, and key sets (RFC 7517) fetched with care.

A key is good for the algorithms of its own kind and for no other, so that a token cannot choose how it is checked. The
address of a set comes from the settings alone, never from a token; a set is asked once for many, at most every 10 s,
and not at all for kids that the set just fetched does not have.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from config.clock import Clock
from config.public_keys import CURVES, MIN_RSA_BITS, BadKey, ecdsa, rsa
from config.settings import Token

log = structlog.get_logger(__name__)

GAP = 10.0  # s between two fetches, whatever asks for them
OLD = 300.0  # s after which a set that is used is fetched again
TIMEOUT = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 100

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_HMAC = frozenset({"HS256", "HS384", "HS512"})
_RSA = frozenset({"RS256", "RS384", "RS512"})
_RSA_OF_JWK = _RSA | {"PS256", "PS384", "PS512"}

Fetch = Callable[[str], Awaitable[bytes]]


class Key:
    """One key, and the algorithms that it may be used with."""

    def __init__(self, key: Any, algorithms: Iterable[str]) -> None:
        self._key = key
        self._algorithms: Mapping[str, Any] = {name: jwt.get_algorithm_by_name(name) for name in algorithms}

    def same(self, other: "Key | None") -> bool:
        """Whether what this key verified holds by `other`."""
        return other is not None and self._key == other._key and self._algorithms.keys() == other._algorithms.keys()

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """False for an algorithm that is not this key's, too."""
        jws = self._algorithms.get(algorithm)
        return jws is not None and bool(jws.verify(signed, self._key, signature))


class KeySource(Protocol):
    """Where an issuer's keys come from."""

    def find(self, algorithm: str, kid: str) -> Key | None:
        """The key that must have signed, as far as it is known here; None for none."""
        ...

    def worth_a_look(self) -> bool:
        """Whether `look` might find a key that `find` did not."""
        ...

    async def look(self) -> None:
        """Ask again, if that is not pointless. Never raises: what was known stays."""
        ...


class StaticKeys:
    """The keys of the settings: one a family (HMAC, RSA, ECDSA)."""

    def __init__(self, settings: Token) -> None:
        self._by_algorithm: dict[str, Key] = {}
        secret = settings.hmac_secret_key.get_secret_value().encode()
        if secret:
            self._add(Key(secret, _HMAC), _HMAC)
        if settings.rsa_public_key:
            self._add(Key(rsa(settings.rsa_public_key), _RSA), _RSA)
        if settings.ecdsa_public_key:
            key = ecdsa(settings.ecdsa_public_key)
            name = CURVES[key.curve.name]
            self._add(Key(key, (name,)), (name,))

    def __bool__(self) -> bool:
        return bool(self._by_algorithm)

    def _add(self, key: Key, algorithms: Iterable[str]) -> None:
        self._by_algorithm.update(dict.fromkeys(algorithms, key))

    def find(self, algorithm: str, kid: str) -> Key | None:
        return self._by_algorithm.get(algorithm)

    def worth_a_look(self) -> bool:
        return False

    async def look(self) -> None:
        return None


class KeySet:
    """The set at one address. `fetch` gets its bytes (`fetch_guarded`); `changed` hears that a key is gone from
    it, or is another one under its name."""

    def __init__(self, url: str, fetch: Fetch, *, clock: Clock, changed: Callable[[], None]) -> None:
        self._url, self._fetch, self._clock, self._changed = url, fetch, clock, changed
        self._keys: Mapping[str, Key] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self.fetches = 0

    def find(self, algorithm: str, kid: str) -> Key | None:
        key = self._keys.get(kid)
        if key is not None and self._clock.now() - self._asked_at > OLD:
            self._ask()  # nobody waits: what is known is used meanwhile
        return key

    def worth_a_look(self) -> bool:
        return self._asking is not None or self._clock.now() - self._asked_at >= GAP

    async def look(self) -> None:
        if self.worth_a_look():
            await asyncio.shield(self._ask())

    def _ask(self) -> "asyncio.Task[None]":
        if self._asking is None:
            self._asked_at = self._clock.now()
            self._asking = asyncio.create_task(self._load(), name="auth: key set")
        return self._asking

    async def _load(self) -> None:
        self.fetches += 1
        try:
            keys = parse_set(await self._fetch(self._url))
            if not all(key.same(keys.get(kid)) for kid, key in self._keys.items()):
                self._changed()
            self._keys = keys
        except Exception as error:  # the issuer is away or talks nonsense: its keys stay as they were
            log.warning("key_set_not_read", url=self._url, error=type(error).__name__)
        finally:
            self._asking = None


def parse_set(raw: bytes) -> Mapping[str, Key]:
    """The usable signing keys of a set by kid. ValueError for what is no set; a key that is no use is left out."""
    value = json.loads(raw)
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list) or len(value["keys"]) > MAX_KEYS:
        raise ValueError("not a key set")
    keys = {}
    for jwk in value["keys"]:
        try:
            keys[str(jwk["kid"])] = parse_key(jwk)
        except (BadKey, KeyError, TypeError, ValueError, jwt.PyJWTError) as error:
            log.info("key_left_out", why=str(error)[:200])
    return keys


def parse_key(jwk: Mapping[str, Any]) -> Key:
    """One public signing key (RFC 7517); symmetric and private ones are refused."""
    if jwk.get("use", "sig") != "sig":
        raise BadKey("not for signatures")
    if "d" in jwk or "k" in jwk:
        raise BadKey("not public")
    key = jwt.PyJWK(dict(jwk)).key
    named = jwk.get("alg")
    possible = _algorithms_of(key)
    algorithms = possible if named is None else possible & {named}
    if not algorithms:
        raise BadKey("its alg is not one of its kind")
    return Key(key, algorithms)


def _algorithms_of(key: Any) -> frozenset[str]:
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return _RSA_OF_JWK
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES:
        return frozenset({CURVES[key.curve.name]})
    if isinstance(key, Ed25519PublicKey):
        return frozenset({"EdDSA"})
    raise BadKey("of a kind or size that is not accepted")


async def fetch_guarded(url: str) -> bytes:
    """GET by https (http only from this machine): no redirects, 5 s, 256 KB, no proxy, no cookies."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError("a key set is fetched by https")
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
    ):
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        body = await response.content.read(MAX_BYTES + 1)
        while len(body) <= MAX_BYTES and not response.content.at_eof():
            body += await response.content.read(MAX_BYTES + 1 - len(body))
        if len(body) > MAX_BYTES:
            raise ValueError("too large")
        return body
