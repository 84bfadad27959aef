"""Confirm: a send whose confirmation comes after the client's call has returned, as a future.

Must not know any client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from opentelemetry.context import attach, get_current

from rtobs import _guard
from rtobs._hop import engine, leaf
from rtobs._journey.message import Message


class ConfirmedSend(leaf.Send):
    """``with ConfirmedSend(message) as send:`` round the call; after ``send.until(future, …)`` the hop ends with that.

    A publish hop of the user's ends with its own block all the same; a future that failed before makes it fail.
    """

    __slots__ = ("_confirmed", "_future")

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self._future: asyncio.Future[Any] | None = None
        self._confirmed: Callable[[Any], object] | None = None

    def until(self, future: asyncio.Future[Any], confirmed: Callable[[Any], object]) -> None:
        """End the hop when *future* is done, after *confirmed* was called with its result if it has one.

        What came of it stays its owner's to ask for.
        """
        self._future, self._confirmed = future, confirmed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        future, record = self._future, self.record
        if future is None or record is None or error is not None:
            super().__exit__(kind, error, trace)
            return
        try:
            if self._owner:
                engine.leave(record)
            elif self._previous is not None and get_current().get(engine.HOP_KEY) is record:
                attach(self._previous)
            self._previous = None
            future.add_done_callback(self._done)
        except Exception as fault:  # noqa: BLE001  the host's future goes on unchanged
            _guard.fault("leaf.send", fault)

    def _done(self, future: asyncio.Future[Any]) -> None:
        # Not by `exception()`: after that asyncio would not complain any more of an exception that nobody asked for.
        error = asyncio.CancelledError() if future.cancelled() else getattr(future, "_exception", None)
        if self.record is None or self.record.ended:
            return
        try:
            if error is None and self._confirmed is not None:
                self._confirmed(future.result())
        except Exception as fault:  # noqa: BLE001  the hop ends all the same
            _guard.fault("leaf.send", fault)
        super().__exit__(None, error, None)
