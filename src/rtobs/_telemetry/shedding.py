"""How much is kept when everything fails: a budget for each kind of failure and a ceiling for all spans.

Under load a journey's own randomness decides, so that its hops and other processes mostly agree which ones stay whole.
The clock is the caller's. Must not know records, spans or why something is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from rtobs._telemetry.consistent import NONE

Key = tuple[str, str, str]
"""Channel, provider, and error category or another reason to keep."""
_OTHERS: Final[Key] = ("", "", "")

FULL: Final = "budget"
"""Why something is shed: its kind of failure has had its share."""
CEILING: Final = "ceiling"
"""Or the process exports all the spans that it may."""

MOST_KEYS: Final = 256
MOST_LEVEL: Final = 20
FIRST: Final = 3
"""Failures of a new kind for which there is room even at the ceiling."""
_LEVELS: Final = tuple(NONE - (NONE >> level) for level in range(MOST_LEVEL + 1))
"""Thresholds that keep all, one half, a quarter …"""


class Verdict(NamedTuple):
    """What becomes of a hop that there is a reason to keep."""

    shed: str
    """Empty: it is kept. Else why not."""
    limit: int
    """The threshold at which it was kept; 0: every one of its kind is."""


class _Bucket:
    """Tokens that come back with time, and a level that rises when they run out."""

    __slots__ = ("changed", "level", "rate", "size", "tokens", "updated")

    def __init__(self, size: float, rate: float, now: float) -> None:
        self.size, self.rate = size, rate
        self.tokens = size
        self.updated = self.changed = now
        self.level = 0

    def fill(self, now: float) -> None:
        """Add what has come back since; with half of all there the level sinks, at most once a second."""
        if now > self.updated:
            self.tokens = min(self.size, self.tokens + (now - self.updated) * self.rate)
            self.updated = now
        if self.level and self.tokens * 2 >= self.size and now - self.changed >= 1.0:
            self.level -= 1
            self.changed = now

    def rise(self, now: float) -> None:
        """Halve the share that is kept: tokens have run out."""
        if self.level < MOST_LEVEL and (self.level == 0 or now - self.changed >= 0.1):  # noqa: PLR2004  ten steps a second
            self.level += 1
            self.changed = now


class Shedding:
    """Says of each hop that there is a reason to keep whether there is room for it."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        burst: float = 1000.0,
        rate: float = 50.0,
        ceiling: float = 5000.0,
    ) -> None:
        """Keep of each kind the first *burst* journeys and *rate* a second after; *ceiling*: spans a second for all."""
        self._clock = clock
        self._burst, self._rate = burst, rate
        self._all = _Bucket(ceiling, ceiling, clock())
        self._buckets: OrderedDict[Key, _Bucket] = OrderedDict()
        self._lock = threading.RLock()

    def reset_after_fork(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.RLock()

    def admit(self, key: Key, randomness: int, spans: int = 1) -> Verdict:
        """Decide for a hop that would be the first of its journey to be kept, with *spans* to export."""
        now = self._clock()
        with self._lock:
            whole, bucket = self._all, self._bucket(key, now)
            whole.fill(now)
            first = bucket.level == 0 and bucket.tokens > bucket.size - FIRST  # nobody's outage hides another's
            limit = _LEVELS[bucket.level if first else max(bucket.level, whole.level)]
            if randomness < limit:
                return Verdict(FULL if randomness < _LEVELS[bucket.level] else CEILING, limit)
            if bucket.tokens < 1:
                bucket.rise(now)
                return Verdict(FULL, limit)
            if whole.tokens - spans < (-whole.size if first else 0):
                whole.rise(now)
                return Verdict(CEILING, limit)
            bucket.tokens -= 1
            whole.tokens -= spans
            return Verdict("", limit)

    def follow(self, spans: int = 1) -> str:
        """Decide for a hop whose journey is kept already, or was asked for; return why not, or nothing.

        It may go into the next second's debt: half a journey is worth less than none.
        """
        now = self._clock()
        with self._lock:
            whole = self._all
            whole.fill(now)
            if whole.tokens - spans < -whole.size:
                return CEILING
            whole.tokens -= spans
            return ""

    def _bucket(self, key: Key, now: float) -> _Bucket:
        found = self._buckets.get(key)
        if found is None:
            if len(self._buckets) >= MOST_KEYS:
                key = self._displaced(key, now)
                found = self._buckets.get(key)
            if found is None:
                found = self._buckets[key] = _Bucket(self._burst, self._rate, now)
        else:
            self._buckets.move_to_end(key)
        found.fill(now)
        return found

    def _displaced(self, key: Key, now: float) -> Key:
        """Make room by forgetting the kind not seen for longest if it is full again; else share one for the rest."""
        oldest, bucket = next(iter(self._buckets.items()))
        bucket.fill(now)
        if bucket.tokens >= bucket.size and not bucket.level:
            del self._buckets[oldest]
            return key
        return _OTHERS
