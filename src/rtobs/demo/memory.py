"""The platform in one process, on the in-memory broker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import rtobs
from rtobs.demo.brokers import DEAD, WATCH_SECONDS, Delivery
from rtobs.integrations.memory import Broker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rtobs.demo.brokers import Handler
    from rtobs.integrations.memory import Message


class MemoryBroker:
    """See `brokers.Broker`."""

    errors = ()

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues
        self._broker = rtobs.wrap(Broker())
        self._outside: dict[str, asyncio.Queue[bytes]] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._stops: list[Callable[[], None]] = []

    async def open(self, *, declare: bool) -> None:
        """Declare the queues."""
        if declare:
            for name in self._queues:
                self._broker.declare(name, dead_letter=DEAD)

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Publish."""
        await self._broker.publish(queue, json.dumps(payload).encode(), delay=delay)

    async def consume(self, queue: str, handler: Handler, concurrency: int) -> None:
        """Consume with *concurrency* handlers at a time."""

        async def take(message: Message) -> None:
            await handler(Delivery(message, message.body, message.ack, message.reject))

        self._stops.append(self._broker.consume(queue, take, prefetch=concurrency))
        watch = rtobs.integrations.watch(self._broker, [queue], interval=WATCH_SECONDS, slots=concurrency)
        self._stops.append(watch.stop)

    async def send_outside(self, queue: str, payload: dict[str, Any]) -> None:
        """Hand over without a broker: the world outside is not instrumented."""
        self._outside.setdefault(queue, asyncio.Queue()).put_nowait(json.dumps(payload).encode())

    async def consume_outside(self, queue: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Take over what `send_outside` hands over."""
        source = self._outside.setdefault(queue, asyncio.Queue())

        async def read() -> None:
            while True:
                await handler(await source.get())

        self._readers.append(asyncio.create_task(read()))

    async def stop_consuming(self) -> None:
        """Take no more messages."""
        for stop in self._stops:
            stop()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def close(self) -> None:
        """End the broker."""
        await self._broker.close()
