"""How deliveries ended, read from spans: a deliver span says how its try went, its consume span what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rtobs._conventions import Attribute
from rtobs._journey.outcome import PERMANENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtobs.demo.telemetry import Span

RETRIED: Final = "retried"
FINAL_BAD: Final = frozenset({"rejected", "dropped", "expired", "dead_lettered", "failed"})


class Ending(NamedTuple):
    """A delivery that ended badly, for good."""

    outcome: str
    consume: Span
    deliver: Span | None
    """The last try; None where there was none."""

    @property
    def channel(self) -> str:
        """The channel it was for."""
        return (self.deliver or self.consume).text(Attribute.CHANNEL)


def settled(span: Span) -> str:
    """Return how the handling of a message ended."""
    return span.text(Attribute.OUTCOME) or span.text(Attribute.SETTLEMENT)


def bad_endings(spans: Iterable[Span]) -> list[Ending]:
    """Return the deliveries among *spans* that ended badly, by time."""
    tries: dict[str, Span] = {}
    consumed: list[Span] = []
    for span in sorted(spans, key=lambda one: one.end_ns):
        if span.hop == "deliver":
            tries[span.parent_id] = span
        elif span.hop == "consume":
            consumed.append(span)
    found = ((_ended(span, tries.get(span.span_id)), span, tries.get(span.span_id)) for span in consumed)
    return [Ending(outcome, consume, deliver) for outcome, consume, deliver in found if outcome]


def _ended(consume: Span, last: Span | None) -> str:
    outcome = settled(consume)
    if outcome == RETRIED or (last is not None and last.text(Attribute.RESULT) != "failed"):
        return ""
    if outcome in FINAL_BAD:
        return outcome
    if last is None:
        return ""
    # The message was acknowledged although its last try had failed.
    return "rejected" if last.text(Attribute.ERROR_CATEGORY) in PERMANENT else "failed"
