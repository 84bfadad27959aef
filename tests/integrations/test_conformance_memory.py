"""The in-memory broker's leaf, by the conformance suite."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

import rtobs
from rtobs.integrations.memory import Broker, Message
from tests.integrations.adapter import Adapter, Handler, How
from tests.integrations.conformance import Conformance


class Client(Broker):
    """One of several clients of one memory broker; its sends can be held up, as a slow network does."""

    def __init__(self, shared: Broker) -> None:
        super().__init__()
        self._queues, self._numbers = shared._queues, shared._numbers
        self.before_send: Callable[[], Awaitable[None]] | None = None

    async def publish(
        self, queue: str, body: bytes, headers: dict[str, Any] | None = None, *, delay: float = 0.0
    ) -> None:
        if self.before_send is not None:
            await self.before_send()
        await super().publish(queue, body, headers, delay=delay)


class MemoryAdapter:
    """Drives the in-memory broker."""

    system = "memory"
    sync_callbacks = True
    raising_brings_back = True
    counts_deliveries = True

    def __init__(self) -> None:
        self._broker = Broker()
        self._clients: list[Client] = []

    async def client(self, *, wrapped: bool = True, **options: Any) -> Client:
        client = Client(self._broker)
        self._clients.append(client)
        return rtobs.wrap(client, **options) if wrapped else client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._broker.declare(queue, dead_letter=dead_letter)

    async def send(self, client: Client, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.publish(queue, body, headers)

    async def callback(
        self, client: Client, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        stop = client.consume(queue, handler, prefetch=prefetch)

        async def stopped() -> None:
            stop()

        return stopped

    async def iterate(self, client: Client, queue: str) -> AsyncIterator[Message]:
        return client.messages(queue)

    async def fetch(self, client: Client, queue: str) -> Message | None:
        return await client.get(queue, timeout=0.001)

    async def settle(self, native: Message, how: How) -> Any:
        return await getattr(native, how)()

    def body(self, native: Message) -> bytes:
        return native.body

    def headers(self, native: Message) -> dict[str, Any]:
        return native.headers

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Client, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        self._clients.clear()


class TestMemory(Conformance):
    @pytest.fixture
    async def adapter(self) -> AsyncGenerator[Adapter, None]:
        adapter = MemoryAdapter()
        yield adapter
        await adapter.close()

    async def test_a_dropped_client_is_freed(self, adapter, queue, telemetry):
        """Nothing of ours keeps a wrapped client, or a message it brought, alive."""
        client = await adapter.client()
        await adapter.send(client, queue, b"")
        message = await adapter.fetch(client, queue)
        with rtobs.consume("tickets", message):
            await message.ack()
        await adapter.close()
        gone = weakref.ref(client)
        held = {"message": message}
        assert any(referrer is held for referrer in gc.get_referrers(message))  # the check below can see a holder
        held.clear()
        del client, message
        gc.collect()
        assert gone() is None
        assert [found for found in gc.get_objects() if issubclass(type(found), Message)] == []
