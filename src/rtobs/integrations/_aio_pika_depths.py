"""aio-pika: how many messages wait in a queue; whether the broker blocks the connection; what a consumer may hold.

A passive declaration tells how many messages are ready, not how old they are, and not how many are out with consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from aio_pika import Channel, Connection, Exchange, Queue
from aio_pika.queue import QueueIterator

from rtobs._hop.slots import slots
from rtobs._hop.watching import Answer, Ask, Depth, Strains
from rtobs.integrations import _rabbitmq

Client = Connection | Channel | Exchange | Queue

_LOOK = 1.0  # seconds between two looks at whether the connection is blocked
_CREDIT = "_rtobs_credit"


def _owner(client: Client) -> Any:
    """Return the client's connection, which stays the same over reconnects."""
    channel: Any = client.channel if isinstance(client, Exchange | Queue) else client
    return channel if isinstance(channel, Connection) else channel._connection  # noqa: SLF001  no other way


def _connection(client: Client) -> Any:
    """Return the protocol's connection, which is another one after each reconnect."""
    owner = _owner(client)
    if owner.transport is None:
        raise ConnectionError("not connected")
    return owner.transport.connection


def depths(client: Client) -> Ask:
    """Return how to ask for one queue."""

    async def ask(queue: str) -> Answer:
        # On a channel of its own, which the broker closes if there is no such queue; below the client's own channels,
        # because those are opened again after a reconnect.
        channel = await _connection(client).channel(publisher_confirms=False)
        try:
            found = await channel.queue_declare(queue, passive=True)
        finally:
            if not channel.is_closed:
                await channel.close()
        return [Depth(_rabbitmq.place(queue), found.message_count)]

    return ask


def strains(client: Client) -> Strains:
    """Return how to hear that the broker takes nothing more from this connection (a memory or disk alarm)."""

    def begin(report: Callable[[str], None]) -> Callable[[], None]:
        loop, blocked = asyncio.get_running_loop(), False
        timer: asyncio.Handle

        def look() -> None:
            nonlocal blocked, timer
            before = blocked
            with contextlib.suppress(Exception):  # between two connections
                blocked = _is_blocked(_connection(client))
            if blocked and not before:
                report("connection_blocked")
            timer = loop.call_later(_LOOK, look)

        def end() -> None:
            timer.cancel()

        timer = loop.call_soon(look)
        return end

    return Strains(_owner(client), begin)


def _is_blocked(connection: Any) -> bool:
    """Tell whether a connection waits for the broker to unblock it: its ``ready`` would not return at once."""
    if not connection.connected.is_set():
        return False
    ready = connection.ready()
    try:
        ready.send(None)
    except StopIteration:
        return False
    ready.close()
    return True


# What consumers may hold ---------------------------------------------------------------------------------------------


def credit(channel: Channel, prefetch: int) -> None:
    """Note how many messages each consumer of *channel* that begins from now on may hold; 0 = as many as there are."""
    vars(channel)[_CREDIT] = prefetch


def consumes(queue: Queue, tag: str, callback: Any, no_ack: bool) -> None:  # noqa: FBT001  it comes so
    """Let a consumer's credit be slots of its worker, while its channel is open.

    Not for iterators, whose messages are handled as their loop likes, nor for what needs no acknowledgement.
    """
    channel: Any = queue.channel
    number: int = getattr(channel, _CREDIT, getattr(channel, "_prefetch_count", 0))
    if no_ack or not number or isinstance(getattr(callback, "__self__", None), QueueIterator):
        return
    found = weakref.ref(channel)

    def slots_now() -> int | None:
        now = found()
        return None if now is None or now.is_closed else number

    slots.put((_CREDIT, tag), _rabbitmq.place(queue.name), slots_now)


def ends(tag: str) -> None:
    """Take a consumer's slots back."""
    slots.drop((_CREDIT, tag))
