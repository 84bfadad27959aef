"""The platform on RabbitMQ, through aio-pika wrapped in one line.

A retry is a copy that waits in a queue with a time to live and is then dead-lettered back to where it came from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import aio_pika
from aio_pika.exceptions import AMQPError

import rtobs
from rtobs.demo.brokers import DEAD, FORGOTTEN_AFTER, WATCH_SECONDS, Delivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue, AbstractRobustConnection
    from pamqp.common import FieldTable

    from rtobs.demo.brokers import Handler

CONNECT_SECONDS: Final = 5.0
"""The client goes on trying for longer if it is merely cancelled."""


class AmqpBroker:
    """See `brokers.Broker`."""

    errors = (AMQPError, OSError)

    def __init__(
        self, address: str, prefix: str, queues: Sequence[str], outside: Sequence[str], delays: Sequence[float]
    ) -> None:
        self._address = address
        self._prefix = prefix
        self._queues = queues
        self._outside = outside
        self._delays = sorted(delays)
        self._declares = False
        self._connections: list[AbstractRobustConnection] = []
        self._consumers: list[tuple[AbstractQueue, str]] = []

    async def open(self, *, declare: bool) -> None:
        """Connect twice: the platform's own connection is wrapped, the outside world's is not."""
        self._declares = declare
        dead = self._prefix + DEAD
        own = rtobs.wrap(await self._connect(), dead_letter=dead)
        outside = await self._connect()
        self._channel: AbstractChannel = await own.channel()
        self._outside_channel: AbstractChannel = await outside.channel()
        if declare:
            await self._declare(dead)
            watched = [self._prefix + queue for queue in self._queues]
            self._watch = rtobs.integrations.watch(own, watched, interval=WATCH_SECONDS)
        self._waits = {delay: await self._outside_channel.get_exchange(self._wait(delay)) for delay in self._delays}

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Publish with the broker's confirmation; a delay is rounded up to one that has a queue."""
        message = aio_pika.Message(json.dumps(payload).encode(), content_type="application/json")
        if delay:
            wait = next((one for one in self._delays if one >= delay), self._delays[-1])
            exchange = await self._channel.get_exchange(self._wait(wait), ensure=False)
        else:
            exchange = self._channel.default_exchange
        await exchange.publish(message, routing_key=self._prefix + queue)

    async def consume(self, queue: str, handler: Handler, concurrency: int) -> None:
        """Consume on a channel of its own, so that the queue has its own prefetch, which is also known as its slots."""

        async def take(message: AbstractIncomingMessage) -> None:
            await handler(Delivery(message, message.body, message.ack, message.reject))

        channel = await self._connections[0].channel()
        await channel.set_qos(prefetch_count=concurrency)
        source = await channel.get_queue(self._prefix + queue)
        self._consumers.append((source, await source.consume(take)))

    async def send_outside(self, queue: str, payload: dict[str, Any]) -> None:
        """Publish without a trace of ours."""
        message = aio_pika.Message(json.dumps(payload).encode())
        await self._outside_channel.default_exchange.publish(message, routing_key=self._prefix + queue)

    async def consume_outside(self, queue: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Consume without a trace of ours."""

        async def take(message: AbstractIncomingMessage) -> None:
            async with message.process():
                await handler(message.body)

        source = await self._outside_channel.get_queue(self._prefix + queue)
        self._consumers.append((source, await source.consume(take)))

    async def stop_consuming(self) -> None:
        """Cancel the consumers; what is being handled goes on."""
        for queue, tag in self._consumers:
            await queue.cancel(tag)
        self._consumers.clear()

    async def close(self) -> None:
        """Delete what this process declared, and disconnect."""
        if self._declares:
            self._watch.stop()
            for name in [*self._queues, *self._outside, DEAD, *(f"wait.{delay:g}" for delay in self._delays)]:
                await self._outside_channel.queue_delete(self._prefix + name)
            for delay in self._delays:
                await self._outside_channel.exchange_delete(self._wait(delay))
        for connection in reversed(self._connections):
            await connection.close()

    async def _connect(self) -> AbstractRobustConnection:
        connection = await aio_pika.connect_robust(self._address, timeout=CONNECT_SECONDS)
        self._connections.append(connection)
        return connection

    async def _declare(self, dead: str) -> None:
        channel = self._outside_channel
        expires: FieldTable = {"x-expires": int(FORGOTTEN_AFTER * 1000)}
        await channel.declare_queue(dead, arguments=expires)
        for name in self._queues:
            to_dead: FieldTable = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
            await channel.declare_queue(self._prefix + name, arguments=expires | to_dead)
        for name in self._outside:
            await channel.declare_queue(self._prefix + name, arguments=expires)
        for delay in self._delays:
            exchange = await channel.declare_exchange(self._wait(delay), aio_pika.ExchangeType.FANOUT, auto_delete=True)
            # without a dead-letter routing key the message keeps its own: the queue it is to come back to
            back: FieldTable = {"x-dead-letter-exchange": "", "x-message-ttl": int(delay * 1000)}
            queue = await channel.declare_queue(self._wait(delay), arguments=expires | back)
            await queue.bind(exchange)

    def _wait(self, delay: float) -> str:
        return f"{self._prefix}wait.{delay:g}"
