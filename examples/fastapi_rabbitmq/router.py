"""The router: decides who is told, and publishes one message for each of them. Run it with `python router.py`."""

import asyncio
import contextlib
import json

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from topology import WEBHOOKS, connect

import rtobs

rtobs.configure(service="router", logs="stdout")

SUBSCRIBERS = {"acme": ["billing", "crm"], "globex": ["crm"]}


async def subscribers_of(tenant: str) -> list[str]:
    """Return who wants to be told; a real router asks a database."""
    await asyncio.sleep(0.002)
    return SUBSCRIBERS.get(tenant, [])


class Router:
    """Handles what the API has accepted."""

    def __init__(self, exchange: AbstractExchange) -> None:
        self.exchange = exchange

    @rtobs.consume("notifications")
    async def route(self, message: AbstractIncomingMessage) -> None:
        """Promise one delivery per subscriber and send each on its way; acknowledged when all have left."""
        async with message.process():
            hop = rtobs.current()
            with rtobs.stage("normalize"):
                notification = json.loads(message.body)
                text = notification["subject"].strip()
            with rtobs.stage("enrich"):
                subscribers = await subscribers_of(notification["tenant"])
            with rtobs.stage("route"):
                hop.intend("webhook", *subscribers) if subscribers else hop.event("nobody_subscribed")
            for subscriber in subscribers:
                body = json.dumps({"subscriber": subscriber, "text": text}).encode()
                with rtobs.publish("webhooks", channel="webhook", key=subscriber):
                    await self.exchange.publish(aio_pika.Message(body), routing_key=WEBHOOKS)


async def main() -> None:
    """Route until somebody stops it."""
    broker = await connect()
    async with broker.connection:
        await broker.notifications.consume(Router(broker.channel.default_exchange).route)
        await asyncio.Future()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
