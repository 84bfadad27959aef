"""The outcome table of the design, row by row, through redis-py on a live Redis: Streams, Pub/Sub and lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import pytest

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from tests.integrations.redis_support import (
    GROUP,
    Redis,
    any_server,
    ends,
    entry,
    promised,
    settled,
)

__all__ = ["any_server"]

RESET = ConnectionResetError("gone")


class Row(NamedTuple):
    """One row of the table: what happens, and what is counted."""

    mode: str
    """Where the message is: in a group's stream, a stream without group, Pub/Sub, a list."""
    result: int | BaseException
    """What the provider answers or raises."""
    acks: bool
    attempt: tuple[str, str]
    """Result and error category of the attempt."""
    outcomes: dict[str, int]
    settled: str
    raises: bool = False
    """The handler lets the error go on."""


ROWS = [
    Row("group", 200, True, ("ok", ""), {"ok": 1}, "ok"),
    Row("group", 200, False, ("ok", ""), {"ok": 1}, "ok"),
    # The message comes back.
    Row("group", RESET, False, ("failed", "transport"), {}, "retried", raises=True),
    Row("group", TimeoutError(), False, ("failed", "timeout"), {}, "retried", raises=True),
    # It does not.
    Row("group", RESET, True, ("failed", "transport"), {"failed": 1}, "ok"),
    Row("group", RESET, True, ("failed", "transport"), {"failed": 1}, "failed", raises=True),
    Row("group", 503, True, ("failed", "unavailable"), {"failed": 1}, "ok"),
    Row("group", 429, False, ("failed", "rate_limited"), {"failed": 1}, "ok"),
    # Permanent.
    Row("group", 422, True, ("failed", "validation"), {"rejected": 1}, "ok"),
    Row("group", 410, False, ("failed", "recipient"), {"rejected": 1}, "ok"),
    # Nothing to settle.
    *[
        row
        for mode in ("no group", "pubsub", "list")
        for row in (
            Row(mode, 200, False, ("ok", ""), {"ok": 1}, "ok"),
            Row(mode, RESET, False, ("failed", "transport"), {"failed": 1}, "failed", raises=True),
            Row(mode, 503, False, ("failed", "unavailable"), {"failed": 1}, "ok"),
            Row(mode, 401, False, ("failed", "auth"), {"rejected": 1}, "ok"),
        )
    ],
]


@rtobs.deliver("webhook", "crm")
async def deliver(result: int | BaseException) -> httpx.Response:
    if isinstance(result, BaseException):
        raise result
    return httpx.Response(result)


async def handle_one(server: Redis, mode: str, handle: Callable[[Any, Callable[[], Awaitable[Any]]], Any]) -> None:
    """Send one promised message and handle it: *handle* gets it and a function that acknowledges it."""
    client, key = server.client(envelope=True), server.group()
    if mode == "pubsub":
        channel = f"{key}.channel"
        pubsub = await server.subscribed(client, channel)
        await promised(lambda: client.publish(channel, b"body"))
        message = await pubsub.get_message(timeout=5)
    elif mode == "list":
        items = server.key("list")
        await promised(lambda: client.rpush(items, b"body"))
        message = await client.lpop(items)
    else:
        await promised(lambda: client.xadd(key, {"body": b"body"}))
        message = await entry(client, key) if mode == "group" else (await client.xread({key: "0"}))[0][1][0]
    await handle(message, lambda: client.xack(key, GROUP, message[0]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.mode} {row.result!r} {row.acks} {row.raises}")
async def test_a_row_of_the_table(any_server, telemetry, row):
    """What happens to a delivery and to its message decides the attempt, the outcome and how the message settled."""
    left: list[BaseException] = []

    async def handle(message: Any, ack: Callable[[], Awaitable[Any]]) -> None:
        try:
            with rtobs.consume("orders", message):
                error = None
                try:
                    await deliver(row.result)
                except OSError as raised:
                    error = raised
                if row.acks:
                    await ack()
                if error is not None and row.raises:
                    raise error
        except OSError as raised:
            left.append(raised)

    await handle_one(any_server, row.mode, handle)
    assert left == ([row.result] if row.raises else [])
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {row.attempt: 1}
    assert ends(telemetry) == row.outcomes
    assert settled(telemetry) == {row.settled: 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
    labels = telemetry.by(names.OUTCOMES, "channel", "provider", "step", "tenant", "region")
    assert labels == ({("webhook", "crm", "delivered", "acme", "eu"): 1} if row.outcomes else {})


@pytest.mark.parametrize("mode", ["group", "no group", "pubsub", "list"])
async def test_what_the_handler_says_of_its_message_goes_first(any_server, telemetry, mode):
    """A message that its handler says it dropped ends its promise as dropped, acknowledged or not."""

    async def handle(message: Any, _: Any) -> None:
        with rtobs.consume("orders", message) as hop:
            hop.outcome(Outcome.DROPPED)

    await handle_one(any_server, mode, handle)
    assert settled(telemetry) == ends(telemetry) == {"dropped": 1}
    assert telemetry.by(names.OUTCOMES, "provider") == {"none": 1}


async def test_a_promise_is_kept_by_a_later_delivery(any_server, telemetry):
    """A promised delivery that fails in the first delivery of its message and works in the second ends ok, once."""
    client, key = any_server.client(), any_server.group()
    await promised(lambda: client.xadd(key, {"body": b"body"}))
    found = await entry(client, key)
    with pytest.raises(ConnectionResetError), rtobs.consume("orders", found):
        await deliver(RESET)
    ((again,), _) = (await client.xautoclaim(key, GROUP, "second", 0))[1:]
    with rtobs.consume("orders", again):
        await deliver(200)
        await client.xack(key, GROUP, again[0])
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 1, "ok": 1}
    assert settled(telemetry) == {"retried": 1, "ok": 1}
    assert ends(telemetry) == {"ok": 1}
    assert telemetry.count(names.INTENTS) == 1
    assert telemetry.count(names.REPEATED) == 0
