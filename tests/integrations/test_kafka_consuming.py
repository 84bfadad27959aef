"""Records through the three Kafka leaves: fetches, batches, lag, commits, what they say; neighbours; watching."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord
from kafka import KafkaConsumer, KafkaProducer
from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor
from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor
from opentelemetry.instrumentation.kafka import KafkaInstrumentor

import rtobs
from rtobs import _conventions as names
from rtobs.errors import UnsupportedError
from rtobs.integrations import watch
from rtobs.integrations.aiokafka import describe
from tests.integrations.adapter import NOWHERE, here, place_of
from tests.integrations.kafka_support import PARTITION, kafka_address
from tests.support.telemetry import Telemetry, user_provider
from tests.support.timing import eventually

__all__ = ["kafka_address"]

SECOND_MS = 1000


class Kafka:
    """aiokafka clients that go away again."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._stack = contextlib.AsyncExitStack()

    async def producer(self, *, wrapped: bool = True) -> AIOKafkaProducer:
        client = await self._stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=self.address))
        return rtobs.wrap(client) if wrapped else client

    async def consumer(
        self, topic: str, *, group: str | None = "g", wrap: Any = None, **config: Any
    ) -> AIOKafkaConsumer:
        config = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **config}
        client = AIOKafkaConsumer(bootstrap_servers=self.address, group_id=group, **config)
        client = await self._stack.enter_async_context(client)
        client.assign([TopicPartition(topic, PARTITION)])
        return rtobs.wrap(client, **(wrap or {}))

    async def send(self, topic: str, *values: bytes | None, wrapped: bool = True, **options: Any) -> str:
        """Send messages out of one accept hop; return its correlation id."""
        producer = await self.producer(wrapped=wrapped)
        with rtobs.accept("/orders") as hop:
            futures = [await producer.send(topic, value, partition=PARTITION, **options) for value in values]
        await asyncio.gather(*futures)
        return hop.correlation_id

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def kafka(kafka_address: str) -> AsyncGenerator[Kafka, None]:
    kafka = Kafka(kafka_address)
    yield kafka
    await kafka.close()


def settled(telemetry: Telemetry) -> dict[str, int]:
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")


# Fetches -------------------------------------------------------------------------------------------------------------


async def test_after_getone_the_users_code_has_its_hop(kafka, unique, telemetry):
    """Code after `getone` runs in its message's hop where it scopes one; with contrib nothing was current there."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    correlation_id = await kafka.send(topic, b"v", key=b"user-7")
    record = await consumer.getone()
    assert here() == NOWHERE
    with rtobs.consume("orders", record):
        seen = here()
    assert seen.correlation_id == correlation_id
    assert seen == place_of(telemetry.span("consume"))
    attributes = telemetry.span("consume").attributes
    assert attributes["messaging.destination.name"] == topic
    assert attributes["messaging.destination.partition.id"] == "0"
    assert attributes["messaging.kafka.offset"] == 0
    assert attributes["messaging.kafka.message.key"] == "user-7"
    assert attributes["messaging.consumer.group.name"] == "g"
    assert "messaging.kafka.message.tombstone" not in attributes


async def test_a_batch_is_one_receive_span_linked_to_all_of_it(kafka, unique, telemetry):
    """`getmany` is one span with a link to each record's send; each record's hop continues its own trace."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    await kafka.send(topic, b"1", b"2", b"3")
    records: list[Any] = []
    while len(records) < 3:
        found = await consumer.getmany(timeout_ms=500)
        records += [record for each in found.values() for record in each]
    for record in records:
        with rtobs.consume("orders", record):
            pass
    sends = [span.context.span_id for span in telemetry.spans("publish")]
    links = [link.context.span_id for span in telemetry.spans("receive") for link in span.links]
    assert links == sends
    assert [span.parent.span_id for span in telemetry.spans("consume")] == sends
    assert telemetry.span("receive").attributes["messaging.batch.message_count"] == 3
    assert "messaging.kafka.offset" not in telemetry.span("receive").attributes


async def test_confluent_and_kafka_python_fetch_batches(kafka, unique, telemetry):
    """`consume(n)` of the one and `poll` of the other, which contrib does not see, are one receive span each."""
    topic = unique("topic")
    await kafka.send(topic, b"1", b"2")

    def confluent() -> list[Any]:
        config = {"bootstrap.servers": kafka.address, "group.id": "c", "auto.offset.reset": "earliest"}
        with rtobs.wrap(confluent_kafka.Consumer(config)) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
            return consumer.consume(2, 10)

    def python() -> list[Any]:
        consumer = KafkaConsumer(bootstrap_servers=kafka.address, api_version=(2, 3), auto_offset_reset="earliest")
        consumer.assign([TopicPartition(topic, PARTITION)])
        found: list[Any] = []
        rtobs.wrap(consumer)
        while len(found) < 2:
            found += [record for each in consumer.poll(timeout_ms=1000).values() for record in each]
        consumer.close()
        return found

    for fetch in (confluent, python):
        before = len(telemetry.spans("receive"))
        for message in await asyncio.to_thread(fetch):
            with rtobs.consume("orders", message):
                pass
        received = telemetry.spans("receive")[before:]
        assert [len(span.links) for span in received] == [2]
    sends = [span.context.span_id for span in telemetry.spans("publish")]
    assert [span.parent.span_id for span in telemetry.spans("consume")] == sends * 2


async def test_a_tombstone_is_a_message(kafka, unique, telemetry):
    """A record without a value is sent, handled and marked on both sides."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    await kafka.send(topic, None, key=b"gone")
    with rtobs.consume("orders", await consumer.getone()):
        pass
    for kind in ("publish", "consume"):
        assert telemetry.span(kind).attributes["messaging.kafka.message.tombstone"] is True


@pytest.mark.parametrize("key", [b"\xff\xfe", b"x" * 65, b"a\nb"])
async def test_a_key_that_is_no_short_text_stays_out(kafka, unique, telemetry, key):
    """Binary keys, long ones and those with control characters are on no span."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    await kafka.send(topic, b"v", key=key)
    with rtobs.consume("orders", await consumer.getone()):
        pass
    assert "messaging.kafka.message.key" not in telemetry.span("consume").attributes


async def test_of_headers_that_repeat_the_last_counts(kafka, unique, telemetry):
    """A neighbour that adds a second traceparent, as some do, is the parent; the journey stays whole."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    with rtobs.publish("elsewhere") as hop:
        own = [(name, value.encode()) for name, value in hop.headers.items()]
    trace_id = hop.headers["traceparent"].split("-")[1]
    theirs = f"00-{trace_id}-00f067aa0ba902b7-01".encode()
    await kafka.send(topic, b"v", wrapped=False, headers=[*own, ("traceparent", theirs)])
    with rtobs.consume("orders", await consumer.getone()) as consumed:
        assert consumed.correlation_id == hop.correlation_id
    assert telemetry.span("consume").parent.span_id == 0x00F067AA0BA902B7


async def test_a_record_of_an_unwrapped_consumer_is_recognised(kafka, unique, telemetry):
    """Records are known by their class, also those of C: a consumer that nobody wrapped brings journeys too."""
    topic = unique("topic")
    correlation_id = await kafka.send(topic, b"v")

    def fetch() -> Any:
        config = {"bootstrap.servers": kafka.address, "group.id": "c", "auto.offset.reset": "earliest"}
        with confluent_kafka.Consumer(config) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
            return consumer.poll(10)

    rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka.address}))
    message = await asyncio.to_thread(fetch)
    with rtobs.consume("orders", message) as consumed:
        assert consumed.correlation_id == correlation_id
    assert rtobs._hop.runtime.runtime.describe(message).position.offset == 0


# Lag -----------------------------------------------------------------------------------------------------------------


async def test_lag_counts_from_the_producers_clock_where_nobody_carries_ours(kafka, unique, telemetry, clock):
    """Without our header lag counts from the record's CreateTime, which is the producer's clock."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    sent_ms = clock.now // 1_000_000 - 7 * SECOND_MS
    await kafka.send(topic, b"v", wrapped=False, timestamp_ms=sent_ms)
    with rtobs.consume("orders", await consumer.getone()):
        pass
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"producer": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == pytest.approx(7, abs=0.01)


def test_log_append_time_is_the_brokers_clock():
    """A topic with LogAppendTime tells the broker's clock; a record without a timestamp tells none."""

    def record(timestamp: int, kind: int) -> ConsumerRecord[Any, Any]:
        return ConsumerRecord("orders", 0, 0, timestamp, kind, None, b"v", None, 0, 1, ())

    assert (describe(record(5, 1)).sent_ns, describe(record(5, 1)).sent_clock) == (5_000_000, "broker")
    assert describe(record(5, 0)).sent_clock == "producer"
    assert describe(record(-1, 0)).sent_ns == 0


# Settling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "automatic", "outcome"), [("g", False, "retried"), ("g", True, "failed"), (None, False, "failed")]
)
async def test_an_error_brings_back_what_is_committed_by_hand(kafka, unique, telemetry, group, automatic, outcome):  # noqa: PLR0917  fixtures and cases
    """An error brings a record back only where a group commits by hand; otherwise it is its end."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic, group=group, enable_auto_commit=automatic)
    await kafka.send(topic, b"v")
    record = await consumer.getone()
    with contextlib.suppress(ValueError), rtobs.consume("orders", record):
        raise ValueError
    assert settled(telemetry) == {outcome: 1}


@pytest.mark.parametrize(("upto", "outcome"), [(1, "failed"), (0, "retried"), (None, "failed")])
async def test_a_commit_settles_what_it_covers(kafka, unique, telemetry, upto, outcome):
    """A commit settles a record only if its offset lies before the committed one; without offsets all that was read."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    await kafka.send(topic, b"v")
    record = await consumer.getone()
    with contextlib.suppress(ValueError), rtobs.consume("orders", record):
        await consumer.commit(None if upto is None else {TopicPartition(topic, PARTITION): upto})
        raise ValueError
    assert settled(telemetry) == {outcome: 1}


async def test_storing_an_offset_settles_its_message(kafka, unique, telemetry):
    """`store_offsets`, for the client to commit later, settles the message in its hop."""
    topic = unique("topic")
    await kafka.send(topic, b"v")
    config = {
        "bootstrap.servers": kafka.address, "group.id": "c", "auto.offset.reset": "earliest",
        "enable.auto.offset.store": False,
    }  # fmt: skip

    def work() -> None:
        with rtobs.wrap(confluent_kafka.Consumer(config)) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
            message = consumer.poll(10)
            with contextlib.suppress(ValueError), rtobs.consume("orders", message):
                consumer.store_offsets(message)
                raise ValueError

    await asyncio.to_thread(work)
    span = telemetry.span("consume")
    assert span.attributes["rtobs.settlement"] == "acked"
    assert span.attributes["messaging.consumer.group.name"] == "c"
    assert settled(telemetry) == {"failed": 1}


async def test_what_is_read_from_a_dead_letter_topic_has_ended(kafka, unique, telemetry):
    """A record of the topic that `wrap` was told to be for dead letters counts no second end of its promise."""
    topic = unique("dead")
    consumer = await kafka.consumer(topic, wrap={"dead_letter": topic})
    await kafka.send(topic, b"v")
    assert describe(await consumer.getone()).dead_cause == "decided"


# Neighbours ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def contrib() -> Generator[None, None, None]:
    """OpenTelemetry's own instrumentations of the three clients are on during the test."""
    instrumentors = [AIOKafkaInstrumentor(), ConfluentKafkaInstrumentor(), KafkaInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=user_provider(), skip_dep_check=True)
    yield
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def assert_ours_alone(telemetry: Telemetry, headers: list[tuple[str, bytes]]) -> None:
    found = [span.instrumentation_scope.name for span in telemetry.spans()]
    assert set(found) == {names.SCOPE}, found
    assert [name for name, _ in headers].count("traceparent") == 1
    assert len(telemetry.spans("publish")) == len(telemetry.spans("consume")) == 1
    assert telemetry.span("consume").parent.span_id == telemetry.span("publish").context.span_id


@pytest.mark.parametrize("iterated", [False, True])
async def test_contrib_aiokafka_makes_no_second_span(contrib, kafka, unique, telemetry, iterated):
    """With contrib's instrumentation on, a message has our spans and headers alone, fetched or iterated."""
    topic = unique("topic")
    consumer = await kafka.consumer(topic)
    await kafka.send(topic, b"v")
    record = await anext(aiter(consumer)) if iterated else await consumer.getone()
    with rtobs.consume("orders", record):
        pass
    assert_ours_alone(telemetry, list(record.headers))


@pytest.mark.parametrize("iterated", [False, True])
async def test_contrib_kafka_python_makes_no_second_span(contrib, kafka, unique, telemetry, iterated):
    """As above, for kafka-python."""
    topic = unique("topic")

    def work() -> Any:
        common = {"bootstrap_servers": kafka.address, "api_version": (2, 3)}
        producer = rtobs.wrap(KafkaProducer(**common))
        producer.send(topic, b"v", partition=PARTITION).get(10)
        consumer = KafkaConsumer(**common, auto_offset_reset="earliest")
        consumer.assign([TopicPartition(topic, PARTITION)])
        record = next(iter(rtobs.wrap(consumer))) if iterated else next(rtobs.wrap(consumer))
        with rtobs.consume("orders", record):
            pass
        producer.close()
        consumer.close()
        return record

    record = await asyncio.to_thread(work)
    assert_ours_alone(telemetry, record.headers)


async def test_contrib_confluent_makes_no_second_span(contrib, kafka, unique, telemetry):
    """As above, for confluent-kafka, whose classes contrib replaces; and nothing stays current after `poll`."""
    topic = unique("topic")

    def work() -> Any:
        producer = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka.address}))
        producer.produce(topic, b"v", partition=PARTITION, on_delivery=lambda *_: None)
        producer.flush()
        config = {"bootstrap.servers": kafka.address, "group.id": "c", "auto.offset.reset": "earliest"}
        consumer = rtobs.wrap(confluent_kafka.Consumer(config))
        consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
        message = consumer.poll(10)
        assert here() == NOWHERE
        with rtobs.consume("orders", message):
            pass
        consumer.close()
        return message

    message = await asyncio.to_thread(work)
    assert_ours_alone(telemetry, message.headers())


# Watching ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(kafka: Kafka, unique: Callable[[str], str], telemetry: Telemetry) -> Callable[[Any], Any]:
    """Three records, of which the group has done one: returns what makes a watch show it."""

    async def prepare(group: str) -> str:
        topic = unique("topic")
        await kafka.send(topic, b"1", b"2", b"3")
        consumer = await kafka.consumer(topic, group=group)
        await consumer.getone()
        await consumer.commit({TopicPartition(topic, PARTITION): 1})
        return topic

    return prepare


async def shows_two(telemetry: Telemetry, client: Any, topic: str) -> None:
    watching = watch(client, [topic], interval=0.1)
    try:
        await eventually(lambda: telemetry.by(names.QUEUE_DEPTH, "destination", "role").get((topic, "main")) == 2)
    finally:
        watching.stop()


async def test_watch_shows_what_aiokafkas_group_has_not_committed(kafka, waiting, unique, telemetry):
    """Depth of a topic is what its group has not committed, over all partitions, asked through the consumer itself."""
    topic = await waiting("w1")
    await shows_two(telemetry, await kafka.consumer(topic, group="w1"), topic)


async def test_watch_asks_kafka_python_over_a_connection_of_its_own(kafka, waiting, telemetry):
    """kafka-python's consumers are for one thread, so another one asks for the same group."""
    topic = await waiting("w2")
    consumer = await asyncio.to_thread(
        KafkaConsumer, bootstrap_servers=kafka.address, group_id="w2", api_version=(2, 3), enable_auto_commit=False
    )
    await shows_two(telemetry, rtobs.wrap(consumer), topic)
    await asyncio.to_thread(consumer.close)


async def test_watch_asks_confluents_consumer(kafka, waiting, telemetry):
    """confluent-kafka's consumer, its stand-in too, may be asked from any thread."""
    topic = await waiting("w3")
    with rtobs.wrap(confluent_kafka.Consumer({"bootstrap.servers": kafka.address, "group.id": "w3"})) as consumer:
        await shows_two(telemetry, consumer, topic)


async def test_a_producer_cannot_be_watched(kafka):
    """Who sends has no group that could be behind: `watch` says what to give instead."""
    with pytest.raises(UnsupportedError, match="give a consumer"):
        watch(await kafka.producer(), ["orders"])
    with pytest.raises(UnsupportedError, match="give a consumer"):
        watch(confluent_kafka.Producer({"bootstrap.servers": kafka.address}), ["orders"])
