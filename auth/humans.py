"""Proof that a person asks, or a machine that paid for it: a CAPTCHA or proof of work that somebody else judges.

The verifier speaks what Turnstile, hCaptcha and reCAPTCHA have in common ("siteverify"): a form with `secret`,
`response` and `remoteip` is posted to `auth.challenge.verify_url`, and JSON with `success: true` lets through. Anything
else does not, least of all a verifier that is away: it is asked when guesses must stop, so it fails closed.

When proof is asked for is the affair of `throttle` and of who registers.
"""

import asyncio
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlencode

import aiohttp
import msgspec
import structlog

from config import outside
from config.http import Problem
from config.settings import Challenge

TIMEOUT = 5.0
AT_ONCE = 32
"""Questions under way, a process; above it 503 `busy`."""
MAX_PROOF = 4096  # reCAPTCHA's are the longest, up to about 2 KB

OUTCOMES = ("challenges_required", "challenges_solved", "challenges_refused", "challenges_unverified")

log = structlog.get_logger(__name__)


class _Verdict(msgspec.Struct, frozen=True):
    success: bool


class Humans:
    """One a process. `on`: whether anybody is ever asked."""

    def __init__(self, settings: Challenge) -> None:
        self._settings = settings
        self._inside = [ipaddress.ip_network(network, strict=False) for network in settings.allow_networks]
        self._client: aiohttp.ClientSession | None = None
        self._asking = 0
        self._figures = dict.fromkeys(OUTCOMES, 0.0)

    @property
    def on(self) -> bool:
        return self._settings.on

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return self._figures

    def required(self, detail: str = "") -> Problem:
        """Which challenge is to be solved."""
        settings = self._settings
        self._figures["challenges_required"] += 1
        return Problem("challenge_required", detail, provider=settings.provider, site_key=settings.site_key)

    async def prove(self, proof: str, address: str) -> None:
        """Returns where `proof`, of whoever is at `address`, is good. Problems: challenge_required, busy, unavailable
        (nobody could say)."""
        if not 0 < len(proof) <= MAX_PROOF:
            raise self.required()
        if self._asking >= AT_ONCE:
            raise Problem("busy", "too many challenges at once", retry_after=2)
        self._asking += 1
        try:
            good = await self._ask(proof, address)
        except (aiohttp.ClientError, OSError, TimeoutError, outside.Forbidden, msgspec.MsgspecError) as error:
            self._figures["challenges_unverified"] += 1
            log.warning("challenge_not_verified", error=f"{type(error).__name__}: {error}"[:200])
            raise Problem("unavailable", "the challenge cannot be verified now", retry_after=5) from None
        finally:
            self._asking -= 1
        self._figures["challenges_solved" if good else "challenges_refused"] += 1
        if not good:
            raise self.required("the answer to the challenge is not good: solve another")

    async def _ask(self, proof: str, address: str) -> bool:
        settings = self._settings
        if self._client is None:
            self._client = outside.open_client(self._inside)
        form = {"secret": settings.secret.get_secret_value(), "response": proof, "remoteip": address}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        async with asyncio.timeout(TIMEOUT):
            status, body = await outside.ask(
                self._client, settings.verify_url, urlencode(form).encode(), headers, self._inside
            )
        if status != 200:
            raise ConnectionError(f"answered {status}")
        return msgspec.json.decode(body, type=_Verdict).success
