"""The streams of this example. Each program makes sure of them, so it does not matter which one starts first."""

import os
from typing import NamedTuple

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RetentionPolicy

import rtobs

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = os.environ.get("SUBJECT_PREFIX", "example")
TICKETS, DEAD = f"{PREFIX}.tickets", f"{PREFIX}.dead"
"""Subjects; their streams have the same names with a hyphen."""
TRIES = 4
"""Deliveries of one ticket before it is given up, by the connector: what the server gives up is not delivered again."""
BATCH = 16


class Broker(NamedTuple):
    """A connection and its streams."""

    client: Client
    streams: JetStreamContext


def stream(subject: str) -> str:
    """Return the name of a subject's stream."""
    return subject.replace(".", "-")


async def connect() -> Broker:
    """Connect through rtobs, which is told where dead letters come from, and make sure of the streams."""
    client = rtobs.wrap(await nats.connect(NATS_URL), dead_letter=DEAD)
    streams = client.jetstream()
    for subject in (TICKETS, DEAD):
        await streams.add_stream(name=stream(subject), subjects=[subject], retention=RetentionPolicy.WORK_QUEUE)
    return Broker(client, streams)


async def pull(streams: JetStreamContext, subject: str, consumer: str) -> JetStreamContext.PullSubscription:
    """Return a subscription to fetch from; what nobody has settled after half a minute comes back."""
    config = ConsumerConfig(ack_wait=30.0)
    return await streams.pull_subscribe(subject, durable=consumer, stream=stream(subject), config=config)
