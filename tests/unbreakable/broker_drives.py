"""Host programs over brokers: each sends, fetches, settles, iterates and takes callbacks through one wrapped client.

As those of ``drives``, which are without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aio_pika
import redis

import rtobs
from tests.integrations.mqtt_support import V3, V5, AiomqttAdapter
from tests.integrations.redis_modes import ListsAdapter, PubSubAdapter, StreamsAdapter
from tests.integrations.test_conformance_aio_pika import AioPikaAdapter
from tests.integrations.test_conformance_memory import MemoryAdapter
from tests.integrations.test_conformance_nats import CoreAdapter, JetStreamAdapter
from tests.integrations.websocket_support import WebSocketAdapter
from tests.support.timing import eventually, scaled
from tests.unbreakable import worker_drives as workers
from tests.unbreakable.client_drives import AioHttp, Requests, Sqs
from tests.unbreakable.drives import Asgi, Blocks, Drive, Functions, HostError, Http, Saw, awaited
from tests.unbreakable.web_drives import Django, Wsgi


class Broker(Drive):
    """Sends, fetches, settles, iterates and takes callbacks through one wrapped client, as far as it has them."""

    def __init__(self, name: str, adapter: Any, unique: Callable[[str], str], **has: bool) -> None:
        self.name = name
        self._adapter = adapter
        self._unique = unique
        self._has = {"nack": True, "reject": True, "iterator": True, "raising": False, **has}
        self._stop: Callable[[], Awaitable[None]] | None = None
        self._handled: Saw = []
        self._came = asyncio.Event()
        self.around: Callable[[Awaitable[None]], Awaitable[None]] = lambda work: work
        """How the work on a message that came by callback is awaited."""

    async def open(self) -> None:
        self._queue, self._called = self._unique("drive"), self._unique("called")
        self._queues = self._queue, self._called
        self._streamed = self._unique("streamed")
        for queue in (*self._queues, self._streamed):
            await self._adapter.declare(queue)
        self._client = await self._adapter.client(wrapped=self.wrapped)

        @rtobs.deliver("push", "fcm")
        async def deliver(body: bytes) -> bytes:
            await asyncio.sleep(0)  # somewhere to be cancelled
            return body

        async def handle(native: Any) -> None:
            await self.around(work(native))

        async def work(native: Any) -> None:
            body = self._adapter.body(native)
            self._handled.append(("handled", body))
            await deliver(body)
            await self._adapter.settle(native, "ack")
            self._came.set()

        self._stop = await self._adapter.callback(self._client, self._called, handle)
        self._items: AsyncIterator[Any] | None = None
        if self._has["iterator"]:
            self._items = await self._adapter.iterate(self._client, self._streamed)

    async def _fetch(self) -> Any:
        return await eventually(lambda: self._adapter.fetch(self._client, self._queue), timeout=10)

    async def run(self) -> Saw:
        saw: Saw = []
        self._handled.clear()
        self._came.clear()
        adapter, client = self._adapter, self._client
        with rtobs.accept("/orders"):
            await adapter.send(client, self._queue, b"one", {"x-shop": "Zürich"})
        native = await self._fetch()
        saw.append((adapter.body(native), adapter.headers(native).get("x-shop")))
        with rtobs.consume("orders", native):
            await adapter.settle(native, "ack")
        if self._has["nack"]:
            await adapter.send(client, self._queue, b"two")
            for how in ("nack", "ack"):
                native = await self._fetch()
                saw.append(adapter.body(native))
                with rtobs.consume("orders", native):
                    await adapter.settle(native, how)
        if self._has["reject"]:
            await adapter.send(client, self._queue, b"three")
            native = await self._fetch()
            saw.append(adapter.body(native))
            with rtobs.consume("orders", native):
                await adapter.settle(native, "reject")
        if self._items is not None:
            for body in (b"four", b"five"):
                await adapter.send(client, self._streamed, body)
                native = await anext(self._items)
                saw.append(adapter.body(native))
                await adapter.settle(native, "ack")
        await adapter.send(client, self._called, b"six")
        async with asyncio.timeout(scaled(10)):
            await self._came.wait()
        await asyncio.sleep(0.001)  # the callback's hop ends, and nothing comes twice
        return saw + self._handled

    async def close(self) -> None:
        if self._stop is not None:
            await self._stop()
        if hasattr(self._items, "aclose"):
            await self._items.aclose()
        await self._adapter.close()


class Iterated(Drive):
    """Sends through one wrapped client whose iterator brings all there is, and handles that in blocks and functions."""

    def __init__(self, name: str, adapter: Any, unique: Callable[[str], str]) -> None:
        self.name = name
        self._adapter = adapter
        self._queue = unique("drive")

    async def open(self) -> None:
        await self._adapter.declare(self._queue)
        self._client = await self._adapter.client(wrapped=self.wrapped)
        self._items = await self._adapter.iterate(self._client, self._queue)
        self._handled: Saw = []

        @rtobs.consume("orders")
        async def handle(native: Any) -> None:
            self._handled.append(("handled", self._adapter.body(native)))

        self._handle = handle

    async def run(self) -> Saw:
        adapter, client = self._adapter, self._client
        saw: Saw = []
        self._handled.clear()
        with rtobs.accept("/orders"):
            await adapter.send(client, self._queue, b"one", {"x-shop": "Zürich"})
        native = await anext(self._items)
        saw.append(adapter.body(native))
        with rtobs.consume("orders", native):
            await asyncio.sleep(0)
        for body in (b"two", b"three"):  # the first is taken by no hop
            with rtobs.publish("orders"):
                await adapter.send(client, self._queue, body)
            native = await anext(self._items)
            saw.append(adapter.body(native))
        await self._handle(native)
        await asyncio.sleep(0.001)  # and nothing comes twice
        return saw + self._handled

    async def close(self) -> None:
        await self._adapter.close()


class AioPika(Broker):
    """What only aio-pika has besides: its own ``process()``, and a message that no queue takes."""

    async def run(self) -> Saw:
        saw = await super().run()
        adapter, client = self._adapter, self._client
        await adapter.send(client, self._queue, b"seven")
        native = await self._fetch()
        async with native.process():
            saw.append(native.body)
        await adapter.send(client, self._queue, b"eight")
        native = await self._fetch()

        async def fails() -> None:
            async with native.process(requeue=False):
                raise HostError("eight")

        await awaited(saw, fails)
        exchange = (await adapter._channel(client)).default_exchange
        saw.append(type(await exchange.publish(aio_pika.Message(b"nine"), f"{self._queue}-nowhere", mandatory=True)))
        return saw


class Redis(Broker):
    """What only Redis has besides: pipelines, transactions, a push that finds no list, a sync client."""

    async def open(self) -> None:
        self._sync = rtobs.wrap(redis.Redis.from_url(self._adapter._url), envelope=True)
        await super().open()

    async def run(self) -> Saw:
        saw = await super().run()
        client, name = self._client, f"{self._queue}-pipeline"
        pipeline = client.pipeline(transaction=True)
        pipeline.rpush(name, b"seven", b"eight")
        pipeline.lpop(name)
        pipeline.publish(name, b"nine")
        pipeline.set(f"{name}-plain", b"1", ex=60)
        saw += await pipeline.execute()
        saw.append(await client.rpushx(f"{name}-none", b"ten"))
        saw.append(await client.lmove(name, f"{name}-moved"))
        saw.append(await client.lrem(f"{name}-moved", 1, b"eight"))
        saw += [self._sync.rpush(name, b"eleven"), self._sync.lpop(name)]
        with self._sync.pipeline(transaction=False) as queue:
            saw += queue.rpush(name, b"twelve").lpop(name).delete(name, f"{name}-moved").execute()
        return saw

    async def close(self) -> None:
        self._sync.close()
        await super().close()


class JetStream(Broker):
    """What only NATS has besides: a send that is confirmed later, a request that is answered."""

    async def open(self) -> None:
        await super().open()

        async def answer(message: Any) -> None:
            await message.respond(b"answer")

        await self._client.subscribe(f"{self._queue}-ask", cb=answer)

    async def run(self) -> Saw:
        saw = await super().run()
        confirmed = await self._client.jetstream().publish_async(self._queue, b"seven")
        await confirmed
        native = await self._fetch()
        saw.append(native.data)
        await native.in_progress()
        await native.ack_sync()
        saw.append((await self._client.request(f"{self._queue}-ask", b"eight", timeout=2)).data)
        return saw


def drives(  # noqa: PLR0917  an address each
    unique: Callable[[str], str], amqp_url: str, redis_url: str, nats_url: str, mqtt_url: str, kafka_address: str
) -> dict[str, Callable[[], Drive]]:
    """Return a maker of each program by its name."""
    return {
        "blocks": Blocks,
        "functions": Functions,
        "memory": lambda: Broker("memory", MemoryAdapter(), unique, raising=True),
        "aio_pika": lambda: AioPika("aio_pika", AioPikaAdapter(amqp_url), unique, iterator=True),
        "redis streams": lambda: Broker(
            "redis streams", StreamsAdapter(redis_url), unique, nack=False, reject=False, iterator=True
        ),
        "redis lists": lambda: Redis("redis lists", ListsAdapter(redis_url), unique, nack=False, reject=False),
        "redis pubsub": lambda: Broker("redis pubsub", PubSubAdapter(redis_url), unique, nack=False, reject=False),
        "nats": lambda: Broker("nats", CoreAdapter(nats_url), unique, nack=False, reject=False),
        "jetstream": lambda: JetStream("jetstream", JetStreamAdapter(nats_url), unique, reject=False),
        "aiomqtt": lambda: Iterated("aiomqtt", AiomqttAdapter(mqtt_url, V5), unique),
        "aiomqtt 3.1.1": lambda: Iterated("aiomqtt 3.1.1", AiomqttAdapter(mqtt_url, V3), unique),
        "websockets": lambda: Iterated("websockets", WebSocketAdapter(), unique),
        "httpx": Http,
        "asgi": Asgi,
        "aiohttp": AioHttp,
        "requests": Requests,
        "sqs": Sqs,
        "kafka": workers.KafkaPython,
        "aiokafka": workers.AioKafka,
        "confluent_kafka": lambda: workers.Confluent(kafka_address, unique),
        "paho": lambda: workers.PahoDrive("paho", mqtt_url, V5, unique),
        "paho 3.1.1": lambda: workers.PahoDrive("paho 3.1.1", mqtt_url, V3, unique),
        "pika": lambda: workers.PikaDrive(amqp_url, unique),
        "celery": workers.CeleryDrive,
        "faststream": lambda: workers.FastStreamDrive(amqp_url, unique),
        "wsgi": Wsgi,
        "django": Django,
    }
