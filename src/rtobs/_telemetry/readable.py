"""A HopRecord as a span in the SDK's own form: name, kind, parent, links, attributes, status, stages.

Pure. Must not know samplers, processors or exporters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from rtobs import _conventions as names
from rtobs import _redaction as redaction
from rtobs._conventions import Attribute
from rtobs._journey.outcome import Outcome
from rtobs._journey.span import context_of

if TYPE_CHECKING:
    from rtobs._journey.message import Position
    from rtobs._journey.record import DeliveryEnd, HopRecord, StageRecord
    from rtobs._journey.span import Event

KINDS = {
    "accept": SpanKind.SERVER, "publish": SpanKind.PRODUCER, "consume": SpanKind.CONSUMER, "deliver": SpanKind.CLIENT,
    "receipt": SpanKind.SERVER, "job": SpanKind.INTERNAL, "receive": SpanKind.CLIENT,
}  # fmt: skip
_OPERATIONS = {"publish": "send", "consume": "process", "receive": "receive"}
_FINE = (None, Outcome.OK, Outcome.CANCELLED)

FLAGS = {bits: TraceFlags(bits) for bits in range(4)}
SCOPE = InstrumentationScope(names.SCOPE, None, names.SCHEMA_URL)


# As plain text: a member of an enum takes a call each time it is asked for its value.
_ADDRESS, _AGE, _ATTEMPT = Attribute.ADDRESS.value, Attribute.AGE.value, Attribute.ATTEMPT.value
_CHANNEL, _CONNECTOR = Attribute.CHANNEL.value, Attribute.CONNECTOR.value
_CONSUMER_GROUP, _CONVERSATION_ID = Attribute.CONSUMER_GROUP.value, Attribute.CONVERSATION_ID.value
_CORRELATION_ID, _DESTINATION_NAME = Attribute.CORRELATION_ID.value, Attribute.DESTINATION_NAME.value
_DESTINATION_TEMPLATE, _DEVICE_TYPE = Attribute.DESTINATION_TEMPLATE.value, Attribute.DEVICE_TYPE.value
_ERROR_CATEGORY, _ERROR_TYPE = Attribute.ERROR_CATEGORY.value, Attribute.ERROR_TYPE.value
_HOP, _INTENT_ID, _LAG = Attribute.HOP.value, Attribute.INTENT_ID.value, Attribute.LAG.value
_KEY, _OFFSET, _PARTITION = Attribute.KAFKA_KEY.value, Attribute.KAFKA_OFFSET.value, Attribute.PARTITION.value
_LAG_SOURCE, _MAYBE_DELIVERED = Attribute.LAG_SOURCE.value, Attribute.MAYBE_DELIVERED.value
_MESSAGE_ID, _OPERATION_NAME = Attribute.MESSAGE_ID.value, Attribute.OPERATION_NAME.value
_OPERATION_TYPE, _OUTCOME, _PENDING = Attribute.OPERATION_TYPE.value, Attribute.OUTCOME.value, Attribute.PENDING.value
_PROVIDER, _REASON, _REGION = Attribute.PROVIDER.value, Attribute.REASON.value, Attribute.REGION.value
_RESULT, _ROUTE, _ROUTING_KEY = Attribute.RESULT.value, Attribute.ROUTE.value, Attribute.ROUTING_KEY.value
_SAMPLING_REASON, _SENDS = Attribute.SAMPLING_REASON.value, Attribute.SENDS.value
_SETTLEMENT, _SOURCE, _STATE = Attribute.SETTLEMENT.value, Attribute.SOURCE.value, Attribute.STATE.value
_STEP, _SYSTEM, _TENANT = Attribute.STEP.value, Attribute.SYSTEM.value, Attribute.TENANT.value
_TOMBSTONE = Attribute.KAFKA_TOMBSTONE.value


def readable(record: HopRecord, resource: Any) -> list[ReadableSpan]:
    """Return the hop's span and its stages' child spans, in the SDK's own form."""
    span = ReadableSpan(
        span_name(record), record.get_span_context(), parent_of(record), resource, attributes(record),
        events_of(record), links_of(record) or (), KINDS[record.kind], None, status_of(record), record.wall_ns,
        record.wall_ns + record.duration_ns if record.ended else None, SCOPE,
    )  # fmt: skip
    if not record.stages:
        return [span]
    return [span, *(_stage(stage, record, resource) for stage in record.stages if stage.ended)]


def _stage(stage: StageRecord, hop: HopRecord, resource: Any) -> ReadableSpan:
    state = hop.get_span_context().trace_state
    flags = TraceFlags(hop.flags)
    context = SpanContext(hop.trace_id, stage.span_id, is_remote=False, trace_flags=flags, trace_state=state)
    parent = SpanContext(hop.trace_id, stage.parent_span_id, is_remote=False, trace_flags=flags, trace_state=state)
    name = redaction.redact(stage.name, redaction.NAME_LIMIT)
    found: dict[str, Any] = {Attribute.STAGE.value: name, Attribute.OUTCOME.value: stage.outcome}
    if hop.journey is not None:
        found[Attribute.CORRELATION_ID.value] = hop.journey.correlation_id
    if stage.error_type:
        found[Attribute.ERROR_TYPE.value] = stage.error_type
    if stage.attributes:
        found.update(redaction.fields(stage.attributes))
    status = Status(StatusCode.ERROR, stage.error_type) if stage.outcome == "failed" else Status()
    events = tuple(map(_event, stage.events or ()))
    return ReadableSpan(
        name, context, parent, resource, found, events, (), SpanKind.INTERNAL, None, status, stage.wall_ns,
        stage.wall_ns + stage.duration_ns, SCOPE,
    )  # fmt: skip


_names: dict[tuple[str, str], str] = {}
_MOST_NAMES = 1024


def span_name(record: HopRecord) -> str:
    """Return ``{operation} {destination}``, low-cardinality (semantic conventions for messaging spans)."""
    key = record.kind, f"{record.channel} {record.provider}" if record.kind == "deliver" else record.name
    found = _names.get(key)
    if found is None:
        found = redaction.redact(" ".join(key).rstrip(), redaction.NAME_LIMIT)
        if len(_names) < _MOST_NAMES:
            _names[key] = found
    return found


def parent_of(record: HopRecord) -> SpanContext | None:
    """Return the parent's ids; None for the root of a trace."""
    if not record.parent_hex:
        return None
    return context_of(
        record.get_span_context().trace_id, int(record.parent_hex, 16), FLAGS[record.flags], record.tracestate,
        is_remote=record.kind in _REMOTE,
    )  # fmt: skip


_REMOTE = ("consume", "accept")


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


def events_of(record: HopRecord) -> tuple[SdkEvent, ...]:
    """Return what happened inside, the exception that ended it and the deliveries it concluded."""
    if not (record.events or record.error_type or record.delivery_ends):
        return ()
    end_ns = record.wall_ns + record.duration_ns
    found = list(map(_event, record.events or ()))
    if record.error_type:
        fields = {"exception.type": record.error_type, "exception.message": record.error_message}
        found.append(SdkEvent("exception", fields, end_ns))
    found += [SdkEvent(names.DELIVERY_EVENT, _ending(end), end_ns) for end in record.delivery_ends or ()]
    return tuple(found)


def _event(event: Event) -> SdkEvent:
    return SdkEvent(
        redaction.redact(event.name, redaction.NAME_LIMIT), redaction.fields(event.attributes), event.time_ns
    )


def _ending(end: DeliveryEnd) -> dict[str, Any]:
    """Return how a promised delivery ended, as the attributes of a span event."""
    found: dict[str, Any] = {
        Attribute.CHANNEL.value: redaction.redact(end.channel, redaction.NAME_LIMIT),
        Attribute.PROVIDER.value: redaction.redact(end.provider, redaction.NAME_LIMIT),
        Attribute.STEP.value: end.step,
        Attribute.OUTCOME.value: "recovered" if end.recovered else end.outcome.value,
    }
    if end.category is not None:
        found[Attribute.ERROR_CATEGORY.value] = end.category.value
    return found


def status_of(record: HopRecord) -> Status:
    """Return ERROR where the hop did not do what it is for; the outcome alone decides."""
    if not record.healthy and (record.result == "failed" or (record.kind != "deliver" and record.outcome not in _FINE)):
        return Status(StatusCode.ERROR, str(record.outcome or record.result))
    return _UNSET


_UNSET = Status()


def early(record: HopRecord) -> dict[str, Any]:
    """Return what a sampler may want to know at the start."""
    found: dict[str, Any] = {Attribute.HOP.value: record.kind}
    if record.journey is not None:
        found[Attribute.CORRELATION_ID.value] = record.journey.correlation_id
    if record.message is not None:
        found[Attribute.SYSTEM.value] = record.message.system
        found[Attribute.DESTINATION_NAME.value] = redaction.redact(record.message.destination)
    return found


Shape = tuple[object, ...]
"""What decides all attributes of a hop of which there is nothing unusual to say, but its ids and what it measured."""


def shape(record: HopRecord) -> Shape | None:
    """Return the shape of an ended hop; None where there is more to say of it than others of a shape have in common."""
    message, journey = record.message, record.journey
    if (
        not record.healthy or record.rare is not None or journey is None or journey.rare is not None
        or record.attributes or record.events or record.links or record.sends or record.tracestate
    ):  # fmt: skip
        return None
    if message is None:
        return (
            record.kind, record.name, record.named, journey.tenant, journey.region, journey.source, record.lag_source,
            record.settlement,
        )  # fmt: skip
    if message.conversation_id or message.pending is not None:
        return None
    return (
        record.kind, record.name, record.named, journey.tenant, journey.region, journey.source, record.lag_source,
        record.settlement, message.system, message.destination, message.address, message.group,
    )  # fmt: skip


_statics: dict[Shape, dict[str, Any]] = {}
OWN = frozenset({_CORRELATION_ID, _LAG, _MESSAGE_ID, _KEY, _OFFSET, _PARTITION, _TOMBSTONE})
"""What differs between hops of one shape."""


def attributes(record: HopRecord, known: Shape | None = None) -> dict[str, Any]:
    """Return all facts of an ended hop under their conventional names."""
    known = known or shape(record)
    if known is None:
        return _attributes(record)
    static = _statics.get(known)
    if static is None:
        static = {name: value for name, value in _attributes(record).items() if name not in OWN}
        if len(_statics) >= _MOST_NAMES:
            _statics.clear()
        _statics[known] = static
    found = static.copy()
    message = record.message
    if record.journey is not None:
        found[_CORRELATION_ID] = record.journey.correlation_id
    if record.lag is not None:
        found[_LAG] = record.lag
    if message is not None and message.id:
        found[_MESSAGE_ID] = redaction.redact(message.id)
    if message is not None and message.position is not None:
        found.update(position_of(message.position))
    return found


def position_of(position: Position) -> dict[str, Any]:
    """Return what a message's place in a partitioned log says, under its conventional names."""
    found: dict[str, Any] = {}
    if position.partition is not None:
        found[_PARTITION] = str(position.partition)
    if position.offset is not None:
        found[_OFFSET] = position.offset
    if position.key:
        found[_KEY] = redaction.redact(position.key)
    if position.tombstone:
        found[_TOMBSTONE] = True
    return found


def _attributes(record: HopRecord) -> dict[str, Any]:  # noqa: C901, PLR0912  one fact after the other
    found: dict[str, Any] = redaction.fields(record.attributes) if record.attributes else {}
    kind, journey = record.kind, record.journey
    found[_HOP] = kind
    outcome = record.settled or record.outcome
    if outcome:
        found[_OUTCOME] = str(outcome)
    if journey is not None:
        found[_CORRELATION_ID] = journey.correlation_id
        if journey.tenant:
            found[_TENANT] = journey.tenant
        if journey.region:
            found[_REGION] = journey.region
        if journey.source:
            found[_SOURCE] = journey.source
        if journey.device_type:
            found[_DEVICE_TYPE] = journey.device_type
        if record.rare is not None or journey.rare is not None:
            intent = record.intent()
            if intent:
                found[_INTENT_ID] = intent
    if kind in _OPERATIONS:
        _messaging(record, found)
    elif kind == "accept":
        found[_ROUTE] = redaction.redact(record.name, redaction.NAME_LIMIT)
    elif kind == "job":
        found[_CONNECTOR], found[_STATE] = redaction.redact(record.name, redaction.NAME_LIMIT), record.state
    if record.channel:
        found[_CHANNEL] = redaction.redact(record.channel, redaction.NAME_LIMIT)
        if record.provider:
            found[_PROVIDER] = redaction.redact(record.provider, redaction.NAME_LIMIT)
    if record.lag is not None:
        found[_LAG], found[_LAG_SOURCE] = record.lag, record.lag_source
    if record.sends and kind != "publish":
        found[_SENDS] = record.sends
    if record.settlement:
        found[_SETTLEMENT] = record.settlement
    if record.keep_reason:
        found[_SAMPLING_REASON] = record.keep_reason
    if record.rare is not None or not record.healthy:
        _unusual(record, found)
    return found


def _unusual(record: HopRecord, found: dict[str, Any]) -> None:
    """Add what only deliveries have, and hops that ended in another way than at once and well."""
    for name, word in (
        (_RESULT, record.result), (_ERROR_CATEGORY, record.category), (_REASON, redaction.redact(record.reason)),
        (_ERROR_TYPE, record.error_type), (_STEP, record.step),
    ):  # fmt: skip
        if word:
            found[name] = str(word)
    if record.age is not None:
        found[_AGE] = record.age
    if record.attempt > 1:
        found[_ATTEMPT] = record.attempt
    if record.ambiguous:
        found[_MAYBE_DELIVERED] = True


def _messaging(record: HopRecord, found: dict[str, Any]) -> None:
    """Add what semantic conventions say of one operation on one message; native text is not trusted to be text."""
    message, kind = record.message, record.kind
    found[_OPERATION_NAME] = kind
    found[_OPERATION_TYPE] = _OPERATIONS[kind]
    if record.named:
        found[_DESTINATION_TEMPLATE] = redaction.redact(record.name, redaction.NAME_LIMIT)
    if message is None:
        found[_SYSTEM], found[_DESTINATION_NAME] = names.UNKNOWN, redaction.redact(record.name)
        return
    found[_SYSTEM] = message.system
    destination = message.destination
    found[_DESTINATION_NAME] = redaction.redact(destination)
    address = message.address
    if address and message.system == "rabbitmq":
        found[_ROUTING_KEY] = redaction.redact(address)
    elif address != destination and address:
        found[_ADDRESS] = redaction.redact(address)
    if message.conversation_id:
        found[_CONVERSATION_ID] = redaction.redact(message.conversation_id)
    if message.id:
        found[_MESSAGE_ID] = redaction.redact(message.id)
    if message.group:
        found[_CONSUMER_GROUP] = redaction.redact(message.group)
    if message.pending is not None:
        found[_PENDING] = message.pending
    if message.position is not None:
        found.update(position_of(message.position))
