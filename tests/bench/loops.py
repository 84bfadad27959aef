"""What instrumentation adds to real loops over live brokers: publish and process, with the client wrapped and without.

``python -m tests.bench.loops <loop> <rounds> <messages>``: plain, wrapped, plain in each round. Wrapped is as in
production: every message makes its two hops, spans leave by OTLP to a collector on loopback. Prints JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._config import flush
from tests.bench.floor import BODY
from tests.bench.sink import Sink
from tests.support import brokers

ROUNDS = 7
AT_ONCE = 50

Loop = Callable[[int], Awaitable[None]]
"""Send and handle so many messages."""


def _name() -> str:
    return f"rtobs-bench-{os.urandom(4).hex()}"


def _as_is(client: Any) -> Any:
    return client


@asynccontextmanager
async def _rabbitmq(wrap: Callable[[Any], Any], at_once: int) -> AsyncGenerator[Loop, None]:
    import aio_pika

    connection = wrap(await aio_pika.connect(brokers.AMQP.url))
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.set_qos(prefetch_count=200)
        queue = await channel.declare_queue(_name(), exclusive=True)
        handled = asyncio.Semaphore(0)

        async def handle(message: Any) -> None:
            await message.ack()
            handled.release()

        await queue.consume(handle)

        async def loop(messages: int) -> None:
            send = channel.default_exchange.publish
            for _ in range(0, messages, at_once):
                await asyncio.gather(*(send(aio_pika.Message(BODY), queue.name) for _ in range(at_once)))
                for _ in range(at_once):
                    await handled.acquire()

        yield loop


@asynccontextmanager
async def _redis(wrap: Callable[[Any], Any], at_once: int) -> AsyncGenerator[Loop, None]:
    import redis.asyncio

    plain = wrap is _as_is
    client = wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
    stream = _name()
    await client.xgroup_create(stream, "workers", mkstream=True)

    def handle(entry: Any) -> None:
        if plain:
            return
        with rtobs.consume("bench", entry):
            pass

    async def loop(messages: int) -> None:
        for _ in range(0, messages, at_once):
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(at_once):
                    pipeline.xadd(stream, {"body": BODY}, maxlen=1000)
                await pipeline.execute()
            for _, entries in await client.xreadgroup("workers", "first", {stream: ">"}, count=at_once):
                for entry in entries:
                    handle(entry)
                await client.xack(stream, "workers", *(number for number, _ in entries))

    try:
        yield loop
    finally:
        await client.delete(stream)
        await client.aclose()


@asynccontextmanager
async def _nats(wrap: Callable[[Any], Any], _at_once: int) -> AsyncGenerator[Loop, None]:
    import nats

    client = wrap(await nats.connect(brokers.NATS.url))
    subject = _name()
    handled = asyncio.Semaphore(0)

    async def handle(_: Any) -> None:
        handled.release()

    await client.subscribe(subject, cb=handle)

    async def loop(messages: int) -> None:
        for _ in range(messages):
            await client.publish(subject, BODY, headers={"number": "1"})
        await client.flush()
        for _ in range(messages):
            await handled.acquire()

    try:
        yield loop
    finally:
        await client.close()


LOOPS: dict[str, tuple[str, Callable[..., Any], int, int]] = {
    "rabbitmq_one_at_a_time": ("aio-pika, one at a time, publisher confirms, ack", _rabbitmq, 1, 300),
    "rabbitmq_pipelined": ("aio-pika, 50 at once, publisher confirms, ack", _rabbitmq, AT_ONCE, 1000),
    "redis_batched": ("redis-py, Streams, pipelines and groups of 50", _redis, AT_ONCE, 2000),
    "nats_streaming": ("nats-py, core, as fast as it goes", _nats, 1, 4000),
}
"""What it is, what runs it, how many messages are under way at once, and how many a round has."""


async def spent(loop: Loop, messages: int) -> tuple[float, float]:
    """Return elapsed and CPU seconds for one message."""
    gc.collect()
    begun, used = time.perf_counter(), time.process_time()
    await loop(messages)
    return (time.perf_counter() - begun) / messages, (time.process_time() - used) / messages


def _dropped() -> int:
    return sum(n for (name, labels), n in _guard.tallies().items() if name == names.TELEMETRY_DROPPED.name and labels)


async def measure(name: str, rounds: int, messages: int | None) -> dict[str, Any]:
    """Measure one loop in this process."""
    what, make, at_once, usual = LOOPS[name]
    messages = messages or usual
    async with contextlib.AsyncExitStack() as stack:
        sink = stack.enter_context(Sink())
        os.environ.update(sink.environment)
        rtobs.configure(service="bench", logs="logging")
        plain = await stack.enter_async_context(make(_as_is, at_once))
        wrapped = await stack.enter_async_context(make(rtobs.wrap, at_once))
        await plain(messages)
        await wrapped(messages)
        found: list[tuple[float, float, float, float]] = []
        for _ in range(rounds):
            before, own, after = [await spent(each, messages) for each in (plain, wrapped, plain)]
            base, cpu = (before[0] + after[0]) / 2, (before[1] + after[1]) / 2
            found.append((base, own[0] - base, cpu, own[1] - cpu))
        flush()
        arrived, dropped = sink.take(), _dropped()
    shares = statistics.quantiles([added / base for base, added, _, _ in found], n=4)
    return {
        "loop": name,
        "what": what,
        "plain_us": round(statistics.median(base for base, _, _, _ in found) * 1e6, 1),
        "added_us": round(statistics.median(added for _, added, _, _ in found) * 1e6, 1),
        "added_cpu_us": round(statistics.median(added for _, _, _, added in found) * 1e6, 1),
        "share": round(shares[1], 3),
        "quartiles": [round(shares[0], 3), round(shares[2], 3)],
        "spans_dropped": round(dropped / max(dropped + arrived, 1), 3),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None))))
    sys.stdout.flush()
    os._exit(0)
