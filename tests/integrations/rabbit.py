"""What the tests of the aio-pika leaf share: connections and queues that go away again, and a promised message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import aio_pika
from aio_pika import IncomingMessage

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import _twin
from tests.support.telemetry import Telemetry
from tests.support.timing import eventually

BODY = b"\x00 body"


class Rabbit:
    """One test's use of the shared broker."""

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self.url = url
        self.unique = unique
        self._connections: list[Any] = []
        self._queues: list[str] = []
        self._exchanges: list[str] = []
        forget_places()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            await connection.close()
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            for name in self._queues:
                await channel.queue_delete(name)
            for name in self._exchanges:
                await channel.exchange_delete(name)

    async def connect(self, *, wrapped: bool = True, robust: bool = True, **options: Any) -> Any:
        """Return a new connection, through `rtobs.wrap` with *options* if *wrapped*."""
        connection = await (aio_pika.connect_robust if robust else aio_pika.connect)(self.url)
        self._connections.append(connection)
        return rtobs.wrap(connection, **options) if wrapped else connection

    async def channel(self, *, wrapped: bool = True, robust: bool = True, **options: Any) -> Any:
        """Return a channel of a new connection."""
        return await (await self.connect(wrapped=wrapped, robust=robust, **options)).channel()

    def name(self, label: str) -> str:
        """Return a unique name of a queue that is deleted after the test, whoever declares it."""
        name = self.unique(label)
        self._queues.append(name)
        return name

    async def exchange(self, channel: Any, label: str, **options: Any) -> Any:
        """Declare an exchange."""
        name = self.unique(label)
        self._exchanges.append(name)
        return await channel.declare_exchange(name, **options)


def forget_places() -> None:
    """Forget the queues of other tests: one process names 256 at most."""
    _twin._destinations.clear()


def arguments(
    *, dead_letter: str | None = None, ttl_ms: int | None = None, quorum: bool = False, **more: Any
) -> dict[str, Any]:
    """Return a queue's arguments: dead letters through the default exchange to *dead_letter*, time to live, type."""
    found: dict[str, Any] = {"x-expires": 600_000, **{name.replace("_", "-"): value for name, value in more.items()}}
    if dead_letter is not None:
        found |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter}
    if ttl_ms is not None:
        found["x-message-ttl"] = ttl_ms
    if quorum:
        found["x-queue-type"] = "quorum"
    return found


async def send(channel: Any, queue: str, body: bytes = BODY, **fields: Any) -> Any:
    """Publish one message to *queue* through the default exchange."""
    return await channel.default_exchange.publish(aio_pika.Message(body, **fields), queue)


async def promised(channel: Any, queue: str, body: bytes = BODY, **fields: Any) -> str:
    """Promise one delivery by webhook and publish the message that stands for it; return its correlation id."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme", region="eu")
        hop.intend("webhook", "7")
        with rtobs.publish("orders", channel="webhook", key="7"):
            await send(channel, queue, body, **fields)
    return hop.correlation_id


async def fetched(queue: Any, **options: Any) -> IncomingMessage:
    """Return the next message, waiting for it."""
    return await eventually(lambda: queue.get(fail=False, **options))


async def processed(telemetry: Telemetry, count: int = 1) -> None:
    """Wait until *count* consume hops have ended."""
    await eventually(lambda: telemetry.count(names.MESSAGE_SETTLED) >= count)


def ends(telemetry: Telemetry) -> dict[str, int]:
    """Return the deliveries' outcomes by name."""
    return telemetry.by(names.OUTCOMES, "outcome")


def settled(telemetry: Telemetry) -> dict[str, int]:
    """Return how the handlings of messages ended."""
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")


class SlowLine:
    """A TCP line to the broker: what the broker says can be held back, and the line can be cut."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        """Seconds by which each answer of the broker comes late."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._to._replace(netloc=f"{self._to.username}:{self._to.password}@127.0.0.1:{port}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Drop every connection at once, without a word."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection(self._to.hostname, self._to.port or 5672)
        self._writers += [writer, to_broker]
        for source, sink, late in ((reader, to_broker, False), (from_broker, writer, True)):
            task = asyncio.create_task(self._carry(source, sink, late=late))
            self._tasks.add(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if late and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.close()
