"""Public keys as the settings have them, in PEM: read, and refused where they are too weak or of another kind.

It loads `cryptography`: settings without such a key do not import it.
"""

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

MIN_RSA_BITS = 2048
CURVES: Mapping[str, str] = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""The algorithm of each curve that is taken."""


class BadKey(ValueError):
    """A key that cannot be used. The text says why, and nothing of the key."""


def rsa(pem: str) -> RSAPublicKey:
    """BadKey for what cannot verify RS256."""
    key: RSAPublicKey = _load(pem, RSAPublicKey, "RSA")
    if key.key_size < MIN_RSA_BITS:
        raise BadKey(f"this is one of fewer than {MIN_RSA_BITS} bits")
    return key


def ecdsa(pem: str) -> EllipticCurvePublicKey:
    """BadKey for what cannot verify ES256, ES384 or ES512."""
    key: EllipticCurvePublicKey = _load(pem, EllipticCurvePublicKey, "ECDSA")
    if key.curve.name not in CURVES:
        raise BadKey("this is not on P-256, P-384 or P-521")
    return key


def _load(pem: str, kind: type[Any], name: str) -> Any:
    if "PRIVATE KEY" in pem:
        raise BadKey("this is a private key: make a public one of it, and keep that one to whoever signs")
    if "\\n" in pem:
        raise BadKey("this has backslashes and n where lines must end")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("this cannot be read as one") from None
    if not isinstance(key, kind):
        raise BadKey(f"this is not an {name} key")
    return key
