"""What the platform's workers do: route and deliver.

This is application code as a user of rtobs would write it; it knows nothing of the view.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import rtobs
from rtobs.demo import world
from rtobs.demo.options import CHANNELS
from rtobs.demo.providers import PROFILES, Provider, RefusedError, UnexpectedAnswerError

if TYPE_CHECKING:
    from rtobs.demo.brokers import Broker, Delivery
    from rtobs.demo.providers import Fault

INBOX: Final = "notifications"
DEVICES: Final = "devices"
TRIES: Final = 5
BACKOFF: Final = (0.25, 0.5, 1.0, 2.0)
"""Waits before the second to the fifth try, seconds."""
CONCURRENCY: Final = 32
"""Messages that one channel of one process handles at a time."""
PERMANENT: Final = frozenset({400, 401, 403, 404, 410, 422})


def outbox(channel: str) -> str:
    """Return the name of a channel's queue."""
    return f"deliver.{channel}"


class InFlight:
    """Counts handlers that are at work, so that a process can end between messages."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def idle(self) -> None:
        """Wait until no handler is at work."""
        await self._none.wait()


class Reader(Protocol):
    """A role that reads a queue."""

    async def start(self) -> None:
        """Begin to read."""
        ...

    async def idle(self) -> None:
        """Wait until nothing is being handled."""
        ...


class Router:
    """Decides on which channels a notification goes out."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._at_work = InFlight()

    async def idle(self) -> None:
        """Wait until nothing is being handled."""
        await self._at_work.idle()

    async def start(self) -> None:
        """Begin to read the inbox."""
        await self._broker.consume(INBOX, self.route, CONCURRENCY)

    async def route(self, message: Delivery) -> None:
        """Normalize, enrich and fan out one notification."""
        with self._at_work, rtobs.consume(INBOX, message.native) as hop:
            await self._route(message, hop)

    async def _route(self, message: Delivery, hop: rtobs.Hop) -> None:
        with rtobs.stage("normalize"):
            payload: dict[str, Any] = json.loads(message.body)
        compare(payload)
        with rtobs.stage("enrich"):
            await asyncio.sleep(0.002)  # preferences of the user, from a store
            payload["tries"] = 0
        with rtobs.stage("route"):
            channels = world.TEMPLATES[payload["template"]][0]
            for channel in channels:
                hop.intend(channel, payload["user"])
        for channel in channels:
            with rtobs.publish(outbox(channel), channel=channel, key=payload["user"]):
                await self._broker.send(outbox(channel), payload)
        await message.ack()


class Connector:
    """Carries the messages of one channel to its provider."""

    def __init__(self, broker: Broker, channel: str, seed: int, fault: Fault) -> None:
        self.provider = Provider(channel, seed, fault)
        self._broker = broker
        self._channel = channel
        self._seed = seed
        self._at_work = InFlight()
        slow = fault.hits(channel) == "slow-consumer"
        self._concurrency = 1 if slow and not fault.after else CONCURRENCY
        self._turn = asyncio.Lock()
        # A consumer that keeps up with only a part of what arrives: its queue grows as long as messages come.
        self._handling = max(0.01, 1.0 / (0.6 * fault.arrivals) - PROFILES[channel].seconds) if slow else 0.0

    async def idle(self) -> None:
        """Wait until nothing is being handled."""
        await self._at_work.idle()

    async def start(self) -> None:
        """Begin to read the channel's queue."""
        await self._broker.consume(outbox(self._channel), self.handle, self._concurrency)

    async def handle(self, message: Delivery) -> None:
        """Try to deliver one message; put it back, with a growing pause, where another try may help."""
        with self._at_work, rtobs.consume(outbox(self._channel), message.native):
            slow = self.provider.broken == "slow-consumer"
            async with self._turn if slow else contextlib.nullcontext():  # one at a time from now on
                await self._handle(message, slow=slow)

    async def _handle(self, message: Delivery, *, slow: bool) -> None:
        payload: dict[str, Any] = json.loads(message.body)
        compare(payload)
        tries = payload["tries"] = payload["tries"] + message.count
        if slow:
            with rtobs.stage("look_up_customer"):
                await asyncio.sleep(self._handling)
        try:
            await self._deliver(payload, tries)
        except RefusedError as refused:
            if refused.status_code not in PERMANENT:
                await self._again(message, payload, tries, refused.retry_after)
                return
        except UnexpectedAnswerError:
            await self._again(message, payload, tries, 0.0)
            return
        await message.ack()

    async def _deliver(self, payload: dict[str, Any], tries: int) -> None:
        with rtobs.deliver(self._channel, self.provider.name, key=payload["user"]) as hop:
            answer = await self.provider.send(payload, tries)
            if "id" not in answer:
                raise UnexpectedAnswerError("the answer has no field `id`")
            if world.looks_after(self._seed, payload["id"], self._channel):
                await self._broker.send_outside(
                    DEVICES, {"id": payload["id"], "channel": self._channel, "token": hop.receipt_token()}
                )

    async def _again(self, message: Delivery, payload: dict[str, Any], tries: int, pause: float) -> None:
        hop = rtobs.current()
        if tries >= TRIES:
            hop.outcome(rtobs.Outcome.DEAD_LETTERED, "tries_used_up")
            await message.reject()
            return
        hop.outcome(rtobs.Outcome.RETRIED)  # said before the copy leaves, so that it is numbered as the next attempt
        delay = max(BACKOFF[tries - 1], pause)
        if message.later is not None:
            await message.later(delay)
            return
        with rtobs.publish(outbox(self._channel), channel=self._channel, key=payload["user"]):
            await self._broker.send(outbox(self._channel), payload, delay=delay)
        await message.ack()


def compare(payload: dict[str, Any]) -> None:
    """Note the payload's copy of the correlation id next to the one that travelled in the headers."""
    hop = rtobs.current()
    copy = payload["correlation_id"]
    hop.note(payload_correlation_id=copy)
    if copy != hop.correlation_id:
        hop.event("correlation_lost", expected=copy)


def connectors(broker: Broker, seed: int, fault: Fault) -> list[Connector]:
    """Return one connector for each channel."""
    return [Connector(broker, channel, seed, fault) for channel in CHANNELS]
