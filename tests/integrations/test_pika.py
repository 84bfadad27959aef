"""pika's leaf beyond the conformance suite, on a live RabbitMQ: how a message is named, settled and refused."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Generator
from typing import Any

import pika
import pytest
from pika.adapters.asyncio_connection import AsyncioConnection

import rtobs
import rtobs.integrations
from rtobs import _conventions as names
from rtobs.integrations import unwrap
from tests.integrations.adapter import NOWHERE, here, place_of
from tests.integrations.pika_support import Rabbit, fetched
from tests.support.timing import eventually, wait_until

BODY = b"\x00 body"


@pytest.fixture
def rabbit(amqp_url: str, unique: Callable[[str], str]) -> Generator[Rabbit, None, None]:
    rabbit = Rabbit(amqp_url, unique)
    yield rabbit
    rabbit.close()


def consumed(channel: Any, number: int = 1) -> None:
    """Let the client call back until *number* messages were handled."""
    for _ in range(500):
        if len(channel.handled) >= number:
            return
        channel.connection.process_data_events(0.01)
    raise AssertionError(f"{len(channel.handled)} of {number} came")


def handles(channel: Any, queue: str, work: Callable[..., None], **options: Any) -> None:
    """Consume *queue* with *work*, and remember what was handled."""
    channel.handled = []

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            work(channel, method, properties, body)
        finally:
            channel.handled.append(method)

    channel.basic_consume(queue, handle, **options)


# Names of a message --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["method", "three things"])
@pytest.mark.parametrize("way", ["get", "consume"])
def test_a_message_is_known_by_its_method_and_by_all_three_things(rabbit, telemetry, way, name):
    """`rtobs.consume` takes the method, or the tuple, of what a fetch or a generator brings."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    with rtobs.accept("/orders") as hop:
        channel.basic_publish("", queue, BODY)
    native = fetched(channel, queue) if way == "get" else next(channel.consume(queue))
    with rtobs.consume("tickets", native[0] if name == "method" else native):
        assert here().correlation_id == hop.correlation_id
        channel.basic_ack(native[0].delivery_tag)
    assert telemetry.by(names.CONSUMED_MESSAGES, "system", "messaging_destination") == {("rabbitmq", "tickets"): 1}
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}


def test_a_tuple_that_is_no_message_is_nobodys(rabbit, telemetry):
    """Tuples that a wrapped connection did not bring are no messages of it."""
    rabbit.connect()
    for other in ((), (None, None, None), ("a", "b", b"c"), (pika.spec.Basic.Deliver(), None, b"")):
        with rtobs.consume("tickets", other) as hop:
            assert len(hop.correlation_id) == 32
    assert telemetry.by(names.CONSUMED_MESSAGES, "system") == {"unknown": 4}


def test_a_decorated_callback_finds_its_message_among_the_arguments(rabbit, telemetry):
    """`@rtobs.consume` on a callback of four arguments is the message's one hop."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    seen: list[Any] = []

    @rtobs.consume("tickets")
    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        seen.append(here())
        channel.basic_ack(method.delivery_tag)

    with rtobs.accept("/orders") as hop:
        channel.basic_publish("", queue, BODY)
    channel.basic_consume(queue, handle)
    wait_until(lambda: channel.connection.process_data_events(0.01) or seen)
    assert seen == [place_of(telemetry.span("consume"))]
    assert seen[0].correlation_id == hop.correlation_id
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 1}


def test_a_generator_that_waits_in_vain_is_as_it_was(rabbit, telemetry):
    """With `inactivity_timeout` a generator yields three Nones, nothing is counted, and it can be resumed."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    messages = channel.consume(queue, inactivity_timeout=0.01)
    assert next(messages) == (None, None, None)
    channel.basic_publish("", queue, BODY)
    native = next(item for item in messages if item[0] is not None)
    assert here() == NOWHERE
    with rtobs.consume("tickets", native):
        channel.basic_ack(native[0].delivery_tag)
    channel.cancel()
    assert list(messages) == []
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 1


# Settling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("all_of_them", [False, True])
def test_one_ack_for_several_settles_the_current_message(rabbit, telemetry, all_of_them):
    """An ack of several ends the hop of the last as acked, is timed once, and leaves nothing behind."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    for _ in range(3):
        channel.basic_publish("", queue, BODY)
    for number in range(3):
        native = fetched(channel, queue)
        with rtobs.consume("tickets", native):
            if number == 2:
                channel.basic_ack(0 if all_of_them else native[0].delivery_tag, multiple=True)
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 1
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 3}
    assert vars(channel)["_rtobs_unsettled"] == {}


def test_messages_that_need_no_ack_are_settled_by_their_handler(rabbit, telemetry):
    """With `auto_ack` a callback that raises has failed for good: the broker has forgotten the message."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)

    def fail(*_: Any) -> None:
        raise ConnectionResetError

    handles(channel, queue, fail, auto_ack=True)
    channel.basic_publish("", queue, BODY)
    with pytest.raises(ConnectionResetError):
        consumed(channel)
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1}
    assert "_rtobs_unsettled" not in vars(channel)


@pytest.mark.parametrize(
    ("target", "outcome"), [("dead", "dead_lettered"), ("waiting", "retried"), (None, "dropped"), ("", "failed")]
)
def test_what_a_reject_means_follows_from_the_queues_declaration(rabbit, telemetry, target, outcome):
    """A reject dead-letters, waits or drops by what the queue was declared with on any channel of the connection."""
    dead = rabbit.name("dead")
    connection = rabbit.connect(**({} if target is None else {"dead_letter": dead if target else ""}))
    route = {"dead": dead, "waiting": rabbit.name("waiting")}.get(target or "")
    queue = rabbit.queue(connection.channel(), dead_letter=route)
    channel = connection.channel()
    channel.queue_declare(queue, passive=True)  # says nothing of its arguments
    channel.basic_publish("", queue, BODY)
    native = fetched(channel, queue)
    with rtobs.consume("tickets", native):
        channel.basic_reject(native[0].delivery_tag, requeue=False)
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {outcome: 1}


def test_a_settlement_of_what_is_not_known_is_the_clients_own(rabbit, telemetry):
    """An ack of a number that was never delivered goes to the broker as it is, and is not measured."""
    channel = rabbit.channel()
    channel.basic_ack(7)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        channel.queue_declare("", exclusive=True)
    assert telemetry.count(names.CLIENT_DURATION) == 0


# Sending -------------------------------------------------------------------------------------------------------------


def test_properties_are_copied_and_stay_as_they_were(rabbit, telemetry):
    """One properties object may be sent many times: it never gets our headers, and no headers stay none."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    for given in (pika.BasicProperties(message_id="7", headers={"x": "1"}), pika.BasicProperties(), None):
        before = copy.deepcopy(given)
        channel.basic_publish("", queue, BODY, given)
        assert given == before
        _, properties, body = fetched(channel, queue, auto_ack=True)
        assert names.JOURNEY in properties.headers
        assert body == BODY
    quiet = rabbit.channel(carrier=False)
    quiet.basic_publish("", queue, BODY)
    assert fetched(quiet, queue, auto_ack=True)[1].headers is None


@pytest.mark.parametrize(
    ("broken", "error", "category"),
    [("unroutable", "UnroutableError", "rejected_downstream"), ("no exchange", "ChannelClosedByBroker", "transport")],
)
def test_a_send_that_the_broker_refuses_has_failed(rabbit, telemetry, broken, error, category):
    """With confirms a publish hop waits for the broker, raises what pika raises, and has failed with its name."""
    channel = rabbit.channel()
    channel.confirm_delivery()
    exchange = "" if broken == "unroutable" else "rtobs-test-no-such-exchange"
    with pytest.raises(getattr(pika.exceptions, error)):
        channel.basic_publish(exchange, "rtobs-test-no-such-queue", BODY, mandatory=True)
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {error: 1}
    assert telemetry.span("publish").attributes["rtobs.error_category"] == category


@pytest.mark.parametrize("frame_max", [4096, 131_072])
def test_a_send_never_fails_because_of_our_headers(rabbit, telemetry, frame_max):
    """Where the frame of headers is as good as full, ours stay out, counted, to the byte; the message arrives."""
    rabbit.parameters.frame_max = frame_max
    channel, bare = rabbit.channel(), rabbit.channel(wrapped=False)
    channel.confirm_delivery()
    queue = rabbit.queue(channel)
    carried: list[bool] = []
    overhead = 8 + 12 + 2 + 4 + len("x") + 1 + 5  # frame, class and size, flags, table, name and value of one header
    for free in (2000, *range(420, 240, -1), 100, 1, 0):
        headers = {"x": "y" * (frame_max - overhead - free)}
        channel.basic_publish("", queue, BODY, pika.BasicProperties(headers=headers))
        _, properties, _ = fetched(bare, queue, auto_ack=True)
        assert properties.headers["x"] == headers["x"]
        carried.append(names.JOURNEY in properties.headers)
    assert carried == sorted(carried, reverse=True)  # while there is room for them, and not after
    assert carried[0]
    assert not carried[-1]
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason") == {"too_long": carried.count(False)}


def test_headers_of_other_types_are_measured_as_the_client_writes_them(rabbit, telemetry):
    """Nested headers that nearly fill the frame go out as they are, ours not; such that leave room carry ours."""
    rabbit.parameters.frame_max = 4096
    channel = rabbit.channel()
    channel.confirm_delivery()
    queue = rabbit.queue(channel)
    for number, fits in ((100, True), (700, False)):
        headers = {"list": [{"n": each} for each in range(number // 10)], "pad": "y" * (number * 5 - 300 * (not fits))}
        channel.basic_publish("", queue, BODY, pika.BasicProperties(headers=headers))
        found = fetched(channel, queue, auto_ack=True)[1].headers
        assert found["list"] == headers["list"]
        assert (names.JOURNEY in found) is fits


# Callback-driven connections -----------------------------------------------------------------------------------------


class Driven:
    """An asyncio connection of pika's, opened."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = AsyncioConnection(
            parameters,
            on_open_callback=lambda _: self._opened.set_result(None),
            on_open_error_callback=lambda _, error: self._opened.set_exception(error),
            custom_ioloop=asyncio.get_running_loop(),
        )
        rtobs.wrap(self.connection, **options)

    async def channel(self) -> Any:
        if not self._opened.done():
            await self._opened
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.connection.channel(on_open_callback=found.set_result)
        return await found

    async def close(self) -> None:
        self.connection.close()
        await eventually(lambda: self.connection.is_closed)


@pytest.fixture
async def driven(rabbit):
    connection = Driven(rabbit.parameters)
    yield connection
    await connection.close()


async def test_a_callback_driven_connection_publishes_and_calls_back_in_hops(rabbit, driven, telemetry):
    """Channels of an asyncio connection send, call back, get and settle as one publish and one consume hop each."""
    channel = await driven.channel()
    queue = rabbit.queue(rabbit.channel(wrapped=False))
    seen: list[Any] = []

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        seen.append(here())
        channel.basic_ack(method.delivery_tag)

    with rtobs.accept("/orders") as hop:
        channel.basic_publish("", queue, BODY)
    tag = channel.basic_consume(queue, handle)
    await eventually(lambda: seen)
    channel.basic_cancel(tag)
    with rtobs.accept("/orders") as second:
        channel.basic_publish("", queue, BODY)
    await asyncio.sleep(0.1)
    channel.basic_get(queue, handle)
    await eventually(lambda: len(seen) == 2)
    assert [place.correlation_id for place in seen] == [hop.correlation_id, second.correlation_id]
    assert seen == [place_of(span) for span in telemetry.spans("consume")]
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 2
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 2
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 2}


async def test_work_that_a_callback_starts_takes_the_message_along(rabbit, driven, telemetry):
    """A task that a decorated coroutine is made of has the message's hop, and its settlement decides."""
    channel = await driven.channel()
    queue = rabbit.queue(rabbit.channel(wrapped=False))
    done = asyncio.Event()

    @rtobs.consume("tickets", message="method")
    async def work(channel: Any, method: Any) -> None:
        await asyncio.sleep(0)
        channel.basic_nack(method.delivery_tag, requeue=False)
        done.set()

    @rtobs.consume("tickets", message="body")  # so that the callback itself opens no hop over its message
    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        asyncio.get_running_loop().create_task(work(channel, method))

    channel.basic_consume(queue, handle)
    channel.basic_publish("", queue, BODY)
    await asyncio.wait_for(done.wait(), 5)
    await eventually(lambda: telemetry.by(names.MESSAGE_SETTLED, "outcome").get("dropped"))


# Undoing -------------------------------------------------------------------------------------------------------------


def test_a_channel_can_be_unwrapped(rabbit, telemetry):
    """`unwrap` of a channel leaves a plain channel that sends without us."""
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    assert type(unwrap(channel)) is pika.adapters.blocking_connection.BlockingChannel
    channel.basic_publish("", queue, BODY)
    assert fetched(channel, queue, auto_ack=True)[1].headers is None
    assert telemetry.count(names.SENT_MESSAGES) == 0


def test_other_things_of_pika_are_refused(telemetry):
    """What is neither a connection nor a channel is refused with a hint."""
    with pytest.raises(rtobs.errors.UnsupportedError, match="give its connection"):
        rtobs.wrap(pika.BasicProperties())


# Watching ------------------------------------------------------------------------------------------------------------


def test_a_queue_is_watched_over_a_connection_of_its_own(rabbit, telemetry):
    """`watch` of a blocking connection tells how many messages wait, while its own thread is busy with other things."""
    connection = rabbit.connect()
    channel = connection.channel()
    queue = rabbit.queue(channel)
    for _ in range(3):
        channel.basic_publish("", queue, BODY)
    watch = rtobs.integrations.watch(connection, [queue], interval=0.05)
    try:
        wait_until(lambda: telemetry.series(names.QUEUE_DEPTH, destination=queue))
        assert telemetry.series(names.QUEUE_DEPTH, destination=queue)[0][1] == 3
    finally:
        watch.stop()
