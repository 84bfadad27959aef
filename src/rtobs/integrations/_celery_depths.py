"""Celery: how many tasks wait in a queue, asked of the application's broker through kombu."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (kombu has no annotations)

from __future__ import annotations

from typing import Any

from rtobs._hop.watching import Answer, Ask, Depth


def depths(app: Any) -> Ask:
    """Return how to ask for one queue; tasks that a worker has fetched and not begun are not in it."""

    def ask(queue: str) -> Answer:
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            if hasattr(channel, "_size"):  # Redis and its like: a queue that is empty is not there
                return [Depth(queue, int(channel._size(queue)))]  # noqa: SLF001  no other way
            return [Depth(queue, int(channel.queue_declare(queue, passive=True).message_count))]

    return ask


def strains(_app: Any) -> None:
    """Return nothing: Celery does not tell."""
