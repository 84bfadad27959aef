"""websockets: messages of one connection, client's or server's, asyncio or threads.

    async def handler(websocket):
        websocket = rtobs.wrap(websocket)

A connection is no hop, and a message that comes is its user's to scope: ``with rtobs.consume(name, message)``, or
``with rtobs.accept(route, headers=…)`` where the application has headers of its own in it. There is no place for ours:
with ``wrap(connection, envelope=True)`` a message travels in an envelope, which every wrapped connection takes off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, TypeVar

import websockets.asyncio.connection
import websockets.sync.connection

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey import envelope
from rtobs._journey.message import Message, Trust
from rtobs.errors import UnsupportedError
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._places import template
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "TRUST", "describe", "wrap"]

SYSTEM = "websocket"
SUPPORTS = "websockets>=14,<18"
FACTORIES = ("websockets.asyncio.connection.Connection", "websockets.sync.connection.Connection")
COVERAGE = Coverage(
    client="websockets",
    produce="`send`",
    consume="`recv`, iterators, where you scope them",
    carrier="an opt-in envelope",
    attempt="none",
    lag="none",
    depth="none",
    missing="`broadcast`; the legacy and trio interfaces",
)
TRUST: Trust = "link"
"""What to believe of the other side unless told otherwise: it is a browser more often than not."""

Connection = TypeVar("Connection")

_USUAL_LIMIT = 1 << 20
"""Bytes of a message that the other side takes, unless it was told otherwise."""
_LAST = "_rtobs_last"


def describe(native: object) -> Message | None:
    """Return what is known of a message, the object that ``recv`` returned."""
    found = leaf.known(native)
    return found if found is not None and found.system == SYSTEM else None


@overlay
class _Connection(websockets.asyncio.connection.Connection):
    __slots__ = ()

    async def send(self, message: Any, *args: Any, **options: Any) -> None:
        with leaf.Send(guarded(_sent, None, self, message)) as send:
            await super().send(guarded(_closed, message, self, send, message), *args, **options)

    async def recv(self, *args: Any, **options: Any) -> Any:
        pause = guarded(_pause, None, self)
        if pause is not None:
            await pause
        guarded(_let_go, None, self)
        untyped: Any = super()
        return _came(self, await untyped.recv(*args, **options))

    async def recv_streaming(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        untyped: Any = super()
        first = True
        async for part in untyped.recv_streaming(*args, **options):
            yield _opened(part)[0] if first else part
            first = False


@overlay
class _SyncConnection(websockets.sync.connection.Connection):
    __slots__ = ()

    def send(self, message: Any, *args: Any, **options: Any) -> None:
        with leaf.Send(guarded(_sent, None, self, message)) as send:
            super().send(guarded(_closed, message, self, send, message), *args, **options)

    def recv(self, *args: Any, **options: Any) -> Any:
        guarded(_let_go, None, self)
        untyped: Any = super()
        return _came(self, untyped.recv(*args, **options))

    def recv_streaming(self, *args: Any, **options: Any) -> Iterator[Any]:
        untyped: Any = super()
        first = True
        for part in untyped.recv_streaming(*args, **options):
            yield _opened(part)[0] if first else part
            first = False


# Sending -------------------------------------------------------------------------------------------------------------


def _facts(connection: Any, **more: Any) -> Message:
    request = connection.request
    path = request.path.partition("?")[0] if request is not None else ""
    return Message(SYSTEM, template(path, "/", "*"), address=path, **more)


def _sent(connection: Any, message: Any) -> Message:
    size = len(message) if isinstance(message, str | bytes | bytearray) else 0
    return _facts(connection, carrier=options_of(connection).carrier, size=size)


def _closed(connection: Any, send: leaf.Send, message: Any) -> Any:
    """Return a message in an envelope, of the same type; as it is where none is asked for, or it is sent in parts."""
    if not options_of(connection).envelope or not isinstance(message, str | bytes | bytearray):
        return message
    plain = message.encode() if isinstance(message, str) else message
    room = _USUAL_LIMIT - len(plain) - envelope.FRAME if len(plain) <= _USUAL_LIMIT else None
    closed = envelope.close(plain, send.headers(None, room))
    return closed.decode() if isinstance(message, str) else closed


# Receiving -----------------------------------------------------------------------------------------------------------


def _came(connection: Any, native: Any) -> Any:
    """Return what the caller gets, and remember what it says until a hop takes it or the next message comes."""
    message, headers = _opened(native)
    guarded(_hand_out, None, connection, message, headers)
    return message


def _opened(native: Any) -> tuple[Any, dict[str, str]]:
    # Twice, for an envelope that is not taken off reaches the host.
    return guarded(envelope.open, None, native) or guarded(envelope.open, None, native) or (native, {})


def _hand_out(connection: Any, message: str | bytes, headers: dict[str, str]) -> None:
    options = options_of(connection)
    facts = _facts(connection, headers=headers, native=message, trust=options.trust, size=len(message))
    connection.__dict__[_LAST] = facts
    leaf.handed_out(facts)


def _pause(connection: Any) -> Awaitable[None] | None:
    """Return what to await where a task that was made for the message before may not have begun yet."""
    last = _last(connection)
    waits = last is not None and last.headers and leaf.known(last.native) is last
    return asyncio.sleep(0) if waits else None


def _let_go(connection: Any) -> None:
    """Record the lag of the message before, unless a hop has taken it."""
    last = _last(connection)
    if last is not None:
        del connection.__dict__[_LAST]
        if leaf.known(last.native) is last:
            leaf.passed_by(last)


def _last(connection: Any) -> Message | None:
    found: Any = connection.__dict__
    return found.get(_LAST)  # type: ignore[no-any-return]


def wrap(connection: Connection, options: Options) -> Connection:
    """Instrument one connection.

    Raises:
        UnsupportedError: what is no connection; a server's reach its handler one by one.
    """
    if isinstance(connection, websockets.asyncio.connection.Connection):
        over: type = _Connection
    elif isinstance(connection, websockets.sync.connection.Connection):
        over = _SyncConnection
    else:
        raise UnsupportedError(
            f"rtobs.wrap: a websockets {type(connection).__qualname__} sends no messages itself; wrap the connection "
            "that `connect` returns, or that the server's handler is called with"
        )
    for kind in (str, bytes):
        runtime.share(kind, describe)
    return become(connection, over, options)
