"""What others are compared with: FLOOR and its relatives, and the SDK's metrics. And what a row is when it can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from tests.bench import floor as bare

Run = Callable[[int], None]
"""Run so many hops."""


@dataclass
class Case:
    """One row, ready to run in this process."""

    run: Run
    flush: Callable[[], object] = lambda: None
    """Do what the export thread would do with what is queued."""
    bare: Run | None = None
    """The same without hops; it is taken off."""
    spans: int | None = 2
    """Spans that a hop exports; checked, so that a row cannot be cheap by doing nothing. None: not seen here."""


def times(hop: Callable[[], None]) -> Run:
    """Return what runs a hop so many times."""

    def run(hops: int) -> None:
        for _ in range(hops):
            hop()

    return run


def floor(failure: Exception | None = None, **options: Any) -> Case:
    provider = bare.provider(**options)
    tracer = provider.get_tracer("bare")
    return Case(times(bare.floor(tracer, failure)), provider.force_flush)


def floor_unsampled() -> Case:
    case = floor(sampler=ParentBased(ALWAYS_OFF))
    case.spans = 0
    return case


def floor_exported() -> Case:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    case = floor(exporter=OTLPSpanExporter())
    case.spans = None
    return case


def floor_exception() -> Case:
    try:
        fail(8)
    except ValueError as error:
        return floor(error)
    raise AssertionError


def fail(depth: int) -> None:
    """Raise, so many calls deep."""
    if depth:
        fail(depth - 1)
    raise ValueError("the ticket has no subject")


def sdk_metrics() -> Case:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bare")
    counted, sent, handled, waited = meter.create_counter("n"), *(meter.create_histogram(name) for name in "abc")
    labels = {"messaging.system": "memory", "destination": "orders", "tenant": "acme", "outcome": "ok"}

    def hop() -> None:
        counted.add(1, labels)
        sent.record(0.001, labels)
        handled.record(0.002, labels)
        waited.record(0.003, labels)

    return Case(times(hop), spans=None)


def no_op(*, current: bool) -> Case:
    tracer = trace.NoOpTracerProvider().get_tracer("bare")

    def hop() -> None:
        tracer.start_span("publish orders", kind=trace.SpanKind.PRODUCER).end()
        tracer.start_span("process orders", kind=trace.SpanKind.CONSUMER).end()

    def hop_with_current_spans() -> None:
        with tracer.start_as_current_span("publish orders", kind=trace.SpanKind.PRODUCER):
            pass
        with tracer.start_as_current_span("process orders", kind=trace.SpanKind.CONSUMER):
            pass

    return Case(times(hop_with_current_spans if current else hop), spans=None)
