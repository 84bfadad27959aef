"""Consuming through aio-pika on a live RabbitMQ: callbacks of every kind, iterators, fetches and `process()`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import warnings
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from aio_pika import IncomingMessage
from aio_pika.exceptions import MessageProcessError, QueueEmpty
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from tests.integrations.adapter import NOWHERE, Place, assert_one_of_each, here, place_of
from tests.integrations.rabbit import Rabbit, arguments, fetched, processed, send, settled
from tests.support.timing import eventually, scaled

pytestmark = [
    pytest.mark.filterwarnings("ignore:You probably registering the non-coroutine:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Function .* returned a non awaitable result:DeprecationWarning"),
]


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


# Callbacks -----------------------------------------------------------------------------------------------------------


class Service:
    """Handlers as people write them; each notes where it ran."""

    def __init__(self) -> None:
        self.seen: list[Place] = []

    async def coroutine(self, message: Any) -> str:
        await asyncio.sleep(0)
        await self._handle(message)
        return "done"

    async def keyed(self, key: str, message: Any) -> None:
        assert key == "key"
        await self._handle(message)

    def plain(self, _: Any) -> None:
        self.seen.append(here())

    async def __call__(self, message: Any) -> None:
        await self._handle(message)

    async def _handle(self, message: Any) -> None:
        self.seen.append(here())
        await message.ack()
        assert here() == self.seen[-1]

    @rtobs.consume("tickets")
    async def decorated(self, message: Any) -> None:
        await self._handle(message)

    @rtobs.consume("tickets", "message")
    async def decorated_keyed(self, key: str, message: Any) -> None:
        await self.keyed(key, message)

    @rtobs.consume("tickets")
    def decorated_plain(self, message: Any) -> None:
        self.plain(message)


class Decorated(Service):
    """An object whose call is decorated."""

    @rtobs.consume("tickets")
    async def __call__(self, message: Any) -> None:
        await self._handle(message)


def _function(service: Service) -> Callable[..., Any]:
    async def handle(message: Any) -> None:
        await service.coroutine(message)

    return handle


def _plain_function(service: Service) -> Callable[..., Any]:
    def handle(message: Any) -> None:
        service.plain(message)

    return handle


def _outer(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(message: Any) -> None:
        await function(message)

    return call


CALLBACKS: dict[str, Callable[[Service], Callable[..., Any]]] = {
    "coroutine function": _function,
    "bound coroutine method": lambda service: service.coroutine,
    "partial": lambda service: functools.partial(service.keyed, "key"),
    "partial of a partial": lambda service: functools.partial(functools.partial(service.keyed), "key"),
    "lambda that returns a coroutine": lambda service: lambda message: service.keyed("key", message),
    "object with an async call": lambda service: service,
    "function": _plain_function,
    "bound method": lambda service: service.plain,
    "partial of a function": lambda service: functools.partial(_plain_function(service)),
}
DECORATED: dict[str, Callable[[Service], Callable[..., Any]]] = {
    "coroutine function": lambda service: rtobs.consume("tickets")(_function(service)),
    "bound coroutine method": lambda service: service.decorated,
    "partial": lambda service: functools.partial(service.decorated_keyed, "key"),
    "function": lambda service: rtobs.consume("tickets")(_plain_function(service)),
    "bound method": lambda service: service.decorated_plain,
    "object with a decorated call": lambda service: service,
    "under another decorator": lambda service: _outer(rtobs.consume("tickets")(_function(service))),
    "twice": lambda service: rtobs.consume("tickets")(rtobs.consume("tickets")(_function(service))),
}


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("kind", CALLBACKS)
async def test_a_callback_of_any_kind_is_one_hop(rabbit, telemetry, kind, robust):
    """Functions, methods, partials and objects, async or not, run in their message's hop, once."""
    channel = await rabbit.channel(robust=robust)
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    service = Service()
    await queue.consume(CALLBACKS[kind](service))
    await send(channel, queue.name)
    await processed(telemetry)
    assert_one_of_each(telemetry)
    assert service.seen == [place_of(telemetry.span("consume"))]
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {queue.name: 1}


@pytest.mark.parametrize("kind", DECORATED)
async def test_a_decorated_callback_opens_its_own_hop(channel, queue, telemetry, kind):
    """A callback that `@rtobs.consume` decorates somewhere inside is one hop, under the decorator's name."""
    service = Decorated() if kind == "object with a decorated call" else Service()
    await queue.consume(DECORATED[kind](service))
    await send(channel, queue.name)
    await processed(telemetry)
    assert_one_of_each(telemetry)
    assert service.seen == [place_of(telemetry.span("consume"))]
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination", "system") == {("tickets", "rabbitmq"): 1}
    assert telemetry.span("consume").attributes["messaging.destination.name"] == queue.name


@pytest.mark.parametrize("kind", CALLBACKS)
async def test_the_client_warns_of_the_same_callbacks(rabbit, telemetry, kind):
    """What the client says of a callback that is no coroutine function it says of a wrapped one, and no more."""
    found: dict[bool, list[str]] = {}
    for wrapped in (False, True):
        channel = await rabbit.channel(wrapped=wrapped)
        queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
        service = Service()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await queue.consume(CALLBACKS[kind](service))
            await send(channel, queue.name)
            await eventually(lambda service=service: service.seen)
            await asyncio.sleep(0)
        found[wrapped] = [str(one.message)[:20].split()[0] for one in caught if one.category is DeprecationWarning]
    assert found[True] == found[False]


async def test_a_callback_is_wrapped_once(channel, queue, telemetry):
    """A callback that comes back to `consume`, as after a reconnect, is taken as it is."""
    tag = await queue.consume(_function(Service()))
    kept = queue._consumers[tag]["callback"]
    await queue.cancel(tag)
    tag = await queue.consume(kept)
    assert queue._consumers[tag]["callback"] is kept
    await send(channel, queue.name)
    await processed(telemetry)
    assert_one_of_each(telemetry)


async def test_what_was_current_when_the_channel_was_opened_is_not_when_a_message_comes(rabbit, telemetry):
    """Neither the span, the hop nor the baggage of the request that once opened the channel reaches its messages."""
    connection = await rabbit.connect()
    tracer = trace.get_tracer("the user's")
    token = attach(baggage.set_baggage("shop", "zurich"))
    with tracer.start_as_current_span("first request"), rtobs.accept("/first"):
        channel = await connection.channel()
        queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
        sender = await rabbit.channel(wrapped=False)
    detach(token)
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append(baggage.get_all())
        await message.ack()

    await queue.consume(handle)
    await send(sender, queue.name)
    await processed(telemetry)
    span = telemetry.span("consume")
    first = next(span for span in telemetry.spans() if span.name == "first request")
    assert span.parent is None
    assert span.context.trace_id != first.context.trace_id
    assert not span.links
    assert seen == [{}]


async def test_the_users_own_context_reaches_a_callback(rabbit, telemetry):
    """A context that the user attached for good before he opened the channel is there in callbacks, as unwrapped."""
    token = attach(baggage.set_baggage("shop", "zurich"))
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append(baggage.get_baggage("shop"))
        await message.ack()

    await queue.consume(handle)
    detach(token)
    await send(channel, queue.name)
    await processed(telemetry)
    assert seen == ["zurich"]


async def test_a_callback_that_sends_is_the_sends_parent(rabbit, channel, queue, telemetry):
    """What a handler sends continues its message's journey, as a child of its process span."""
    further = await channel.declare_queue(rabbit.name("further"), arguments=arguments())

    async def handle(message: Any) -> None:
        await send(channel, further.name)
        await message.ack()

    await queue.consume(handle)
    with rtobs.accept("/orders") as hop:
        await send(channel, queue.name)
    await processed(telemetry)
    consumed = telemetry.span("consume")
    sent = telemetry.spans("publish")[-1]
    assert sent.parent.span_id == consumed.context.span_id
    async with (await fetched(further)).process():
        assert rtobs.current().correlation_id == hop.correlation_id


# Iterators and fetches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("opened", ["with", "bare"])
async def test_an_iterator_opens_no_hop(rabbit, telemetry, robust, opened):
    """A loop, with or without `async with`, counts one receive per message and leaves hops to the user's scopes."""
    channel = await rabbit.channel(robust=robust)
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    for _ in range(3):
        await send(channel, queue.name)
    iterator = queue.iterator()
    if opened == "with":
        await iterator.__aenter__()
    scopes = iter(["process", "consume", "none"])
    async for message in iterator:
        assert here() == NOWHERE
        scope = next(scopes)
        if scope == "process":
            async with message.process():
                assert here().correlation_id
        elif scope == "consume":
            with rtobs.consume("tickets", message):
                await message.ack()
        else:
            await message.ack()
            break
    assert here() == NOWHERE
    await iterator.close()
    assert telemetry.count(names.CLIENT_DURATION, operation="receive", messaging_destination=queue.name) == 3
    assert telemetry.spans("receive") == []
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {queue.name: 1, "tickets": 1}
    assert telemetry.by(names.MESSAGE_LAG, "destination") == {queue.name: 2, "tickets": 1}
    assert len(leaf.received) == 0


async def test_what_an_iterator_has_prefetched_goes_back_uncounted(channel, queue, telemetry):
    """Messages that a closing iterator returns to the queue were never handed out: nothing is counted of them."""
    for number in range(5):
        await send(channel, queue.name, b"%d" % number)
    async with queue.iterator() as iterator:
        async with (await anext(iterator)).process():
            pass
        await eventually(lambda: iterator._queue.qsize() == 4)
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 1
    assert telemetry.count(names.CLIENT_DURATION, operation="nack") == 0
    assert settled(telemetry) == {"ok": 1}
    assert [(await fetched(queue)).body for _ in range(4)] == [b"1", b"2", b"3", b"4"]


async def test_lag_does_not_grow_with_the_users_work(channel, queue, telemetry):
    """The wait of a message that no hop took ends when the loop gets it, not when the loop asks for the next one."""
    await send(channel, queue.name)
    async with queue.iterator() as iterator:
        await (await anext(iterator)).ack()
        await asyncio.sleep(scaled(0.5))
    assert telemetry.count(names.MESSAGE_LAG) == 1
    assert telemetry.seconds(names.MESSAGE_LAG) < scaled(0.5)


async def test_an_iterator_that_times_out_does_what_the_client_does(rabbit, telemetry):
    """A loop with a timeout ends as unwrapped, and counts nothing for what did not come."""
    for wrapped in (False, True):
        channel = await rabbit.channel(wrapped=wrapped)
        queue = await channel.declare_queue(rabbit.name("empty"), arguments=arguments())
        with pytest.raises(TimeoutError):
            async with queue.iterator(timeout=scaled(0.1)) as iterator:
                await anext(iterator)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
    assert telemetry.count(names.CLIENT_DURATION) == 0


async def test_an_empty_fetch_is_nothing(queue, telemetry):
    """A fetch that finds nothing returns or raises what the client does, and is not counted."""
    assert await queue.get(fail=False) is None
    with pytest.raises(QueueEmpty):
        await queue.get()
    assert telemetry.count(names.CLIENT_DURATION) == 0
    assert telemetry.spans() == []


# process() -----------------------------------------------------------------------------------------------------------


async def test_process_is_a_hop_that_ends_after_its_settlement(channel, queue, telemetry):
    """The outermost `process()` opens the hop, acks inside it, and leaves nothing current."""
    with rtobs.accept("/orders") as hop:
        await send(channel, queue.name)
    message = await fetched(queue)
    async with message.process() as same:
        assert same is message
        assert rtobs.current().correlation_id == hop.correlation_id
        inside = here()
    assert here() == NOWHERE
    assert message.processed
    span = telemetry.span("consume")
    assert place_of(span) == inside
    assert span.attributes["rtobs.settlement"] == "acked"
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 1
    assert settled(telemetry) == {"ok": 1}


@pytest.mark.parametrize("outer", ["callback", "consume", "process", "decorated"])
async def test_process_joins_the_hop_that_is_open(channel, queue, telemetry, outer):
    """Inside a hop of its message `process()` opens none, and settles in that one."""

    async def handle(message: Any) -> None:
        around = here()
        async with message.process(ignore_processed=True):
            assert around in (here(), NOWHERE)

    async def consume(message: Any) -> None:
        with rtobs.consume("tickets", message):
            await handle(message)

    async def process(message: Any) -> None:
        async with message.process(ignore_processed=True):
            await handle(message)

    await send(channel, queue.name)
    if outer == "callback":
        await queue.consume(handle)
    else:
        message = await fetched(queue)
        await {"consume": consume, "process": process, "decorated": rtobs.consume("tickets")(handle)}[outer](message)
    await processed(telemetry)
    assert_one_of_each(telemetry)
    assert telemetry.span("consume").attributes["rtobs.settlement"] == "acked"


async def test_a_user_scope_inside_process_names_its_hop(channel, queue, telemetry):
    """`with rtobs.consume` inside `process()` is the same hop, under the user's name."""
    await send(channel, queue.name)
    message = await fetched(queue)
    async with message.process():
        with rtobs.consume("tickets", message):
            pass
        assert here() != NOWHERE
    assert_one_of_each(telemetry)
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 1}


async def test_process_of_another_message_is_another_hop(rabbit, channel, queue, telemetry):
    """`process()` of a second message inside the first one's hop is its own hop, in its own journey."""
    with rtobs.accept("/1") as first:
        await send(channel, queue.name)
    with rtobs.accept("/2") as second:
        await send(channel, queue.name)
    async with (await fetched(queue)).process():
        async with (await fetched(queue)).process():
            assert rtobs.current().correlation_id == second.correlation_id
        assert rtobs.current().correlation_id == first.correlation_id
    assert settled(telemetry) == {"ok": 2}


@pytest.mark.parametrize("kind", [KeyError, asyncio.CancelledError])
async def test_what_leaves_process_is_the_same_object(channel, queue, telemetry, kind):
    """An exception or a cancellation goes on unchanged, the message is rejected inside the hop, and nothing stays."""
    await send(channel, queue.name)
    error, cause = kind("mine"), ValueError("cause")
    with pytest.raises(kind) as caught:
        async with (await fetched(queue)).process():
            raise error from cause
    assert caught.value is error
    assert error.__cause__ is cause
    assert here() == NOWHERE
    span = telemetry.span("consume")
    assert span.attributes["error.type"] == kind.__qualname__
    assert span.attributes["rtobs.settlement"] == "rejected"


async def test_a_settlement_that_fails_leaves_process_unchanged(channel, queue, telemetry):
    """Acking a message that was acked already raises the client's own error, and the hop shows it."""
    await send(channel, queue.name)
    message = await fetched(queue)
    with pytest.raises(MessageProcessError):
        async with message.process():
            await message.ack()
    span = telemetry.span("consume")
    assert span.attributes["error.type"] == "MessageProcessError"
    assert span.attributes["rtobs.settlement"] == "acked"
    assert here() == NOWHERE


async def test_contexts_of_process_may_be_entered_by_many_tasks(channel, queue, telemetry):
    """Fifty messages processed at once, each in its own task, are fifty hops, each in its own journey."""
    sent = []
    for _ in range(50):
        with rtobs.accept("/orders") as hop:
            await send(channel, queue.name, hop.correlation_id.encode())
        sent.append(hop.correlation_id)
    entered, everybody = 0, asyncio.Event()

    async def work(message: Any) -> str:
        nonlocal entered
        async with message.process():
            entered += 1
            if entered == 50:
                everybody.set()
            await everybody.wait()
            assert rtobs.current().correlation_id == message.body.decode()
            return rtobs.current().correlation_id

    found = await asyncio.gather(*[work(await fetched(queue)) for _ in range(50)])
    assert sorted(found) == sorted(sent)
    assert here() == NOWHERE
    assert settled(telemetry) == {"ok": 50}


# What stays ----------------------------------------------------------------------------------------------------------


async def _by_callback(queue: Any, count: int) -> None:
    done = asyncio.Event()
    left = count

    async def handle(message: Any) -> None:
        nonlocal left
        async with message.process():
            left -= 1
        if not left:
            done.set()

    tag = await queue.consume(handle)
    await asyncio.wait_for(done.wait(), 30)
    await queue.cancel(tag)


async def _by_iterator(queue: Any, count: int) -> None:
    async with queue.iterator() as iterator:
        async for message in iterator:
            count -= 1
            if count % 2:
                await message.ack()
            else:
                async with message.process():
                    pass
            if not count:
                break


async def _by_fetch(queue: Any, count: int) -> None:
    for _ in range(count):
        message = await fetched(queue)
        with rtobs.consume("tickets", message):
            await message.ack()


def _alive() -> int:
    gc.collect()
    return sum(issubclass(type(found), IncomingMessage) for found in gc.get_objects())


@pytest.mark.parametrize("way", [_by_callback, _by_iterator, _by_fetch])
async def test_nothing_is_left_of_three_thousand_messages(channel, queue, telemetry, way):
    """Of 3,000 messages none is alive afterwards, and nothing of ours knows one, however they were consumed."""
    before = _alive()
    for _ in range(6):
        await asyncio.gather(*(send(channel, queue.name) for _ in range(500)))
        await way(queue, 500)
        telemetry.forget()
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: _alive() <= before, timeout=2)
    assert _alive() <= before + 1  # the last one, while the client's task is kept
    assert len(leaf.received) == 0
