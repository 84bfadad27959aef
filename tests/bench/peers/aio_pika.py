"""aio-pika: OpenTelemetry's contrib instrumentation, alone and with four metrics by hand, and rtobs on the same hop.

The client's own Exchange, Queue and IncomingMessage; only the channel under them is ours and keeps messages in memory.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import yarl
from aio_pika import Exchange, Message, Queue
from aiormq import spec
from aiormq.abc import DeliveredMessage
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pamqp.header import ContentHeader

import rtobs
from tests.bench import floor as bare
from tests.bench.cases import OUR_PIPELINE, flush_all, throw_away
from tests.bench.peers.common import Peer, Run, tell, times_async

BATCH = 100


class Underlay:
    """A channel without a socket: what is published is delivered when asked for."""

    def __init__(self) -> None:
        self.sent: deque[DeliveredMessage] = deque()
        self.consumer: Any = None

    async def basic_publish(self, *, exchange: str, routing_key: str, body: bytes, properties: Any, **_: Any) -> None:
        delivery = spec.Basic.Deliver("tag", 1, redelivered=False, exchange=exchange, routing_key=routing_key)
        self.sent.append(DeliveredMessage(delivery, ContentHeader(0, len(body), properties), body, None))

    async def basic_consume(self, *, consumer_callback: Any, **_: Any) -> Any:
        self.consumer = consumer_callback
        return spec.Basic.ConsumeOk("tag")


class Side:
    """One exchange, one queue and a handler."""

    def __init__(self, handle: Any, wrap: Any = lambda client: client) -> None:
        self.underlay = Underlay()

        async def get_underlay_channel() -> Underlay:
            return self.underlay

        connection = SimpleNamespace(url=yarl.URL("amqp://localhost:5672"))
        channel: Any = SimpleNamespace(
            is_closed=False, get_underlay_channel=get_underlay_channel, _connection=connection
        )
        self.exchange = wrap(Exchange(channel, "events"))
        self.queue = wrap(Queue(channel, "orders", False, False, False, {}))
        self.handle = handle

    async def hop(self) -> None:
        message = Message(bare.BODY, headers={}, message_id="1", correlation_id="c-1")
        await self.exchange.publish(message, "orders")
        await self.underlay.consumer(self.underlay.sent.popleft())


def main() -> None:
    loop = asyncio.new_event_loop()
    os.environ.update(OUR_PIPELINE)
    provider = bare.provider()
    contrib: Any = AioPikaInstrumentor()
    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("hand-made")
    counter, *histograms = meter.create_counter("n"), *(meter.create_histogram(name) for name in "abc")

    async def handle(_: Any) -> None:
        pass

    async def handle_and_measure(_: Any) -> None:
        begun = time.perf_counter()
        labels = {"messaging.system": "rabbitmq", "destination": "orders", "tenant": "acme", "outcome": "ok"}
        counter.add(1, labels)
        for histogram in histograms:
            histogram.record(time.perf_counter() - begun, labels)

    def side(handle: Any, *, instrumented: bool = False, wrap: Any = lambda client: client) -> Run:
        """Return a run of hops; contrib patches the client's classes, so it is switched on for its own runs only."""

        def switch(on: bool) -> None:
            if instrumented:
                contrib.instrument(tracer_provider=provider) if on else contrib.uninstrument()

        switch(True)
        made = Side(handle, wrap)
        loop.run_until_complete(made.queue.consume(made.handle, no_ack=True))
        switch(False)
        hops = times_async(loop, made.hop)

        def run(count: int) -> None:
            switch(True)
            for _ in range(0, count, BATCH):
                hops(BATCH)
                provider.force_flush() if instrumented else wrapped_flush()
            switch(False)

        wrapped_flush = flush_all if wrap is rtobs.wrap else lambda: None
        return run

    throw_away()
    rtobs.configure(service="bench", logs="logging", strict=True)
    plain = side(handle)
    peers = [
        Peer(
            "contrib",
            "OpenTelemetry contrib aio-pika",
            "2 spans, traceparent",
            side(handle, instrumented=True),
            plain,
        ),
        Peer(
            "contrib_metrics",
            "contrib aio-pika + 4 SDK metrics by hand",
            "2 spans, traceparent, 1 counter and 3 histograms",
            side(handle_and_measure, instrumented=True),
            plain,
        ),
        Peer(
            "rtobs",
            "rtobs, aio-pika wrapped",
            "2 spans, all headers, 3 counters and 3 histograms, label guard, lag, log decision",
            side(handle, wrap=rtobs.wrap),
            plain,
        ),
    ]
    tell(peers, ("opentelemetry-instrumentation-aio-pika", "opentelemetry-sdk", "aio-pika", "rtobs"))


main()
