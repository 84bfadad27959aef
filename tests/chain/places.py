"""One queue of each broker behind the same three calls: send a message, work on what comes, stop working."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import nats
import redis.asyncio

import rtobs
from tests.support import brokers

Handle = Callable[[], Awaitable[None]]

GROUP = "workers"


class Place:
    """A queue and its one worker, which handles one message at a time."""

    client: Any
    """What `watch` is given."""
    watched: str
    """What to watch."""
    credit: int | None = 1
    """Slots that `watch` has to be told."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self) -> None:
        """Connect, and make the queue."""
        raise NotImplementedError

    async def send(self) -> None:
        """Send one message."""
        raise NotImplementedError

    async def work(self, handle: Handle) -> None:
        """Begin to handle messages."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Handle no more; what was not handled waits."""
        raise NotImplementedError

    async def close(self) -> None:
        """Delete the queue."""
        raise NotImplementedError


class RabbitMQ(Place):
    """A queue whose consumer has a prefetch count of one."""

    credit = None

    async def open(self) -> None:
        self.client = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
        self.watched = self.name
        self._tags: list[str] = []
        self._channel = await self.client.channel()
        await self._channel.set_qos(prefetch_count=1)
        self._queue = await self._channel.declare_queue(self.name)

    async def send(self) -> None:
        await self._channel.default_exchange.publish(aio_pika.Message(b"x"), self.name)

    async def work(self, handle: Handle) -> None:
        async def on_message(message: Any) -> None:
            async with message.process():
                await handle()

        self._tags.append(await self._queue.consume(on_message))

    async def stop(self) -> None:
        while self._tags:
            await self._queue.cancel(self._tags.pop())

    async def close(self) -> None:
        await self._queue.delete(if_unused=False, if_empty=False)
        await self.client.close()


class _Loop(Place):
    """A worker that is a loop of its own."""

    _task: asyncio.Task[None] | None = None

    async def work(self, handle: Handle) -> None:
        self._task = asyncio.create_task(self._run(handle))

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, handle: Handle) -> None:
        raise NotImplementedError


class Redis(_Loop):
    """A stream with a consumer group."""

    async def open(self) -> None:
        self.client = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
        self.watched = self.name
        await self.client.xgroup_create(self.name, GROUP, mkstream=True)

    async def send(self) -> None:
        await self.client.xadd(self.name, {"body": "x"})

    async def _run(self, handle: Handle) -> None:
        while True:
            for _, entries in await self.client.xreadgroup(GROUP, "one", {self.name: ">"}, count=1, block=1000) or ():
                for entry in entries:
                    with rtobs.consume(self.name, entry):
                        await handle()
                        await self.client.xack(self.name, GROUP, entry[0])

    async def close(self) -> None:
        await self.client.delete(self.name)
        await self.client.aclose()


class Nats(_Loop):
    """A stream with a pull consumer."""

    async def open(self) -> None:
        self.client = rtobs.wrap(await nats.connect(brokers.NATS.url))
        self.watched = f"{self.name}/{GROUP}"
        self._stream = self.client.jetstream()
        await self._stream.add_stream(name=self.name, subjects=[self.name], storage="memory")
        self._pull = await self._stream.pull_subscribe(self.name, GROUP)

    async def send(self) -> None:
        await self._stream.publish(self.name, b"x")

    async def _run(self, handle: Handle) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                for message in await self._pull.fetch(1, timeout=1):
                    with rtobs.consume(self.name, message):
                        await handle()
                        await message.ack_sync()

    async def close(self) -> None:
        await self._stream.delete_stream(self.name)
        await self.client.close()


PLACES = {"rabbitmq": RabbitMQ, "redis": Redis, "nats": Nats}
