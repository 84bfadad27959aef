"""The life of a hop: it is opened in a trace and a journey, runs as the current hop, and ends once.

The only room that creates and ends HopRecords. Must not know brokers, metrics, export or what a decorator looks like.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_plus

from opentelemetry import baggage
from opentelemetry.baggage import _BAGGAGE_KEY as BAGGAGE_KEY
from opentelemetry.context import Context, attach, create_key, get_current
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY as SPAN_KEY

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._hop.clock import age_us
from rtobs._hop.finish import finish
from rtobs._hop.runtime import runtime
from rtobs._journey import carrier
from rtobs._journey.carrier import NOTHING, Parent
from rtobs._journey.journey import Journey, new_correlation_id, new_span_id, new_trace_id
from rtobs._journey.message import Message, Trust
from rtobs._journey.record import HopRecord, Kind
from rtobs._journey.span import SAMPLED, CurrentSpan

HOP_KEY = create_key("rtobs-hop")

FANOUT_LIMIT = 32
"""Sends of one hop that stay in its trace; each further one starts a trace of its own, linked."""


def current() -> HopRecord | None:
    """Return the innermost hop of this context, ended or not."""
    found = get_current().get(HOP_KEY)
    return found if isinstance(found, HopRecord) else None


# Opening -------------------------------------------------------------------------------------------------------------


def start(
    kind: Kind, name: str, ambient: HopRecord | None = None, *, message: Message | None = None, headers: object = None,
    trust: Trust = "trusted", neighbours: tuple[str, ...] = (),
) -> HopRecord:  # fmt: skip
    """Create a hop in its journey and its trace, and note the time. It is not current yet: see ``enter``.

    A span of one of the *neighbours* (instrumentation scopes), or of the message's, that is current is this hop's span.
    """
    if not runtime.ready:
        runtime.prepare()
    record = HopRecord(kind, name, None)
    record.message = message
    span = get_current().get(SPAN_KEY)
    local = _local_parent(span)
    record.wall_ns = runtime.wall_ns()
    record.start_ns = runtime.monotonic_ns()
    record.span_id = new_span_id()
    within = ambient is not None and not ambient.ended
    if kind == "consume" or (kind == "accept" and not within):
        _from_message(record, ambient if within else None, headers, trust, local)
    elif kind == "job" or ambient is None:
        _outermost(record, local)
    else:
        _from_ambient(record, ambient, local)
    if message is not None and message.neighbour:
        neighbours = (*neighbours, message.neighbour)
    taken = ambient is not None and ambient.adopted is span  # it stands for the hop around
    if neighbours and local is not None and not taken and _scope_name(span) in neighbours and _suits(kind, span):
        _adopt(record, span)
    record.sampled = runtime.begin(record)
    return record


def _from_message(  # noqa: C901  what each trust believes, side by side
    record: HopRecord, ambient: HopRecord | None, headers: object, trust: Trust, local: Parent | None
) -> None:
    """Take journey and trace from the headers as far as their source is trusted; link what is around."""
    found = NOTHING
    if trust == "trusted":
        found = carrier.extract(headers, runtime.wire_key)
    elif trust == "link":
        found = carrier.extract_link(headers)
    journey = found.journey
    if journey is None:
        unread = trust == "ignore" or (trust == "link" and found.parent is not None)  # not believed is not missing
        record.missing_carrier = record.kind == "consume" and not unread
        journey = _new_journey(record)
    elif not journey.created_us:  # known from baggage only: another language carried it on
        journey.created_us = record.wall_ns // 1000
    record.journey = journey
    if trust == "trusted" and found.parent is not None:
        _child_of(record, found.parent)
        record.tracestate = journey.tracestate = found.tracestate
        if local is not None and ambient is None and local.trace_id != record.trace_id:
            record.link(*local)
    elif local is not None and ambient is None:
        _child_of(record, local)
    else:
        record.trace_id = _root_trace_id(journey)
    if trust == "link" and found.parent is not None:
        record.link(*found.parent)
    if ambient is not None:
        record.link(ambient.trace_id, ambient.span_id, ambient.flags)
    if found.client_id:
        record.note(names.Attribute.CLIENT_ID, found.client_id)
    record.foreign_baggage = found.foreign_baggage


def _outermost(record: HopRecord, local: Parent | None) -> None:
    """Begin a journey: inside the user's own span if one is current, else in a trace that carries its name."""
    record.journey = _new_journey(record)
    if local is not None:
        _child_of(record, local)
    else:
        record.trace_id = _root_trace_id(record.journey)


def _from_ambient(record: HopRecord, ambient: HopRecord, local: Parent | None) -> None:
    record.parent = ambient
    if not ambient.ended or (ambient.scope is not None and not ambient.scope.ended):
        record.scope = ambient.scope or ambient
    if ambient.kind == "job" or ambient.journey is None:  # a run of a connector is not a message
        record.journey = _new_journey(record)
        record.trace_id = _root_trace_id(record.journey)
        record.link(ambient.trace_id, ambient.span_id, ambient.flags)
        return
    record.journey = ambient.journey
    record.tracestate = ambient.tracestate
    if local is not None and local.trace_id == ambient.trace_id:
        _child_of(record, local)
    else:
        _child_of(record, Parent(ambient.trace_id, ambient.span_id, ambient.flags))
    if record.kind == "accept":
        record.scope = None


def _child_of(record: HopRecord, parent: Parent) -> None:
    record.trace_id = record.parent_trace_id = parent.trace_id
    record.parent_span_id = parent.span_id
    record.sampled = bool(parent.flags & 1)


def _new_journey(record: HopRecord) -> Journey:
    message = record.message
    if message is not None and message.adopt_correlation and message.conversation_id:
        return Journey(carrier.adopted_correlation_id(message.conversation_id), record.wall_ns // 1000)
    return Journey(f"{new_correlation_id(record.wall_ns):032x}", record.wall_ns // 1000)


def _root_trace_id(journey: Journey) -> int:
    if runtime.id_generator is not None:
        return runtime.id_generator()
    return int(journey.correlation_id, 16)


def _local_parent(span: object) -> Parent | None:
    """Return the ids of a current span that is neither ours nor remote."""
    if span is None or isinstance(span, CurrentSpan):
        return None
    get = getattr(span, "get_span_context", None)
    found = get() if get is not None else None
    if found is None or found.is_remote or not found.is_valid:
        return None
    return Parent(found.trace_id, found.span_id, int(found.trace_flags))


def _scope_name(span: Any) -> str:
    return str(getattr(getattr(span, "instrumentation_scope", None), "name", ""))


def _suits(kind: Kind, span: Any) -> bool:
    """Tell whether a neighbour's span may stand for such a hop: web frameworks trace more than requests."""
    return kind != "accept" or getattr(span, "kind", None) is SpanKind.SERVER


def _adopt(record: HopRecord, span: Any) -> None:
    """Let a neighbour's span, opened just outside for the same message, be this hop's span."""
    found = span.get_span_context()
    record.adopted = span
    record.trace_id, record.span_id = found.trace_id, found.span_id
    record.sampled = bool(found.trace_flags & 1)


def restart_trace(record: HopRecord, publisher: HopRecord) -> None:
    """Move a publish hop into a trace of its own, linked to its publisher."""
    record.trace_id = runtime.id_generator() if runtime.id_generator is not None else new_trace_id()
    record.parent_span_id = record.parent_trace_id = 0
    record.link(publisher.trace_id, publisher.span_id, publisher.flags)


# Running -------------------------------------------------------------------------------------------------------------


def enter(record: HopRecord, extra: dict[str, object] | None = None) -> Context:
    """Make *record* the current hop and, unless an SDK span stands for it, the current span."""
    previous = get_current()
    context = Context({**previous, HOP_KEY: record, SPAN_KEY: record.adopted or record, **(extra or {})})
    if BAGGAGE_KEY in previous:
        for name in (names.BAGGAGE_CID, names.BAGGAGE_TENANT):  # a neighbour may have read them, and would send them on
            context = baggage.remove_baggage(name, context)
    if record.foreign_baggage:
        context = _with_baggage(context, record.foreign_baggage)
    record.previous = previous
    attach(context)
    return context


def leave(record: HopRecord) -> None:
    """Restore what was current before; a context that is not ours any more is left alone."""
    previous, record.previous = record.previous, None
    if previous is not None and get_current().get(HOP_KEY) is record:
        attach(previous)


def _with_baggage(context: Context, members: str) -> Context:
    for member in members.split(","):
        name, _, value = member.partition(";")[0].partition("=")
        if name.strip() and value:
            context = baggage.set_baggage(unquote_plus(name.strip()), unquote_plus(value.strip()), context)
    return context


def headers_of(record: HopRecord, attempt: int = 1) -> dict[str, str]:
    """Return a fresh copy of the headers that carry *record*'s journey on from here, sent now."""
    journey = record.journey
    if journey is None:
        return {}
    foreign = baggage.get_all()
    flags = record.flags | SAMPLED if journey.kept else record.flags
    return carrier.write(
        journey, record.trace_id, record.span_id, flags, runtime.wall_ns() // 1000, attempt=attempt,
        channel=record.promise_channel, intent=record.promise_id, tracestate=record.tracestate,
        foreign_baggage=carrier.format_baggage(foreign) if foreign else "", wire_key=runtime.wire_key,
    )  # fmt: skip


def sent_at(message: Message | None, journey: Journey | None) -> tuple[int, str]:
    """Return since when a message waits, microseconds since the epoch (0 = unknown), and by whose clock."""
    sent_us = journey.sent_us if journey is not None else 0
    if message is not None and message.release_ns // 1000 > sent_us:  # else it was released before it was sent again
        return message.release_ns // 1000, "release"
    if sent_us or message is None:
        return sent_us, "producer"
    return message.sent_ns // 1000, "broker"


def measure_lag(record: HopRecord) -> None:
    """Note how long the message waited between being sent, or released, and the start of its handler."""
    sent_us, source = sent_at(record.message, record.journey)
    span = age_us(record.wall_ns // 1000, sent_us)
    if span is not None:
        record.lag, record.lag_source = span / 1e6, source


def end(record: HopRecord, error: BaseException | None = None) -> None:
    """End a hop: conclude it and hand it to the sinks. Only the first call does anything."""
    if record.ended:
        return
    record.ended = True
    record.duration_ns = runtime.monotonic_ns() - record.start_ns
    if error is not None:
        record.error_type = redaction.text(type(error).__qualname__, redaction.NAME_LIMIT)
        record.error_message = redaction.error_text(error)
    try:
        finish(record, error)
    except Exception as fault:  # noqa: BLE001  a hop that cannot be concluded is still timed and shown
        _guard.fault("hop.finish", fault)
    for sink in runtime.sinks:
        try:
            sink.end(record)
        except Exception as fault:  # noqa: BLE001  a broken sink is counted and dropped; the others still see the hop
            _guard.fault(type(sink).__name__, fault)
    record.deliveries = None
