"""Drives websockets for the conformance suite: a relay on loopback brings what one connection sends to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

import websockets.asyncio.client
import websockets.asyncio.server

import rtobs
from rtobs._hop import leaf
from rtobs._journey import envelope
from tests.integrations.adapter import Handler, How
from tests.support.timing import eventually

PATH = "/relay"


class HeldUp(websockets.asyncio.client.ClientConnection):
    """A connection of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Awaitable[None]] | None = None

    async def send(self, *args: Any, **options: Any) -> None:
        if self.before_send is not None:
            await self.before_send()
        await super().send(*args, **options)


class Done:
    """Something to await, or not."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class WebSocketAdapter:
    """Binary messages in envelopes; what stands for a callback is a loop over the connection."""

    system = "websocket"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = False

    def __init__(self) -> None:
        self._clients: list[HeldUp] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: websockets.asyncio.server.Server | None = None

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUp:
        if self._server is None:
            self._server = await websockets.asyncio.server.serve(self._relay, "127.0.0.1", 0, max_queue=4096)
        port = self._server.sockets[0].getsockname()[1]
        known = len(self._server.connections)
        client: Any = await websockets.asyncio.client.connect(
            f"ws://127.0.0.1:{port}{PATH}?token=secret", create_connection=HeldUp, max_queue=4096
        )
        server = self._server
        await eventually(lambda: len(server.connections) > known)
        self._clients.append(client)
        return rtobs.wrap(client, **{"trust": "trusted", "envelope": True, **options}) if wrapped else client

    async def _relay(self, connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            for each in list(self._server.connections):
                await each.send(message)

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        """All go over one path."""

    async def send(self, client: HeldUp, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.send(body)

    async def callback(
        self, client: HeldUp, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Iterate as a server does, and handle each message in a task of its own, in a hop."""

        async def one(native: Any) -> None:
            decorated = hasattr(handler, "__rtobs_consume__")
            hop = contextlib.nullcontext() if decorated else rtobs.consume(PATH, native)
            with contextlib.suppress(asyncio.CancelledError), hop:
                result = handler(native)
                if inspect.isawaitable(result):
                    await result

        async def loop() -> None:
            async for native in client:
                self._spawn(one(native))

        task = self._spawn(loop())

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        return stop

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def iterate(self, client: HeldUp, queue: str) -> AsyncIterator[Any]:
        return aiter(client)

    async def fetch(self, client: HeldUp, queue: str) -> Any:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(client.recv(), 0.005)

    def settle(self, native: Any, how: How) -> Any:
        """There is nothing to settle."""
        return Done()

    def body(self, native: Any) -> bytes:
        return native

    def headers(self, native: Any) -> dict[str, Any]:
        known = leaf.known(native)
        if known is not None:
            return known.headers
        opened = envelope.open(native)
        return opened[1] if opened is not None else {}

    def destination(self, queue: str) -> str:
        return PATH

    target = destination

    def before_send(self, client: HeldUp, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
