"""The users' devices: they show what reaches them, and report it with the token that came along."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from rtobs.demo import world
from rtobs.demo.api import post, receipts
from rtobs.demo.roles import DEVICES

if TYPE_CHECKING:
    from rtobs.demo.brokers import Broker


class Clients:
    """The users' devices: they show what arrives and post the receipt token back."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self._broker = broker
        self._seed = seed
        self._looking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to read what reaches the devices; nothing is instrumented there."""
        await self._broker.consume_outside(DEVICES, self._arrived)

    async def idle(self) -> None:
        """Wait until nobody is looking any more."""
        await asyncio.gather(*self._looking)

    async def _arrived(self, body: bytes) -> None:
        task = asyncio.create_task(self._look(json.loads(body)))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, shown: dict[str, Any]) -> None:
        for step, seconds in world.looks_after(self._seed, shown["id"], shown["channel"]):
            await asyncio.sleep(seconds)
            await post(receipts, "/receipts", {"step": step, "token": shown["token"]})
