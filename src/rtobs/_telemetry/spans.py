"""Spans: one HopRecord becomes one span and its stages' child spans, through the provider's own sampler and processors.

Fast way: a ReadableSpan made at the end is handed to the provider's processors. Fallback, where a processor wants to
see spans start or the tracer is not the SDK's: a real SDK span per hop. Must not know brokers or exporters.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import Attribute
from rtobs._telemetry.readable import (
    KINDS,
    attributes,
    early,
    events_of,
    links_of,
    parent_of,
    readable,
    span_name,
    status_of,
)
from rtobs._telemetry.sampling import HeadSampler, keep_reason

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord


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
        self._seen: Any = self  # nothing yet
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
        try:
            return self._begin(record)
        except Exception as error:  # noqa: BLE001  a sampler or processor of the user's may raise: its parent decides
            _guard.fault("SpanSink.begin", error)
            return record.sampled

    def _begin(self, record: HopRecord) -> bool:
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
        return _ask(sampler, record)

    def _start_sdk_span(self, record: HopRecord, tracer: trace.Tracer) -> bool:
        parent = parent_of(record)
        context = trace.set_span_in_context(NonRecordingSpan(parent) if parent is not None else trace.INVALID_SPAN)
        span = tracer.start_span(
            span_name(record), context, KINDS[record.kind], early(record), links_of(record), record.wall_ns,
            record_exception=False, set_status_on_exception=False,
        )  # fmt: skip
        found = span.get_span_context()
        record.adopted, record.fallback = span, True
        record.trace_id, record.span_id = found.trace_id, found.span_id
        return bool(found.trace_flags & 1)

    def end(self, record: HopRecord) -> None:
        """Export an ended hop if it is sampled, or if there is a reason to keep it."""
        reason = keep_reason(record, self._slow, self._high_value)
        if reason:
            self._keep(record, reason)
        if self._tracer is None:
            return
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

    def _keep(self, record: HopRecord, reason: str) -> None:
        """Export a hop whatever the head said, and let all that follows in its journey be kept too."""
        record.keep_reason = reason
        if record.journey is not None and not record.journey.kept:
            record.journey.kept = reason
        if (
            record.fallback
            and self._sdk is not None
            and record.adopted is not None
            and not record.adopted.is_recording()
        ):
            record.adopted = None  # an SDK span that was not sampled has recorded nothing
        if record.adopted is None and not record.sampled:
            record.sampled = True
            record.span_context = None

    def _complete(self, record: HopRecord, span: Any) -> None:
        """Put the hop's facts on the SDK span that stands for it; end it if it is ours."""
        if record.fallback:
            span.update_name(span_name(record))
        span.set_attributes(attributes(record))
        for event in events_of(record):
            span.add_event(event.name, event.attributes, event.timestamp)
        status = status_of(record)
        if status.status_code is StatusCode.ERROR:
            span.set_status(status)
        if self._tracer is not None and record.sampled:
            for stage in record.stages or ():
                if stage.ended:
                    child = self._tracer.start_span(
                        stage.name, trace.set_span_in_context(span), SpanKind.INTERNAL,
                        {Attribute.STAGE.value: stage.name}, start_time=stage.wall_ns,
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


_DO_NOTHING = (SpanProcessor.on_start, BatchSpanProcessor.on_start, SimpleSpanProcessor.on_start)


def _overrides_start(processor: object) -> bool:
    return getattr(type(processor), "on_start", None) not in _DO_NOTHING


def _ask(sampler: Sampler, record: HopRecord) -> bool:
    """Let the user's sampler decide as it would for an SDK span; take the attributes and state that it adds."""
    parent, told = parent_of(record), early(record)
    context = trace.set_span_in_context(NonRecordingSpan(parent)) if parent is not None else None
    result: Any = sampler.should_sample(
        context, record.trace_id, span_name(record), KINDS[record.kind], told, links_of(record)
    )
    added: Any = result.attributes
    if added:
        for name in added.keys() - told.keys():
            record.note(name, added[name])
    if result.trace_state and (parent is None or result.trace_state != parent.trace_state):
        record.tracestate = result.trace_state.to_header()
    return bool(result.decision is Decision.RECORD_AND_SAMPLE)


def _own_processor(tracer: Tracer) -> OwnProcessor | None:
    """Return our processor if it is the only one: then a hop is queued as it is, and converted on the export thread."""
    processors: Any = getattr(tracer.span_processor, "_span_processors", ())
    if len(processors) == 1 and isinstance(processors[0], OwnProcessor):
        return processors[0]
    return None
