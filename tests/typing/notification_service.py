"""FastAPI and RabbitMQ: a notification service, as its engineers would write it. Type-checked only."""

from __future__ import annotations

import json
from typing import Any

import aio_pika
import httpx
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from fastapi import FastAPI

import rtobs
from rtobs.integrations import asgi

rtobs.configure(service="notifications", tenants=["acme"], slow={"push": 5.0})
app = FastAPI()
app.add_middleware(asgi.Middleware)
push = rtobs.wrap(httpx.AsyncClient(base_url="https://push.example"))


class State:
    """What the process sets up when it starts."""

    exchange: AbstractExchange


state = State()


@app.post("/notify")
async def notify(body: dict[str, Any]) -> dict[str, str]:
    """Take a notification in and promise it."""
    hop = rtobs.current()
    hop.segment(tenant=body["tenant"], region="eu")
    hop.intend("push", body["user"])
    with rtobs.publish("notify.push", channel="push", key=body["user"]):
        await state.exchange.publish(aio_pika.Message(json.dumps(body).encode()), routing_key="notify.push")
    return {"id": hop.correlation_id}


@rtobs.consume("notify.push")
async def handle(message: AbstractIncomingMessage) -> None:
    """Bring it to the user's phone."""
    async with message.process(requeue=True):
        with rtobs.stage("normalize"):
            body = json.loads(message.body)
        await send_push(body["user"], body["text"])


@rtobs.deliver("push", "fcm")
async def send_push(user: str, text: str) -> httpx.Response:
    """Try once; the returned response decides."""
    return await push.post("/send", json={"to": user, "text": text})


async def worker(url: str) -> None:
    """Consume for ever."""
    connection = rtobs.wrap(await aio_pika.connect_robust(url), dead_letter="notify.push.dead")
    queue = await (await connection.channel()).declare_queue("notify.push")
    async with queue.iterator() as messages:
        async for message in messages:
            await handle(message)
    response: httpx.Response = await send_push("u", "t")
    response.raise_for_status()
