"""pika: how many messages wait in a queue, and whether the broker blocks the connection.

A connection of pika's belongs to the thread that made it, so the question goes over a connection of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pika.adapters.blocking_connection import BlockingConnection

from rtobs._hop.watching import Answer, Ask, Depth, Strains
from rtobs.integrations import _rabbitmq


def _owner(client: Any) -> Any:
    """Return the client's connection."""
    return getattr(client, "connection", client)


def depths(client: Any) -> Ask:
    """Return how to ask for one queue."""
    owner = _owner(client)
    parameters = getattr(owner, "_impl", owner).params

    def ask(queue: str) -> Answer:
        with BlockingConnection(parameters) as connection:
            found = connection.channel().queue_declare(queue, passive=True)
            return [Depth(_rabbitmq.place(queue), found.method.message_count)]

    return ask


def strains(client: Any) -> Strains:
    """Return how to hear that the broker takes nothing more from this connection (a memory or disk alarm)."""
    owner = _owner(client)

    def begin(report: Callable[[str], None]) -> Callable[[], None]:
        reports = [report]

        def blocked(*_: Any) -> None:
            for each in reports:
                each("connection_blocked")

        owner.add_on_connection_blocked_callback(blocked)  # which the client cannot take back
        return reports.clear

    return Strains(owner, begin)
