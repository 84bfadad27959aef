"""The nats-py leaf on JetStream: publish, push and pull consumers, and what a consumer's configuration says."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from typing import Any

import nats.errors
import nats.js.errors
import pytest
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from opentelemetry.context import get_current

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import _nats
from rtobs.integrations import nats as leaf
from tests.integrations.adapter import NOWHERE, here
from tests.integrations.nats_support import BODY, Nats, ends, processed, promised, settled
from tests.support.telemetry import SECOND, start, stop
from tests.support.timing import eventually


@pytest.fixture
async def server(nats_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Nats, None]:
    async with Nats(nats_url, unique) as server:
        yield server


@pytest.fixture
async def stream(server) -> str:
    return await server.stream("orders", storage="memory")


@pytest.fixture
async def context(server, stream) -> JetStreamContext:
    return (await server.connect()).jetstream()


# Sending -------------------------------------------------------------------------------------------------------------


async def test_a_publish_is_one_send_until_the_streams_acknowledgement(context, stream, telemetry):
    """JetStream's publish, which is a request and a publish below, is one hop, with the sequence the stream gave it."""
    with rtobs.accept("/orders"):
        acknowledged = await context.publish(f"{stream}.eu", BODY)
        later = await context.publish_async(f"{stream}.eu", BODY)
        assert acknowledged.seq == 1
        assert (await later).seq == 2
    sent = telemetry.spans("publish")
    assert [span.attributes["messaging.message.id"] for span in sent] == [f"{stream}:1", f"{stream}:2"]
    assert {span.parent.span_id for span in sent} == {telemetry.span("accept").context.span_id}
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {(f"{stream}.eu", ""): 2}
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {"send": 2}


async def test_headers_of_the_servers_are_left_alone(context, stream, telemetry):
    """A message id still makes the stream drop the second copy, and an expected stream still refuses another one."""
    first = await context.publish(stream, BODY, headers={"Nats-Msg-Id": "7"})
    second = await context.publish(stream, BODY, headers={"Nats-Msg-Id": "7"})
    assert (first.duplicate, second.duplicate) == (None, True)
    with pytest.raises(nats.js.errors.BadRequestError, match="expected stream"):
        await context.publish(stream, BODY, stream="another")
    pull = await context.pull_subscribe(stream)
    (message,) = await pull.fetch(2, timeout=0.1)
    assert message.headers["Nats-Msg-Id"] == "7"
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 2, "BadRequestError": 1}


async def test_a_publish_that_no_stream_takes_is_the_clients_own_error(server, telemetry):
    """Where no stream takes the message publish and publish_async fail as unwrapped, and count as failed."""
    bare, client = await server.connect(wrapped=False), await server.connect()
    subject = server.unique("nowhere")
    for one in (bare, client):
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await one.jetstream().publish(subject, BODY)
        future = await one.jetstream().publish_async(subject, BODY)
        assert type(future) is asyncio.Future
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await future
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"NoStreamResponseError": 2}
    assert [span.status.is_ok for span in telemetry.spans("publish")] == [False, False]


async def test_an_asynchronous_publish_ends_with_its_future(context, stream, telemetry, clock):
    """The hop of publish_async lasts until the stream's acknowledgement; what follows the call is outside of it."""
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook")
        place = here()
        future = await context.publish_async(stream, BODY)
        assert here() == place
        assert telemetry.spans("publish") == []
        clock.now += 5 * SECOND
        await future
        assert telemetry.count(names.INTENTS) == 1  # a message that relies on the promise has left
        await context.publish(stream, BODY)
    first, second = telemetry.spans("publish")
    assert first.end_time - first.start_time == 5 * SECOND
    assert {first.parent.span_id, second.parent.span_id} == {telemetry.span("accept").context.span_id}


async def test_a_cancelled_future_is_a_cancelled_send(context, stream, telemetry):
    """Whoever cancels the future of publish_async ends its hop as cancelled."""
    future = await context.publish_async(stream, BODY)
    future.cancel()
    await eventually(lambda: telemetry.spans("publish"))
    assert telemetry.span("publish").attributes["rtobs.outcome"] == "cancelled"


async def test_an_error_that_nobody_asks_for_is_still_complained_of(server, telemetry):
    """A failed publish_async whose future nobody looked at is still told of by asyncio."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, details: complaints.append(details["message"]))
    client = await server.connect()
    future = await client.jetstream().publish_async(server.unique("nowhere"), BODY)
    await eventually(future.done)
    await eventually(lambda: telemetry.spans("publish"))
    del future
    gc.collect()
    assert complaints == ["Future exception was never retrieved"]


@pytest.mark.parametrize("result", ["stored", "refused", "left alone"])
async def test_an_asynchronous_publish_in_a_publish_hop_is_that_hop(server, context, stream, telemetry, result):
    """publish_async in a `with rtobs.publish` block is one send, failed if it failed while the block was open."""
    subject = server.unique("nowhere") if result == "refused" else stream
    with rtobs.publish("orders"):
        around = get_current()
        future = await context.publish_async(subject, BODY)
        assert get_current() == around
        if result != "left alone":
            await asyncio.wait([future])
    if result == "refused":
        assert future.exception() is not None
    await future if result != "refused" else None
    error = "NoStreamResponseError" if result == "refused" else ""
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {("orders", error): 1}
    assert here() == NOWHERE


async def test_a_context_can_be_wrapped_by_itself(server, stream, telemetry):
    """A wrapped JetStream context of a bare client sends and consumes with hops; the client stays bare."""
    client = await server.connect(wrapped=False)
    context = rtobs.wrap(client.jetstream())
    assert rtobs.wrap(context) is context
    await context.publish(stream, BODY)
    await (await context.publish_async(stream, BODY))
    seen = await client.subscribe(stream)
    await client.publish(stream, BODY)
    assert (await seen.next_msg()).headers is None
    pull = await context.pull_subscribe(stream)
    for message in await pull.fetch(2):
        with rtobs.consume("orders", message):
            await message.ack()
    assert telemetry.count(names.SENT_MESSAGES) == 2
    assert [span.parent.span_id for span in telemetry.spans("consume")] == [
        span.context.span_id for span in telemetry.spans("publish")
    ]


# Receiving -----------------------------------------------------------------------------------------------------------


async def test_what_a_message_says_of_itself(server, context, stream, telemetry):
    """The span has stream and sequence, consumer, backlog and subject; a bare sender's lag is by the server's clock."""
    bare = await server.connect(wrapped=False)
    for number in range(3):
        await bare.jetstream().publish(f"{stream}.{number}", BODY)
    pull = await context.pull_subscribe(f"{stream}.*", "worker")
    (message,) = await pull.fetch()
    with rtobs.consume("orders", message):
        await message.ack()
    found = telemetry.span("consume").attributes
    assert found["messaging.destination.name"] == f"{stream}.*"
    assert found["rtobs.address"] == f"{stream}.0"
    assert found["messaging.message.id"] == f"{stream}:1"
    assert found["messaging.consumer.group.name"] == "worker"
    assert found["rtobs.message.pending"] == 2
    assert found["rtobs.lag_source"] == "broker"
    assert 0 <= found["rtobs.lag"] < 5
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"orders": 1}


async def test_a_batch_is_one_receive_linked_to_its_messages(context, stream, telemetry):
    """`fetch(5)` makes one receive span with five links, and nothing else that the client does for it is counted."""
    for _ in range(5):
        await context.publish(stream, BODY)
    pull = await context.pull_subscribe(stream)
    messages = await pull.fetch(5)
    sent, received = telemetry.spans("publish"), telemetry.span("receive")
    assert [link.context.span_id for link in received.links] == [span.context.span_id for span in sent]
    assert received.attributes["messaging.batch.message_count"] == len(messages) == 5
    assert received.attributes["messaging.destination.name"] == stream
    for message in messages:
        with rtobs.consume("orders", message):
            await message.ack()
    assert [span.parent.span_id for span in telemetry.spans("consume")] == [span.context.span_id for span in sent]
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {"send": 5, "receive": 1, "ack": 5}
    with pytest.raises(TimeoutError):
        await pull.fetch(5, timeout=0.05)
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 1


WAYS = [
    "callback", "callback acks itself", "plain subject", "next", "iterator", "queue group", "bound push", "fetch",
    "bound pull", "inbox prefix",
]  # fmt: skip


async def _take(way: str, context: JetStreamContext, stream: str, handle: Any) -> None:
    """Take one message the one *way* or the other, and handle it."""
    manager = context._jsm
    config = ConsumerConfig(durable_name="worker", deliver_subject=f"to-{stream}", filter_subject=f"{stream}.eu")
    if way == "callback":
        await context.subscribe(f"{stream}.eu", stream=stream, cb=handle, manual_ack=True)
    elif way == "callback acks itself":
        await context.subscribe(f"{stream}.eu", stream=stream, cb=handle)
    elif way == "plain subject":
        await context.subscribe(f"{stream}.eu", stream=stream, cb=handle, config=config)
    elif way == "next":
        subscription = await context.subscribe(f"{stream}.eu", stream=stream)
        await handle(await subscription.next_msg(timeout=5))
    elif way == "iterator":
        subscription = await context.subscribe(f"{stream}.eu", stream=stream, config=config)
        await handle(await anext(subscription.messages))
    elif way == "queue group":
        await context.subscribe(f"{stream}.eu", "workers", stream=stream, cb=handle, manual_ack=True)
    elif way == "bound push":
        await manager.add_consumer(stream, config)
        subscription = await context.subscribe_bind(stream, config, "worker")
        await handle(await subscription.next_msg(timeout=5))
    elif way == "bound pull":
        await manager.add_consumer(stream, durable_name="worker", filter_subject=f"{stream}.eu")
        subscription = await context.pull_subscribe_bind("worker", stream)
        await handle((await subscription.fetch(timeout=5))[0])
    else:
        prefix = b"mine." if way == "inbox prefix" else None
        subscription = await context.pull_subscribe(f"{stream}.eu", "worker", stream, inbox_prefix=prefix)
        await handle((await subscription.fetch(timeout=5))[0])


@pytest.mark.parametrize("opened_by", ["client", "user"])
@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_take_a_message_is_one_hop(context, stream, telemetry, way, opened_by):
    """However a message is taken, and whether client or user opens the hop, it is sent, consumed and acked once."""

    async def plain(message: Any) -> None:
        if "itself" not in way and way != "plain subject":
            await message.ack()

    called_back = "callback" in way or way in {"plain subject", "queue group"}
    handle = rtobs.consume("orders")(plain) if opened_by == "user" or not called_back else plain
    with rtobs.accept("/orders"):
        await context.publish(f"{stream}.eu", BODY)
    await _take(way, context, stream, handle)
    await processed(telemetry)
    await eventually(lambda: telemetry.count(names.CLIENT_DURATION, operation="ack"))
    receives = {} if called_back else {"receive": 1}
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {"send": 1, "ack": 1, **receives}
    place = "orders" if handle is not plain else f"{stream}.eu"
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {place: 1}
    consumed = telemetry.span("consume")
    assert consumed.parent.span_id == telemetry.span("publish").context.span_id
    # A consumer that was only bound to did not say which subject it picks.
    expected = stream if way == "bound pull" else f"{stream}.eu"
    assert consumed.attributes["messaging.destination.name"] == expected
    assert settled(telemetry) == {"ok": 1}


async def test_an_ordered_consumer_has_nothing_to_settle(context, stream, telemetry):
    """What an ordered consumer's callback raises ends the message as failed: it does not come back."""
    await context.publish(stream, BODY)

    async def handle(_: Any) -> None:
        raise ValueError("broken")

    subscription = await context.subscribe(stream, cb=handle, ordered_consumer=True)
    await processed(telemetry)
    await subscription.unsubscribe()
    assert settled(telemetry) == {"failed": 1}


@pytest.mark.parametrize("way", ["push", "pull", "pull from one that was there"])
async def test_without_acknowledgements_nothing_comes_back(context, stream, telemetry, way):
    """Under the policy `none` an exception is the end, in push and pull consumers, made now or before."""
    await context.publish(stream, BODY)
    config = ConsumerConfig(ack_policy=AckPolicy.NONE)
    if way == "push":
        subscription = await context.subscribe(stream, config=config)
        message = await subscription.next_msg()
    else:
        if way != "pull":
            await context._jsm.add_consumer(stream, config, durable_name="worker", filter_subject=stream)
            config = None
        durable = "worker" if way != "pull" else None
        message = (await (await context.pull_subscribe(stream, durable, config=config)).fetch())[0]
    with pytest.raises(ValueError, match="broken"), rtobs.consume("orders", message):
        raise ValueError("broken")
    assert settled(telemetry) == {"failed": 1}


async def _failed(context: JetStreamContext, subscription: Any) -> None:
    message = (await subscription.fetch(timeout=5))[0]
    with rtobs.consume("orders", message):
        await message.nak()


@pytest.mark.parametrize("told_by", ["configuration", "consumer that was there", "wrap", "wrap, the server being mute"])
async def test_the_last_delivery_is_known(server, stream, telemetry, told_by, monkeypatch):
    """A message that is given back at its last delivery is a dead letter; how many there are the consumer says."""
    client = await server.connect(max_deliveries=2 if "wrap" in told_by else None)
    context = client.jetstream()
    await promised(client, stream)
    config = ConsumerConfig(max_deliver=2) if told_by == "configuration" else None
    if told_by == "consumer that was there":
        await context._jsm.add_consumer(stream, durable_name="worker", filter_subject=stream, max_deliver=2)
    if "mute" in told_by:

        async def fail(_: Any) -> None:
            raise nats.errors.TimeoutError

        monkeypatch.setattr(JetStreamContext.PullSubscription, "consumer_info", fail)
    durable = None if config else "worker"
    subscription = await context.pull_subscribe(stream, durable, config=config)
    await _failed(context, subscription)
    assert settled(telemetry) == {"retried": 1}
    assert ends(telemetry) == {}
    await _failed(context, subscription)
    assert settled(telemetry) == {"retried": 1, "dead_lettered": 1}
    assert ends(telemetry) == {"dead_lettered": 1}


async def test_progress_and_synchronous_acks_are_timed(context, stream, telemetry):
    """Telling of progress is timed and settles nothing; `ack_sync` is an ack whose answer is the server's."""
    await context.publish(stream, BODY)
    subscription = await context.pull_subscribe(stream, config=ConsumerConfig(ack_wait=0.3))
    (message,) = await subscription.fetch()
    with rtobs.consume("orders", message):
        await message.in_progress()
        await message.in_progress()
        assert (await message.ack_sync()).data == b""
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {"send": 1, "receive": 1, "in_progress": 2, "ack": 1}
    assert telemetry.span("consume").attributes["rtobs.settlement"] == "acked"
    assert settled(telemetry) == {"ok": 1}


async def test_errors_of_consumers_are_the_clients_own(server, telemetry):
    """Subscriptions, fetches and settlements that go wrong raise the same from a wrapped client and from a bare one."""

    async def outcome(call: Any) -> object:
        try:
            return (await call).__class__
        except Exception as error:  # noqa: BLE001 - compared below
            return type(error), str(error)[:40]

    found = {}
    for wrapped in (False, True):
        stream = await server.stream("orders", storage="memory")
        context = (await server.connect(wrapped=wrapped)).jetstream()
        pull = await context.pull_subscribe(stream, stream=stream)
        push = await context.subscribe(stream, stream=stream)
        await context.publish(stream, BODY)
        (message,) = await pull.fetch()
        found[wrapped] = [
            context.__class__, pull.__class__, push.__class__, message.__class__,
            message.metadata.num_delivered,
            await outcome(message.ack()), message.is_acked, await outcome(message.ack()), await outcome(message.nak()),
            await outcome(message.term()), await outcome(message.ack_sync()), await outcome(message.in_progress()),
            await outcome(pull.fetch(0)), await outcome(pull.fetch(timeout=0)), await outcome(pull.fetch(timeout=0.02)),
            await outcome(context.subscribe("no.stream")), await outcome(context.pull_subscribe("no.stream")),
            await outcome(context.pull_subscribe_bind("worker")), await outcome(context.subscribe(stream, cb=7)),
            await outcome(context.publish(stream, "text")), await outcome(context.publish("", BODY)),
            await outcome(context.publish(stream, BODY, headers=7)), await outcome(context.publish_async(stream, None)),
            await outcome(pull.unsubscribe()), await outcome(push.unsubscribe()), await outcome(push.unsubscribe()),
        ]  # fmt: skip
    assert found[True] == found[False]


async def _by_fetch(context: JetStreamContext, stream: str) -> None:
    pull = await context.pull_subscribe(stream, "worker")
    for _ in range(100):
        await context._nc.publish(stream, BODY)
    left = 100
    while left:
        for message in await pull.fetch(left, timeout=5):
            left -= 1
            with rtobs.consume("orders", message):
                await message.ack()
    await pull.unsubscribe()


async def _by_iterator(context: JetStreamContext, stream: str) -> None:
    subscription = await context._nc.subscribe(stream)
    for _ in range(100):
        await context._nc.publish(stream, BODY)
        with rtobs.consume("orders", await anext(subscription.messages)):
            pass
    await subscription.unsubscribe()


async def _by_request(context: JetStreamContext, stream: str) -> None:
    async def answer(message: Any) -> None:
        await message.respond(b"")

    subscription = await context._nc.subscribe(f"asked-{stream}", cb=answer)
    for _ in range(100):
        await context._nc.request(f"asked-{stream}", BODY, timeout=5)
    await subscription.unsubscribe()


async def _by_publish_async(context: JetStreamContext, stream: str) -> None:
    for future in [await context.publish_async(f"{stream}.{number}", BODY) for number in range(100)]:
        await future


@pytest.mark.parametrize("batch", [_by_fetch, _by_iterator, _by_request, _by_publish_async])
async def test_nothing_is_left_of_two_thousand_messages_each_way(context, stream, telemetry, batch):
    """After 2,000 messages that were fetched, iterated, requested or sent asynchronously no more objects live."""

    async def run(batches: int) -> int:
        for _ in range(batches):
            await batch(context, stream)
        await asyncio.sleep(0)  # tasks of subscriptions end
        telemetry.forget()
        gc.collect()
        return len(gc.get_objects())

    await run(3)  # caches fill
    before = await run(1)
    assert await run(20) - before < 200


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (_nats, "place"), (_nats, "delivery"), (_nats, "size"), (leaf, "describe"), (leaf, "_stored"),
        (leaf, "_source"), (leaf, "_sent"), (leaf, "_headers"),
    ],
)  # fmt: skip
async def test_a_fault_of_ours_does_not_hurt_the_host(server, monkeypatch, module, step):
    """Whichever step of the leaf fails, messages are sent, handled and settled as without it, and it is counted."""
    telemetry = start(strict=False)
    stream = await server.stream("orders", storage="memory")
    client, handled = await server.connect(), []
    context, subject = client.jetstream(), server.unique("core")

    def fail(*_: object) -> None:
        raise ZeroDivisionError(step)

    monkeypatch.setattr(module, step, fail)

    async def handle(message: Any) -> None:
        handled.append(message.data)
        if message.reply and stream in message.subject:
            await message.ack()

    try:
        await client.subscribe(subject, cb=handle)
        waiting = await client.subscribe(subject)
        await context.subscribe(stream, cb=handle, manual_ack=True)
        pull = await context.pull_subscribe(stream, "worker")
        await client.publish(subject, b"1")
        await client.publish(subject, b"2", headers={"a": "b"})
        await context.publish(stream, b"3")
        await (await context.publish_async(stream, b"4"))
        assert (await waiting.next_msg()).data == b"1"
        assert (await anext(waiting.messages)).headers["a"] == "b"
        for message in await pull.fetch(2, timeout=5):
            await message.ack_sync()
        await eventually(lambda: sorted(handled) == [b"1", b"2", b"3", b"4"])
        assert telemetry.count(names.INTERNAL_ERRORS) > 0
        assert server.errors == []
    finally:
        stop()


# Where messages go on ------------------------------------------------------------------------------------------------


async def test_a_message_put_back_is_the_next_attempt(context, stream, telemetry):
    """A handler that publishes to the subject it consumes from makes attempt 2; the copy's journey is the same."""
    pull = await context.pull_subscribe(f"{stream}.eu")
    with rtobs.accept("/orders") as hop:
        await context.publish(f"{stream}.eu", BODY)
    (message,) = await pull.fetch()
    with rtobs.consume("orders", message):
        await context.publish(f"{stream}.eu", message.data, headers=message.headers)
        await message.ack()
    (again,) = await pull.fetch()
    with rtobs.consume("orders", again) as second:
        assert second.correlation_id == hop.correlation_id
        await again.ack()
    first, second = telemetry.spans("consume")
    assert "rtobs.attempt" not in first.attributes
    assert second.attributes["rtobs.attempt"] == 2


async def test_a_replayed_dead_letter_that_works_has_recovered(server, telemetry):
    """A terminated message's end is counted once; put back from the declared dead-letter stream it has recovered."""
    orders, dead = await server.stream("orders"), await server.stream("dead")
    client = await server.connect(dead_letter=dead)
    context = client.jetstream()
    await promised(client, orders)
    work, graveyard = await context.pull_subscribe(orders), await context.pull_subscribe(dead)

    @rtobs.deliver("webhook", "crm")
    async def deliver(error: Exception | None) -> None:
        if error is not None:
            raise error

    (message,) = await work.fetch()
    with rtobs.consume("orders", message):
        with pytest.raises(ConnectionResetError):
            await deliver(ConnectionResetError("gone"))
        with rtobs.publish("dead", channel="webhook", key="7"):
            await context.publish(dead, message.data, headers=message.headers)
        await message.term()
    assert ends(telemetry) == {"dead_lettered": 1}
    (message,) = await graveyard.fetch()
    with rtobs.consume("dead", message):
        with rtobs.publish("orders", channel="webhook", key="7"):
            await context.publish(orders, message.data, headers=message.headers)
        await message.ack()
    (message,) = await work.fetch()
    with rtobs.consume("orders", message):
        await deliver(None)
        await message.ack()
    assert ends(telemetry) == {"dead_lettered": 1}
    assert telemetry.by(names.RECOVERED, "channel", "provider") == {("webhook", "crm"): 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
