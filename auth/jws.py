"""Compact JWS (RFC 7515), taken apart strictly: one spelling per token, bounded, no duplicate names. Pure.

Nothing is verified here and nothing that is read here may be acted upon, but to choose which key must have signed.
"""

import base64
import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_LENGTH = 4096

# RFC 8725 3.10, RFC 7515 4.1.11: a header that brings its own key, or changes what is signed, is none of ours.
FORBIDDEN_HEADERS = frozenset({"crit", "b64", "jku", "jwk", "x5u"})


class Malformed(ValueError):
    """Not a compact JWS as we read them. The text says why, for logs."""


class Parts(NamedTuple):
    """One token, apart. `signed` is what the signature covers."""

    header: Mapping[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def split(token: str) -> Parts:
    """The parts of `token`, at most 4 KB of it. Raises Malformed; costs no cryptography."""
    if len(token) > MAX_LENGTH:
        raise Malformed("longer than 4 KB")
    if not token.isascii():
        raise Malformed("not ASCII")
    segments = token.encode().split(b".")
    if len(segments) != 3:
        raise Malformed("not three segments")
    header = _header(segments[0])
    signed = segments[0] + b"." + segments[1]
    return Parts(header, _decode(segments[1]), signed, _decode(segments[2]))


@functools.lru_cache(64)
def _header(segment: bytes) -> Mapping[str, Any]:
    """All tokens of an issuer share it."""
    header = read_object(_decode(segment))
    if not FORBIDDEN_HEADERS.isdisjoint(header):
        raise Malformed("a header that is not accepted")
    return MappingProxyType(header)


def read_object(raw: bytes) -> dict[str, Any]:
    """One JSON object in UTF-8, every name once (RFC 8725 3.4 by way of RFC 7519 4), no NaN or Infinity."""
    try:
        value = _strict(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value


def encode(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(segment: bytes) -> bytes:
    """base64url without padding, in its one canonical spelling: the unused bits of the last character are zero."""
    try:
        raw = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except ValueError:
        raise Malformed("not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != segment:
        raise Malformed("not canonical base64url")
    return raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice")
    return out


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_strict = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse).decode
