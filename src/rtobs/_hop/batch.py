"""Batch: one call of a client that sends several messages, and messages that leave later than they were queued.

Each message is a send of its own, opened and ended together with the others. Must not know any client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rtobs import _guard
from rtobs._hop import engine
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.leaf import SUPPRESS, Send, note_message, open_publish
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message
from rtobs._journey.record import HopRecord


class Place:
    """Where a message was queued. A publish hop that is open there and has no message yet gets this one."""

    __slots__ = ("context", "publish")

    def __init__(self) -> None:
        self.context: Context = get_current()
        self.publish: HopRecord | None = None
        ambient = engine.current()
        if ambient is not None and ambient.kind == "publish" and not ambient.ended and ambient.layer is None:
            ambient.layer = self  # further sends in that hop are its siblings
            self.publish = ambient


class Sends:
    """``with Sends(messages) as sends:`` round the client's call; ``sends.each[n].headers()`` goes with the n-th.

    *places* says where each was queued, if not here.
    """

    __slots__ = ("_around", "_messages", "_places", "each")

    def __init__(self, messages: Sequence[Message], places: Sequence[Place] | None = None) -> None:
        self._messages = messages
        self._places = places
        self._around: Context | None = None
        self.each: list[Send] = []

    def __enter__(self) -> Self:
        try:
            around = self._around = get_current()
            beside = len(self._messages) > 1 or self._places is not None
            for number, message in enumerate(self._messages):
                self.each.append(self._open(message, self._places[number] if self._places is not None else None))
                if beside:
                    attach(around)  # the next one is not inside this one
            if beside and self.each:
                attach(Context({**around, **SUPPRESS}))
        except Exception as error:  # noqa: BLE001  what is not opened leaves without us
            _guard.fault("leaf.send", error)
        return self

    def _open(self, message: Message, place: Place | None) -> Send:
        send = Send(message)
        if place is None:
            return send.__enter__()
        publish, place.publish = place.publish, None
        if publish is not None:
            if publish.ended:  # it has been concluded, and its message leaves only now
                send.record = publish
                return send
            publish.layer = None
        attach(place.context)
        return send.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for send in self.each:
            send.__exit__(kind, error, trace)
        try:
            if self._around is not None:
                attach(self._around)
        except Exception as fault:  # noqa: BLE001  the host's result or exception goes on unchanged
            _guard.fault("leaf.send", fault)


class Draft(Send):
    """A message that is written now, with its ``headers`` or ``pairs``, and leaves later, in a batch of its user's.

    Its hop begins here and ends with the batch; one that did not fit, or whose batch is never sent, counts nowhere.
    """

    __slots__ = ()

    def __init__(self, message: Message) -> None:
        Send.__init__(self, message)
        if runtime.off and not engine.is_on():
            return
        ambient = engine.current()
        if ambient is not None and ambient.kind == "publish" and not ambient.ended and ambient.layer is None:
            self.record = ambient
        else:
            self.record = open_publish(message.destination, ambient, message)
            self.record.auto = self._owner = True

    def bind(self) -> None:
        """It fitted: it is the message of the publish hop that is open here, if that has none yet."""
        if self.record is not None and self._message is not None and not self._owner:
            self.record.layer = self  # further sends in that hop are its siblings
            note_message(self.record, self._message)

    def address(self, destination: str) -> None:
        """Say where it goes, which is not known before its batch leaves."""
        if self._message is not None and self.record is not None and not self.record.ended:
            self._message.destination = self._message.address = destination
            note_message(self.record, self._message)


class Sending:
    """``with Sending(drafts, destination) as sending:`` round the call that sends a batch; it ends all their hops.

    After ``sending.until(future, …)`` they end with that.
    """

    __slots__ = ("_drafts", "_future", "_noted")

    def __init__(self, drafts: Sequence[Draft], destination: str) -> None:
        self._drafts = drafts
        self._future: asyncio.Future[Any] | None = None
        self._noted: Callable[[Any], object] | None = None
        try:
            for draft in drafts:
                draft.address(destination)
        except Exception as error:  # noqa: BLE001  the batch is sent all the same
            _guard.fault("leaf.send", error)

    def __enter__(self) -> Self:
        return self

    def until(self, future: asyncio.Future[Any], noted: Callable[[Any], object]) -> None:
        """End the hops when *future* is done, after *noted* was called with its result if it has one."""
        self._future, self._noted = future, noted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._future is not None:
            self._future.add_done_callback(self._done)
        else:
            self._end(error)

    def _done(self, future: asyncio.Future[Any]) -> None:
        error: BaseException | None = None
        try:
            error = asyncio.CancelledError() if future.cancelled() else getattr(future, "_exception", None)
            if error is None and self._noted is not None:
                self._noted(future.result())
        except Exception as fault:  # noqa: BLE001  the hops end all the same
            _guard.fault("leaf.send", fault)
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        for draft in self._drafts:
            if draft.record is not None and not draft.record.ended:
                draft.__exit__(None, error, None)
