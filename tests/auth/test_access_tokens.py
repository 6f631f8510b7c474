"""Access tokens: what we make verifies, and nothing else does. PyJWT and joserfc are asked for a second opinion."""

import base64
import json
import random
import uuid
from typing import Any

import joserfc.jwk
import joserfc.jwt
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from auth import keys as signing
from auth.errors import TokenExpired, TokenInvalid
from auth.jws import encode
from auth.keys import Keys, key_sealer
from auth.tokens import AHEAD, AccessTokens, Claims, UnknownKey, apart, digest
from config.clock import FakeClock
from config.database import Pool
from config.settings import Auth, Settings
from sessions.model import Position, Reading, Session, Subject

NOW = 1_800_000_000.5
POSITION = Position((3 << 32) + 7, uuid.UUID(int=5).hex)


def reading(*, absolute: float = 86400.0, idle: float = 3600.0, roles: tuple[str, ...] = ("admin",)) -> Reading:
    subject = Subject("u_" + "a" * 26, True, 1, roles)
    session = Session("0190-sid", subject, "token", "", (3 << 32) + 2, NOW, NOW, NOW + absolute, idle)
    return Reading(session, POSITION, NOW)


class Bench:
    """Tokens over real keys, at a moment that the test moves."""

    def __init__(self, keys: Keys) -> None:
        self.now = NOW
        self.keys = keys
        self.tokens = AccessTokens(keys, Auth(), now=lambda: self.now)

    def verify(self, token: str) -> Claims:
        key = digest(token)
        return self.tokens.recall(key) or self.tokens.verify(key, apart(token))

    def sign(self, header: bytes | None = None, payload: bytes | None = None, change: Any = ()) -> str:
        """A token signed by our active key, with whatever header and claims; `...` takes a claim away."""
        key = self.keys.active
        claims = json.loads(base64.urlsafe_b64decode(self.tokens.make(reading())[0].split(".")[1] + "=="))
        for name, value in dict(change).items():
            claims.pop(name, None)
            if value is not Ellipsis:
                claims[name] = value
        head = header or json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}).encode()
        signed = encode(head) + "." + encode(payload or json.dumps(claims).encode())
        signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), key.private)
        return f"{signed}.{encode(signature)}"


@pytest.fixture
def bench(keys: Keys) -> Bench:
    return Bench(keys)


def test_what_we_make_says_what_it_says(bench: Bench) -> None:
    token, expires_in = bench.tokens.make(reading())
    assert expires_in == 600
    made = bench.verify(token)  # as it is remembered from the making
    bench.tokens._remembered.clear()
    claims = bench.verify(token)  # and as its signature and its words say
    assert claims == made
    assert (claims.sub, claims.sid, claims.roles) == ("u_" + "a" * 26, "0190-sid", ("admin",))
    assert (claims.position, claims.born) == (POSITION, (3 << 32) + 2)
    assert (claims.iat, claims.exp) == (int(NOW), int(NOW) + 600)
    header, payload = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    assert header == {"typ": "at+jwt", "alg": "ES256", "kid": bench.keys.active.kid}
    standard = {"iss", "aud", "sub", "sid", "iat", "exp", "jti", "roles", "auth_time"}
    assert set(payload) == {*standard, "pos", "aal", "idle"}
    assert payload["pos"] == f"{POSITION}:{(3 << 32) + 2:x}"
    assert token != bench.tokens.make(reading())[0]


async def test_eddsa_by_setting(pool: Pool, settings: Settings, clock: FakeClock) -> None:
    ring = Keys(pool, key_sealer(settings.sessions), "EdDSA", clock=clock)
    await ring.start()
    bench = Bench(ring)
    token, _ = bench.tokens.make(reading())
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"
    bench.tokens._remembered.clear()
    assert bench.verify(token).sid == "0190-sid"
    await ring.close()


def test_a_token_ends_with_its_session_at_the_latest(bench: Bench) -> None:
    for session, life in (
        (reading(absolute=100), 100),
        (reading(idle=60), 60),
        (reading(absolute=0.2), 0),
        (reading(), 600),
    ):
        token, expires_in = bench.tokens.make(session)
        assert expires_in == life
        assert jwt.decode(token, options={"verify_signature": False})["exp"] <= NOW + life


def test_expiry_is_asked_on_every_use(bench: Bench) -> None:
    token, _ = bench.tokens.make(reading())
    bench.verify(token)
    assert bench.tokens.recall(digest(token)) is not None
    bench.now += 600
    with pytest.raises(TokenExpired):
        bench.verify(token)
    bench.now -= 1
    assert bench.verify(token).sid == "0190-sid"


async def test_sec_34_a_remembered_token_of_a_retired_key_is_refused(
    pool: Pool, settings: Settings, bench: Bench
) -> None:
    token, _ = bench.tokens.make(reading())
    bench.verify(token)
    async with pool.acquire() as connection, connection.transaction():
        await signing.rotate(connection, key_sealer(settings.sessions), "ES256", now=True)
        await signing.retire(connection, 600, bench.keys.active.kid, now=True)
    await bench.keys.load()
    with pytest.raises(TokenInvalid):
        bench.verify(token)


async def test_sec_34_no_token_fails_across_a_rotation(
    pool: Pool, settings: Settings, bench: Bench, clock: FakeClock
) -> None:
    behind = Keys(pool, key_sealer(settings.sessions), "ES256", clock=clock)
    await behind.load()
    other = AccessTokens(behind, Auth(), now=lambda: NOW)
    before, _ = bench.tokens.make(reading())
    async with pool.acquire() as connection, connection.transaction():
        await signing.rotate(connection, key_sealer(settings.sessions), "ES256", now=True)
    await bench.keys.load()
    after, _ = bench.tokens.make(reading())
    for token in (before, after):
        assert bench.verify(token).sid == "0190-sid"
        assert other.verify(digest(token), apart(token)).sid == "0190-sid"


# -- what is refused


def refused(bench: Bench, token: str) -> TokenInvalid:
    with pytest.raises(TokenInvalid) as caught:
        bench.verify(token)
    assert digest(token) not in bench.tokens._remembered
    return caught.value


def test_sec_30_other_algorithms_and_headers_are_refused(bench: Bench) -> None:
    key = bench.keys.active
    good = {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    assert isinstance(key.private, EllipticCurvePrivateKey)
    pem = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    bench.verify(bench.sign(json.dumps(good).encode()))
    changes: list[dict[str, Any]] = [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS256"},
        {"alg": "RS256"},
        {"alg": "ES384"},
        {"alg": "EdDSA"},
        {"alg": "es256"},
        {"alg": ["ES256"]},
        {"alg": None},
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"typ": None},
        {"typ": "logout+jwt"},
        {"typ": "secevent+jwt"},
        {"kid": None},
        {"kid": 1},
        {"kid": ["a"]},
        {"kid": {"a": 1}},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"jku": "https://evil.example/jwks"},
        {"jwk": key.jwk()},
        {"x5u": "https://evil.example/x"},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"cty": "JWT"},
        {"x5t": "abc"},
        {"unknown": 1},
    ]
    for change in changes:
        refused(bench, bench.sign(json.dumps(good | change).encode()))
    for missing in good:
        refused(bench, bench.sign(json.dumps({k: v for k, v in good.items() if k != missing}).encode()))
    # HS256 over the public key, and no signature at all
    signed = bench.sign().rpartition(".")[0]
    claims = signed.partition(".")[2]
    head = encode(json.dumps(good | {"alg": "HS256"}).encode())
    mac = jwt.get_algorithm_by_name("HS256").sign(f"{head}.{claims}".encode(), pem)
    refused(bench, f"{head}.{claims}.{encode(mac)}")
    for alg in ("none", "ES256"):
        head = encode(json.dumps(good | {"alg": alg}).encode())
        refused(bench, f"{head}.{claims}.")


def test_sec_30_a_key_in_the_header_signs_nothing(bench: Bench) -> None:
    own = joserfc.jwk.ECKey.generate_key("P-256")
    claims = jwt.decode(bench.tokens.make(reading())[0], options={"verify_signature": False})
    for kid in (bench.keys.active.kid, "evil"):
        forged = joserfc.jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": kid}, claims, own)
        refused(bench, forged)


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "sid", "iat", "exp", "jti", "roles", "pos"])
def test_sec_32_every_claim_is_required_and_of_its_type(bench: Bench, name: str) -> None:
    for value in (..., None, True, [], {}, 1.5, "", [1], {"a": "b"}):
        if (name, value) == ("roles", []):
            continue
        refused(bench, bench.sign(change={name: value}))


def test_sec_32_times_audiences_and_issuers(bench: Bench) -> None:
    now = int(NOW)
    for name, value in (
        ("aud", ["wardgate"]),
        ("aud", ["wardgate", "other"]),
        ("aud", "Wardgate"),
        ("aud", "wardgate "),
        ("iss", "wardgate/"),
        ("iss", "https://wardgate"),
        ("iss", ["wardgate"]),
        ("iat", now + 60),
        ("iat", -1),
        ("iat", 0),
        ("iat", str(now)),
        ("exp", now - 1000),
        ("exp", 10**20),
        ("exp", 1 << 62),
        ("exp", float(now + 100)),
        ("exp", str(now + 100)),
        ("exp", -1),
        ("pos", "1-2:3"),
        ("pos", f"{POSITION}"),
        ("pos", f"{POSITION}:"),
        ("pos", f"{POSITION}:zz"),
        ("pos", ":".join([str(POSITION)] * 3)),
        ("sub", 42),
        ("sid", 42),
        ("roles", "admin"),
        ("roles", ["admin", 1]),
    ):
        refused(bench, bench.sign(change={name: value}))
    bench.verify(bench.sign(change={"iat": int(NOW + AHEAD)}))
    with pytest.raises(TokenExpired):
        bench.verify(bench.sign(change={"exp": now, "iat": now - 10}))


def test_sec_32_33_json_that_is_not_one_clear_statement(bench: Bench) -> None:
    good = json.dumps(jwt.decode(bench.sign(), options={"verify_signature": False}))
    bench.verify(bench.sign(payload=good.encode()))
    for bad in (
        good.replace('"sub"', '"sub": "u_evil", "sub"', 1),
        good[:-1] + ', "x": {"a": 1, "a": 2}}',
        good.replace('"exp": ', '"exp": NaN, "y": '),
        good.replace('"exp": ', '"exp": 1e400, "y": '),
        good.replace('"exp": ', '"exp": 1e10, "y": '),
        good.replace('"exp": ', '"exp": Infinity, "y": '),
        good + "x",
        good + good,
        f"[{good}]",
        f'"{"x"}"',
        "\ufeff" + good,
        "",
    ):
        refused(bench, bench.sign(payload=bad.encode() or b" "))
    refused(bench, bench.sign(payload=good.encode("utf-16")))
    refused(bench, bench.sign(payload=good.encode().replace(b"0190", b"0\xff90")))


def test_sec_31_nothing_else_of_ours_passes_for_an_access_token(bench: Bench) -> None:
    for typ in ("JWT", "rt+jwt", "logout+jwt", "secevent+jwt", "id+jwt", "ticket"):
        refused(bench, bench.sign(json.dumps({"alg": "ES256", "typ": typ, "kid": bench.keys.active.kid}).encode()))
    for text in ("wgr_AAAA", "wgk_AAAA", "", "a.b.c", "Bearer x", bench.sign() + "\n", " " + bench.sign()):
        with pytest.raises(TokenInvalid):
            bench.verify(text)


def test_sec_35_a_long_token_is_refused_before_any_cryptography(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing.SigningKey, "verify", lambda *_: pytest.fail("verified"))
    with pytest.raises(TokenInvalid):
        bench.verify(bench.sign(change={"jti": "x" * 4096}))


def test_sec_35_an_unknown_kid_says_so_and_asks_nobody(bench: Bench) -> None:
    loads = bench.keys.loads
    for i in range(100):
        head = json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": f"{i:016x}"}).encode()
        with pytest.raises(UnknownKey):
            bench.verify(bench.sign(head))
    assert bench.keys.loads == loads


# -- second opinions


def accepts_pyjwt(token: str, bench: Bench) -> bool:
    try:
        key = bench.keys.active
        jwt.decode(
            token,
            key.private.public_key(),
            algorithms=["ES256"],
            audience="wardgate",
            issuer="wardgate",
            options={"require": ["exp", "iat", "sub", "jti", "aud", "iss"], "verify_exp": False, "verify_iat": False},
        )
    except (jwt.PyJWTError, ValueError, RecursionError, UnicodeError):
        return False
    return True


def accepts_joserfc(token: str, key: joserfc.jwk.ECKey) -> bool:
    try:
        return isinstance(joserfc.jwt.decode(token, key, algorithms=["ES256"]).claims, dict)
    except Exception:
        return False


def test_sec_36_two_thousand_mutated_tokens_are_refused_and_others_agree(bench: Bench) -> None:
    rng, token = random.Random(36), bench.tokens.make(reading())[0]
    key = joserfc.jwk.ECKey.import_key(bench.keys.active.jwk())
    assert bench.verify(token)
    assert accepts_pyjwt(token, bench)
    assert accepts_joserfc(token, key)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\x00é"
    respelt = 0
    for _ in range(2000):
        mutated = mutate(rng, token, alphabet)
        if mutated == token:
            continue
        with pytest.raises(TokenInvalid):
            bench.verify(mutated)
        # Lenient decoders take another spelling of the same bytes; nothing else is theirs to accept either.
        if accepts_pyjwt(mutated, bench) or accepts_joserfc(mutated, key):
            assert same_bytes(mutated, token)
            respelt += 1
    assert respelt < 200


def mutate(rng: random.Random, token: str, alphabet: str) -> str:
    kind, place = rng.randrange(6), rng.randrange(len(token))
    if kind == 0:
        return token[:place] + rng.choice(alphabet) + token[place + 1 :]
    if kind == 1:
        return token[:place] + token[place + 1 :]
    if kind == 2:
        return token[:place] + rng.choice(alphabet) + token[place:]
    if kind == 3:
        other = rng.randrange(len(token))
        low, high = sorted((place, other))
        return token[:low] + token[high] + token[low + 1 : high] + token[low] + token[high + 1 :]
    if kind == 4:
        return token[: place or 1]
    segments = token.split(".")
    i = rng.randrange(3)
    raw = bytearray(base64.urlsafe_b64decode(segments[i] + "=="))
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    segments[i] = encode(bytes(raw))
    return ".".join(segments)


def same_bytes(one: str, other: str) -> bool:
    def decoded(token: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(s + "=" * (-len(s) % 4)) for s in token.split(".")]

    return decoded(one) == decoded(other)


def test_a_token_of_another_library_with_our_key_is_ours(bench: Bench) -> None:
    """What counts is what is said and who signed it, not the order of names in it."""
    private = bench.keys.active.private
    key = joserfc.jwk.ECKey.import_key(private)  # type: ignore[arg-type]
    claims = jwt.decode(bench.tokens.make(reading())[0], options={"verify_signature": False})
    made = joserfc.jwt.encode({"kid": bench.keys.active.kid, "typ": "at+jwt", "alg": "ES256"}, claims, key)
    assert bench.verify(made).sid == "0190-sid"


def test_what_is_remembered_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.tokens._remembered, "_limit", 10)
    made = [bench.tokens.make(reading())[0] for _ in range(30)]
    for token in made:
        bench.verify(token)
    assert list(bench.tokens._remembered) == [digest(token) for token in made[-10:]]
