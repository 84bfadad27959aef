"""What the tests of the Kafka leaves share: a mock cluster, an adapter for the conformance suite, what differs.

The cluster is librdkafka's own mock in this process: the real protocol on a loopback port, with groups and commits.
It keeps the timestamps that producers make; what it *answers* to a producer as timestamp is made up (1234).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

import confluent_kafka
import pytest

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from tests.integrations.adapter import BODY, Handler, How
from tests.integrations.conformance import Conformance
from tests.support.timing import eventually

GROUP = "workers"
PARTITION = 0
"""Where the tests send to and read from, unless they say otherwise: one partition keeps its order."""


@pytest.fixture(scope="session")
def kafka_address() -> Generator[str, None, None]:
    """Host and port of a cluster of one broker, whose topics come into being when they are asked for."""
    cluster = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1", "log_level": 0})
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    del cluster


def awaited(hook: Callable[[], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
    """Wait for *hook* in a thread beside *loop*."""
    asyncio.run_coroutine_threadsafe(hook(), loop).result(10)


class KafkaAdapter:
    """What the clients share: a client is a producer, with a consumer beside it for each topic that it reads."""

    system = "kafka"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._wrapped: dict[int, dict[str, Any] | None] = {}
        self._clients: list[Any] = []
        self._consumers: dict[tuple[int, str], Any] = {}
        self._reading: dict[str, Any] = {}
        self._dead_letters: dict[str, str | None] = {}
        self._done: dict[str, int] = {}
        self._committed: dict[str, int] = {}
        self._committing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: list[Callable[[], Awaitable[None]]] = []

    # Each client's own ------------------------------------------------------------------------------------------------

    async def producer(self) -> Any:
        raise NotImplementedError

    async def consumer(self, topic: str) -> Any:
        """Return a consumer of the one partition, in the group, that commits when it is told to."""
        raise NotImplementedError

    async def poll(self, consumer: Any, most: int) -> list[Any]:
        """Return up to *most* records, or none after a short while."""
        raise NotImplementedError

    async def produce(self, client: Any, topic: str, body: bytes, headers: list[tuple[str, bytes]] | None) -> Any:
        """Send and wait until the broker has it."""
        raise NotImplementedError

    async def commit(self, consumer: Any, topic: str, offset: int) -> None:
        """Say that all before *offset* is done with."""
        raise NotImplementedError

    async def seek(self, consumer: Any, native: Any) -> None:
        raise NotImplementedError

    async def stop(self, client: Any) -> None:
        raise NotImplementedError

    def place(self, native: Any) -> tuple[str, int, int]:
        return native.topic, native.partition, native.offset

    # The suite's -----------------------------------------------------------------------------------------------------

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        client = await self.producer()
        client = rtobs.wrap(client, **options) if wrapped else client
        self._clients.append(client)
        self._wrapped[id(client)] = options if wrapped else None
        return client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._dead_letters[queue] = dead_letter

    async def reader(self, client: Any, queue: str) -> Any:
        found = self._consumers.get((id(client), queue))
        if found is None:
            found = await self.consumer(queue)
            options = self._wrapped[id(client)]
            if options is not None:
                found = rtobs.wrap(found, **options)
            self._consumers[id(client), queue] = found
        self._reading[queue] = found
        return found

    async def send(self, client: Any, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        pairs = None if headers is None else [(name, value.encode()) for name, value in headers.items()]
        return await self.produce(client, queue, body, pairs)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def callback(
        self, client: Any, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Read as a worker does, and handle each record in a task of its own, in a hop."""
        reader = await self.reader(client, queue)

        async def one(native: Any) -> None:
            hop = contextlib.nullcontext() if hasattr(handler, "__rtobs_consume__") else rtobs.consume(queue, native)
            with contextlib.suppress(asyncio.CancelledError), hop:
                result = handler(native)
                if inspect.isawaitable(result):
                    await result

        stopped = asyncio.Event()

        async def loop() -> None:
            while not stopped.is_set():
                for native in await self.poll(reader, prefetch):
                    self.spawn(one(native))

        task = self.spawn(loop())

        async def stop() -> None:
            stopped.set()
            await task

        self._stops.append(stop)
        return stop

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        return aiter(await self.reader(client, queue))

    async def fetch(self, client: Any, queue: str) -> Any:
        found = await self.poll(await self.reader(client, queue), 1)
        return found[0] if found else None

    async def settle(self, native: Any, how: How) -> None:
        topic = self.place(native)[0]
        reader = self._reading[topic]
        if how == "nack":
            await self.seek(reader, native)
            return
        dead_letter = self._dead_letters[topic]
        if how == "reject" and dead_letter is not None:  # as every application does: Kafka has no dead letters
            await self.send(self._clients[0], dead_letter, self.body(native))
            rtobs.current().outcome(Outcome.DEAD_LETTERED)
        # As workers do: one commit for all that are done by the time that it can be made.
        done = self.place(native)[2] + 1
        self._done[topic] = max(self._done.get(topic, 0), done)
        async with self._committing:
            if self._committed.get(topic, 0) < done:
                self._committed[topic] = self._done[topic]
                await self.commit(reader, topic, self._done[topic])

    def body(self, native: Any) -> bytes:
        return native.value

    def pairs(self, native: Any) -> list[tuple[str, bytes]]:
        return list(native.headers)

    def headers(self, native: Any) -> dict[str, Any]:
        return {name: value.decode() for name, value in self.pairs(native)}

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook

    async def close(self) -> None:
        for stop in self._stops:
            await stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in (*self._consumers.values(), *self._clients):
            await self.stop(client)


class Kafka(Conformance):
    """The suite where Kafka differs: a commit is no message's acknowledgement, and nobody counts deliveries."""

    # What stands for a callback is a worker's loop, which opens the hop.
    test_an_exception_in_a_callback_is_handled_as_unwrapped = None
    test_a_plain_function_as_callback_sees_its_hop = None
    test_settlements_are_timed = None  # below: there is only one way to settle
    test_a_settlement_that_fails_is_timed_with_its_error = None  # each leaf's own: a commit twice is no error

    @pytest.mark.parametrize("consumer", ["plain", "decorator", "decorator and with", "two decorators"])
    @pytest.mark.parametrize("publisher", ["plain", "decorator", "with"])
    async def test_user_code_and_client_are_one_hop(self, adapter, queue, telemetry, publisher, consumer):
        """Whoever opens the hop, decorated code, a block or the client, one message is sent once and consumed once."""
        await super().test_user_code_and_client_are_one_hop(adapter, queue, telemetry, publisher, consumer)

    async def test_attempts_count_redeliveries(self, adapter, queue, telemetry):
        """A record that is sought again is retried in its journey; as nobody counts, its attempt stays the first."""
        client = await adapter.client()
        how: list[How] = ["nack", "nack", "ack"]
        left = iter(how)
        stop = await adapter.callback(client, queue, lambda message: adapter.settle(message, next(left)))
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: len(telemetry.spans("consume")) == 3)
        await stop()
        spans = telemetry.spans("consume")
        assert {span.attributes["rtobs.correlation_id"] for span in spans} == {correlation_id}
        assert [span.attributes.get("rtobs.attempt", 1) for span in spans] == [1, 1, 1]
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 2, "ok": 1}

    async def test_a_record_that_is_published_again_is_the_next_attempt(self, adapter, queue, telemetry):
        """A handler that publishes to the topic it reads from, to try again later, makes attempts 1, 2 and 3."""
        client = await adapter.client()
        again = iter([True, True, False])

        async def handle(message: Any) -> None:
            if next(again):
                await adapter.send(client, queue, adapter.body(message))
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, queue, handle)
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: len(telemetry.spans("consume")) == 3)
        await stop()
        spans = telemetry.spans("consume")
        assert sorted(span.attributes.get("rtobs.attempt", 1) for span in spans) == [1, 2, 3]  # they end in any order
        assert {span.attributes["rtobs.correlation_id"] for span in spans} == {correlation_id}

    async def test_a_commit_settles_inside_its_hop_and_is_timed(self, adapter, queue, telemetry):
        """Each commit counts one duration; inside its record's hop an error after it is the end of the message."""
        client = await adapter.client()
        for number, late in enumerate((False, True), 1):
            await self._send(adapter, client, queue)
            message = await self._fetched(adapter, client, queue)
            with contextlib.suppress(ValueError), rtobs.consume("tickets", message):
                if not late:
                    await adapter.settle(message, "ack")
                raise ValueError("broken")
            if late:
                await adapter.settle(message, "ack")
            assert telemetry.count(names.CLIENT_DURATION, operation="ack") == number
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1, "retried": 1}

    async def test_a_client_is_the_same_wrapped_or_not(self, adapter, unique, telemetry):
        """Results, types and isinstance of a wrapped client and of its records are those of a bare one."""
        found: dict[bool, list[Any]] = {}
        for wrapped in (False, True):
            queue = unique("same")
            await adapter.declare(queue)
            client = await adapter.client(wrapped=wrapped)
            empty = await adapter.fetch(client, queue)
            result = await adapter.send(client, queue, BODY)
            message = await self._fetched(adapter, client, queue)
            settled = await adapter.settle(message, "ack")
            found[wrapped] = [
                client.__class__, isinstance(client, client.__class__), empty, type(result), message.__class__,
                isinstance(message, message.__class__), settled, str(message)[:20],
            ]  # fmt: skip
        assert found[True] == found[False]
