"""`Accounts` puts this room together for one process.

What a part does stands in its module; here they are only made, joined, started and served. Sessions are served by
`sessions.routes`, revocations by `sessions.admin`: they are mounted here because they need the same parts.
"""

from collections.abc import Mapping

from aiohttp import web

from auth import letters
from auth.admin import OperatorRoutes
from auth.api_keys import ApiKeys
from auth.challenges import Challenges
from auth.devices import DeviceCookies
from auth.erasure import Erasure
from auth.external import ExternalTokens
from auth.factor_routes import FactorRoutes
from auth.factors import Factors
from auth.freshness import Freshness
from auth.humans import Humans
from auth.identity import Identity
from auth.impersonation import Impersonation
from auth.key_routes import KeyRoutes
from auth.keys import Keys, key_sealer
from auth.mailbox import Mailboxes
from auth.mailbox_routes import MailboxRoutes
from auth.passkeys import Passkeys
from auth.passwords import Passwords
from auth.person_routes import PersonRoutes
from auth.profiles import Profiles
from auth.routes import AccountRoutes
from auth.service import Users
from auth.throttle import Throttle
from auth.tokens import AccessTokens
from auth.totp import Codes
from auth.user_routes import UserRoutes
from config.clock import Clock
from config.database import Pool
from config.http import (
    mount,
)
from config.jobs import Jobs
from config.redis import Pipe
from config.settings import Settings
from sessions import chain
from sessions.admin import Registry, RevocationRoutes
from sessions.cookies import CookieStorage
from sessions.jobs import JobRoutes
from sessions.revocations import Revocations
from sessions.routes import ListAnonymous, SessionRoutes, nobody
from sessions.service import Sessions
from sessions.webhook_routes import WebhookRoutes, sealer
from sessions.webhooks import Webhooks


class Accounts:
    """This room in one process: its parts, joined.

    `registry` counts live connections, for lists and dry runs; `anonymous` lists those that are nobody's; `secure`: the
    site is served over TLS. `identity` judges credentials (`config.http`'s IDENTIFY), `cookies` is the storage for
    aiohttp-session.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        revocations: Revocations,
        sessions: Sessions,
        pipe: Pipe,
        *,
        clock: Clock,
        registry: Registry,
        anonymous: ListAnonymous = nobody,
        secure: bool,
    ) -> None:
        now = revocations.database_now
        secret = settings.sessions.secret_key.get_secret_value()
        self._sessions = SessionRoutes(sessions, pool, registry.connections, anonymous)
        self.keys = Keys(pool, key_sealer(settings.sessions), settings.auth.access_token_algorithm, clock=clock)
        self.tokens = AccessTokens(self.keys, settings.auth, now=now)
        self.external = ExternalTokens(settings.client, now=now, clock=clock)
        self._revocations = RevocationRoutes(
            revocations, pool, registry, secret=secret, foreign=self.external.could_name
        )
        roles = settings.auth.roles
        self.api_keys = ApiKeys(
            pool,
            revocations,
            settings.http_api.key.get_secret_value(),
            roles=roles,
            second_factor_roles=settings.auth.second_factor_roles,
            clock=clock,
        )
        self._operators = OperatorRoutes(pool, settings)
        self.passwords = Passwords(settings.auth)
        self._humans = Humans(settings.auth.challenge)
        throttle = Throttle(
            pipe,
            prefix=settings.redis.prefix,
            secret=secret.encode(),
            clock=clock,
            allow=settings.auth.rate_limit_allow,
            humans=self._humans,
            per_hour=settings.auth.challenge.after,
        )
        today, *previous = settings.sessions.secrets
        devices = DeviceCookies(today, previous, now=now)
        mail = settings.mail
        codes, freshness = Codes(settings.sessions, product=mail.product), Freshness(pool, settings.auth, now=now)
        self._keys = KeyRoutes(pool, revocations, freshness, self.keys, token_ttl=settings.auth.access_token_ttl)
        challenges = Challenges(settings.sessions, now=now)
        keys = Passkeys(pool, settings.relying_party, settings.sessions, challenges, product=mail.product)
        self.people = Users(
            pool,
            revocations,
            sessions,
            self.passwords,
            throttle,
            devices,
            challenges,
            codes,
            keys,
            freshness,
            settings.auth,
            mail,
        )
        factors = Factors(
            pool, revocations, sessions, self.passwords, throttle, codes, keys, freshness, settings.auth, mail
        )
        self._factors = FactorRoutes(factors, self.tokens)
        self.cookies = CookieStorage(sessions, secure=secure)
        self.identity = Identity(
            sessions,
            revocations,
            keys=self.keys,
            tokens=self.tokens,
            external=self.external,
            api_keys=self.api_keys,
            cookie_name=self.cookies.cookie_name,
            idle=settings.sessions.idle,
            roles=roles,
            second_factor_roles=settings.auth.second_factor_roles,
        )
        self.jobs = Jobs(pool, node=revocations.node)
        self._jobs = JobRoutes(pool, self.jobs, revocations)
        self._chain = chain.Chain(pool, self.jobs, chain.sealer(settings.sessions))
        sealed_by = sealer(settings.sessions)
        self.webhooks = Webhooks(pool, self.jobs, sealed_by, settings.webhooks, clock=clock)
        self._webhooks = WebhookRoutes(pool, self.jobs, self.webhooks, sealed_by, revocations)
        if mail.on:
            self.jobs.add(letters.JOB, letters.Letters(mail, pool).kind)
        mailboxes = Mailboxes(pool, revocations, self.passwords, throttle, freshness, self.jobs, settings.auth, mail)
        self._mailboxes = MailboxRoutes(mailboxes)
        erasure = Erasure(pool, revocations, self.passwords, throttle, freshness, self.jobs, settings.mail)
        self._persons = PersonRoutes(pool, revocations, erasure, throttle, freshness, settings.auth)
        acting = Impersonation(pool, revocations, sessions, freshness, settings.auth)
        self._profiles = Profiles(pool, revocations, clock=clock)
        self._accounts = AccountRoutes(
            self.people, self._profiles, mailboxes, sessions, self.tokens, self.keys, throttle, settings
        )
        self._users = UserRoutes(self.people, acting, sessions, self.tokens)

    async def start(self) -> None:
        """After sessions. Raises KeysUnreadable when the signing keys are sealed with an unknown secret."""
        await self.keys.start()
        await self.people.start()
        await self._chain.start()
        self.jobs.start()

    async def close(self) -> None:
        await self.jobs.close()
        await self._chain.close()
        await self.webhooks.close()
        await self._humans.close()
        await self.people.close()
        await self._profiles.close()
        await self.api_keys.close()
        await self.keys.close()
        self.passwords.close()

    def mount(self, app: web.Application) -> None:
        """Serve what is about accounts, sessions and revocations."""
        mount(app, self._factors.routes())
        mount(app, self._persons.routes())
        for room in (self._accounts, self._mailboxes, self._sessions, self._revocations, self._jobs, self._webhooks):
            mount(app, room.routes())
        mount(app, [*self._users.routes(), *self._keys.routes(), *self._operators.routes()])

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        jobs, chained = self.jobs.figures(), self._chain.figures()
        failures = self.people.failures + self.api_keys.failures
        failures += int(jobs["background_failures"] + chained["background_failures"])
        counted = {**jobs, **chained, **self.passwords.figures(), **self._humans.figures()}
        return {**counted, "background_failures": failures}
