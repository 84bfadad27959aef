"""What a summary needs to see: signals by name, and which of them an incident lacked.

A signal that was missing goes into ``required.toml``, so that the next incident has it. Knows names of questions; must
not know how they are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rtobs.incident.questions import FAILURES, PLACES, SEEN, SLOWNESS
from rtobs.slo.model import Deadline, Declaration

if TYPE_CHECKING:
    from rtobs.incident.facts import Facts
    from rtobs.incident.summary import Summary


class Signal(NamedTuple):
    """Something to be seen."""

    name: str
    """As ``required.toml`` has it."""
    words: str
    """As people say it."""
    questions: tuple[str, ...]
    """Names of questions, one answer to which is enough."""


TRACES: Final = "traces"
SIGNALS: Final = (
    Signal("tenants", "tenants affected", ("affected",)),
    Signal("promises", "bad events", ("bad",)),
    Signal("deliveries", "error categories of deliveries", ("errors", f"{SEEN}deliveries")),
    Signal("messages", "how messages ended", ("settled", f"{SEEN}messages")),
    Signal("coverage", "how much of the window is known", ("coverage",)),
    Signal("versions", "versions", ("versions_after",)),
    Signal("queue-age", "age of messages that wait", (f"{SEEN}queue-age",)),
    Signal("onset", "where it began", tuple(f"{kind}{place}" for place in PLACES for kind in (FAILURES, SLOWNESS))),
    Signal(TRACES, "example traces", ("exemplars", f"{SEEN}{TRACES}")),
)


def answered(signal: Signal, facts: Facts) -> bool:
    """Return whether *facts* hold an answer to one of the signal's questions."""
    if signal.name == TRACES and facts.exemplars:
        return True
    return any(facts.samples.get(name) or facts.lines.get(name) for name in signal.questions)


def missing(summary: Summary) -> list[Signal]:
    """Return what the incident could not see."""
    return [signal for signal in SIGNALS if signal.words in summary.unknown]


def demanded(declaration: Declaration) -> set[str]:
    """Return the signals that a service with these promises can be expected to have: no consumer, no queue."""
    kinds = {"deliver" if isinstance(slo.sli, Deadline) else getattr(slo.sli, "hop", "") for slo in declaration.slos}
    some = {
        "tenants": bool(declaration.tenants),
        "deliveries": "deliver" in kinds,
        "messages": "consume" in kinds,
        "queue-age": bool(kinds & {"deliver", "consume"}),
    }
    return {signal.name for signal in SIGNALS if some.get(signal.name, True)}
