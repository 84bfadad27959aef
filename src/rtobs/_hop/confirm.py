"""Confirm: a send whose confirmation comes after the client's call has returned, as a future.

Must not know any client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rtobs import _guard
from rtobs._hop import engine, leaf
from rtobs._hop.context import attach, get_current
from rtobs._journey.message import Message

Future = asyncio.Future[Any] | concurrent.futures.Future[Any]
"""Of an event loop, or of a client that confirms on a thread of its own."""


class ConfirmedSend(leaf.Send):
    """``with ConfirmedSend(message) as send:`` round the call; after ``send.until(future, …)`` the hop ends with that.

    A publish hop of the user's ends with its own block all the same; a future that failed before makes it fail.
    """

    __slots__ = ("_confirmed", "_future")

    def __init__(self, message: Message | None) -> None:
        leaf.Send.__init__(self, message)
        self._future: Future | None = None
        self._confirmed: Callable[[Any], object] | None = None

    def until(self, future: Future, confirmed: Callable[[Any], object]) -> None:
        """End the hop when *future* is done, after *confirmed* was called with its result if it has one.

        What came of it stays its owner's to ask for.
        """
        self._future, self._confirmed = future, confirmed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        future, record = self._future, self.record
        if future is None or record is None or error is not None:
            leaf.Send.__exit__(self, kind, error, trace)
            return
        try:
            if self._owner:
                engine.leave(record)
            elif self._previous is not None and get_current().get(engine.HOP_KEY) is record:
                attach(self._previous)
            self._previous = None
            future.add_done_callback(self._done)
        except Exception as fault:  # noqa: BLE001  the host's future goes on unchanged
            self._close_again(record, None)
            _guard.fault("leaf.send", fault)

    def _done(self, future: Future) -> None:
        # Not by `exception()`: after that asyncio would not complain any more of an exception that nobody asked for.
        error: BaseException | None = None
        try:
            error = asyncio.CancelledError() if future.cancelled() else getattr(future, "_exception", None)
            if self.record is None or self.record.ended:
                return
            if error is None and self._confirmed is not None:
                self._confirmed(future.result())
        except Exception as fault:  # noqa: BLE001  the hop ends all the same
            _guard.fault("leaf.send", fault)
        leaf.Send.__exit__(self, None, error, None)
