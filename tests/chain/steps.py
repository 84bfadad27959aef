"""One step of a journey of six, each in a process of its own; run as a program by test_flight.py.

    python -m tests.chain.steps STEP COUNT NAME

The first takes messages in, the next four pass them on, the last one fails: its message is given back, comes again,
fails again, is sent once more by the application, and fails for good. All do so with COUNT messages on each of three
brokers; for those with odd numbers the last step's clock is two hours late. Books hold between which two moments of the
wall clock a step began and sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import aio_pika
import nats
import redis.asyncio

import rtobs
from rtobs import Outcome
from rtobs._hop.runtime import runtime
from tests.support import brokers

STEPS = 6
LATER_NS = 2 * 3600 * 1_000_000_000
GROUP = "workers"
TENANT = "acme"

Key = str
"""Broker and number of a message."""

begun: dict[Key, tuple[int, int]] = {}
"""When a step's hop was opened, by message."""
sent: dict[Key, tuple[int, int]] = {}
"""When it sent the message on."""
journeys: dict[Key, str] = {}
tries: dict[Key, int] = defaultdict(int)
late_ns: ContextVar[int] = ContextVar("late_ns", default=0)
"""By how much the clock is late where a message is handled."""

Handle = Callable[[bytes, int], Awaitable[bool]]


def is_later(number: int) -> bool:
    """Tell whether a message is one that fails two hours later."""
    return number % 2 == 1


def sees(step: int, body: bytes) -> int:
    """Set the clock for a message whose handling begins; return the moment."""
    late_ns.set(LATER_NS if step == STEPS and is_later(int(body)) else 0)
    return time.time_ns()


class Place:
    """Where messages wait: one broker behind three calls."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self) -> None:
        """Connect."""

    async def make(self) -> None:
        """Make the queue."""

    async def send(self, step: int, body: bytes) -> None:
        """Send what the next step gets."""

    async def work(self, step: int, handle: Handle) -> None:
        """Handle what the step before sent; False: give it back."""

    async def close(self) -> None:
        """Disconnect."""

    async def remove(self) -> None:
        """Delete the queues."""


class RabbitMQ(Place):
    """Queues by the default exchange, acknowledged by hand."""

    async def open(self) -> None:
        self._connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
        self._channel = await self._connection.channel()
        await self._channel.set_qos(prefetch_count=50)

    async def make(self) -> None:
        for step in range(1, STEPS):
            await self._channel.declare_queue(f"{self.name}-{step}")

    async def send(self, step: int, body: bytes) -> None:
        await self._channel.default_exchange.publish(aio_pika.Message(body), f"{self.name}-{step}")

    async def work(self, step: int, handle: Handle) -> None:
        queue = await self._channel.get_queue(f"{self.name}-{step - 1}")
        async with queue.iterator() as messages:
            async for message in messages:
                before = sees(step, message.body)
                with rtobs.consume(f"step{step}", message):
                    if await handle(message.body, before):
                        await message.ack()
                    else:
                        await message.nack(requeue=True)

    async def close(self) -> None:
        await self._connection.close()

    async def remove(self) -> None:
        for step in range(1, STEPS):
            await self._channel.queue_delete(f"{self.name}-{step}")


class Redis(Place):
    """Streams with a group; what was not acknowledged is claimed."""

    async def open(self) -> None:
        self._client = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))

    async def make(self) -> None:
        for step in range(1, STEPS):
            await self._client.xgroup_create(f"{self.name}-{step}", GROUP, mkstream=True)

    async def send(self, step: int, body: bytes) -> None:
        await self._client.xadd(f"{self.name}-{step}", {"body": body})

    async def work(self, step: int, handle: Handle) -> None:
        name = f"{self.name}-{step - 1}"
        while True:
            for _, entries in await self._client.xreadgroup(GROUP, "one", {name: ">"}, count=20, block=500) or ():
                await self._handle(name, step, entries, handle)
            if step == STEPS:
                left = await self._client.xautoclaim(name, GROUP, "two", 0, count=20)
                await self._handle(name, step, left[1], handle)

    async def _handle(self, name: str, step: int, entries: Any, handle: Handle) -> None:
        for entry in entries:
            before = sees(step, entry[1][b"body"])
            with rtobs.consume(f"step{step}", entry) as hop:
                if await handle(entry[1][b"body"], before):
                    await self._client.xack(name, GROUP, entry[0])
                else:
                    hop.outcome(Outcome.RETRIED)

    async def close(self) -> None:
        await self._client.aclose()

    async def remove(self) -> None:
        for step in range(1, STEPS):
            await self._client.delete(f"{self.name}-{step}")


class Nats(Place):
    """A stream for each queue, with a pull consumer."""

    async def open(self) -> None:
        self._client = rtobs.wrap(await nats.connect(brokers.NATS.url))
        self._stream = self._client.jetstream()

    async def make(self) -> None:
        for step in range(1, STEPS):
            name = f"{self.name}-{step}"
            await self._stream.add_stream(name=name, subjects=[name], storage="memory")
            await self._stream.pull_subscribe(name, GROUP)

    async def send(self, step: int, body: bytes) -> None:
        await self._stream.publish(f"{self.name}-{step}", body)

    async def work(self, step: int, handle: Handle) -> None:
        pull = await self._stream.pull_subscribe(f"{self.name}-{step - 1}", GROUP)
        while True:
            with contextlib.suppress(TimeoutError):
                for message in await pull.fetch(20, timeout=0.5):
                    before = sees(step, message.data)
                    with rtobs.consume(f"step{step}", message):
                        if await handle(message.data, before):
                            await message.ack()
                        else:
                            await message.nak()

    async def close(self) -> None:
        await self._client.close()

    async def remove(self) -> None:
        for step in range(1, STEPS):
            await self._stream.delete_stream(f"{self.name}-{step}")


PLACES: dict[str, type[Place]] = {"rabbitmq": RabbitMQ, "redis": Redis, "nats": Nats}


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def first(broker: str, place: Place, count: int) -> None:
    """Take messages in, and send them on."""
    for number in range(count):
        key, before = f"{broker} {number}", time.time_ns()
        with rtobs.accept("/notify") as hop:
            begun[key] = before, time.time_ns()
            journeys[key] = hop.correlation_id
            await send_on(place, 1, key)


async def send_on(place: Place, step: int, key: Key) -> None:
    """Send a message to the next step; what comes after that is not part of the handover."""
    before = time.time_ns()
    await place.send(step, key.rpartition(" ")[2].encode())
    sent[key] = before, time.time_ns()


async def middle(broker: str, place: Place, step: int) -> None:
    """Pass on what comes."""

    async def handle(body: bytes, before: int) -> bool:
        key = f"{broker} {int(body)}"
        begun[key] = before, time.time_ns()
        await asyncio.sleep(0.001)
        await send_on(place, step, key)
        return True

    await place.work(step, handle)


async def push(broker: str) -> None:
    """Find nobody; each broker's messages have a provider of their own."""
    with rtobs.deliver("push", f"to-{broker}"):
        raise TimeoutError("no answer")


async def last(broker: str, place: Place, count: int) -> None:
    """Fail three times: given back, tried again by the application, for good."""
    ended = set()

    async def handle(body: bytes, _before: int) -> bool:
        key = f"{broker} {int(body)}"
        tries[key] += 1
        number_of_try = tries[key]
        try:
            await push(broker)
        except TimeoutError:
            if number_of_try == 1:
                return False
        if number_of_try == 2:
            await place.send(STEPS - 1, body)
            rtobs.current().outcome(Outcome.RETRIED)
        else:
            rtobs.current().outcome(Outcome.FAILED)
            ended.add(key)
            if len(ended) == count:
                tell(done=broker)
        return True

    await place.work(STEPS, handle)


async def main(step: int, count: int, name: str) -> None:
    places = {broker: make(name) for broker, make in PLACES.items()}
    for place in places.values():
        await place.open()
    tell(ready=True)
    if step == 1:
        for broker, place in places.items():
            await asyncio.to_thread(sys.stdin.readline)
            await first(broker, place, count)
    else:
        working = [
            asyncio.ensure_future(middle(broker, place, step) if step < STEPS else last(broker, place, count))
            for broker, place in places.items()
        ]
        closed = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({*working, closed}, return_when=asyncio.FIRST_COMPLETED)
        for task in working:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    for place in places.values():
        await place.close()


if __name__ == "__main__":
    rtobs.configure(service=f"service-{sys.argv[1]}", sampling={"default": 0.0}, logs=lambda _event: None)
    runtime.wall_ns = lambda: time.time_ns() + late_ns.get()
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    tell(begun=begun, sent=sent, journeys=journeys, tries=tries, flushed=rtobs.shutdown())
