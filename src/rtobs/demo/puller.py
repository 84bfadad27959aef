"""Consuming from a broker that has to be asked for messages and takes a worker's silence for its death."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from rtobs.demo.brokers import Delivery, Handler

KEEP_SECONDS: Final = 1.0
"""Pause between two signs of life for messages that are being handled; a fraction of `brokers.AGAIN_AFTER`."""
TROUBLE_SECONDS: Final = 0.5
"""Pause after the broker has not answered."""

Take = Callable[[int], Awaitable[Sequence[Delivery]]]
"""Bring up to so many messages; where there are none, wait for a moment."""
Keep = Callable[[Sequence[Delivery]], Awaitable[object]]
"""Tell the broker that these messages are still being handled."""


class Puller:
    """Hands messages to *handler*, each in a task of its own, at most *concurrency* at a time; begins at once.

    Nothing is taken that is not handled right away. A broker that does not answer is asked again.
    """

    def __init__(
        self, take: Take, keep: Keep, handler: Handler, concurrency: int, errors: tuple[type[Exception], ...]
    ) -> None:
        self._take = take
        self._keep = keep
        self._handler = handler
        self._concurrency = concurrency
        self._handled: dict[asyncio.Task[None], Delivery] = {}
        self._stopping = False
        self._pulling = asyncio.create_task(again_and_again(self._pull, errors))
        self._keeping = asyncio.create_task(again_and_again(self._keep_alive, errors))

    async def stop(self) -> None:
        """Take no more messages; what is being handled goes on."""
        self._stopping = True
        await self._pulling
        await end([self._keeping])

    async def _pull(self) -> bool:
        if self._stopping:
            return False
        if len(self._handled) >= self._concurrency:
            await asyncio.wait(self._handled, return_when=asyncio.FIRST_COMPLETED)
        for delivery in await self._take(self._concurrency - len(self._handled)):
            task = asyncio.create_task(self._handle(delivery))
            self._handled[task] = delivery
            task.add_done_callback(self._done)
        return True

    async def _handle(self, delivery: Delivery) -> None:
        await self._handler(delivery)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._handled[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            told(error)  # the message comes back by itself

    async def _keep_alive(self) -> bool:
        await asyncio.sleep(KEEP_SECONDS)
        if self._handled:
            await self._keep(list(self._handled.values()))
        return True


async def again_and_again(step: Callable[[], Awaitable[bool]], errors: tuple[type[Exception], ...]) -> None:
    """Do *step* until it returns False; after one of *errors* tell it, pause, and go on."""
    while True:
        try:
            if not await step():
                return
        except errors as error:
            told(error)
            await asyncio.sleep(TROUBLE_SECONDS)


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel *tasks* until they have ended: in Python 3.11 a client that awaits `wait_for` may miss it once."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)


def told(error: BaseException) -> None:
    """Write what went wrong to standard error, where the observer looks if the process ends."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
