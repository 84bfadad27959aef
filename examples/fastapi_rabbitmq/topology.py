"""The queues of this example. Each process declares them, so it does not matter which one starts first."""

import os
from typing import NamedTuple

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

import rtobs

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
PREFIX = os.environ.get("QUEUE_PREFIX", "example.")
NOTIFICATIONS, WEBHOOKS, DEAD = PREFIX + "notifications", PREFIX + "webhooks", PREFIX + "dead"
REDELIVERIES = 3
"""After that many the broker gives a message up and puts it into the dead-letter queue."""


class Broker(NamedTuple):
    """A connection and its queues."""

    connection: aio_pika.abc.AbstractRobustConnection
    channel: AbstractChannel
    notifications: AbstractQueue
    webhooks: AbstractQueue


async def connect() -> Broker:
    """Connect through rtobs, and declare the queues."""
    connection = rtobs.wrap(await aio_pika.connect_robust(AMQP_URL), dead_letter=DEAD, max_deliveries=REDELIVERIES + 1)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=16)
    await channel.declare_queue(DEAD, durable=True)
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": REDELIVERIES,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD,
    }
    notifications = await channel.declare_queue(NOTIFICATIONS, durable=True, arguments=arguments)
    webhooks = await channel.declare_queue(WEBHOOKS, durable=True, arguments=arguments)
    return Broker(connection, channel, notifications, webhooks)
