"""Kafka: how many records of a topic wait for a consumer's group.

What waits is what lies between the offset that the group has committed and the end of each partition, as everywhere in
Kafka; which group, the consumer says. Where it has committed nothing yet, that is known only of a consumer that says
where it begins. Must not know any client.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rtobs._hop.watching import Depth


class Partition(NamedTuple):
    """What a broker says of one partition; None = nothing."""

    begin: int
    end: int
    committed: int | None = None


def depth(topic: str, partitions: Iterable[Partition], *, from_begin: bool) -> list[Depth]:
    """Return how many records of a topic wait; *from_begin*: who has committed nothing begins at the oldest."""
    waiting = 0
    for begin, end, committed in partitions:
        first = max(committed, begin) if committed is not None else begin if from_begin else end
        waiting += max(end - first, 0)
    return [Depth(topic, waiting)]


def strains(_client: object) -> None:
    """Return nothing: no client tells that its broker holds it back."""
