"""Whether a subscriber has all that was published since it last listened, and from where on it is live. Pure.

A subscribe reads the stream once, while the bus goes on: what came meanwhile was kept. Here the two become one list
without a gap or a repetition, or the reader is told to read again.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from gateway.protocol.commands import Publication

FRAME = 128
"""Bytes of a publication beside what it carries: names of fields, offset, client id."""


class Read(NamedTuple):
    """What was read of a stream in one step: publications (oldest first) and the top."""

    publications: Sequence[Publication]
    offset: int
    epoch: str


class Step(NamedTuple):
    """Where a subscriber is when it goes live: everything above `offset` is still to come to it.

    `publications` are those that it missed, all of them, where it asked for them and they are there; else none, and
    `recovered` is False.
    """

    publications: list[Publication]
    recovered: bool
    offset: int
    epoch: str


def step(read: Read, kept: Sequence[Publication], since: tuple[int, str] | None) -> Step | None:
    """Join what was read with what the bus brought since (`kept`, in its order). None: read again.

    `since` is where the subscriber was, None if it does not ask for what it missed.
    """
    if kept and kept[-1].epoch != read.epoch:
        return None  # the stream has begun anew since it was read
    top = read.offset
    later: list[Publication] = []
    for publication in kept:
        if publication.epoch != read.epoch or publication.offset <= top:
            continue
        if publication.offset != top + 1:
            return None
        later.append(publication)
        top += 1
    missed = None if since is None else _missed(read, *since)
    if missed is None:
        return Step([], False, top, read.epoch)
    return Step([*missed, *later], True, top, read.epoch)


def fitting(step: Step, room: int) -> tuple[Step, int]:
    """`step` as it can be told in `room` bytes, and what is left of them: all that was missed or, as for a gap, none.

    A reply that fills the queue of whoever asked would end the connection as too slow, and again when it comes back.
    """
    size = sum(map(weight, step.publications))
    if size <= room:
        return step, room - size
    return Step([], False, step.offset, step.epoch), room


def beginning(publications: Sequence[Publication], room: int) -> list[Publication]:
    """As many of `publications` as fit into `room` bytes, one at least: the rest is another page."""
    ends = accumulate(map(weight, publications))
    return [p for n, (p, end) in enumerate(zip(publications, ends, strict=True)) if not n or end <= room]


def weight(publication: Publication) -> int:
    """About the bytes that it takes in a reply."""
    info = publication.info
    about = 0 if info is None else len(info.user) + len(info.conn_info) + len(info.chan_info)
    tags = sum(len(name) + len(value) for name, value in publication.tags.items()) if publication.tags else 0
    return len(publication.data) + about + tags + FRAME


def _missed(read: Read, offset: int, epoch: str) -> list[Publication] | None:
    """All publications after `offset`; None where any is not there any more (protocol.md 33-36)."""
    if epoch and epoch != read.epoch:
        return None
    expected = offset
    for publication in read.publications:
        expected += 1
        if publication.offset != expected:
            return None
    return list(read.publications) if expected == read.offset else None
