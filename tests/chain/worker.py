"""A worker on every broker at once, and the sender of one message for each; run as a program by test_killed.py.

    python worker.py victim|survivor NAME

The victim takes each message, makes one of two deliveries, and hangs in the other until it is killed. The survivor
sends the messages first, and takes them over once it is told to. A broker's name is the tenant and the provider of its
message. Moments are of the monotonic clock that all processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aio_pika
import nats
import redis.asyncio
from nats.js.api import ConsumerConfig

import rtobs
from tests.support import brokers
from tests.support.timing import eventually, scaled

Handle = Callable[[], Awaitable[None]]

GROUP = "workers"
IDLE = 0.2
"""Seconds after which a message that was not acknowledged is taken over, in Redis."""
ACK_WAIT = 1.0
"""The same in NATS, once the victim is dead; before that nothing is taken from it, however slow the machine is."""


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Broker:
    """One place for messages, of one kind."""

    def __init__(self, name: str, kind: str) -> None:
        self._name = name
        self._kind = kind
        self.settled = asyncio.Event()

    async def open(self) -> None:
        """Connect, and make the place if it is not there."""
        raise NotImplementedError

    async def send(self, body: bytes) -> None:
        """Send one message."""
        raise NotImplementedError

    async def work(self, handle: Handle, *, takes_over: bool) -> None:
        """Handle a message that comes, or begin to; with *takes_over* it is one that another worker has had."""
        raise NotImplementedError

    async def close(self) -> None:
        """Delete the place."""
        raise NotImplementedError


class RabbitMQ(Broker):
    """A queue, classic or quorum."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self._arguments = {"x-queue-type": kind, "x-expires": 60_000}

    async def open(self) -> None:
        self._connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
        self._channel = await self._connection.channel()
        self._queue = await self._channel.declare_queue(self._name, durable=True, arguments=self._arguments)

    async def send(self, body: bytes) -> None:
        await self._channel.default_exchange.publish(aio_pika.Message(body), self._name)

    async def work(self, handle: Handle, *, takes_over: bool) -> None:
        del takes_over  # the broker gives it to whoever is there

        async def on_message(message: Any) -> None:
            await handle()
            await message.ack()
            self.settled.set()

        await self._queue.consume(on_message)

    async def close(self) -> None:
        await self._channel.close()  # which ends its consumer
        await (await self._connection.channel()).queue_delete(self._name)
        await self._connection.close()


class Redis(Broker):
    """A stream; what the victim had is claimed."""

    async def open(self) -> None:
        self._client = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
        with contextlib.suppress(redis.ResponseError):  # the other process was faster
            await self._client.xgroup_create(self._name, GROUP, mkstream=True)

    async def send(self, body: bytes) -> None:
        await self._client.xadd(self._name, {"body": body})

    async def work(self, handle: Handle, *, takes_over: bool) -> None:
        entries = await (self._claimed() if takes_over else self._new())
        for entry in entries:
            with rtobs.consume(self._name, entry):
                await handle()
                await self._client.xack(self._name, GROUP, entry[0])
        self.settled.set()

    async def _new(self) -> list[Any]:
        ((_, entries),) = await self._client.xreadgroup(GROUP, "victim", {self._name: ">"}, block=20_000)
        return entries

    async def _claimed(self) -> list[Any]:
        idle = int(scaled(IDLE) * 1000)
        await eventually(lambda: self._client.xpending_range(self._name, GROUP, "-", "+", 10, idle=idle))
        if self._kind == "xautoclaim":
            _, found, _ = await self._client.xautoclaim(self._name, GROUP, "survivor", idle)
        else:
            (left,) = await self._client.xpending_range(self._name, GROUP, "-", "+", 10)
            found = await self._client.xclaim(self._name, GROUP, "survivor", idle, [left["message_id"]])
        return found

    async def close(self) -> None:
        await self._client.delete(self._name)
        await self._client.aclose()


class Nats(Broker):
    """A stream and its consumer, pull or push."""

    async def open(self) -> None:
        self._client = rtobs.wrap(await nats.connect(brokers.NATS.url))
        self._stream = self._client.jetstream()
        await self._stream.add_stream(name=self._name, subjects=[self._name], storage="memory")
        self._config = ConsumerConfig(durable_name=GROUP, filter_subject=self._name, ack_wait=60, ack_policy="explicit")
        if self._kind == "push":
            self._config.deliver_subject, self._config.deliver_group = f"{self._name}-to", GROUP
        await self._stream.add_consumer(self._name, self._config)

    async def send(self, body: bytes) -> None:
        await self._stream.publish(self._name, body)

    async def work(self, handle: Handle, *, takes_over: bool) -> None:
        if takes_over:
            self._config.ack_wait = ACK_WAIT
            await self._stream.add_consumer(self._name, self._config)

        async def on_message(message: Any) -> None:
            await handle()
            await message.ack_sync()
            self.settled.set()

        if self._kind == "push":
            await self._stream.subscribe(self._name, GROUP, stream=self._name, cb=on_message, manual_ack=True)
            return
        pull = await self._stream.pull_subscribe(self._name, GROUP)
        (message,) = await pull.fetch(1, timeout=20)
        with rtobs.consume(self._name, message):
            await on_message(message)

    async def close(self) -> None:
        await self._stream.delete_stream(self._name)
        await self._client.close()


BROKERS: dict[str, Callable[[str], Broker]] = {
    "rabbitmq-classic": lambda name: RabbitMQ(name, "classic"),
    "rabbitmq-quorum": lambda name: RabbitMQ(name, "quorum"),
    "redis-xautoclaim": lambda name: Redis(name, "xautoclaim"),
    "redis-xclaim": lambda name: Redis(name, "xclaim"),
    "nats-pull": lambda name: Nats(name, "pull"),
    "nats-push": lambda name: Nats(name, "push"),
}


# What both do with the messages --------------------------------------------------------------------------------------


async def victim(places: dict[str, Broker]) -> None:
    """Work until death."""
    handled: dict[str, str] = {}

    async def handle(kind: str) -> None:
        hop = rtobs.current()
        hop.intend("email", "ann")
        with rtobs.deliver("sms", kind, key="7"):
            pass
        with rtobs.deliver("webhook", kind, key="7"):
            handled[kind] = hop.correlation_id
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        for kind, place in places.items():
            group.create_task(place.work(partial(handle, kind), takes_over=False))
        tell(ready=True)
        await eventually(lambda: handled.keys() == places.keys(), 30)
        tell(handled=handled)
        await asyncio.Event().wait()


async def survivor(places: dict[str, Broker]) -> None:
    """Send the messages, and handle them when told to."""
    moments: dict[str, dict[str, int]] = {kind: {} for kind in places}

    async def handle(kind: str) -> None:
        moments[kind]["begun"] = time.monotonic_ns()
        rtobs.current().intend("email", "ann")
        with rtobs.deliver("sms", kind, key="7"):
            pass
        with rtobs.deliver("webhook", kind, key="7"):
            await asyncio.sleep(0)
        moments[kind]["delivered"] = time.monotonic_ns()

    tell(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    tell(sent={kind: await send(kind, place, moments[kind]) for kind, place in places.items()})
    await asyncio.to_thread(sys.stdin.readline)
    for kind, place in places.items():
        await place.work(partial(handle, kind), takes_over=True)
    for place in places.values():
        await place.settled.wait()
    tell(moments=moments)
    await asyncio.to_thread(sys.stdin.read)


async def send(kind: str, place: Broker, moments: dict[str, int]) -> str:
    """Promise a delivery by webhook, and send the message that stands for it; return its correlation id."""
    with rtobs.accept("/orders") as hop:
        moments["created"] = time.monotonic_ns()
        hop.segment(tenant=kind, region="eu")
        hop.intend("webhook", "7")
        await asyncio.sleep(scaled(0.1))
        with rtobs.publish("orders", channel="webhook", key="7"):
            moments["sent"] = time.monotonic_ns()
            await place.send(b"order")
    return hop.correlation_id


ROLES = {"victim": victim, "survivor": survivor}


async def main(role: str, name: str) -> None:
    places = {kind: make(f"{name}_{kind}") for kind, make in BROKERS.items()}
    async with contextlib.AsyncExitStack() as stack:
        for place in places.values():
            await place.open()
            stack.push_async_callback(place.close)
        await ROLES[role](places)


if __name__ == "__main__":
    rtobs.configure(service=sys.argv[1])
    asyncio.run(main(*sys.argv[1:]))
    tell(flushed=rtobs.shutdown())
