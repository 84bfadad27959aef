"""A story: the spans of one journey in reading order, its deliveries, and the answer to what became of it.

Where a span was both exported and rebuilt, the exported one is told. Must not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rtobs._conventions import Attribute
from rtobs.story.deliveries import FINAL_BAD, Delivery, deliveries, ending
from rtobs.story.spans import Span, Value

VERSION: Final = 1
ENTRY_BYTES: Final = 21
"""Bytes that a ledger spends on one step and its send."""


@dataclass(frozen=True, slots=True)
class Row:
    """One hop, stage or neighbour's span."""

    depth: int
    at: float
    """Seconds since the journey began; below zero where another clock says so."""
    hop: str
    """Its kind; `stage`, or `span` for one of another library."""
    name: str
    service: str
    took: float
    waited: float | None
    """Seconds between the message's sending and this hop, where it came from a queue."""
    attempt: int
    outcome: str
    error_category: str
    reason: str
    error: str
    """Type and message of the exception that ended it."""
    kept: str
    """Why it was exported although the head had not sampled it; empty = it was, or nobody says."""
    rebuilt: bool
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was rebuilt from ledgers."""

    spans: int
    steps: int
    """Process steps among them; the others are their sends."""
    bytes: int
    duplicates: int
    """Further copies of them, by others who rebuilt the same, or of spans that had been exported all the same."""


@dataclass(frozen=True, slots=True)
class Tale:
    """One journey's story."""

    correlation_id: str
    began: str
    """ISO 8601, UTC."""
    seconds: float
    """From its beginning to the end of its last span."""
    answer: str
    tenant: str
    region: str
    services: tuple[str, ...]
    traces: tuple[str, ...]
    kept: str
    """Why it was kept, where the head had not sampled it."""
    deliveries: tuple[Delivery, ...]
    rebuilt: Rebuilt
    missing: int
    """Spans whose sender or parent is not among those that were read."""
    rows: tuple[Row, ...]

    def data(self) -> dict[str, Any]:
        """Return the story as plain data for JSON; its form is ``story.schema.json``."""
        return {"version": VERSION, **asdict(self)}


def tell(correlation_id: str, found: Iterable[Span]) -> Tale | None:
    """Return the story of the journey that *found* are the spans of; None without any."""
    told, duplicates = _once(found)
    if not told:
        return None
    spans = sorted(told.values(), key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    parents = {(span.trace_id, span.span_id): _parent(span, told) for span in spans}
    order = _reading_order(spans, parents)
    began = spans[0].start_ns
    depths: dict[tuple[str, str], int] = {}
    rows = tuple(_row(span, parents[span.key], began, depths) for span in order)
    ended = deliveries(spans, parents, began)
    rebuilt = [span for span in spans if _is_rebuilt(span)]
    return Tale(
        correlation_id=correlation_id,
        began=_moment(began),
        seconds=(max(span.end_ns for span in spans) - began) / 1e9,
        answer=answer(ended, rows),
        tenant=_first(spans, Attribute.TENANT),
        region=_first(spans, Attribute.REGION),
        services=tuple(dict.fromkeys(row.service for row in rows if row.service)),
        traces=tuple(dict.fromkeys(span.trace_id for span in spans)),
        kept=_first(spans, Attribute.SAMPLING_REASON),
        deliveries=tuple(ended),
        rebuilt=Rebuilt(
            len(rebuilt), sum(not _is_send(span) for span in rebuilt), _entries(rebuilt) * ENTRY_BYTES, duplicates
        ),
        missing=sum(bool(span.parent_id) and (span.trace_id, span.parent_id) not in told for span in spans),
        rows=rows,
    )


def answer(found: Sequence[Delivery], rows: Sequence[Row]) -> str:
    """Say in one sentence whether the message was sent, accepted, delivered or displayed."""
    if found:
        return "; ".join(map(ending, found)) + "."
    bad = next((row for row in reversed(rows) if row.outcome in FINAL_BAD), None)
    if bad is not None:
        why = bad.error_category or bad.reason
        ended = bad.outcome.replace("_", "-") + (f" ({why})" if why else "")
        return f"Not sent: {bad.hop} {bad.name} ended {ended} before any delivery was tried."
    if any(row.hop == "publish" for row in rows):
        return "Handed on, but no delivery was tried as far as these spans tell."
    return "Nothing was sent as far as these spans tell."


# Spans ---------------------------------------------------------------------------------------------------------------


def _is_rebuilt(span: Span) -> bool:
    return span.attributes.get(Attribute.RECONSTRUCTED) is True


def _is_send(span: Span) -> bool:
    return span.hop == "publish"


def _once(found: Iterable[Span]) -> tuple[dict[tuple[str, str], Span], int]:
    """Return each span once, a real one rather than a rebuilt one, and how many rebuilt ones there were too many."""
    told: dict[tuple[str, str], Span] = {}
    duplicates = 0
    for span in found:
        before = told.get(span.key)
        if before is not None and (_is_rebuilt(before) or _is_rebuilt(span)):
            duplicates += 1
        if before is None or (_is_rebuilt(before) and not _is_rebuilt(span)):
            told[span.key] = span
    return told, duplicates


def _parent(span: Span, told: dict[tuple[str, str], Span]) -> Span | None:
    """Return what caused a span: its parent, else the first of its links that is of this journey."""
    if span.parent_id:
        return told.get((span.trace_id, span.parent_id))
    return next((told[link] for link in span.links if link in told and link != span.key), None)


def _reading_order(spans: Sequence[Span], parents: dict[tuple[str, str], Span | None]) -> list[Span]:
    """Causes before effects, siblings by time; each branch stays together."""
    children: dict[tuple[str, str] | None, list[Span]] = {}
    for span in spans:
        parent = parents[span.key]
        children.setdefault(None if parent is None else parent.key, []).append(span)
    order: list[Span] = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        span = waiting.pop()
        order.append(span)
        waiting += children.pop(span.key, [])[::-1]
    return order + [span for rest in children.values() if rest is not children.get(None) for span in rest]


def _entries(rebuilt: Sequence[Span]) -> int:
    """Return from how many ledger entries spans were rebuilt: one for each send, and for a step without."""
    sends = [span for span in rebuilt if _is_send(span)]
    behind = {(span.trace_id, span.parent_id) for span in sends} | {link for span in sends for link in span.links}
    return len(sends) + sum(not _is_send(span) and span.key not in behind for span in rebuilt)


def _first(spans: Sequence[Span], name: str) -> str:
    return next((span.text(name) for span in spans if span.text(name)), "")


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")


# Rows ----------------------------------------------------------------------------------------------------------------


def _row(span: Span, parent: Span | None, began: int, depths: dict[tuple[str, str], int]) -> Row:
    depth = 0
    if parent is not None:  # a message and its handling stand side by side, or six hops would fill the line
        beside = _is_send(parent) and span.hop == "consume"
        depth = depths.get(parent.key, 0) + (not beside)
    depths[span.key] = depth
    hop = span.hop or ("stage" if span.text(Attribute.STAGE) else "span")
    nothing: dict[str, Value] = {}
    exception = next((event.attributes for event in reversed(span.events) if event.name == "exception"), nothing)
    error = ": ".join(str(exception[key]) for key in ("exception.type", "exception.message") if exception.get(key))
    return Row(
        depth=depth,
        at=(span.start_ns - began) / 1e9,
        hop=hop,
        name=_name(span, hop),
        service=span.service,
        took=(span.end_ns - span.start_ns) / 1e9,
        waited=_waited(span, parent) if hop == "consume" else None,
        attempt=int(span.number(Attribute.ATTEMPT) or 1),
        outcome=_outcome(span, hop),
        error_category=span.text(Attribute.ERROR_CATEGORY),
        reason=span.text(Attribute.REASON),
        error=error,
        kept=span.text(Attribute.SAMPLING_REASON),
        rebuilt=_is_rebuilt(span),
        trace_id=span.trace_id,
        span_id=span.span_id,
    )


def _outcome(span: Span, hop: str) -> str:
    """Return how a hop ended; of a rebuilt one nobody knows more than that it handed its message on."""
    said = span.text(Attribute.RESULT) if hop == "deliver" else ""
    said = said or span.text(Attribute.OUTCOME) or span.text(Attribute.SETTLEMENT)
    return said or ("" if _is_rebuilt(span) else "failed" if span.failed else "ok")


def _waited(span: Span, parent: Span | None) -> float | None:
    if parent is not None and _is_send(parent):
        return max(span.start_ns - parent.start_ns, 0) / 1e9
    return span.number(Attribute.LAG)


def _name(span: Span, hop: str) -> str:
    if hop == "deliver" and span.text(Attribute.CHANNEL):
        return f"{span.text(Attribute.CHANNEL)} by {span.text(Attribute.PROVIDER)}"
    if hop == "receipt":
        return f"{span.text(Attribute.CHANNEL)} {span.text(Attribute.STEP)}".strip()
    named = (Attribute.STAGE, Attribute.ROUTE, Attribute.CONNECTOR, Attribute.DESTINATION_TEMPLATE,
             Attribute.DESTINATION_NAME)  # fmt: skip
    found = next((span.text(one) for one in named if span.text(one)), "")
    return found or span.name.removeprefix(f"{hop} ")
