"""What may be granted: every scope in one table, and which roles have which.

A scope names a thing, or a thing and what is done to it (`users:read`); the bare name is all of its kind, `*` is
everything. Admin routes ask for one in their `Route`, and who asks has those of an API key or of their roles
(`auth.roles`); `config.http` compares the two. docs/security.md has this table in words.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

ALL: Final = "*"

SCOPES: Final[Mapping[str, str]] = {
    "api": "call the server API (`/api`); for API keys alone",
    "audit": "read who did what",
    "jobs:read": "see work that waits or was given up; of letters and webhooks only that",
    "jobs:write": "try it again, drop it",
    "keys:read": "see API keys and service accounts",
    "keys:write": "make, change, rotate, revoke API keys that may no more, nor live longer; keep service accounts",
    "mail": "see letters that wait or were given up, and to whom",
    "nodes": "see the nodes of the cluster",
    "revocations": "end anyone's sessions, and read receipts",
    "sessions:read": "see everyone's sessions",
    "settings": "see the settings in force; secrets are masked",
    "signing-keys:read": "see the keys that sign access tokens",
    "signing-keys:write": "sign with the next key, retire those before, discard all",
    "users:export": "have all that is kept of a person who may no more than oneself",
    "users:impersonate": "act for a user who has no rights of this table, for half an hour",
    "users:read": "see accounts",
    "users:write": "disable, ban, enable and delete users, remove lost factors, give and take roles within one's own",
    "webhooks:read": "see webhooks",
    "webhooks:write": "make, try, enable, replay and delete webhooks, which wants what reading their events does",
}

KNOWN: Final = frozenset({ALL, *SCOPES, *(scope.partition(":")[0] for scope in SCOPES)})
"""All that can be granted."""

ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
DEFAULT_ROLES: Final[Mapping[str, tuple[str, ...]]] = {"admin": (ALL,)}


def holds(granted: Collection[str], wanted: str) -> bool:
    """Whether what was granted has this scope in it."""
    return wanted in granted or ALL in granted or wanted.partition(":")[0] in granted


def lacking(granted: Collection[str], wanted: Iterable[str]) -> list[str]:
    """Those that were not granted: nobody gives what they do not have."""
    return [scope for scope in wanted if not holds(granted, scope)]


def meet(one: Collection[str], other: Collection[str]) -> frozenset[str]:
    """What both have in them."""
    return frozenset(scope for scope in {*one, *other} if holds(one, scope) and holds(other, scope))


def of_roles(table: Mapping[str, Iterable[str]], roles: Iterable[str]) -> frozenset[str]:
    """What all these roles may together; a role that the table does not name may nothing here."""
    return frozenset(scope for role in roles for scope in table.get(role, ()))


def beyond(table: Mapping[str, Iterable[str]], granted: Collection[str]) -> frozenset[str]:
    """The roles that may something which was not granted: neither to be given nor to be acted on."""
    return frozenset(role for role, scopes in table.items() if lacking(granted, scopes))


def mistakes(scopes: Iterable[str]) -> list[str]:
    """What to say of each that cannot be granted, with the nearest that can."""
    return [f"there is no scope {scope!r}{_nearest(scope)}" for scope in scopes if scope not in KNOWN]


def _nearest(scope: str) -> str:
    near = difflib.get_close_matches(scope, KNOWN, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (there are {', '.join(sorted(KNOWN))})"
