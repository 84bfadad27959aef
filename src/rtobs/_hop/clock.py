"""Spans of time across hosts: wall clocks that may disagree.

Knows two moments; must not know what they are moments of.
"""

from __future__ import annotations

from rtobs import _conventions as names
from rtobs import _guard

LATE_SECONDS = 30.0
"""A message that waited longer than this is worth a line in the log, whatever became of it."""
FUTURE_LIMIT_US = 300 * 1_000_000
PAST_LIMIT_US = 30 * 86_400 * 1_000_000


def age_us(now_us: int, then_us: int) -> int | None:
    """Return microseconds from *then* to *now*, or None where that is unknown or cannot be true.

    A negative span is counted, not recorded; so is one of more than 30 days. More than 5 minutes in the future is
    an invalid clock, not skew.
    """
    if not then_us:
        return None
    span = now_us - then_us
    if 0 <= span <= PAST_LIMIT_US:
        return span
    if span > PAST_LIMIT_US:
        reason = "past"
    else:
        reason = "future" if span < -FUTURE_LIMIT_US else "negative"
    _guard.tally(names.CLOCK_REJECTED, reason)
    return None
