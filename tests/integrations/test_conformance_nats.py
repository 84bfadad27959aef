"""nats-py's leaf by the conformance suite, on a live server: JetStream, and core NATS."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import ConsumerConfig

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import BODY, Adapter, Handler, How, Place, here, place_of
from tests.integrations.conformance import Conformance
from tests.support.timing import eventually

SEQUENTIAL = 16
"""Up to so many messages at a time a callback of the client's is asked for; it calls one after the other."""


class Held(Client):
    """A client whose sends can be held up, as a slow network does."""

    def __init__(self) -> None:
        super().__init__()
        self.before_send: Callable[[], Awaitable[None]] | None = None

    async def publish(self, subject: str, *args: Any, **options: Any) -> None:
        if self.before_send is not None and subject.startswith("rtobs-test"):
            await self.before_send()
        await super().publish(subject, *args, **options)


class NatsAdapter:
    """What both modes share; a queue is a subject."""

    system = "nats"
    sync_callbacks = False
    raising_brings_back = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: list[Held] = []

    async def client(self, *, wrapped: bool = True, **options: Any) -> Held:
        client = Held()
        await client.connect(self._url)
        self._clients.append(client)
        return rtobs.wrap(client, **options) if wrapped else client

    async def callback(
        self, client: Held, queue: str, handler: Handler, *, prefetch: int = SEQUENTIAL
    ) -> Callable[[], Awaitable[None]]:
        if prefetch > SEQUENTIAL:
            return await self._tasks(client, queue, handler, prefetch)

        async def handle(message: Msg) -> None:
            result = handler(message)
            if inspect.isawaitable(result):
                await result

        callback = handler if inspect.iscoroutinefunction(handler) else handle
        subscription = await self._subscribe(client, queue, callback, prefetch)
        return subscription.unsubscribe

    async def _tasks(self, client: Held, queue: str, handler: Handler, prefetch: int) -> Callable[[], Awaitable[None]]:
        # The client calls back for one message at a time; whoever wants more at once makes tasks of an iterator's.
        subscription = await self._subscribe(client, queue, None, prefetch)
        handle = rtobs.consume(queue)(handler)

        async def loop() -> None:
            async with asyncio.TaskGroup() as tasks:
                async for message in subscription.messages:
                    tasks.create_task(handle(message))

        looping = asyncio.create_task(loop())

        async def stop() -> None:
            await subscription.unsubscribe()
            await looping

        return stop

    async def _subscribe(self, client: Held, queue: str, callback: Any, prefetch: int) -> Subscription:
        raise NotImplementedError

    def body(self, native: Msg) -> bytes:
        return native.data

    def headers(self, native: Msg) -> dict[str, Any]:
        return native.headers or {}

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Held, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class JetStreamAdapter(NatsAdapter):
    """Streams: what is sent stays until it was acknowledged."""

    counts_deliveries = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._dead_letters: dict[str, str | None] = {}
        self._pulls: dict[tuple[Held, str], Any] = {}
        self._pushes: dict[tuple[Held, str], Any] = {}

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        client = await self.client(wrapped=False)
        await client.jetstream().add_stream(name=queue, subjects=[queue], storage="memory")
        self._dead_letters[queue] = dead_letter

    async def send(self, client: Held, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.jetstream().publish(queue, body, headers=headers)

    async def _subscribe(self, client: Held, queue: str, callback: Any, prefetch: int) -> Subscription:
        config = ConsumerConfig(max_ack_pending=prefetch)
        return await client.jetstream().subscribe(queue, stream=queue, cb=callback, manual_ack=True, config=config)

    async def iterate(self, client: Held, queue: str) -> AsyncIterator[Msg]:
        push = self._pushes.get((client, queue))
        if push is None:
            push = await client.jetstream().subscribe(queue, stream=queue, manual_ack=True)
            self._pushes[client, queue] = push
        return push.messages

    async def fetch(self, client: Held, queue: str) -> Msg | None:
        pull = self._pulls.get((client, queue))
        if pull is None:
            pull = self._pulls[client, queue] = await client.jetstream().pull_subscribe(queue, "fetching", queue)
        try:
            return (await pull.fetch(timeout=0.05))[0]
        except TimeoutError:
            return None

    async def settle(self, native: Msg, how: How) -> Any:
        dead_letter = self._dead_letters[native.subject]
        if how == "reject" and dead_letter is not None:  # no server does that; applications put them aside like this
            await native._client.jetstream().publish(dead_letter, native.data, headers=native.headers)
        return await {"ack": native.ack, "nack": native.nak, "reject": native.term}[how]()

    async def close(self) -> None:
        client = await self.client(wrapped=False)
        for stream in self._dead_letters:
            await client.jetstream().delete_stream(stream)
        await super().close()


class CoreAdapter(NatsAdapter):
    """Subjects: what is sent reaches whoever listens, so each client listens to every queue from the start."""

    counts_deliveries = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._queues: list[str] = []
        self._mailboxes: dict[Held, dict[str, Subscription]] = defaultdict(dict)

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._queues.append(queue)

    async def client(self, *, wrapped: bool = True, **options: Any) -> Held:
        client = await super().client(wrapped=wrapped, **options)
        for queue in self._queues:
            self._mailboxes[client][queue] = await client.subscribe(queue)
        await client.flush()
        return client

    async def send(self, client: Held, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        return await client.publish(queue, body, headers=headers)

    async def _subscribe(self, client: Held, queue: str, callback: Any, prefetch: int) -> Subscription:
        await self._mailboxes[client].pop(queue).unsubscribe()
        subscription = await client.subscribe(queue, cb=callback)
        await client.flush()
        return subscription

    async def iterate(self, client: Held, queue: str) -> AsyncIterator[Msg]:
        return self._mailboxes[client][queue].messages

    async def fetch(self, client: Held, queue: str) -> Msg | None:
        try:
            return await self._mailboxes[client][queue].next_msg(timeout=0.05)
        except TimeoutError:
            return None

    async def settle(self, native: Msg, how: How) -> Any:
        """Do nothing: there is nothing to settle."""


class Nats(Conformance):
    """The suite where NATS differs from other brokers, in both modes."""

    async def test_a_cancelled_callback_ends_its_hop(self, adapter, unique, telemetry):
        """A cancelled callback ends its hop, once, and its subscription as unwrapped; the next one has its own hops."""
        queues = [unique("first"), unique("second")]
        for queue in queues:
            await adapter.declare(queue)
        client = await adapter.client()
        seen: list[Place] = []

        async def handle(message: Any) -> None:
            seen.append(here())
            await adapter.settle(message, "ack")
            if len(seen) == 1:
                asyncio.current_task().cancel()
                await asyncio.Event().wait()

        first, second = [await adapter._subscribe(client, queue, handle, SEQUENTIAL) for queue in queues]
        sent = [await self._send(adapter, client, queues[0])]
        await eventually(first._wait_for_msgs_task.done)
        sent.append(await self._send(adapter, client, queues[1]))
        await eventually(lambda: len(telemetry.spans("consume")) == 2)
        assert not second._wait_for_msgs_task.done()
        assert [place.correlation_id for place in seen] == sent
        assert [place_of(span) for span in telemetry.spans("consume")] == seen
        assert telemetry.spans("consume")[0].attributes["rtobs.reason"] == "cancelled"


class TestJetStream(Nats):
    @pytest.fixture
    async def adapter(self, nats_url: str) -> AsyncGenerator[Adapter, None]:
        adapter = JetStreamAdapter(nats_url)
        yield adapter
        await adapter.close()

    @pytest.mark.parametrize("how", ["ack", "nack"])
    async def test_settlements_are_timed(self, adapter, queue, telemetry, how):
        """Each ack and nak counts one duration under its operation, inside a hop and after it."""
        await super().test_settlements_are_timed(adapter, queue, telemetry, how)

    async def test_a_terminated_message_is_a_dead_letter(self, adapter, queue, telemetry):
        """A term counts one duration under nack; in a hop it ends the message as dead-lettered, after it no more."""
        client = await adapter.client()
        for number in (1, 2):
            await self._send(adapter, client, queue)
            message = await self._fetched(adapter, client, queue)
            with rtobs.consume("tickets", message):
                if number == 1:
                    await message.term()
            if number == 2:
                await message.term()
            assert telemetry.count(names.CLIENT_DURATION, operation="nack") == number
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"dead_lettered": 1, "ok": 1}


class TestCore(Nats):
    # Without redelivery and settlements there is nothing that these could look at.
    test_attempts_count_redeliveries = None
    test_settlements_are_timed = None
    test_a_settlement_that_fails_is_timed_with_its_error = None
    test_a_dead_letter_ends_its_promise_once = None
    test_a_client_is_the_same_wrapped_or_not = None  # it settles twice; test_nats.py compares what core NATS has

    @pytest.fixture
    async def adapter(self, nats_url: str) -> AsyncGenerator[Adapter, None]:
        adapter = CoreAdapter(nats_url)
        yield adapter
        await adapter.close()

    async def test_an_exception_in_a_block_goes_on_unchanged(self, adapter, queue, telemetry):
        """What a block raises leaves it as the same object, and the message, which cannot come back, ends as failed."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        error = ValueError("broken")
        with pytest.raises(ValueError, match="broken") as caught, rtobs.consume("tickets", message):
            raise error
        assert caught.value is error
        assert telemetry.span("consume").attributes["error.type"] == "ValueError"
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1}

    async def test_an_exception_in_a_callback_is_handled_as_unwrapped(self, adapter, queue, telemetry):
        """A callback's exception reaches the client's error callback, wrapped or not; the next message is handled."""
        told: dict[bool, list[Exception]] = {}
        for wrapped in (False, True):
            client = await adapter.client(wrapped=wrapped)
            errors = told[wrapped] = []
            error = ValueError("broken")

            async def tell(error: Exception, errors: list[Exception] = errors) -> None:
                errors.append(error)

            async def handle(message: Any, error: ValueError = error) -> None:
                if adapter.body(message) == b"1":
                    raise error

            client._error_cb = tell
            stop = await adapter.callback(client, queue, handle)
            await adapter.send(client, queue, b"1")
            await adapter.send(client, queue, BODY)
            await eventually(lambda errors=errors: errors)
            if wrapped:
                await eventually(lambda: len(telemetry.spans("consume")) == 2)
            await stop()
            assert errors == [error]
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1, "ok": 1}
