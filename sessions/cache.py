"""What was read and may be used again: bounded in number and age, and worth nothing until memory has judged it (2c).

Nothing is forgotten because of a revocation: the position of each reading lets memory say what happened since.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """At most `size` readings, none older than `age` seconds; what was used longest ago goes first."""

    def __init__(self, *, size: int, age: float) -> None:
        self._size = size
        self._age = age
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K, now: float) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        asked, reading = found
        if now - asked > self._age:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return reading

    def put(self, key: K, reading: V, asked: float) -> None:
        """`asked`: the local time before the statement was sent."""
        self._kept[key] = (asked, reading)
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def drop(self, key: K) -> None:
        self._kept.pop(key, None)
