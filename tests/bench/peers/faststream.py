"""FastStream's own middlewares, over its in-memory test broker."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import prometheus_client
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
from faststream.rabbit.prometheus import RabbitPrometheusMiddleware
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.bench import floor as bare
from tests.bench.peers.common import Peer, Run, tell, times_async


def main() -> None:
    logging.disable(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    provider = bare.provider()
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    telemetry: Any = lambda: RabbitTelemetryMiddleware(tracer_provider=provider, meter_provider=meters)  # noqa: E731
    prometheus: Any = lambda: RabbitPrometheusMiddleware(registry=prometheus_client.CollectorRegistry())  # noqa: E731

    def side(*middlewares: Any) -> Run:
        broker = RabbitBroker(middlewares=middlewares, logger=None)

        @broker.subscriber("orders")
        async def handle(_: bytes) -> None:
            pass

        started: Any = loop.run_until_complete(TestRabbitBroker(broker).__aenter__())

        async def hop() -> None:
            await started.publish(bare.BODY, "orders", correlation_id="c-1")

        hops = times_async(loop, hop)

        def run(count: int) -> None:
            hops(count)
            provider.force_flush()
            handle.mock.reset_mock()  # the test broker remembers every message

        return run

    plain = side()
    tell(
        [
            Peer(
                "telemetry",
                "FastStream, OpenTelemetry middleware",
                "3 spans, traceparent, 2 histograms",
                side(telemetry()),
                plain,
            ),
            Peer("prometheus", "FastStream, Prometheus middleware", "metrics only", side(prometheus()), plain),
            Peer(
                "both",
                "FastStream, both middlewares",
                "3 spans, traceparent, 2 histograms, Prometheus metrics",
                side(telemetry(), prometheus()),
                plain,
            ),
        ],
        ("faststream", "opentelemetry-sdk", "prometheus-client"),
    )


main()
