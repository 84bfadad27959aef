"""The platform on NATS JetStream, through nats-py wrapped in one line.

A queue is a subject of the run's stream with a pull consumer. A retry is a nak with a delay, so the same message comes
again; so does what a killed worker held. The outside world uses core NATS.
"""

# pyright: reportUnknownMemberType=false
# (the client's own annotations leave out some type arguments)

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client
from nats.errors import Error, NoRespondersError
from nats.errors import TimeoutError as NothingCameError
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import ServiceUnavailableError

import rtobs
from rtobs.demo.brokers import AGAIN_AFTER, DEAD, WATCH_SECONDS, Delivery
from rtobs.demo.puller import Puller, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nats.aio.msg import Msg

    from rtobs.demo.brokers import Handler

TAKE_SECONDS: Final = 0.5
"""Longest wait for messages in one question."""
KEPT_SECONDS: Final = 7200.0
"""Longest life of a message, longer than any run's: the server forgets what is in a stream, though not the stream."""
UNLIMITED: Final = -1


class JetStreamBroker:
    """See `brokers.Broker`."""

    errors = (Error, OSError)

    def __init__(self, address: str, prefix: str, queues: Sequence[str]) -> None:
        self._address = address
        self._prefix = prefix
        self._stream = prefix.strip(".")
        self._queues = queues
        self._declares = False
        self._connections: list[Client] = []
        self._pullers: list[Puller] = []
        self._watches: list[Any] = []

    async def open(self, *, declare: bool) -> None:
        """Connect twice: the platform's own connection is wrapped, the outside world's is not."""
        self._declares = declare
        self._client = rtobs.wrap(await self._connect())
        self._outside = await self._connect()
        self._jetstream = self._client.jetstream()
        if declare:
            await self._declare()

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Publish, and wait until the stream has it."""
        if delay:
            raise NotImplementedError("a message is delayed by a nak, see `Delivery.later`")
        await self._jetstream.publish(self._prefix + queue, json.dumps(payload).encode())

    async def consume(self, queue: str, handler: Handler, concurrency: int) -> None:
        """Fetch from the queue's consumer, as much as can be handled at once."""
        consumer = _consumer(queue)
        pull = await self._jetstream.pull_subscribe(self._prefix + queue, consumer, self._stream)

        async def take(count: int) -> list[Delivery]:
            try:
                return [self._delivery(message) for message in await pull.fetch(count, TAKE_SECONDS)]
            except NothingCameError:
                return []

        self._pullers.append(Puller(take, _keep, handler, concurrency, self.errors))
        asked = f"{self._stream}/{consumer}"
        watch = rtobs.integrations.watch(self._client, [asked], interval=WATCH_SECONDS, slots=concurrency)
        self._watches.append(watch)

    async def send_outside(self, queue: str, payload: dict[str, Any]) -> None:
        """Publish without a trace of ours; it is lost where nobody listens."""
        await self._outside.publish(self._outer(queue), json.dumps(payload).encode())

    async def consume_outside(self, queue: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Subscribe without a trace of ours."""

        async def take(message: Msg) -> None:
            await handler(message.data)

        await self._outside.subscribe(self._outer(queue), cb=take)

    async def stop_consuming(self) -> None:
        """Take no more messages; what is being handled goes on."""
        await asyncio.gather(*(puller.stop() for puller in self._pullers))

    async def close(self) -> None:
        """Delete what this process declared, and disconnect."""
        for watch in self._watches:
            watch.stop()
        if self._declares:
            await self._outside.jetstream().delete_stream(self._stream)
        for connection in self._connections:
            await connection.close()

    def _delivery(self, message: Msg) -> Delivery:
        async def reject() -> None:
            with rtobs.publish(DEAD):
                await self._jetstream.publish(self._prefix + DEAD, message.data)
            await message.term()

        async def later(delay: float) -> None:
            await message.nak(delay=delay)

        return Delivery(message, message.data, message.ack, reject, later, message.metadata.num_delivered)

    async def _connect(self) -> Client:
        connection = Client()

        async def on_error(error: Exception) -> None:
            if not connection.is_connected and connection not in self._connections:
                raise error  # the client would go on trying, longer than anybody wants to wait
            told(error)

        await connection.connect(self._address, error_cb=on_error)
        self._connections.append(connection)
        return connection

    async def _declare(self) -> None:
        jetstream = self._outside.jetstream()
        stream = StreamConfig(
            name=self._stream,
            subjects=[self._prefix + ">"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.MEMORY,
            max_age=KEPT_SECONDS,
        )
        try:
            await jetstream.add_stream(stream)
        except (NoRespondersError, ServiceUnavailableError) as error:
            raise ConnectionError("JetStream is not enabled there; start nats-server with --jetstream.") from error
        for queue in self._queues:
            consumer = ConsumerConfig(
                durable_name=_consumer(queue),
                filter_subject=self._prefix + queue,
                ack_wait=AGAIN_AFTER,
                max_ack_pending=UNLIMITED,
            )
            await jetstream.add_consumer(self._stream, consumer)

    def _outer(self, queue: str) -> str:
        """Return a subject that the stream does not keep."""
        return f"outside.{self._prefix}{queue}"


def _consumer(queue: str) -> str:
    return queue.replace(".", "_")


async def _keep(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        if not delivery.native.is_acked:
            await delivery.native.in_progress()
