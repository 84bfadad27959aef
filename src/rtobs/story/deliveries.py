"""The deliveries of a journey: their tries, what concluded them, and what receipts said later.

Must not know the order in which a story is told, or how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rtobs._conventions import DELIVERY_EVENT, Attribute
from rtobs._journey.outcome import STEPS, proven_step
from rtobs.story.spans import Span, Value

RECOVERED: Final = "recovered"
FINAL_BAD: Final = frozenset({"rejected", "dropped", "expired", "dead_lettered", "failed"})

Parents = Mapping[tuple[str, str], Span | None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery: how often it was tried, how far it got, how it ended."""

    channel: str
    provider: str
    intent_id: str
    tries: int
    failed_tries: int
    reached: str
    """The furthest step that is proven; empty = none."""
    outcome: str
    """`ok`, another final outcome, `recovered`, or empty while it is open as far as these spans tell."""
    error_category: str
    reason: str
    seconds: float | None
    """From the journey's beginning to its end, or to the furthest step."""


_SENTENCES: Final = {
    "accepted": "accepted by the provider",
    "delivered": "delivered",
    "displayed": "displayed to the user",
    "opened": "opened by the user",
    "acted": "acted on by the user",
}


def ending(delivery: Delivery) -> str:
    """Say how far one delivery got."""
    who = f"{delivery.channel} by {delivery.provider}" if delivery.provider else delivery.channel
    tries = f"{delivery.tries} {'try' if delivery.tries == 1 else 'tries'}"
    why = ", ".join(word for word in (delivery.error_category, delivery.reason) if word)
    if delivery.outcome not in ("", "ok", RECOVERED):
        return f"{who}: {delivery.outcome.replace('_', '-')} after {tries}" + (f" ({why})" if why else "")
    if delivery.reached:
        again = f", {delivery.failed_tries} of {tries} failed before" if delivery.failed_tries else ""
        after = f" after {length(delivery.seconds)}" if delivery.seconds is not None else ""
        saved = ", put back from the dead-letter queue" if delivery.outcome == RECOVERED else ""
        return f"{who}: {_SENTENCES[delivery.reached]}{after}{again}{saved}"
    return f"{who}: tried {tries.replace('1 try', 'once')}, not accepted yet" + (f" ({why})" if why else "")


def length(seconds: float) -> str:
    """Return a span of time as people write it."""
    if abs(seconds) >= 86_400:  # noqa: PLR2004  a day
        return f"{seconds / 86_400:.1f} d"
    if abs(seconds) >= 3600:  # noqa: PLR2004  an hour
        return f"{seconds / 3600:.1f} h"
    if abs(seconds) >= 60:  # noqa: PLR2004  a minute
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1e3:.1f} ms"


_ORDER: Final[dict[str, int]] = {step: index for index, step in enumerate(STEPS)}


class _Draft:
    """What is known of one delivery so far."""

    def __init__(self, channel: str, intent_id: str) -> None:
        self.channel, self.intent_id = channel, intent_id
        self.provider = self.reached = self.outcome = self.category = self.reason = ""
        self.tries = self.failed = self.at_ns = 0

    def reach(self, step: str, at_ns: int) -> None:
        if step in STEPS and (not self.reached or _ORDER[step] > _ORDER[self.reached]):
            self.reached, self.at_ns = step, at_ns

    def done(self, began: int) -> Delivery:
        seconds = (self.at_ns - began) / 1e9 if self.at_ns else None
        return Delivery(
            self.channel, self.provider, self.intent_id, self.tries, self.failed, self.reached, self.outcome,
            self.category, self.reason, seconds,
        )  # fmt: skip


def deliveries(spans: Sequence[Span], parents: Parents, began: int) -> list[Delivery]:
    """Return the deliveries in the order of their first tries: attempts, how they were concluded, and receipts."""
    drafts: dict[tuple[str, str], _Draft] = {}
    inside: dict[tuple[tuple[str, str], str], list[_Draft]] = {}
    by_end = sorted(spans, key=lambda one: one.end_ns)
    for span in by_end:
        if span.hop == "deliver":
            channel, intent_id = span.text(Attribute.CHANNEL), span.text(Attribute.INTENT_ID)
            found = drafts.setdefault((channel, intent_id), _Draft(channel, intent_id))
            _try(found, span)
            for around in _scope(span, parents):
                known = inside.setdefault((around, channel), [])
                if found not in known:
                    known.append(found)
    for span in by_end:
        concluded: dict[str, int] = {}
        for event in span.events:
            if event.name == DELIVERY_EVENT:
                channel = str(event.attributes.get(Attribute.CHANNEL, ""))
                number = concluded[channel] = concluded.get(channel, -1) + 1
                parent = parents[span.key]
                tried = inside.get((span.key, channel)) or inside.get((parent.key if parent else ("", ""), channel))
                if not tried:
                    intent_id = span.text(Attribute.INTENT_ID)
                    tried = [drafts.setdefault((channel, intent_id), _Draft(channel, intent_id))]
                _conclude(tried[min(number, len(tried) - 1)], event.attributes, span.end_ns)
    return [found.done(began) for found in drafts.values()]


def _scope(span: Span | None, parents: Parents) -> Iterator[tuple[str, str]]:
    """Yield a try and what is round it, up to the handling of its message: whose end concludes it."""
    seen: set[tuple[str, str]] = set()
    while span is not None and span.key not in seen:
        seen.add(span.key)
        yield span.key
        span = parents[span.key] if span.hop != "consume" else None


def _try(found: _Draft, span: Span) -> None:
    found.tries += 1
    found.provider = span.text(Attribute.PROVIDER) or found.provider
    if span.text(Attribute.RESULT) == "ok":
        found.reach(proven_step(found.channel), span.end_ns)
        found.category = found.reason = ""
    else:
        found.failed += span.text(Attribute.RESULT) == "failed"
        found.category, found.reason = span.text(Attribute.ERROR_CATEGORY), span.text(Attribute.REASON)


def _conclude(found: _Draft, said: Mapping[str, Value], at_ns: int) -> None:
    outcome, provider = str(said.get(Attribute.OUTCOME, "")), str(said.get(Attribute.PROVIDER, ""))
    if provider and not found.provider and provider != "none":
        found.provider = provider
    if outcome in ("ok", RECOVERED):
        found.reach(str(said.get(Attribute.STEP, "")), at_ns)
        found.outcome = outcome if found.outcome in ("", "ok") or outcome == RECOVERED else found.outcome
        if found.outcome in ("ok", RECOVERED):
            found.category = found.reason = ""
    else:
        found.outcome = outcome
        found.category = str(said.get(Attribute.ERROR_CATEGORY, "")) or found.category
        found.at_ns = at_ns
