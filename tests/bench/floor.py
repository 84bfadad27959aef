"""FLOOR, what every ratio is to: two bare SDK spans (PRODUCER, and CONSUMER as its child) with 8 attributes each.

The SDK's default sampler, a batch processor and an exporter that throws away; no metrics, no log, no headers, never
made current. Imports nothing of rtobs, so that FLOOR runs in any peer's environment too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler
from opentelemetry.trace import SpanKind, set_span_in_context

WHAT = "two bare SDK spans, 8 attributes, batch processor, null exporter"
BODY = b"x" * 512


class NullExporter(SpanExporter):
    """Counts spans and forgets them."""

    seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Forget them."""
        NullExporter.seen += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to stop."""


def provider(sampler: Sampler = DEFAULT_ON, exporter: SpanExporter | None = None) -> TracerProvider:
    """Return an SDK provider with a batch processor and, unless another is given, a null exporter."""
    made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(exporter or NullExporter()))
    return made


def floor(tracer: trace.Tracer, failure: Exception | None = None) -> Callable[[], None]:
    """Return the hop of two bare SDK spans; with *failure* the second one records it."""
    start = tracer.start_span
    sending, processing = _attributes("publish", "send"), _attributes("process", "process")

    def hop() -> None:
        sent = start("publish orders", kind=SpanKind.PRODUCER, attributes=sending)
        sent.end()
        handled = start("process orders", set_span_in_context(sent), SpanKind.CONSUMER, processing)
        if failure is not None:
            handled.record_exception(failure)
        handled.end()

    return hop


def _attributes(operation: str, kind: str) -> dict[str, str | int]:
    return {
        "messaging.system": "memory", "messaging.destination.name": "orders", "messaging.operation.name": operation,
        "messaging.operation.type": kind, "messaging.message.id": "1", "messaging.message.body.size": len(BODY),
        "server.address": "localhost", "server.port": 5672,
    }  # fmt: skip
