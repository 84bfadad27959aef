"""A framework over the in-memory broker, with message and client classes of its own, and its leaf.

What a messaging framework is over its broker's client: both can be wrapped, in one process. Its leaf names the broker's
own message as the native one; that is how two layers know that they talk of the same message.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs.integrations import register
from rtobs.integrations._twin import Options, become, options_of, overlay
from rtobs.integrations.memory import Broker, Message

SYSTEM = "framework"
SUPPORTS = "this file"

Handler = Callable[["Event"], Awaitable[object]]


# The framework -------------------------------------------------------------------------------------------------------


class Event:
    """The framework's message: decoded content, and the broker's message inside."""

    def __init__(self, topic: str, raw: Message) -> None:
        self.topic = topic
        self.raw = raw
        self.content = raw.body.decode()

    async def done(self) -> None:
        await self.raw.ack()


class Framework:
    """Topics over a broker's queues."""

    def __init__(self, broker: Broker, *, copies: int = 1, tries: int = 1) -> None:
        self._broker = broker
        self._copies = copies
        self._tries = tries

    async def emit(self, topic: str, content: str, headers: Mapping[str, str] | None = None) -> str:
        for _ in range(self._copies):
            await self._emit_one(topic, content, headers)
        return content

    async def _emit_one(self, topic: str, content: str, headers: Mapping[str, str] | None) -> None:
        for left in reversed(range(self._tries)):
            try:
                await self._broker.publish(f"queue.{topic}", content.encode(), dict(headers or {}))
            except ConnectionError:
                if not left:
                    raise
            else:
                return

    def on(self, topic: str, handler: Handler) -> Callable[[], None]:
        async def dispatch(raw: Message) -> None:
            await handler(Event(topic, raw))

        return self._broker.consume(f"queue.{topic}", dispatch)

    async def poll(self, topic: str) -> Event | None:
        raw = await self._broker.get(f"queue.{topic}", timeout=0.001)
        return None if raw is None else Event(topic, raw)


# Its leaf ------------------------------------------------------------------------------------------------------------


def describe(native: Event) -> Facts:
    """Return what one event says about itself; the message is the broker's."""
    options, raw = options_of(native), native.raw
    return Facts(
        SYSTEM, native.topic, raw.headers, id=str(raw.id), native=raw, trust=options.trust, manual=options.manual,
        delivery_count=raw.delivery_count,
    )  # fmt: skip


@overlay
class _Event(Event):
    __slots__ = ()

    async def done(self) -> None:
        with leaf.Settle("ack", "acked", describe(self)):
            await super().done()


@overlay
class _Framework(Framework):
    __slots__ = ()

    async def emit(self, topic: str, content: str, headers: Mapping[str, str] | None = None) -> str:
        with leaf.Send(Facts(SYSTEM, topic, carrier=options_of(self).carrier)) as send:
            return await super().emit(topic, content, send.headers(headers))

    def on(self, topic: str, handler: Handler) -> Callable[[], None]:
        return super().on(topic, _handler(handler, options_of(self)))


def _handler(handler: Handler, options: Options) -> Handler:
    @functools.wraps(handler)
    async def handle(event: Event) -> object:
        known = become(event, _Event, options)
        if hasattr(handler, "__rtobs_consume__"):
            return await handler(known)
        with leaf.Process(describe(known)):
            return await handler(known)

    return handle


def wrap(client: Framework, options: Options) -> Framework:
    """Instrument one framework object."""
    runtime.register(Event, describe)
    return become(client, _Framework, options)


register(__name__, __name__)


def teach(describers: dict[type, Any] = runtime.describers) -> None:
    """Let ``consume`` know events, as it does once any framework object is wrapped."""
    describers[Event] = describe
