"""A software authenticator with the browser around it: makes passkeys and uses them, as WebAuthn Level 3 has it, with
ES256. A test can have it do wrong in every part."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from sessions.ids import decode, encode

UP, UV, BE, BS, AT = 0x01, 0x04, 0x08, 0x10, 0x40


def raw(text: str) -> bytes:
    value = decode(text)
    assert value is not None
    return value


@dataclass
class Key:
    """One passkey: `user` is the user handle that it was made with."""

    id: bytes
    private: ec.EllipticCurvePrivateKey
    user: bytes
    count: int = 0

    @property
    def name(self) -> str:
        return encode(self.id)


@dataclass
class Authenticator:
    """`counts`: whether its counters move; they stand at 0 on most of today's."""

    origin: str = "http://localhost:8000"
    counts: bool = False
    flags: int = UP | UV
    rp_id: str | None = None
    cross_origin: bool = False
    keys: list[Key] = field(default_factory=list)

    def create(self, options: dict[str, Any], *, fmt: str = "none", statement: Any = None) -> dict[str, Any]:
        """`navigator.credentials.create`, and `toJSON`."""
        assert options["authenticatorSelection"]["userVerification"] == "required"
        assert {"type": "public-key", "alg": -7} in options["pubKeyCredParams"]
        key = Key(os.urandom(16), ec.generate_private_key(ec.SECP256R1()), raw(options["user"]["id"]))
        self.keys.append(key)
        numbers = key.private.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        attested = bytes(16) + len(key.id).to_bytes(2, "big") + key.id + cbor2.dumps(cose)
        data = self._data(options["rp"]["id"], key, AT) + attested
        client = self._client("webauthn.create", options)
        if statement == "self":
            statement = {"alg": -7, "sig": key.private.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(SHA256()))}
        whole = cbor2.dumps({"fmt": fmt, "attStmt": statement or {}, "authData": data})
        return self._answer(
            key,
            {
                "clientDataJSON": encode(client),
                "attestationObject": encode(whole),
                "transports": ["internal", "hybrid", "a new one"],
                "publicKeyAlgorithm": -7,
            },
        )

    def get(self, options: dict[str, Any], key: Key | None = None) -> dict[str, Any]:
        """`navigator.credentials.get`, and `toJSON`."""
        assert options["userVerification"] == "required"
        allowed = [one["id"] for one in options["allowCredentials"]]
        key = key or next(key for key in self.keys if not allowed or key.name in allowed)
        if self.counts:
            key.count += 1
        data, client = self._data(options["rpId"], key), self._client("webauthn.get", options)
        signature = key.private.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(SHA256()))
        return self._answer(
            key,
            {
                "clientDataJSON": encode(client),
                "authenticatorData": encode(data),
                "signature": encode(signature),
                "userHandle": encode(key.user),
            },
        )

    def _data(self, rp_id: str, key: Key, more: int = 0) -> bytes:
        site = hashlib.sha256((self.rp_id or rp_id).encode()).digest()
        return site + bytes([self.flags | more]) + key.count.to_bytes(4, "big")

    def _client(self, kind: str, options: dict[str, Any]) -> bytes:
        said = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps({**said, "crossOrigin": self.cross_origin}).encode()

    @staticmethod
    def _answer(key: Key, response: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": key.name,
            "rawId": key.name,
            "type": "public-key",
            "response": response,
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
        }
