"""Which hops' spans leave: head sampling at the start, reasons to keep at the end.

Consistent: every hop of a journey draws the same randomness from its correlation id. Must not know how spans leave.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import get_current_span

from rtobs._journey.outcome import ErrorCategory, Outcome

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord

_RANDOM_BITS = 56
_BAD = frozenset({Outcome.FAILED, Outcome.DEAD_LETTERED, Outcome.EXPIRED, Outcome.REJECTED})
_NOBODYS_FAULT = frozenset({ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED})

DEFAULT = "default"
"""Key of the rate for everything that has none of its own."""


def keeps(identity: int, rate: float) -> bool:
    """Tell whether a trace or journey with this 128-bit id is among the share *rate* that is sampled.

    Uses the low 56 bits, as OpenTelemetry's consistent probability sampling does.
    """
    if rate >= 1:
        return True
    return (identity & ((1 << _RANDOM_BITS) - 1)) >= int((1 - rate) * (1 << _RANDOM_BITS))


class HeadSampler(Sampler):
    """The sampler of the provider we set where the process has none: parents decide, roots by rate."""

    def __init__(self, rates: Mapping[str, float]) -> None:
        self.use(rates)

    def use(self, rates: Mapping[str, float]) -> None:
        """Use *rates* by channel, destination or route from now on; ``default`` for the rest."""
        self._rates = dict(rates)
        self._default = self._rates.get(DEFAULT, 1.0)

    def should_sample(  # noqa: PLR0917  the SDK's own signature
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None,
        links: Any = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        """Decide for a span of another library."""
        del name, kind, links
        parent = get_current_span(parent_context).get_span_context()
        sampled = bool(parent.trace_flags & 1) if parent.is_valid else keeps(trace_id, self._default)
        decision = Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP
        return SamplingResult(decision, attributes, parent.trace_state if parent.is_valid else trace_state)

    def decide(self, record: HopRecord) -> bool:
        """Decide for a hop of ours, without building attributes."""
        if record.parent_span_id:
            return record.sampled
        rate = self._default
        if self._rates:
            rate = self._rates.get(record.channel or record.name, self._rates.get(record.name, rate))
        if rate >= 1:
            return True
        journey = record.journey
        return keeps(int(journey.correlation_id, 16) if journey is not None else record.trace_id, rate)

    def get_description(self) -> str:
        """Name it, as the SDK prints samplers."""
        return f"rtobs.HeadSampler({self._rates or 1.0})"


def is_slow(record: HopRecord, slow: Mapping[str, float]) -> bool:
    """Tell whether an ended hop, its message's wait or its delivery's whole way took longer than it was given."""
    limit = slow.get(record.channel or record.name)
    return limit is not None and max(record.duration_ns / 1e9, record.lag or 0, record.age or 0) > limit


def keep_reason(record: HopRecord, slow: Mapping[str, float], high_value: Container[str]) -> str:
    """Return why an ended hop is kept whatever the head said, or nothing."""
    if record.keep_reason:
        return record.keep_reason
    journey = record.journey
    if journey is not None and journey.kept:
        return journey.kept
    failed = record.result == "failed" or record.outcome in _BAD
    if failed and record.category not in _NOBODYS_FAULT:
        return "failed"
    if is_slow(record, slow):
        return "slow"
    if journey is not None and journey.tenant and journey.tenant in high_value:
        return "high_value"
    return ""
