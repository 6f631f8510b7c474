"""Microseconds that an access token of ours costs, as JSON: rounds by row. Real keys and a real log's memory, no I/O.

python -m bench.tokens
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec

from auth.identity import Identity
from auth.keys import Keys, SigningKey, key_sealer
from auth.tokens import AccessTokens, digest
from config.clock import SystemClock
from config.settings import Auth, Sessions
from sessions.memory import Memory, Place
from sessions.model import Position, Reading, Session, Subject

CALLS, ROUNDS = 20_000, 9
HEAD = Place(1 << 32, uuid.UUID(int=1).hex)


def reading(number: int) -> Reading:
    now = time.time()
    subject = Subject(f"u_{number:026}", True, 1, ("editor",))
    session = Session(str(uuid.UUID(int=number)), subject, "token", "", HEAD.seq, now, now, now + 86400, 3600.0)
    return Reading(session, Position(HEAD.seq, HEAD.id), now)


def rounds(call: Callable[[str], Any], tokens: list[str], calls: int) -> list[float]:
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for n in range(calls):
            call(tokens[n % len(tokens)])
        found.append((time.process_time() - began) * 1e6 / calls)
    return found


async def main() -> dict[str, list[float]]:
    policy = Sessions.model_validate({"secret_key": "bench" * 8})
    keys = Keys(cast(Any, None), key_sealer(policy), "ES256", clock=SystemClock())
    keys._keys = {"bench": one_key()}
    tokens = AccessTokens(keys, Auth(), now=time.time)
    memory = Memory(HEAD, HEAD.id)
    identity = Identity(
        cast(Any, None),
        cast(Any, SimpleNamespace(judge=memory.judge)),
        keys=keys,
        tokens=tokens,
        external=cast(Any, SimpleNamespace(recall=lambda key: None)),
        api_keys=cast(Any, None),
        cookie_name="",
        idle=3600.0,
    )
    made = [tokens.make(reading(n))[0] for n in range(1000)]

    def verify(token: str) -> None:
        tokens._remembered.clear()
        identity.try_connect(token)

    return {
        "from the cache": rounds(lambda token: tokens.recall(digest(token)), made, CALLS),
        "from the cache, its session judged": rounds(identity.try_connect, made, CALLS),
        "at first": rounds(verify, made, CALLS // 40),
    }


def one_key() -> SigningKey:
    return SigningKey("bench", "ES256", "active", ec.generate_private_key(ec.SECP256R1()))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
