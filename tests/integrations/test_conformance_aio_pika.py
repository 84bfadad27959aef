"""aio-pika's leaf, by the conformance suite, on a live RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aio_pika
import pytest
from aio_pika import IncomingMessage, RobustChannel, RobustConnection, RobustExchange

import rtobs
from tests.integrations.adapter import Adapter, Handler, How
from tests.integrations.conformance import Conformance
from tests.integrations.rabbit import forget_places


class HeldUpExchange(RobustExchange):
    """A send of it can be held up, as a slow network does."""

    async def publish(self, *args: Any, **options: Any) -> Any:
        before_send = self.channel._connection.before_send
        if before_send is not None:
            await before_send()
        return await super().publish(*args, **options)


class HeldUpChannel(RobustChannel):
    EXCHANGE_CLASS = HeldUpExchange


class HeldUpConnection(RobustConnection):
    CHANNEL_CLASS = HeldUpChannel
    before_send: Callable[[], Awaitable[None]] | None = None


class AioPikaAdapter:
    """Drives aio-pika: robust connections with classes of the user's own, classic queues, the default exchange."""

    system = "rabbitmq"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._arguments: dict[str, dict[str, Any]] = {}
        self._connections: list[HeldUpConnection] = []
        self._channels: dict[int, HeldUpChannel] = {}
        self._queues: dict[tuple[int, str], Any] = {}
        forget_places()

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUpConnection:
        connection = await aio_pika.connect_robust(self._url, connection_class=HeldUpConnection)
        self._connections.append(connection)
        return rtobs.wrap(connection, **options) if wrapped else connection

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter} if dead_letter else {}
        self._arguments[queue] = {"x-expires": 600_000, **to_dead}
        async with await aio_pika.connect(self._url) as connection:
            await (await connection.channel()).declare_queue(queue, arguments=self._arguments[queue])

    async def _channel(self, client: HeldUpConnection) -> HeldUpChannel:
        if id(client) not in self._channels:
            self._channels[id(client)] = await client.channel()
        return self._channels[id(client)]

    async def _queue(self, client: HeldUpConnection, queue: str) -> Any:
        if (id(client), queue) not in self._queues:
            channel = await self._channel(client)
            self._queues[id(client), queue] = await channel.declare_queue(queue, arguments=self._arguments[queue])
        return self._queues[id(client), queue]

    async def send(
        self, client: HeldUpConnection, queue: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Any:
        message = aio_pika.Message(body, headers=headers)
        return await (await self._channel(client)).default_exchange.publish(message, queue)

    async def callback(
        self, client: HeldUpConnection, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        channel = await client.channel()
        await channel.set_qos(prefetch_count=prefetch)
        source = await channel.declare_queue(queue, arguments=self._arguments[queue])
        tag = await source.consume(handler)

        async def stop() -> None:
            await source.cancel(tag)

        return stop

    async def iterate(self, client: HeldUpConnection, queue: str) -> AsyncIterator[IncomingMessage]:
        source = await self._queue(client, queue)

        async def items() -> AsyncIterator[IncomingMessage]:
            async with source.iterator() as iterator:  # closed after a `break` too: it has prefetched what others want
                async for message in iterator:
                    yield message

        return items()

    async def fetch(self, client: HeldUpConnection, queue: str) -> IncomingMessage | None:
        return await (await self._queue(client, queue)).get(fail=False)

    async def settle(self, native: IncomingMessage, how: How) -> Any:
        return await getattr(native, how)()

    def body(self, native: IncomingMessage) -> bytes:
        return native.body

    def headers(self, native: IncomingMessage) -> dict[str, Any]:
        return native.headers

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: HeldUpConnection, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            for queue in self._arguments:
                await channel.queue_delete(queue)


@pytest.mark.filterwarnings("ignore:You probably registering the non-coroutine:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Function .* returned a non awaitable result:DeprecationWarning")
class TestAioPika(Conformance):
    @pytest.fixture
    async def adapter(self, amqp_url: str) -> AsyncGenerator[Adapter, None]:
        adapter = AioPikaAdapter(amqp_url)
        yield adapter
        await adapter.close()
