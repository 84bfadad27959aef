"""logfire: spans, metrics and logs by hand, nothing sent."""

from __future__ import annotations

from collections import deque
from typing import Any

import logfire
from logfire.propagate import attach_context, get_context
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.bench import floor as bare
from tests.bench.peers.common import Peer, Run, tell, times


def main() -> None:
    processor = BatchSpanProcessor(bare.NullExporter())
    logfire.configure(
        send_to_logfire=False, console=False, inspect_arguments=False, additional_span_processors=[processor],
        metrics=logfire.MetricsOptions(additional_readers=[InMemoryMetricReader()]),
    )  # fmt: skip
    counter: Any = logfire.metric_counter("n")
    histograms: Any = [logfire.metric_histogram(name) for name in ("a", "b", "c")]
    labels = {"messaging.system": "memory", "destination": "orders", "tenant": "acme", "outcome": "ok"}
    box: deque[tuple[bytes, Any]] = deque()

    def plain() -> None:
        box.append((bare.BODY, {}))
        box.popleft()

    def hop(*, metrics: bool, log: bool) -> None:
        with logfire.span("publish {destination}", destination="orders", tenant="acme", message_id="1", size=512):
            box.append((bare.BODY, dict(get_context())))
        _, headers = box.popleft()
        with (
            attach_context(headers),
            logfire.span("process {destination}", destination="orders", tenant="acme", message_id="1", size=512),
        ):
            pass
        if metrics:
            counter.add(1, labels)
            for histogram in histograms:
                histogram.record(0.1, labels)
        if log:
            logfire.info("message processed", destination="orders", duration_ms=1.2)

    def side(**parts: bool) -> Run:
        hops = times(lambda: hop(**parts))

        def run(count: int) -> None:
            hops(count)
            processor.force_flush()

        return run

    what = "2 spans, traceparent"
    tell(
        [
            Peer("spans", "logfire", what, side(metrics=False, log=False), times(plain)),
            Peer(
                "metrics",
                "logfire + 4 metrics",
                f"{what}, 1 counter and 3 histograms",
                side(metrics=True, log=False),
                times(plain),
            ),
            Peer(
                "log",
                "logfire + 4 metrics + info()",
                f"{what}, 1 counter and 3 histograms, a log line",
                side(metrics=True, log=True),
                times(plain),
            ),
        ],
        ("logfire", "opentelemetry-sdk"),
    )


main()
