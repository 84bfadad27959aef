"""Spans: hops and stages in the user's own tracing, with the parents, ids and flags that they should have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine, leaf
from rtobs._journey.journey import new_span_id, new_trace_id
from rtobs._journey.message import Message
from rtobs._journey.span import context_of
from rtobs._journey.tracestate import randomness
from rtobs._telemetry.consistent import JourneySampler, threshold
from rtobs._telemetry.spans import _decider
from tests._telemetry.conftest import Make, Traced
from tests.support.telemetry import Telemetry, start, telemetry

__all__ = ["telemetry"]


def trace_of(span: Any) -> str:
    return f"{span.context.trace_id:032x}"


def parent_of(span: Any) -> int:
    return span.parent.span_id if span.parent is not None else 0


def series(instrument: names.Instrument) -> int:
    return Telemetry().count(instrument)


# Parents -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BatchSpanProcessor, SimpleSpanProcessor])
def test_a_users_provider_gets_hops_and_stages_with_the_right_parents(traced: Make, kind: Any) -> None:
    """Hops and stages of two processes arrive at the user's own processor as one tree."""
    user = traced(kind=kind)
    with rtobs.accept("/orders") as hop:
        cid = hop.correlation_id
        with rtobs.stage("normalize"), rtobs.stage("parse"):
            pass
        with rtobs.publish("orders") as sending:
            headers = sending.headers
    with (
        rtobs.consume("orders", headers=headers, trust="trusted"),
        rtobs.stage("invoke"),
        rtobs.deliver("webhook", "crm"),
    ):
        pass
    spans = {span.name: span for span in user.spans()}
    parents = {
        "accept /orders": 0, "normalize": "accept /orders", "parse": "normalize", "publish orders": "accept /orders",
        "consume orders": "publish orders", "invoke": "consume orders", "deliver webhook crm": "consume orders",
    }  # fmt: skip
    assert spans.keys() == parents.keys()
    for name, parent in parents.items():
        assert parent_of(spans[name]) == (spans[parent].context.span_id if parent else 0), name
        assert trace_of(spans[name]) == cid, name
    assert spans["consume orders"].parent.is_remote
    assert {name: span.kind for name, span in spans.items()} == {
        "accept /orders": SpanKind.SERVER, "publish orders": SpanKind.PRODUCER, "consume orders": SpanKind.CONSUMER,
        "deliver webhook crm": SpanKind.CLIENT, "normalize": SpanKind.INTERNAL, "parse": SpanKind.INTERNAL,
        "invoke": SpanKind.INTERNAL,
    }  # fmt: skip
    assert all(span.start_time <= span.end_time for span in spans.values())


def test_a_neighbours_span_is_a_child_of_the_hop_or_stage_it_runs_in(traced: Make) -> None:
    """A plain SDK span that other code starts finds its parent in our hop, and in our stage inside one."""
    user = traced()
    tracer = trace.get_tracer("neighbour")
    with rtobs.deliver("webhook", "crm"):
        with tracer.start_as_current_span("in the hop"):
            assert trace.get_current_span().get_span_context().is_valid
        with rtobs.stage("invoke"), tracer.start_as_current_span("in the stage"):
            pass
    hop, stage = user.span("deliver webhook crm"), user.span("invoke")
    assert parent_of(user.span("in the hop")) == hop.context.span_id
    assert parent_of(user.span("in the stage")) == stage.context.span_id
    assert {trace_of(span) for span in user.spans()} == {trace_of(hop)}


def test_a_hop_inside_a_neighbours_span_inside_a_hop_is_its_child(traced: Make) -> None:
    """The user's own span between two hops is in the tree between them."""
    user = traced()
    tracer = trace.get_tracer("user")
    with rtobs.accept("/orders"), tracer.start_as_current_span("between"), rtobs.publish("orders"):
        pass
    assert parent_of(user.span("publish orders")) == user.span("between").context.span_id
    assert parent_of(user.span("between")) == user.span("accept /orders").context.span_id


def test_a_journey_that_begins_inside_the_users_span_is_its_child(traced: Make) -> None:
    """A local span that is current is the parent, in its trace; the journey has a name of its own."""
    user = traced()
    with trace.get_tracer("user").start_as_current_span("request"), rtobs.accept("/orders") as hop:
        cid, headers = hop.correlation_id, hop.headers
    span = user.span("accept /orders")
    assert parent_of(span) == user.span("request").context.span_id
    assert trace_of(span) == trace_of(user.span("request")) != cid
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        assert hop.correlation_id == cid


def test_an_accept_links_an_untrusted_caller_and_the_span_around_is_its_parent(traced: Make) -> None:
    """The caller's span becomes a link; nothing of it decides the trace."""
    user = traced()
    caller = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    with rtobs.accept("/orders", headers=caller) as hop:
        cid = hop.correlation_id
    (span,) = user.spans()
    assert trace_of(span) == cid
    links = [(link.context.trace_id, link.context.span_id) for link in span.links]
    assert links == [(int("a" * 32, 16), int("b" * 16, 16))]


# What a span says ----------------------------------------------------------------------------------------------------


def test_a_failed_delivery_says_why(traced: Make) -> None:
    """Status, exception event, category, reason and the journey's facts are on the span."""
    user = traced()
    with rtobs.consume("orders") as hop, suppress(TimeoutError):
        hop.segment(tenant="acme", region="eu")
        with rtobs.deliver("webhook", "crm") as attempt:
            attempt.note(order=7)
            raise TimeoutError("no answer")
    span = user.span("deliver webhook crm")
    assert span.status.status_code is StatusCode.ERROR
    wanted = {
        "rtobs.hop": "deliver", "rtobs.channel": "webhook", "rtobs.provider": "crm", "rtobs.result": "failed",
        "rtobs.error_category": "timeout", "rtobs.tenant": "acme", "rtobs.region": "eu", "error.type": "TimeoutError",
        "order": 7, "rtobs.sampling.reason": "failed",
    }  # fmt: skip
    assert wanted.items() <= span.attributes.items()
    exception = next(event for event in span.events if event.name == "exception")
    assert dict(exception.attributes) == {"exception.type": "TimeoutError", "exception.message": "no answer"}


def test_messaging_spans_follow_semantic_conventions(traced: Make) -> None:
    """System, operation, destination and message id are where conventions want them."""
    user = traced()
    message = Message("rabbitmq", "orders", address="orders.eu", id="m-1", conversation_id="c-1", native=object())
    with leaf.Process(message):
        pass
    attributes = user.span("consume orders").attributes
    wanted = {
        "messaging.system": "rabbitmq", "messaging.operation.type": "process", "messaging.destination.name": "orders",
        "messaging.rabbitmq.destination.routing_key": "orders.eu", "messaging.message.id": "m-1",
        "messaging.message.conversation_id": "c-1",
    }  # fmt: skip
    assert wanted.items() <= attributes.items()


def test_native_text_that_is_no_text_does_not_cost_a_batch(traced: Make) -> None:
    """A routing key or message id from the network with a lone surrogate is made encodable, in names and attributes."""
    user = traced()
    hostile = "orders.\udcff\x1b[2J" + "x" * 5000
    message = Message("memory", hostile, address=hostile + "y", id=hostile, conversation_id=hostile, native=object())
    with leaf.Process(message):
        rtobs.current().note(**{"k\ud800": "v\ud800"})
        rtobs.current().event("e\ud800", field="\ud800")
        with rtobs.stage("s\ud800"):
            pass
    spans = user.spans()
    assert len(spans) == 2
    assert len(encode_spans(spans).SerializeToString()) > 0
    assert all(len(span.name) <= 256 for span in spans)


# Ids -----------------------------------------------------------------------------------------------------------------


class Numbers(IdGenerator):
    """A provider's own ids."""

    def __init__(self) -> None:
        self.last = 0

    def generate_span_id(self) -> int:
        self.last += 1
        return self.last

    def generate_trace_id(self) -> int:
        self.last += 1
        return 0xABC0000 + self.last


def test_a_providers_own_id_generator_names_traces_and_the_journey_keeps_its_name(traced: Make) -> None:
    """Trace ids are the generator's; the correlation id travels beside them, in the header's own field."""
    user = traced(id_generator=Numbers())
    with rtobs.accept("/orders") as hop:
        cid, headers = hop.correlation_id, hop.headers
    assert user.span("accept /orders").context.trace_id >> 16 == 0xABC
    assert int(headers["rtobs-journey"][1:3], 16) & 4
    assert headers["rtobs-journey"].split(".")[1] == cid
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        assert hop.correlation_id == cid


def test_without_such_a_generator_the_trace_id_is_the_correlation_id(traced: Make) -> None:
    """A journey's first trace is named as the journey, and then the header does not say it twice."""
    user = traced(id_generator=RandomIdGenerator())
    with rtobs.accept("/orders") as hop:
        cid, headers = hop.correlation_id, hop.headers
    assert trace_of(user.span("accept /orders")) == cid
    assert headers["rtobs-journey"].split(".")[1] == ""


# Sampling ------------------------------------------------------------------------------------------------------------


def test_an_unsampled_journey_is_counted_and_not_exported(traced: Make) -> None:
    """With ALWAYS_OFF no span leaves and headers say so; metrics count all the same, without exemplars."""
    user = traced(sampler=ALWAYS_OFF)
    with rtobs.accept("/orders"), rtobs.stage("normalize"), rtobs.publish("orders") as hop:
        assert hop.headers["traceparent"].endswith("-02")
    assert user.spans() == []
    assert series(names.ACCEPT_DURATION) == series(names.STAGE_DURATION) == series(names.SENT_MESSAGES) == 1
    assert not any(point.exemplars for found in snapshots() for point in found.points)


def snapshots() -> Any:
    from rtobs import _config

    return _config._bound.registry.collect()


def test_a_users_ratio_decides_by_its_own_rule(traced: Make) -> None:
    """With TraceIdRatioBased exactly those journeys are exported that it would sample, children with their parents."""
    sampler = ParentBased(TraceIdRatioBased(0.5))
    user = traced(sampler=sampler)
    wanted = set()
    for _ in range(200):
        with rtobs.accept("/orders") as hop, rtobs.publish("orders"):
            if TraceIdRatioBased(0.5).should_sample(None, int(hop.correlation_id, 16), "").decision.is_sampled():
                wanted.add(hop.correlation_id)
    assert 50 < len(wanted) < 150
    assert {trace_of(span) for span in user.spans("accept")} == wanted
    assert {trace_of(span) for span in user.spans("publish")} == wanted


class AsSdk(Sampler):
    """Asks another sampler, and is none that we know: it has to be asked as the SDK would ask it."""

    def __init__(self, asked: Sampler) -> None:
        self.asked = asked

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return self.asked.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "as the SDK asks"


def _sometimes(sampler: Sampler) -> Sampler:
    return ParentBased(ALWAYS_OFF, remote_parent_not_sampled=sampler, remote_parent_sampled=ALWAYS_OFF)


@pytest.mark.parametrize(
    "sampler",
    [ALWAYS_ON, ALWAYS_OFF, TraceIdRatioBased(0.3), ParentBased(TraceIdRatioBased(0.3)), ParentBased(ALWAYS_ON),
     ParentBased(ALWAYS_OFF), _sometimes(TraceIdRatioBased(0.5))],
    ids=lambda sampler: sampler.get_description(),
)  # fmt: skip
def test_samplers_of_the_sdk_decide_as_if_the_sdk_had_asked_them(sampler: Sampler, telemetry: Telemetry) -> None:
    """What we decide by the rule of a well-known sampler is what that sampler says, for roots and for children."""
    direct, asked = _decider(sampler), _decider(AsSdk(sampler))
    for number in range(300):
        parent = f"00-{new_trace_id()}-{new_span_id()}-0{number % 2}"
        record = engine.start("consume", "orders", None, headers={"traceparent": parent} if number % 3 else {})
        record.sampled = bool(number % 3) and bool(number % 2)
        assert direct(record) is asked(record)


def test_a_consumer_follows_its_senders_decision(traced: Make) -> None:
    """A parent-based sampler sees the flag that came with the message."""
    user = traced(sampler=ParentBased(ALWAYS_OFF))
    for flag in ("00", "01"):
        parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-{flag}"}
        with rtobs.consume(f"orders-{flag}", headers=parent, trust="trusted"):
            pass
    assert [span.name for span in user.spans()] == ["consume orders-01"]


class Adding(Sampler):
    """A sampler that says why, in attributes and trace state."""

    def should_sample(self, *arguments: Any) -> SamplingResult:
        state = TraceState([("ot", "th:8")])
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {**arguments[4], "sampling.rule": "r1"}, state)

    def get_description(self) -> str:
        return "Adding"


def test_what_a_users_sampler_adds_is_on_the_span_and_travels(traced: Make) -> None:
    """Attributes and trace state of the sampling result are taken, as the SDK takes them."""
    user = traced(sampler=Adding())
    with rtobs.accept("/orders") as hop:
        headers = hop.headers
    assert user.span("accept /orders").attributes["sampling.rule"] == "r1"
    assert headers["tracestate"] == "ot=th:8"
    assert user.span("accept /orders").context.trace_state.get("ot") == "th:8"


class Raising(Adding):
    """A sampler of the user's with a bug."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise RuntimeError("broken")


def test_a_sampler_that_raises_costs_its_hop_nothing_but_the_span(traced: Make) -> None:
    """The handler runs, the hop is counted, and so is the fault."""
    user = traced(sampler=Raising(), settings={"strict": False})
    with rtobs.accept("/orders") as hop:
        assert hop.correlation_id
    assert user.spans() == []
    assert series(names.ACCEPT_DURATION) == 1
    assert Telemetry().by(names.INTERNAL_ERRORS, "site") == {"SpanSink.begin": 1}
    assert Telemetry().count(names.HOPS_ACTIVE) == 0


def test_our_own_sampler_keeps_the_same_journeys_in_every_process(traced: Make) -> None:
    """A journey is sampled by its correlation id, whatever trace it is in, with a rate for each name or the default."""
    user = traced(sampler=JourneySampler({"default": 0.5, "/never": 0.0, "/always": 1.0}))
    kept = []
    for _ in range(100):
        with rtobs.accept("/orders") as hop:
            kept.append((hop.correlation_id, randomness(int(hop.correlation_id, 16)) >= threshold(0.5)))
        with rtobs.accept("/never"), rtobs.accept("/always"):
            pass
        with rtobs.accept("/always"):
            pass
    assert {trace_of(span) for span in user.spans() if span.name == "accept /orders"} == {cid for cid, k in kept if k}
    assert 20 < sum(k for _, k in kept) < 80
    assert sum(span.name == "accept /never" for span in user.spans()) == 0
    assert sum(span.name == "accept /always" for span in user.spans()) == 100


def test_a_rate_for_one_name_leaves_the_others_at_all() -> None:
    """`sampling={"push": 0.0}` alone is honoured; what is not named is exported."""
    decides = _decider(JourneySampler({"push": 0.0}))
    assert not decides(engine.HopRecord("deliver", "push", None))
    assert decides(engine.HopRecord("deliver", "sms", None))


# Keeping -------------------------------------------------------------------------------------------------------------


def test_a_failed_hop_is_exported_though_the_head_said_no(traced: Make) -> None:
    """The failing hop and all that ends after it leave with flag 01 and the reason; nothing else does."""
    user = traced(sampler=ALWAYS_OFF)
    with rtobs.accept("/fine"):
        pass
    with suppress(ConnectionError), rtobs.consume("orders"):
        with rtobs.deliver("webhook", "crm"):
            pass
        with rtobs.deliver("connector", "erp"), rtobs.stage("invoke"):
            raise ConnectionError
    assert [span.name for span in user.spans()] == ["deliver connector erp", "invoke", "consume orders"]
    assert all(span.context.trace_flags & TraceFlags.SAMPLED for span in user.spans())
    assert {span.attributes["rtobs.sampling.reason"] for span in user.spans() if span.name != "invoke"} == {"failed"}
    assert Telemetry().by(names.SAMPLING_KEPT, "reason") == {"failed": 2}


def test_a_failed_attempt_keeps_what_follows_in_its_journey(traced: Make) -> None:
    """A second try that works, its message and the messages it sends are exported too: they tell how it went on."""
    user = traced(sampler=ALWAYS_OFF)
    with rtobs.consume("orders"):
        with suppress(ConnectionError), rtobs.deliver("webhook", "crm"):
            raise ConnectionError
        with rtobs.deliver("webhook", "crm"):
            pass
        with rtobs.publish("done") as sending:
            headers = sending.headers
    assert [span.name for span in user.spans()] == [
        "deliver webhook crm", "deliver webhook crm", "publish done", "consume orders",
    ]  # fmt: skip
    assert headers["traceparent"].endswith("-03")
    assert headers["rtobs-journey"].split(".")[8] == "failed"


def test_a_hop_that_was_looked_at_before_it_was_kept_is_exported_as_sampled(traced: Make) -> None:
    """Ids that a neighbour has read stay; the flag on the exported span is the final one."""
    user = traced(sampler=ALWAYS_OFF)
    with suppress(ConnectionError), rtobs.deliver("webhook", "crm"):
        seen = trace.get_current_span().get_span_context()
        assert not seen.trace_flags & TraceFlags.SAMPLED
        raise ConnectionError
    (span,) = user.spans()
    assert span.context.trace_flags & TraceFlags.SAMPLED
    assert span.context.span_id == seen.span_id


def test_messages_that_leave_after_a_keep_say_so(traced: Make) -> None:
    """After `keep`, headers carry flag 01 and the reason, and a consumer whose head would say no exports its hop."""
    user = traced(sampler=ALWAYS_OFF)
    with rtobs.accept("/orders") as hop:
        assert hop.headers["traceparent"].endswith("-02")
        hop.keep("vip")
        assert hop.headers["traceparent"].endswith("-03")
        with rtobs.publish("orders") as sending:
            headers = sending.headers
    assert headers["traceparent"].endswith("-03")
    assert headers["rtobs-journey"].split(".")[8] == "vip"
    with rtobs.consume("orders", headers=headers, trust="trusted"):
        pass
    assert [span.name for span in user.spans()] == ["publish orders", "accept /orders", "consume orders"]
    assert {span.attributes["rtobs.sampling.reason"] for span in user.spans()} == {"vip"}


@pytest.mark.parametrize(
    ("settings", "tenant", "reason"),
    [({"high_value": {"acme"}}, "acme", "high_value"), ({"high_value": {"acme"}}, "other-co", ""),
     ({"slow": {"webhook": 1e-9}}, "acme", "slow"), ({"slow": {"webhook": 3600}}, "acme", "")],
)  # fmt: skip
def test_slow_and_high_value_hops_are_kept(traced: Make, settings: Any, tenant: str, reason: str) -> None:
    """A breach of `slow` and a tenant in `high_value` are reasons; others are not."""
    user = traced(sampler=ALWAYS_OFF, settings=settings)
    with rtobs.deliver("webhook", "crm") as hop:
        hop.segment(tenant=tenant)
    assert [span.attributes["rtobs.sampling.reason"] for span in user.spans()] == ([reason] if reason else [])


# Fallback ------------------------------------------------------------------------------------------------------------


class Watching(SpanProcessor):
    """A processor that wants to see spans start."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Any]] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append((span.name, trace.get_current_span(parent_context).get_span_context()))


def exercise() -> Any:
    tracer = trace.get_tracer("neighbour")
    with rtobs.accept("/orders") as hop, rtobs.publish("orders") as sending:
        cid, headers = hop.correlation_id, sending.headers
    with (
        rtobs.consume("orders", headers=headers, trust="trusted") as hop,
        rtobs.stage("invoke"),
        tracer.start_as_current_span("neighbour"),
    ):
        assert hop.correlation_id == cid
    return headers


def test_a_processor_that_watches_starts_sees_every_hop_start(traced: Make) -> None:
    """Where a processor overrides on_start, hops are SDK spans: it sees them start, in the same tree."""
    watching = Watching()
    user = traced(watching)
    headers = exercise()
    assert [name for name, _ in watching.started] == [
        "accept /orders", "publish orders", "consume orders", "neighbour", "invoke",
    ]  # fmt: skip
    spans = {span.name: span for span in user.spans()}
    assert parent_of(spans["publish orders"]) == spans["accept /orders"].context.span_id
    assert parent_of(spans["consume orders"]) == spans["publish orders"].context.span_id
    assert parent_of(spans["neighbour"]) == parent_of(spans["invoke"]) == spans["consume orders"].context.span_id
    sent = spans["publish orders"]
    assert headers["traceparent"][3:52] == f"{trace_of(sent)}-{sent.context.span_id:016x}"
    assert spans["consume orders"].attributes["messaging.destination.name"] == "orders"
    assert engine.current() is None


def test_a_processor_that_is_added_later_sees_what_starts_from_then_on(traced: Make) -> None:
    """The way is chosen hop by hop: a processor added after the first one misses nothing."""
    user = traced()
    exercise()
    watching = Watching()
    user.provider.add_span_processor(watching)
    exercise()
    assert [name for name, _ in watching.started].count("consume orders") == 1
    assert len(user.spans("consume")) == 2


class OneOfTheirOwn(SpanProcessor):
    """A user's own way to hold processors, which wants to see starts."""

    def __init__(self) -> None:
        self.held: list[SpanProcessor] = []
        self.started: list[str] = []

    def add_span_processor(self, processor: SpanProcessor) -> None:
        self.held.append(processor)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span.name)

    def on_end(self, span: Any) -> None:
        for processor in self.held:
            processor.on_end(span)


def test_a_provider_with_a_processor_of_its_own_kind_is_served(traced: Make) -> None:
    """Where processors are held in another way than the SDK's, the holder itself is asked."""
    holder = OneOfTheirOwn()
    user = traced(active_span_processor=holder)
    with rtobs.accept("/orders"):
        pass
    assert holder.started == ["accept /orders"]
    assert len(user.spans()) == 1


def test_in_fallback_a_kept_journey_counts_as_sampled_for_the_users_sampler(traced: Make) -> None:
    """A keep flag that came with the message makes a parent-based sampler start a real span."""
    watching = Watching()
    traced(watching, sampler=ParentBased(ALWAYS_OFF))
    with rtobs.accept("/orders") as hop:
        hop.keep("vip")
        headers = hop.headers
    del watching.started[:]
    with rtobs.consume("orders", headers=headers, trust="trusted"):
        assert trace.get_current_span().is_recording()
    assert [name for name, _ in watching.started] == ["consume orders"]


class Quiet(BatchSpanProcessor):
    """A batch processor of the user's own that does not care about starts."""


def test_processors_that_do_not_watch_starts_leave_hops_light(traced: Make) -> None:
    """Subclasses of the SDK's processors, and ones that do not override on_start, need no SDK span."""

    class OnlyEnds(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended.append(span.name)

    ended: list[str] = []
    user = traced(OnlyEnds(), kind=Quiet)
    with rtobs.accept("/orders"):
        assert engine.current().adopted is None
    assert ended == ["accept /orders"]
    assert len(user.spans()) == 1


def test_fallback_keeps_a_failed_hop_too(traced: Make) -> None:
    """An SDK span that the user's sampler dropped is exported from our record where there is a reason."""
    user = traced(Watching(), sampler=ALWAYS_OFF)
    with pytest.raises(ConnectionError), rtobs.deliver("webhook", "crm"), rtobs.stage("invoke"):
        raise ConnectionError
    assert [span.name for span in user.spans()] == ["deliver webhook crm", "invoke"]
    assert all(span.context.trace_flags & 1 for span in user.spans())


def test_more_sends_than_stay_in_a_trace_have_the_ids_they_are_exported_with(traced: Make) -> None:
    """In fallback too, what the headers of the 40th message say is what its span is called."""
    for processors in ((), (Watching(),)):
        user = traced(*processors)
        sent = []
        with rtobs.accept("/orders"):
            for _ in range(40):
                with rtobs.publish("orders") as hop:
                    sent.append(hop.headers["traceparent"][3:52])
        exported = [f"{trace_of(span)}-{span.context.span_id:016x}" for span in user.spans("publish")]
        assert exported == sent
        assert len({name[:32] for name in sent}) == 9


class OtherSpan(trace.NonRecordingSpan):
    """A span of a tracing library that is not the SDK."""

    def __init__(self, name: str, context: SpanContext, parent: SpanContext) -> None:
        super().__init__(context)
        self.name, self.parent_id = name, parent.span_id
        self.attributes: dict[str, Any] = {}
        self.ended = False

    def is_recording(self) -> bool:
        return not self.ended

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)

    def end(self, end_time: int | None = None) -> None:
        self.ended = True


class OtherTracer(trace.Tracer):
    """Its tracer: makes sampled spans with ids of its own."""

    def __init__(self) -> None:
        self.made: list[OtherSpan] = []

    def start_span(self, name: str, context: Any = None, *_: Any, **__: Any) -> OtherSpan:
        parent = trace.get_current_span(context).get_span_context()
        ids = SpanContext(parent.trace_id or 77, len(self.made) + 1, is_remote=False, trace_flags=TraceFlags(1))
        self.made.append(OtherSpan(name, ids, parent))
        return self.made[-1]

    @contextmanager
    def start_as_current_span(self, name: str, *args: Any, **kwargs: Any) -> Iterator[OtherSpan]:
        yield self.start_span(name, *args, **kwargs)


class OtherProvider(trace.TracerProvider):
    """Its provider."""

    def __init__(self) -> None:
        self.tracer = OtherTracer()

    def get_tracer(self, *_: Any, **__: Any) -> OtherTracer:
        return self.tracer


def test_a_tracer_that_is_not_the_sdks_gets_spans_through_the_api(traced: Make, monkeypatch: Any) -> None:
    """Another implementation's spans stand for hops and stages: its ids travel; they have our attributes and end."""
    traced()
    other = OtherProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", other)
    with rtobs.accept("/orders"), rtobs.stage("normalize"), rtobs.publish("orders") as hop:
        headers = hop.headers
    made = {span.name: span for span in other.tracer.made}
    assert headers["traceparent"] == f"00-{77:032x}-{made['publish orders'].get_span_context().span_id:016x}-03"
    assert made["publish orders"].parent_id == made["accept /orders"].get_span_context().span_id
    assert made["normalize"].parent_id == made["accept /orders"].get_span_context().span_id
    assert made["accept /orders"].attributes["rtobs.route"] == "/orders"
    assert all(span.ended for span in made.values())


def test_hops_of_many_threads_are_all_exported(traced: Make) -> None:
    """Each hop becomes one span, whichever thread it ran in."""
    user = traced()

    def work() -> None:
        for _ in range(50):
            with rtobs.accept("/orders"), rtobs.stage("normalize"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = user.spans()
    assert len(spans) == 800
    assert len({span.context.span_id for span in spans}) == 800


def test_the_provider_is_the_one_that_is_set_when_the_first_hop_begins(traced: Make) -> None:
    """Configuring first and setting the provider later loses nothing."""
    start()
    user: Traced = traced()
    with rtobs.accept("/orders"):
        pass
    assert len(user.spans()) == 1


@pytest.mark.parametrize("tracestate", ["", "vendor=1,ot=th:8"])
@pytest.mark.parametrize("remote", [True, False])
def test_ids_are_handed_on_in_the_api_s_own_form(tracestate: str, remote: bool) -> None:
    """What is made without the API's checks is what the API makes with them."""
    state = TraceState.from_header([tracestate]) if tracestate else None
    ours = context_of(2**127 + 1, 2**63 + 1, TraceFlags(3), tracestate, is_remote=remote)
    theirs = SpanContext(2**127 + 1, 2**63 + 1, remote, TraceFlags(3), state)
    assert ours == theirs
    assert ours.is_valid
    assert type(ours) is SpanContext
    assert (ours.trace_state or {}) == (theirs.trace_state or {})
