"""What exporting costs and how much of it a process can do, ours beside the SDK's: functions for tests and benches.

Each measurement runs in a process of its own and sends to a receiver in another one, which counts by span ids.

    python -m tests._export.load cpu ours|through|sdk       CPU of the process per hop, export thread included, flushed
    python -m tests._export.load rate ours|through|sdk      spans per second that are exported without dropping any
    python -m tests._export.load steady ours RATE SECONDS
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.support import scripts

# The receiver --------------------------------------------------------------------------------------------------------


class Receiver:
    """A process that takes everything it is sent over OTLP/HTTP, and counts spans by id."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{port}"

    def counted(self) -> dict[str, int]:
        """Return how many spans arrived so far, how many different ones, and in how many requests."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver."""
    command = [sys.executable, "-m", "tests._export.load", "receive"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scripts.ROOT
    ) as process:
        try:
            yield Receiver(process, int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(10)


_IDS = re.compile(rb"\x0a\x10.{16}\x12\x08(.{8})[\x1a\x22\x2a]", re.DOTALL)
"""How every span begins: 16 bytes of trace id, 8 of its own, its parent or name. Parsing would take longer."""


class _Counting:
    """The receiver's own books."""

    def __init__(self) -> None:
        self.found: list[list[bytes]] = []
        """The spans of each request, by id; they are compared later, for the sender must not wait for that."""

    def serve(self, connection: socket.socket) -> None:
        """Take all requests of one connection."""
        stream = connection.makefile("rb")
        while line := stream.readline():
            size = 0
            while (header := stream.readline()) not in (b"\r\n", b""):
                if header.lower().startswith(b"content-length:"):
                    size = int(header.split(b":")[1])
            body = stream.read(size)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            if b"/v1/traces" in line:
                self.found.append(_IDS.findall(body))

    def counts(self) -> dict[str, int]:
        """Return what arrived so far."""
        found = list(self.found)
        different = set().union(*found)
        return {"spans": sum(map(len, found)), "different": len(different), "requests": len(found)}


def _receive() -> None:
    counting = _Counting()
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            threading.Thread(target=counting.serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(counting.counts()), flush=True)


# The sides -----------------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """One way to make and export the spans of a hop, two of them."""

    hop: Callable[[], None]
    flush: Callable[[], object]
    waiting: Callable[[], int]
    """Items in its queue."""
    room: int
    """Items that fit."""
    dropped: Callable[[], int]


def _hops() -> Callable[[], None]:
    """Return what makes full hops by public API, one publish and one consume."""
    import rtobs
    from rtobs.integrations import memory

    rtobs.configure()  # as an application does at its start: what has to be imported is imported here
    broker = rtobs.wrap(memory.Broker())
    wrapped, options = memory._Message, memory.options_of(broker)

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        message = memory.become(memory.Message(broker, "orders", b"x" * 512, headers, 1, 1), wrapped, options)
        with rtobs.consume("orders", message):
            pass

    hop()
    return hop


def ours(endpoint: str) -> Side:
    """Full hops over our own pipeline."""
    os.environ.update(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{endpoint}/v1/traces", OTEL_SERVICE_NAME="load")
    hop = _hops()
    from rtobs import _config, _guard
    from rtobs._export.pipeline import QUEUE_LIMIT

    def dropped() -> int:
        return sum(n for (name, _), n in _guard.tallies().items() if name == "rtobs.telemetry.dropped")

    spans = _config._bound.pipeline._lines["spans"]
    return Side(hop, lambda: _config.flush(30), lambda: spans.buffer.count, QUEUE_LIMIT, dropped)


def _processor(endpoint: str) -> tuple[Any, Any]:
    """Return the SDK's provider with its batch processor and OTLP/HTTP exporter, as they are by default."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider, processor


def through(endpoint: str) -> Side:
    """The same full hops, through a provider of the application's with the SDK's processor and exporter."""
    from opentelemetry import trace

    provider, processor = _processor(endpoint)
    trace.set_tracer_provider(provider)
    queue = processor._batch_processor._queue
    return Side(_hops(), provider.force_flush, lambda: len(queue), queue.maxlen, lambda: 0)


def sdk(endpoint: str) -> Side:
    """Two bare SDK spans with eight attributes each, batch processor and OTLP/HTTP exporter as they are by default."""
    from opentelemetry.trace import SpanKind, set_span_in_context

    provider, processor = _processor(endpoint)
    start = provider.get_tracer("bare").start_span
    facts = {
        "messaging.system": "memory", "messaging.destination.name": "orders", "messaging.operation.name": "publish",
        "messaging.operation.type": "send", "messaging.message.id": "1", "messaging.message.body.size": 512,
        "server.address": "localhost", "server.port": 5672,
    }  # fmt: skip
    queue = processor._batch_processor._queue

    def hop() -> None:
        sending = start("publish orders", kind=SpanKind.PRODUCER, attributes=facts)
        sending.end()
        start("process orders", set_span_in_context(sending), kind=SpanKind.CONSUMER, attributes=facts).end()

    return Side(hop, provider.force_flush, lambda: len(queue), queue.maxlen, lambda: 0)


SIDES = {"ours": ours, "through": through, "sdk": sdk}


# Measurements, in the process of the side ----------------------------------------------------------------------------


def cpu(side: Side, rounds: int = 9, hops: int = 1500) -> dict[str, float]:
    """Return CPU microseconds of the whole process per hop, everything flushed; *hops* fit into the queue."""
    hops = min(hops, side.room // 2 - 50)
    found = []
    for number in range(rounds + 2):
        begun = time.process_time()
        for _ in range(hops):
            side.hop()
        side.flush()
        if number > 1:  # the first ones import and learn
            found.append((time.process_time() - begun) / hops * 1e6)
    low, middle, high = statistics.quantiles(found, n=4)
    return {"cpu_us": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}


def rate(side: Side, seconds: float = 4.0) -> dict[str, float]:
    """Return the spans per second that leave when hops are made as fast as the queue has room for them."""
    _fill(side, 1.0)
    made = 0
    cpu_begun, begun = time.process_time(), time.perf_counter()
    made = _fill(side, seconds)
    took = time.perf_counter() - begun
    busy = (time.process_time() - cpu_begun) / took
    side.flush()
    return {
        "spans_per_second": round(made / took), "spans_per_cpu_second": round(made / took / busy),
        "cpu": round(busy, 2), "dropped": side.dropped(),
    }  # fmt: skip


def _fill(side: Side, seconds: float) -> int:
    """Make hops for some time, with pauses while the queue is three quarters full; return how many spans have left."""
    hop, waiting, full = side.hop, side.waiting, side.room * 3 // 4
    made, before, until = 0, waiting(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        if waiting() > full:
            time.sleep(0.001)
            continue
        for _ in range(32):
            hop()
        made += 64
    return made + before - waiting()


def steady(side: Side, spans_per_second: float, seconds: float) -> dict[str, Any]:
    """Make spans at a steady rate; return what was made, dropped, and what it cost."""
    made, begun = 0, time.perf_counter()
    first, second, peak = time.process_time(), time.perf_counter() + 1, 0.0
    last = first
    ahead = begun
    while (now := time.perf_counter()) - begun < seconds:
        ahead = max(ahead, now - 0.05)  # what a busy machine has kept from happening is not made up for in a rush
        while ahead < now:
            side.hop()
            made += 2
            ahead += 2 / spans_per_second
        if time.perf_counter() >= second:
            second += 1
            last, spent = time.process_time(), time.process_time() - last
            peak = max(peak, spent)
        time.sleep(0.002)
    took = time.perf_counter() - begun
    average = (time.process_time() - first) / took
    flushed = side.flush()
    return {
        "made": made, "took": round(took, 2), "dropped": side.dropped(), "flushed": bool(flushed),
        "cpu_average": round(average, 3), "cpu_peak": round(peak, 3),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


# Measurements, from outside ------------------------------------------------------------------------------------------


def measured(what: str, side: str, *arguments: float) -> dict[str, Any]:
    """Run one measurement of one side against a receiver; what the receiver counted is in it."""
    with receiver() as found:
        command = [sys.executable, "-m", "tests._export.load", what, side, found.endpoint, *map(str, arguments)]
        environment = scripts.environment(PYTHONPATH=str(scripts.ROOT))
        done = subprocess.run(
            command, cwd=scripts.ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) | {"received": found.counted()}


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "receive":
        _receive()
    elif len(rest) > 1 and rest[1].startswith("http"):
        side, endpoint, *arguments = rest
        made = {"cpu": cpu, "rate": rate, "steady": steady}[what](SIDES[side](endpoint), *map(float, arguments))
        print(json.dumps(made), flush=True)
        os._exit(0)  # the SDK's processor would flush once more, for up to thirty seconds
    else:
        print(json.dumps(measured(what, rest[0], *map(float, rest[1:]))))


if __name__ == "__main__":
    main()
