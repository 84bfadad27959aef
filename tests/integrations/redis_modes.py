"""Drives redis-py for the conformance suite: consumer groups of Streams, Pub/Sub, and lists.

Streams and lists have no callbacks, so what stands for one is the loop that a worker would have: it reads, and handles
each message in its own task, in a hop.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

import redis.asyncio

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._journey import envelope
from tests.integrations.adapter import Handler, How

GROUP = "workers"
CONNECTIONS = 20
SENDS = {"XADD", "PUBLISH", "RPUSH"}


class HeldUp(redis.asyncio.Redis):
    """A client of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Awaitable[None]] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.before_send is not None and args[0] in SENDS:
            await self.before_send()
        return await super().execute_command(*args, **options)


class Done:
    """Something to await, or not: Pub/Sub calls a plain function and lets go of what it returns."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class RedisAdapter:
    """What the three modes share."""

    system = "redis"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = True
    options: Mapping[str, Any] = {}

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: list[HeldUp] = []
        self._queues: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUp:
        client = HeldUp.from_url(self._url)
        self._clients.append(client)
        # asyncio keeps for a connection the context that it was opened in, and with it the hop; so not in one.
        await asyncio.gather(*(client.ping() for _ in range(CONNECTIONS)))
        return rtobs.wrap(client, **{**self.options, **options}) if wrapped else client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._queues.append(queue)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def callback(
        self, client: HeldUp, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Read as a worker does, and handle each message in a task of its own, in a hop."""

        async def one(native: Any) -> None:
            decorated = hasattr(handler, "__rtobs_consume__")
            hop = contextlib.nullcontext() if decorated else rtobs.consume(queue, native)
            with contextlib.suppress(asyncio.CancelledError), hop:
                result = handler(native)
                if inspect.isawaitable(result):
                    await result

        stopped = asyncio.Event()

        async def loop() -> None:
            while not stopped.is_set():
                for native in await self.wait(client, queue, prefetch):
                    self.spawn(one(native))

        task = self.spawn(loop())

        async def stop() -> None:
            stopped.set()  # redis-py may lose a cancellation
            await task

        self._stops.append(stop)
        return stop

    async def wait(self, client: HeldUp, queue: str, most: int) -> list[Any]:
        raise NotImplementedError

    async def iterate(self, client: HeldUp, queue: str) -> AsyncIterator[Any]:
        async def items() -> AsyncIterator[Any]:
            while True:
                for native in await self.wait(client, queue, 1):
                    yield native

        return items()

    def settle(self, native: Any, how: How) -> Awaitable[None]:
        """There is nothing to settle."""
        return Done()

    def body(self, native: Any) -> bytes:
        return native

    def headers(self, native: Any) -> dict[str, Any]:
        known = leaf.known(native)
        if known is not None:
            return known.headers
        opened = envelope.open(self.body(native))
        return opened[1] if opened is not None else {}

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: HeldUp, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for stop in self._stops:
            await stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.aclose()
        async with redis.asyncio.from_url(self._url) as client:
            if self._queues:
                await client.delete(*self._queues)


class StreamsAdapter(RedisAdapter):
    """A consumer group; `XACK` is the only settlement that this server has."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._came: dict[bytes, tuple[HeldUp, str]] = {}
        self._last: Any = None

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        await super().declare(queue)
        async with redis.asyncio.from_url(self._url) as client:
            await client.xgroup_create(queue, GROUP, mkstream=True)

    async def send(self, client: HeldUp, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        given = dict(headers or {})
        forwarded = {name: given.pop(name) for name in names.OWN_HEADERS if name in given}
        field = {"rtobs": envelope.pack(forwarded)} if forwarded else {}  # as an entry has it that is sent on
        return await client.xadd(queue, {"body": body, **field, **given})

    async def wait(self, client: HeldUp, queue: str, most: int, block: int | None = 20) -> list[Any]:
        reply = await client.xreadgroup(GROUP, "first", {queue: ">"}, count=most, block=block)
        entries = reply[0][1] if reply else []
        for entry_id, _ in entries:
            self._came[entry_id] = client, queue
        return entries

    async def fetch(self, client: HeldUp, queue: str) -> Any:
        entries = await self.wait(client, queue, 1, block=None)
        return entries[0] if entries else None

    async def settle(self, native: Any, how: How) -> Any:
        self._last = client, queue = self._came.pop(native[0], self._last)
        return await client.xack(queue, GROUP, native[0])

    def body(self, native: Any) -> bytes:
        return native[1][b"body"]

    def headers(self, native: Any) -> dict[str, Any]:
        others = {name.decode(): value for name, value in native[1].items() if name not in (b"body", b"rtobs")}
        foreign = {name: value.decode() for name, value in others.items()}
        return {**foreign, **envelope.unpack(native[1].get(b"rtobs"))}


class ListsAdapter(RedisAdapter):
    """RPUSH and BLPOP."""

    options: Mapping[str, Any] = {"envelope": True}

    async def send(self, client: HeldUp, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.rpush(queue, body)

    async def wait(self, client: HeldUp, queue: str, most: int) -> list[Any]:
        found = await client.blpop([queue], timeout=0.02)
        return [] if found is None else [found[1]]

    async def fetch(self, client: HeldUp, queue: str) -> Any:
        return await client.lpop(queue)


class PubSubAdapter(RedisAdapter):
    """One subscription per client and channel, made before anything is sent; callbacks have one of their own."""

    options: Mapping[str, Any] = {"envelope": True}

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._subscriptions: dict[tuple[int, str], Any] = {}

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUp:
        client = await super().client(wrapped=wrapped, **options)
        for queue in self._queues:
            await self._subscribe(client, queue)
        return client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        await super().declare(queue)
        for client in self._clients:
            await self._subscribe(client, queue)

    async def _subscribe(self, client: HeldUp, queue: str, **handlers: Any) -> Any:
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(*([] if handlers else [queue]), **handlers)
        await pubsub.get_message(timeout=10)  # the confirmation: from here on nothing is missed
        if not handlers:
            self._subscriptions[id(client), queue] = pubsub
        return pubsub

    async def send(self, client: HeldUp, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.publish(queue, body)

    async def callback(
        self, client: HeldUp, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Let the client call, one message after the other; what a callback raises, `run` hands to us."""
        pubsub = await self._subscribe(client, queue, **{queue: handler})

        async def run() -> None:
            await pubsub.run(exception_handler=lambda _error, _pubsub: None, poll_timeout=0.05)

        task = self.spawn(run())

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])
            await pubsub.aclose()

        return stop

    async def iterate(self, client: HeldUp, queue: str) -> AsyncIterator[Any]:
        return self._subscriptions[id(client), queue].listen()

    async def fetch(self, client: HeldUp, queue: str) -> Any:
        return await self._subscriptions[id(client), queue].get_message(timeout=0.001)

    def body(self, native: Any) -> bytes:
        return native["data"]

    async def close(self) -> None:
        for pubsub in self._subscriptions.values():
            await pubsub.aclose()
        await super().close()
