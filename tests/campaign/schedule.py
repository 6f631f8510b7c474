"""What happens in one run, and when: made from a seed alone. Pure: the same seed gives the same schedule.

A step names what is to be done and to whom by number ("user 3, node 1"); which session that is, is found when its time
comes, so a schedule with steps taken out is a schedule still (that is how it is shrunk).
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

USERS = 9
CODECS = ("json", "protobuf")
DATABASE = -1
"""In the place of a node."""
PING = 5.0
"""Seconds between two pings of a gateway."""
CANCELLING = 1.5
"""Seconds in which requests are cancelled (F22)."""
NEW_KIND = 99
"""Of a row of the log that only a newer version can read (F21)."""
CROWD = 240
FIRST = 3.0
"""Seconds before the first fault: everybody is there by then."""

Args = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """At `at` seconds do `action`."""

    at: float
    action: str
    args: Args = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.action} {json.dumps(self.args)}"


@dataclass(frozen=True)
class Schedule:
    """One run."""

    seed: int
    nodes: int
    seconds: float
    lease: float
    drift: float
    steps: tuple[Step, ...]
    standby: str = ""
    """PostgreSQL's: "sync", "async", or none. It is there where a fault needs it."""
    hosts: bool = False
    """Gateways are given both servers' addresses, and not one that is led to the primary."""
    sentinel: bool = False
    """Which Valkey is the master is a Sentinel's to say, where there are two."""
    packets: bool = False
    """Gateways reach their servers over a network of their own, where packets are lost (F11)."""
    crowd: int = 0
    """Sockets that come back at once in F18."""

    @property
    def rate(self) -> int:
        """Connections a second that a gateway lets in."""
        return max(80, self.crowd // 50)

    def only(self, steps: Sequence[Step]) -> "Schedule":
        """The same with these steps alone."""
        return replace(self, steps=tuple(steps))

    def faults(self) -> Counter[str]:
        """How often each fault comes."""
        return Counter(step.args["name"] for step in self.steps if step.action == "fault")

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def load(tree: dict[str, Any]) -> Schedule:
    """What `dump` made."""
    return Schedule(**{**tree, "steps": tuple(Step(**step) for step in tree["steps"])})


class Maker:
    """Makes one schedule; `rng` is the only source of chance."""

    def __init__(self, seed: int, nodes: int, lease: float, crowd: int = CROWD) -> None:
        self.rng = random.Random(seed)
        self.nodes, self.lease, self.crowd = nodes, lease, crowd

    # -- what people and admins do

    def action(self) -> tuple[str, Args]:
        """One, at random."""
        names = list(ACTIONS)
        name = self.rng.choices(names, [ACTIONS[n] for n in names])[0]
        return name, getattr(self, f"_{name}")()

    def _user(self) -> int:
        return self.rng.randrange(USERS)

    def _node(self) -> int:
        return self.rng.randrange(self.nodes)

    def _login(self) -> Args:
        return {"user": self._user(), "node": self._node()}

    def _connect(self) -> Args:
        return {"user": self._user(), "node": self._node(), "codec": self.rng.choice(CODECS)}

    def _refresh(self) -> Args:
        return {"user": self._user(), "node": self._node(), "in_band": self.rng.random() < 0.5}

    def _reuse(self) -> Args:
        return {"user": self._user(), "node": self._node()}

    def _password(self) -> Args:
        return {"user": self._user(), "node": self._node()}

    def _logout(self) -> Args:
        return {"user": self._user(), "node": self._node(), "scope": self.rng.choice(("", "one", "others", "all"))}

    def _disable(self) -> Args:
        return {"user": self._user(), "node": self._node()}

    def _rights(self) -> Args:
        return {"user": self._user(), "node": self._node()}

    def _revoke(self, target: str = "") -> Args:
        target = target or self.rng.choices(("sid", "user", "before", "role"), (6, 3, 1, 1))[0]
        return {"target": target, "user": self._user(), "node": self._node(), "wait": self.rng.random() < 0.85}

    def _everyone(self) -> Args:
        return {"node": self._node(), "spread": self.rng.choice((0.0, 0.0, 0.3))}

    def _burst(self) -> Args:
        return {"count": self.rng.randint(3, 6), "gap": round(self.rng.uniform(0.005, 0.08), 3), "node": self._node()}

    def _slow(self) -> Args:
        return {"user": self._user(), "node": self._node(), "codec": self.rng.choice(CODECS)}

    def _storm(self) -> Args:
        names = ("login", "refresh", "connect", "password", "revoke", "cap")
        return {"user": self._user(), "deeds": self.rng.choices(names, k=8), "jitter": self.rng.randrange(1 << 30)}

    # -- faults: (seconds, args)

    def fault(self, name: str) -> tuple[float, Args]:
        """One of this name: how long it lasts, and what it does."""
        seconds, args = FAULTS[name](self)
        return round(seconds, 3), {"name": name, "for": round(seconds, 3), **args}

    def some(self, *kinds: str) -> str:
        return self.rng.choice(kinds)

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)


ACTIONS = {
    "login": 4,
    "connect": 6,
    "refresh": 3,
    "reuse": 1,
    "password": 1,
    "logout": 2,
    "disable": 0.5,
    "rights": 0.7,
    "revoke": 5,
    "everyone": 0.4,
    "burst": 1,
    "slow": 0.8,
    "storm": 0.6,
}

FAULTS: dict[str, Callable[[Maker], tuple[float, Args]]] = {
    "F1": lambda m: (m.between(0.3, 4.0), {}),
    "F2": lambda m: (30.0 if m.rng.random() < 0.1 else m.between(1.0, 7.0), {}),
    "F3": lambda m: (0.1, {"what": m.some("FLUSHALL", "SCRIPT FLUSH", "both")}),
    "F4": lambda m: (m.between(0.2, 1.5), {}),
    "F5": lambda m: (8.0, {}),
    "F6": lambda m: (0.5, {"again": m.rng.randint(1, 4)}),
    "F7": lambda m: (1.0, {}),
    "F8": lambda m: (
        m.lease * m.rng.choice((0.5, 1.0, 1.0, 1.5, 3.0)) + m.between(-0.05, 0.05),
        {"node": m._node()},
    ),
    "F9": lambda m: (2 * m.lease, {"node": m._node()}),
    "F10": lambda m: (2.0, {"node": m._node(), "deaf": m.rng.random() < 0.5}),
    "F11": lambda m: (
        m.between(0.5, 4.0) * m.lease,
        {
            "node": m._node(),
            "servers": m.some("postgres", "redis", "both"),
            "how": m.some("cut", "hold", "up", "down", "loss", "delay", "slow"),
        },
    ),
    "F12": lambda m: (
        m.between(0.5, 4.0) * m.lease,
        {"how": m.some("kill", "stop", "stop", "read-only", "full", "disk")},
    ),
    "F13": lambda m: (
        4.0 + 2.5 * m.lease,
        {
            "lag": round(m.between(0.5, 1.5), 3),
            "how": m.some("kill", "stop"),
            "node": m._node(),
            "cut": m.rng.random() < 0.5,
            "newcomer": m.rng.random() < 0.4,
        },
    ),
    "F14": lambda m: (m.between(1.0, 4.0), {"what": m.some("head", "pool")}),
    "F15": lambda m: (
        m.between(4.0, 6.0),
        {"node": m.rng.randrange(DATABASE, m.nodes), "step": m.some("+3600", "-3600", "+31536000")},
    ),
    "F16": lambda m: (1.0, {"node": m._node(), "codec": m.some(*CODECS)}),
    "F17": lambda m: (2 * PING + 4.0, {"node": m._node(), "codec": m.some(*CODECS)}),
    "F18": lambda m: (20.0 + m.crowd // 1000 * 3, {"node": m._node(), "how": m.some("kill", "everyone")}),
    "F19": lambda m: (m.between(1.0, 4.0), {"garble": m.some("some", "all"), "node": m._node()}),
    "F20": lambda m: (1.5, {"user": m._user()}),
    "F21": lambda m: (4.0 * m.nodes + 2 * m.lease, {"first": m._node()}),
    "F22": lambda m: (m.between(1.5, 3.0), {"node": m._node()}),
    "F23": lambda m: (m.between(1.5, 4.0), {"node": m._node(), "share": round(m.between(0.1, 0.6), 2)}),
    "F24": lambda m: (m.between(1.0, 3.0), {"node": m._node(), "what": m.some("descriptors", "hashes", "memory")}),
    "F25": lambda m: (3.0, {"what": m.some("rotate", "migrate")}),
    "F26": lambda m: (
        6.0 + 2 * m.lease,
        {"age": round(m.between(0.5, 2.5), 3), "alive": m.rng.random() < 0.5, "decide": round(m.between(2.0, 3.0), 3)},
    ),
}

# What a node that was just killed, or that hears no hints, is most likely to do wrong is tried more often there.
COMPANIONS: dict[str, Sequence[str]] = {
    "F6": ("burst", "revoke"),
    "F10": ("burst", "revoke"),
    "F19": ("burst", "burst", "revoke"),
    "F12": ("revoke",),
    "F13": ("revoke", "burst"),
    "F8": ("revoke", "everyone"),
    "F18": (),
    "F22": ("burst", "revoke", "storm"),
    "F26": ("revoke",),
}


def make(
    seed: int,
    *,
    seconds: float = 60.0,
    nodes: int = 3,
    faults: Sequence[str] = (),
    lease: float = 0.0,
    standby: str = "",
    crowd: int = CROWD,
) -> Schedule:
    """The schedule of a seed. L is 1 s, in one seed of ten 5 s; `faults` narrows them down."""
    if not lease:
        lease = 5.0 if seed % 10 == 0 else 1.0
    maker = Maker(seed, nodes, lease, crowd)
    unknown = set(faults) - set(FAULTS)
    if unknown:
        raise ValueError(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    steps = [*_arrivals(maker), *_life(maker, seconds), *_trouble(maker, seconds, faults or tuple(FAULTS))]
    steps.sort(key=lambda step: step.at)
    drift = 0.25 if lease >= 5 else 0.05
    made = Schedule(seed, nodes, seconds, lease, drift, tuple(steps), hosts=maker.rng.random() < 0.5)
    there = set(made.faults())
    if "F13" in there:
        made = replace(made, standby=standby or ("sync", "async", "async")[seed % 3])
    if {"F4", "F5"} & there:
        made = replace(made, sentinel=maker.rng.random() < 0.5)
    if "F11" in there and not made.sentinel:
        made = replace(made, packets=maker.rng.random() < 0.7)
    return replace(made, crowd=crowd) if "F18" in there else made


def _arrivals(maker: Maker) -> Iterator[Step]:
    for user in range(USERS):
        yield Step(round(0.1 * user, 3), "login", {"user": user, "node": user % maker.nodes})
        yield Step(round(1.2 + 0.1 * user, 3), "connect", {**maker._connect(), "user": user})


def _life(maker: Maker, seconds: float) -> Iterator[Step]:
    at = FIRST
    while at < seconds:
        name, args = maker.action()
        yield Step(round(at, 3), name, args)
        at += maker.rng.expovariate(2.0)


def _trouble(maker: Maker, seconds: float, names: Sequence[str]) -> Iterator[Step]:
    """Faults one after another, now and then two at a time, each with revocations in it."""
    at = FIRST
    while at < seconds - 3:
        name = maker.rng.choice(names)
        length, args = maker.fault(name)
        yield Step(round(at, 3), "fault", args)
        for kind in COMPANIONS.get(name, ("revoke",)):
            within = at + maker.rng.uniform(0.0, max(0.4, length))
            yield Step(round(within, 3), kind, getattr(maker, f"_{kind}")())
        at += length * (0.3 if maker.rng.random() < 0.15 else 1.0) + maker.rng.uniform(0.5, 3.0)
