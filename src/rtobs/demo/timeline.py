"""The whole way of one message, told from its spans and log events: what happened, where, and how long it waited."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rtobs._conventions import Attribute, LogKey
from rtobs._journey.outcome import proven_step
from rtobs.demo.endings import Ending, bad_endings, settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rtobs.demo.suspect import Suspect
    from rtobs.demo.telemetry import LogEvent, Span, Telemetry

LINES: Final = 60
"""Rows of one story that are shown; a story this long has a message that is retried without end."""

SAID: Final = (
    LogKey.CHANNEL,
    LogKey.PROVIDER,
    LogKey.ERROR_CATEGORY,
    LogKey.REASON,
    LogKey.RETRY_COUNT,
)
"""What a log event is shown with."""


@dataclass(frozen=True, slots=True)
class Row:
    """One hop or stage of a story."""

    depth: int
    offset: float
    """Seconds since the journey began."""
    hop: str
    name: str
    service: str
    seconds: float
    waited: float | None
    """Seconds between the message's sending and this hop, where it came from a queue."""
    attempt: int | None
    channel: str
    provider: str
    outcome: str
    category: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tale:
    """One message's story."""

    correlation_id: str
    tenant: str
    headline: str
    rows: tuple[Row, ...]
    said: tuple[str, ...]
    """What its log events said, in order."""
    rebuilt: int = 0
    """Spans that nobody exported; they were rebuilt."""
    ledger_bytes: int = 0
    """Bytes inside the message that they were rebuilt from."""

    def as_json(self) -> dict[str, Any]:
        """Return the story as plain JSON values."""
        return asdict(self)


def tell(telemetry: Telemetry, correlation_id: str) -> Tale | None:
    """Return the story of one journey, None where its spans are not held."""
    spans = telemetry.journey(correlation_id)
    if not spans:
        return None
    by_id = {span.span_id: span for span in spans}
    begin = spans[0].start_ns
    order = _in_reading_order(spans, by_id)[:LINES]
    rows = tuple(_row(span, by_id.get(span.parent_id), begin, _depth(span, by_id)) for span in order)
    tenant = next((span.text(Attribute.TENANT) for span in spans if span.text(Attribute.TENANT)), "")
    said = tuple(_sentence(event, begin) for event in telemetry.journey_events(correlation_id))
    rebuilt = sum(Attribute.RECONSTRUCTED in span.attributes for span in spans)
    ledger_bytes = int(max(span.number(Attribute.LEDGER_BYTES) or 0 for span in spans))
    return Tale(correlation_id, tenant, _headline(spans), rows, said, rebuilt, ledger_bytes)


def choose_failed(telemetry: Telemetry, suspect: Suspect | None) -> Tale | None:
    """Tell the most telling message that failed for good; without one, None.

    A message of the failing connector comes first, then one that the head had not sampled, then the one that was
    tried most often.
    """
    best: tuple[tuple[bool, bool, bool, float], str] | None = None
    for correlation_id in list(telemetry.pinned):
        spans = telemetry.journey(correlation_id)
        bad = bad_endings(spans)
        if not bad:
            continue
        theirs = suspect is not None and any(ending.channel == suspect.channel for ending in bad)
        tries = max(ending.consume.number(Attribute.ATTEMPT) or 1.0 for ending in bad)
        rebuilt = any(Attribute.RECONSTRUCTED in span.attributes for span in spans)
        rank = _whole(spans), theirs, rebuilt, tries
        if best is None or rank > best[0]:
            best = rank, correlation_id
    return None if best is None else tell(telemetry, best[1])


def choose_delivered(telemetry: Telemetry, suspect: Suspect | None) -> Tale | None:
    """Tell a message of which every delivery arrived, best one that the failing connector took in the end."""
    best: tuple[tuple[bool, bool, bool, int], str] | None = None
    with telemetry.lock:
        held = list(telemetry.journeys)
    for correlation_id in held[-500:]:
        if correlation_id in telemetry.pinned:
            continue
        spans = telemetry.journey(correlation_id)
        delivered = [span for span in spans if span.hop == "deliver" and span.text(Attribute.RESULT) == "ok"]
        if not delivered:
            continue
        theirs = suspect is not None and any(span.text(Attribute.CHANNEL) == suspect.channel for span in delivered)
        seen = any(span.hop == "receipt" for span in spans)
        rank = _whole(spans), theirs, seen, -abs(len(spans) - 16)
        if best is None or rank > best[0]:
            best = rank, correlation_id
    return None if best is None else tell(telemetry, best[1])


def lines(tale: Tale) -> list[str]:
    """Return a story as an indented timeline for people."""
    text = [tale.headline, f"  journey {tale.correlation_id}" + (f", tenant {tale.tenant}" if tale.tenant else "")]
    width = max((2 * row.depth + len(_what(row)) for row in tale.rows), default=0)
    text.append(f"  {'at':>9}  {'what':<{width}}  {'took':>8}  {'waited':>8}  how it ended")
    for row in tale.rows:
        what = "  " * row.depth + _what(row)
        offset, took = f"+{_span_of_time(row.offset)}", _span_of_time(row.seconds)
        waited = "" if row.waited is None else _span_of_time(row.waited)
        text.append(f"  {offset:>9}  {what:<{width}}  {took:>8}  {waited:>8}  {_facts(row)}".rstrip())
    if tale.rebuilt:
        text.append(
            f"  The head had not sampled it: {tale.rebuilt} spans were rebuilt from {tale.ledger_bytes} bytes that "
            "travelled inside the message."
        )
    if tale.said:
        text.append("  its log events:")
        text += [f"    {sentence}" for sentence in tale.said]
    return text


def _row(span: Span, parent: Span | None, begin: int, depth: int) -> Row:
    attempt = span.number(Attribute.ATTEMPT) or 1  # the first one is not spelled out
    hop = span.hop
    outcome = span.text(Attribute.RESULT) if hop == "deliver" else settled(span)
    return Row(
        depth=depth,
        offset=max(0, span.start_ns - begin) / 1e9,
        hop=hop or "stage",
        name=_name(span),
        service=span.service,
        seconds=max(0, span.end_ns - span.start_ns) / 1e9,
        waited=_waited(span, parent) if hop == "consume" else None,
        attempt=int(attempt) if hop == "consume" else None,
        channel=span.text(Attribute.CHANNEL),
        provider=span.text(Attribute.PROVIDER),
        outcome=outcome
        or ("failed" if span.failed else "rebuilt" if Attribute.RECONSTRUCTED in span.attributes else "ok"),
        category=span.text(Attribute.ERROR_CATEGORY),
        reason=span.text(Attribute.REASON),
    )


def _waited(span: Span, parent: Span | None) -> float | None:
    """Return the seconds between sending and handling, a wanted delay included; else what the hop itself measured."""
    if parent is not None and parent.hop == "publish":
        return max(0, span.start_ns - parent.start_ns) / 1e9
    return span.number(Attribute.LAG)


def _name(span: Span) -> str:
    if span.hop == "deliver":
        return f"{span.text(Attribute.CHANNEL)} by {span.text(Attribute.PROVIDER)}"
    if span.hop == "receipt":
        return f"{span.text(Attribute.CHANNEL)} {span.text(Attribute.STEP)}".strip()
    named = (Attribute.STAGE, Attribute.ROUTE, Attribute.DESTINATION_TEMPLATE, Attribute.DESTINATION_NAME)
    return next((span.text(attribute) for attribute in named if span.text(attribute)), span.name)


def _in_reading_order(spans: Sequence[Span], by_id: dict[str, Span]) -> list[Span]:
    """Parents before their children, siblings by time; each message's hops stay together."""
    children: dict[str, list[Span]] = {}
    for span in spans:
        parent = span.parent_id if span.parent_id in by_id else ""
        children.setdefault(parent, []).append(span)
    order: list[Span] = []
    waiting = list(reversed(children.get("", [])))
    seen: set[str] = set()
    while waiting:
        span = waiting.pop()
        if span.span_id in seen:
            continue
        seen.add(span.span_id)
        order.append(span)
        waiting.extend(reversed(children.get(span.span_id, [])))
    return order + [span for span in spans if span.span_id not in seen]  # their parents form a ring


def _depth(span: Span, by_id: dict[str, Span]) -> int:
    """Return how far a row is indented; a further attempt of a message stands under the first one."""
    depth, parent, seen = 0, by_id.get(span.parent_id), {span.span_id}
    while parent is not None and parent.span_id not in seen:
        seen.add(parent.span_id)
        above = by_id.get(parent.parent_id)
        again = above is not None and span.hop == above.hop == "consume" and _name(span) == _name(above)
        if again and above is not None:
            span, parent = above, by_id.get(above.parent_id)
            continue
        depth, span, parent = depth + 1, parent, above
    return depth


def _whole(spans: Iterable[Span]) -> bool:
    return any(span.hop == "accept" for span in spans)


def _headline(spans: Sequence[Span]) -> str:
    bad = bad_endings(spans)
    tries = [span for span in spans if span.hop == "deliver"]
    if bad:
        return _failure(bad[-1], tries)
    if not tries:
        return "A message of which no delivery was tried."
    again = sum(1 for span in tries if span.text(Attribute.RESULT) == "failed")
    steps = sorted({f"{span.text(Attribute.CHANNEL)} {proven_step(span.text(Attribute.CHANNEL))}" for span in tries})
    end = max(span.end_ns for span in tries)
    shown = " and seen by the user" if any(span.hop == "receipt" for span in spans) else ""
    after = _span_of_time((end - spans[0].start_ns) / 1e9)
    failed = f", with {_times(again)} that failed on the way" if again else ""
    return f"A message that was delivered: {', '.join(steps)}{shown}, the last delivery after {after}{failed}."


def _failure(ending: Ending, tries: Sequence[Span]) -> str:
    channel = ending.channel
    mine = [span for span in tries if span.text(Attribute.CHANNEL) == channel]
    provider = f" by {mine[-1].text(Attribute.PROVIDER)}" if mine else ""
    category, reason = (
        next((span.text(attribute) for span in reversed(mine) if span.text(attribute)), "")
        for attribute in (Attribute.ERROR_CATEGORY, Attribute.REASON)
    )
    error = (f", last error: {category}" if category else "") + (f" ({reason})" if reason else "")
    return f"A message that failed: {channel}{provider} ended {ending.outcome} after {_times(len(mine))}{error}."


def _times(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _what(row: Row) -> str:
    return f"{row.hop} {row.name}"


def _facts(row: Row) -> str:
    facts = [row.outcome]
    if row.category:
        facts.append(row.category)
    if row.reason:
        facts.append(f"({row.reason})")
    if row.attempt is not None and row.attempt > 1:
        facts.append(f"attempt {row.attempt}")
    if row.depth == 0 or row.hop in ("accept", "consume", "receipt"):
        facts.append(f"[{row.service}]")
    return "  ".join(fact for fact in facts if fact)


def _sentence(event: LogEvent, begin: int) -> str:
    told = [(key.value, event.attributes.get(key, "")) for key in SAID]
    facts = " ".join(f"{key}={value}" for key, value in told if value not in ("", 0))
    offset = _span_of_time(max(0, event.time_ns - begin) / 1e9)
    return f"+{offset} {event.body or event.attributes.get(LogKey.EVENT, '')} {facts}".rstrip()


def _span_of_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{seconds * 1e3:.1f} ms"
