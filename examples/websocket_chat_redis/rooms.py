"""Who is in which room of this server, and how what was said gets to them."""

import asyncio
import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

import rtobs

CHANNELS = os.environ.get("CHANNEL_PREFIX", "example.rooms.")
PATIENCE = float(os.environ.get("SEND_TIMEOUT", "5.0"))
"""Seconds that a socket may take for one message."""


class Member:
    """Somebody in a room, at one socket."""

    def __init__(self, socket: WebSocket, name: str) -> None:
        self.socket, self.name = socket, name

    @rtobs.deliver("in_app", "websocket")
    async def show(self, said: dict[str, str]) -> None:
        """Write one message to the socket; the client sends the receipt back when it has shown it."""
        hop = rtobs.current()
        hop.note(member=self.name)
        async with asyncio.timeout(PATIENCE):
            await self.socket.send_json({**said, "receipt": hop.receipt_token()})

    async def dismiss(self) -> None:
        """Close the socket; this waits until its client reads again, or is gone."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self.socket.close(1013)


class Rooms:
    """The members at this server, by room."""

    def __init__(self) -> None:
        self._members: defaultdict[str, set[Member]] = defaultdict(set)
        self._dismissals: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def entered(self, room: str, member: Member) -> Iterator[None]:
        """Have *member* in *room*."""
        self._members[room].add(member)
        try:
            yield
        finally:
            self._members[room].discard(member)

    @rtobs.consume("rooms")
    async def fan_out(self, message: dict[str, Any]) -> None:
        """Show what was said to everybody in the room at once; each delivery promises for itself."""
        said = json.loads(message["data"])
        members = list(self._members[said["room"]])
        results = await asyncio.gather(*(member.show(said) for member in members), return_exceptions=True)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, Exception):  # the others do not wait for this one again
                self._members[said["room"]].discard(member)
                task = asyncio.create_task(member.dismiss())
                self._dismissals.add(task)
                task.add_done_callback(self._dismissals.discard)
