"""What people, clients and admins do in a run, each deed written down before it is asked and when it was answered."""

import asyncio
import contextlib
import datetime
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.client import CODECS, Client, mark_all
from tests.campaign.history import Answered, LoggedIn, Published, Receipt, Revoked, Revoking
from tests.campaign.world import Answer, Unreachable, World

CHANNELS = ("chat:a", "chat:b", "chat:c")
CREW = 3
"""Every third user has the role "crew"."""


@dataclass(eq=False)
class Session:
    """A session as its owner knows it. `over`: somebody has asked for its end."""

    sid: str
    user: int
    access: str
    refresh: str
    address: str
    at: float
    old: list[str] = field(default_factory=list)
    over: bool = False
    dead: bool = False  # it is known to be over
    dialling: bool = False
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Person:
    """A user."""

    number: int
    email: str
    password: str
    id: str = ""
    before: str = ""  # the password
    changed: float = 0.0  # it was, then
    enabled: float = 0.0
    sessions: list[Session] = field(default_factory=list)

    @property
    def live(self) -> list[Session]:
        return [session for session in self.sessions if not session.over]


class People:
    """Everybody. The methods `do_...` are the actions of a schedule."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.rng = random.Random(world.schedule.seed + 1)
        self.people = [Person(n, f"p{n}@example.org", f"a long walk along the harbour {n}") for n in range(count)]
        self.receipts: dict[int, str] = {}
        self.logins: list[tuple[float, float]] = []  # when they were answered well, and how long that took
        self._names = 0

    # -- looking

    def sessions(self) -> list[Session]:
        return [session for person in self.people for session in person.live]

    def clients_of(self, sids: Iterable[str]) -> list[Client]:
        wanted = set(sids)
        return [client for client in self.world.clients if client.sid in wanted]

    def _some(self, user: int) -> Session | None:
        live = self.people[user].live
        return live[0] if live else None

    # -- coming

    async def register(self) -> None:
        """Everybody gets an account; every third one a role."""
        for person in self.people:
            address = f"10.1.{person.number}.1"
            answer = await self._account(person, address)
            person.id = answer.body["user"]["id"]
            self._opened(person, answer, address)
            if person.number % CREW == 0:
                await self.world.call(
                    0, "PATCH", f"/admin/users/{person.id}", {"roles": ["crew"], "reason": "campaign"}
                )

    async def _account(self, person: Person, address: str) -> Answer:
        """Register, or log in where it turns out that we had registered; a busy machine freezes nodes now and then."""
        for attempt in range(30):
            body = {"email": person.email, "password": person.password, "mode": "token"}
            path = "/auth/register" if attempt % 2 == 0 else "/auth/login"
            answer = await self._try(attempt % len(self.world.nodes), "POST", path, body, address=address)
            if answer is not None and answer.status in (200, 201):
                return answer
            await asyncio.sleep(0.3)
        raise AssertionError(f"{person.email} cannot register")

    def _opened(self, person: Person, answer: Answer, address: str) -> Session:
        body = answer.body
        sid = body["session"]["sid"]
        session = Session(sid, person.number, body["access_token"], body["refresh_token"], address, answer.at)
        self.world.log(LoggedIn(answer.at, sid, person.id, answer.sent))
        person.sessions.append(session)
        return session

    async def do_login(self, user: int, node: int) -> Session | None:
        person = self.people[user]
        address = f"10.2.{self.rng.randrange(250)}.{self.rng.randrange(250)}"
        id = self._asking("login", (), users=(person.id,), cap=True)
        answer = await self._try(
            node,
            "POST",
            "/auth/login",
            {"email": person.email, "password": person.password, "mode": "token"},
            address=address,
        )
        self._answered(id, _state(answer, 200))
        if answer is None or answer.status != 200:
            return None
        self.logins.append((answer.at, answer.at - answer.sent))
        return self._opened(person, answer, address)

    async def do_connect(self, user: int, node: int, codec: str) -> None:
        session = self._some(user)
        if session is not None:
            await self.connect(session, node, codec)

    async def connect(self, session: Session, node: int, codec: str, *, rude: bool = False) -> Client | None:
        client = Client(self.world.log, codec, session.sid, self.people[session.user].id, node)
        self.world.clients.add(client)
        self.world.keep(self._forget(client))
        if not await client.dial(self.world.nodes[node].port, session.access, rude=rude):
            return None
        with contextlib.suppress(ConnectionError, TimeoutError):
            for channel in self.rng.sample(CHANNELS, 2):
                await client.subscribe(channel)
        return client

    async def _forget(self, client: Client) -> None:
        await client.ended.wait()
        self.world.clients.discard(client)

    # -- renewing

    async def do_refresh(self, user: int, node: int, in_band: bool) -> None:
        session = self._some(user)
        if session is not None and await self.renew(session, node) and in_band:
            for client in self.clients_of([session.sid]):
                if client.live:
                    with contextlib.suppress(ConnectionError, TimeoutError):
                        await client.ask("refresh", {"token": session.access})

    async def renew(self, session: Session, node: int) -> bool:
        """New tokens over HTTP."""
        async with session.busy:
            body = {"refresh_token": session.refresh}
            answer = await self._try(node, "POST", "/auth/refresh", body, address=session.address)
            if answer is not None and answer.status == 200:
                session.old.append(session.refresh)
                session.access, session.refresh = answer.body["access_token"], answer.body["refresh_token"]
                return True
            if answer is None or answer.status >= 500:
                session.old.clear()  # which of them is the current one is not known
            return False

    async def do_reuse(self, user: int, node: int) -> None:
        """A thief presents a refresh token of before."""
        session = self._some(user)
        if session is None or not session.old or session.busy.locked():
            return
        async with session.busy:
            token = session.old[0]
            id = self._asking("reuse", (session,))
            answer = await self._try(node, "POST", "/auth/refresh", {"refresh_token": token}, address="10.66.6.6")
            state = "unknown" if answer is None or answer.status >= 500 else "refused"
            if answer is not None and answer.status == 401:
                state = "committed"
            self._done(id, state, (session,))

    # -- going

    async def do_logout(self, user: int, node: int, scope: str) -> None:
        session = self._some(user)
        if session is None:
            return
        person = self.people[user]
        others = [other for other in person.live if other is not session]
        match scope:
            case "one":
                victims, method, path = others[:1], "DELETE", f"/auth/sessions/{others[0].sid if others else ''}"
            case "others" | "all":
                victims = others if scope == "others" else [*others, session]
                method, path = "DELETE", f"/auth/sessions?scope={scope}"
            case _:
                victims, method, path = [session], "POST", "/auth/logout"
        if victims:
            wide = (person.id,) if scope in ("others", "all") else ()
            spared = session.sid if scope == "others" else ""
            id = self._asking(f"end {scope or 'own'}", victims, users=wide, spared=spared)
            answer = await self._try(node, method, path, token=session.access)
            self._done(id, _state(answer, 204), victims)

    async def do_password(self, user: int, node: int) -> None:
        session = self._some(user)
        if session is None:
            return
        person = self.people[user]
        victims = [other for other in person.live if other is not session]
        new = f"a long walk along the harbour {self.rng.randrange(1 << 30)}"
        id = self._asking("password", victims, users=(person.id,), spared=session.sid)
        answer = await self._try(
            node,
            "POST",
            "/auth/password",
            {"current_password": person.password, "new_password": new},
            token=session.access,
        )
        state = _state(answer, 204)
        if state != "refused":
            person.before, person.changed = person.password, time.monotonic()
            person.password = new if state == "committed" else await self._which(person, new)
        self._done(id, state, victims)

    async def _which(self, person: Person, new: str) -> str:
        """The outcome is unknown: an admin's reset is not there, so try both later."""
        for _ in range(40):
            for password in (new, person.password):
                body = {"email": person.email, "password": password, "mode": "token"}
                id = self._asking("login", (), users=(person.id,), cap=True)
                answer = await self._try(0, "POST", "/auth/login", body, address=f"10.3.{self.rng.randrange(250)}.9")
                won = answer is not None and answer.status == 200
                self._answered(id, "committed" if won else "unknown")
                if answer is not None and won:
                    self._opened(person, answer, "10.3.0.9")
                    return password
            await asyncio.sleep(0.5)
        return person.password

    async def do_disable(self, user: int, node: int) -> None:
        person = self.people[user]
        victims = person.live
        id = self._asking("disable", victims, users=(person.id,))
        answer = await self._try(
            node, "PATCH", f"/admin/users/{person.id}", {"disabled": True, "reason": "campaign"}, timeout=12
        )
        self._done(id, _state(answer, 200), victims, answer.body.get("revocation") if answer and answer.body else None)
        await asyncio.sleep(0.3)
        await self._enable(person)

    async def _enable(self, person: Person) -> None:
        for _ in range(60):
            for other in range(len(self.world.nodes)):
                back = {"disabled": False, "reason": "campaign"}
                answer = await self._try(other, "PATCH", f"/admin/users/{person.id}", back)
                if answer is not None and answer.status == 200:
                    person.enabled = time.monotonic()
                    return
            await asyncio.sleep(0.3)

    async def after_failover(self, since: float) -> None:
        """What was done since then may not have been: nobody counts on it any more."""
        for person in self.people:
            for session in person.sessions:
                session.old.clear()
                session.over = session.over or session.at >= since
        for person in self.people:
            if person.changed >= since:
                person.password = await self._which(person, person.before)
            if person.enabled >= since:
                await self._enable(person)

    async def do_rights(self, user: int, node: int) -> None:
        person = self.people[user]
        roles = ["crew"] if user % CREW == 0 else []
        extra = f"r{self.rng.randrange(1000)}"
        id = self._asking("rights", (), users=(person.id,), rights=True)
        answer = await self._try(
            node, "PATCH", f"/admin/users/{person.id}", {"roles": [*roles, extra], "reason": "campaign"}
        )
        self._answered(id, _state(answer, 200))

    # -- revoking

    async def do_revoke(self, target: str, user: int, node: int, wait: bool) -> None:
        person = self.people[user]
        match target:
            case "sid":
                session = self._some(user)
                if session is not None:
                    await self.revoke(node, {"sid": session.sid}, [session], wait=wait)
            case "user":
                await self.revoke(node, {"user": person.id}, person.live, users=(person.id,), wait=wait)
            case "before":
                now = time.monotonic()
                at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=0.2)
                victims = [session for session in person.live if session.at < now - 0.5]
                named = {"user": person.id, "issued_before": at.isoformat().replace("+00:00", "Z")}
                await self.revoke(node, named, victims, users=(person.id,), wait=wait)
            case _:
                crew = [person for person in self.people if person.number % CREW == 0]
                victims = [session for person in crew for session in person.live]
                users = tuple(person.id for person in crew)
                await self.revoke(node, {"role": "crew"}, victims, users=users, wait=wait, ask=True)

    async def do_everyone(self, node: int, spread: float) -> None:
        await self.revoke(node, {"all": True}, self.sessions(), everyone=True, wait=True, ask=True, spread=spread)

    def operator_ends_all(self) -> int:
        """Everyone's, by a command on the database: also those that were over before, for it may not know."""
        return self._asking("restore", self.everybody(), everyone=True)

    def operator_ended(self, id: int) -> None:
        self._done(id, "committed", self.everybody())

    def everybody(self) -> list[Session]:
        """All sessions that there ever were."""
        return [session for person in self.people for session in person.sessions]

    async def do_burst(self, count: int, gap: float, node: int) -> None:
        """Several, close behind each other, by different nodes."""
        victims = self.sessions()
        self.rng.shuffle(victims)
        for n, session in enumerate(victims[:count]):
            where = (node + n) % len(self.world.nodes)
            self.world.keep(self.revoke(where, {"sid": session.sid}, [session], wait=True))
            await asyncio.sleep(gap)

    async def revoke(
        self,
        node: int,
        target: dict[str, Any],
        victims: Iterable[Session],
        *,
        users: tuple[str, ...] = (),
        everyone: bool = False,
        wait: bool = True,
        ask: bool = False,
        spread: float = 0.0,
    ) -> str:
        """POST /admin/revocations; what is not known is asked again under the same key. Its state."""
        self._names += 1
        body: dict[str, Any] = {"target": target, "reason": f"r{self._names}", "wait": wait, "timeout": 8}
        if spread:
            body["spread_seconds"] = spread
        if ask:
            answer = await self._try(node, "POST", "/admin/revocations", {**body, "dry_run": True})
            if answer is None or answer.status != 200:
                return "refused"
            body["confirm"] = answer.body["confirm"]
        victims = list(victims)
        what = next(iter(target))
        id = self._asking(what, victims, users=users, everyone=everyone, reason=body["reason"])
        key = f"campaign-{self.world.schedule.seed}-{id}"
        answer = await self._revoke_until_known(node, body, key)
        state = "unknown"
        if answer is not None:
            state = answer.body["state"] if answer.status in (200, 201) else "refused"
        self._done(id, state, victims, answer.body if answer is not None and state != "refused" else None)
        return state

    async def _revoke_until_known(self, node: int, body: dict[str, Any], key: str) -> Answer | None:
        for attempt in range(6):
            where = (node + attempt) % len(self.world.nodes)
            answer = await self._try(where, "POST", "/admin/revocations", body, timeout=10, Idempotency_Key=key)
            if answer is not None and (answer.status < 500 or (attempt == 0 and answer.code == "frozen")):
                return answer
            await asyncio.sleep(0.4)
        return None

    # -- writing down

    def _asking(
        self,
        what: str,
        victims: Iterable[Session],
        *,
        users: tuple[str, ...] = (),
        everyone: bool = False,
        spared: str = "",
        reason: str = "",
        rights: bool = False,
        cap: bool = False,
    ) -> int:
        id = next(self.world.ids)
        victims = list(victims)
        for session in victims:
            session.over = True
        sids = frozenset(session.sid for session in victims)
        now = time.monotonic()
        self.world.log(
            Revoking(
                now, id, what, sids, frozenset(users), everyone, spared=spared, reason=reason, rights=rights, cap=cap
            )
        )
        return id

    def _answered(self, id: int, state: str, receipt: Any = None) -> None:
        found = receipt or {}
        elapsed = float(found.get("elapsed_ms") or 0.0) / 1000
        self.world.log(Revoked(time.monotonic(), id, state, found.get("by") or "", found.get("id") or "", elapsed))
        if found.get("id"):
            self.receipts[id] = found["id"]

    def _done(self, id: int, state: str, victims: Iterable[Session], receipt: Any = None) -> None:
        """Its answer is there: from this moment on the checker counts, so mark where the streams are."""
        victims = list(victims)
        if receipt and state == "committed":
            state = receipt.get("state", state)
        self._answered(id, state, receipt)
        if state == "refused":
            for session in victims:
                session.over = session.dead
        if state in ("confirmed", "committed"):
            for session in victims:
                session.over = True
            clients = self.clients_of(session.sid for session in victims)
            mark_all(clients)
            self.world.keep(self._haunt(victims, state == "confirmed"))

    async def _haunt(self, victims: list[Session], confirmed: bool) -> None:
        """Try everything that must not work any more: at once if confirmed, and again after L + d."""
        schedule = self.world.schedule
        if confirmed:
            for session in victims[:4]:
                session.dead = True
                self.world.keep(self.ghost(session, self.rng.randrange(schedule.nodes)))
        await asyncio.sleep(schedule.lease + schedule.drift)
        mark_all(self.clients_of(session.sid for session in victims))
        for session in victims:
            session.dead = True
        for session in victims[:4]:
            await self.ghost(session, self.rng.randrange(schedule.nodes))

    async def ghost(self, session: Session, node: int) -> None:
        """A session that is over tries to come back with the token that it has."""
        await self.me(session, node)
        client = Client(self.world.log, self.rng.choice([*CODECS]), session.sid, self.people[session.user].id, node)
        self.world.clients.add(client)
        self.world.keep(self._forget(client))
        if await client.dial(self.world.nodes[node].port, session.access, timeout=3.0):
            with contextlib.suppress(ConnectionError, TimeoutError):
                await client.subscribe("chat:a")

    async def me(self, session: Session, node: int) -> None:
        """An HTTP request with the session's token."""
        answer = await self._try(node, "GET", "/auth/me", token=session.access)
        if answer is not None:
            self.world.log(Answered(answer.at, session.sid, node, answer.status, answer.sent))

    async def _try(self, node: int, method: str, path: str, body: Any = None, **more: Any) -> Answer | None:
        try:
            answer = await self.world.call(node, method, path, body, **more)
        except Unreachable:
            self.world.answers[path.split("?")[0][:20], 0, ""] += 1
            return None
        self.world.answers[path.split("?")[0][:20], answer.status, answer.code] += 1
        return answer

    # -- rude ones

    async def do_slow(self, user: int, node: int, codec: str) -> None:
        """F16: a client that does not read is written to until it takes no more, then revoked, then reads on."""
        session = self._some(user)
        if session is None:
            return
        client = await self.connect(session, node, codec, rude=True)
        if client is None:
            return
        channel = f"game:slow{client.number}"
        with contextlib.suppress(ConnectionError, TimeoutError):
            await client.subscribe(channel)
            client.stop_reading()
            for n in range(28):
                data = {"id": f"slow{n}", "t": time.monotonic(), "fill": "x" * 30_000}
                await self._try(node, "POST", "/api/publish", {"channel": channel, "data": data})
            await self.revoke(node, {"sid": session.sid}, [session])
            await asyncio.sleep(0.08)
        client.go_on_reading()

    async def do_storm(self, user: int, deeds: list[str], jitter: int) -> None:
        """F20: many deeds on one user at once."""
        rng = random.Random(jitter)
        nodes = len(self.world.nodes)

        async def later(deed: str) -> None:
            await asyncio.sleep(rng.uniform(0, 0.15))
            node = rng.randrange(nodes)
            match deed:
                case "login":
                    await self.do_login(user, node)
                case "refresh":
                    await self.do_refresh(user, node, True)
                case "connect":
                    await self.do_connect(user, node, rng.choice([*CODECS]))
                case "password":
                    await self.do_password(user, node)
                case "revoke":
                    await self.do_revoke("sid", user, node, True)
                case _:
                    for _ in range(3):
                        await self.do_login(user, node)

        await asyncio.gather(*(later(deed) for deed in deeds))

    # -- what goes on all the time

    async def chatter(self) -> None:
        """Every live connection says something now and then: each reply is a frame whose cause is known."""
        while True:
            for client in tuple(self.world.clients):
                if client.live and self.rng.random() < 0.5:
                    with contextlib.suppress(ConnectionError):
                        client.send("rpc", {"method": "none"})
            await asyncio.sleep(0.12)

    async def publish(self, node: int) -> None:
        """Publications over one node's API, for ever; the stamp is in them."""
        n = 0
        while True:
            n += 1
            await self.publish_one(node, self.rng.choice((*CHANNELS, "game:x")), f"n{node}-{n}")
            await asyncio.sleep(0.1)

    async def publish_one(self, node: int, channel: str, name: str) -> bool:
        data = {"id": name, "t": time.monotonic()}
        answer = await self._try(node, "POST", "/api/publish", {"channel": channel, "data": data}, timeout=3)
        if answer is None or answer.status != 200 or "result" not in answer.body:
            return False
        result = answer.body["result"]
        if result.get("epoch"):
            self.world.log(Published(answer.at, name, channel, int(result["offset"]), result["epoch"]))
        return True

    async def come_back(self) -> None:
        """Whoever has a session that is not over wants a connection, and who has none logs in; the dead try too."""
        while True:
            connected = {client.sid for client in self.world.clients}
            for session in self.sessions():
                if session.sid not in connected and not session.dialling:
                    self.world.keep(self._come_back(session))
            for person in self.people:
                if not person.live and self.rng.random() < 0.2:
                    self.world.keep(self.do_login(person.number, self.rng.randrange(len(self.world.nodes))))
            for client in tuple(self.world.clients):
                if client.live and client.lost:
                    self.world.keep(self._subscribe_again(client))
            dead = [s for person in self.people for s in person.sessions if s.dead]
            if dead:
                self.world.keep(self.ghost(self.rng.choice(dead[-30:]), self.rng.randrange(len(self.world.nodes))))
            await asyncio.sleep(0.25)

    async def _come_back(self, session: Session) -> None:
        session.dialling = True
        try:
            node = self.rng.randrange(len(self.world.nodes))
            client = await self.connect(session, node, self.rng.choice([*CODECS]))
            if client is None:
                await self.me(session, node)
                await asyncio.sleep(0.5)
        finally:
            session.dialling = False

    async def _subscribe_again(self, client: Client) -> None:
        for channel in tuple(client.lost):
            with contextlib.suppress(ConnectionError, TimeoutError):
                client.lost.discard(channel)
                if not await client.subscribe(channel):
                    client.lost.add(channel)

    # -- the end

    async def collect(self) -> None:
        """The receipts as they are in the end."""
        for id, receipt in self.receipts.items():
            found: Answer | None = None
            for attempt in range(12):
                node = attempt % len(self.world.nodes)
                found = await self._try(node, "GET", f"/admin/revocations/{receipt}")
                if found is not None and found.status == 200 and found.body["state"] == "confirmed":
                    break
                await asyncio.sleep(0.2)
            if found is None or found.status != 200:
                self.world.log(Receipt(time.monotonic(), id, "", 0))
            else:
                self.world.log(Receipt(found.at, id, found.body["state"], found.body["connections_closed"]))


def _state(answer: Answer | None, good: int) -> str:
    """What is known of a deed without a receipt. A 503 may hide a commit unless it says that nothing was begun."""
    if answer is None or (answer.status >= 500 and answer.code not in ("frozen", "busy")):
        return "unknown"
    return "committed" if answer.status == good else "refused"
