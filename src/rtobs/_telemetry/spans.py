"""Spans: one HopRecord becomes one span and its stages' child spans, through the provider's own sampler and processors.

Fast way: a ReadableSpan made at the end is handed to the provider's processors. Where one of them wants to see spans
start, it is shown the hop as one. Fallback, where the tracer is not the SDK's: a span of its own per hop. Must not know
brokers or exporters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from opentelemetry import context as api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import Attribute
from rtobs._journey.ledger import count_steps
from rtobs._journey.tracestate import ALL, certain_state, child_state, limit_of, randomness, root_state, without_th
from rtobs._telemetry.completion import complete
from rtobs._telemetry.consistent import NONE, JourneySampler, decide
from rtobs._telemetry.keeping import HIGH_VALUE, Keeping
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
from rtobs._telemetry.shedding import Shedding, Verdict
from rtobs._telemetry.shown import Shown

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord


_NAME, _LINKS = "", " "
"""Keys of a span's name and number of links among what an SDK span was told at its start; no attribute has them."""

_NOTHING_TOLD: dict[str, Any] = {}
"""What a hop was told that is shown to processors; shared, for nothing is added to it."""


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

    def __init__(self, tracer: trace.Tracer | None, keeping: Keeping, shedding: Shedding) -> None:
        """Use *tracer*; None where the process has no tracing: ids travel, spans do not."""
        self._tracer = tracer
        self._sdk = tracer if isinstance(tracer, Tracer) else None
        self._decide = _decider(self._sdk.sampler) if self._sdk is not None else _parent
        self._as_parent = self._sdk is not None and _follows_parents(self._sdk.sampler)
        self._head = _by_itself(self._sdk.sampler) if self._sdk is not None else _parent
        multi: Any = self._sdk.span_processor if self._sdk is not None else None
        self._multi = multi if hasattr(multi, "_span_processors") else None
        """What the provider hands spans to, where one can see whether a processor was added since."""
        self._keeping = keeping
        self.shedding = shedding
        self._every = keeping.plain
        self.sees_quiet = keeping.values
        self._seen: Any = self  # nothing yet
        self._wants_start = False
        self._own: OwnProcessor | None = None

    @property
    def fallback(self) -> bool:
        """Whether hops are spans from their start: somebody must see that, or the tracer is not the SDK's."""
        sdk = self._sdk
        if sdk is None:
            return self._tracer is not None
        processors = getattr(sdk.span_processor, "_span_processors", None)
        if processors is not self._seen:  # one was added since
            self._seen = processors
            self._wants_start = any(_overrides_start(p) for p in _flat(sdk.span_processor))
            self._own = _own_processor(sdk)
        return self._wants_start

    def begin(self, record: HopRecord, *, shown: bool = False) -> bool:
        """Decide at a hop's start whether it is sampled; show it to those who want to see that, or start its span.

        *shown*: that is being done, and this is about the decision alone.
        """
        try:
            multi = self._multi
            if (multi is None or multi._span_processors is not self._seen or self._wants_start) and not shown:  # noqa: SLF001  as below
                if self._sdk is None or record.adopted is not None or self.fallback:
                    return self._elsewhere(record)
            elif record.adopted is not None:
                return record.sampled
            journey = record.journey
            if record.tracestate and record.parent_hex:
                record.tracestate = child_state(record.tracestate, record.trace_id, sampled=record.sampled)
            if journey is not None and (journey.rare is not None or self.sees_quiet):
                if journey.kept:
                    return self._go_on(record)
                if journey.tenant and not record.sampled and self._keeping.is_high_value(record):
                    self.keep(record, HIGH_VALUE, self._keeping.tier)
                    return record.sampled
            return record.sampled if self._as_parent and record.parent_hex else self._decide(record)
        except Exception as error:  # noqa: BLE001  a sampler or processor of the user's may raise: its parent decides
            _guard.fault("SpanSink.begin", error)
            return record.sampled

    def _show(self, record: HopRecord, sdk: Tracer) -> bool:
        """Decide, and let the processors see a hop start that is recorded, as an SDK span that stands for it."""
        record.sampled = self.begin(record, shown=True)
        if record.sampled or record.told is not None:
            parent, context = parent_of(record), api.get_current()
            if parent is not None:
                context = trace.set_span_in_context(NonRecordingSpan(parent), context)
            elif trace.get_current_span(context) is not trace.INVALID_SPAN:
                context = trace.set_span_in_context(trace.INVALID_SPAN, context)
            shown = Shown(record, sdk.resource)
            sdk.span_processor.on_start(shown, parent_context=context)
            record.adopted, record.told = shown, _NOTHING_TOLD
        return record.sampled

    def _elsewhere(self, record: HopRecord) -> bool:
        """Decide where no span of ours stands for the hop, or somebody wants to see it start."""
        if record.adopted is not None:
            return record.sampled
        if self._sdk is not None:
            return self._show(record, self._sdk)
        if self._tracer is None:
            return record.sampled if record.parent_hex else True
        if record.journey is not None and record.journey.kept:
            record.sampled = self._go_on(record)
        return self._start_sdk_span(record, self._tracer)

    def _start_sdk_span(self, record: HopRecord, tracer: trace.Tracer) -> bool:
        parent = parent_of(record)
        context = trace.set_span_in_context(NonRecordingSpan(parent) if parent is not None else trace.INVALID_SPAN)
        name, told = span_name(record), early(record)
        span = tracer.start_span(
            name, context, KINDS[record.kind], told, links_of(record), record.wall_ns,
            record_exception=False, set_status_on_exception=False,
        )  # fmt: skip
        found = span.get_span_context()
        record.adopted, record.told = span, {**told, _NAME: name, _LINKS: len(record.links or ())}
        record.trace_id, record.span_id = found.trace_id, found.span_id
        return bool(found.trace_flags & 1)

    def _go_on(self, record: HopRecord) -> bool:
        """Decide at the start of a hop whose journey is kept already: as its process step, whose first hop asks."""
        parent = record.parent
        if parent is not None and parent.journey is record.journey:
            return parent.sampled
        return self._head(record) or not self.shedding.follow()

    def keep(self, record: HopRecord, reason: str, limit: int | None = None) -> None:
        """Keep an open hop, and all that follows in its journey, for a reason that is known before its end.

        *limit*: the threshold at which such hops are, if it is known.
        """
        journey = record.journey
        if record.sampled or self._has_room(self.shedding.follow(self._spans_of(record))):
            record.keep_reason = reason
            if journey is not None and not journey.kept:
                journey.kept, journey.kept_limit = reason, limit
            _promote(record)

    def segmented(self, record: HopRecord) -> None:
        """Keep an open hop if its tenant, which has just been named, is of high value."""
        journey = record.journey
        if journey is not None and not journey.kept and self._keeping.is_high_value(record):
            self.keep(record, HIGH_VALUE, self._keeping.tier)

    def end(self, record: HopRecord) -> None:
        """Export an ended hop if it is sampled, or if there is a reason to keep it."""
        journey = record.journey
        upstream: list[ReadableSpan] = []
        if (
            not (record.healthy and self._every)
            or record.rare is not None
            or journey is None
            or journey.rare is not None
        ):
            reason = self._keeping.reason(record)
            if reason and self._keep(record, reason):
                upstream = self._upstream(record)
        if self._tracer is None:
            return
        if record.adopted is not None:
            self._complete(record, record.adopted)
        elif record.sampled and self._sdk is not None:
            own = self._own
            if own is not None:
                message = record.message
                if message is not None:  # bodies and headers do not wait with their spans
                    message.native = message.headers = None
                own.put(record)
            else:
                for span in readable(record, self._sdk.resource):
                    self._sdk.span_processor.on_end(span)
        if upstream:
            self._put(upstream)

    def _keep(self, record: HopRecord, reason: str) -> bool:
        """Export a hop whatever the head said, and let all that follows in its journey be kept too; False: no room."""
        journey, own = record.journey, self._keeping.own(record)
        here = journey is not None and journey.kept != "" and not journey.kept_before
        limit: int | None = None
        """The threshold at which hops like this one are exported, where that is known."""
        if own and journey is not None and here:
            limit = journey.kept_limit
        elif own:
            verdict = self._admit(record, own)
            if not (record.sampled or self._has_room(verdict.shed)):
                return False
            limit = _together(record, verdict)
        elif not (record.sampled or self._has_room(self.shedding.follow(self._spans_of(record)))):
            return False
        record.keep_reason = reason
        if journey is not None and not journey.kept:
            journey.kept = reason
            journey.kept_limit = limit
        _promote(record)
        shown = type(record.adopted) is Shown
        if record.told is not None and record.adopted is not None and not (shown or record.adopted.is_recording()):
            record.adopted = None  # an SDK span that was not sampled has recorded nothing
        if (record.adopted is None or shown) and (limit is not None or record.tracestate):
            state = record.tracestate
            record.tracestate = without_th(state) if limit is None else certain_state(state, limit)
            record.span_context = None
        return True

    def _admit(self, record: HopRecord, reason: str) -> Verdict:
        """Ask for room for the first hop of a journey that is kept, by what went wrong."""
        channel = record.channel or (record.journey.channel if record.journey is not None else "")
        why = record.category.value if record.category is not None else reason
        drawn = randomness(record.trace_id, record.tracestate)
        verdict = self.shedding.admit((channel, record.provider, why), drawn, self._spans_of(record))
        tier = self._keeping.tier
        return verdict._replace(limit=max(verdict.limit, tier)) if reason == HIGH_VALUE and tier else verdict

    @staticmethod
    def _has_room(shed: str) -> bool:
        if shed:
            _guard.tally(names.SAMPLING_SHED, shed)
        return not shed

    @staticmethod
    def _spans_of(record: HopRecord) -> int:
        """Return about how many spans leave if a hop is kept: its own, those of hops around it, and rebuilt ones."""
        count = 1 + len(record.stages or ())
        around, journey = record.parent, record.journey
        while around is not None and around.journey is journey:
            count += not (around.ended or around.sampled)
            around = around.parent
        if journey is not None and not journey.rebuilt:
            count += 2 * count_steps(journey.ledger)
        return count

    # What was before -------------------------------------------------------------------------------------------------

    def _upstream(self, record: HopRecord) -> list[ReadableSpan]:
        """Return the spans of the steps before this process that its ledger says are missing, once in each step."""
        journey = record.journey
        if journey is None or not journey.ledger or journey.rebuilt or self._sdk is None or not record.sampled:
            return []
        journey.rebuilt = True
        try:
            found, left_out = complete(_step_of(record, journey), journey)
            if found:
                record.note(Attribute.LEDGER_BYTES, len(journey.ledger))
            if left_out:
                record.note(Attribute.LEDGER_LEFT_OUT, left_out)
        except Exception as error:  # noqa: BLE001  the hop itself leaves all the same
            _guard.fault("SpanSink.upstream", error)
            return []
        return found

    def _put(self, spans: list[ReadableSpan]) -> None:
        """Export rebuilt spans as those of other libraries are."""
        own, sdk = self._own, self._sdk
        put = own.put if own is not None else sdk.span_processor.on_end if sdk is not None else None
        if put is not None:
            for span in spans:
                put(span)
            _guard.tally(names.SPANS_REBUILT, by=len(spans))

    def _end_shown(self, record: HopRecord, shown: Shown, sdk: Tracer) -> None:
        """Let the processors see that a hop ends which they saw start, and its stages start and end."""
        record.adopted = record.told = None
        self._add_stages(record, shown)
        processor: Any = sdk.span_processor
        if hasattr(processor, "_on_ending"):  # not all versions of the SDK have it
            processor._on_ending(shown)  # noqa: SLF001  as it does at the end of its own
        processor.on_end(readable(record, sdk.resource)[0])

    def _complete(self, record: HopRecord, span: Any) -> None:
        """Put the hop's facts on the SDK span that stands for it; end it if it is ours."""
        if type(span) is Shown and self._sdk is not None:
            self._end_shown(record, span, self._sdk)
            return
        facts, told = attributes(record), record.told
        if told is not None:
            name = span_name(record)
            if told[_NAME] != name:
                span.update_name(name)
            facts = {key: value for key, value in facts.items() if told.get(key) != value}
            for link in (links_of(record) or [])[told[_LINKS] :]:
                span.add_link(link.context, link.attributes)
        span.set_attributes(facts)
        for event in events_of(record):
            span.add_event(event.name, event.attributes, event.timestamp)
        status = status_of(record)
        if status.status_code is StatusCode.ERROR:
            span.set_status(status)
        if record.sampled:
            self._add_stages(record, span)
        if told is not None:
            span.end(record.wall_ns + record.duration_ns)

    def _add_stages(self, record: HopRecord, span: Any) -> None:
        """Let the tracer make spans of a hop's stages, below the one that stands for it."""
        tracer = self._tracer
        if tracer is None:
            return
        for stage in record.stages or ():
            if stage.ended:
                child = tracer.start_span(
                    stage.name, trace.set_span_in_context(span), SpanKind.INTERNAL,
                    {Attribute.STAGE.value: stage.name}, start_time=stage.wall_ns,
                )  # fmt: skip
                child.end(stage.wall_ns + stage.duration_ns)


def _promote(record: HopRecord) -> None:
    """Let a hop and the open hops of its process step around it be exported, their further children and sends too."""
    journey: Journey | None = record.journey
    one: HopRecord | None = record
    while one is not None and one.journey is journey:
        if not one.sampled and (one.adopted is None or one.told is not None) and (one is record or not one.ended):
            one.sampled = True
            one.span_context = None
        one = one.parent


def _together(record: HopRecord, verdict: Verdict) -> int | None:
    """Return the threshold of hops that are exported because of the head or because of a reason; None: not known."""
    head = limit_of(record.tracestate) if record.sampled else None
    if verdict.shed:
        return head
    if head is None:
        return None if record.sampled and verdict.limit else verdict.limit
    return min(head, verdict.limit)


def _step_of(record: HopRecord, journey: Journey) -> HopRecord:
    """Return the hop that got the message: the outermost of its journey in this process."""
    while record.parent is not None and record.parent.journey is journey:
        record = record.parent
    return record


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


Decide = Callable[["HopRecord"], bool]


_SIDES = ("remote", "local")


def _parent(record: HopRecord) -> bool:
    return record.sampled


def _follows_parents(sampler: Sampler) -> bool:
    """Tell whether a span that has a parent is always sampled as that is."""
    if type(sampler) is not ParentBased:
        return isinstance(sampler, JourneySampler)
    told: dict[str, Any] = vars(sampler)
    return all(told.get(f"_{side}_parent_sampled") is ALWAYS_ON for side in _SIDES) and all(
        told.get(f"_{side}_parent_not_sampled") is ALWAYS_OFF for side in _SIDES
    )


def _decider(sampler: Sampler) -> Decide:
    """Return how *sampler* decides for a hop: the SDK's own by the same rule, without building attributes first."""
    if isinstance(sampler, JourneySampler):
        return lambda record: _by_rates(sampler, record)
    if type(sampler) is ParentBased and _follows_parents(sampler):
        root = _decider(vars(sampler)["_root"])
        return lambda record: record.sampled if record.parent_hex else root(record)
    if sampler is ALWAYS_ON:
        return lambda _: True
    if sampler is ALWAYS_OFF:
        return lambda _: False
    if type(sampler) is TraceIdRatioBased:
        low, bound = TraceIdRatioBased.TRACE_ID_LIMIT, sampler.bound
        return lambda record: record.trace_id & low < bound
    return lambda record: _ask(sampler, record)


def _limit(sampler: JourneySampler, record: HopRecord) -> int:
    rates, journey = sampler.rates, record.journey
    if rates.uniform is not None:
        return rates.uniform
    if journey is None:
        return rates.limit(record.channel, record.name)
    return rates.limit(record.channel or journey.channel, record.name, journey.tenant)


_SURE = (ALL, NONE)


def _by_rates(sampler: JourneySampler, record: HopRecord) -> bool:
    """Decide as *sampler* does; what begins a trace says at which threshold, unless everything is sampled."""
    if record.parent_hex:
        return record.sampled
    limit, state = _limit(sampler, record), record.tracestate
    if not state and limit in _SURE:
        return limit == ALL
    sampled = decide(randomness(record.trace_id, state), limit)
    if sampled or state:
        record.tracestate = root_state(limit, tracestate=state) if sampled else without_th(state)
    return sampled


def _by_itself(sampler: Sampler) -> Decide:
    """Return how *sampler* would decide if a hop's trace began here; no where only the sampler could say it."""
    if type(sampler) is ParentBased:
        sampler = vars(sampler)["_root"]
    if sampler is ALWAYS_ON:
        return lambda _: True
    if isinstance(sampler, JourneySampler):
        return lambda record: decide(randomness(record.trace_id, record.tracestate), _limit(sampler, record))
    return lambda _: False


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
    if result.decision is Decision.RECORD_ONLY:
        record.told = _NOTHING_TOLD  # for those who watch; it is not exported
    return bool(result.decision is Decision.RECORD_AND_SAMPLE)


def _own_processor(tracer: Tracer) -> OwnProcessor | None:
    """Return our processor if it is the only one: then a hop is queued as it is, and converted on the export thread."""
    processors: Any = getattr(tracer.span_processor, "_span_processors", ())
    if len(processors) == 1 and isinstance(processors[0], OwnProcessor):
        return processors[0]
    return None
