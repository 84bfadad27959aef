"""How the process of each row of the benchmark is prepared, and what one hop of it runs.

A process measures one row, for a process has one tracer provider and one configuration. Where our pipeline is meant,
an endpoint is in the environment and hops reach our own queue; what would be posted is thrown away, encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, ParentBased, Sampler

import rtobs
from rtobs._config import flush
from rtobs._export.sender import Sender
from rtobs._export.transport import Answer
from rtobs._hop.runtime import runtime
from tests.bench import floor as bare
from tests.bench import hop as benched
from tests.bench import ledger
from tests.bench.floor import NullExporter
from tests.bench.references import Case, fail, times

OUR_PIPELINE = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
"""Spans are encoded by us; ``throw_away`` takes what would be posted."""
ANOTHER_EXPORTER = {
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
}
"""Spans leave by the SDK's gRPC exporter, in whose place ``throw_away`` puts one that throws away."""


# Ours: the span paths ------------------------------------------------------------------------------------------------


def _configured(**settings: Any) -> None:
    settings.setdefault("logs", "logging")
    rtobs.configure(service="bench", strict=True, **settings)


def flush_all() -> None:
    assert flush(120), "not everything was exported in time"  # under callgrind a first import alone takes seconds


_posted: list[bytes] = []


def seen() -> int:
    """Return how many spans have reached the end of whatever pipeline there is."""
    for request in _posted:
        groups = ExportTraceServiceRequest.FromString(request).resource_spans
        NullExporter.seen += sum(len(scope.spans) for group in groups for scope in group.scope_spans)
    _posted.clear()
    return NullExporter.seen


def _keep(_sender: Sender, data: bytes, _deadline: float) -> Answer:
    _posted.append(data)
    return Answer("taken")


def throw_away() -> None:
    """Take what our pipeline would send, and put the null exporter where it finds the SDK's; neither is imported."""
    Sender.post = _keep  # type: ignore[method-assign]
    module: Any = types.ModuleType("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    module.OTLPSpanExporter = NullExporter
    sys.modules[module.__name__] = module


def ours(hop: Callable[[], None] | None = None, *, spans: int | None = 2, **settings: Any) -> Case:
    """Prepare our own pipeline."""
    throw_away()
    _configured(**settings)
    return Case(times(hop or benched.full()), flush_all, spans=spans)


def users(*processors: SpanProcessor, sampler: Sampler = DEFAULT_ON, spans: int = 2) -> Case:
    """Prepare a process that has a provider of its own."""
    provider = bare.provider(sampler)
    for processor in processors:
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    _configured()
    return Case(times(benched.full()), provider.force_flush, spans=spans)


def users_unsampled() -> Case:
    return users(sampler=ParentBased(ALWAYS_OFF), spans=0)


class _Starts(SpanProcessor):
    """Wants to see spans start, as some vendors' processors do; so every hop has to be an SDK span."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Look at it."""


def fallback() -> Case:
    return users(_Starts())


def exported() -> Case:
    _configured()
    return Case(times(benched.full()), flush_all, spans=None)


# Ours: parts and features --------------------------------------------------------------------------------------------


def without(name: str) -> Case:
    """Prepare the full hop without one of the sinks."""
    case = ours()
    runtime.prepare()
    kept = tuple(sink for sink in runtime.sinks if type(sink).__name__ != name)
    assert len(kept) == len(runtime.sinks) - 1, f"no {name} among {runtime.sinks}"
    if name == "MetricSink":
        runtime.begin = next(sink.begin for sink in kept if type(sink).__name__ == "SpanSink")
    runtime.sinks = kept
    return case


def metrics_alone() -> Case:
    """Record the metrics of one real hop again and again."""
    case = ours(spans=None)
    ended: list[Any] = []

    class Spy:
        def end(self, record: Any) -> None:
            ended.append(record)

    runtime.prepare()
    sink = next(sink for sink in runtime.sinks if type(sink).__name__ == "MetricSink")
    runtime.sinks = (*runtime.sinks, Spy())
    case.run(1)
    case.flush()  # what the export thread imports first is not of any hop
    published, consumed = ended
    runtime.sinks = runtime.sinks[:-1]
    published.duration_ns, consumed.duration_ns, consumed.lag = 50_000, 120_000, 0.002  # in the same buckets every time

    def hop() -> None:
        sink.end(published)
        sink.end(consumed)

    return Case(times(hop), spans=None)


def off() -> Case:
    _configured()
    message = benched.arrival()({})

    def hop() -> None:
        with rtobs.publish("orders"):
            pass
        with rtobs.consume("orders", message):
            pass

    return Case(times(hop), spans=None)


def headerless() -> Case:
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders"):
            pass
        with rtobs.consume("orders", arrive({}), trust="ignore"):
            pass

    return ours(hop)


def unrecorded() -> Case:
    ledger.switch(on=False)
    return ours()


def noting(count: int) -> Case:
    fields: dict[str, Any] = {f"order.fact_{number}": f"value {number}" for number in range(count)}
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            out.note(**fields)
            headers = out.headers
        with rtobs.consume("orders", arrive(headers)) as handled:
            handled.note(**fields)

    return ours(hop)


def labelled(destinations: int, tenants: int) -> Case:
    sets = itertools.product((f"orders.{n}" for n in range(destinations)), (f"tenant-{n}" for n in range(tenants)))
    turn = itertools.cycle(list(sets))
    arrive = benched.arrival()

    def hop() -> None:
        destination, tenant = next(turn)
        with rtobs.publish(destination) as out:
            out.segment(tenant=tenant)
            headers = out.headers
        with rtobs.consume(destination, arrive(headers)):
            pass

    return ours(hop)


def with_headers(added: Mapping[str, str]) -> Case:
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with rtobs.consume("orders", arrive({**headers, **added})):
            pass

    return ours(hop)


def in_baggage() -> Case:
    context.attach(baggage.set_baggage("plan", "gold"))
    return ours()


def staged() -> Case:
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with rtobs.consume("orders", arrive(headers)):
            with rtobs.stage("normalize"):
                pass
            with rtobs.stage("route"):
                pass

    return ours(hop, spans=4)


def delivering(*, token: bool, **settings: Any) -> Case:
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with rtobs.consume("orders", arrive(headers)), rtobs.deliver("push", "fcm") as attempt:
            if token:
                assert attempt.receipt_token()

    return ours(hop, spans=3, **settings)


def decorated() -> Case:
    arrive = benched.arrival()

    @rtobs.publish("orders")
    def send(headers: dict[str, str] | None = None) -> dict[str, str]:
        return headers or {}

    @rtobs.consume("orders")
    def handle(message: object) -> None:
        pass

    def hop() -> None:
        handle(arrive(send()))

    return ours(hop)


def failing() -> Case:
    arrive = benched.arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with contextlib.suppress(ValueError), rtobs.consume("orders", arrive(headers)):
            fail(8)

    return ours(hop)


def logged() -> Case:
    arrive = benched.arrival()
    log = logging.getLogger("rtobs")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: PTH123, SIM115  open to the end of the process

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with rtobs.consume("orders.slow", arrive(headers)):
            pass

    return ours(hop, slow={"orders.slow": 1e-9})


def threaded(threads: int) -> Case:
    case = ours()
    alone = case.run

    def run(hops: int) -> None:
        started = [threading.Thread(target=alone, args=(hops // threads,)) for _ in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    case.run = run
    return case


def in_tasks() -> Case:
    arrive = benched.arrival()
    loop = asyncio.new_event_loop()

    async def full() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
            await asyncio.sleep(0)
        with rtobs.consume("orders", arrive(headers)):
            await asyncio.sleep(0)

    async def nothing() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def together(work: Callable[[], Any], tasks: int) -> None:
        await asyncio.gather(*(asyncio.create_task(work()) for _ in range(tasks)))

    case = ours()
    case.run = lambda hops: loop.run_until_complete(together(full, hops))
    case.bare = lambda hops: loop.run_until_complete(together(nothing, hops))
    return case


KEY = b"sixteen bytes at least"
