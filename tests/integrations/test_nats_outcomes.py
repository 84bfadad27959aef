"""The outcome table of the design on JetStream and core NATS, row by row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from tests.integrations.nats_support import BODY, Nats, ends, processed, promised, settled


@pytest.fixture
async def server(nats_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Nats, None]:
    async with Nats(nats_url, unique) as server:
        yield server


# What a provider does, and what a handler then does with the message --------------------------------------------------


@rtobs.deliver("webhook", "crm")
async def deliver(result: Any) -> Any:
    if isinstance(result, BaseException):
        raise result
    return result


async def ack(message: Any) -> None:
    await message.ack()


async def ack_sync(message: Any) -> None:
    await message.ack_sync()


async def nak(message: Any) -> None:
    await message.nak()


async def nak_later(message: Any) -> None:
    await message.nak(delay=60)


async def term(message: Any) -> None:
    await message.term()


async def go_on(message: Any) -> None:
    await message.in_progress()


async def leave(_: Any) -> None:
    """Settle nothing."""


@dataclass
class Row:
    """One row of the table: what happens, and what is counted."""

    name: str
    result: Any
    """What the provider returns or raises."""
    settle: Callable[[Any], Awaitable[None]]
    attempt: tuple[str, str]
    """Result and error category of the attempt."""
    outcomes: dict[str, int]
    settled: str
    raises: bool = False
    """The handler lets the error go on."""
    consumer: dict[str, Any] = field(default_factory=dict)
    """Configuration of the consumer."""
    itself: bool = False
    """The client acknowledges what the handler returns from."""
    reason: str = ""


RESET = ConnectionResetError("gone")
NO_ACK = {"ack_policy": AckPolicy.NONE}
LAST = {"max_deliver": 1}
OK, UNAVAILABLE, INVALID, GONE = (httpx.Response(status) for status in (200, 503, 422, 410))
TRANSPORT = ("failed", "transport")
ROWS = [
    Row("works", OK, ack, ("ok", ""), {"ok": 1}, "ok"),
    Row("works, acked and confirmed", OK, ack_sync, ("ok", ""), {"ok": 1}, "ok"),
    Row("works, the client acks", OK, leave, ("ok", ""), {"ok": 1}, "ok", itself=True),
    Row("works, not settled inside", OK, leave, ("ok", ""), {"ok": 1}, "ok"),
    Row("works, nothing to settle", OK, leave, ("ok", ""), {"ok": 1}, "ok", consumer=NO_ACK),
    # The message comes back.
    Row("error, given back", RESET, nak, TRANSPORT, {}, "retried"),
    Row("error, given back for later", RESET, nak_later, TRANSPORT, {}, "retried"),
    Row("5xx, given back", UNAVAILABLE, nak, ("failed", "unavailable"), {}, "retried"),
    Row("permanent, given back", INVALID, nak, ("failed", "validation"), {}, "retried"),
    Row("error leaves the handler", RESET, leave, TRANSPORT, {}, "retried", raises=True),
    Row("error leaves, the client would ack", RESET, leave, TRANSPORT, {}, "retried", raises=True, itself=True),
    Row("error leaves after progress was told", RESET, go_on, TRANSPORT, {}, "retried", raises=True),
    # It does not.
    Row("error, acked", RESET, ack, TRANSPORT, {"failed": 1}, "ok"),
    Row("error leaves after the ack", RESET, ack, TRANSPORT, {"failed": 1}, "failed", raises=True),
    Row("5xx, acked", UNAVAILABLE, ack, ("failed", "unavailable"), {"failed": 1}, "ok"),
    Row("error, nothing to settle", RESET, leave, TRANSPORT, {"failed": 1}, "failed", raises=True, consumer=NO_ACK),
    # Permanent.
    Row("422, acked", INVALID, ack, ("failed", "validation"), {"rejected": 1}, "ok"),
    Row("gone recipient, acked", GONE, ack, ("failed", "recipient"), {"rejected": 1}, "ok"),
    Row("422, nothing to settle", INVALID, leave, ("failed", "validation"), {"rejected": 1}, "ok", consumer=NO_ACK),
    # Given up.
    Row("error, terminated", RESET, term, TRANSPORT, {"dead_lettered": 1}, "dead_lettered", reason="terminated"),
    Row("given back at the last delivery", RESET, nak, TRANSPORT, {"dead_lettered": 1}, "dead_lettered",
        consumer=LAST, reason="tries_used_up"),
    Row("error leaves at the last delivery", RESET, leave, TRANSPORT, {"dead_lettered": 1}, "dead_lettered",
        consumer=LAST, raises=True),
    Row("error, acked at the last delivery", RESET, ack, TRANSPORT, {"failed": 1}, "ok", consumer=LAST),
]  # fmt: skip


async def _handle_once(server: Nats, telemetry: Any, handle: Any, *, itself: bool = False, **consumer: Any) -> str:
    """Send one promised message to a new stream whose callback is *handle*; wait until it was handled once."""
    stream = await server.stream("orders", storage="memory")
    client = await server.connect()
    correlation_id = await promised(client, stream)
    handled = False

    async def once(message: Any) -> None:
        nonlocal handled
        if handled:
            await asyncio.Event().wait()  # what comes back is for another test
        handled = True
        await handle(message)

    await client.jetstream().subscribe(stream, cb=once, manual_ack=not itself, config=ConsumerConfig(**consumer))
    await processed(telemetry)
    return correlation_id


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
async def test_a_row_of_the_table(server, telemetry, row):
    """What happens to a delivery and to its message decides the attempt, the outcome and how the message settled."""
    first: list[str] = []

    async def handle(message: Any) -> None:
        error = None
        try:
            await deliver(row.result)
        except ConnectionResetError as raised:
            error = raised
        await row.settle(message)
        first.append(rtobs.current().correlation_id)
        if error is not None and row.raises:
            raise error

    correlation_id = await _handle_once(server, telemetry, handle, itself=row.itself, **row.consumer)
    assert first == [correlation_id]
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {row.attempt: 1}
    assert ends(telemetry) == row.outcomes
    assert settled(telemetry) == {row.settled: 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
    labels = telemetry.by(names.OUTCOMES, "channel", "provider", "step", "tenant", "region")
    assert labels == ({("webhook", "crm", "delivered", "acme", "eu"): 1} if row.outcomes else {})
    if row.reason:
        assert telemetry.span("consume").attributes["rtobs.reason"] == row.reason


async def test_a_cancelled_handler_leaves_the_delivery_open(server, telemetry):
    """A handler that is cancelled makes a cancelled attempt, no outcome, and a message that comes back."""

    async def handle(_: Any) -> None:
        asyncio.current_task().cancel()
        await deliver(await asyncio.sleep(1))

    with contextlib.suppress(asyncio.CancelledError):
        await _handle_once(server, telemetry, handle)
    assert ends(telemetry) == {}
    assert settled(telemetry) == {"retried": 1}


async def test_an_explicit_call_beats_the_settlement(server, telemetry):
    """What the handler says of the message stands, whatever the server is told."""

    async def handle(message: Any) -> None:
        rtobs.current().outcome(Outcome.DROPPED, "duplicate")
        await message.ack()

    await _handle_once(server, telemetry, handle)
    assert settled(telemetry) == {"dropped": 1}
    assert ends(telemetry) == {"dropped": 1}


async def test_an_ack_after_the_hop_changes_nothing(server, telemetry):
    """A message that failed in its hop and is acked later counts as retried; the late ack only has its duration."""
    stream = await server.stream("orders", storage="memory")
    client = await server.connect()
    await promised(client, stream)
    subscription = await client.jetstream().pull_subscribe(stream)
    (message,) = await subscription.fetch()
    with pytest.raises(ConnectionResetError), rtobs.consume("orders", message):
        await deliver(RESET)
    await message.ack()
    assert settled(telemetry) == {"retried": 1}
    assert ends(telemetry) == {}
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 1


@pytest.mark.parametrize(
    ("result", "outcome"), [(OK, "ok"), (RESET, "failed"), (UNAVAILABLE, "failed"), (INVALID, "rejected")]
)
async def test_core_nats_settles_as_if_acked(server, telemetry, result, outcome):
    """Without settlements a delivery ends with its one message, also by a handler that raises or calls ack."""
    subject, client = server.unique("orders"), await server.connect()

    async def handle(message: Any) -> None:
        assert message.reply == ""
        await deliver(result)

    await client.subscribe(subject, cb=handle)
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "7")
        with rtobs.publish("orders", channel="webhook", key="7"):
            await client.publish(subject, BODY)
    await processed(telemetry)
    assert ends(telemetry) == {outcome: 1}
    assert settled(telemetry) == {"failed" if result is RESET else "ok": 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
