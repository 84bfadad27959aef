"""Which connector is failing, decided by statistics over the counters, and nothing where all is well.

Healthy providers fail a little too. A connector is named only if it has a minimum number of bad tries and a share of
them that the rest of the platform makes all but impossible: under a binomial law with the background's share, its
count would be seen less than once in a million runs (Chernoff's bound, which is never too eager).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rtobs.demo.telemetry import Histogram

BACKGROUND: Final = 0.03
"""Share of bad tries that is always taken to be normal."""
FEWEST_BAD: Final = 8
SURPRISE: Final = math.log(1e6)
LATE_BACKGROUND: Final = 0.05
NOBODYS_FAULT: Final = frozenset({"recipient", "suppressed"})
"""Categories that say something of the address, not of the connector."""


@dataclass(frozen=True, slots=True)
class Connector:
    """The tries of one provider of one channel."""

    channel: str
    provider: str
    attempts: int
    ok: int
    by_category: Mapping[str, int]
    """Failed tries by error category."""
    retries: int = 0
    """Messages that were put back to be tried again."""

    @property
    def bad(self) -> int:
        """Failed tries that are the connector's or our fault."""
        return sum(count for category, count in self.by_category.items() if category not in NOBODYS_FAULT)

    @property
    def top_category(self) -> str:
        """The most frequent error category, empty without failures."""
        return max(self.by_category, key=lambda category: self.by_category[category], default="")


@dataclass(frozen=True, slots=True)
class Suspect:
    """The connector that is failing or too slow, and how that shows."""

    channel: str
    provider: str
    symptom: Literal["failing", "slow"]
    category: str
    """Most frequent error category; empty for a slow one."""
    bad: int
    of: int
    background: float
    """Share that the other connectors have."""

    @property
    def share(self) -> float:
        """Bad tries, or late deliveries, of all."""
        return self.bad / self.of if self.of else 0.0


def surprise(bad: int, of: int, expected: float) -> float:
    """Return how unlikely *bad* of *of* is where *expected* is the normal share, as minus the log of its odds."""
    if not of or bad <= of * expected:
        return 0.0
    share = bad / of
    rest = 0.0 if bad == of else (1.0 - share) * math.log((1.0 - share) / (1.0 - expected))
    return of * (share * math.log(share / expected) + rest)


def find_suspect(
    connectors: Sequence[Connector],
    deliveries: Mapping[str, Histogram],
    waits: Mapping[str, float],
    promise: float,
) -> Suspect | None:
    """Name the connector that is failing; without one, the one that is too slow; None where all is well.

    Args:
        connectors: tries by channel and provider.
        deliveries: end-to-end times by channel, seconds.
        waits: the typical wait in each channel's queue, seconds.
        promise: seconds within which a delivery is on time.
    """
    return _failing(connectors) or _slow(connectors, deliveries, waits, promise)


def _failing(connectors: Sequence[Connector]) -> Suspect | None:
    worst: tuple[float, Suspect] | None = None
    for one in connectors:
        others = [other for other in connectors if other is not one]
        background = _share(sum(other.bad for other in others), sum(other.attempts for other in others))
        weight = surprise(one.bad, one.attempts, min(0.9, max(BACKGROUND, 2.0 * background)))
        if one.bad >= FEWEST_BAD and weight >= SURPRISE and (worst is None or weight > worst[0]):
            category = max(
                (name for name in one.by_category if name not in NOBODYS_FAULT),
                key=lambda name: one.by_category[name],
            )
            found = Suspect(one.channel, one.provider, "failing", category, one.bad, one.attempts, background)
            worst = weight, found
    return None if worst is None else worst[1]


def _slow(
    connectors: Sequence[Connector], deliveries: Mapping[str, Histogram], waits: Mapping[str, float], promise: float
) -> Suspect | None:
    late = {channel: times.count - times.within(promise) for channel, times in deliveries.items()}
    worst: tuple[float, Suspect] | None = None
    for channel, times in deliveries.items():
        others = [other for other in deliveries if other != channel]
        background = _share(sum(late[other] for other in others), sum(deliveries[other].count for other in others))
        weight = surprise(late[channel], times.count, min(0.9, max(LATE_BACKGROUND, 2.0 * background)))
        # A machine that stands still makes everybody wait; a slow consumer makes only its own queue grow.
        usual = statistics.median([waits.get(other, 0.0) for other in others] or [0.0])
        waits_here = waits.get(channel, 0.0)
        if late[channel] < FEWEST_BAD or weight < SURPRISE or waits_here < max(promise / 2.0, 3.0 * usual):
            continue
        if worst is None or weight > worst[0]:
            provider = next((one.provider for one in connectors if one.channel == channel), "")
            worst = weight, Suspect(channel, provider, "slow", "", late[channel], times.count, background)
    return None if worst is None else worst[1]


def _share(bad: int, of: int) -> float:
    return bad / of if of else 0.0
