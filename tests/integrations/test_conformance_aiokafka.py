"""aiokafka's leaf by the conformance suite, on a mock cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalStateError

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Adapter
from tests.integrations.kafka_support import GROUP, PARTITION, Kafka, KafkaAdapter, kafka_address

__all__ = ["kafka_address"]


class HeldUp(AIOKafkaProducer):
    """A producer of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Awaitable[None]] | None = None

    async def send(self, *args: Any, **options: Any) -> Any:
        if self.before_send is not None:
            await self.before_send()
        return await super().send(*args, **options)


class AiokafkaAdapter(KafkaAdapter):
    async def producer(self) -> HeldUp:
        producer = HeldUp(bootstrap_servers=self.address)
        await producer.start()
        return producer

    async def consumer(self, topic: str) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=False,
            fetch_max_wait_ms=50,
        )  # fmt: skip
        await consumer.start()
        consumer.assign([TopicPartition(topic, PARTITION)])
        return consumer

    async def poll(self, consumer: AIOKafkaConsumer, most: int) -> list[Any]:
        found = await consumer.getmany(timeout_ms=50, max_records=most)
        return [record for records in found.values() for record in records]

    async def produce(self, client: HeldUp, topic: str, body: bytes, headers: list[tuple[str, bytes]] | None) -> Any:
        return await client.send_and_wait(topic, body, partition=PARTITION, headers=headers)

    async def commit(self, consumer: AIOKafkaConsumer, topic: str, offset: int) -> None:
        await consumer.commit({TopicPartition(topic, PARTITION): offset})

    async def seek(self, consumer: AIOKafkaConsumer, native: Any) -> None:
        topic, partition, offset = self.place(native)
        consumer.seek(TopicPartition(topic, partition), offset)

    async def stop(self, client: Any) -> None:
        await client.stop()


class TestAiokafka(Kafka):
    @pytest.fixture
    async def adapter(self, kafka_address: str) -> AsyncGenerator[Adapter, None]:
        adapter = AiokafkaAdapter(kafka_address)
        yield adapter
        await adapter.close()

    async def test_a_commit_that_fails_is_timed_with_its_error(self, adapter, queue, telemetry):
        """A commit that raises is timed with its error, goes on unchanged, and does not decide how its hop ends."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        consumer = await adapter.reader(client, queue)
        with rtobs.consume("tickets", message), pytest.raises(IllegalStateError):
            await consumer.commit({TopicPartition("not ours", 0): 1})
        assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type")["ack", "IllegalStateError"] == 1
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}
