"""One process of the way HTTP -> RabbitMQ -> Kafka -> Redis -> NATS -> MQTT -> SQS -> Celery -> webhook.

    python -m tests.chain.stations STATION NAME HOW

Each takes messages from its own transport and sends them on by the next; run as a program by test_nine.py. HOW is
``trusted`` (MQTT's broker and the webhook's callers are ours) or ``default``. The environment has all addresses. A
station prints a line when it is ready, works until its input is closed, and flushes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import rtobs
from rtobs.integrations import asgi
from tests.support import brokers
from tests.support.http import serving

KAFKA, WEBHOOK = "CHAIN_KAFKA", "CHAIN_WEBHOOK"
"""Variables with addresses that are not those of ``brokers``."""

GROUP = "stations"

Send = Callable[[bytes], Awaitable[Any]]
Station = Callable[["Way"], Awaitable[None]]


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Way:
    """What a station knows of the way: the name of all queues, and whom to trust."""

    def __init__(self, name: str, how: str, stack: AsyncExitStack) -> None:
        self.name = name
        self.trust: Any = {"trust": "trusted"} if how == "trusted" else {}
        self.stack = stack


# Sending -------------------------------------------------------------------------------------------------------------


async def to_rabbitmq(way: Way) -> Send:
    import aio_pika

    connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
    await way.stack.enter_async_context(connection)
    exchange = (await connection.channel()).default_exchange
    return lambda body: exchange.publish(aio_pika.Message(body), way.name)


async def to_kafka(way: Way) -> Send:
    from aiokafka import AIOKafkaProducer

    producer = rtobs.wrap(AIOKafkaProducer(bootstrap_servers=os.environ[KAFKA]))
    await way.stack.enter_async_context(producer)
    return lambda body: producer.send_and_wait(way.name, body)


async def to_redis(way: Way) -> Send:
    import redis.asyncio

    client = rtobs.wrap(redis.asyncio.Redis.from_url(brokers.REDIS.url))
    way.stack.push_async_callback(client.aclose)
    return lambda body: client.xadd(way.name, {"body": body})


async def to_nats(way: Way) -> Send:
    import nats

    client = rtobs.wrap(await nats.connect(brokers.NATS.url))
    way.stack.push_async_callback(client.close)
    return lambda body: client.publish(way.name, body)


async def to_mqtt(way: Way) -> Send:
    client = await way.stack.enter_async_context(_mqtt(way))
    return lambda body: client.publish(way.name, body, qos=1)


def _mqtt(way: Way) -> Any:
    import aiomqtt

    address = urlsplit(brokers.MQTT.url)
    version = aiomqtt.ProtocolVersion.V5
    return rtobs.wrap(aiomqtt.Client(str(address.hostname), address.port or 1883, protocol=version), **way.trust)


async def to_sqs(way: Way) -> Send:
    sqs, queue = _sqs(way)
    return lambda body: asyncio.to_thread(sqs.send_message, QueueUrl=queue, MessageBody=body.decode())


def _sqs(way: Way) -> tuple[Any, str]:
    import boto3

    sqs = rtobs.wrap(boto3.client("sqs"))
    return sqs, sqs.get_queue_url(QueueName=way.name)["QueueUrl"]


async def to_celery(way: Way) -> Send:
    app = _celery(way)
    return lambda body: asyncio.to_thread(app.send_task, "stations.post", (body.decode(),))


def _celery(way: Way) -> Any:
    from celery import Celery

    app = Celery("stations", broker=brokers.REDIS.url, set_as_current=False)
    app.conf.update(task_default_queue=f"{way.name}-tasks", task_ignore_result=True, worker_hijack_root_logger=False)
    return rtobs.wrap(app)


# Receiving -----------------------------------------------------------------------------------------------------------


async def http(way: Way) -> None:
    """Accept requests."""
    send = await to_rabbitmq(way)

    async def take(request: Request) -> PlainTextResponse:
        hop = rtobs.current()
        hop.segment(tenant="acme", region="eu")
        hop.intend("webhook", "crm")
        await send(await request.body())
        return PlainTextResponse(hop.correlation_id)

    app = asgi.Middleware(Starlette(routes=[Route("/orders", take, methods=["POST"])]))
    tell(ready=await way.stack.enter_async_context(serving(app)))
    await asyncio.Event().wait()


async def rabbitmq(way: Way) -> None:
    import aio_pika

    send = await to_kafka(way)
    connection = rtobs.wrap(await aio_pika.connect(brokers.AMQP.url))
    await way.stack.enter_async_context(connection)
    queue = await (await connection.channel()).get_queue(way.name)
    tell(ready=True)
    async with queue.iterator() as messages:
        async for message in messages:
            async with message.process():
                await send(message.body)


async def kafka(way: Way) -> None:
    from aiokafka import AIOKafkaConsumer

    send = await to_redis(way)
    consumer = rtobs.wrap(
        AIOKafkaConsumer(
            way.name, bootstrap_servers=os.environ[KAFKA], group_id=GROUP, auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
    )  # fmt: skip
    await way.stack.enter_async_context(consumer)
    tell(ready=True)
    async for record in consumer:
        with rtobs.consume("orders", record):
            await send(record.value)
            await consumer.commit()


async def redis(way: Way) -> None:
    from redis.asyncio import Redis

    send = await to_nats(way)
    client = rtobs.wrap(Redis.from_url(brokers.REDIS.url))
    way.stack.push_async_callback(client.aclose)
    tell(ready=True)
    while True:
        for _, entries in await client.xreadgroup(GROUP, "one", {way.name: ">"}, count=1, block=500) or ():
            for entry in entries:
                with rtobs.consume("orders", entry):
                    await send(entry[1][b"body"])
                    await client.xack(way.name, GROUP, entry[0])


async def nats(way: Way) -> None:
    import nats as client_of

    send = await to_mqtt(way)
    client = rtobs.wrap(await client_of.connect(brokers.NATS.url))
    way.stack.push_async_callback(client.close)
    subscription = await client.subscribe(way.name)
    await client.flush()
    tell(ready=True)
    async for message in subscription.messages:
        with rtobs.consume("orders", message):
            await send(message.data)


async def mqtt(way: Way) -> None:
    send = await to_sqs(way)
    client = await way.stack.enter_async_context(_mqtt(way))
    await client.subscribe(way.name, qos=1)
    tell(ready=True)
    async for message in client.messages:
        with rtobs.consume("orders", message):
            await send(message.payload)


async def sqs(way: Way) -> None:
    send = await to_celery(way)
    client, queue = _sqs(way)
    tell(ready=True)
    while True:
        found = await asyncio.to_thread(client.receive_message, QueueUrl=queue, WaitTimeSeconds=1)
        for message in found.get("Messages", ()):
            with rtobs.consume("orders", message):
                await send(message["Body"].encode())
                await asyncio.to_thread(client.delete_message, QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])


async def celery(way: Way) -> None:
    from celery.contrib.testing.worker import start_worker

    app = _celery(way)
    client = rtobs.wrap(httpx.Client())

    @app.task(name="stations.post", shared=False)
    def post(body: str) -> None:
        with rtobs.deliver("webhook", "crm"):
            client.post(f"{os.environ[WEBHOOK]}/hook", content=body).raise_for_status()

    @asynccontextmanager
    async def working() -> Any:
        worker = start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL")
        await asyncio.to_thread(worker.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(worker.__exit__, None, None, None)
            client.close()

    await way.stack.enter_async_context(working())
    tell(ready=True)
    await asyncio.Event().wait()


async def webhook(way: Way) -> None:
    """The partner's: another team's, who has rtobs too."""

    async def take(request: Request) -> PlainTextResponse:
        tell(took=(await request.body()).decode(), journey=rtobs.current().correlation_id)
        return PlainTextResponse("ok")

    app = asgi.Middleware(Starlette(routes=[Route("/hook", take, methods=["POST"])]), **way.trust)
    tell(ready=await way.stack.enter_async_context(serving(app)))
    await asyncio.Event().wait()


STATIONS: dict[str, Station] = {
    "http": http, "rabbitmq": rabbitmq, "kafka": kafka, "redis": redis, "nats": nats, "mqtt": mqtt, "sqs": sqs,
    "celery": celery, "webhook": webhook,
}  # fmt: skip


async def main(station: Station, name: str, how: str) -> None:
    """Work until the input is closed."""
    async with AsyncExitStack() as stack:
        working = asyncio.ensure_future(station(Way(name, how, stack)))
        closed = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({working, closed}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            try:
                working.result()
            except Exception:  # noqa: BLE001  it is told, and the test sees that nobody is there any more
                traceback.print_exc()
            os._exit(1)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


if __name__ == "__main__":
    for theirs in ("celery", "kombu", "botocore", "aiokafka"):
        warnings.filterwarnings("ignore", module=theirs)
    rtobs.configure(service=sys.argv[1], propagate_to=["127.0.0.1"])
    asyncio.run(main(STATIONS[sys.argv[1]], sys.argv[2], sys.argv[3]))
    tell(flushed=rtobs.shutdown())
