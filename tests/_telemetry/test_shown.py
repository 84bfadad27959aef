"""Shown: what a processor that watches spans start sees of a hop, and what becomes of what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, Status, StatusCode

import rtobs
from rtobs import _conventions as names
from tests._telemetry.conftest import Make
from tests.support.telemetry import telemetry

__all__ = ["telemetry"]


class Vendor(SpanProcessor):
    """A processor that does something with every span that starts, and remembers what it saw."""

    def __init__(self, on_start: Callable[[Any, Any], Any] = lambda _span, _context: None) -> None:
        self._on_start = on_start
        self.seen: list[Any] = []
        self.ending: list[str] = []
        self.ended: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.seen.append(self._on_start(span, parent_context))

    def _on_ending(self, span: Any) -> None:
        self.ending.append(span.name)

    def on_end(self, span: Any) -> None:
        self.ended.append(span.name)


def test_a_hop_at_its_start_reads_as_an_sdk_span(traced: Make) -> None:
    """A processor finds in it what it finds in any span that has just started, its own ids among it."""

    def look(span: Any, _: Any) -> dict[str, Any]:
        assert isinstance(span, Span)
        return {
            "name": span.name, "kind": span.kind, "parent": span.parent, "ids": span.get_span_context(),
            "context": span.context, "end": span.end_time, "scope": span.instrumentation_scope.name,
            "resource": span.resource, "status": span.status.status_code, "recording": span.is_recording(),
            "correlation": span.attributes["rtobs.correlation_id"], "events": span.events, "text": repr(span),
        }  # fmt: skip

    vendor = Vendor(look)
    user = traced(vendor)
    with rtobs.publish("orders") as hop:
        assert type(trace.get_current_span()).__mro__[1] is Span
        assert trace.get_current_span().get_span_context().span_id == int(hop.headers["traceparent"][36:52], 16)
    sent = user.span("publish orders")
    assert vendor.seen == [{
        "name": "publish orders", "kind": SpanKind.PRODUCER, "parent": None, "ids": sent.context,
        "context": sent.context, "end": None, "scope": "rtobs", "resource": user.provider.resource,
        "status": StatusCode.UNSET, "recording": True, "correlation": f"{sent.context.trace_id:032x}", "events": (),
        "text": vendor.seen[0]["text"],
    }]  # fmt: skip
    assert "publish orders" in vendor.seen[0]["text"]
    assert vendor.ending == vendor.ended == ["publish orders"]


def test_what_a_processor_says_at_the_start_leaves_with_the_hop(traced: Make) -> None:
    """Attributes, events, links and exceptions are the hop's; its name, status and end it alone decides."""
    other = trace.SpanContext(7, 8, is_remote=False)

    def say(span: Any, _: Any) -> None:
        span.set_attribute("vendor.one", 1)
        span.set_attributes({"vendor.two": "2"})
        span.add_event("seen", {"by": "vendor"})
        span.add_link(other)
        span.record_exception(ValueError("odd"))
        span.set_status(Status(StatusCode.ERROR, "they say"))
        span.update_name("theirs")
        span.start()
        with span:
            span.end()

    user = traced(Vendor(say))
    with rtobs.publish("orders") as hop:
        assert trace.get_current_span().is_recording()
        hop.note(own=True)
    sent = user.span("publish orders")
    assert {"vendor.one": 1, "vendor.two": "2", "own": True}.items() <= sent.attributes.items()
    assert sent.attributes["otel.status_description"] == "they say"
    assert sent.status.status_code is StatusCode.UNSET
    assert [event.name for event in sent.events] == ["seen", "exception"]
    assert [link.context.span_id for link in sent.links] == [8]


@pytest.mark.parametrize("sampler", [ALWAYS_ON, TraceIdRatioBased(1.0), ParentBased(ALWAYS_ON)])
def test_a_processor_sees_where_a_hop_starts(traced: Make, sampler: Sampler) -> None:
    """The context that a span starts in has its parent, and the user's baggage: processors copy that to attributes."""

    def where(_: Any, context: Any) -> tuple[int, Any]:
        return trace.get_current_span(context).get_span_context().span_id, baggage.get_baggage("plan", context)

    vendor = Vendor(where)
    user = traced(vendor, sampler=sampler)
    token = attach(baggage.set_baggage("plan", "gold"))
    with rtobs.accept("/orders"), rtobs.publish("orders"):
        pass
    detach(token)
    assert vendor.seen == [(0, "gold"), (user.span("accept /orders").context.span_id, "gold")]


def test_a_hop_that_is_not_sampled_is_not_shown(traced: Make) -> None:
    """As with the SDK, a processor does not see the start of what is not sampled."""
    vendor = Vendor()
    user = traced(vendor, sampler=ALWAYS_OFF)
    with rtobs.publish("orders") as hop:
        assert hop.headers["traceparent"].endswith("-02")
    assert (vendor.seen, user.spans()) == ([], [])


class OnlyRecorded(Sampler):
    """A sampler of the user's that wants spans recorded and not exported."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY, {"sampler": "theirs"})

    def get_description(self) -> str:
        return "only recorded"


def test_a_hop_that_is_only_recorded_is_shown_and_not_exported(traced: Make) -> None:
    """Processors see it start and end, as they do with the SDK; its flags say that it is not sampled."""

    def look(span: Any, _: Any) -> Any:
        return span.name, span.attributes["sampler"], span.context.trace_flags.sampled

    vendor = Vendor(look)
    user = traced(vendor, sampler=OnlyRecorded())
    with rtobs.publish("orders") as hop:
        assert hop.headers["traceparent"].endswith("-02")
    assert (vendor.seen, vendor.ended) == ([("publish orders", "theirs", False)], ["publish orders"])
    assert user.spans() == []


def test_a_processor_that_fails_at_a_start_costs_no_hop(tolerant: Any, traced: Make) -> None:
    """It is counted; the hop runs and its span leaves."""

    def fail(_: Any, __: Any) -> None:
        raise RuntimeError

    user = traced(Vendor(fail), settings={"strict": False})
    with rtobs.publish("orders"):
        pass
    assert user.span("publish orders")
    assert tolerant.count(names.INTERNAL_ERRORS, site="SpanSink.begin") == 1


def test_headers_and_trace_of_a_shown_hop_are_those_of_any_hop(traced: Make) -> None:
    """A trace that begins in a hop has the journey's name, whoever watches: that is what makes its messages plain."""
    for processors in ((), (Vendor(),)):
        user = traced(*processors)
        with rtobs.publish("orders") as hop:
            headers = hop.headers
        with rtobs.consume("orders", headers=headers, trust="trusted") as handled:
            assert headers["traceparent"][3:35] == hop.correlation_id == handled.correlation_id
        assert user.span("consume orders").parent.span_id == user.span("publish orders").context.span_id
