"""A HopRecord as a span in the SDK's own form: name, kind, parent, links, attributes, status, stages.

Pure. Must not know samplers, processors or exporters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from rtobs import _conventions as names
from rtobs import _redaction as redaction
from rtobs._conventions import Attribute
from rtobs._journey.outcome import Outcome

if TYPE_CHECKING:
    from rtobs._journey.record import DeliveryEnd, HopRecord, StageRecord

KINDS = {
    "accept": SpanKind.SERVER, "publish": SpanKind.PRODUCER, "consume": SpanKind.CONSUMER, "deliver": SpanKind.CLIENT,
    "receipt": SpanKind.SERVER, "job": SpanKind.INTERNAL, "receive": SpanKind.CLIENT,
}  # fmt: skip
_OPERATIONS = {"publish": "send", "consume": "process", "receive": "receive"}
_FINE = (None, Outcome.OK, Outcome.CANCELLED)

SCOPE = InstrumentationScope(names.SCOPE, None, names.SCHEMA_URL)


def readable(record: HopRecord, resource: Any) -> list[ReadableSpan]:
    """Return the hop's span and its stages' child spans, in the SDK's own form."""
    context = record.get_span_context()
    end_ns = record.wall_ns + record.duration_ns
    spans = [
        ReadableSpan(
            span_name(record), context, parent_of(record), resource, attributes(record), tuple(events_of(record)),
            tuple(links_of(record) or ()), KINDS[record.kind], None, status_of(record), record.wall_ns, end_ns, SCOPE,
        )
    ]  # fmt: skip
    spans.extend(_stage(stage, record, resource) for stage in record.stages or () if stage.ended)
    return spans


def _stage(stage: StageRecord, hop: HopRecord, resource: Any) -> ReadableSpan:
    state = hop.get_span_context().trace_state
    flags = TraceFlags(hop.flags)
    context = SpanContext(hop.trace_id, stage.span_id, is_remote=False, trace_flags=flags, trace_state=state)
    parent = SpanContext(hop.trace_id, stage.parent_span_id, is_remote=False, trace_flags=flags, trace_state=state)
    found: dict[str, Any] = {Attribute.STAGE.value: stage.name, Attribute.OUTCOME.value: stage.outcome}
    if hop.journey is not None:
        found[Attribute.CORRELATION_ID.value] = hop.journey.correlation_id
    if stage.error_type:
        found[Attribute.ERROR_TYPE.value] = stage.error_type
    found.update(stage.attributes or {})
    status = Status(StatusCode.ERROR, stage.error_type) if stage.outcome == "failed" else Status()
    events = tuple(SdkEvent(e.name, e.attributes, e.time_ns) for e in stage.events or ())
    return ReadableSpan(
        stage.name, context, parent, resource, found, events, (), SpanKind.INTERNAL, None, status, stage.wall_ns,
        stage.wall_ns + stage.duration_ns, SCOPE,
    )  # fmt: skip


def span_name(record: HopRecord) -> str:
    """Return ``{operation} {destination}``, low-cardinality (semantic conventions for messaging spans)."""
    name = f"{record.channel} {record.provider}" if record.kind == "deliver" else record.name
    return redaction.text(f"{record.kind} {name}".rstrip(), redaction.NAME_LIMIT)


def parent_of(record: HopRecord) -> SpanContext | None:
    """Return the parent's ids; None for the root of a trace."""
    if not record.parent_span_id:
        return None
    state = TraceState.from_header([record.tracestate]) if record.tracestate else TraceState()
    return SpanContext(
        record.trace_id, record.parent_span_id, is_remote=record.kind in ("consume", "accept"),
        trace_flags=TraceFlags(record.flags), trace_state=state,
    )  # fmt: skip


def links_of(record: HopRecord) -> list[Link] | None:
    """Return the spans this one belongs to without being their child."""
    if not record.links:
        return None
    return [
        Link(
            SpanContext(one.trace_id, one.span_id, is_remote=True, trace_flags=TraceFlags(one.flags & 0x03)),
            one.attributes,
        )
        for one in record.links
    ]


def events_of(record: HopRecord) -> Iterator[SdkEvent]:
    """Yield what happened inside, the exception that ended it and the deliveries it concluded."""
    for event in record.events or ():
        yield SdkEvent(event.name, event.attributes, event.time_ns)
    if record.error_type:
        fields = {"exception.type": record.error_type, "exception.message": record.error_message}
        yield SdkEvent("exception", fields, record.wall_ns + record.duration_ns)
    for end in record.delivery_ends or ():
        yield SdkEvent(names.DELIVERY_EVENT, _ending(end), record.wall_ns + record.duration_ns)


def _ending(end: DeliveryEnd) -> dict[str, Any]:
    """Return how a promised delivery ended, as the attributes of a span event."""
    found: dict[str, Any] = {
        Attribute.CHANNEL.value: end.channel,
        Attribute.PROVIDER.value: end.provider,
        Attribute.STEP.value: end.step,
        Attribute.OUTCOME.value: "recovered" if end.recovered else end.outcome.value,
    }
    if end.category is not None:
        found[Attribute.ERROR_CATEGORY.value] = end.category.value
    return found


def status_of(record: HopRecord) -> Status:
    """Return ERROR where the hop did not do what it is for; the outcome alone decides."""
    if record.result == "failed" or (record.kind != "deliver" and record.outcome not in _FINE):
        return Status(StatusCode.ERROR, str(record.outcome or record.result))
    return Status()


def early(record: HopRecord) -> dict[str, Any]:
    """Return what a sampler may want to know at the start."""
    found: dict[str, Any] = {Attribute.HOP.value: record.kind}
    if record.journey is not None:
        found[Attribute.CORRELATION_ID.value] = record.journey.correlation_id
    if record.message is not None:
        found[Attribute.SYSTEM.value] = record.message.system
        found[Attribute.DESTINATION_NAME.value] = redaction.text(record.message.destination)
    return found


def attributes(record: HopRecord) -> dict[str, Any]:
    """Return all facts of an ended hop under their conventional names."""
    found: dict[str, Any] = dict(record.attributes) if record.attributes else {}
    _plain(record, found)
    if record.kind in _OPERATIONS:
        _messaging(record, found)
    elif record.kind == "accept":
        found[Attribute.ROUTE.value] = record.name
    elif record.kind == "job":
        found[Attribute.CONNECTOR.value], found[Attribute.STATE.value] = record.name, record.state
    if record.lag is not None:
        found[Attribute.LAG.value] = record.lag
    if record.age is not None:
        found[Attribute.AGE.value] = record.age
    if record.attempt > 1:
        found[Attribute.ATTEMPT.value] = record.attempt
    if record.sends and record.kind != "publish":
        found[Attribute.SENDS.value] = record.sends
    if record.ambiguous:
        found[Attribute.MAYBE_DELIVERED.value] = True
    return found


def _plain(record: HopRecord, found: dict[str, Any]) -> None:
    """Add the facts that are words, as far as they are known."""
    journey, outcome = record.journey, record.settled or record.outcome
    for name, word in (
        (Attribute.HOP, record.kind), (Attribute.CHANNEL, record.channel), (Attribute.PROVIDER, record.provider),
        (Attribute.RESULT, record.result), (Attribute.OUTCOME, outcome), (Attribute.ERROR_CATEGORY, record.category),
        (Attribute.REASON, record.reason), (Attribute.ERROR_TYPE, record.error_type),
        (Attribute.SETTLEMENT, record.settlement), (Attribute.STEP, record.step),
        (Attribute.SAMPLING_REASON, record.keep_reason), (Attribute.LAG_SOURCE, record.lag_source),
    ):  # fmt: skip
        if word:
            found[name.value] = str(word)
    if journey is None:
        return
    for name, word in (
        (Attribute.CORRELATION_ID, journey.correlation_id), (Attribute.TENANT, journey.tenant),
        (Attribute.REGION, journey.region), (Attribute.SOURCE, journey.source),
        (Attribute.DEVICE_TYPE, journey.device_type), (Attribute.INTENT_ID, record.promise_id or journey.intent),
    ):  # fmt: skip
        if word:
            found[name.value] = word


def _messaging(record: HopRecord, found: dict[str, Any]) -> None:
    """Add what semantic conventions say of one operation on one message; native text is not trusted to be text."""
    message = record.message
    found[Attribute.OPERATION_NAME.value] = record.kind
    found[Attribute.OPERATION_TYPE.value] = _OPERATIONS[record.kind]
    found[Attribute.SYSTEM.value] = message.system if message is not None else names.UNKNOWN
    found[Attribute.DESTINATION_NAME.value] = redaction.text(message.destination if message else record.name)
    if record.named:
        found[Attribute.DESTINATION_TEMPLATE.value] = record.name
    if message is None:
        return
    if message.address and message.system == "rabbitmq":
        found[Attribute.ROUTING_KEY.value] = redaction.text(message.address)
    elif message.address and message.address != message.destination:
        found[Attribute.ADDRESS.value] = redaction.text(message.address)
    if message.conversation_id:
        found[Attribute.CONVERSATION_ID.value] = redaction.text(message.conversation_id)
    if message.id:
        found[Attribute.MESSAGE_ID.value] = redaction.text(message.id)
    if message.group:
        found[Attribute.CONSUMER_GROUP.value] = redaction.text(message.group)
    if message.pending is not None:
        found[Attribute.PENDING.value] = message.pending
