"""How fast a budget may burn before somebody is told: pairs of windows, and the factor for each.

A tier fires while both of its windows burn faster than its factor: the longer one makes sure that it matters, the
shorter one that it still goes on. Knows numbers only.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from rtobs.slo.durations import seconds

INTERVAL: Final = 30.0
"""Seconds between two evaluations of the rules."""
BASE: Final = 300.0
"""The window of the series that all longer windows are summed from, seconds."""
CLIFF_WINDOW: Final = 900.0
"""Where the bad events of the cliff tier are counted, seconds."""
GROUP_WINDOW: Final = 1800.0
"""The window in which one channel or connector is judged, seconds."""
GROUP_FACTOR: Final = 6.0
"""How many times its budget one channel or connector may burn."""
NO_DATA_FOR: Final = 600.0
"""How long an SLO may be without series before somebody is told, seconds."""
LATE: Final = 1.5
"""How many times its interval may go by until a job counts as not begun."""
_CLIFF_LEAST, _CLIFF_MOST = 0.4, 0.5  # a total outage makes 0.6 of five minutes bad in three


class Tier(NamedTuple):
    """One pair of windows, in seconds, and how many times too fast the budget burns."""

    severity: Literal["page", "ticket"]
    long: float
    short: float
    factor: float


_TIERS: Final[tuple[tuple[Literal["page", "ticket"], str, str, float], ...]] = (
    ("page", "1h", "5m", 0.02),
    ("page", "6h", "30m", 0.05),
    ("ticket", "1d", "2h", 0.10),
    ("ticket", "3d", "6h", 0.10),
)
"""Severity, longer and shorter window, and the share of a month's budget that is gone when the longer one is full."""
_WEEK: Final = 7 * 86_400.0


def tiers(window: str) -> tuple[Tier, ...]:
    """Return the tiers of an SLO over *window*, the fastest first.

    A week has a quarter of the events of four weeks: with the same shares a tier would fire at a burn that uses up no
    budget, so a week's tiers have the factors of 28 days.
    """
    length = seconds(window)
    if length == _WEEK:
        length *= 4
    return tuple(
        Tier(severity, seconds(long), seconds(short), round(share * length / seconds(long), 4))
        for severity, long, short, share in _TIERS
    )


def usable(window: str, budget: float) -> tuple[Tier, ...]:
    """Return the tiers that can fire at all: nothing burns faster than everything being bad."""
    return tuple(tier for tier in tiers(window) if tier.factor * budget < 1)


def cliff_share(window: str, budget: float) -> float:
    """Return the share of bad events in five minutes that pages at once, whatever the hour was like."""
    return round(min(max(tiers(window)[0].factor * budget, _CLIFF_LEAST), _CLIFF_MOST), 4)
