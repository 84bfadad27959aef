"""kafka-python's leaf by the conformance suite, on a mock cluster; the client blocks, so a worker reads in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from tests.integrations.adapter import Adapter
from tests.integrations.kafka_support import GROUP, PARTITION, Kafka, KafkaAdapter, awaited, kafka_address

__all__ = ["kafka_address"]

MOCK = {"api_version": (2, 3)}
"""The mock cluster does not answer what the client asks to find out its version."""


class HeldUp(KafkaProducer):
    """A producer of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Awaitable[None]] | None = None
    loop: asyncio.AbstractEventLoop

    def send(self, *args: Any, **options: Any) -> Any:
        if self.before_send is not None:
            awaited(self.before_send, self.loop)
        return super().send(*args, **options)


class KafkaPythonAdapter(KafkaAdapter):
    async def producer(self) -> HeldUp:
        producer = await asyncio.to_thread(HeldUp, bootstrap_servers=self.address, **MOCK)
        producer.loop = asyncio.get_running_loop()
        return producer

    async def consumer(self, topic: str) -> KafkaConsumer:
        def make() -> KafkaConsumer:
            consumer = KafkaConsumer(
                bootstrap_servers=self.address, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=False,
                fetch_max_wait_ms=50, **MOCK,
            )  # fmt: skip
            consumer.assign([TopicPartition(topic, PARTITION)])
            return consumer

        return await asyncio.to_thread(make)

    async def poll(self, consumer: KafkaConsumer, most: int) -> list[Any]:
        found = await asyncio.to_thread(consumer.poll, timeout_ms=50, max_records=most)
        return [record for records in found.values() for record in records]

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        records = iter(await self.reader(client, queue))

        async def items() -> AsyncIterator[Any]:
            while True:
                yield await asyncio.to_thread(next, records)

        return items()

    async def produce(self, client: HeldUp, topic: str, body: bytes, headers: list[tuple[str, bytes]] | None) -> Any:
        future = await asyncio.to_thread(client.send, topic, body, partition=PARTITION, headers=headers)
        return await asyncio.to_thread(future.get, 10)

    async def commit(self, consumer: KafkaConsumer, topic: str, offset: int) -> None:
        offsets = {TopicPartition(topic, PARTITION): OffsetAndMetadata(offset, "", -1)}
        await asyncio.to_thread(consumer.commit, offsets)

    async def seek(self, consumer: KafkaConsumer, native: Any) -> None:
        topic, partition, offset = self.place(native)
        consumer.seek(TopicPartition(topic, partition), offset)

    async def stop(self, client: Any) -> None:
        await asyncio.to_thread(client.close)


class TestKafkaPython(Kafka):
    @pytest.fixture
    async def adapter(self, kafka_address: str) -> AsyncGenerator[Adapter, None]:
        adapter = KafkaPythonAdapter(kafka_address)
        yield adapter
        await adapter.close()
