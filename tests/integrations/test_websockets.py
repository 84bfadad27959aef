"""The leaf of websockets over real connections on loopback: server and client, asyncio and threads."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.sync.client
import websockets.sync.server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf as engine
from rtobs.errors import UnsupportedError
from rtobs.integrations import unwrap
from rtobs.integrations import websockets as leaf
from tests.integrations.adapter import NOWHERE, here
from tests.support.timing import scaled

Served = list[Any]


@asynccontextmanager
async def served(handler: Any, path: str = "/chat", **options: Any) -> AsyncIterator[Any]:
    """Serve *handler* and connect to it; *options* are the server's."""
    async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, **options) as server:
        port = server.sockets[0].getsockname()[1]
        async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}{path}") as connection:
            yield connection


@contextmanager
def served_by_threads(handler: Any, path: str = "/chat") -> Iterator[Any]:
    with websockets.sync.server.serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        try:
            with websockets.sync.client.connect(f"ws://127.0.0.1:{port}{path}") as connection:
                yield connection
        finally:
            server.shutdown()
            thread.join(scaled(10))


def test_the_leaf_names_the_versions_it_is_tested_with():
    """The websockets that the tests run with is one that the leaf says it supports."""
    least, below = re.fullmatch(r"websockets>=([\d.]+),<(\d+)", leaf.SUPPORTS).groups()
    installed = tuple(map(int, version("websockets").split(".")[:2]))
    assert tuple(map(int, least.split("."))) <= installed < (int(below),)


async def test_a_connection_is_no_hop(telemetry):
    """A connection that is opened, pinged and closed without a message leaves no span and no hop."""
    seen = []

    async def handler(connection: Any) -> None:
        rtobs.wrap(connection)
        seen.append(here())
        async for _ in connection:
            pass

    async with served(handler) as connection:
        rtobs.wrap(connection)
        await (await connection.ping())
        assert here() == NOWHERE
    assert seen == [NOWHERE]
    assert telemetry.spans() == []


async def test_each_message_is_an_accept_hop_that_the_user_scopes(telemetry):
    """A server that gives each message an accept hop by headers of the application has one journey for each."""
    handled = []

    async def handler(connection: Any) -> None:
        async for message in rtobs.wrap(connection):
            body = json.loads(message)
            with rtobs.accept("/chat", headers=body["headers"]) as hop:
                handled.append((body["text"], hop.correlation_id))
                await connection.send("thanks")

    async with served(handler) as connection:
        for text in ("one", "two"):
            await connection.send(json.dumps({"text": text, "headers": {"x-request-id": f"id-{text}"}}))
            assert await connection.recv() == "thanks"
    assert [text for text, _ in handled] == ["one", "two"]
    accepted = telemetry.spans("accept")
    assert [span.attributes["rtobs.correlation_id"] for span in accepted] == [each for _, each in handled]
    assert len({each for _, each in handled}) == 2
    sends = telemetry.spans("publish")
    assert [span.parent.span_id for span in sends] == [span.context.span_id for span in accepted]
    assert telemetry.by(names.SENT_MESSAGES, "system", "messaging_destination") == {("websocket", "/chat"): 2}


async def test_without_an_envelope_messages_are_what_they_were(telemetry):
    """By default nothing is added: text and bytes, whole and in parts, arrive as they were sent."""
    came = []

    async def handler(connection: Any) -> None:
        came.extend([message async for message in rtobs.wrap(connection)])

    async def parts() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async with served(handler) as connection:
        rtobs.wrap(connection)
        for message in ("Zürich", b"\x00\xff", ["in ", "parts"], parts(), memoryview(b"view"), "", b""):
            await connection.send(message)
    assert came == ["Zürich", b"\x00\xff", "in parts", "ab", b"view", "", b""]
    assert telemetry.count(names.SENT_MESSAGES) == 7


@pytest.mark.parametrize("trust", [None, "trusted"])
async def test_an_envelope_carries_the_journey_as_far_as_it_is_trusted(telemetry, trust):
    """In an envelope a message's journey is linked by default, and goes on where the other side is trusted."""
    handled = asyncio.Queue()

    async def handler(connection: Any) -> None:
        async for message in rtobs.wrap(connection, trust=trust):
            with rtobs.consume("orders", message) as hop:
                await handled.put((message, hop.correlation_id))

    async with served(handler) as connection:
        rtobs.wrap(connection, envelope=True)
        for message in ("Zürich", b"\x00\xff", bytearray(b"x")):
            with rtobs.accept("/orders") as hop:
                await connection.send(message)
            came, correlation_id = await handled.get()
            assert (came, type(came)) == (message, str if isinstance(message, str) else bytes)
            assert (correlation_id == hop.correlation_id) is (trust == "trusted")
    sent = [span.context.span_id for span in telemetry.spans("publish")]
    linked = [[link.context.span_id for link in span.links] for span in telemetry.spans("consume")]
    assert linked == ([[]] * 3 if trust else [[each] for each in sent])
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


async def test_an_envelope_is_taken_off_streamed_messages_too(telemetry):
    """Who receives in parts gets the payload without its envelope as well."""
    came = asyncio.Queue()

    async def handler(connection: Any) -> None:
        rtobs.wrap(connection)
        await came.put([part async for part in connection.recv_streaming()])

    async with served(handler) as connection:
        rtobs.wrap(connection, envelope=True)
        await connection.send("whole")
        assert "".join(await came.get()) == "whole"


async def test_what_the_other_side_would_not_take_goes_without_its_envelope(telemetry):
    """A message that fits into the usual limit of 1 MiB, and in its envelope would not, goes as it is, counted."""
    came = asyncio.Queue()

    async def handler(connection: Any) -> None:
        async for message in connection:
            await came.put(len(message))

    async with served(handler) as connection:
        rtobs.wrap(connection, envelope=True)
        await connection.send(b"x" * (1 << 20))
        assert await came.get() == 1 << 20
        await connection.send(b"x" * ((1 << 20) - 2000))
        assert (1 << 20) - 2000 < await came.get() <= 1 << 20
        await connection.send(b"small")
        assert await came.get() > 5
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason") == {"too_long": 1}


async def test_a_send_to_a_closed_connection_has_failed_as_ever(telemetry):
    """What the client raises goes on unchanged, and the send has failed with it."""

    async def handler(connection: Any) -> None:
        await connection.close()

    async with served(handler) as connection:
        rtobs.wrap(connection)
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        with pytest.raises(ConnectionClosedOK):
            await connection.send("late")
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ConnectionClosedOK": 1}


async def test_a_broken_connection_ends_the_loop_as_ever(telemetry):
    """A connection that breaks raises the client's own error out of the loop."""

    async def handler(connection: Any) -> None:
        connection.transport.abort()

    async with served(handler) as connection:
        rtobs.wrap(connection)
        with pytest.raises(ConnectionClosedError):
            async for _ in connection:
                pass


async def test_the_query_of_a_path_is_not_told(telemetry):
    """A destination is the path, without its query and without what identifies; the address has no query either."""

    async def handler(connection: Any) -> None:
        async for _ in connection:
            pass

    async with served(handler, "/rooms/4711/chat?token=secret") as connection:
        await rtobs.wrap(connection).send("x")
    span = telemetry.span("publish")
    assert span.name.endswith("/rooms/*/chat")
    assert span.attributes["rtobs.address"] == "/rooms/4711/chat"
    assert "secret" not in span.to_json()


async def test_cancelling_a_receive_loses_nothing(telemetry):
    """A receive that is given up loses no message: the next one gets it."""
    go = asyncio.Event()

    async def handler(connection: Any) -> None:
        rtobs.wrap(connection, envelope=True)
        await connection.send("one")
        await go.wait()
        await connection.send("two")

    async with served(handler) as connection:
        rtobs.wrap(connection)
        assert await connection.recv() == "one"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.01)
        go.set()
        assert await connection.recv() == "two"


def test_threads_work_as_tasks_do(telemetry):
    """A connection of the client's sync classes sends, receives, iterates and streams with the same hops."""
    handled = []
    done = threading.Event()

    def handler(connection: Any) -> None:
        rtobs.wrap(connection, trust="trusted", envelope=True)
        for message in connection:
            with rtobs.consume("orders", message) as hop:
                handled.append((message, hop.correlation_id))
                connection.send("thanks")
            if message == "last":
                break
        handled.append(("".join(connection.recv_streaming()), ""))
        done.set()

    with served_by_threads(handler) as connection:
        rtobs.wrap(connection, envelope=True)
        sent = []
        for message in ("Zürich", b"\x00\xff", "last"):
            with rtobs.accept("/orders") as hop:
                connection.send(message)
            sent.append((message, hop.correlation_id))
            assert connection.recv() == "thanks"
        connection.send("streamed")
        assert done.wait(scaled(10))
    assert handled == [*sent, ("streamed", "")]
    assert len(telemetry.spans("consume")) == 3
    assert telemetry.count(names.SENT_MESSAGES) == 7


async def test_a_connection_is_the_same_wrapped_or_not(telemetry):
    """Results and types of a wrapped connection are those of a bare one, and `unwrap` gives it its class back."""
    found = {}
    for wrapped in (False, True):

        async def handler(connection: Any) -> None:
            async for message in connection:
                await connection.send(message)

        async with served(handler) as connection:
            if wrapped:
                assert rtobs.wrap(connection) is connection
            found[wrapped] = [
                connection.__class__, isinstance(connection, websockets.asyncio.client.ClientConnection),
                await connection.send("x"), await connection.recv(), await connection.send(b"x"),
                await connection.recv(), await connection.send("x"), await connection.recv(decode=False),
            ]  # fmt: skip
            unwrap(connection)
            assert type(connection) is websockets.asyncio.client.ClientConnection
    assert found[True] == found[False]


def test_what_is_no_connection_is_refused():
    """A `connect` that has not connected cannot be wrapped, and the error says what can."""
    with pytest.raises(UnsupportedError, match="wrap the connection that `connect` returns"):
        rtobs.wrap(websockets.asyncio.client.connect.__new__(websockets.asyncio.client.connect))


async def test_what_nobody_takes_is_not_kept(telemetry):
    """Of a thousand messages that no hop takes only the last is remembered, for as long as the connection waits."""

    async def handler(connection: Any) -> None:
        rtobs.wrap(connection, envelope=True)
        for number in range(1000):
            await connection.send(f"message {number}")

    async with served(handler) as connection:
        rtobs.wrap(connection, trust="trusted")
        count = len([message async for message in connection])
    assert count == 1000
    assert len(engine.received) <= 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.binary()))
def test_every_message_comes_back_out_of_its_envelope(message):
    """Whatever the text or the bytes, a message in an envelope is of the same type, and opened it is the same."""

    class Connection:
        request = None
        __rtobs_options__ = leaf.Options(envelope=True)

    connection = Connection()
    with engine.Send(leaf._sent(connection, message)) as send:
        closed = leaf._closed(connection, send, message)
    assert type(closed) is type(message)
    assert closed != message
    assert leaf._opened(closed)[0] == message
