"""FastStream's leaf on live brokers: one hop per message, whatever is under it and whoever else looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aio_pika
import faststream.rabbit.broker.broker as rabbit_module
import pytest
from faststream import AckPolicy, Context
from faststream.exceptions import AckMessage, NackMessage, RejectMessage
from faststream.nats import NatsBroker
from faststream.rabbit import RabbitBroker, RabbitQueue, TestRabbitBroker
from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
from faststream.redis import RedisBroker

import rtobs
from rtobs import _conventions as names
from rtobs.integrations.faststream import Middleware
from tests.integrations.adapter import NOWHERE, Place, here, place_of
from tests.integrations.rabbit import forget_places
from tests.support.telemetry import user_provider
from tests.support.timing import eventually

MESSAGE = Context("message")  # what FastStream gives a parameter with this default
SCOPE = "opentelemetry.instrumentation.faststream"


@pytest.fixture(params=["bare", "over a wrapped aio-pika"])
async def broker(amqp_url: str, request: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[RabbitBroker, None]:
    """A wrapped broker, whose client is wrapped too or not."""
    if request.param != "bare":

        async def connect(*args: Any, **options: Any) -> Any:
            return rtobs.wrap(await aio_pika.connect_robust(*args, **options))

        monkeypatch.setattr(rabbit_module, "connect_robust", connect)
    forget_places()
    broker = rtobs.wrap(RabbitBroker(amqp_url, logger=None))
    yield broker
    await broker.stop()


@pytest.fixture
def queue(unique: Callable[[str], str]) -> RabbitQueue:
    return RabbitQueue(unique("orders"), auto_delete=True)


async def test_one_message_is_one_publish_and_one_consume_hop(broker, queue, telemetry):
    """With or without a wrapped aio-pika under it, a message is sent once, consumed once, in one trace."""
    seen: list[Place] = []

    @broker.subscriber(queue)
    async def handle(body: str) -> None:
        seen.append(here())

    await broker.start()
    with rtobs.accept("/orders") as hop:
        await broker.publish("hello", queue, headers={"x-shop": "7"})
    await eventually(lambda: telemetry.spans("consume"))
    sent, consumed = telemetry.span("publish"), telemetry.span("consume")
    assert seen == [place_of(consumed)]
    assert seen[0].correlation_id == hop.correlation_id
    assert consumed.parent.span_id == sent.context.span_id
    assert telemetry.by(names.SENT_MESSAGES, "system", "messaging_destination") == {("rabbitmq", queue.name): 1}
    assert telemetry.by(names.CONSUMED_MESSAGES, "system", "messaging_destination") == {("rabbitmq", queue.name): 1}
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}
    assert len(telemetry.spans()) == 3
    assert here() == NOWHERE


@pytest.mark.parametrize(
    ("policy", "error", "settled"),
    [
        (AckPolicy.REJECT_ON_ERROR, ConnectionResetError("gone"), "dropped"),
        (AckPolicy.ACK, ConnectionResetError("gone"), "failed"),
        (AckPolicy.ACK, ValueError("bug"), "failed"),
        (AckPolicy.ACK_FIRST, ConnectionResetError("gone"), "failed"),
        (AckPolicy.NACK_ON_ERROR, ConnectionResetError("gone"), "retried"),
        (AckPolicy.REJECT_ON_ERROR, AckMessage(), "ok"),
        (AckPolicy.REJECT_ON_ERROR, NackMessage(), "retried"),
        (AckPolicy.REJECT_ON_ERROR, RejectMessage(), "dropped"),
        (AckPolicy.MANUAL, ConnectionResetError("gone"), "retried"),
    ],
)
async def test_how_a_handler_ends_follows_from_its_ack_policy(broker, queue, telemetry, policy, error, settled):  # noqa: PLR0917  fixtures and cases
    """The end of a hop is what FastStream tells the broker after it, and the handler's error is on it."""
    raised: list[int] = []

    @broker.subscriber(queue, ack_policy=policy)
    async def handle(body: str) -> None:
        if not raised:
            raised.append(1)
            raise error

    await broker.start()
    await broker.publish("hello", queue)
    await eventually(lambda: telemetry.spans("consume"))
    first = telemetry.spans("consume")[0]
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome")[settled] == 1
    expected = None if type(error).__module__.startswith("faststream") else type(error).__name__
    assert first.attributes.get("error.type") == expected
    if expected == "ConnectionResetError":
        assert first.attributes["rtobs.error_category"] == "transport"


@pytest.mark.parametrize("how", ["ack", "nack", "reject"])
async def test_a_message_that_the_handler_settles_is_settled_so(broker, queue, telemetry, how):
    """With the manual policy the handler's own call decides."""
    seen: list[Any] = []

    @broker.subscriber(queue, ack_policy=AckPolicy.MANUAL)
    async def handle(body: str, message: Any = MESSAGE) -> None:
        await (getattr(message, how) if not seen else message.ack)()
        seen.append(body)

    await broker.start()
    await broker.publish("hello", queue)
    await eventually(lambda: telemetry.spans("consume"))
    outcome = {"ack": "ok", "nack": "retried", "reject": "dropped"}[how]
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome")[outcome] == 1


@pytest.mark.parametrize("consumer", ["decorator", "with"])
async def test_user_code_names_the_hop(broker, queue, telemetry, consumer):
    """`@rtobs.consume` below the subscriber, or a block over FastStream's message, is the same hop."""
    seen: list[Place] = []

    if consumer == "decorator":

        @broker.subscriber(queue)
        @rtobs.consume("tickets")
        async def handle(body: str) -> None:
            seen.append(here())

    else:

        @broker.subscriber(queue)
        async def handle(body: str, message: Any = MESSAGE) -> None:
            with rtobs.consume("tickets", message):
                seen.append(here())

    await broker.start()
    await broker.publish("hello", queue)
    await eventually(lambda: telemetry.spans("consume"))
    assert seen == [place_of(telemetry.span("consume"))]
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 1}


async def test_what_a_handler_returns_is_published_in_its_hop(broker, queue, telemetry, unique):
    """A handler's answer to another queue is a child of its hop, and the next handler one more hop of the journey."""
    further = RabbitQueue(unique("further"), auto_delete=True)

    @broker.publisher(further)
    @broker.subscriber(queue)
    async def handle(body: str) -> str:
        return body.upper()

    @broker.subscriber(further)
    async def last(body: str) -> None:
        assert body == "HELLO"

    await broker.start()
    with rtobs.accept("/orders") as hop:
        await broker.publish("hello", queue)
    await eventually(lambda: len(telemetry.spans("consume")) == 2)
    spans = [span for kind in ("accept", "publish", "consume") for span in telemetry.spans(kind)]
    assert {place_of(span).correlation_id for span in spans} == {hop.correlation_id}
    assert len({span.context.trace_id for span in spans}) == 1
    by_id = {span.context.span_id: span for span in spans}
    second = next(
        span for span in telemetry.spans("publish") if by_id[span.parent.span_id] in telemetry.spans("consume")
    )
    assert any(span.parent.span_id == second.context.span_id for span in telemetry.spans("consume"))


async def test_an_answer_to_a_request_is_no_message_that_is_handled(broker, queue, telemetry):
    """What `request` brings back opens no hop of FastStream's; a wrapped aio-pika sees its reply queue."""

    @broker.subscriber(queue)
    async def handle(body: str) -> str:
        return body.upper()

    await broker.start()
    answer = await broker.request("hello", queue, timeout=5)
    assert await answer.decode() == "HELLO"
    await eventually(lambda: telemetry.spans("consume"))
    found = telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination")
    assert found.pop(queue.name) == 1
    assert found in ({}, {"(anonymous)": 1})


async def test_a_cancelled_handler_ends_its_hop(broker, queue, telemetry):
    """A handler that is cancelled, when its broker stops say, ends its hop as cancelled."""
    inside = asyncio.Event()

    @broker.subscriber(queue)
    async def handle(body: str) -> None:
        inside.set()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    await broker.start()
    await broker.publish("hello", queue)
    await inside.wait()
    await eventually(lambda: telemetry.spans("consume"))
    assert telemetry.span("consume").attributes["rtobs.reason"] == "cancelled"


@pytest.mark.parametrize("size", [1000, 110_000, 130_000])
async def test_a_send_never_fails_because_of_our_headers(broker, queue, telemetry, size):
    """A message whose headers nearly fill their frame is sent without ours rather than not at all."""
    got: list[str] = []

    @broker.subscriber(queue)
    async def handle(body: str) -> None:
        got.append(body)

    await broker.start()
    await broker.publish("hello", queue, headers={"x-pad": "y" * size})
    await eventually(lambda: got)
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason").get("too_long", 0) == (size > 100_000)


# Beside FastStream's own telemetry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_its_own_spans_are_the_hops(amqp_url, queue, telemetry, fails):
    """With FastStream's telemetry its publish and process spans carry our facts, and we make none of our own."""
    telemetry_of_its_own = RabbitTelemetryMiddleware(tracer_provider=user_provider())
    broker = rtobs.wrap(RabbitBroker(amqp_url, logger=None, middlewares=[telemetry_of_its_own]))
    seen: list[Place] = []

    @broker.subscriber(queue)
    async def handle(body: str) -> None:
        seen.append(here())
        if fails:
            raise ConnectionResetError

    await broker.start()
    try:
        with rtobs.accept("/orders") as hop:
            await broker.publish("hello", queue)
        await eventually(lambda: telemetry.spans("consume"))
        sent, consumed = telemetry.span("publish"), telemetry.span("consume")
        for span in (sent, consumed):
            assert span.instrumentation_scope.name == SCOPE
            assert span.attributes["rtobs.correlation_id"] == hop.correlation_id
        assert seen == [place_of(consumed)]
        assert consumed.parent.span_id == sent.context.span_id
        assert consumed.attributes["rtobs.outcome"] == ("dropped" if fails else "ok")
        ours = [span for span in telemetry.spans() if span.instrumentation_scope.name != SCOPE]
        assert [span.attributes["rtobs.hop"] for span in ours] == ["accept"]
        assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    finally:
        await broker.stop()


async def test_wrapping_twice_and_the_middleware_by_hand_are_once(queue, telemetry):
    """`wrap` adds one middleware, none where there is one, and works with FastStream's broker for tests."""
    broker = RabbitBroker(logger=None, middlewares=[Middleware()])
    assert rtobs.wrap(rtobs.wrap(broker)) is broker

    @broker.subscriber(queue)
    async def handle(body: str) -> None:
        pass

    async with TestRabbitBroker(broker) as tested:
        await tested.publish("hello", queue)
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    assert telemetry.span("consume").parent.span_id == telemetry.span("publish").context.span_id


# On other brokers ----------------------------------------------------------------------------------------------------


async def test_redis_gets_headers_that_its_framing_cannot_break(redis_url, unique, telemetry):
    """Over Redis Pub/Sub a tenant with letters beyond ASCII changes nothing: body and headers arrive whole."""
    broker = rtobs.wrap(RedisBroker(redis_url, logger=None))
    channel, seen = unique("channel"), []

    @broker.subscriber(channel)
    async def handle(body: str, message: Any = MESSAGE) -> None:
        seen.append((body, message.headers.get("x-shop"), here().correlation_id))

    await broker.start()
    try:
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant="José")
            await broker.publish("héllo", channel, headers={"x-shop": "7"})
        await eventually(lambda: telemetry.spans("consume"))
        assert seen == [("héllo", "7", hop.correlation_id)]
        assert telemetry.span("consume").attributes["rtobs.tenant"] == "José"
        assert telemetry.by(names.CONSUMED_MESSAGES, "system", "messaging_destination") == {("redis", channel): 1}
    finally:
        await broker.stop()


@pytest.mark.parametrize("room", [10, 100_000])
async def test_nats_gets_ours_only_where_they_fit(nats_url, unique, telemetry, room):
    """A NATS message as large as the server takes is sent without our headers; a smaller one with them."""
    broker = rtobs.wrap(NatsBroker(nats_url, logger=None))
    subject, seen = unique("subject"), []

    @broker.subscriber(subject)
    async def handle(message: Any = MESSAGE) -> None:
        seen.append((len(message.body), names.JOURNEY in message.headers))

    await broker.start()
    try:
        size = broker.config.connection_state.connection.max_payload - 200 - room
        await broker.publish(b"x" * size, subject)
        await eventually(lambda: seen)
        assert seen == [(size, room > 1000)]
        assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}
    finally:
        await broker.stop()
