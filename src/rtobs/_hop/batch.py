"""Batch: one call of a client that sends several messages, and messages that leave later than they were queued.

Each message is a send of its own, opened and ended together with the others. Must not know any client.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from opentelemetry.context import Context, attach, get_current

from rtobs._hop import engine
from rtobs._hop.leaf import SUPPRESS, Send
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
        around = self._around = get_current()
        beside = len(self._messages) > 1 or self._places is not None
        for number, message in enumerate(self._messages):
            self.each.append(self._open(message, self._places[number] if self._places is not None else None))
            if beside:
                attach(around)  # the next one is not inside this one
        if beside and self.each:
            attach(Context({**around, **SUPPRESS}))
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
        if self._around is not None:
            attach(self._around)
