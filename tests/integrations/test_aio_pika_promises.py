"""Promises over many messages and over two processes, through aio-pika on a live RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest

import rtobs
from rtobs import _conventions as names
from rtobs._journey.journey import intent_id
from tests.integrations.rabbit import Rabbit, arguments, ends, fetched, processed, promised


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


@rtobs.deliver("webhook", "crm")
async def deliver(answer: int | BaseException) -> httpx.Response:
    if isinstance(answer, BaseException):
        raise answer
    return httpx.Response(answer)


async def test_intents_are_outcomes_plus_what_is_open(rabbit, telemetry):
    """Over 60 messages that end in different ways after different numbers of tries, every promise ends at most once."""
    channel = await rabbit.channel(dead_letter=rabbit.name("dead"))
    await channel.set_qos(prefetch_count=8)
    queue = await channel.declare_queue(rabbit.name("mixed"), arguments=arguments())
    tries: dict[bytes, int] = {}
    over = asyncio.Event()
    done = 0

    async def handle(message: Any) -> None:
        nonlocal done
        number = int(message.body)
        tries[message.body] = tries.get(message.body, 0) + 1
        if tries[message.body] <= number % 3:
            with contextlib.suppress(ConnectionResetError):
                await deliver(ConnectionResetError())
            await message.nack()
            return
        how = number % 4
        if how == 0:
            await deliver(200)
            await message.ack()
        elif how == 1:
            await deliver(422)
            await message.ack()
        elif how == 2:
            await deliver(500)
            await message.reject()
        else:  # stays open: its worker is cancelled
            await message.ack()
            with contextlib.suppress(asyncio.CancelledError):
                await deliver(asyncio.CancelledError())
        done += 1
        if done == 60:
            over.set()

    await queue.consume(handle)
    for number in range(60):
        await promised(channel, queue.name, b"%d" % number)
    await asyncio.wait_for(over.wait(), 20)
    await processed(telemetry, sum(tries.values()))
    assert ends(telemetry) == {"ok": 15, "rejected": 15, "dead_lettered": 15}
    assert telemetry.count(names.INTENTS) == 60
    assert telemetry.count(names.ATTEMPTS) == sum(tries.values()) == 120
    assert telemetry.by(names.OUTCOMES, "tenant") == {"acme": 45}


# Two processes -------------------------------------------------------------------------------------------------------

PROMISING = """
import asyncio, json, sys
import aio_pika
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import rtobs
from rtobs import _config
from rtobs import _conventions as names

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
rtobs.configure(strict=True)

async def main(url, queue):
    async with rtobs.wrap(await aio_pika.connect(url)) as connection:
        channel = await connection.channel()
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant="acme")
            for key in ("7", "8"):
                hop.intend("webhook", key)
                with rtobs.publish("orders", channel="webhook", key=key):
                    await channel.default_exchange.publish(aio_pika.Message(key.encode()), queue)
    snapshots = {found.instrument.name: found for found in _config._bound.registry.collect()}
    sent = [span for span in exporter.get_finished_spans() if span.attributes["rtobs.hop"] == "publish"]
    print(json.dumps({
        "correlation_id": hop.correlation_id,
        "ids": [span.attributes["rtobs.intent_id"] for span in sent],
        "intents": sum(point.value for point in snapshots[names.INTENTS.name].points),
    }))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_agree_on_what_was_promised(rabbit, telemetry):
    """The process that delivers sees the intent ids that the promising one computed, and promises nothing itself."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", PROMISING, rabbit.url, queue.name],
        capture_output=True, text=True, env=environment, timeout=40, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    promise = json.loads(done.stdout)
    assert promise["intents"] == 2
    seen = []
    for key in ("7", "8"):
        async with (await fetched(queue)).process():
            assert rtobs.current().correlation_id == promise["correlation_id"]
            await deliver(200)
        seen.append(telemetry.spans("consume")[-1].attributes["rtobs.intent_id"])
        assert seen[-1] == intent_id(promise["correlation_id"], "webhook", key)
    assert seen == promise["ids"]
    assert telemetry.count(names.INTENTS) == 0
    assert telemetry.by(names.OUTCOMES, "outcome", "tenant") == {("ok", "acme"): 2}
