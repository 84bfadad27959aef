"""Which ended hops are kept whatever the head said, and why: a pure function of a record and what was promised.

Must not know samplers, spans or the budget that may still say no.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Final

from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._journey.tracestate import ALL, randomness

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord

HEAD: Final = "head"
"""Sampled at the start; not a reason to keep, but a word beside the others."""
FAILED, SLOW, HIGH_VALUE, FORWARDED = "failed", "slow", "high_value", "forwarded"
_BAD: Final = {
    Outcome.FAILED: FAILED,
    Outcome.DEAD_LETTERED: "dead_lettered",
    Outcome.EXPIRED: "expired",
    Outcome.REJECTED: "rejected",
}
REASONS: Final = (HEAD, *_BAD.values(), SLOW, HIGH_VALUE, FORWARDED)
"""The closed set; beside it there are the words that ``keep`` was given."""
EVERY: Final[Mapping[str, str]] = {kind: f"*{kind}*" for kind in ("accept", "consume", "deliver")}
"""By kind of hop, the key of what slow is where its channel, destination or route has none of its own."""
_NOBODYS_FAULT: Final = frozenset({ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED})
_OLDEST_US: Final = 30 * 86_400 * 1_000_000


class Keeping:
    """What is asked of ended hops."""

    __slots__ = ("_high_value", "_slow", "plain", "tier", "values")

    def __init__(self, slow: Mapping[str, float], high_value: Container[str], tier: int = ALL) -> None:
        """Keep hops that took longer than *slow*, seconds, and those of tenants in *high_value*, from *tier* on."""
        self._slow = slow
        self._high_value = high_value
        self.values = high_value != ()
        """Some tenants may be of high value."""
        self.plain = not slow and not self.values
        """Nobody asked for a closer look at healthy hops."""
        self.tier = tier

    def reason(self, record: HopRecord) -> str:
        """Return why an ended hop is kept, one of ``REASONS`` or a word of the user's; nothing for nearly every one."""
        journey = record.journey
        if record.healthy and record.rare is None and (journey is None or journey.rare is None):
            if self.plain:
                return ""
            if self._slow:  # nothing is known of a channel, or of an age that counts
                limit = self._slow.get(record.name)
                if limit is None:
                    limit = self._slow.get(EVERY.get(record.kind, ""))
                if limit is not None and (record.duration_ns > limit * 1e9 or (record.lag or 0.0) > limit):
                    return SLOW
            return HIGH_VALUE if journey is not None and journey.tenant and self.is_high_value(record) else ""
        return record.keep_reason or self.own(record) or (journey.kept if journey is not None else "")

    def own(self, record: HopRecord) -> str:
        """Return why a hop would be kept if nobody had asked and nobody before had kept its journey.

        Each that there is such a reason for is kept: of these alone it is known how probable that was.
        """
        journey = record.journey
        if not record.healthy and record.category not in _NOBODYS_FAULT:
            bad = _bad(record)
            if bad:
                return bad
        if self._slow and self._is_slow(record, journey):
            return SLOW
        return HIGH_VALUE if self.is_high_value(record) else ""

    def is_high_value(self, record: HopRecord) -> bool:
        """Tell whether a hop is of a tenant whose journeys are kept: what is sent after that is known can say so."""
        journey = record.journey
        if journey is None or not journey.tenant or journey.tenant not in self._high_value:
            return False
        return self.tier == ALL or randomness(record.trace_id, record.tracestate) >= self.tier

    def _is_slow(self, record: HopRecord, journey: Journey | None) -> bool:
        """Tell whether a hop, its message's wait or, for what a channel was promised, the whole way took too long."""
        channel = record.channel or (journey.channel if journey is not None else "")
        promised = self._slow.get(channel) if channel else None
        if promised is not None and journey is not None:
            age_us = (record.wall_ns + record.duration_ns) // 1000 - journey.created_us
            if promised * 1e6 < age_us <= _OLDEST_US:
                return True
        return is_slow(record, self._slow)


def is_slow(record: HopRecord, slow: Mapping[str, float]) -> bool:
    """Tell whether an ended hop, its message's wait or its delivery's whole way took longer than it was given."""
    limit = slow.get(record.name if record.rare is None else record.channel or record.name)
    if limit is None:
        limit = slow.get(EVERY.get(record.kind, ""))
    return limit is not None and max(record.duration_ns / 1e9, record.lag or 0.0, record.age or 0.0) > limit


def _bad(record: HopRecord) -> str:
    """Return how a hop ended badly: as what its deliveries or its message came to, else as the try that it was."""
    for end in record.delivery_ends or ():
        if end.outcome in _BAD and end.category not in _NOBODYS_FAULT:
            return _BAD[end.outcome]
    for outcome in (record.settled, record.outcome):
        if outcome is not None and outcome in _BAD:
            return _BAD[outcome]
    failed = record.result == "failed" or (record.category is not None and record.outcome is Outcome.RETRIED)
    return FAILED if failed else ""
