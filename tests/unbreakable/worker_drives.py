"""Host programs over clients that block or bring their own workers: Kafka, MQTT by paho, pika, Celery, FastStream.

As those of ``drives``. All of each runs in the thread that runs the program: what another thread does is not traced.
Kafka's own network is played in subclasses of its clients, below the wrapping.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import confluent_kafka
import paho.mqtt.client as mqtt
import pika
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as Place
from aiokafka.structs import ConsumerRecord, RecordMetadata
from celery import Celery
from celery.app.trace import build_tracer
from faststream.rabbit import RabbitBroker, RabbitQueue
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord as Record
from kafka.future import Future
from kafka.structs import OffsetAndMetadata

import rtobs
from tests.integrations.mqtt_support import V3, user_properties
from tests.integrations.pika_support import Rabbit, fetched
from tests.support.timing import scaled
from tests.unbreakable.drives import Drive, HostError, Saw, attempted, awaited

MINE = [("x-shop", "Zürich".encode())]
MOMENT_MS = 1_800_000_000_000


def _shop(headers: Any) -> list[Any]:
    return [pair for pair in headers or () if pair[0] == "x-shop"]


# Kafka ---------------------------------------------------------------------------------------------------------------


class _Log:
    """What a partition holds, in memory."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any, Any, Any]] = []
        self.read = 0

    def append(self, topic: str, key: Any, value: Any, headers: Any) -> int:
        self.records.append((topic, key, value, headers or []))
        return len(self.records) - 1

    def next(self) -> int | None:
        """Return where the next record is that nobody has read."""
        if self.read == len(self.records):
            return None
        self.read += 1
        return self.read - 1


class _KafkaProducer(KafkaProducer):
    def __init__(self, log: _Log) -> None:
        self._log, self._closed, self.config = log, True, {}

    def send(self, topic: Any, value: Any = None, key: Any = None, headers: Any = None, *_: Any, **__: Any) -> Any:
        offset = self._log.append(topic, key, value, headers)
        return Future().success(RecordMetadata(topic, 0, None, offset, MOMENT_MS, 0, 0))


class _KafkaConsumer(KafkaConsumer):
    def __init__(self, log: _Log) -> None:
        self._log, self._closed = log, True
        self.config = {"group_id": "workers", "enable_auto_commit": False}

    def _record(self) -> Any:
        offset = self._log.next()
        if offset is None:
            return None
        topic, key, value, headers = self._log.records[offset]
        known = {"topic": topic, "partition": 0, "offset": offset, "timestamp": MOMENT_MS, "timestamp_type": 0,
                 "key": key, "value": value, "headers": headers}  # fmt: skip
        return Record(*(known.get(name) for name in Record._fields))

    def poll(self, *_: Any, **__: Any) -> Any:
        found = self._record()
        return {} if found is None else {TopicPartition(found.topic, 0): [found]}

    def __next__(self) -> Any:
        return self._record()

    def __iter__(self) -> Any:
        return self

    def seek(self, _: Any, offset: int) -> None:
        self._log.read = offset

    def commit(self, *_: Any, **__: Any) -> None:
        pass

    def commit_async(self, *_: Any, **__: Any) -> None:
        pass


class KafkaPython(Drive):
    """kafka-python: sends, polls, the iterator, commits, a record that is sought again."""

    name = "kafka"

    async def open(self) -> None:
        self._log = _Log()
        self._producer, self._consumer = _KafkaProducer(self._log), _KafkaConsumer(self._log)
        if self.wrapped:
            rtobs.wrap(self._producer)
            rtobs.wrap(self._consumer)

    async def run(self) -> Saw:
        saw: Saw = []
        producer, consumer = self._producer, self._consumer
        self._log.read = len(self._log.records)
        with rtobs.accept("/orders"):
            future = producer.send("orders", b"one", b"key", MINE)
        saw.append(future.succeeded())
        ((place, (record,)),) = consumer.poll(timeout_ms=1).items()
        saw.append((place.topic, record.value, _shop(record.headers)))
        upto = {TopicPartition("orders", 0): OffsetAndMetadata(record.offset + 1, "", -1)}
        with rtobs.consume("orders", record):
            consumer.commit(upto)
        producer.send("orders", b"two", partition=0)
        records = iter(consumer)
        record = next(records)
        saw.append(record.value)
        with rtobs.consume("orders", record):
            consumer.seek(TopicPartition("orders", 0), record.offset)
        record = next(records)
        saw.append(record.value)

        def fails() -> None:
            with rtobs.consume("orders", record):
                consumer.commit_async()
                raise HostError("two")

        attempted(saw, fails)
        saw.append(consumer.poll(timeout_ms=1))
        return saw


class _AioProducer(AIOKafkaProducer):
    def __init__(self, log: _Log) -> None:
        self._log, self._closed = log, True

    async def send(self, topic: Any, value: Any = None, key: Any = None, *args: Any, **options: Any) -> Any:
        headers = args[2] if len(args) > 2 else options.get("headers")
        offset = self._log.append(topic, key, value, headers)
        future = asyncio.get_running_loop().create_future()
        future.set_result(RecordMetadata(topic, 0, Place(topic, 0), offset, MOMENT_MS, 0, 0))
        return future

    def __del__(self, **_: Any) -> None:
        pass


class _AioConsumer(AIOKafkaConsumer):
    _enable_auto_commit = False
    _group_id = "workers"

    def __init__(self, log: _Log) -> None:
        self._log, self._closed = log, True

    def _record(self) -> Any:
        offset = self._log.next()
        if offset is None:
            return None
        topic, key, value, headers = self._log.records[offset]
        return ConsumerRecord(topic, 0, offset, MOMENT_MS, 0, key, value, None, 3, 3, tuple(headers))

    async def getone(self, *_: Any) -> Any:
        await asyncio.sleep(0)
        return self._record()

    async def getmany(self, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        found = self._record()
        return {} if found is None else {Place(found.topic, 0): [found]}

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return await self.getone()

    def seek(self, _: Any, offset: int) -> None:
        self._log.read = offset

    async def commit(self, _: Any = None) -> None:
        await asyncio.sleep(0)

    def __del__(self, **_: Any) -> None:
        pass


class AioKafka(Drive):
    """aiokafka: sends, fetches of one and of many, the iterator, commits, a record that is sought again."""

    name = "aiokafka"

    async def open(self) -> None:
        self._log = _Log()
        self._producer, self._consumer = _AioProducer(self._log), _AioConsumer(self._log)
        if self.wrapped:
            rtobs.wrap(self._producer)
            rtobs.wrap(self._consumer)

    async def run(self) -> Saw:
        saw: Saw = []
        producer, consumer = self._producer, self._consumer
        self._log.read = len(self._log.records)
        with rtobs.accept("/orders"):
            saw.append((await (await producer.send("orders", b"one", b"key", headers=MINE))).topic)
        await asyncio.sleep(0)  # the send's hop ends with its future
        ((_, (record,)),) = (await consumer.getmany(timeout_ms=1)).items()
        saw.append((record.value, _shop(record.headers)))
        with rtobs.consume("orders", record):
            await consumer.commit({Place("orders", 0): record.offset + 1})
        await producer.send("orders", b"two", partition=0)
        records = aiter(consumer)
        record = await anext(records)
        saw.append(record.value)
        with rtobs.consume("orders", record):
            consumer.seek(Place("orders", 0), record.offset)
        record = await anext(records)
        saw.append(record.value)

        async def fails() -> None:
            with rtobs.consume("orders", record):
                await consumer.commit()
                raise HostError("two")

        await awaited(saw, fails)
        await producer.send("orders", b"three", partition=0)
        record = await consumer.getone()
        with rtobs.consume("orders", record):
            saw.append(record.value)
        saw.append(await consumer.getmany(timeout_ms=1))
        return saw


class Confluent(Drive):
    """confluent-kafka on its own mock cluster: sends with their reports, polls, commits, a record sought again."""

    name = "confluent_kafka"

    def __init__(self, address: str, unique: Callable[[str], str]) -> None:
        self._address, self._unique = address, unique

    async def open(self) -> None:
        self._topic = self._unique("drive")
        self._producer: Any = confluent_kafka.Producer({"bootstrap.servers": self._address, "linger.ms": 0})
        self._consumer: Any = confluent_kafka.Consumer({
            "bootstrap.servers": self._address, "group.id": "drive", "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest", "fetch.wait.max.ms": 5,
        })  # fmt: skip
        self._consumer.assign([confluent_kafka.TopicPartition(self._topic, 0, 0)])
        if self.wrapped:
            self._producer, self._consumer = rtobs.wrap(self._producer), rtobs.wrap(self._consumer)

    def _sent(self, saw: Saw, body: bytes, **options: Any) -> None:
        reported: Saw = []
        self._producer.produce(
            self._topic, body, partition=0, on_delivery=lambda error, _: reported.append(error), **options
        )
        self._producer.flush(scaled(10))
        saw += reported

    def _next(self) -> Any:
        for _ in range(200):
            found = self._consumer.poll(0.05)
            if found is not None:
                return found
        raise AssertionError("nothing came")

    async def run(self) -> Saw:
        saw: Saw = []
        consumer = self._consumer
        with rtobs.accept("/orders"):
            self._sent(saw, b"one", headers=MINE)
        message = self._next()
        saw.append((message.value(), _shop(message.headers())))
        place = confluent_kafka.TopicPartition(self._topic, 0, message.offset())
        with rtobs.consume("orders", message):
            consumer.seek(place)
        message = self._next()
        with rtobs.consume("orders", message):
            saw.append(message.value())
            consumer.commit(message=message, asynchronous=False)
        self._sent(saw, b"two")
        (message,) = consumer.consume(1, scaled(10))

        def fails() -> None:
            with rtobs.consume("orders", message):
                consumer.store_offsets(message)
                raise HostError("two")

        attempted(saw, fails)
        return saw

    async def close(self) -> None:
        self._producer.purge()  # of what a fault has kept from leaving; its hop ends here and in no later run
        self._producer.flush(scaled(1))
        self._consumer.close()


# MQTT ----------------------------------------------------------------------------------------------------------------


class PahoDrive(Drive):
    """paho: sends of each quality, callbacks, one of which raises; its loop is run by the program."""

    def __init__(self, name: str, url: str, protocol: int, unique: Callable[[str], str]) -> None:
        self.name, self._url, self._protocol = name, urlsplit(url), protocol
        self._topic = unique("drive")
        self._came: Saw = []

    async def open(self) -> None:
        client = self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=self._protocol)
        client.suppress_exceptions = True
        if self.wrapped:
            rtobs.wrap(client, trust="trusted", envelope=self._protocol == V3)
        ready: Saw = []
        client.on_connect = lambda *_: ready.append("connected")
        client.on_subscribe = lambda *_: ready.append("subscribed")
        client.connect(self._url.hostname, self._url.port)
        self._until(lambda: ready)
        client.subscribe(f"{self._topic}/#", 1)
        self._until(lambda: len(ready) > 1)

        def came(_client: Any, _userdata: Any, message: Any) -> None:
            self._came.append((message.payload, message.topic.rpartition("/")[2]))
            if message.payload == b"raises":
                raise HostError("callback")

        client.on_message = came

    def _until(self, done: Callable[[], Any]) -> None:
        for _ in range(2000):
            if done():
                return
            self._client.loop(0.01)
        raise AssertionError("nothing came")

    async def run(self) -> Saw:
        self._came.clear()
        saw: Saw = []
        properties = None if self._protocol == V3 else user_properties(("x-shop", "7"))
        for qos, body in ((0, b"one"), (1, b"two"), (1, b"raises")):
            with rtobs.publish("orders"):
                info = self._client.publish(f"{self._topic}/{qos}", body, qos, properties=properties)
            self._until(lambda body=body, info=info: info.is_published() and any(body in each for each in self._came))
            saw.append(info.rc)
        return saw + self._came

    async def close(self) -> None:
        self._client.disconnect()
        self._client._reset_sockets()


# RabbitMQ by pika ----------------------------------------------------------------------------------------------------


class PikaDrive(Drive):
    """pika's blocking connection: sends, gets, the generator, callbacks, every settlement."""

    name = "pika"

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self._url, self._unique = url, unique

    async def open(self) -> None:
        self._rabbit = Rabbit(self._url, self._unique)
        self._channel = self._rabbit.channel(wrapped=self.wrapped)
        self._queue, self._called, self._each = (self._rabbit.queue(self._channel, name) for name in ("a", "b", "c"))
        self._handled: Saw = []

        @rtobs.deliver("push", "fcm")
        def deliver(body: bytes) -> bytes:
            return body

        def handle(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            self._handled.append(deliver(body))
            channel.basic_ack(method.delivery_tag)

        self._channel.basic_consume(self._called, handle)

    async def run(self) -> Saw:
        channel = self._channel
        saw: Saw = []
        self._handled.clear()
        with rtobs.accept("/orders"):
            channel.basic_publish("", self._queue, b"one", pika.BasicProperties(headers={"x-shop": "Zürich"}))
        for how in ("nack", "reject", "ack"):
            native = fetched(channel, self._queue)
            saw.append((native[2], native[1].headers["x-shop"]))
            with rtobs.consume("orders", native):
                getattr(channel, f"basic_{how}")(native[0].delivery_tag)
        channel.basic_publish("", self._each, b"two")
        for native in channel.consume(self._each):
            saw.append(native[2])
            channel.basic_ack(native[0].delivery_tag)
            break
        channel.cancel()
        with rtobs.publish("called"):
            channel.basic_publish("", self._called, b"three")
        for _ in range(500):
            if self._handled:
                break
            channel.connection.process_data_events(0.01)
        return saw + self._handled

    async def close(self) -> None:
        self._rabbit.close()


# Frameworks ----------------------------------------------------------------------------------------------------------


class CeleryDrive(Drive):
    """Celery: tasks are sent, taken from a broker in memory, and run by Celery's own tracer, well and badly."""

    name = "celery"
    _numbers = itertools.count()

    async def open(self) -> None:
        self._queue = f"rtobs-test-celery-{next(self._numbers)}-drive"
        self._app = app = Celery(self._queue, broker="memory://", set_as_current=False)
        if self.wrapped:
            rtobs.wrap(app)
        app.conf.update(task_default_queue=self._queue, task_ignore_result=True)
        self._ran: Saw = []

        @app.task(name="plain", shared=False, bind=True, max_retries=3)
        def plain(task: Any, number: int) -> None:
            self._ran.append(("ran", number))
            if number == 2:
                raise HostError("two")
            if number == 3 and not task.request.retries:
                raise task.retry(exc=HostError("three"), countdown=0)

        self._task = plain
        self._tracer = build_tracer("plain", plain, app=app)
        self._waiting = app.connection_for_read().SimpleQueue(self._queue)

    async def run(self) -> Saw:
        self._ran.clear()
        saw: Saw = []
        for number in (1, 2, 3):
            with rtobs.accept("/orders"):
                sent = self._task.apply_async((number,), headers={"x-shop": "7"}, task_id=str(uuid.uuid4()))
                saw.append(type(sent).__name__)
        for _ in range(4):
            message = self._waiting.get(timeout=scaled(5))
            args, kwargs, _embed = message.payload
            request = {**message.headers, "delivery_info": message.delivery_info, "is_eager": False,
                       "called_directly": False, "hostname": "drive"}  # fmt: skip
            found = self._tracer(message.headers["id"], args, kwargs, request)
            message.ack()
            saw.append((message.headers["x-shop"], type(found.retval), found.info and found.info.state))
        return saw + self._ran

    async def close(self) -> None:
        self._waiting.close()
        self._app.close()


class FastStreamDrive(Drive):
    """FastStream over RabbitMQ: publishers and subscribers, one of which fails."""

    name = "faststream"

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self._url, self._unique = url, unique

    async def open(self) -> None:
        self._broker: Any = RabbitBroker(self._url, logger=None)
        if self.wrapped:
            rtobs.wrap(self._broker)
        self._queue = RabbitQueue(self._unique("drive"), auto_delete=True)
        self._handled: Saw = []
        self._came = asyncio.Event()

        @self._broker.subscriber(self._queue)
        async def handle(body: str) -> None:
            self._handled.append(body)
            self._came.set()
            if body == "two":
                raise HostError("two")

        await self._broker.start()

    async def run(self) -> Saw:
        saw: Saw = []
        self._handled.clear()
        for body in ("one", "two"):
            self._came.clear()
            with rtobs.accept("/orders"):
                saw.append(type(await self._broker.publish(body, self._queue, headers={"x-shop": "7"})))
            async with asyncio.timeout(scaled(10)):
                await self._came.wait()
            await asyncio.sleep(0.005)  # its hop ends, and nothing comes twice
        return saw + self._handled

    async def close(self) -> None:
        await self._broker.stop()
