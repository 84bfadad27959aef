"""Sends through the three Kafka leaves: headers of every shape, sizes, confirmations, batches, transactions."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from confluent_kafka.aio import AIOConsumer, AIOProducer
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs.integrations import _kafka
from tests.integrations.kafka_support import PARTITION, kafka_address
from tests.support.timing import eventually

__all__ = ["kafka_address"]

PAIRS = [("a", b"1"), ("a", b"2"), ("\u00fc", b""), ("b", "é".encode())]


@pytest.fixture
async def producer(kafka_address: str) -> AsyncGenerator[AIOKafkaProducer, None]:
    async with AIOKafkaProducer(bootstrap_servers=kafka_address, max_request_size=2000) as producer:
        yield rtobs.wrap(producer)


@pytest.fixture
def read(kafka_address: str) -> Callable[[str, int], list[confluent_kafka.Message]]:
    """Read the first records of a topic's one partition with a client that nobody wrapped."""

    def read(topic: str, number: int = 1) -> list[confluent_kafka.Message]:
        with confluent_kafka.Consumer(
            {"bootstrap.servers": kafka_address, "group.id": "reader", "auto.offset.reset": "earliest"}
        ) as consumer:
            consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
            found: list[confluent_kafka.Message] = []
            while len(found) < number:
                found += consumer.consume(number - len(found), 1.0)
            return found

    return read


def foreign(message: confluent_kafka.Message) -> list[tuple[str, bytes]]:
    return [pair for pair in message.headers() or [] if pair[0] not in names.OWN_HEADERS]


def ours(message: confluent_kafka.Message) -> list[str]:
    return [name for name, _ in message.headers() or [] if name in names.OWN_HEADERS]


def rejected(telemetry: Any) -> dict[str, int]:
    return telemetry.by(names.PROPAGATION_REJECTED, "reason")


# Headers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [None, [], (), PAIRS, tuple(PAIRS)])
async def test_headers_of_every_shape_arrive_and_stay_as_they_are(producer, read, unique, telemetry, headers):
    """None, lists and tuples with repeated names arrive in order, ours once after them; the caller's stay."""
    topic, before = unique("topic"), copy.deepcopy(headers)
    await producer.send_and_wait(topic, b"v", partition=PARTITION, headers=headers)
    (message,) = await asyncio.to_thread(read, topic)
    assert headers == before
    assert foreign(message) == list(headers or [])
    assert sorted(ours(message)) == ["baggage", "rtobs-journey", "traceparent"]


@pytest.mark.parametrize("headers", [None, {"a": "x", "b": None}, [("a", "x"), ("a", b"y"), ("b", None)]])
async def test_confluent_headers_keep_their_shape(kafka_address, read, unique, telemetry, headers):
    """A dict or a list, with text, bytes and None as values, arrives as it would without us."""
    topics = unique("bare"), unique("wrapped")
    bare = confluent_kafka.Producer({"bootstrap.servers": kafka_address})
    before = copy.deepcopy(headers)
    for topic, client in zip(topics, (bare, rtobs.wrap(bare)), strict=True):
        client.produce(topic, b"v", partition=PARTITION, **({} if headers is None else {"headers": headers}))
    await asyncio.to_thread(bare.flush)
    found = [(await asyncio.to_thread(read, topic))[0] for topic in topics]
    assert headers == before
    assert foreign(found[0]) == foreign(found[1])
    assert len(ours(found[1])) == 3


@pytest.mark.parametrize("headers", ["text", [("a", 1)], [("a",)], [7], 7, ({"a"},)])
async def test_what_is_no_header_is_refused_as_without_us(producer, unique, telemetry, headers):
    """Headers that the client refuses, or that make it fail, fail with its own error."""
    topic = unique("topic")
    bare = AIOKafkaProducer(bootstrap_servers=producer.client._bootstrap_servers)
    async with bare:
        with pytest.raises(Exception) as expected:  # noqa: PT011  whatever the client raises
            await bare.send(topic, b"v", headers=headers)
    with pytest.raises(type(expected.value)) as caught:
        await producer.send(topic, b"v", headers=headers)
    assert str(caught.value) == str(expected.value)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=20) | st.sampled_from(names.OWN_HEADERS), st.binary(max_size=20))))
def test_only_headers_named_like_ours_are_replaced(pairs):
    """Whatever pairs there are, all others stay, in their order; ours come after them, each once."""
    given_pairs = list(pairs)
    with leaf.Send(_kafka.sent(_kafka.Options(), "orders", b"v", None)) as send:
        found = _kafka.carrying(send, pairs)
    assert pairs == given_pairs
    others = [pair for pair in pairs if pair[0] not in names.OWN_HEADERS]
    assert found[: len(others)] == others
    added = [name for name, _ in found[len(others) :]]
    assert set(added) <= set(names.OWN_HEADERS)
    assert len(set(added)) == len(added)
    assert names.JOURNEY in added


# Sizes ---------------------------------------------------------------------------------------------------------------


async def test_a_message_that_fits_only_without_us_goes_without_us(producer, read, unique, telemetry):
    """Where our headers would make a message too large it is sent without them, counted; if it is anyway, it fails."""
    topic = unique("topic")
    await producer.send_and_wait(topic, b"x" * 1850, partition=PARTITION, headers=PAIRS)
    (message,) = await asyncio.to_thread(read, topic)
    assert foreign(message) == PAIRS
    assert ours(message) == []
    assert rejected(telemetry) == {"too_long": 1}
    with pytest.raises(MessageSizeTooLargeError):
        await producer.send(topic, b"x" * 2100)
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1, "MessageSizeTooLargeError": 1}


async def test_the_same_with_confluent_and_kafka_python(kafka_address, read, unique, telemetry):
    """The other two clients as well send what fits only without our headers, and refuse what does not fit at all."""
    topic = unique("topic")
    confluent = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka_address, "message.max.bytes": 2000}))
    confluent.produce(topic, b"x" * 1900, partition=PARTITION)
    with pytest.raises(confluent_kafka.KafkaException):
        confluent.produce(topic, b"x" * 2100, partition=PARTITION)
    await asyncio.to_thread(confluent.flush)
    python = await asyncio.to_thread(
        KafkaProducer, bootstrap_servers=kafka_address, max_request_size=2000, api_version=(2, 3)
    )
    rtobs.wrap(python)
    future = await asyncio.to_thread(python.send, topic, b"x" * 1900, partition=PARTITION)
    await asyncio.to_thread(future.get, 10)
    with pytest.raises(Exception, match="2"):
        await asyncio.to_thread(python.send, topic, b"x" * 2100, partition=PARTITION)
    await asyncio.to_thread(python.close)
    found = await asyncio.to_thread(read, topic, 2)
    assert [ours(message) for message in found] == [[], []]
    assert rejected(telemetry)["too_long"] >= 2


# Confirmations -------------------------------------------------------------------------------------------------------


async def test_a_send_that_fails_after_it_was_queued_has_failed(kafka_address, unique, telemetry):
    """A send whose future fails later is a span up to then, with the error; contrib's has ended before it began."""
    later = asyncio.get_running_loop().create_future()

    class Slow(AIOKafkaProducer):
        async def send(self, *args: Any, **options: Any) -> Any:
            return later

    async with Slow(bootstrap_servers=kafka_address) as client:
        future = await rtobs.wrap(client).send(unique("topic"), b"v")
        assert telemetry.spans("publish") == []
        later.set_exception(ConnectionError("gone"))
        with pytest.raises(ConnectionError):
            await future
    span = telemetry.span("publish")
    assert span.attributes["error.type"] == "ConnectionError"
    assert not span.status.is_ok


async def test_a_delivery_report_ends_the_hop_and_reaches_its_caller(kafka_address, unique, telemetry):
    """The caller's report comes as ever, in whatever thread polls; the hop ends with it and knows the offset."""
    producer = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka_address}))
    told: list[Any] = []

    def report(error: Any, message: Any) -> None:
        told.append((error, message.topic(), threading.current_thread() is threading.main_thread()))

    topic = unique("topic")
    with rtobs.accept("/orders"):
        producer.produce(topic, b"v", b"k", PARTITION, report)
        assert rtobs.current().correlation_id
    assert telemetry.spans("publish") == []
    await asyncio.to_thread(producer.flush)
    assert told == [(None, topic, False)]
    span = telemetry.span("publish")
    assert span.attributes["messaging.message.id"] == f"{topic}:{PARTITION}:0"
    assert span.attributes["messaging.kafka.message.key"] == "k"
    assert span.parent.span_id == telemetry.span("accept").context.span_id


async def test_a_report_of_a_failure_is_the_hops_failure(kafka_address, unique, telemetry):
    """A message that the client gives up is a failed send; without a report it counts when it is queued."""
    producer = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka_address, "linger.ms": 60_000}))
    errors: list[Any] = []
    producer.produce(unique("topic"), b"v", callback=lambda error, _: errors.append(error.name()))
    producer.produce(unique("topic"), b"v")
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}
    producer.purge()
    producer.poll(1)
    assert errors == ["_PURGE_QUEUE"]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1, "KafkaException": 1}


async def test_reports_of_errors_only_leave_no_hop_open(kafka_address, unique, telemetry):
    """Where the client is told to report only errors, a send that works ends when the report is let go of."""
    producer = rtobs.wrap(
        confluent_kafka.Producer({"bootstrap.servers": kafka_address, "delivery.report.only.error": True})
    )
    told: list[Any] = []
    producer.produce(unique("topic"), b"v", on_delivery=lambda *_: told.append(1))
    await asyncio.to_thread(producer.flush)
    await eventually(lambda: telemetry.spans("publish"))
    assert told == []
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}


async def test_the_configured_report_is_called_as_without_us(kafka_address, unique, telemetry):
    """A callback that the configuration names for all messages is called for those that have none of their own."""
    told: list[Any] = []
    producer = rtobs.wrap(
        confluent_kafka.Producer(
            {"bootstrap.servers": kafka_address, "on_delivery": lambda error, _: told.append(error)}
        )
    )
    producer.produce(unique("topic"), b"v")
    await asyncio.to_thread(producer.flush)
    assert told == [None]
    assert telemetry.count(names.SENT_MESSAGES) == 1


async def test_a_serializing_producer_is_understood_by_position(kafka_address, read, unique, telemetry):
    """Its `produce` takes key and value the other way round; both are understood, and it stays the same object."""
    client = confluent_kafka.SerializingProducer({"bootstrap.servers": kafka_address})
    assert rtobs.wrap(client) is client
    topic = unique("topic")
    client.produce(topic, b"key", None, PARTITION)
    await asyncio.to_thread(client.flush)
    (message,) = await asyncio.to_thread(read, topic)
    assert (message.key(), message.value()) == (b"key", None)
    attributes = telemetry.span("publish").attributes
    assert attributes["messaging.kafka.message.key"] == "key"
    assert attributes["messaging.kafka.message.tombstone"] is True


async def test_a_transaction_passes_through(kafka_address, read, unique, telemetry):
    """Messages of a transaction are sends like any other, and what it is made of is left alone."""
    producer = rtobs.wrap(
        confluent_kafka.Producer({"bootstrap.servers": kafka_address, "transactional.id": unique("transaction")})
    )
    topic = unique("topic")

    def work() -> None:
        producer.init_transactions(10)
        producer.begin_transaction()
        producer.produce(topic, b"v", partition=PARTITION)
        producer.commit_transaction(10)

    await asyncio.to_thread(work)
    (message,) = await asyncio.to_thread(read, topic)
    assert len(ours(message)) == 3
    assert telemetry.count(names.SENT_MESSAGES) == 1


def test_a_stand_in_is_what_it_stands_for(kafka_address, unique, telemetry):
    """What comes back for a producer of C is a producer to `isinstance`, `len`, `bool` and `with`, and has all else."""
    native = confluent_kafka.Producer({"bootstrap.servers": kafka_address})
    with rtobs.wrap(native) as producer:
        assert isinstance(producer, confluent_kafka.Producer)
        assert rtobs.wrap(producer) is producer
        assert producer
        assert len(producer) == 0
        assert producer.list_topics(timeout=10).brokers
        assert rtobs.integrations.unwrap(producer) is native


# Batches -------------------------------------------------------------------------------------------------------------


async def test_messages_of_a_batch_are_sends_of_their_own(producer, read, unique, telemetry):
    """Each message that a batch takes carries its own journey, is one send, and ends with the batch."""
    topic = unique("topic")
    batch = producer.create_batch()
    ids = []
    for number in range(3):
        with rtobs.accept("/orders") as hop:
            assert batch.append(timestamp=None, key=None, value=b"%d" % number, headers=[("n", b"%d" % number)])
            ids.append(hop.correlation_id)
    assert telemetry.spans("publish") == []
    future = await producer.send_batch(batch, topic, partition=PARTITION)
    await future
    spans = telemetry.spans("publish")
    assert [span.name for span in spans] == [f"publish {topic}"] * 3
    assert [span.attributes["rtobs.correlation_id"] for span in spans] == ids
    assert [span.attributes["messaging.kafka.offset"] for span in spans] == [0, 1, 2]
    found = await asyncio.to_thread(read, topic, 3)
    assert [foreign(message) for message in found] == [[("n", b"%d" % number)] for number in range(3)]
    parents = [dict(message.headers())["traceparent"].decode().split("-")[2] for message in found]
    assert parents == [f"{span.context.span_id:016x}" for span in spans]
    assert telemetry.count(names.SENT_MESSAGES) == 3


async def test_what_a_batch_does_not_take_counts_nowhere(producer, unique, telemetry):
    """A message that a full batch refuses is not counted, nor are those of a batch that is never sent."""
    batch = producer.create_batch()
    while batch.append(timestamp=None, key=None, value=b"x" * 1000):
        pass
    taken = batch.record_count()
    del batch
    assert taken > 1
    assert telemetry.count(names.SENT_MESSAGES) == 0


async def test_a_publish_hop_is_the_first_message_of_a_batch(producer, unique, telemetry):
    """A publish hop round `append` is that message's hop, with its promise, under the name that the user gave."""
    batch = producer.create_batch()
    with rtobs.publish("orders", channel="push", key="u1"):
        batch.append(timestamp=None, key=b"k", value=b"1")
        batch.append(timestamp=None, key=b"k", value=b"2")
    topic = unique("topic")
    await (await producer.send_batch(batch, topic, partition=PARTITION))
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination") == {"orders": 1, topic: 1}


# Producers that refuse headers ---------------------------------------------------------------------------------------


async def test_the_asyncio_producer_sends_without_headers(kafka_address, read, unique, telemetry):
    """`AIOProducer` refuses headers, so none are given and that is counted; its send ends when it was delivered."""
    topic = unique("topic")
    async with AIOProducer({"bootstrap.servers": kafka_address}, batch_size=1) as producer:
        assert rtobs.wrap(producer) is producer
        future = await producer.produce(topic, b"v", b"k", partition=PARTITION)
        delivered = await future
        assert delivered.offset() == 0
    (message,) = await asyncio.to_thread(read, topic)
    assert message.headers() is None
    assert rejected(telemetry) == {"unsupported": 1}
    assert telemetry.span("publish").attributes["messaging.kafka.offset"] == 0


async def test_a_batch_of_confluents_has_no_room_for_headers(kafka_address, read, unique, telemetry):
    """`produce_batch` cannot carry headers: its messages are counted one by one, and none is changed."""
    producer = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka_address}))
    topic = unique("topic")
    messages = [{"value": b"1"}, {"value": b"2", "key": b"k"}]
    assert producer.produce_batch(topic, messages, partition=PARTITION) == 2
    await asyncio.to_thread(producer.flush)
    assert messages == [{"value": b"1"}, {"value": b"2", "key": b"k"}]
    assert [message.headers() for message in await asyncio.to_thread(read, topic, 2)] == [None, None]
    assert telemetry.count(names.SENT_MESSAGES) == 2
    assert rejected(telemetry) == {"unsupported": 2}


async def test_the_asyncio_consumer_is_measured(kafka_address, unique, telemetry):
    """`AIOConsumer` brings messages that continue their journeys; its commits settle."""
    topic = unique("topic")
    sender = rtobs.wrap(confluent_kafka.Producer({"bootstrap.servers": kafka_address}))
    with rtobs.accept("/orders") as hop:
        sender.produce(topic, b"v", partition=PARTITION)
    await asyncio.to_thread(sender.flush)
    consumer = rtobs.wrap(
        AIOConsumer({"bootstrap.servers": kafka_address, "group.id": "g", "enable.auto.commit": False})
    )
    try:
        await consumer.assign([confluent_kafka.TopicPartition(topic, PARTITION, 0)])
        message = await consumer.poll(10)
        with rtobs.consume("orders", message) as consumed:
            assert consumed.correlation_id == hop.correlation_id
            await consumer.commit(message=message, asynchronous=False)
    finally:
        await consumer.close()
    assert telemetry.span("consume").attributes["rtobs.settlement"] == "acked"
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 1
