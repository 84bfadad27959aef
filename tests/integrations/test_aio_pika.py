"""aio-pika's leaf on a live RabbitMQ: what is sent, what it says of itself, and a client that stays what it was."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
from collections.abc import AsyncGenerator, Callable
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import aio_pika
import pytest
from aio_pika import DeliveryMode, ExchangeType, IncomingMessage, Message
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError, ChannelNotFoundEntity, PublishError
from aio_pika.patterns import RPC
from packaging.requirements import Requirement

import rtobs
from rtobs import _conventions as names
from rtobs.errors import UnsupportedError
from rtobs.integrations import aio_pika as leaf
from rtobs.integrations import unwrap
from rtobs.integrations._twin import Options
from tests.integrations.rabbit import BODY, Rabbit, SlowLine, arguments, fetched, promised, send
from tests.support.timing import scaled

FOREIGN = {
    "x-text": "Zürich ✓ \U0001f600",
    "x-bytes": bytearray(b"\x00\xff"),
    "x-int": -(2**40),
    "x-float": 0.5,
    "x-true": True,
    "x-none": None,
    "x-when": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    "x-price": Decimal("12.34"),
    "x-list": [1, "two", [3], {"four": 4}],
    "x-table": {"a": {"b": ["c", bytearray(b"d")]}},
}


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


@pytest.fixture
async def channel(rabbit: Rabbit) -> Any:
    return await rabbit.channel()


@pytest.fixture
async def queue(rabbit: Rabbit, channel: Any) -> Any:
    return await channel.declare_queue(rabbit.name("orders"), arguments=arguments())


def ours(message: IncomingMessage) -> set[str]:
    return message.headers.keys() & set(names.OWN_HEADERS)


# What is said of a message -------------------------------------------------------------------------------------------


def test_the_leaf_names_the_versions_it_is_tested_with():
    """The installed client is one that the leaf says it supports."""
    requirement = Requirement(leaf.SUPPORTS)
    assert leaf.SYSTEM == "rabbitmq"
    assert requirement.name == "aio-pika"
    assert version("aio-pika") in requirement.specifier


async def test_what_a_message_says_of_itself(rabbit, channel, queue, telemetry):
    """A message's description has the queue as destination, the routing key as address, its ids and its size."""
    exchange = await rabbit.exchange(channel, "topics", type=ExchangeType.TOPIC)
    await queue.bind(exchange, "orders.#")
    await exchange.publish(Message(BODY, message_id="m-1", correlation_id="c-1"), "orders.eu.7")
    message = await fetched(queue)
    facts = leaf.describe(message)
    assert facts.native is message
    assert facts.headers == message.headers
    assert (facts.system, facts.destination, facts.address) == ("rabbitmq", queue.name, "orders.eu.7")
    assert (facts.id, facts.conversation_id, facts.size) == ("m-1", "c-1", len(BODY))
    assert (facts.trust, facts.carrier, facts.manual, facts.delivery_count) == ("trusted", True, True, 1)
    assert (facts.dead_letter, facts.max_deliveries, facts.replay, facts.dead_cause) == (None, 0, False, "")
    assert (facts.sent_ns, facts.release_ns) == (0, 0)
    assert facts.neighbour == "opentelemetry.instrumentation.aio_pika"


async def test_the_clients_timestamp_is_no_clock(channel, queue, telemetry):
    """The AMQP timestamp, which the sender sets to whatever it likes, in seconds, does not become a lag."""
    await send(channel, queue.name, timestamp=dt.datetime(2001, 1, 1, tzinfo=dt.UTC))
    async with (await fetched(queue)).process():
        pass
    assert telemetry.seconds(names.MESSAGE_LAG, lag_source="producer") < 60
    assert telemetry.count(names.MESSAGE_LAG) == 1


@pytest.mark.parametrize("no_ack", [False, True])
@pytest.mark.parametrize("way", ["get", "iterator", "callback"])
async def test_what_the_broker_forgets_at_once_is_not_settled_by_hand(channel, queue, telemetry, way, no_ack):
    """Messages of a `no_ack` consumer or fetch have nothing to settle; others are settled by hand."""
    await send(channel, queue.name)
    if way == "get":
        message = await fetched(queue, no_ack=no_ack)
    elif way == "iterator":
        async with queue.iterator(no_ack=no_ack) as iterator:
            message = await anext(iterator)
    else:
        taken = asyncio.get_running_loop().create_future()

        async def handle(message: Any) -> None:
            taken.set_result(message)

        await queue.consume(handle, no_ack=no_ack)
        message = await taken
    assert leaf.describe(message).manual is not no_ack


async def test_spans_have_the_attributes_of_the_messaging_conventions(rabbit, channel, queue, telemetry):
    """Send and process spans name the system, destination, routing key, message id and conversation id."""
    exchange = await rabbit.exchange(channel, "topics", type=ExchangeType.TOPIC)
    await queue.bind(exchange, "orders.#")
    await exchange.publish(Message(BODY, message_id="m-1", correlation_id="c-1"), "orders.eu.7")
    async with (await fetched(queue)).process():
        pass
    for hop, destination, kind in (("publish", exchange.name, "PRODUCER"), ("consume", queue.name, "CONSUMER")):
        span = telemetry.span(hop)
        expected = {
            "messaging.system": "rabbitmq",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": "orders.eu.7",
            "messaging.message.id": "m-1",
            "messaging.message.conversation_id": "c-1",
        }
        assert expected.items() <= span.attributes.items()
        assert (span.name, span.kind.name) == (f"{hop} {destination}", kind)


async def test_a_send_through_the_default_exchange_is_named_by_its_routing_key(channel, queue, telemetry):
    """The default exchange has no name, so the queue that the routing key names is the destination."""
    await send(channel, queue.name)
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "system") == {(queue.name, "rabbitmq"): 1}


async def test_made_up_queue_names_are_no_labels(rabbit, channel, telemetry):
    """Remote calls over queues that broker and client name work, and add two destinations, not one per queue."""
    caller = await rabbit.channel(robust=False)
    answering, asking = await RPC.create(channel), await RPC.create(caller)
    procedure = rabbit.name("double")

    async def double(*, number: int) -> int:
        return 2 * number

    await answering.register(procedure, double, auto_delete=True)
    assert await asking.call(procedure, {"number": 21}) == 42
    await asking.close()
    await answering.close()
    sent = telemetry.by(names.SENT_MESSAGES, "messaging_destination")
    assert sent == {procedure: 1, "amq.default": 1}
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {procedure: 1, "(anonymous)": 1}
    assert telemetry.count(names.MESSAGE_REDELIVERED) == 0


@pytest.mark.parametrize("adopts", [False, True])
async def test_the_brokers_correlation_id_names_a_journey_if_asked_to(rabbit, queue, telemetry, adopts):
    """With `correlation=True` a message from an unwrapped sender begins a journey named by its correlation id."""
    name = "0123456789abcdef0123456789abcdef"
    channel = await rabbit.channel(correlation=adopts)
    await send(await rabbit.channel(wrapped=False), queue.name, correlation_id=name)
    async with (await fetched(await channel.get_queue(queue.name))).process():
        assert (rtobs.current().correlation_id == name) is adopts


# Sending -------------------------------------------------------------------------------------------------------------


async def test_one_message_may_be_sent_to_many_places_at_once(rabbit, channel, telemetry):
    """The caller's message is never changed, and each of 20 concurrent sends of it has its own headers."""
    queues = [await channel.declare_queue(rabbit.name("fan"), arguments=arguments()) for _ in range(20)]
    headers = {"mine": "stays"}
    message = Message(BODY, headers=headers, message_id="m-1", delivery_mode=DeliveryMode.PERSISTENT)
    before = repr(message)
    message.lock()
    await asyncio.gather(*(channel.default_exchange.publish(message, queue.name) for queue in queues))
    assert repr(message) == before
    assert message.headers is headers
    assert headers == {"mine": "stays"}
    arrived = [await fetched(queue) for queue in queues]
    assert len({found.headers["traceparent"] for found in arrived}) == 20
    assert {found.headers["mine"] for found in arrived} == {"stays"}
    assert {(found.body, found.message_id, found.delivery_mode) for found in arrived} == {
        (BODY, "m-1", DeliveryMode.PERSISTENT)
    }


async def test_everything_else_of_a_message_arrives_as_from_a_bare_client(rabbit, channel, queue, telemetry):
    """Payload, properties and headers of every AMQP type are those that an unwrapped client would have sent."""
    message = Message(
        BODY, headers=FOREIGN, content_type="application/json", content_encoding="utf-8", priority=3, expiration=60,
        delivery_mode=DeliveryMode.PERSISTENT, correlation_id="c", reply_to="r", message_id="m", type="t", app_id="a",
        timestamp=dt.datetime(2026, 1, 2, tzinfo=dt.UTC), user_id="guest",
    )  # fmt: skip
    bare = await rabbit.channel(wrapped=False)
    found = []
    for sender in (bare, channel):
        assert type(await sender.default_exchange.publish(message, queue.name)).__name__ == "Ack"
        arrived = await fetched(queue)
        facts = dict(arrived.info())
        facts["headers"] = {name: value for name, value in arrived.headers.items() if name not in names.OWN_HEADERS}
        found.append((arrived.body, {**facts, "delivery_tag": 0}))
        assert bool(ours(arrived)) is (sender is channel)
        await arrived.ack()
    assert found[0] == found[1]
    assert found[0][1]["headers"] == FOREIGN


async def test_a_message_that_came_in_may_be_sent_on_as_it_is(rabbit, channel, queue, telemetry):
    """An incoming message that is published again continues its journey with headers of its own."""
    further = await channel.declare_queue(rabbit.name("further"), arguments=arguments())
    await send(channel, queue.name, headers={"mine": "stays"})
    message = await fetched(queue)
    before = dict(message.headers)
    async with message.process():
        await channel.default_exchange.publish(message, further.name)
        journey = rtobs.current().correlation_id
    arrived = await fetched(further)
    assert message.headers == before
    assert arrived.headers["mine"] == "stays"
    assert arrived.headers["traceparent"] != before["traceparent"]
    async with arrived.process():
        assert rtobs.current().correlation_id == journey


async def test_without_carrier_the_headers_are_the_callers(rabbit, queue, telemetry):
    """`carrier=False` sends no header of ours and none is added later, also where the caller gave none."""
    channel = await rabbit.channel(carrier=False)
    for headers in (None, {"mine": "stays"}):
        await send(channel, queue.name, headers=headers)
        assert (await fetched(queue)).headers == (headers or {})
    assert telemetry.count(names.SENT_MESSAGES) == 2


async def test_a_send_span_covers_the_brokers_confirm(rabbit, queue, telemetry):
    """With publisher confirms the span lasts until the broker has confirmed, over the wire; without, it does not."""
    async with SlowLine(rabbit.url) as line, rtobs.wrap(await aio_pika.connect(line.url)) as connection:
        confirmed, unconfirmed = await connection.channel(), await connection.channel(publisher_confirms=False)
        line.delay = scaled(0.4)
        assert await send(confirmed, queue.name) is not None
        assert await send(unconfirmed, queue.name) is None
        line.delay = 0.0
    spans = telemetry.spans("publish")
    seconds = [(span.end_time - span.start_time) / 1e9 for span in spans]
    assert seconds[0] >= scaled(0.4) > seconds[1]
    assert telemetry.seconds(names.CLIENT_DURATION, operation="send") == pytest.approx(sum(seconds), abs=0.01)


async def test_a_line_that_breaks_during_a_send_is_its_failure(rabbit, queue, telemetry):
    """A connection lost while the confirm is awaited raises the client's own error, which the span names."""
    found: dict[bool, type] = {}
    for wrapped in (False, True):
        async with SlowLine(rabbit.url) as line:
            connection = await aio_pika.connect(line.url)
            if wrapped:
                rtobs.wrap(connection)
            channel = await connection.channel()
            line.delay = 30
            sending = asyncio.create_task(send(channel, queue.name))
            await (await fetched(queue)).ack()  # the broker has it; its confirm is on the way
            line.cut()
            with pytest.raises(AMQPConnectionError) as caught:
                await sending
            found[wrapped] = type(caught.value)
    assert found[True] is found[False]
    span = telemetry.span("publish")
    assert span.attributes["error.type"] == found[True].__qualname__
    assert span.attributes["rtobs.error_category"] == "transport"
    assert not span.status.is_ok


@pytest.mark.parametrize("raises", [False, True])
async def test_a_message_that_nobody_takes_is_a_failed_send(rabbit, telemetry, raises):
    """A mandatory message without a queue is returned, or raises where the channel asks for it; both are failures."""
    found: dict[bool, Any] = {}
    for wrapped in (False, True):
        connection = await rabbit.connect(wrapped=wrapped)
        channel = await connection.channel(on_return_raises=raises)
        if raises:
            with pytest.raises(PublishError) as caught:
                await send(channel, "rtobs-test-nowhere")
            found[wrapped] = str(caught.value)[:40]
        else:
            found[wrapped] = type(await send(channel, "rtobs-test-nowhere"))
    assert found[True] == found[False]
    span = telemetry.span("publish")
    assert span.attributes["rtobs.error_category"] == "rejected_downstream"
    assert span.attributes["rtobs.reason"] == ("PublishError" if raises else "unroutable")
    assert not span.status.is_ok
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"PublishError": 1}


async def test_an_unmandatory_message_that_nobody_takes_is_sent(channel, telemetry):
    """Without `mandatory` the broker drops the message without a word, so the send has worked as far as is known."""
    await channel.default_exchange.publish(Message(b""), "rtobs-test-nowhere", mandatory=False)
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}


async def test_a_missing_exchange_is_the_clients_own_error(rabbit, telemetry):
    """A send to an exchange that does not exist raises what the client raises, and is a failed send."""
    for wrapped in (False, True):
        channel = await rabbit.channel(wrapped=wrapped)
        exchange = await channel.get_exchange("rtobs-test-missing", ensure=False)
        with pytest.raises(ChannelNotFoundEntity, match="no exchange 'rtobs-test-missing'"):
            await exchange.publish(Message(b""), "key")
    assert telemetry.span("publish").attributes["error.type"] == "ChannelNotFoundEntity"
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {
        ("rtobs-test-missing", "ChannelNotFoundEntity"): 1
    }


async def test_a_failed_send_promises_nothing_and_the_next_try_does(channel, queue, rabbit, telemetry):
    """A promise counts once a message that relies on it has left, and only once."""
    missing = await (await rabbit.channel()).get_exchange("rtobs-test-missing", ensure=False)
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "7")
        with pytest.raises(ChannelNotFoundEntity), rtobs.publish("orders", channel="webhook", key="7"):
            await missing.publish(Message(b""), "key")
        assert telemetry.count(names.INTENTS) == 0
        await promised(channel, queue.name)
        await send(channel, queue.name)
        assert telemetry.count(names.INTENTS) == 2


async def test_a_transaction_is_sent_as_its_parts(rabbit, queue, telemetry):
    """Messages of a transaction are sends; what its rollback forgets was sent all the same."""
    connection = await rabbit.connect()
    channel = await connection.channel(publisher_confirms=False)
    transaction = channel.transaction()
    await transaction.select()
    await send(channel, queue.name)
    await transaction.rollback()
    await send(channel, queue.name)
    await transaction.commit()
    assert (await fetched(queue)).headers["traceparent"]
    assert await queue.get(fail=False) is None
    assert telemetry.count(names.SENT_MESSAGES) == 2


# The client stays what it was ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
async def test_objects_keep_their_types(rabbit, telemetry, robust):
    """Classes and `isinstance` are those of a bare client at every level, and a copy of a message is a plain one."""
    found: dict[bool, list[Any]] = {}
    for wrapped in (False, True):
        connection = await rabbit.connect(wrapped=wrapped, robust=robust)
        channel = await connection.channel()
        exchange = await rabbit.exchange(channel, "types")
        queue = await channel.declare_queue(rabbit.name("types"), arguments=arguments())
        await send(channel, queue.name)
        message = await fetched(queue)
        objects = [connection, channel, channel.default_exchange, exchange, queue, queue.iterator(), message]
        objects += [message.process(), copy.copy(message), await channel.get_exchange(exchange.name)]
        found[wrapped] = [(type(each).__name__, each.__class__, isinstance(each, each.__class__)) for each in objects]
        assert [type(each) is not each.__class__ for each in objects] == [wrapped] * 8 + [False, wrapped]
        await message.ack()
    assert found[True] == found[False]


async def test_every_level_can_be_wrapped_by_itself(rabbit, telemetry):
    """A channel, open or not, an exchange or a queue that is wrapped alone is instrumented; its siblings are not."""
    bare = await rabbit.connect(wrapped=False)
    plain = await bare.channel()
    name = rabbit.name("orders")
    await plain.declare_queue(name, arguments=arguments())
    exchange = await rabbit.exchange(plain, "alone")
    await (await plain.get_queue(name)).bind(exchange, "key")

    await send(rtobs.wrap(await bare.channel()), name)
    await send(await rtobs.wrap(bare.channel()), name)
    await rtobs.wrap(exchange).publish(Message(b""), "key")
    assert telemetry.count(names.SENT_MESSAGES) == 3
    await send(plain, name)
    await send(plain, name)
    assert telemetry.count(names.SENT_MESSAGES) == 3

    channel = rtobs.wrap(await bare.channel(), dead_letter="")
    source = await channel.get_queue(name, ensure=False)
    assert leaf.describe(await fetched(source)).dead_letter is False
    alone = rtobs.wrap(await plain.declare_queue(name, passive=True))
    facts = leaf.describe(await fetched(alone))
    assert (facts.destination, facts.dead_letter) == (name, None)
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 2
    assert unwrap(alone) is alone
    facts = leaf.describe(await fetched(alone))
    assert (facts.destination, facts.address) == (exchange.name, "key")  # all that an unwrapped queue's message says
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 2


async def test_what_cannot_be_wrapped_is_refused(telemetry):
    """Wrapping something of aio-pika that sends and receives nothing raises at once and says what to do."""
    with pytest.raises(UnsupportedError, match=r"a Message cannot be wrapped; give its connection"):
        rtobs.wrap(Message(b""))


async def test_unwrapping_gives_each_object_its_class_back(channel, queue, telemetry):
    """An unwrapped exchange writes no headers and an unwrapped queue opens no hops, whatever their channel is."""
    unwrap(channel.default_exchange)
    await send(channel, queue.name)
    unwrap(queue)
    message = await fetched(queue)
    assert not ours(message)
    async with message.process():
        assert rtobs.current().correlation_id == ""
    assert telemetry.spans() == []


@pytest.mark.parametrize("robust", [False, True])
async def test_a_closed_channel_raises_the_clients_own_errors(rabbit, queue, telemetry, robust):
    """Sending on, and settling over, a closed channel raise what they raise without rtobs."""
    found: dict[bool, list[str]] = {}
    for wrapped in (False, True):
        channel = await rabbit.channel(wrapped=wrapped, robust=robust)
        source = await channel.get_queue(queue.name)
        await send(channel, queue.name)
        message = await fetched(source)
        await channel.close()
        with pytest.raises(ChannelInvalidStateError) as sending:
            await send(channel, queue.name)
        with pytest.raises(ChannelInvalidStateError) as settling:
            async with message.process():
                pass
        with pytest.raises(KeyError) as handling:
            async with message.process():
                raise KeyError("mine")
        errors = [caught.value for caught in (sending, settling, handling)]
        found[wrapped] = [f"{type(error)} {str(error).partition(' at 0x')[0]}" for error in errors]
    assert found[True] == found[False]
    assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type").keys() >= {
        ("send", "ChannelInvalidStateError"),
        ("ack", "ChannelInvalidStateError"),
    }
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 2}


async def test_a_broker_that_is_down_is_the_clients_own_error(unique, telemetry):
    """Connecting where nobody listens raises the client's own error: there is nothing to wrap yet."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionError):
        rtobs.wrap(await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{port}/"))
    assert telemetry.spans() == []


async def test_names_of_queues_without_end_do_not_cost_without_end(rabbit, channel, telemetry):
    """Beyond 256 queues of one process a message is named by its routing key, and nothing else is lost."""
    options = [Options().at(f"rtobs-test-place-{number}") for number in range(300)]
    assert not options[-1].destination
    queue = await channel.declare_queue(rabbit.name("late"), arguments=arguments(dead_letter="dead"))
    await send(channel, queue.name)
    facts = leaf.describe(await fetched(queue))
    assert (facts.destination, facts.dead_letter) == (queue.name, True)


@pytest.mark.parametrize("free", [4000, 90, 20])
async def test_a_send_never_fails_because_of_our_headers(rabbit, telemetry, free):
    """Where a message's own headers nearly fill their frame, ours stay out, counted, and it arrives."""
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("full"), arguments=arguments())
    headers = {"x-pad": "y" * (131_072 - 100 - free)}
    await send(channel, queue.name, headers=headers)
    message = await fetched(queue, no_ack=True)
    assert message.headers["x-pad"] == headers["x-pad"]
    assert (names.JOURNEY in message.headers) is (free > 1000)
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason").get("too_long", 0) == (free < 1000)
