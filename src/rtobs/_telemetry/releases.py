"""What is expected later: deliveries whose messages are held back on purpose, until their release.

Knows moments and counts; must not know how they are counted in the end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K")

MOST: Final = 10_000
"""Different seconds and names that are remembered; what comes on top is expected at once."""
_SECOND: Final = 1_000_000_000


class Releases(Generic[K]):
    """Counts by second of release and by whatever tells them apart. Call with a lock held."""

    def __init__(self) -> None:
        self._moments: list[int] = []
        self._counts: dict[int, dict[K, int]] = {}
        self._size = 0

    def add(self, release_ns: int, key: K, count: int) -> bool:
        """Remember *count* until *release_ns*, nanoseconds since the epoch; False where there is no room."""
        if self._size >= MOST:
            return False
        moment = -(-release_ns // _SECOND)
        counts = self._counts.get(moment)
        if counts is None:
            counts = self._counts[moment] = {}
            heapq.heappush(self._moments, moment)
        self._size += key not in counts
        counts[key] = counts.get(key, 0) + count
        return True

    def due(self, now_ns: int | None = None) -> Iterator[tuple[K, int]]:
        """Take out what has been released by *now_ns*; without it, all."""
        while self._moments and (now_ns is None or self._moments[0] * _SECOND <= now_ns):
            counts = self._counts.pop(heapq.heappop(self._moments))
            self._size -= len(counts)
            yield from counts.items()
