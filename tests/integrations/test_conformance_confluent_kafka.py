"""confluent-kafka's leaf by the conformance suite, on a mock cluster: a class of C, and a class of the user's own.

The client blocks, so a worker reads in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import unwrap
from tests.integrations.adapter import BODY, Adapter
from tests.integrations.kafka_support import GROUP, PARTITION, Kafka, KafkaAdapter, awaited, kafka_address

__all__ = ["kafka_address"]


class HeldUp(Producer):
    """A producer of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Awaitable[None]] | None = None
    loop: asyncio.AbstractEventLoop

    def produce(self, *args: Any, **options: Any) -> Any:
        if self.before_send is not None:
            awaited(self.before_send, self.loop)
        return super().produce(*args, **options)


class Reader(Consumer):
    """A consumer of the user's own class."""


class Held:
    """What a stand-in calls, held up."""

    def __init__(self, native: Producer, hook: Callable[[], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
        self._native, self._hook, self._loop = native, hook, loop

    def produce(self, *args: Any, **options: Any) -> Any:
        awaited(self._hook, self._loop)
        return self._native.produce(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


class ConfluentAdapter(KafkaAdapter):
    def __init__(self, address: str, producer: type[Producer], consumer: type[Consumer]) -> None:
        super().__init__(address)
        self._producer, self._consumer = producer, consumer

    async def producer(self) -> Producer:
        producer = self._producer({"bootstrap.servers": self.address, "linger.ms": 0})
        if isinstance(producer, HeldUp):
            producer.loop = asyncio.get_running_loop()
        return producer

    async def consumer(self, topic: str) -> Consumer:
        consumer = self._consumer(
            {
                "bootstrap.servers": self.address, "group.id": GROUP, "auto.offset.reset": "earliest",
                "enable.auto.commit": False, "fetch.wait.max.ms": 50,
            }
        )  # fmt: skip
        consumer.assign([TopicPartition(topic, PARTITION, 0)])
        return consumer

    async def poll(self, consumer: Consumer, most: int) -> list[Message]:
        if most > 1:
            return await asyncio.to_thread(consumer.consume, most, 0.05)
        found = await asyncio.to_thread(consumer.poll, 0.05)
        return [found] if found is not None else []

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        reader = await self.reader(client, queue)

        async def items() -> AsyncIterator[Any]:
            while True:
                for message in await self.poll(reader, 1):
                    yield message

        return items()

    async def produce(self, client: Any, topic: str, body: bytes, headers: list[tuple[str, bytes]] | None) -> Any:
        delivered: list[Any] = []

        def report(error: Any, message: Message) -> None:
            delivered.append(error)

        await asyncio.to_thread(client.produce, topic, body, partition=PARTITION, headers=headers, on_delivery=report)
        while not delivered:
            await asyncio.to_thread(client.poll, 0.01)
        if delivered[0] is not None:
            raise KafkaException(delivered[0])

    async def commit(self, consumer: Consumer, topic: str, offset: int) -> None:
        await asyncio.to_thread(consumer.commit, offsets=[TopicPartition(topic, PARTITION, offset)], asynchronous=False)

    async def seek(self, consumer: Consumer, native: Message) -> None:
        consumer.seek(TopicPartition(*self.place(native)))

    async def stop(self, client: Any) -> None:
        await asyncio.to_thread(client.close)

    def place(self, native: Message) -> tuple[str, int, int]:
        return native.topic(), native.partition(), native.offset()

    def body(self, native: Message) -> bytes:
        return native.value()

    def pairs(self, native: Message) -> list[tuple[str, bytes]]:
        return native.headers() or []

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        if isinstance(client, HeldUp):
            client.before_send = hook
        else:
            object.__setattr__(client, "__wrapped__", Held(unwrap(client), hook, asyncio.get_running_loop()))


class Confluent(Kafka):
    # It has no iterator.
    test_lag_of_an_iterated_message_is_recorded_once = None
    test_lag_of_the_last_iterated_message_is_recorded_too = None

    async def test_an_exception_in_a_block_goes_on_unchanged(self, adapter, queue, telemetry):
        """An error is the end of a message until its consumer has committed once; from then on it brings it back."""
        client = await adapter.client()
        for outcomes in ({"failed": 1}, {"failed": 1, "retried": 1}):
            await self._send(adapter, client, queue)
            message = await self._fetched(adapter, client, queue)
            cause, error = KeyError("cause"), ValueError("broken")
            with pytest.raises(ValueError, match="broken") as caught, rtobs.consume("tickets", message):
                raise error from cause
            assert caught.value is error
            assert error.__cause__ is cause
            assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == outcomes
            await adapter.settle(message, "ack")

    async def test_a_commit_that_fails_is_timed_with_its_error(self, adapter, queue, telemetry):
        """A commit that raises is timed with its error, goes on unchanged, and does not decide how its hop ends."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        consumer = await adapter.reader(client, queue)
        with rtobs.consume("tickets", message), pytest.raises(KafkaException):
            consumer.commit(offsets=[TopicPartition(queue, 9999, 1)], asynchronous=False)
        assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type")["ack", "KafkaException"] == 1
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}


class TestSubclasses(Confluent):
    @pytest.fixture
    async def adapter(self, kafka_address: str) -> AsyncGenerator[Adapter, None]:
        adapter = ConfluentAdapter(kafka_address, HeldUp, Reader)
        yield adapter
        await adapter.close()


class TestStandIns(Confluent):
    @pytest.fixture
    async def adapter(self, kafka_address: str) -> AsyncGenerator[Adapter, None]:
        adapter = ConfluentAdapter(kafka_address, Producer, Consumer)
        yield adapter
        await adapter.close()

    async def test_unwrapping_restores(self, adapter, queue, telemetry):
        """What `unwrap` returns is the client itself, which writes no headers and counts nothing."""
        bare, client = await adapter.client(wrapped=False), await adapter.client()
        assert type(client) is not type(bare)
        plain = unwrap(client)
        assert type(plain) is type(bare)
        assert rtobs.wrap(plain) is not plain
        await adapter.send(plain, queue, BODY)
        message = await self._fetched(adapter, bare, queue)
        assert not adapter.headers(message).keys() & set(names.OWN_HEADERS)
        assert telemetry.count(names.SENT_MESSAGES) == 0
        await adapter.settle(message, "ack")
