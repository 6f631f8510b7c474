"""Tokens of other issuers: the reference's work unchanged, and nobody speaks for someone else's users."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from auth import jwks
from auth.errors import AnonymousNotAllowed, TokenExpired, TokenInvalid
from auth.external import AHEAD, ConnectToken, ExternalTokens, ServerSub, SubscriptionGrant
from auth.jwks import KeySet, fetch_guarded, parse_set
from auth.tokens import UnknownKey, apart, digest
from config.clock import FakeClock
from config.settings import Client

SECRET = "a shared secret of more than thirty-two bytes"
NOW = 1_800_000_000.0

Fetch = Callable[[str], Any]


async def no_fetch(url: str) -> bytes:
    raise AssertionError(f"fetched {url}")


class Bench:
    """A verifier with settings, at a moment that the test moves."""

    def __init__(self, fetch: Fetch = no_fetch, **client: Any) -> None:
        self.clock = FakeClock()
        self.now = NOW
        settings = Client.model_validate({"token": {"hmac_secret_key": SECRET}} | client)
        self.external = ExternalTokens(settings, now=lambda: self.now, clock=self.clock, fetch=fetch)

    def connect(self, token: str) -> ConnectToken:
        key = digest(token)
        return self.external.recall(key) or self.external.verify(key, apart(token))

    def subscribe(self, token: str) -> SubscriptionGrant:
        return self.external.subscription(apart(token))

    def refused(self, token: str) -> TokenInvalid:
        with pytest.raises(TokenInvalid) as caught:
            self.connect(token)
        assert not self.external._remembered
        return caught.value


def hs(claims: Mapping[str, Any], *, secret: str = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    return jwt.encode(dict(claims), secret, algorithm, headers=header or None)


def hs_raw(payload: str | bytes, header: str = '{"alg":"HS256","typ":"JWT"}') -> str:
    raw = payload.encode() if isinstance(payload, str) else payload
    signed = b".".join(base64.urlsafe_b64encode(x).rstrip(b"=") for x in (header.encode(), raw))
    mac = jwt.get_algorithm_by_name("HS256").sign(signed, SECRET.encode())
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


bench = Bench()


def test_sec_32_an_issuers_clock_may_be_ahead_but_not_by_more_than_a_minute() -> None:
    bench = Bench()
    token = hs({"sub": "42", "exp": NOW + 7200, "iat": NOW + 3600})
    bench.refused(token)
    bench.now = NOW + 3600 - AHEAD
    assert bench.connect(token).session.iat == NOW + 3600
    grant = hs({"sub": "42", "channel": "c", "iat": NOW + 7200})
    with pytest.raises(TokenInvalid):
        bench.subscribe(grant)


# -- the reference's tokens


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_proto_18_a_connection_token_of_a_backend(algorithm: str) -> None:
    token = bench.connect(hs({"sub": "42", "exp": NOW + 60, "iat": NOW - 1, "jti": "j"}, algorithm=algorithm))
    assert (token.session.issuer, token.session.subject, token.session.jti) == ("", "42", "j")
    assert (token.session.iat, token.good_until, token.expires_at) == (NOW - 1, NOW + 60, NOW + 60)
    assert not token.own_sid


def test_proto_18_all_claims_that_the_reference_reads() -> None:
    token = bench.connect(
        hs(
            {
                "sub": "42",
                "sid": "s",
                "exp": NOW + 60.5,
                "nbf": NOW,
                "info": {"name": "Zoë"},
                "meta": {"role": "x"},
                "channels": ["ignored"],
                "subs": {
                    "a": {"info": {"i": 1}, "data": {"d": 1}, "override": {"presence": {"value": True}}},
                    "b": {"b64info": base64.b64encode(b"\x00\xff").decode(), "b64data": "eA=="},
                    "c": None,
                    "d": {"override": {"join_leave": {}, "force_recovery": {"value": True}, "unknown": 1}},
                },
                "expire_at": 0,
                "unknown": [1, 2],
            }
        )
    )
    assert token.own_sid
    assert (json.loads(token.info), json.loads(token.meta)) == ({"name": "Zoë"}, {"role": "x"})
    assert token.subs == {
        "a": ServerSub(info=b'{"i":1}', data=b'{"d":1}', presence=True),
        "b": ServerSub(info=b"\x00\xff", data=b"x"),
        "c": ServerSub(),
        "d": ServerSub(join_leave=False, force_recovery=True),
    }
    assert token.expires_at is None
    assert token.good_until == NOW + 60.5


def test_proto_18_channels_without_options() -> None:
    assert bench.connect(hs({"sub": "42", "channels": ["a", "b"]})).subs == {"a": ServerSub(), "b": ServerSub()}
    assert bench.connect(hs({"sub": "42", "channels": []})).subs == {}


def test_b64info_wins_over_info_and_null_is_nothing() -> None:
    assert bench.connect(hs({"sub": "42", "info": {"a": 1}, "b64info": "e30="})).info == b"{}"
    assert bench.connect(hs({"sub": "42", "info": None, "b64info": None, "exp": None})).info == b""
    bench_refused = Bench()
    for bad in ("e30", "e3 0=", "\u00e9"):
        bench_refused.refused(hs({"sub": "42", "b64info": bad}))


def test_json_that_is_spliced_into_frames_stays_in_one_line() -> None:
    token = bench.connect(hs_raw('{"sub": "42", "info": {\n "a b": "c  d\\n",\r\n "e": [1,\n2]}, "meta": {"x":  1}}'))
    assert token.info == b'{"a b":"c  d\\n","e":[1,2]}'
    assert token.meta == b'{"x":  1}'  # byte for byte where it can be


def test_a_token_without_an_end_does_not_end() -> None:
    token = bench.connect(hs({"sub": "42"}))
    assert (token.good_until, token.expires_at, token.session.iat) == (None, None, None)


def test_proto_16_17_expired_and_not_yet_are_109() -> None:
    for claims in (
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": 0},
        {"nbf": NOW + 1},
        {"nbf": NOW + 0.1, "exp": NOW + 60},
        {"exp": NOW + 60, "expire_at": int(NOW) - 1},
    ):
        with pytest.raises(TokenExpired):
            bench.connect(hs({"sub": "42"} | claims))


def test_expiry_is_asked_on_every_use() -> None:
    moved = Bench()
    token = hs({"sub": "42", "exp": NOW + 10})
    moved.connect(token)
    moved.now += 10
    with pytest.raises(TokenExpired):
        moved.connect(token)


def test_proto_17_what_is_no_token_is_invalid() -> None:
    fresh = Bench()
    good = {"sub": "42", "exp": NOW + 60}
    for token in (
        hs(good, secret=SECRET + "x"),
        hs(good)[:-1],
        hs(good) + "x",
        jwt.encode(good, "", "none"),
        hs(good | {"sub": 42}),
        hs(good | {"sub": ["42"]}),
        hs(good | {"sub": True}),
        hs(good | {"channel": "c"}),
        hs(good | {"exp": str(NOW + 60)}),
        hs(good | {"exp": True}),
        hs(good | {"exp": 1e300}),
        hs(good | {"exp": 10**40}),
        hs(good | {"exp": [1]}),
        hs(good | {"iat": -5}),
        hs(good | {"iat": 1e300}),
        hs(good | {"iat": NOW + AHEAD + 1}),
        hs(good | {"iat": NOW + 3600, "exp": NOW + 7200}),
        hs(good | {"nbf": "soon"}),
        hs(good | {"expire_at": 1.5}),
        hs(good | {"expire_at": 10**30}),
        hs(good | {"channels": "a"}),
        hs(good | {"channels": [1]}),
        hs(good | {"subs": ["a"]}),
        hs(good | {"subs": {"a": 1}}),
        hs(good | {"subs": {"a": {"override": {"presence": True}}}}),
        hs(good | {"sid": 1}),
        hs(good | {"jti": 1}),
        hs(good | {"aud": 1}),
        hs(good | {"sub": "a\x00b"}),
        hs(good | {"sub": "x" * 513}),
        hs(good | {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
        hs(good, typ="logout+jwt"),
        hs(good, typ="secevent+jwt"),
        hs(good, crit=["exp"]),
        hs(good, jku="https://evil.example"),
        hs_raw('{"sub":"1","sub":"42"}'),
        hs_raw('{"sub":"42","info":{"a":1,"a":2}}'),
        hs_raw('{"sub":"42","exp":NaN}'),
        hs_raw('{"sub":"42","exp":1e999}'),
        hs_raw('{"sub":"\\ud800"}'),
        hs_raw(b'{"sub":"\xff"}'),
        hs_raw('["sub"]'),
        hs_raw("{}x"),
        hs_raw('{"sub":"42"}', '{"alg":"HS256","alg":"HS256"}'),
        hs_raw('{"sub":"42"}', '{"alg":"hs256"}'),
        hs_raw('{"sub":"42"}', '{"alg":["HS256"]}'),
        hs_raw('{"sub":"42"}', "{}"),
        hs_raw('{"sub":"42","info":"' + "x" * 4096 + '"}'),
        "",
        "garbage",
        "a.b.c",
    ):
        with pytest.raises(TokenInvalid):
            fresh.connect(token)
    assert not fresh.external._remembered


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_types_of_real_issuers_are_taken(typ: str) -> None:
    assert bench.connect(hs({"sub": "42"}, typ=typ)).session.subject == "42"


def test_without_a_key_nothing_is_taken() -> None:
    Bench(token={}).refused(hs({"sub": "42"}))


# -- who may name whom


def test_no_external_token_speaks_for_an_account_of_ours() -> None:
    fresh = Bench()
    for sub in ("u_" + "a" * 26, "u_", "u_x"):
        fresh.refused(hs({"sub": sub}))
    assert fresh.connect(hs({"sub": "U_x"})).session.subject == "U_x"


def test_a_named_issuer_has_users_of_its_own() -> None:
    two = Bench(issuers=[{"name": "corp", "issuer": "https://corp.example", "hmac_secret_key": "c" * 40}])
    claims = {"sub": "42", "iss": "https://corp.example"}
    token = two.connect(hs(claims, secret="c" * 40))
    assert (token.session.issuer, token.session.subject) == ("corp", "corp:42")
    two.external._remembered.clear()
    two.refused(hs(claims))  # the default issuer's key does not sign for it
    two.refused(hs({"sub": "42"}, secret="c" * 40))  # nor does its key for the default issuer
    two.refused(hs({"sub": "corp:42"}))  # and the default issuer cannot name its users
    assert two.connect(hs({"sub": "42"})).session.subject == "42"


def test_a_named_issuer_without_iss_setting_must_say_its_name() -> None:
    named = Bench(issuers=[{"name": "corp", "hmac_secret_key": "c" * 40}])
    assert named.connect(hs({"sub": "u_1", "iss": "corp"}, secret="c" * 40)).session.subject == "corp:u_1"
    named.external._remembered.clear()
    named.refused(hs({"sub": "1", "iss": "other"}, secret="c" * 40))


def test_issuer_and_audience_are_demanded_where_they_are_set() -> None:
    strict = Bench(token={"hmac_secret_key": SECRET, "issuer": "me", "audience": "you"})
    good = {"sub": "42", "iss": "me", "aud": "you"}
    strict.connect(hs(good))
    strict.connect(hs(good | {"aud": ["others", "you"]}))
    changes: list[dict[str, Any]] = [{"iss": "he"}, {"iss": ""}, {"aud": "they"}, {"aud": []}, {"aud": None}]
    for claims in (*(good | change for change in changes), {"sub": "42", "aud": "you"}, {"sub": "42", "iss": "me"}):
        with pytest.raises(TokenInvalid):
            strict.connect(hs(claims))


def test_another_claim_may_name_the_user() -> None:
    other = Bench(token={"hmac_secret_key": SECRET, "user_id_claim": "uid"})
    assert other.connect(hs({"sub": "x", "uid": "7"})).session.subject == "7"
    assert other.connect(hs({"uid": 7})).session.subject == "7"
    assert other.connect(hs({"sub": "x"})).session.subject == ""
    other.external._remembered.clear()
    values: list[Any] = [True, 1.5, [], {}]
    for value in values:
        other.refused(hs({"uid": value}))


def test_an_anonymous_token_is_taken_unless_the_settings_say_no() -> None:
    for claims in ({"sub": ""}, {}, {"sub": None}):
        assert bench.connect(hs(claims)).session.subject == ""
        with pytest.raises(AnonymousNotAllowed):
            Bench(disallow_anonymous_connection_tokens=True).connect(hs(claims))


# -- asymmetric keys


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


RSA = rsa.generate_private_key(65537, 2048)
P256, P384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))


def test_public_keys_of_the_settings() -> None:
    both = Bench(token={"rsa_public_key": pem(RSA), "ecdsa_public_key": pem(P384)})
    for algorithm in ("RS256", "RS384", "RS512"):
        assert both.connect(jwt.encode({"sub": "42"}, RSA, algorithm)).session.subject == "42"
    assert both.connect(jwt.encode({"sub": "42"}, P384, "ES384")).session.subject == "42"
    both.external._remembered.clear()
    both.refused(jwt.encode({"sub": "42"}, RSA, "PS256"))
    both.refused(jwt.encode({"sub": "42"}, P256, "ES256"))
    both.refused(hs({"sub": "42"}))


def test_sec_30_a_public_key_is_no_shared_secret() -> None:
    both = Bench(token={"rsa_public_key": pem(RSA), "hmac_secret_key": SECRET})
    signed = hs_raw('{"sub":"42"}').rpartition(".")[0]
    mac = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), pem(RSA).encode())
    both.refused(signed + "." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode())


# -- key sets


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    names = {"RSAPrivateKey": "RS256", "ECPrivateKey": "ES256", "Ed25519PrivateKey": "EdDSA"}
    algorithm = jwt.get_algorithm_by_name(names[type(key).__name__])
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **more}


class Issuer:
    """An issuer's key set, as the fetcher sees it."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys, self.asked, self.away = list(keys), 0, False

    async def fetch(self, url: str) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise OSError
        return json.dumps({"keys": self.keys}).encode()


URL = "https://issuer.example/jwks"


def with_set(issuer: Issuer) -> Bench:
    return Bench(issuer.fetch, token={"jwks_public_endpoint": URL, "hmac_secret_key": SECRET})


async def connect(bench: Bench, token: str) -> ConnectToken:
    """As Identity does: at most one look."""
    try:
        return bench.connect(token)
    except UnknownKey:
        await bench.external.look(apart(token))
        return bench.connect(token)


async def test_proto_18_keys_of_a_set() -> None:
    ed = ed25519.Ed25519PrivateKey.generate()
    issuer = Issuer(jwk(RSA, kid="r"), jwk(P256, kid="e"), jwk(ed, kid="d", alg="EdDSA"))
    bench = with_set(issuer)
    for key, algorithm, kid in ((RSA, "RS256", "r"), (RSA, "PS256", "r"), (P256, "ES256", "e"), (ed, "EdDSA", "d")):
        token = await connect(bench, jwt.encode({"sub": "42"}, key, algorithm, headers={"kid": kid}))
        assert token.session.subject == "42"
    assert issuer.asked == 1


async def test_sec_30_43_a_set_signs_only_as_it_says() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it is refused
    secret = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    issuer = Issuer(
        jwk(RSA, kid="r", alg="RS512"),
        jwk(P256, kid="enc", use="enc"),
        jwk(P256, kid="e"),
        jwk(weak, kid="w"),
        {"kty": "oct", "k": secret, "kid": "h", "alg": "HS256"},
        {"kid": "x", "kty": "RSA"},
        {"kty": "EC"},
    )
    bench = with_set(issuer)
    good = jwt.encode({"sub": "42"}, RSA, "RS512", headers={"kid": "r"})
    assert (await connect(bench, good)).session.subject == "42"
    bench.external._remembered.clear()
    for token in (
        jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "r"}),  # not its alg
        jwt.encode({"sub": "42"}, P256, "ES256", headers={"kid": "enc"}),
        jwt.encode({"sub": "42"}, P256, "ES256", headers={"kid": "r"}),
        jwt.encode({"sub": "42"}, P256, "ES256"),
        hs({"sub": "42"}, kid="h"),
        hs({"sub": "42"}, kid="r"),
        hs({"sub": "42"}),  # where a set is named, the secret counts no more
    ):
        bench.refused(token)


@pytest.mark.filterwarnings("ignore:The RSA key")
async def test_sec_35_a_flood_of_unknown_kids_fetches_nothing() -> None:
    issuer = Issuer(jwk(RSA, kid="r"))
    bench = with_set(issuer)
    await connect(bench, jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "r"}))
    flood = [jwt.encode({"sub": "42"}, P256, "ES256", headers={"kid": f"k{i}"}) for i in range(50)]
    for token in flood:
        with pytest.raises(TokenInvalid):
            await connect(bench, token)
    assert issuer.asked == 1
    bench.clock.advance(jwks.GAP)
    answers = await asyncio.gather(*(connect(bench, token) for token in flood), return_exceptions=True)
    assert all(isinstance(answer, TokenInvalid) for answer in answers)
    assert issuer.asked == 2


async def test_sec_43_many_wait_for_one_fetch_and_a_failure_is_not_repeated_at_once() -> None:
    issuer = Issuer(jwk(RSA, kid="r"))
    issuer.away = True
    bench = with_set(issuer)
    token = jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "r"})
    for _ in range(3):
        answers = await asyncio.gather(*(connect(bench, token) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(answer, TokenInvalid) for answer in answers)
    assert issuer.asked == 1
    issuer.away = False
    bench.clock.advance(jwks.GAP)
    assert (await connect(bench, token)).session.subject == "42"
    issuer.away = True
    bench.clock.advance(jwks.OLD + 1)
    assert (await connect(bench, token)).session.subject == "42"  # what is known is good while the issuer is away


async def test_a_key_that_left_the_set_signs_no_more() -> None:
    issuer = Issuer(jwk(RSA, kid="r"), jwk(P256, kid="e"))
    bench = with_set(issuer)
    stays, goes = (
        jwt.encode({"sub": "42"}, key, algorithm, headers={"kid": kid})
        for key, algorithm, kid in ((P256, "ES256", "e"), (RSA, "RS256", "r"))
    )
    await connect(bench, goes)
    issuer.keys.pop(0)
    bench.clock.advance(jwks.GAP)
    await bench.external.look(apart(goes))
    with pytest.raises(TokenInvalid):
        await connect(bench, goes)
    assert (await connect(bench, stays)).session.subject == "42"


async def test_a_key_that_was_replaced_under_its_name_went_on_for_tokens_seen_before() -> None:
    issuer = Issuer(jwk(RSA, kid="k"))
    bench = with_set(issuer)
    stolen = jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "k"})
    await connect(bench, stolen)
    issuer.keys[:] = [jwk(P256, kid="k")]
    bench.clock.advance(jwks.GAP)
    await bench.external.look(apart(stolen))
    with pytest.raises(TokenInvalid):
        await connect(bench, stolen)


async def test_the_same_keys_again_cost_nobody_another_verification() -> None:
    issuer = Issuer(jwk(RSA, kid="k"))
    bench = with_set(issuer)
    token = jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "k"})
    await connect(bench, token)
    bench.clock.advance(jwks.GAP)
    await bench.external.look(apart(token))
    assert issuer.asked == 2
    assert bench.external.recall(digest(token)) is not None


async def test_a_cancelled_waiter_does_not_cancel_the_fetch() -> None:
    issuer = Issuer(jwk(RSA, kid="r"))
    bench = with_set(issuer)
    token = jwt.encode({"sub": "42"}, RSA, "RS256", headers={"kid": "r"})
    first, second = (asyncio.create_task(connect(bench, token)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).session.subject == "42"
    assert issuer.asked == 1


async def test_sec_43_the_same_kid_of_two_issuers_is_two_keys() -> None:
    other = rsa.generate_private_key(65537, 2048)
    sets = {"https://a.example/": jwk(RSA, kid="k"), "https://b.example/": jwk(other, kid="k")}

    async def fetch(url: str) -> bytes:
        return json.dumps({"keys": [sets[url]]}).encode()

    issuers = [
        {"name": n, "issuer": f"https://{n}.example", "jwks_public_endpoint": f"https://{n}.example/"} for n in "ab"
    ]
    bench = Bench(fetch, issuers=issuers)
    for key, mine, others in ((RSA, "a", "b"), (other, "b", "a")):
        good = jwt.encode({"sub": "1", "iss": f"https://{mine}.example"}, key, "RS256", headers={"kid": "k"})
        evil = jwt.encode({"sub": "1", "iss": f"https://{others}.example"}, key, "RS256", headers={"kid": "k"})
        assert (await connect(bench, good)).session.subject == f"{mine}:1"
        with pytest.raises(TokenInvalid):
            await connect(bench, evil)


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"keys":{}}', b"<html>", b'{"keys":[' + b"{}," * 100 + b"{}]}"])
def test_what_is_no_key_set(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_set(bad)


@pytest.fixture
async def server() -> Any:
    """A web server that behaves as its path says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        match request.match_info["kind"]:
            case "good":
                return web.json_response({"keys": []})
            case "redirect":
                raise web.HTTPFound("/good")
            case "large":
                return web.Response(body=b"x" * (jwks.MAX_BYTES + 1))
            case "slow":
                await asyncio.sleep(60)
            case "missing":
                raise web.HTTPNotFound
        raise AssertionError

    app = web.Application()
    app.router.add_get("/{kind}", answer)
    async with TestServer(app) as server:
        yield server


async def test_sec_43_a_fetch_is_guarded(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.2)
    assert await fetch_guarded(str(server.make_url("/good"))) == b'{"keys": []}'
    for kind in ("redirect", "large", "missing"):
        with pytest.raises(ValueError, match=r"status|large"):
            await fetch_guarded(str(server.make_url(f"/{kind}")))
    with pytest.raises(TimeoutError):
        await fetch_guarded(str(server.make_url("/slow")))
    for url in ("http://issuer.example/jwks", "file:///etc/passwd", "ftp://127.0.0.1/x", "//x", "data:,x", ""):
        with pytest.raises(ValueError, match="https"):
            await fetch_guarded(url)


async def test_a_set_is_looked_at_no_more_than_it_helps() -> None:
    issuer = Issuer()
    keys = KeySet(URL, issuer.fetch, clock=FakeClock(), changed=lambda: None)
    assert keys.worth_a_look()
    await keys.look()
    assert not keys.worth_a_look()
    await keys.look()
    assert keys.fetches == 1


# -- subscription tokens


def test_proto_26_a_subscription_token() -> None:
    grant = bench.subscribe(
        hs({"sub": "42", "channel": "$c", "client": "abc", "exp": NOW + 60, "info": {"i": 1}, "b64data": "eA=="})
    )
    assert grant == SubscriptionGrant("$c", "42", "abc", ServerSub(info=b'{"i":1}', data=b"x"), NOW + 60)
    assert bench.subscribe(hs({"sub": "42", "channel": "c", "exp": NOW + 9, "expire_at": 0})).expires_at is None
    assert bench.subscribe(hs({"channel": "c"})) == SubscriptionGrant("c", "", "", ServerSub(), None)
    with pytest.raises(TokenExpired):
        bench.subscribe(hs({"sub": "42", "channel": "c", "exp": NOW}))
    with pytest.raises(TokenExpired):
        bench.subscribe(hs({"sub": "42", "channel": "c", "expire_at": int(NOW) - 1}))
    for token in (hs({"sub": "42"}), hs({"sub": "42", "channel": ""}), hs({"sub": 42, "channel": "c"}), "garbage"):
        with pytest.raises(TokenInvalid):
            bench.subscribe(token)


def test_a_backend_may_let_accounts_of_ours_into_channels() -> None:
    user = "u_" + "a" * 26
    assert bench.subscribe(hs({"sub": user, "channel": "$c"})).user == user


def test_a_named_issuer_grants_to_its_users_only() -> None:
    named = Bench(issuers=[{"name": "corp", "hmac_secret_key": "c" * 40}])
    assert named.subscribe(hs({"sub": "1", "iss": "corp", "channel": "c"}, secret="c" * 40)).user == "corp:1"


def test_subscription_tokens_may_have_keys_of_their_own() -> None:
    own = Bench(subscription_token={"enabled": True, "hmac_secret_key": "s" * 40})
    token = hs({"sub": "42", "channel": "c"}, secret="s" * 40)
    assert own.subscribe(token).channel == "c"
    with pytest.raises(TokenInvalid):
        own.subscribe(hs({"sub": "42", "channel": "c"}))
    own.refused(hs({"sub": "42"}, secret="s" * 40))


def test_a_key_that_is_called_by_an_algorithm_of_another_curve_or_kind_is_left_out() -> None:
    keys = [
        jwk(P256, kid="curve", alg="ES384"),
        jwk(P256, kid="kind", alg="RS256"),
        jwk(P256, kid="right", alg="ES256"),
    ]
    assert set(parse_set(json.dumps({"keys": keys}).encode())) == {"right"}


async def test_a_set_that_is_old_is_fetched_again_and_nobody_waits_for_it() -> None:
    issuer = Issuer(jwk(P256, kid="e"))
    bench = with_set(issuer)
    token = jwt.encode({"sub": "42"}, P256, "ES256", headers={"kid": "e"})
    await connect(bench, token)
    bench.external._remembered.clear()
    bench.clock.advance(jwks.OLD + 1)
    assert bench.connect(token).session.subject == "42"
    await asyncio.sleep(0)
    assert issuer.asked == 2
