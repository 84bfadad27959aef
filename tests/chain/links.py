"""One process of the chain HTTP -> RabbitMQ -> Redis Streams -> NATS; run as a program by test_chain.py.

    python links.py api|router|relay|connector COUNT NAME

Each reads the addresses of its brokers from the environment, prints a line when it is ready, works until its input is
closed, and then prints its books: between which two moments it sent each message on, and between which two its handler
began. The moments are of the machine's monotonic clock, which all processes share and which rtobs does not use for what
it tells of more than one process. Of each pair one is just before and one just after what rtobs does, so that they are
apart by a fraction of a millisecond, and by more only where the machine let the process wait right there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import aio_pika
import nats
import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import rtobs
from tests.support import brokers
from tests.support.http import serving
from tests.support.timing import eventually, scaled

EVERY = 20
REST = 0.06
"""Each consumer rests for so many seconds after every 20th message, so that the others wait for it."""

Moments = tuple[int, int]
"""Something happened between these two; nanoseconds."""

begun: dict[int, Moments] = {}
"""When the handler of a message began, by its number."""
sent: dict[int, Moments] = {}
"""When a message was sent on."""


async def until_closed() -> None:
    """Work on until the input is closed."""
    await asyncio.to_thread(sys.stdin.read)


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Sending:
    """``await Sending(number, call)`` is awaiting the call, and notes between which moments it got to the client."""

    def __init__(self, number: int, call: Awaitable[Any]) -> None:
        self._number = number
        self._call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._call.__await__()
        before = time.monotonic_ns()
        try:
            waits_for = next(steps)  # up to where it first waits for the broker
        except StopIteration as end:
            sent[self._number] = before, time.monotonic_ns()
            return end.value
        sent[self._number] = before, time.monotonic_ns()
        yield waits_for
        return (yield from steps)


def begins(number: int, before: int) -> None:
    """Note that the handler of a message began, after the moment *before* it."""
    begun[number] = before, time.monotonic_ns()


async def rest(number: int) -> None:
    if number % EVERY == 0:
        await asyncio.sleep(scaled(REST))


# The four processes --------------------------------------------------------------------------------------------------


async def api(_count: int, name: str) -> None:
    """Take messages in by HTTP, and send them to RabbitMQ."""
    connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
    exchange = (await connection.channel()).default_exchange

    async def take(request: Request) -> PlainTextResponse:
        number = int(await request.body())
        hop = rtobs.current()
        hop.segment(tenant="acme", region="eu")
        hop.intend("webhook", number)
        await Sending(number, exchange.publish(aio_pika.Message(str(number).encode()), name))
        return PlainTextResponse(hop.correlation_id)

    app = Starlette(routes=[Route("/orders", take, methods=["POST"])])
    app.add_middleware(rtobs.integrations.asgi.Middleware)
    async with connection, serving(app) as url:
        tell(ready=url)
        await until_closed()


async def router(_count: int, name: str) -> None:
    """Take messages from RabbitMQ, and add them to a Redis stream."""
    stream = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
    connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=10)
    queue = await channel.get_queue(name)

    async def work() -> None:
        async with queue.iterator() as messages:
            async for message in messages:
                number, before = int(message.body), time.monotonic_ns()
                async with message.process():
                    begins(number, before)
                    await Sending(number, stream.xadd(name, {"number": number}))
                    await rest(number)

    await _while_working(work)
    await connection.close()
    await stream.aclose()


async def relay(_count: int, name: str) -> None:
    """Take messages from the stream in batches; the even ones go to JetStream, the odd ones to core NATS."""
    stream = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
    client = rtobs.wrap(await nats.connect(brokers.NATS.url))
    context = client.jetstream()

    async def work() -> None:
        while True:
            for _, entries in await stream.xreadgroup("relays", "one", {name: ">"}, count=10, block=1000) or ():
                for entry_id, fields in entries:
                    number, before = int(fields[b"number"]), time.monotonic_ns()
                    with rtobs.consume("orders", (entry_id, fields)):
                        begins(number, before)
                        payload = str(number).encode()
                        if number % 2:
                            await Sending(number, client.publish(f"{name}-core", payload))
                        else:
                            await Sending(number, context.publish(name, payload))
                        await stream.xack(name, "relays", entry_id)
                        await rest(number)

    await _while_working(work)
    await client.close()
    await stream.aclose()


async def connector(count: int, name: str) -> None:
    """Take messages from JetStream by a pull consumer, from core NATS by an iterator, and deliver them; begin late."""
    client = rtobs.wrap(await nats.connect(brokers.NATS.url))
    context = client.jetstream()
    pull = await context.pull_subscribe(name, "connectors")
    subscription = await client.subscribe(f"{name}-core")
    await client.flush()
    done = asyncio.Event()

    @rtobs.deliver("webhook", "crm")
    async def deliver(_number: int) -> None:
        await asyncio.sleep(0)

    async def handle_all(messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            number, before = int(message.data), time.monotonic_ns()
            with rtobs.consume("orders", message):
                begins(number, before)
                await deliver(number)
                if message.reply:
                    await message.ack()
                await rest(number // 2 * 2)  # of either kind half of the numbers come
            if len(begun) == count:
                done.set()

    async def tell_when_done() -> None:
        await done.wait()
        tell(done=len(begun))

    async def half_are_there() -> bool:
        return (await context.stream_info(name)).state.messages >= count // 4  # the other half is not in a stream

    async def work() -> None:
        await eventually(half_are_there, 60)
        await asyncio.gather(handle_all(_fetched(pull)), handle_all(subscription.messages), tell_when_done())

    await _while_working(work)
    await client.close()


async def _fetched(pull: Any) -> AsyncIterator[Any]:
    while True:
        with contextlib.suppress(TimeoutError):
            for message in await pull.fetch(10, timeout=1):
                yield message


async def _while_working(work: Callable[[], Awaitable[None]]) -> None:
    """Do *work* until the input is closed; if it fails before, this process ends."""
    working = asyncio.ensure_future(_work_or_end(work))
    tell(ready=True)
    await until_closed()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def _work_or_end(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:  # noqa: BLE001  it is told, and the test sees that nobody is there any more
        traceback.print_exc()
        os._exit(1)


LINKS = {"api": api, "router": router, "relay": relay, "connector": connector}


def main(link: str, count: str, name: str) -> None:
    rtobs.configure(service=link)
    asyncio.run(LINKS[link](int(count), name))
    tell(begun=begun, sent=sent, flushed=rtobs.shutdown())


if __name__ == "__main__":
    main(*sys.argv[1:])
