"""What RabbitMQ says of a message's past: redeliveries, waiting rooms, dead letters, replays; on a live broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from rtobs.integrations import _rabbitmq
from rtobs.integrations._twin import Options
from tests.integrations.rabbit import Rabbit, arguments, ends, fetched, processed, promised, send, settled
from tests.support.telemetry import Telemetry

WAIT_MS = 60


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


@rtobs.deliver("webhook", "crm")
async def deliver(*, works: bool = True) -> None:
    if not works:
        raise ConnectionResetError


def attempts(telemetry: Telemetry) -> list[Any]:
    """Return the attempt numbers of the consume hops, oldest first."""
    return [span.attributes.get("rtobs.attempt", 1) for span in telemetry.spans("consume")]


def recovered(telemetry: Telemetry) -> int:
    return telemetry.count(names.RECOVERED, channel="webhook", provider="crm")


async def put_back(rabbit: Rabbit, message: Any, queue: str) -> None:
    """Send a dead letter to *queue* as a shovel does: the same body and headers, by a client that nobody wrapped."""
    channel = await rabbit.channel(wrapped=False)
    await send(channel, queue, message.body, headers=message.headers)


async def try_once(queue: Any, *, works: bool) -> None:
    """Handle the next message of *queue*: it is acknowledged if the delivery works, else rejected."""
    message = await fetched(queue)
    with rtobs.consume("orders", message):
        try:
            await deliver(works=works)
        except ConnectionResetError:
            await message.reject()
        else:
            await message.ack()


# Redeliveries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quorum", [False, True])
async def test_deliveries_are_counted_as_far_as_the_queue_says(rabbit, telemetry, quorum):
    """A quorum queue says how often a message was delivered before; a classic queue only that it was."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), durable=True, arguments=arguments(quorum=quorum))
    await promised(channel, queue.name)
    for number in range(4):
        message = await fetched(queue)
        with rtobs.consume("orders", message):
            await (message.nack() if number < 3 else message.ack())
    assert attempts(telemetry) == ([1, 2, 3, 4] if quorum else [1, 2, 2, 2])
    assert telemetry.by(names.MESSAGE_REDELIVERED, "destination") == {"orders": 3}
    assert settled(telemetry) == {"retried": 3, "ok": 1}


@pytest.mark.parametrize("told", [False, True])
async def test_a_delivery_limit_ends_the_promise_once(rabbit, telemetry, told):
    """The dead-letter queue's consumer counts the end, or the last worker if `max_deliveries` told it the limit."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel(max_deliveries=3 if told else None)
    queue = await channel.declare_queue(
        rabbit.name("orders"), durable=True, arguments=arguments(dead_letter=dead, quorum=True, x_delivery_limit=2)
    )
    parked = await channel.declare_queue(dead, arguments=arguments())
    await promised(channel, queue.name)
    for _ in range(3):
        message = await fetched(queue)
        with rtobs.consume("orders", message):
            await message.nack()
    assert ends(telemetry) == ({"dead_lettered": 1} if told else {})
    async with (await fetched(parked)).process():
        pass
    assert ends(telemetry) == {"dead_lettered": 1}
    assert settled(telemetry) == ({"retried": 2, "dead_lettered": 1, "ok": 1} if told else {"retried": 3, "ok": 1})


# Waiting rooms -------------------------------------------------------------------------------------------------------


async def _waiting_room(rabbit: Rabbit, channel: Any) -> Any:
    """Declare a queue whose rejected messages wait elsewhere and come back."""
    orders, wait = rabbit.name("orders"), rabbit.name("wait")
    await channel.declare_queue(wait, arguments=arguments(dead_letter=orders, ttl_ms=WAIT_MS))
    return await channel.declare_queue(orders, arguments=arguments(dead_letter=wait))


async def test_a_rejected_message_comes_back_from_a_waiting_room(rabbit, telemetry):
    """With the real dead-letter queue declared, rejecting into a waiting room is a retry, each return an attempt."""
    channel = await rabbit.channel(dead_letter=rabbit.name("dead"))
    queue = await _waiting_room(rabbit, channel)
    await promised(channel, queue.name)
    for works in (False, False, True):
        await try_once(queue, works=works)
    assert attempts(telemetry) == [1, 2, 3]
    assert settled(telemetry) == {"retried": 2, "ok": 1}
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 2, "ok": 1}
    assert ends(telemetry) == {"ok": 1}
    assert recovered(telemetry) == 0


async def test_a_waiting_room_that_nobody_declared_counts_as_a_dead_letter_queue(rabbit, telemetry):
    """Without `dead_letter` the first rejection ends the promise, once, and a later success has recovered it."""
    channel = await rabbit.channel()
    queue = await _waiting_room(rabbit, channel)
    await promised(channel, queue.name)
    for works in (False, False, True):
        await try_once(queue, works=works)
    assert attempts(telemetry) == [1, 2, 3]
    assert settled(telemetry) == {"dead_lettered": 2, "ok": 1}
    assert ends(telemetry) == {"dead_lettered": 1}
    assert recovered(telemetry) == 1


async def test_a_retry_copied_into_a_waiting_room_is_one_delivery(rabbit, telemetry):
    """A handler that sends a copy to wait and acks has not ended its promise; the copy is attempt 2, and ends it."""
    channel = await rabbit.channel(dead_letter=rabbit.name("dead"))
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    exchange = await _delay_exchange(rabbit, channel, WAIT_MS)
    await promised(channel, queue.name)

    async def handle(message: Any) -> None:
        try:
            await deliver(works=len(telemetry.spans("deliver")) == 2)
        except ConnectionResetError:
            rtobs.current().outcome(Outcome.RETRIED)
            with rtobs.publish("wait", channel="webhook", key="7"):
                await exchange.publish(aio_pika.Message(message.body, headers=message.headers), queue.name)
        await message.ack()

    await queue.consume(handle)
    await processed(telemetry, 3)
    assert attempts(telemetry) == [1, 2, 3]
    assert settled(telemetry) == {"retried": 2, "ok": 1}
    assert ends(telemetry) == {"ok": 1}
    assert recovered(telemetry) == 0


async def _delay_exchange(rabbit: Rabbit, channel: Any, wait_ms: int) -> Any:
    """Declare an exchange whose messages go, after a while, to the queue that their routing key names."""
    exchange = await rabbit.exchange(channel, "delay", type="fanout", auto_delete=True)
    back = {**arguments(ttl_ms=wait_ms), "x-dead-letter-exchange": ""}
    await (await channel.declare_queue(rabbit.name("delay"), arguments=back)).bind(exchange)
    return exchange


async def test_lag_counts_from_the_release(rabbit, telemetry):
    """A message that was delayed on purpose waits since it was let out, in a hop and in a bare loop alike."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    delay_ms = 3000  # not scaled: the broker tells the release to the second, which must not look like the delay
    exchange = await _delay_exchange(rabbit, channel, delay_ms)
    for _ in range(2):
        await exchange.publish(aio_pika.Message(b""), queue.name)
    async with queue.iterator() as iterator:
        message = await anext(iterator)
        with rtobs.consume("orders", message):
            await message.ack()
        await (await anext(iterator)).ack()
    labels = telemetry.by(names.MESSAGE_LAG, "destination", "lag_source")
    assert labels == {("orders", "release"): 1, (queue.name, "release"): 1}
    assert telemetry.seconds(names.MESSAGE_LAG) < 2 * delay_ms / 1000


async def test_a_delayed_message_is_work(rabbit, telemetry):
    """What expired in a delay queue and is read elsewhere than in the declared dead-letter queue is handled as work."""
    for options in ({}, {"dead_letter": rabbit.name("dead")}):
        telemetry.forget()
        channel = await rabbit.channel(**options)
        queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
        delay = await channel.declare_queue(
            rabbit.name("delay"), arguments=arguments(dead_letter=queue.name, ttl_ms=WAIT_MS)
        )
        await promised(channel, delay.name)
        async with (await fetched(queue)).process():
            await deliver()
        assert attempts(telemetry) == [1]
    assert ends(telemetry) == {"ok": 2}
    assert recovered(telemetry) == 0


# Dead letters --------------------------------------------------------------------------------------------------------


async def test_an_expired_message_is_counted_by_the_dead_letter_queues_consumer(rabbit, telemetry):
    """A message nobody handled in time ends as expired when it is read from the declared dead-letter queue."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel(dead_letter=dead)
    parked = await channel.declare_queue(dead, arguments=arguments())
    await channel.declare_queue(orders := rabbit.name("orders"), arguments=arguments(dead_letter=dead, ttl_ms=1))
    correlation_id = await promised(channel, orders)
    async with (await fetched(parked)).process():
        assert rtobs.current().correlation_id == correlation_id
    assert telemetry.by(names.OUTCOMES, "provider", "outcome") == {("none", "expired"): 1}
    assert telemetry.by(names.MESSAGE_LAG, "lag_source").keys() <= {"release", "producer"}


async def test_a_message_pushed_out_of_a_full_queue_is_counted_by_the_dead_letter_queues_consumer(rabbit, telemetry):
    """Of two messages for a queue of length one, the first ends as dead-lettered when its dead letter is read."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel()
    parked = await channel.declare_queue(dead, arguments=arguments())
    queue = await channel.declare_queue(rabbit.name("short"), arguments=arguments(dead_letter=dead, x_max_length=1))
    pushed_out = await promised(channel, queue.name)
    await promised(channel, queue.name)
    async with (await fetched(parked)).process():
        assert rtobs.current().correlation_id == pushed_out
    async with (await fetched(queue)).process():
        await deliver()
    assert telemetry.by(names.OUTCOMES, "provider", "outcome") == {("none", "dead_lettered"): 1, ("crm", "ok"): 1}


@pytest.mark.parametrize("by", ["shovel", "wrapped consumer"])
async def test_a_replay_that_works_has_recovered(rabbit, telemetry, by):
    """A dead letter put back counts no outcome: its failures were counted once, and its success as recovered."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel(dead_letter=dead)
    parked = await channel.declare_queue(dead, arguments=arguments())
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments(dead_letter=dead))
    correlation_id = await promised(channel, queue.name)
    for works in (False, False, True):
        await try_once(queue, works=works)
        if works:
            break
        message = await fetched(parked)
        if by == "shovel":
            await put_back(rabbit, message, queue.name)
            await message.ack()
        else:
            async with message.process():
                with rtobs.publish("orders", channel="webhook", key="7"):
                    await channel.default_exchange.publish(aio_pika.Message(message.body), queue.name)
    spans = [span for span in telemetry.spans("consume") if span.name == "consume orders"]
    assert {span.attributes["rtobs.correlation_id"] for span in spans} == {correlation_id}
    assert ends(telemetry) == {"dead_lettered": 1}
    assert recovered(telemetry) == 1
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 2, "ok": 1}


async def test_an_expired_message_that_is_put_back_has_recovered(rabbit, telemetry):
    """A message that expired, was counted so, and then works after all is a recovery and no second outcome."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel(dead_letter=dead)
    parked = await channel.declare_queue(dead, arguments=arguments())
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments(dead_letter=dead))
    await promised(channel, queue.name, expiration=0.001)
    message = await fetched(parked)
    async with message.process():
        pass
    await put_back(rabbit, message, queue.name)
    async with (await fetched(queue)).process():
        await deliver()
    assert ends(telemetry) == {"expired": 1}
    assert recovered(telemetry) == 1


async def test_a_dead_letter_that_its_consumer_saves_has_recovered(rabbit, telemetry):
    """A consumer of the dead-letter queue that delivers the message itself has recovered it."""
    dead = rabbit.name("dead")
    channel = await rabbit.channel()
    parked = await channel.declare_queue(dead, arguments=arguments())
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments(dead_letter=dead))
    await promised(channel, queue.name)
    await try_once(queue, works=False)
    async with (await fetched(parked)).process():
        await deliver()
    assert ends(telemetry) == {"dead_lettered": 1}
    assert recovered(telemetry) == 1


# The rules by themselves ---------------------------------------------------------------------------------------------

HERE = Options(destination="orders", dead_letter="dead")


def death(queue: object, reason: object, count: object = 1, time: object = None) -> dict[str, object]:
    return {"queue": queue, "reason": reason, "count": count, "time": time}


@pytest.mark.parametrize(
    ("deaths", "options", "expected"),
    [
        ([], HERE, (1, "", False)),
        ([death("wait", "expired")], HERE, (1, "", False)),
        ([death("wait", "expired", 3), death("orders", "rejected", 3)], HERE, (4, "", False)),
        ([death("wait", "expired", 3), death("orders", "rejected", 3)], Options(destination="orders"), (4, "", True)),
        ([death("dead", "expired"), death("orders", "rejected")], HERE, (2, "", True)),
        ([death("orders", "rejected")], HERE, (1, "", True)),
        ([death("orders", "expired")], HERE, (1, "", True)),
        ([death("orders", "delivery_limit", 2)], HERE, (1, "", True)),
        ([death("mails", "rejected")], HERE, (1, "decided", False)),
        ([death("mails", "maxlen")], HERE, (1, "limit", False)),
        ([death("mails", "delivery_limit")], HERE, (1, "limit", False)),
        ([death("mails", "delivery_limit")], Options(destination="dead", max_deliveries=3), (1, "decided", False)),
        ([death("mails", "expired")], Options(destination="dead"), (1, "", False)),
        ([death("mails", "expired")], Options(destination="dead", dead_letter="dead"), (1, "expired", False)),
        ([death("mails", "expired")], Options(destination="", dead_letter=""), (1, "", False)),
        ([death("orders", "something new")], HERE, (1, "", False)),
    ],
)
def test_what_the_latest_death_means(deaths, options, expected):
    """Where and why a message last died, and what `wrap` was told, decide deliveries, dead letters and replays."""
    found = _rabbitmq.past({"x-death": deaths}, options, redelivered=False)
    assert (found.deliveries, found.dead_cause, found.replay) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"x-death": "rejected"},
        {"x-death": {"queue": "orders"}},
        {"x-death": [None, 1, "x", [], ()]},
        {"x-death": [{}]},
        {"x-death": [death(["orders"], ["rejected"], "many", "yesterday")]},
        {"x-death": [death({}, {}, {}, {})]},
        {"x-death": [death("orders", b"rejected")]},
        {"x-delivery-count": "7"},
        {"x-delivery-count": -7},
        {"x-delivery-count": [1]},
    ],
)
@pytest.mark.parametrize("redelivered", [False, True])
def test_a_forged_past_says_nothing(headers, redelivered):
    """Headers of the wrong shape neither raise nor count."""
    assert _rabbitmq.past(headers, HERE, redelivered=redelivered) == (1 + redelivered, "", False, 0)


def test_a_copied_count_of_deliveries_is_ignored():
    """`x-delivery-count` on a message that was not delivered before was copied from another one."""
    assert _rabbitmq.past({"x-delivery-count": 9}, HERE, redelivered=False).deliveries == 1
    assert _rabbitmq.past({"x-delivery-count": 9}, HERE, redelivered=True).deliveries == 10


def test_a_past_of_a_million_deaths_costs_no_more_than_32():
    """Only the 32 latest deaths are read, and negative counts add nothing."""
    deaths = [death("wait", "expired")] + [death("orders", "rejected", -5)] + [death("orders", "rejected")] * 1_000_000
    assert _rabbitmq.past({"x-death": deaths}, HERE, redelivered=False).deliveries == 31


def test_the_release_is_when_the_latest_death_moved_it():
    """A message is here since the moment of its latest death elsewhere; one that died here was put back later."""
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    moved = _rabbitmq.past({"x-death": [death("wait", "expired", 1, time)]}, HERE, redelivered=False)
    assert moved.arrived_ns == int(time.timestamp()) * 1_000_000_000
    stayed = _rabbitmq.past({"x-death": [death("orders", "rejected", 1, time)]}, HERE, redelivered=False)
    assert stayed.arrived_ns == 0


@pytest.mark.parametrize(
    ("declared", "dead_letter", "expected"),
    [
        (None, "dead", None),
        ({}, "dead", None),
        ({"x-dead-letter-exchange": "dlx"}, "dead", True),
        ({"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "wait"}, "dead", True),
        ({"x-dead-letter-exchange": ""}, "dead", True),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}, "dead", True),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"}, "dead", False),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"}, None, True),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"}, "", True),
    ],
)
def test_what_a_queues_arguments_say_of_rejected_messages(declared, dead_letter, expected):
    """Only dead letters that go straight to another queue than the declared one are known to come back."""
    options = _rabbitmq.source(Options(dead_letter=dead_letter), "orders", declared, no_ack=False)
    assert options.dead_letter_known is expected
    assert (options.destination, options.manual) == ("orders", True)


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("orders", "orders"),
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", "(anonymous)"),
        ("amq.rabbitmq.reply-to.g1h2AA5yZXBseUAyNDQxMjU", "(anonymous)"),
        ("amq_0123456789abcdef0123456789abcdef", "(anonymous)"),
        ("amq_orders", "amq_orders"),
        (None, ""),
    ],
)
def test_names_that_nobody_chose_are_no_labels(queue, expected):
    """Queues named by the broker or the client share one name, so that they use up no budget."""
    assert _rabbitmq.place(queue) == expected
