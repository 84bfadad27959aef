"""Completion: what a ledger tells of the steps before becomes their spans, as far as nobody has exported them.

A pure function: whoever rebuilds, and how often, makes the same spans to the byte. They have the ids, parents and start
that the real ones had and end where the message was handed over. Must not know records, samplers or exporters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, TraceFlags, TraceState

from rtobs._conventions import Attribute
from rtobs._journey.ledger import Step, Told, read
from rtobs._journey.tracestate import only_rv
from rtobs._telemetry.readable import KINDS, SCOPE

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord

UNKNOWN_SERVICE: Final = "unknown_service"
_FLAGS: Final = TraceFlags(0x03)
_FROM_AFAR: Final = frozenset({"consume", "accept"})
"""Kinds of step whose parent is in another process."""
_NAMED: Final = {
    "accept": Attribute.ROUTE.value, "consume": Attribute.DESTINATION_NAME.value, "job": Attribute.CONNECTOR.value,
    "receipt": Attribute.STEP.value,
}  # fmt: skip
_UNSET: Final = Status()


def complete(record: HopRecord, journey: Journey) -> tuple[list[ReadableSpan], int]:
    """Return the missing spans of the steps before the hop that got *journey*'s message, and how many nobody knows.

    Whoever has kept the journey before has completed it up to there: what is missing since is what came after the last
    step that was exported.
    """
    told = read(journey.ledger, record.trace_id, record.parent_span_id, int(journey.correlation_id, 16))
    steps = told.steps
    if journey.kept_before:
        last = max((index for index, step in enumerate(steps) if step.exported), default=-1)
        steps = steps[last + 1 :]
    return rebuild(Told(steps, told.left_out), journey.correlation_id, record.tracestate), told.left_out


def rebuild(told: Told, correlation_id: str, tracestate: str = "") -> list[ReadableSpan]:
    """Return the spans of the steps that a ledger says are missing, and of their sends, in order.

    Of *tracestate* they have the explicit randomness alone: how probable it was to keep them nobody knows, and the
    rest may differ from hop to hop.
    """
    state = only_rv(tracestate) if tracestate else ""
    trace_state = TraceState.from_header([state]) if state else None
    spans: list[ReadableSpan] = []
    for step in told.steps:
        if not step.exported:
            spans += _spans(step, correlation_id, trace_state)
    return spans


@lru_cache(256)
def resource(service: str) -> Resource:
    """Return the resource of a service that is not this one; the same object each time, as encoders remember it."""
    return Resource({"service.name": service or UNKNOWN_SERVICE, Attribute.RECONSTRUCTED.value: True})


def _spans(step: Step, correlation_id: str, state: TraceState | None) -> list[ReadableSpan]:
    own = SpanContext(step.trace_id, step.span_id, is_remote=False, trace_flags=_FLAGS, trace_state=state)
    parent = None
    if step.parent_span_id:
        afar = step.kind in _FROM_AFAR
        parent = SpanContext(step.trace_id, step.parent_span_id, is_remote=afar, trace_flags=_FLAGS, trace_state=state)
    facts = _facts(step.kind, correlation_id)
    if step.kind == "publish":
        return [_send(step, own, parent, (), facts, step.start_ns)]
    if step.name and step.kind in _NAMED:
        facts[_NAMED[step.kind]] = step.name
    if step.kind == "consume":
        facts[_OPERATION_NAME], facts[_OPERATION_TYPE] = "consume", "process"
    if step.attempt > 1:
        facts[_ATTEMPT] = step.attempt
    span = _span(step, step.kind, step.name, own, parent, (), facts, (step.start_ns, step.handover_ns))
    if step.sent_span_id == step.span_id:
        return [span]
    together = step.sent_trace_id == step.trace_id
    sent = SpanContext(step.sent_trace_id, step.sent_span_id, is_remote=False, trace_flags=_FLAGS, trace_state=state)
    links = () if together else (Link(own),)
    facts = _facts("publish", correlation_id)
    return [span, _send(step, sent, own if together else None, links, facts, step.sent_ns)]


def _send(  # noqa: PLR0917  the parts of a span
    step: Step, context: SpanContext, parent: SpanContext | None, links: tuple[Link, ...], facts: dict[str, Any],
    start_ns: int,
) -> ReadableSpan:  # fmt: skip
    facts[_OPERATION_NAME], facts[_OPERATION_TYPE] = "publish", "send"
    if step.destination:
        facts[Attribute.DESTINATION_NAME.value] = step.destination
    return _span(step, "publish", step.destination, context, parent, links, facts, (start_ns, step.sent_ns))


def _span(  # noqa: PLR0917  as above
    step: Step, kind: str, name: str, context: SpanContext, parent: SpanContext | None, links: tuple[Link, ...],
    facts: dict[str, Any], times: tuple[int, int],
) -> ReadableSpan:  # fmt: skip
    return ReadableSpan(
        f"{kind} {name}".rstrip(), context, parent, resource(step.service), facts, (), links,
        KINDS.get(kind, SpanKind.INTERNAL), None, _UNSET, *times, SCOPE,
    )  # fmt: skip


def _facts(kind: str, correlation_id: str) -> dict[str, Any]:
    return {_HOP: kind, _CORRELATION_ID: correlation_id, _RECONSTRUCTED: True}


_ATTEMPT, _CORRELATION_ID = Attribute.ATTEMPT.value, Attribute.CORRELATION_ID.value
_HOP, _OPERATION_NAME = Attribute.HOP.value, Attribute.OPERATION_NAME.value
_OPERATION_TYPE, _RECONSTRUCTED = Attribute.OPERATION_TYPE.value, Attribute.RECONSTRUCTED.value
