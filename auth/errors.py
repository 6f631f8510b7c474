"""What a credential may be refused for: over HTTP a problem, on a live connection an error or a close code.

Problem                     (config.http)
├── TokenExpired            401 token_expired: was good once, or is not good yet              (error 109)
├── TokenInvalid            401 unauthenticated: never was a token of an issuer that we know  (close 3500)
│   └── AnonymousNotAllowed     its token names no user, and the settings want one            (close 3507)
└── SessionEnded            (sessions.errors) the session is over; `.ended` has the code      (close 45xx)
"""

from config.http import Problem
from sessions.errors import SessionEnded, Unavailable

__all__ = ["AnonymousNotAllowed", "SessionEnded", "TokenExpired", "TokenInvalid", "Unavailable"]


class TokenExpired(Problem):
    """`exp` has passed, or `nbf` lies ahead: the client comes back with a fresh token."""

    def __init__(self) -> None:
        super().__init__("token_expired")


class TokenInvalid(Problem):
    """Signature, format, type, issuer, audience or a claim is wrong. `why` is for logs: a caller is not told."""

    def __init__(self, why: str) -> None:
        super().__init__("unauthenticated", "this token is not valid")
        self.why = why


class AnonymousNotAllowed(TokenInvalid):
    """`client.disallow_anonymous_connection_tokens`."""

    def __init__(self) -> None:
        super().__init__("no user in the token")
