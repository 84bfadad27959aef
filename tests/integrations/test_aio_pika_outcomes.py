"""The outcome table of the design, row by row and rule by rule, through aio-pika on a live RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from tests.integrations.rabbit import Rabbit, arguments, ends, fetched, processed, promised, send, settled
from tests.support.telemetry import Telemetry

DEAD = "{dead}"
"""Stands for the name of the test's dead-letter queue."""


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


# What a provider does, and what a handler then does with the message --------------------------------------------------


@rtobs.deliver("webhook", "crm")
async def deliver(result: Any) -> Any:
    if isinstance(result, type):
        raise result
    return result


async def ack(message: Any) -> None:
    await message.ack()


async def nack(message: Any) -> None:
    await message.nack(requeue=True)


async def requeue(message: Any) -> None:
    await message.reject(requeue=True)


async def reject(message: Any) -> None:
    await message.reject()


async def drop(message: Any) -> None:
    await message.nack(requeue=False)


async def leave(_: Any) -> None:
    """Settle nothing."""


def refused(status: int) -> httpx.Response:
    return httpx.Response(status)


@dataclass
class Row:
    """One row of the table: what happens, and what is counted."""

    name: str
    result: Any
    """What the provider returns, or the class of what it raises."""
    settle: Callable[[Any], Awaitable[None]]
    attempt: tuple[str, str]
    """Result and error category of the attempt."""
    outcomes: dict[str, int]
    settled: str
    raises: bool = False
    """The handler lets the error go on."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `wrap`."""
    declared: bool = False
    """The queue is declared with a dead-letter target."""
    no_ack: bool = False
    reason: str = ""


RESET = ConnectionResetError
ROWS = [
    Row("works", refused(200), ack, ("ok", ""), {"ok": 1}, "ok"),
    Row("works, nothing to settle", refused(200), leave, ("ok", ""), {"ok": 1}, "ok", no_ack=True),
    Row("works, not settled inside", refused(200), leave, ("ok", ""), {"ok": 1}, "ok"),
    # The message comes back.
    Row("error, nacked", RESET, nack, ("failed", "transport"), {}, "retried"),
    Row("error, rejected with requeue", RESET, requeue, ("failed", "transport"), {}, "retried"),
    Row("5xx, nacked", refused(503), nack, ("failed", "unavailable"), {}, "retried"),
    Row("429, nacked", refused(429), nack, ("failed", "rate_limited"), {}, "retried"),
    Row("408, nacked", refused(408), nack, ("failed", "timeout"), {}, "retried"),
    Row("timeout, nacked", TimeoutError, nack, ("failed", "timeout"), {}, "retried"),
    Row("permanent, nacked", refused(422), nack, ("failed", "validation"), {}, "retried"),
    Row("error leaves the handler", RESET, leave, ("failed", "transport"), {}, "retried", raises=True),
    # It does not.
    Row("error, acked", RESET, ack, ("failed", "transport"), {"failed": 1}, "ok"),
    Row("error leaves after the ack", RESET, ack, ("failed", "transport"), {"failed": 1}, "failed", raises=True),
    Row("5xx, acked", refused(503), ack, ("failed", "unavailable"), {"failed": 1}, "ok"),
    Row(
        "error, nothing to settle", RESET, leave, ("failed", "transport"), {"failed": 1}, "failed",
        raises=True, no_ack=True,
    ),
    # Permanent.
    Row("422, acked", refused(422), ack, ("failed", "validation"), {"rejected": 1}, "ok"),
    Row("gone recipient, acked", refused(410), ack, ("failed", "recipient"), {"rejected": 1}, "ok"),
    Row("401, nothing to settle", refused(401), leave, ("failed", "auth"), {"rejected": 1}, "ok", no_ack=True),
    # Rejected without requeue.
    Row(
        "rejected, target declared on the queue", RESET, reject, ("failed", "transport"), {"dead_lettered": 1},
        "dead_lettered", declared=True,
    ),
    Row(
        "nacked without requeue, target declared on the queue", RESET, drop, ("failed", "transport"),
        {"dead_lettered": 1}, "dead_lettered", declared=True,
    ),
    Row(
        "rejected, target declared to wrap", RESET, reject, ("failed", "transport"), {"dead_lettered": 1},
        "dead_lettered", options={"dead_letter": DEAD},
    ),
    Row(
        "rejected, there is no target", RESET, reject, ("failed", "transport"), {"failed": 1}, "failed",
        options={"dead_letter": ""}, reason="tries_used_up",
    ),
    Row(
        "rejected, nothing is known", RESET, reject, ("failed", "transport"), {"dropped": 1}, "dropped",
        reason="rejected_no_dlx_known",
    ),
    Row(
        "nacked at the last declared delivery", RESET, nack, ("failed", "transport"), {"dead_lettered": 1},
        "dead_lettered", options={"max_deliveries": 1}, reason="tries_used_up",
    ),
    Row(
        "error leaves at the last declared delivery", RESET, leave, ("failed", "transport"), {"dead_lettered": 1},
        "dead_lettered", options={"max_deliveries": 1}, raises=True,
    ),
]  # fmt: skip


async def _handle_once(rabbit: Rabbit, telemetry: Telemetry, row: Row, handle: Any) -> str:
    """Send one promised message to a new queue whose callback is *handle*; wait until it was handled once."""
    dead = rabbit.name("dead")
    options = {name: dead if value == DEAD else value for name, value in row.options.items()}
    channel = await rabbit.channel(**options)
    await channel.set_qos(prefetch_count=1)
    queue = await channel.declare_queue(
        rabbit.name("orders"), arguments=arguments(dead_letter=dead if row.declared else None)
    )
    tag = asyncio.get_running_loop().create_future()

    async def once(message: Any) -> None:
        await queue.cancel(await tag)  # what comes back is for another test
        await handle(message)

    correlation_id = await promised(channel, queue.name)
    tag.set_result(await queue.consume(once, no_ack=row.no_ack))
    await processed(telemetry)
    return correlation_id


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
async def test_a_row_of_the_table(rabbit, telemetry, row):
    """What happens to a delivery and to its message decides the attempt, the outcome and how the message settled."""

    async def handle(message: Any) -> None:
        error = None
        try:
            await deliver(row.result)
        except ConnectionResetError as raised:
            error = raised
        except TimeoutError:
            pass
        await row.settle(message)
        if error is not None and row.raises:
            raise error

    await _handle_once(rabbit, telemetry, row, handle)
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {row.attempt: 1}
    assert ends(telemetry) == row.outcomes
    assert settled(telemetry) == {row.settled: 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
    labels = telemetry.by(names.OUTCOMES, "channel", "provider", "step", "tenant", "region")
    assert labels == ({("webhook", "crm", "delivered", "acme", "eu"): 1} if row.outcomes else {})
    if row.reason:
        assert telemetry.span("consume").attributes["rtobs.reason"] == row.reason


async def test_a_cancelled_handler_leaves_the_delivery_open(rabbit, telemetry):
    """A handler that is cancelled makes a cancelled attempt, no outcome, and a message that comes back."""

    async def handle(_: Any) -> None:
        asyncio.current_task().cancel()
        await deliver(asyncio.CancelledError)

    await _handle_once(rabbit, telemetry, Row("cancelled", None, leave, ("cancelled", ""), {}, "retried"), handle)
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {("cancelled", ""): 1}
    assert ends(telemetry) == {}
    assert settled(telemetry) == {"retried": 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


# Who decides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "settle", "expected"),
    [
        (Outcome.DROPPED, ack, {"dropped": 1}),
        (Outcome.RETRIED, reject, {}),
        (Outcome.RETRIED, ack, {}),
        (Outcome.EXPIRED, ack, {"expired": 1}),
    ],
)
async def test_an_explicit_call_beats_the_settlement(rabbit, telemetry, said, settle, expected):
    """What the handler says of its message goes before what it tells the broker."""

    async def handle(message: Any) -> None:
        rtobs.current().outcome(said)
        await settle(message)

    await _handle_once(rabbit, telemetry, Row("explicit", None, settle, ("", ""), expected, ""), handle)
    assert ends(telemetry) == expected
    assert settled(telemetry) == {said.value: 1}


async def test_a_settlement_beats_an_exception(rabbit, telemetry):
    """A handler that nacks and then raises has sent its message back; the error only says why."""

    async def handle(message: Any) -> None:
        await message.nack()
        raise ConnectionResetError

    await _handle_once(rabbit, telemetry, Row("both", None, nack, ("", ""), {}, "retried"), handle)
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome", "error_category") == {("retried", "transport"): 1}


@pytest.mark.parametrize(
    ("options", "settle", "expected"),
    [
        ({}, ack, "ok"),
        ({}, nack, None),
        ({}, reject, "dropped"),
        ({"dead_letter": DEAD}, reject, "dead_lettered"),
        ({"dead_letter": ""}, reject, "failed"),
    ],
)
async def test_without_a_deliver_the_settlement_ends_the_messages_promise(rabbit, telemetry, options, settle, expected):
    """A message handled for good without a `deliver` ends the one promise it carries, by no provider."""
    row = Row("carried", None, settle, ("", ""), {}, "", options=options)
    await _handle_once(rabbit, telemetry, row, settle)
    assert telemetry.by(names.OUTCOMES, "provider", "outcome") == ({("none", expected): 1} if expected else {})
    assert telemetry.count(names.ATTEMPTS) == 0


async def test_a_message_that_carries_no_promise_only_settles(rabbit, telemetry):
    """A message without a promise of its own counts how it settled, and no outcome."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("plain"), arguments=arguments())
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "7")
        await send(channel, queue.name)
    async with (await fetched(queue)).process():
        pass
    assert settled(telemetry) == {"ok": 1}
    assert ends(telemetry) == {}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


async def test_a_message_that_is_passed_on_takes_its_promise_along(rabbit, telemetry):
    """A handler that sends the message on and acks ends nothing; the next consumer does."""
    channel = await rabbit.channel()
    first, second = [
        await channel.declare_queue(rabbit.name(name), arguments=arguments()) for name in ("router", "webhooks")
    ]
    correlation_id = await promised(channel, first.name)
    async with (await fetched(first)).process():
        with rtobs.publish("webhooks", channel="webhook", key="7"):
            await send(channel, second.name)
    assert ends(telemetry) == {}
    async with (await fetched(second)).process():
        assert rtobs.current().correlation_id == correlation_id
        await deliver(refused(200))
    assert ends(telemetry) == {"ok": 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


async def test_the_hops_end_is_final(rabbit, telemetry):
    """A nack after the hop ended brings the message back and counts its duration, and the outcome stays."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("late"), arguments=arguments())
    await promised(channel, queue.name)
    message = await fetched(queue)
    with rtobs.consume("late", message):
        await deliver(refused(200))
    await message.nack()
    assert (await fetched(queue)).redelivered
    assert ends(telemetry) == {"ok": 1}
    assert settled(telemetry) == {"ok": 1}
    assert telemetry.count(names.CLIENT_DURATION, operation="nack") == 1


async def test_the_last_attempt_of_one_delivery_decides(rabbit, telemetry):
    """A delivery that fails and then works inside one handling is two attempts and one outcome."""

    async def handle(message: Any) -> None:
        for answer in (refused(503), refused(200)):
            with rtobs.deliver("webhook", "crm", key="7") as hop:
                if answer.status_code != 200:
                    hop.outcome(Outcome.FAILED)
        await message.ack()

    await _handle_once(rabbit, telemetry, Row("twice", None, ack, ("", ""), {}, ""), handle)
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 1, "ok": 1}
    assert ends(telemetry) == {"ok": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "dropped"),
        ({"requeue": True}, None),
        ({"ignore_processed": True}, "dropped"),
    ],
)
async def test_process_settles_inside_the_hop(rabbit, telemetry, options, expected):
    """`process()` round a failing delivery settles by its own options, and the outcome follows that settlement."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("process"), arguments=arguments())
    await promised(channel, queue.name)
    with pytest.raises(ConnectionResetError):
        async with (await fetched(queue)).process(**options):
            await deliver(RESET)
    assert ends(telemetry) == ({expected: 1} if expected else {})
    assert settled(telemetry) == {expected or "retried": 1}
    assert telemetry.span("consume").attributes["rtobs.settlement"] == ("rejected" if expected else "requeued")


async def test_process_rejects_what_was_redelivered(rabbit, telemetry):
    """With `reject_on_redelivered` the first failure brings the message back and the second ends its promise."""
    channel = await rabbit.channel(dead_letter="")
    queue = await channel.declare_queue(rabbit.name("process"), arguments=arguments())
    await promised(channel, queue.name)
    for _ in range(2):
        with contextlib.suppress(ConnectionResetError):
            async with (await fetched(queue)).process(requeue=True, reject_on_redelivered=True):
                await deliver(RESET)
    assert settled(telemetry) == {"retried": 1, "failed": 1}
    assert ends(telemetry) == {"failed": 1}
    assert telemetry.count(names.ATTEMPTS) == 2
