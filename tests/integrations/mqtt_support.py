"""Drives paho-mqtt and aiomqtt for the conformance suite, MQTT 5 and 3.1.1, and what their own tests share.

Each client is subscribed to a queue's topic as soon as both are there: a topic keeps nothing for later.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import math
import queue as queues
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import rtobs
from rtobs._hop import leaf
from tests.integrations.adapter import Handler, How
from tests.support.timing import scaled

SENDERS = 8
V5, V3 = mqtt.MQTTv5, mqtt.MQTTv311


def user_properties(*pairs: tuple[str, str], **others: Any) -> Properties:
    """Return the properties of a message to be published: user properties, and others by their names."""
    found = Properties(PacketTypes.PUBLISH)
    if pairs:
        found.UserProperty = list(pairs)
    for name, value in others.items():
        setattr(found, name, value)
    return found


def pairs_of(native: Any) -> list[tuple[str, str]]:
    """Return the user properties of a message that has come."""
    return list(getattr(native.properties, "UserProperty", ()))


class Done:
    """Something to await, or not."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class MqttAdapter:
    """What the clients share."""

    system = "mqtt"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = False

    def __init__(self, url: str, protocol: int) -> None:
        self._url = urlsplit(url)
        self._protocol = protocol
        self._options = {"trust": "trusted", "envelope": protocol != V5}
        self._clients: list[Any] = []
        self._topics: list[str] = []

    def body(self, native: Any) -> bytes:
        return native.payload

    def headers(self, native: Any) -> dict[str, Any]:
        known = leaf.known(native)
        return dict((known.headers or {}) if known is not None else pairs_of(native))

    def settle(self, native: Any, how: How) -> Any:
        """There is nothing to settle."""
        return Done()

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        client.before_send = hook


class HeldUp(mqtt.Client):
    """A client of the user's own class; its sends can be held up, as a slow network does."""

    before_send: Callable[[], Coroutine[Any, Any, None]] | None = None
    loop: asyncio.AbstractEventLoop

    def publish(self, *args: Any, **options: Any) -> mqtt.MQTTMessageInfo:
        if self.before_send is not None:
            asyncio.run_coroutine_threadsafe(self.before_send(), self.loop).result(scaled(30))
        return super().publish(*args, **options)


class PahoAdapter(MqttAdapter):
    """Messages of QoS 1 in a session that outlives its connections, acknowledged by hand."""

    def __init__(self, url: str, protocol: int) -> None:
        super().__init__(url, protocol)
        self._came: dict[int, HeldUp] = {}
        self._pool = ThreadPoolExecutor(SENDERS)
        everybody = threading.Barrier(SENDERS)  # all threads are there from now on: tests count objects
        list(self._pool.map(lambda _: everybody.wait(), range(SENDERS)))

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUp:
        v5 = self._protocol == V5
        name = f"rtobs-{id(self)}-{len(self._clients)}"
        client = HeldUp(
            mqtt.CallbackAPIVersion.VERSION2, name, protocol=self._protocol, manual_ack=True,
            clean_session=None if v5 else False,
        )  # fmt: skip
        client.loop = asyncio.get_running_loop()
        client.inbox = queues.SimpleQueue()
        client.max_inflight_messages_set(0)
        if wrapped:
            rtobs.wrap(client, **{**self._options, **options})
        properties = None
        if v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600
        ready = asyncio.Event()
        client.on_connect = lambda *_: client.loop.call_soon_threadsafe(ready.set)
        client.connect(self._url.hostname, self._url.port, properties=properties)
        client.loop_start()
        await asyncio.wait_for(ready.wait(), scaled(10))

        @rtobs.integrations.hands_over
        def put(client: HeldUp, _userdata: object, message: mqtt.MQTTMessage) -> None:
            self._came[id(message)] = client
            client.inbox.put(message)

        client.on_message = put
        self._clients.append(client)
        for topic in self._topics:
            await self._subscribe(client, topic)
        return client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._topics.append(queue)
        for client in self._clients:
            await self._subscribe(client, queue)

    async def _subscribe(self, client: HeldUp, topic: str) -> None:
        subscribed = asyncio.Event()
        client.on_subscribe = lambda *_: client.loop.call_soon_threadsafe(subscribed.set)
        client.subscribe(topic, 1)
        await asyncio.wait_for(subscribed.wait(), scaled(10))

    async def send(self, client: HeldUp, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        properties = user_properties(*headers.items()) if headers else None

        def publish() -> mqtt.MQTTMessageInfo:
            info = client.publish(queue, body, 1, properties=properties)
            info.wait_for_publish(scaled(10))
            return info

        return await client.loop.run_in_executor(self._pool, contextvars.copy_context().run, publish)

    async def callback(
        self, client: HeldUp, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Let the client call on its thread; a coroutine of the handler's works on the event loop, in its context."""

        @functools.wraps(handler)
        def on_message(_client: HeldUp, _userdata: object, message: mqtt.MQTTMessage) -> None:
            self._came[id(message)] = client
            if inspect.iscoroutinefunction(handler):
                self._wait(client, handler(message))
                return
            result = handler(message)
            if inspect.isawaitable(result):
                self._wait(client, result)

        client.message_callback_add(queue, on_message)

        async def stop() -> None:
            client.message_callback_remove(queue)

        return stop

    def _wait(self, client: HeldUp, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, client.loop).result(scaled(30))

    async def iterate(self, client: HeldUp, queue: str) -> AsyncIterator[Any]:
        async def items() -> AsyncIterator[Any]:
            while True:
                message = await self.fetch(client, queue)
                if message is None:
                    await asyncio.sleep(0.001)
                    continue
                yield message

        return items()

    async def fetch(self, client: HeldUp, queue: str) -> Any:
        """Take what the callback has handed over."""
        try:
            return client.inbox.get_nowait()
        except queues.Empty:
            return None

    async def settle(self, native: Any, how: How) -> Any:
        return self._came.pop(id(native), self._clients[0]).ack(native.mid, native.qos)

    async def close(self) -> None:
        self._pool.shutdown()
        for client in self._clients:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)
            client._reset_sockets()  # the client leaves that to its end, which the collector may put after theirs
            again = mqtt.Client(
                mqtt.CallbackAPIVersion.VERSION2, client._client_id.decode(), protocol=self._protocol,
                clean_session=None if self._protocol == V5 else True,
            )  # fmt: skip
            again.connect(self._url.hostname, self._url.port)  # with a clean start: the broker forgets the session
            again.disconnect()
            again._reset_sockets()


class HeldUpAio(aiomqtt.Client):
    """As above."""

    before_send: Callable[[], Awaitable[None]] | None = None

    async def publish(self, *args: Any, **options: Any) -> None:
        if self.before_send is not None:
            await self.before_send()
        await super().publish(*args, **options)


class AiomqttAdapter(MqttAdapter):
    """Messages by the client's iterator; what stands for a callback is a worker's loop over it."""

    def __init__(self, url: str, protocol: int) -> None:
        super().__init__(url, protocol)
        self._tasks: set[asyncio.Task[None]] = set()

    async def client(self, *, wrapped: bool = True, **options: Any) -> HeldUpAio:
        client = HeldUpAio(
            self._url.hostname,
            self._url.port,
            protocol=aiomqtt.ProtocolVersion(self._protocol),
            max_inflight_messages=0,
        )
        client.pending_calls_threshold = 10_000
        if wrapped:
            rtobs.wrap(client, **{**self._options, **options})
        await client.__aenter__()
        self._clients.append(client)
        for topic in self._topics:
            await client.subscribe(topic, 1)
        return client

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        self._topics.append(queue)
        for client in self._clients:
            await client.subscribe(queue, 1)

    async def send(self, client: HeldUpAio, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        properties = user_properties(*headers.items()) if headers else None
        # Without a limit: asyncio keeps cancelled timers for a while, and with each the context of its send.
        return await client.publish(queue, body, 1, properties=properties, timeout=math.inf)

    async def callback(
        self, client: HeldUpAio, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Iterate as a worker does, and handle each message in a task of its own, in a hop."""

        async def one(native: Any) -> None:
            decorated = hasattr(handler, "__rtobs_consume__")
            hop = contextlib.nullcontext() if decorated else rtobs.consume(queue, native)
            with contextlib.suppress(asyncio.CancelledError), hop:
                result = handler(native)
                if inspect.isawaitable(result):
                    await result

        async def loop() -> None:
            async for native in client.messages:
                self._spawn(one(native))

        task = self._spawn(loop())

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        return stop

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def iterate(self, client: HeldUpAio, queue: str) -> AsyncIterator[Any]:
        return client.messages

    async def fetch(self, client: HeldUpAio, queue: str) -> Any:
        return await anext(client.messages) if len(client.messages) else None

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.__aexit__(None, None, None)


class Paho:
    """One test's use of a broker by paho: clients that go away again."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._clients: list[mqtt.Client] = []

    def client(
        self, *topics: Any, protocol: int = V5, wrapped: bool = True, of: type[mqtt.Client] = mqtt.Client,
        name: str = "", session: int = 0, connection: dict[str, Any] | None = None,
        on_message: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Return a client, through `rtobs.wrap` with *options* if *wrapped*, connected and subscribed to *topics*.

        *session*: seconds that its session outlives a connection; *connection*: options of the client's own.
        """
        client = of(mqtt.CallbackAPIVersion.VERSION2, name, protocol=protocol, **(connection or {}))
        if wrapped:
            rtobs.wrap(client, **options)
        properties = None
        if session:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = session
        connected, subscribed = threading.Event(), threading.Event()
        client.on_connect = lambda *_: connected.set()
        client.on_subscribe = lambda *_: subscribed.set()
        if on_message is not None:
            client.on_message = on_message
        start = mqtt.MQTT_CLEAN_START_FIRST_ONLY if protocol != V5 else not session
        client.connect(self._url.hostname, self._url.port, clean_start=start, properties=properties)
        client.loop_start()
        self._clients.append(client)
        assert connected.wait(scaled(10))
        for topic in topics:
            subscribed.clear()
            client.subscribe(topic, 0 if isinstance(topic, tuple) else 1)
            assert subscribed.wait(scaled(10))
        return client

    def close(self) -> None:
        """Disconnect all."""
        for client in self._clients:
            client.disconnect()
            client.loop_stop()
            client._reset_sockets()  # as above


def published(
    client: mqtt.Client, topic: str, payload: Any = b"x", qos: int = 1, **options: Any
) -> mqtt.MQTTMessageInfo:
    """Publish one message and wait until the broker has it."""
    info = client.publish(topic, payload, qos, **options)
    info.wait_for_publish(scaled(10))
    return info
