"""What a credential may be refused for. Which HTTP problem or close code it becomes is decided where it is caught.

CredentialError
├── TokenExpired     was good once, or is not good yet: come back with a fresh one   (109, `token_expired`)
├── TokenInvalid     never was a token of ours or of an issuer that we know          (3500, `unauthenticated`)
└── SessionEnded     names a session that is over; carries the `Ended`               (45xx, `session_ended`)
"""

from sessions.model import Ended


class CredentialError(Exception):
    """A credential was offered and refused."""


class TokenExpired(CredentialError):
    """`exp` has passed, or `nbf` lies ahead."""


class TokenInvalid(CredentialError):
    """Signature, format, type, issuer, audience or a claim is wrong. The text says which, for logs only."""


class SessionEnded(CredentialError):
    """The session behind the credential is over."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.close_reason)
        self.ended = ended
