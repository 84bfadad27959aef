"""The life of a hop: it is opened in a trace and a journey, runs as the current hop, and ends once.

The only room that creates and ends HopRecords. Must not know brokers, metrics, export or what a decorator looks like.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import unquote_plus

from opentelemetry import baggage
from opentelemetry.baggage import _BAGGAGE_KEY as BAGGAGE_KEY
from opentelemetry.context import create_key
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY as SPAN_KEY

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._hop.clock import PAST_LIMIT_US, age_us
from rtobs._hop.context import Context, attach, get_current, put_value
from rtobs._hop.finish import PLAIN_KINDS, finish
from rtobs._hop.runtime import runtime
from rtobs._hop.slots import slots
from rtobs._journey import carrier
from rtobs._journey.carrier import NOTHING, Parent
from rtobs._journey.journey import Journey, new_correlation_id, new_span_id, random_bits
from rtobs._journey.ledger import apart_span, sent_span
from rtobs._journey.message import Message, Trust
from rtobs._journey.outcome import Outcome
from rtobs._journey.randomness import DIGITS, MASK, branch_randomness, explicit, foreign_randomness, trace_id_with
from rtobs._journey.record import HopRecord, Kind
from rtobs._journey.span import CurrentSpan

HOP_KEY = create_key("rtobs-hop")
_OK = Outcome.OK
"""Asked of its class it costs as much as ten other attributes."""

MOST_OPEN = 10_000
"""Open hops that are kept in sight; further ones are counted only when they end."""
Place = Literal["in", "beside", "apart"]

FANOUT_LIMIT = 32
"""Sends of one hop that stay in its trace; each further one starts a trace of its own, linked."""


def current() -> HopRecord | None:
    """Return the innermost hop of this context, ended or not."""
    found = get_current().get(HOP_KEY)
    return found if type(found) is HopRecord else None


def is_on() -> bool:
    """Tell whether hops are opened at all; the first call finds out."""
    if not runtime.ready:
        runtime.prepare()
    return not runtime.off


# Opening -------------------------------------------------------------------------------------------------------------


def start(  # noqa: C901, PLR0912  where each kind of hop begins, side by side
    kind: Kind, name: str, ambient: HopRecord | None = None, *, message: Message | None = None, headers: object = None,
    trust: Trust = "trusted", neighbours: tuple[str, ...] = (), place: Place = "in", number: int = 0,
    journey: Journey | None = None,
) -> HopRecord:  # fmt: skip
    """Create a hop in its journey and its trace, and note the time. It is not current yet: see ``enter``.

    A span of one of the *neighbours* (instrumentation scopes), or of the message's, that is current is this hop's span.
    *place* is where it is seen from *ambient*: in it, beside it under the same parent, or apart in a linked trace;
    *number*: which of its sends this is, if it is one. *journey*: the one that an outermost hop goes on with.
    """
    if not runtime.ready:
        runtime.prepare()
    record = HopRecord(kind, name, message)
    context = get_current()
    local = span = None
    if context and (span := context.get(SPAN_KEY)) is not None and type(span) is not HopRecord:
        local = _local_parent(span)
        if local is not None and (around := current()) is not None and around.adopted is span:
            local = None  # it stands for a hop: the one around this one, or one of which this is no part
    record.wall_ns = wall_ns = runtime.wall_ns()
    record.start_ns = runtime.monotonic_ns()
    if kind == "consume":
        if ambient is not None and ambient.ended:
            ambient = None
        _from_message(record, ambient, headers, trust, local)
    elif kind == "accept" and (ambient is None or ambient.ended):
        _from_message(record, None, headers, trust, local)
    elif ambient is not None and kind != "job":
        _from_ambient(record, ambient, local)
        if number:
            record.number = number
            if ambient.kind == "job":
                record.drawn_hex = apart_span(ambient.span_hex, record.trace_hex)
            elif place == "in":
                record.drawn_hex = sent_span(ambient.span_hex, number)
    elif journey is not None:
        _outermost(record, local, journey)
    elif local is None and runtime.id_generator is None and (message is None or not message.adopt_correlation):
        identity = record.trace_hex = new_correlation_id(wall_ns)  # a journey begins; its first trace carries its name
        record.journey = Journey(identity, wall_ns // 1000)
        record.drawn_hex = new_span_id()  # it is about to be asked for
    else:
        _outermost(record, local, None)
    if local is not None and (neighbours or (message is not None and message.neighbour)):
        _meet(record, ambient, span, neighbours)
    if place != "in" and ambient is not None and record.adopted is None:
        _move(record, ambient, place)
    else:
        record.sampled = runtime.begin(record)
    return record


def _move(record: HopRecord, ambient: HopRecord, place: Place) -> None:
    """Begin a hop beside *ambient*, sampled as that is, or apart, where its trace decides for itself."""
    if place == "apart":
        _branch(record)
        record.drawn_hex = apart_span(ambient.span_hex, record.trace_hex)
        record.parent_hex = ""
        record.link(ambient.trace_id, ambient.span_id, ambient.flags)
        record.sampled = runtime.begin(record)
        return
    spans_start = runtime.starts_spans()
    if not spans_start:
        record.sampled = runtime.begin(record)
    if ambient.parent_hex or not spans_start:  # an SDK span without a parent has a trace of its own
        record.parent, record.scope = None, None
        record.parent_hex = ambient.parent_hex
    if spans_start:
        record.sampled = runtime.begin(record)


def _meet(record: HopRecord, ambient: HopRecord | None, span: Any, neighbours: tuple[str, ...]) -> None:
    """Adopt a current span of one of the *neighbours*, unless it stands for the hop around already."""
    if record.message is not None and record.message.neighbour:
        neighbours = (*neighbours, record.message.neighbour)
    taken = ambient is not None and ambient.adopted is span
    if not taken and _scope_name(span) in neighbours and _suits(record.kind, span):
        _adopt(record, span)


def _from_message(  # noqa: C901, PLR0912  what each trust believes, side by side
    record: HopRecord, ambient: HopRecord | None, headers: object, trust: Trust, local: Parent | None
) -> None:
    """Take journey and trace from the headers as far as their source is trusted; link what is around."""
    if trust == "trusted":
        found = carrier.extract(headers, runtime.wire_key)
        if found.plain and local is None and ambient is None:
            record.journey = found.journey
            record.trace_hex, record.parent_hex, record.sampled = found.trace, found.span, found.flags & 1 == 1
            return
    else:
        found = carrier.extract_link(headers) if trust == "link" else NOTHING
    journey, trace = found.journey, found.trace
    if journey is None:
        unread = trust == "ignore" or (trust == "link" and trace != "")  # not believed is not missing
        record.missing_carrier = record.kind == "consume" and not unread
        journey = _new_journey(record)
    elif not journey.created_us:  # known from baggage only: another language carried it on
        journey.created_us = record.wall_ns // 1000
    record.journey = journey
    if journey.ledger and not trace:
        journey.ledger = ""  # nobody can tell whether it is this message's
    if trace and trust == "trusted":
        record.trace_hex, record.parent_hex, record.sampled = trace, found.span, found.flags & 1 == 1
        if found.tracestate:
            record.tracestate = found.tracestate
        if local is not None and ambient is None and local.trace_id != record.trace_id:
            record.link(*local)
    elif local is not None and ambient is None:
        _child_of(record, local)
    else:
        _begin_trace(record, journey)
    if trace and trust == "link":
        record.link(int(trace, 16), int(found.span, 16), found.flags)
    if ambient is not None:
        record.link(ambient.trace_id, ambient.span_id, ambient.flags)
    if found.client_id:
        record.note(names.Attribute.CLIENT_ID, found.client_id)
    if found.foreign_baggage:
        record.foreign_baggage = found.foreign_baggage


def _outermost(record: HopRecord, local: Parent | None, known: Journey | None) -> None:
    """Begin a journey, or go on with one that is *known*: inside the user's own span if one is current.

    Else in a trace that carries its name, or at least its randomness, so that all its traces are sampled or none.
    """
    journey = record.journey = known or _new_journey(record)
    if local is not None:
        _child_of(record, local)
        return
    _begin_trace(record, journey)
    if known is not None and not record.tracestate:  # the trace that has its name was the first one
        record.trace_id = trace_id_with(int(journey.correlation_id, 16) & MASK, random_bits(72))


def _from_ambient(record: HopRecord, ambient: HopRecord, local: Parent | None) -> None:
    record.parent = ambient
    if not ambient.ended or (ambient.scope is not None and not ambient.scope.ended):
        record.scope = ambient.scope or ambient
    if ambient.kind == "job" or ambient.journey is None:  # a run of a connector is not a message
        record.journey = _new_journey(record)
        _begin_trace(record, record.journey)
        record.link(ambient.trace_id, ambient.span_id, ambient.flags)
        return
    record.journey = ambient.journey
    record.tracestate = ambient.tracestate
    if local is not None and local.trace_id == ambient.trace_id:
        _child_of(record, local)
    else:
        record.trace_hex, record.parent_hex, record.sampled = ambient.trace_hex, ambient.span_hex, ambient.sampled
    if record.kind == "accept":
        record.scope = None


def _child_of(record: HopRecord, parent: Parent) -> None:
    record.trace_id, record.parent_span_id, flags = parent
    record.sampled = flags & 1 == 1


def _new_journey(record: HopRecord) -> Journey:
    message = record.message
    if message is not None and message.adopt_correlation and message.conversation_id:
        return Journey(carrier.adopted_correlation_id(message.conversation_id), record.wall_ns // 1000)
    return Journey(new_correlation_id(record.wall_ns), record.wall_ns // 1000)


def _other_trace_id() -> str:
    """Return a trace id of the generator that a provider insists on, if one does."""
    return f"{runtime.id_generator():032x}" if runtime.id_generator is not None else ""


def _begin_trace(record: HopRecord, journey: Journey) -> None:
    """Let a trace begin whose id is the journey's name; where it is not, or is not random, it says the randomness."""
    other = _other_trace_id()
    record.trace_hex = other or journey.correlation_id
    message = record.message
    if message is not None and message.adopt_correlation and message.conversation_id:
        record.tracestate = explicit(foreign_randomness(journey.correlation_id, runtime.wire_key))
    elif other:
        record.tracestate = explicit(int(journey.correlation_id[-DIGITS:], 16))


def _branch(record: HopRecord) -> None:
    """Let a trace of its own begin for a send among many, with randomness of its own, always the same."""
    journey, other = record.journey, _other_trace_id()
    randomness = branch_randomness(int(journey.correlation_id, 16) & MASK, record.number) if journey is not None else 0
    if other:
        record.trace_hex, record.tracestate = other, explicit(randomness)
    else:
        record.trace_id, record.tracestate = trace_id_with(randomness, random_bits(72)) or 1, ""


def _local_parent(span: object) -> Parent | None:
    """Return the ids of a current span that is neither ours nor remote."""
    if isinstance(span, CurrentSpan):
        return None
    get = getattr(span, "get_span_context", None)
    found = get() if get is not None else None
    if found is None or found.is_remote or not found.is_valid:
        return None
    return Parent(found.trace_id, found.span_id, int(found.trace_flags))


def _scope_name(span: Any) -> str:
    return str(getattr(getattr(span, "instrumentation_scope", None), "name", ""))


def _suits(kind: str, span: Any) -> bool:
    """Tell whether a neighbour's span may stand for such a hop: web frameworks trace more than requests."""
    return kind != "accept" or getattr(span, "kind", None) is SpanKind.SERVER


def _adopt(record: HopRecord, span: Any) -> None:
    """Let a neighbour's span, opened just outside for the same message, be this hop's span."""
    found = span.get_span_context()
    record.adopted = span
    record.trace_id, record.span_id = found.trace_id, found.span_id
    record.sampled = bool(found.trace_flags & 1)


# Running -------------------------------------------------------------------------------------------------------------


def enter(record: HopRecord, extra: dict[str, object] | None = None) -> None:
    """Make *record* the current hop and, unless an SDK span stands for it, the current span."""
    previous = record.previous = get_current()
    if not previous and extra is None:
        context = Context()
        put_value(context, HOP_KEY, record)
        put_value(context, SPAN_KEY, record.adopted or record)
    else:
        context = Context({**previous, HOP_KEY: record, SPAN_KEY: record.adopted or record, **(extra or {})})
        if BAGGAGE_KEY in previous:
            for name in (names.BAGGAGE_CID, names.BAGGAGE_TENANT):  # a neighbour may have read them and send them on
                context = baggage.remove_baggage(name, context)
    if record.rare is not None and record.foreign_baggage:
        context = _with_baggage(context, record.foreign_baggage)
    open_hops = runtime.open_hops
    if len(open_hops) < MOST_OPEN:
        open_hops.add(record)
    else:
        _guard.tally(names.HOPS_UNTRACKED, record.kind)
    try:
        if slots.workers and record.kind == "consume":
            runtime.hold(record)
        attach(context)
    except Exception:
        open_hops.discard(record)
        raise


def leave(record: HopRecord) -> None:
    """Restore what was current before; a context that is not ours any more is left alone."""
    previous = record.previous
    if previous is not None and get_current().get(HOP_KEY) is record:
        attach(previous)
    record.previous = None


def _with_baggage(context: Context, members: str) -> Context:
    for member in members.split(","):
        name, _, value = member.partition(";")[0].partition("=")
        if name.strip() and value:
            context = baggage.set_baggage(unquote_plus(name.strip()), unquote_plus(value.strip()), context)
    return context


def sent_at(message: Message | None, journey: Journey | None) -> tuple[int, str]:
    """Return since when a message waits, microseconds since the epoch (0 = unknown), and by whose clock."""
    sent_us = journey.sent_us if journey is not None else 0
    if message is not None and message.release_ns // 1000 > sent_us:  # else it was released before it was sent again
        return message.release_ns // 1000, "release"
    if sent_us or message is None:
        return sent_us, "producer"
    return message.sent_ns // 1000, message.sent_clock


def measure_lag(record: HopRecord) -> None:
    """Note how long the message waited between being sent, or released, and the start of its handler."""
    message, journey, now_us = record.message, record.journey, record.wall_ns // 1000
    sent_us, source = journey.sent_us if journey is not None else 0, "producer"
    if not sent_us or (message is not None and message.release_ns):
        sent_us, source = sent_at(message, journey)
    span: int | None = now_us - sent_us
    if not 0 <= now_us - sent_us <= PAST_LIMIT_US:
        span = age_us(now_us, sent_us)
    if span is not None:
        record.lag, record.lag_source = span / 1e6, source


# Ending --------------------------------------------------------------------------------------------------------------


def end(record: HopRecord, error: BaseException | None = None) -> None:  # noqa: C901  the end of most hops is one piece
    """End a hop: conclude it and hand it to the sinks. Only the first call does anything."""
    if record.ended:
        return
    record.duration_ns = runtime.monotonic_ns() - record.start_ns
    runtime.open_hops.discard(record)
    record.ended, record.opener = True, None
    journey, settlement, lag = record.journey, record.settlement, record.lag
    sinks = runtime.sinks
    if (
        error is None
        and record.rare is None
        and record.attempt == 1
        and (not settlement or settlement == "acked")
        and record.kind in PLAIN_KINDS
        and (journey is None or journey.rare is None)
    ):  # fmt: skip  nothing went wrong, nothing was said or tried, nothing is promised: ``finish`` would say the same
        record.healthy = True
        record.outcome = _OK
        if record.kind == "consume":
            record.settled = _OK
        if (
            not record.sampled and record.adopted is None and record.events is None
            and record.duration_ns <= runtime.slow_ns and (lag is None or lag <= runtime.slow_lag)
        ):  # fmt: skip
            sinks = runtime.quiet if runtime.quiet_of is sinks else runtime.choose_quiet()
    else:
        try:
            if error is not None:
                record.error_type = redaction.text(type(error).__qualname__, redaction.NAME_LIMIT)
                record.error_message = redaction.error_text(error)
            finish(record, error)
        except Exception as fault:  # noqa: BLE001  a hop that cannot be concluded is still timed and shown
            _guard.fault("hop.finish", fault)
    for sink in sinks:
        try:
            sink.end(record)
        except Exception as fault:  # noqa: BLE001  a broken sink is counted and dropped; the others still see the hop
            _guard.fault(type(sink).__name__, fault)
    if record.held:
        runtime.release(record)
    if record.rare is not None:
        record.deliveries = None


def close(record: HopRecord, error: BaseException | None = None) -> None:
    """Restore what was current before, unless the context is not ours any more, and end the hop."""
    previous = record.previous
    if previous is not None and get_current().get(HOP_KEY) is record:
        attach(previous)
    record.previous = None
    end(record, error)


def end_again(record: HopRecord, error: BaseException | None = None) -> None:
    """End a hop whose end has failed half-way. Raises nothing."""
    try:
        end(record, error)
    except Exception as fault:  # noqa: BLE001  there is nothing more that could be done
        _guard.fault("hop.end", fault)


def close_again(record: HopRecord, error: BaseException | None = None) -> None:
    """Close a hop whose closing has failed half-way: nothing of it stays current or open. Raises nothing."""
    try:
        close(record, error)
    except Exception as fault:  # noqa: BLE001  there is nothing more that could be done
        _guard.fault("hop.close", fault)
