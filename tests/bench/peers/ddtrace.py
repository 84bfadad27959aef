"""ddtrace: spans placed by hand as its documentation does for a queue, with and without data streams checkpoints.

A trace filter drops every trace before it is encoded, as FLOOR's exporter does.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from ddtrace.data_streams import set_consume_checkpoint, set_produce_checkpoint
from ddtrace.propagation.http import HTTPPropagator
from ddtrace.trace import TraceFilter, tracer

from tests.bench import floor as bare
from tests.bench.peers.common import Peer, tell, times


class Drop(TraceFilter):
    """Throws traces away."""

    def process_trace(self, trace: Any) -> None:
        del trace


def main() -> None:
    logging.disable(logging.CRITICAL)
    tracer.configure(trace_processors=[Drop()])
    box: deque[tuple[bytes, dict[str, str]]] = deque()

    def plain() -> None:
        box.append((bare.BODY, {}))
        box.popleft()

    def hop(*, checkpoints: bool) -> None:
        headers: dict[str, str] = {}
        with tracer.trace("kafka.produce", service="kafka", resource="orders", span_type="worker") as span:
            _tag(span, "producer")
            HTTPPropagator.inject(span.context, headers)
            if checkpoints:
                set_produce_checkpoint("kafka", "orders", headers.__setitem__)
            box.append((bare.BODY, headers))
        _, found = box.popleft()
        parent = HTTPPropagator.extract(found)
        with tracer.start_span(
            "kafka.consume", child_of=parent, service="kafka", resource="orders", span_type="worker", activate=True
        ) as span:
            _tag(span, "consumer")
            if checkpoints:
                set_consume_checkpoint("kafka", "orders", found.get)

    tell(
        [
            Peer(
                "spans",
                "ddtrace, by hand",
                "2 spans, 4 tags each, its headers and traceparent",
                times(lambda: hop(checkpoints=False)),
                times(plain),
            ),
            Peer(
                "checkpoints",
                "ddtrace, data streams",
                "the same and 2 data-streams checkpoints",
                times(lambda: hop(checkpoints=True)),
                times(plain),
            ),
        ],
        ("ddtrace", "opentelemetry-sdk"),
    )


def _tag(span: Any, kind: str) -> None:
    span.set_tag("span.kind", kind)
    span.set_tag("messaging.system", "kafka")
    span.set_tag("messaging.destination.name", "orders")
    span.set_tag("messaging.message.id", "1")


main()
