"""What a leaf costs: one message published and consumed through its client, less what the client costs by itself.

For each leaf a function of its own prepares two clients of the same fake: real classes whose part below the leaf, where
bytes would leave and come, keeps the last message and hands it out again. ``add`` makes a row of it; the message is
handled in a hop, as its page in ``docs/leaves`` says. Each row is a ratio to the core's hop, ``sampled``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import rtobs
from tests.bench import cases
from tests.bench.floor import BODY
from tests.bench.references import Case, Run, times


class Leaf(NamedTuple):
    """One leaf's row."""

    what: str
    prepare: Callable[[], Case]


LEAVES: dict[str, Leaf] = {}
"""By the leaf's name, and the client's form where it has several."""


Wrap = Callable[[Any], Any]
Through = Callable[[Wrap], Run]


def add(name: str, what: str, spans: Any = 2) -> Callable[[Through], Through]:
    """Make a row of a function that is told how to wrap a client, if at all, and returns what runs so many messages."""

    def register(through: Through) -> Through:
        LEAVES[name] = Leaf(what, partial(_case, through, spans))
        return through

    return register


def _case(through: Through, spans: Any) -> Case:
    case = cases.ours(spans=spans)
    case.bare = through(lambda client: client)
    case.run = through(rtobs.wrap)
    return case


def handled(message: object) -> None:
    """Handle one message in a hop; where the client is bare, in none."""
    with rtobs.consume("orders", message):
        pass


def handler(wrap: Wrap) -> Callable[[object], None]:
    """Return what handles a message of a client that *wrap* has made."""
    return handled if wrap is rtobs.wrap else lambda _: None


def in_loop(once: Callable[[], Coroutine[Any, Any, None]]) -> Run:
    """Return what runs a coroutine function so many times on an event loop of its own."""
    loop = asyncio.new_event_loop()

    async def all_of(messages: int) -> None:
        for _ in range(messages):
            await once()

    return lambda messages: loop.run_until_complete(all_of(messages))


def bare_object(cls: type, **attributes: Any) -> Any:
    """Return an object without what its constructor would start, with what the leaf looks at."""
    made = object.__new__(cls)
    vars(made).update(attributes)
    return made


# Kafka ---------------------------------------------------------------------------------------------------------------


@add("aiokafka", "aiokafka: `send`, `async for`")
def aiokafka(wrap: Wrap) -> Run:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.structs import ConsumerRecord, RecordMetadata, TopicPartition

    place = TopicPartition("orders", 0)
    sent: list[tuple[Any, ...]] = [()]

    class Producer(AIOKafkaProducer):
        async def send(self, topic, value=None, key=None, partition=None, timestamp_ms=None, headers=None):  # noqa: PLR0917  the client's own
            sent[0] = tuple(headers or ())
            future = asyncio.get_running_loop().create_future()
            future.set_result(RecordMetadata("orders", 0, place, 7, 0, 0, 0))
            return future

        def __del__(self) -> None:
            """There is nothing to warn of."""

    class Consumer(AIOKafkaConsumer):
        async def getone(self, *partitions):
            return ConsumerRecord("orders", 0, 7, 1, 0, b"key", BODY, None, 3, len(BODY), sent[0])

        def __del__(self) -> None:
            """As above."""

    producer = wrap(bare_object(Producer))
    consumer = wrap(bare_object(Consumer, _enable_auto_commit=False, _group_id="group", _closed=False))
    records, handle = aiter(consumer), handler(wrap)

    async def once() -> None:
        await (await producer.send("orders", BODY, b"key"))
        handle(await anext(records))

    return in_loop(once)


@add("kafka", "kafka-python: `send`, `for`")
def kafka_python(wrap: Wrap) -> Run:
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.future import Future
    from kafka.producer.future import RecordMetadata
    from kafka.structs import TopicPartition

    found = RecordMetadata("orders", 0, TopicPartition("orders", 0), 7, 0, 0, 0, 0, 0)
    sent: list[list[Any]] = [[]]

    class Producer(KafkaProducer):
        def send(self, topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None):  # noqa: PLR0917  as above
            sent[0] = headers or []
            return Future().success(found)

        def __del__(self) -> None:
            """There is nothing to close."""

    class Consumer(KafkaConsumer):
        def __next__(self):
            return ConsumerRecord("orders", 0, 0, 7, 1, 0, b"key", BODY, sent[0], None, 3, len(BODY), 0)

    producer = wrap(bare_object(Producer))
    consumer = wrap(bare_object(Consumer, config={"group_id": "group", "enable_auto_commit": False}))
    records, handle = iter(consumer), handler(wrap)

    def once() -> None:
        producer.send("orders", BODY, b"key")
        handle(next(records))

    return times(once)


_AT_ONCE = 100


@add(
    "confluent_kafka", "confluent-kafka: `produce` with a report, `consume(100)`", Fraction(2 * _AT_ONCE + 1, _AT_ONCE)
)
def confluent_kafka(wrap: Wrap) -> Run:
    from confluent_kafka import Consumer, Message, Producer

    sent: list[Message] = []

    class Fake(Producer):
        def produce(self, topic, value=None, key=None, on_delivery=None, headers=None):
            message = Message(topic, 0, 7, key, value, headers, None, (1, 1))
            sent.append(message)
            on_delivery(None, message)

    class Reader(Consumer):
        def consume(self, num_messages=1, timeout=-1):
            found = sent[:]
            sent.clear()
            return found

        def consumer_group_metadata(self):
            return b""

    producer, consumer = wrap(Producer.__new__(Fake)), wrap(Consumer.__new__(Reader))
    handle = handler(wrap)

    def report(error: Any, message: Any) -> None:
        """As a user's does."""

    def run(messages: int) -> None:
        for _ in range(0, messages, _AT_ONCE):
            for _ in range(_AT_ONCE):
                producer.produce("orders", BODY, b"key", on_delivery=report)
            for message in consumer.consume(_AT_ONCE):
                handle(message)

    return run


# MQTT and WebSocket --------------------------------------------------------------------------------------------------


@add("paho", "paho-mqtt: `publish` with QoS 0, `on_message`, MQTT 5")
def paho(wrap: Wrap) -> Run:
    from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage, MQTTMessageInfo, MQTTv5

    sent: list[Any] = [None]
    info = MQTTMessageInfo(1)

    class Fake(Client):
        def publish(self, topic, payload=None, qos=0, retain=False, properties=None):
            sent[0] = properties
            return info

        def _handle_on_message(self, message):
            self.on_message(self, None, message)

    client = wrap(Fake(CallbackAPIVersion.VERSION2, protocol=MQTTv5))
    client.on_message = lambda *_: None

    def once() -> None:
        client.publish("orders", BODY)
        message = MQTTMessage(1, b"orders")
        message.payload, message.properties = BODY, sent[0]
        client._handle_on_message(message)

    return times(once)


@add("aiomqtt", "aiomqtt: `publish`, `anext(messages)`, MQTT 5")
def aiomqtt(wrap: Wrap) -> Run:
    from aiomqtt import Client, Message
    from aiomqtt.client import MessagesIterator
    from paho.mqtt.client import CallbackAPIVersion, MQTTv5
    from paho.mqtt.client import Client as Below

    sent: list[Any] = [None]

    class Messages(MessagesIterator):
        async def __anext__(self):
            return Message("orders", BODY, 0, retain=False, mid=1, properties=sent[0])

    class Fake(Client):
        async def publish(self, topic, payload=None, qos=0, retain=False, properties=None):
            sent[0] = properties

        @property
        def messages(self):
            return Messages(self)

    client = wrap(bare_object(Fake, _client=Below(CallbackAPIVersion.VERSION2, protocol=MQTTv5)))
    messages, handle = client.messages, handler(wrap)

    async def once() -> None:
        await client.publish("orders", BODY)
        handle(await anext(messages))

    return in_loop(once)


@add("websockets", "websockets: `send` in an envelope, `recv`")
def websockets(wrap: Wrap) -> Run:
    from websockets.asyncio.connection import Connection

    sent: list[Any] = [b""]

    class Fake(Connection):
        async def send(self, message, text=None):
            sent[0] = message

        async def recv(self, decode=None):
            return bytes(bytearray(sent[0]))  # another object, as from the network

    def in_envelopes(connection: Any) -> Any:
        return rtobs.wrap(connection, trust="trusted", envelope=True) if wrap is rtobs.wrap else connection

    connection, handle = in_envelopes(bare_object(Fake, request=None)), handler(wrap)

    async def once() -> None:
        await connection.send(BODY)
        handle(await connection.recv())

    return in_loop(once)
