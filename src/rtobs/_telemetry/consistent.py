"""Consistent head sampling: each journey has one random number, each place a threshold, and all that see both agree.

The rules are OpenTelemetry's (TraceState: Probability Sampling): randomness R is ``rv`` of the tracestate's member
``ot``, else the low 56 bits of the trace id; a span is sampled where R is not below its threshold ``th``. The functions
take and return plain integers and text; the sampler is for spans of other libraries. Must not know how spans leave.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import TraceState, get_current_span

from rtobs._journey.randomness import BITS, DIGITS, MASK
from rtobs._journey.tracestate import ALL, child_state, randomness, root_state, without_th

NONE: Final = 1 << BITS
"""The threshold that drops everything; it has no ``th``."""

DEFAULT: Final = "default"
"""Key of the rate for everything that has none of its own."""
HIGH_VALUE: Final = "high_value"
"""Key of the rate for tenants of high value."""

_PRECISION: Final = 4
"""Hexadecimal digits of a threshold behind its leading f's, as the specification advises."""


# Integers ------------------------------------------------------------------------------------------------------------


def threshold(rate: float) -> int:
    """Return the threshold that keeps the share *rate*, 0 to 1, rounded so that its ``th`` is short."""
    if rate >= 1:
        return ALL
    if rate <= 0:
        return NONE
    exact = round((1 - rate) * NONE)
    digits = f"{min(exact, MASK):014x}"
    unit = 1 << 4 * max(DIGITS - _PRECISION - (len(digits) - len(digits.lstrip("f"))), 0)
    return min((exact + unit // 2) // unit * unit, NONE - unit)


def decide(randomness: int, limit: int) -> bool:
    """Tell whether a journey with this randomness is among those that *limit* keeps."""
    return randomness >= limit


def adjusted_count(limit: int) -> float:
    """Return how many spans one that was sampled at this threshold stands for."""
    return NONE / (NONE - limit)


# By rates ------------------------------------------------------------------------------------------------------------


class Rates:
    """Thresholds by tier, channel, and destination or route, worked out once."""

    __slots__ = ("_default", "_high_value", "_limits", "tier", "uniform")

    def __init__(self, rates: Mapping[str, float], high_value: Container[str] = ()) -> None:
        """Use *rates* by name; ``default`` for the rest, ``high_value`` for tenants in *high_value* (1 without it)."""
        self._limits = {name: threshold(rate) for name, rate in rates.items()}
        self._default = self._limits.pop(DEFAULT, ALL)
        self.tier = self._limits.pop(HIGH_VALUE, ALL)
        self._high_value = high_value
        self.uniform = self._default if not self._limits and high_value == () else None
        """The one threshold for everything; None where it depends."""

    def limit(self, channel: str = "", name: str = "", tenant: str = "") -> int:
        """Return the threshold of a hop: its tenant's tier decides before its channel, that before its destination."""
        if self.uniform is not None:
            return self.uniform
        if tenant and tenant in self._high_value:
            return self.tier
        found = self._limits.get(channel)
        return self._limits.get(name, self._default) if found is None else found


class JourneySampler(Sampler):
    """Parents decide; what begins a trace is sampled by rate, the same in every trace of a journey.

    Other vendors' members of the tracestate stay as they are. It is also what ``OTEL_TRACES_SAMPLER=rtobs`` makes.
    """

    def __init__(self, rates: Mapping[str, float], high_value: Container[str] = ()) -> None:
        self.use(rates, high_value)

    def use(self, rates: Mapping[str, float], high_value: Container[str] = ()) -> None:
        """Use *rates* from now on; see ``Rates``."""
        self.rates = Rates(rates, high_value)
        self._described = dict(rates)

    def should_sample(  # noqa: PLR0917  the SDK's own signature
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None,
        links: Any = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        """Decide for a span of another library. All attributes and all of the parent's tracestate come back."""
        del kind, links
        parent = get_current_span(parent_context).get_span_context()
        if parent.is_valid:
            sampled = bool(parent.trace_flags & 1)
            before: str = parent.trace_state.to_header() if parent.trace_state else ""
            after = child_state(before, parent.trace_id, sampled=sampled)
            state = parent.trace_state if after == before else TraceState.from_header([after])
        else:
            before = trace_state.to_header() if trace_state else ""
            limit = self.rates.limit(name=name)
            sampled = decide(randomness(trace_id, before), limit)
            state = TraceState.from_header([root_state(limit, tracestate=before) if sampled else without_th(before)])
        decision = Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP
        return SamplingResult(decision, attributes, state)

    def get_description(self) -> str:
        """Name it, as the SDK prints samplers."""
        return f"rtobs.JourneySampler({self._described or 1.0})"


def from_environment(argument: str | None) -> JourneySampler:
    """Return the sampler for ``OTEL_TRACES_SAMPLER=rtobs``; *argument* (``OTEL_TRACES_SAMPLER_ARG``) is the rate.

    Raises:
        ValueError: an argument that is no share between 0 and 1; the SDK then uses its default.
    """
    rate = float(argument) if argument else 1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG must be a share between 0 and 1; got {argument!r}")
    return JourneySampler({DEFAULT: rate})
