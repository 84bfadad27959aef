"""Spans: one HopRecord becomes one span and its stages' child spans, through the provider's own sampler and processors.

Fast way: a ReadableSpan made at the end is handed to the provider's processors. Fallback, where a processor wants to
see spans start or the tracer is not the SDK's: a real SDK span per hop. Must not know brokers or exporters.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import Attribute as A
from rtobs._journey.outcome import Outcome
from rtobs._telemetry.sampling import HeadSampler, keep_reason

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord, StageRecord

_KINDS = {
    "accept": SpanKind.SERVER, "publish": SpanKind.PRODUCER, "consume": SpanKind.CONSUMER, "deliver": SpanKind.CLIENT,
    "receipt": SpanKind.SERVER, "job": SpanKind.INTERNAL, "receive": SpanKind.CLIENT,
}  # fmt: skip
_OPERATIONS = {"publish": "send", "consume": "process", "receive": "receive"}
_FINE = (None, Outcome.OK, Outcome.CANCELLED)

SCOPE = InstrumentationScope(names.SCOPE, None, names.SCHEMA_URL)


class OwnProcessor(SpanProcessor):
    """The processor of the provider we set: queues other libraries' spans; hops reach the queue without it."""

    def __init__(self, put: Callable[[object], None]) -> None:
        self.put = put

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span."""
        if span.context is not None and span.context.trace_flags & 1:
            self.put(span)


class SpanSink:
    """Gives each hop to the tracing that the process has."""

    def __init__(self, tracer: trace.Tracer | None, slow: Mapping[str, float], high_value: Container[str]) -> None:
        """Use *tracer*; None where the process has no tracing: ids travel, spans do not."""
        self._tracer = tracer
        self._sdk = tracer if isinstance(tracer, Tracer) else None
        self._slow = slow
        self._high_value = high_value
        self._seen: Any = None
        self._wants_start = False

    @property
    def fallback(self) -> bool:
        """Whether hops are SDK spans, because somebody must see them start."""
        if self._sdk is None:
            return self._tracer is not None
        processors = getattr(self._sdk.span_processor, "_span_processors", None)
        if processors is not self._seen:  # one was added since
            self._seen = processors
            self._wants_start = any(_overrides_start(p) for p in _flat(self._sdk.span_processor))
        return self._wants_start

    def begin(self, record: HopRecord) -> bool:
        """Decide at a hop's start whether it is sampled; in fallback start its span."""
        if record.adopted is not None:
            return record.sampled
        if self._tracer is None:
            return record.sampled if record.parent_span_id else True
        if record.journey is not None and record.journey.kept:
            record.sampled = True
            if not self.fallback:
                return True
        if self.fallback:
            return self._start_sdk_span(record, self._tracer)
        assert self._sdk is not None  # noqa: S101  not in fallback
        sampler = self._sdk.sampler
        if isinstance(sampler, HeadSampler):
            return sampler.decide(record)
        context = (
            trace.set_span_in_context(NonRecordingSpan(parent)) if (parent := _parent_of(record)) is not None else None
        )
        result = sampler.should_sample(
            context, record.trace_id, span_name(record), _KINDS[record.kind], early(record), _links(record)
        )
        return result.decision is Decision.RECORD_AND_SAMPLE

    def _start_sdk_span(self, record: HopRecord, tracer: trace.Tracer) -> bool:
        parent = _parent_of(record)
        context = trace.set_span_in_context(NonRecordingSpan(parent) if parent is not None else trace.INVALID_SPAN)
        span = tracer.start_span(
            span_name(record), context, _KINDS[record.kind], early(record), _links(record), record.wall_ns, record_exception=False,
            set_status_on_exception=False,
        )  # fmt: skip
        found = span.get_span_context()
        record.adopted, record.fallback = span, True
        record.trace_id, record.span_id = found.trace_id, found.span_id
        return bool(found.trace_flags & 1)

    def end(self, record: HopRecord) -> None:
        """Export an ended hop if it is sampled, or if there is a reason to keep it."""
        if self._tracer is None:
            return
        reason = keep_reason(record, self._slow, self._high_value)
        if reason:
            record.keep_reason = reason
            if not record.sampled and record.adopted is None:
                record.sampled = True
                record.span_context = None
        if record.sampled:
            _guard.tally(names.SAMPLING_KEPT, reason or "head")
        if record.adopted is not None:
            self._complete(record, record.adopted)
        elif record.sampled and self._sdk is not None:
            own = _own_processor(self._sdk)
            if own is not None:
                own.put(record)
                return
            for span in readable(record, self._sdk.resource):
                self._sdk.span_processor.on_end(span)

    def _complete(self, record: HopRecord, span: Any) -> None:
        """Put the hop's facts on the SDK span that stands for it; end it if it is ours."""
        if record.fallback:
            span.update_name(span_name(record))
        span.set_attributes(attributes(record))
        for event in _events(record):
            span.add_event(event.name, event.attributes, event.timestamp)
        status = _status(record)
        if status.status_code is StatusCode.ERROR:
            span.set_status(status)
        if self._tracer is not None and record.sampled:
            for stage in record.stages or ():
                if stage.ended:
                    child = self._tracer.start_span(
                        stage.name, trace.set_span_in_context(span), SpanKind.INTERNAL, {A.STAGE: stage.name}, start_time=stage.wall_ns,
                    )  # fmt: skip
                    child.end(stage.wall_ns + stage.duration_ns)
        if record.fallback:
            span.end(record.wall_ns + record.duration_ns)


def _flat(processor: Any) -> Iterator[Any]:
    inner = getattr(processor, "_span_processors", None)
    if inner is None:
        yield processor
        return
    for one in inner:
        yield from _flat(one)


def _overrides_start(processor: Any) -> bool:
    kind = type(processor)
    if kind in (BatchSpanProcessor, SimpleSpanProcessor):  # they override it to do nothing
        return False
    return kind.on_start is not SpanProcessor.on_start


def _own_processor(tracer: Tracer) -> OwnProcessor | None:
    """Return our processor if it is the only one: then a hop is queued as it is, and converted on the export thread."""
    processors = getattr(tracer.span_processor, "_span_processors", ())
    if len(processors) == 1 and isinstance(processors[0], OwnProcessor):
        return processors[0]
    return None


# A record as a span --------------------------------------------------------------------------------------------------


def readable(record: HopRecord, resource: Any) -> list[ReadableSpan]:
    """Return the hop's span and its stages' child spans, in the SDK's own form."""
    context = record.get_span_context()
    end_ns = record.wall_ns + record.duration_ns
    spans = [
        ReadableSpan(
            span_name(record), context, _parent_of(record), resource, attributes(record), tuple(_events(record)),
            tuple(_links(record) or ()), _KINDS[record.kind], None, _status(record), record.wall_ns, end_ns, SCOPE,
        )
    ]  # fmt: skip
    spans.extend(_stage(stage, record, resource) for stage in record.stages or () if stage.ended)
    return spans


def _stage(stage: StageRecord, hop: HopRecord, resource: Any) -> ReadableSpan:
    state = hop.get_span_context().trace_state
    flags = TraceFlags(hop.flags)
    context = SpanContext(hop.trace_id, stage.span_id, is_remote=False, trace_flags=flags, trace_state=state)
    parent = SpanContext(hop.trace_id, stage.parent_span_id, is_remote=False, trace_flags=flags, trace_state=state)
    found: dict[str, Any] = {A.STAGE.value: stage.name, A.OUTCOME.value: stage.outcome}
    if hop.journey is not None:
        found[A.CORRELATION_ID.value] = hop.journey.correlation_id
    if stage.error_type:
        found[A.ERROR_TYPE.value] = stage.error_type
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
    return f"{record.kind} {name}".rstrip()


def _parent_of(record: HopRecord) -> SpanContext | None:
    if not record.parent_span_id:
        return None
    state = TraceState.from_header([record.tracestate]) if record.tracestate else TraceState()
    return SpanContext(
        record.trace_id, record.parent_span_id, is_remote=record.kind in ("consume", "accept"),
        trace_flags=TraceFlags(record.flags), trace_state=state,
    )  # fmt: skip


def _links(record: HopRecord) -> list[Link] | None:
    if not record.links:
        return None
    return [
        Link(
            SpanContext(one.trace_id, one.span_id, is_remote=True, trace_flags=TraceFlags(one.flags & 0x03)),
            one.attributes,
        )
        for one in record.links
    ]


def _events(record: HopRecord) -> Iterator[SdkEvent]:
    for event in record.events or ():
        yield SdkEvent(event.name, event.attributes, event.time_ns)
    if record.error_type:
        fields = {"exception.type": record.error_type, "exception.message": record.error_message}
        yield SdkEvent("exception", fields, record.wall_ns + record.duration_ns)


def _status(record: HopRecord) -> Status:
    if record.result == "failed" or (record.kind != "deliver" and record.outcome not in _FINE):
        return Status(StatusCode.ERROR, str(record.outcome or record.result))
    return Status()


def early(record: HopRecord) -> dict[str, Any]:
    """Return what a sampler may want to know at the start."""
    found: dict[str, Any] = {A.HOP.value: record.kind}
    if record.journey is not None:
        found[A.CORRELATION_ID.value] = record.journey.correlation_id
    if record.message is not None:
        found[A.SYSTEM.value] = record.message.system
        found[A.DESTINATION_NAME.value] = record.message.destination
    return found


def attributes(record: HopRecord) -> dict[str, Any]:
    """Return all facts of an ended hop under their conventional names."""
    found: dict[str, Any] = dict(record.attributes) if record.attributes else {}
    found[A.HOP.value] = record.kind
    journey, message = record.journey, record.message
    if journey is not None:
        found[A.CORRELATION_ID.value] = journey.correlation_id
        for name, value in (
            (A.TENANT, journey.tenant), (A.REGION, journey.region), (A.SOURCE, journey.source), (A.DEVICE_TYPE, journey.device_type),
            (A.INTENT_ID, record.promise_id or journey.intent),
        ):  # fmt: skip
            if value:
                found[name.value] = value
    if record.kind in _OPERATIONS:
        _messaging(record, found)
    elif record.kind == "accept":
        found[A.ROUTE.value] = record.name
    elif record.kind == "job":
        found[A.CONNECTOR.value], found[A.STATE.value] = record.name, record.state
    if message is not None and message.id:
        found[A.MESSAGE_ID.value] = message.id
    for name, word in (
        (A.CHANNEL, record.channel), (A.PROVIDER, record.provider), (A.RESULT, record.result), (A.REASON, record.reason),
        (A.ERROR_TYPE, record.error_type), (A.SETTLEMENT, record.settlement), (A.STEP, record.step),
        (A.SAMPLING_REASON, record.keep_reason), (A.LAG_SOURCE, record.lag_source),
    ):  # fmt: skip
        if word:
            found[name.value] = str(word)
    if record.outcome is not None:
        found[A.OUTCOME.value] = (record.settled or record.outcome).value
    if record.category is not None:
        found[A.ERROR_CATEGORY.value] = record.category.value
    if record.lag is not None:
        found[A.LAG.value] = record.lag
    if record.age is not None:
        found[A.AGE.value] = record.age
    if record.attempt > 1:
        found[A.ATTEMPT.value] = record.attempt
    if record.sends and record.kind != "publish":
        found[A.SENDS.value] = record.sends
    if record.ambiguous:
        found[A.MAYBE_DELIVERED.value] = True
    return found


def _messaging(record: HopRecord, found: dict[str, Any]) -> None:
    message = record.message
    found[A.OPERATION_NAME.value] = record.kind
    found[A.OPERATION_TYPE.value] = _OPERATIONS[record.kind]
    found[A.SYSTEM.value] = message.system if message is not None else names.UNKNOWN
    found[A.DESTINATION_NAME.value] = message.destination if message is not None else record.name
    if record.named:
        found[A.DESTINATION_TEMPLATE.value] = record.name
    if message is not None:
        if message.address and message.system == "rabbitmq":
            found[A.ROUTING_KEY.value] = message.address
        elif message.address and message.address != message.destination:
            found["rtobs.address"] = message.address
        if message.conversation_id:
            found[A.CONVERSATION_ID.value] = message.conversation_id
