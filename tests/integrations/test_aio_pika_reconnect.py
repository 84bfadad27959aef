"""A wrapped robust connection of aio-pika over reconnects: of the broker, the line, the channel and the consumer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity

import rtobs
from rtobs import _conventions as names
from tests.integrations.rabbit import Rabbit, SlowLine, arguments, processed, send, settled
from tests.support.telemetry import Telemetry
from tests.support.timing import eventually


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


def depth(callback: Any) -> int:
    """Return how many functions a callback wraps."""
    inner = getattr(callback, "__wrapped__", None)
    return 0 if inner is None else 1 + depth(inner)


class Handler:
    """Handles messages, and notes their bodies and journeys."""

    def __init__(self) -> None:
        self.journeys: dict[bytes, str] = {}

    async def handle(self, message: Any) -> None:
        self.journeys[message.body] = rtobs.current().correlation_id
        await message.ack()


async def send_from_hop(channel: Any, queue: str, body: bytes) -> str:
    with rtobs.accept("/orders") as hop:
        await send(channel, queue, body)
    return hop.correlation_id


def assert_two_of_each(telemetry: Telemetry) -> None:
    """Assert that two messages were sent and handled, none of them twice."""
    assert telemetry.count(names.SENT_MESSAGES, error_type="") == telemetry.count(names.CONSUMED_MESSAGES) == 2
    assert len([span for span in telemetry.spans("publish") if span.status.is_ok]) == 2
    assert len(telemetry.spans("consume")) == 2
    assert settled(telemetry) == {"ok": 2}


async def test_the_broker_may_stop_and_start(own_rabbitmq, telemetry):
    """Before and after a restart of the broker each message is one send and one handling, of callback and iterator."""
    connection = rtobs.wrap(await aio_pika.connect_robust(own_rabbitmq.url, reconnect_interval=0.1))
    channel = await connection.channel()
    exchange, handler, iterated = channel.default_exchange, Handler(), Handler()
    called = await channel.declare_queue("called", durable=True)
    looped = await channel.declare_queue("looped", durable=True)
    tag = await called.consume(handler.handle)
    kept = called._consumers[tag]["callback"]

    async def loop() -> None:
        async with looped.iterator() as iterator:
            async for message in iterator:
                async with message.process(ignore_processed=True):
                    await iterated.handle(message)

    task = asyncio.create_task(loop())
    for queue in ("called", "looped"):
        await send(channel, queue, b"before")
    await eventually(lambda: len(handler.journeys) == len(iterated.journeys) == 1)

    await asyncio.to_thread(own_rabbitmq.stop)
    sending = asyncio.create_task(send(channel, "called", b"while it is down"))
    await asyncio.to_thread(own_rabbitmq.start)
    await asyncio.wait([sending], timeout=20)
    sending.cancel()
    (lost,) = await asyncio.gather(sending, return_exceptions=True)
    await asyncio.wait_for(channel.ready(), 20)
    assert channel.default_exchange is exchange
    assert type(exchange) is not exchange.__class__
    for queue in ("called", "looped"):
        await send(channel, queue, b"after")
    await eventually(lambda: b"after" in handler.journeys and b"after" in iterated.journeys, 20)
    assert called._consumers[tag]["callback"] is kept
    assert depth(kept) == 1
    sent = telemetry.count(names.SENT_MESSAGES, error_type="")
    assert sent == 4 + (not isinstance(lost, BaseException))
    assert settled(telemetry) == {"ok": sent}
    assert len(telemetry.spans("consume")) == sent
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await connection.close()


async def test_a_broker_that_is_down_gives_the_clients_own_error(rabbit, telemetry):
    """Sending, fetching and connecting while the broker is down raise the errors that an unwrapped client raises."""
    name = rabbit.name("orders")
    found: dict[bool, list[str]] = {}
    for wrapped in (False, True):
        async with SlowLine(rabbit.url) as line:
            connection = await aio_pika.connect(line.url)
            channel = await (rtobs.wrap(connection) if wrapped else connection).channel()
            queue = await channel.declare_queue(name, arguments=arguments())
        await eventually(lambda channel=channel: channel.is_closed)
        errors = []
        connecting = functools.partial(aio_pika.connect, line.url)
        for call in (functools.partial(send, channel, name), queue.get, connecting):
            with pytest.raises((ChannelInvalidStateError, ConnectionError)) as caught:
                await call()
            errors.append(f"{type(caught.value)} {str(caught.value).partition(' at 0x')[0].partition('127.0.0.1')[0]}")
        found[wrapped] = errors
    assert found[True] == found[False]
    assert not telemetry.span("publish").status.is_ok


async def test_the_line_may_break(rabbit, telemetry):
    """After a line that broke without a word, the same channel, queue and callback go on, each message once."""
    async with SlowLine(rabbit.url) as line:
        connection = rtobs.wrap(await aio_pika.connect_robust(line.url, reconnect_interval=0.1))
        channel = await connection.channel()
        queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
        handler = Handler()
        tag = await queue.consume(handler.handle)
        expected = {b"before": await send_from_hop(channel, queue.name, b"before")}
        await processed(telemetry)
        reconnected = asyncio.Event()
        connection.reconnect_callbacks.add(lambda *_: reconnected.set())
        line.cut()
        await asyncio.wait_for(reconnected.wait(), 20)
        expected[b"after"] = await send_from_hop(channel, queue.name, b"after")
        await processed(telemetry, 2)
        assert handler.journeys == expected
        assert depth(queue._consumers[tag]["callback"]) == 1
        assert_two_of_each(telemetry)
        await connection.close()


async def test_the_channel_may_be_closed_by_the_broker(rabbit, telemetry):
    """A channel that the broker closed for a mistake is opened again by the client, and stays instrumented."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    handler = Handler()
    await queue.consume(handler.handle)
    expected = {b"before": await send_from_hop(channel, queue.name, b"before")}
    await processed(telemetry)
    reopened = asyncio.Event()
    channel.reopen_callbacks.add(lambda *_: reopened.set())
    missing = await channel.get_exchange("rtobs-test-missing", ensure=False)
    with pytest.raises(ChannelNotFoundEntity):
        await missing.publish(aio_pika.Message(b""), "key")
    await asyncio.wait_for(reopened.wait(), 10)
    expected[b"after"] = await send_from_hop(channel, queue.name, b"after")
    await processed(telemetry, 2)
    assert handler.journeys == expected
    assert_two_of_each(telemetry)


async def test_the_consumer_may_be_cancelled_by_the_broker(rabbit, telemetry):
    """A consumer whose queue was deleted under it is put back by the client with its callback wrapped once."""
    connection = rtobs.wrap(await aio_pika.connect_robust(rabbit.url, reconnect_interval=0.1))
    channel = await connection.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    handler = Handler()
    tag = await queue.consume(handler.handle)
    expected = {b"before": await send_from_hop(channel, queue.name, b"before")}
    await processed(telemetry)
    other = await rabbit.channel(wrapped=False)
    await other.queue_delete(queue.name)
    underlay = await channel.get_underlay_channel()
    await eventually(lambda: tag not in underlay.consumers)
    await eventually(lambda: tag in underlay.consumers, 10)
    expected[b"after"] = await send_from_hop(channel, queue.name, b"after")
    await processed(telemetry, 2)
    assert handler.journeys == expected
    assert depth(queue._consumers[tag]["callback"]) == 1
    assert_two_of_each(telemetry)
    await connection.close()
