"""The benched hop: one publish and one consume of a 512-byte message, by public API only.

What it does: a publish hop and a consume hop, all headers of ``docs/wire-format.md`` out and in, the in-memory leaf's
``describe``, sanitiser, guard, label guard, 2 counters and 4 histograms or more, span, log decision.
FLOOR: two bare SDK spans (PRODUCER, CONSUMER) with 8 attributes each, no metrics, no log, no propagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind

import rtobs
from rtobs.integrations import memory
from rtobs.integrations.memory import Broker, Message

BODY = b"x" * 512


class NullExporter(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Forget them."""
        del spans
        return SpanExportResult.SUCCESS


def provider(sampler: Sampler = ALWAYS_ON) -> TracerProvider:
    """Return an SDK provider with a batch processor and a null exporter."""
    made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(NullExporter()))
    return made


def floor(tracer: trace.Tracer) -> Callable[[], None]:
    """Return the hop of two bare SDK spans."""
    attributes = {
        "messaging.system": "memory", "messaging.destination.name": "orders", "messaging.operation.name": "publish",
        "messaging.operation.type": "send", "messaging.message.id": "1", "messaging.message.body.size": 512,
        "server.address": "localhost", "server.port": 5672,
    }  # fmt: skip

    def hop() -> None:
        with tracer.start_as_current_span("publish orders", kind=SpanKind.PRODUCER, attributes=attributes):
            pass
        with tracer.start_as_current_span("process orders", kind=SpanKind.CONSUMER, attributes=attributes):
            pass

    return hop


def full() -> Callable[[], None]:
    """Return the full hop."""
    broker = rtobs.wrap(Broker())
    wrapped = memory._Message
    options = memory.options_of(broker)

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        message = memory.become(Message(broker, "orders", BODY, headers, 1, 1), wrapped, options)
        with rtobs.consume("orders", message):
            pass

    return hop


SAMPLERS: dict[str, Sampler] = {"sampled": ALWAYS_ON, "unsampled": ALWAYS_OFF}
