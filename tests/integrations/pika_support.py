"""Drives pika for the conformance suite, and what the other tests of its leaf share.

A blocking connection belongs to one thread. So callbacks run on a connection and a thread of their own, as a worker has
them; everything else happens where the test runs.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import pika

import rtobs
from tests.integrations.adapter import Handler, How
from tests.integrations.rabbit import arguments, forget_places

PAUSE = 0.01


class Rabbit:
    """One test's use of the shared broker: what it opens is closed, and its queues and exchanges are deleted."""

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self.parameters = pika.URLParameters(url)
        self._unique = unique
        self._connections: list[pika.BlockingConnection] = []
        self.queues: list[str] = []
        self.exchanges: list[str] = []
        forget_places()

    def connect(self, *, wrapped: bool = True, **options: Any) -> pika.BlockingConnection:
        """Return a new connection, through `rtobs.wrap` with *options* if *wrapped*."""
        connection = pika.BlockingConnection(self.parameters)
        self._connections.append(connection)
        return rtobs.wrap(connection, **options) if wrapped else connection

    def channel(self, *, wrapped: bool = True, **options: Any) -> Any:
        """Return a channel of a new connection."""
        return self.connect(wrapped=wrapped, **options).channel()

    def name(self, label: str) -> str:
        """Return a unique name of a queue that is deleted after the test, whoever declares it."""
        self.queues.append(self._unique(label))
        return self.queues[-1]

    def queue(self, channel: Any, label: str = "orders", **options: Any) -> str:
        """Declare a queue with the arguments that *options* ask for."""
        name = self.name(label)
        channel.queue_declare(name, durable="quorum" in options, arguments=arguments(**options))
        return name

    def close(self) -> None:
        for connection in self._connections:
            if connection.is_open:
                connection.close()
        with pika.BlockingConnection(self.parameters) as connection:
            channel = connection.channel()
            for name in self.queues:
                channel.queue_delete(name)
            for name in self.exchanges:
                channel.exchange_delete(name)


def fetched(channel: Any, queue: str, **options: Any) -> Any:
    """Return the next message, waiting for it."""
    for _ in range(500):
        found = channel.basic_get(queue, **options)
        if found[0] is not None:
            return found
        channel.connection.sleep(PAUSE)
    raise AssertionError(f"nothing came to {queue}")


def drive(work: Coroutine[Any, Any, Any]) -> None:
    """Run what awaits nothing that takes time."""
    try:
        while True:
            work.send(None)
    except StopIteration:
        pass


class PikaAdapter:
    """Blocking connections, classic queues, the default exchange, publisher confirms."""

    system = "rabbitmq"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = False

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self._rabbit = Rabbit(url, unique)
        self._declared: dict[str, dict[str, Any]] = {}
        self._asked: dict[int, dict[str, Any]] = {}
        self._channels: dict[tuple[int, str], Any] = {}
        self._came: dict[int, tuple[Any, Any]] = {}
        self._worker = threading.local()
        self._last: Any = None
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._hooks: dict[int, Callable[[], Any]] = {}

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        client = self._rabbit.connect(wrapped=wrapped, **options)
        self._asked[id(client)] = {"wrapped": wrapped, **options}
        return client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._rabbit.queues.append(queue)
        self._declared[queue] = arguments(dead_letter=dead_letter)
        with pika.BlockingConnection(self._rabbit.parameters) as connection:
            connection.channel().queue_declare(queue, arguments=self._declared[queue])

    def _channel(self, client: Any, queue: str) -> Any:
        """Return the client's channel, which has declared *queue* as applications do; a worker has its own client."""
        client = getattr(self._worker, "connection", client)
        channel = self._channels.get((id(client), queue))
        if channel is None:
            channel = self._channels[id(client), queue] = client.channel()
            channel.confirm_delivery()
            channel.queue_declare(queue, arguments=self._declared[queue])
            self._hold_up(client, channel)
        return channel

    def _hold_up(self, client: Any, channel: Any) -> None:
        """Let sends wait, as on a slow network, below the wrapping."""
        send = channel._impl.basic_publish

        def slow(*args: Any, **options: Any) -> None:
            if id(client) in self._hooks:
                drive(self._hooks[id(client)]())
            send(*args, **options)

        channel._impl.basic_publish = slow

    async def send(self, client: Any, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        properties = None if headers is None else pika.BasicProperties(headers=headers)
        return self._channel(client, queue).basic_publish("", queue, body, properties)

    async def callback(
        self, client: Any, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        ready, stopped = threading.Event(), threading.Event()

        def work() -> None:
            connection = self._worker.connection = self._rabbit.connect(**self._asked[id(client)])
            channel = self._channel(connection, queue)
            channel.basic_qos(prefetch_count=prefetch)
            loop = asyncio.new_event_loop()

            @functools.wraps(handler)
            def handle(channel: Any, *native: Any) -> None:
                self._came[id(native[0])] = channel, native
                result = handler(native)
                if inspect.isawaitable(result):
                    loop.run_until_complete(result)

            tag = channel.basic_consume(queue, handle)
            ready.set()
            while not stopped.is_set():
                try:
                    connection.process_data_events(PAUSE)
                except BaseException:  # noqa: BLE001  a worker that goes on; the client leaves it what came meanwhile
                    connection._request_channel_dispatch(channel.channel_number)
            channel.basic_cancel(tag)
            connection.close()
            loop.close()

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(ready.wait)

        async def stop() -> None:
            stopped.set()
            await asyncio.to_thread(thread.join)

        self._stops.append(stop)
        return stop

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        channel = self._channel(client, queue)

        async def items() -> AsyncIterator[Any]:
            messages = channel.consume(queue, inactivity_timeout=PAUSE)
            try:
                for native in messages:
                    if native[0] is not None:
                        self._came[id(native[0])] = channel, native
                        yield native
                    else:
                        await asyncio.sleep(0)
            finally:
                messages.close()
                channel.cancel()

        return items()

    async def fetch(self, client: Any, queue: str) -> Any:
        channel = self._channel(client, queue)
        native = channel.basic_get(queue)
        self._came[id(native[0])] = channel, native
        return native if native[0] is not None else None

    def settle(self, native: Any, how: How) -> Any:
        """Settle, and have the broker's answer: it has none to a settlement, but closes the channel of a wrong one."""
        self._last = channel, (method, *_) = self._came.pop(id(native[0]), self._last)
        settled = getattr(channel, f"basic_{how}")
        settled(method.delivery_tag, **({"requeue": False} if how == "reject" else {}))
        if channel.connection._event_dispatch_suspend_depth == 0:
            channel.queue_declare(next(iter(self._declared)), passive=True)
        return asyncio.sleep(0)

    def body(self, native: Any) -> bytes:
        return native[2]

    def headers(self, native: Any) -> dict[str, Any]:
        return native[1].headers or {}

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        self._hooks[id(client)] = hook

    async def close(self) -> None:
        for stop in self._stops:
            await stop()
        self._rabbit.close()
