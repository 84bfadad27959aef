"""Redis Pub/Sub through a wrapped client, sync and asyncio, on a live Redis."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import rtobs
from rtobs import _conventions as names
from rtobs._journey import envelope
from rtobs.integrations import redis as redis_leaf
from tests.integrations.adapter import NOWHERE, Place, here, place_of
from tests.integrations.redis_support import any_server, got, parent_id, server, settled, span_id
from tests.support.timing import eventually, wait_until

__all__ = ["any_server", "server"]

BODY = bytes(range(256))


async def fetched(pubsub: Any) -> Any:
    """Return the next message, waiting for it."""
    return await eventually(lambda: got(pubsub.get_message(timeout=0.05)))


async def handled(pubsub: Any, telemetry: Any, count: int = 1) -> None:
    """Let the client call handlers until *count* hops have ended."""

    async def done() -> bool:
        assert await got(pubsub.get_message(timeout=0.05)) is None
        return len(telemetry.spans("consume")) >= count

    await eventually(done)


# Handlers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["keyword", "object", "list", "pattern", "before wrap"])
@pytest.mark.parametrize("kind", ["plain", "async", "decorated", "partial"])
async def test_a_handler_runs_in_its_messages_hop(server, telemetry, kind, way):
    """However a handler is made and handed over, it runs in its own message's hop and gets the sender's payload."""
    if server.sync and kind == "async":
        return  # a sync client never awaits
    client, channel = server.client(envelope=True), server.key("channel")
    seen: list[tuple[Place, Any]] = []

    def plain(message: dict[str, Any]) -> None:
        seen.append((here(), message["data"]))

    async def coroutine(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        plain(message)

    handler = {
        "plain": plain,
        "async": coroutine,
        "decorated": rtobs.consume("chat")(plain if server.sync else coroutine),
        "partial": functools.partial(plain),
    }[kind]
    if way == "keyword":
        pubsub = await server.subscribed(client, **{channel: handler})
    elif way == "object":
        pubsub = await server.subscribed(client, redis.typing.Subscription(channel.encode(), handler))
    elif way == "list":
        pubsub = await server.subscribed(client, [redis.typing.Subscription(channel, handler)])
    elif way == "pattern":
        pubsub = await server.subscribed(client, how="psubscribe", **{f"{channel[:-1]}*": handler})
    else:
        pubsub = await server.subscribed(server.client(wrapped=False), **{channel: handler})
        assert rtobs.wrap(pubsub) is pubsub
    with rtobs.accept("/chat") as hop:
        assert await got(client.publish(channel, BODY)) == 1
    await handled(pubsub, telemetry)
    consumed = telemetry.span("consume")
    assert seen == [(place_of(consumed), BODY)]
    assert seen[0][0].correlation_id == hop.correlation_id
    assert parent_id(consumed) == span_id(telemetry.span("publish"))
    expected = "chat" if kind == "decorated" else f"{channel[:-1]}*" if way == "pattern" else channel
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {expected: 1}
    assert consumed.attributes.get("rtobs.address", channel) == channel
    assert settled(telemetry) == {"ok": 1}
    assert here() == NOWHERE


async def test_sharded_messages_are_like_others(server, telemetry):
    """SPUBLISH and SSUBSCRIBE, by handler and one by one, carry the journey."""
    client, first, second = server.client(envelope=True), server.key("first"), server.key("second")
    seen: list[Place] = []
    by_handler = await server.subscribed(client, how="ssubscribe", **{first: lambda _: seen.append(here())})
    one_by_one = await server.subscribed(client, second, how="ssubscribe")
    for channel in (first, second):
        with rtobs.accept("/chat") as hop:
            assert await got(client.spublish(channel, b"hello")) == 1
    await handled(by_handler, telemetry)
    message = await fetched(one_by_one)
    assert message["data"] == b"hello"
    with rtobs.consume("chat", message) as found:
        assert found.correlation_id == hop.correlation_id
    assert seen == [place_of(telemetry.spans("consume")[0])]
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


def test_handlers_run_in_a_thread(telemetry, redis_url, unique):
    """`run_in_thread` handles each message in its own hop, on that thread, and stops as ever."""
    client, channel = rtobs.wrap(redis.Redis.from_url(redis_url), envelope=True), unique("channel")
    seen: list[tuple[Place, bool]] = []
    pubsub = client.pubsub()
    main = threading.current_thread()
    pubsub.subscribe(**{channel: lambda _: seen.append((here(), threading.current_thread() is main))})
    thread = pubsub.run_in_thread(sleep_time=0.01)
    try:
        wait_until(lambda: client.pubsub_numsub(channel)[0][1] == 1)
        for _ in range(3):
            client.publish(channel, "hello")
        wait_until(lambda: len(telemetry.spans("consume")) == 3)
    finally:
        thread.stop()
        thread.join()
        client.close()
    assert seen == [(place_of(span), False) for span in telemetry.spans("consume")]


UNSAMPLED = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0)))


@pytest.mark.parametrize("started_in", ["hop", "span"])
async def test_the_asyncio_runner_handles_each_message_in_its_hop(any_server, telemetry, started_in):
    """`run`, started inside a hop or span that is over, handles each message in the message's own journey."""
    client, channel = any_server.client(envelope=True), any_server.key("channel")
    seen: list[Place] = []
    pubsub = await any_server.subscribed(client, **{channel: lambda _: seen.append(here())})
    with rtobs.accept("/start") if started_in == "hop" else trace.use_span(UNSAMPLED):
        task = asyncio.create_task(pubsub.run(poll_timeout=0.02))
        await asyncio.sleep(0)
    bare = any_server.client(wrapped=False)
    await bare.publish(channel, b"from elsewhere")
    await eventually(lambda: telemetry.spans("consume"))
    task.cancel()
    await asyncio.wait([task])
    consumed = telemetry.span("consume")
    assert seen == [place_of(consumed)]
    assert consumed.parent is None
    assert consumed.context.trace_id == int(seen[0].correlation_id, 16)


async def test_a_handlers_error_goes_where_it_went(server, telemetry):
    """What a handler raises leaves `get_message` unchanged, the message has failed, and the next one is handled."""
    client, channel = server.client(envelope=True), server.key("channel")
    error = ValueError("broken")

    def handler(message: dict[str, Any]) -> None:
        if message["data"] == b"1":
            raise error

    pubsub = await server.subscribed(client, **{channel: handler})
    for body in (b"1", b"2"):
        await got(client.publish(channel, body))
    with pytest.raises(ValueError, match="broken") as caught:
        await fetched(pubsub)
    assert caught.value is error
    await handled(pubsub, telemetry, 2)
    assert settled(telemetry) == {"failed": 1, "ok": 1}
    assert here() == NOWHERE


async def test_a_plain_handler_that_starts_a_task_is_done_when_it_returns(any_server, telemetry):
    """The client lets go of what a plain function returns, so its hop ends there; the task it started is in it."""
    client, channel = any_server.client(envelope=True), any_server.key("channel")
    seen: list[Place] = []
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        seen.append(here())

    def handler(_: dict[str, Any]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work()))
        return tasks[0]

    pubsub = await any_server.subscribed(client, **{channel: handler})
    await client.publish(channel, b"hello")
    await handled(pubsub, telemetry)
    await tasks[0]
    assert seen == [place_of(telemetry.span("consume"))]
    assert here() == NOWHERE


async def test_the_callers_context_is_there_after_a_handler(server, telemetry):
    """A caller inside a span that is not sampled finds it current again after a handler ran."""
    client, channel = server.client(envelope=True), server.key("channel")
    pubsub = await server.subscribed(client, **{channel: lambda _: None})
    await got(client.publish(channel, b"hello"))
    with trace.use_span(UNSAMPLED):
        await handled(pubsub, telemetry)
        assert trace.get_current_span() is UNSAMPLED


async def test_handlers_survive_a_reconnect(server, telemetry):
    """After the server dropped the subscription's connection, the handler handles each message once, in its hop."""
    client, channel = server.client(envelope=True), server.key("channel")
    seen: list[Any] = []
    pubsub = await server.subscribed(client, **{channel: lambda message: seen.append(message["data"])})
    await got(client.publish(channel, b"1"))
    await handled(pubsub, telemetry)
    (subscriber,) = [
        line for line in server.bare.client_list(_type="pubsub") if line["sub"] == "1" and _is(line, pubsub)
    ]
    server.bare.client_kill_filter(_id=subscriber["id"])

    async def heard() -> bool:
        await got(client.publish(channel, b"2"))
        with contextlib.suppress(redis.ConnectionError):
            await got(pubsub.get_message(timeout=0.05))
        return b"2" in seen

    await eventually(heard)
    assert seen[:2] == [b"1", b"2"]
    assert len(telemetry.spans("consume")) == len(seen)
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


def _is(line: dict[str, str], pubsub: Any) -> bool:
    connection = pubsub.connection
    socket = connection._sock if hasattr(connection, "_sock") else connection._writer.get_extra_info("socket")
    host, port = socket.getsockname()[:2]
    return line["addr"] == f"{host}:{port}"


# One by one and iterators --------------------------------------------------------------------------------------------


async def test_a_fetched_message_is_one_receive_span(server, telemetry):
    """`get_message` that brings a message is a span linked to it; confirmations and nothing are none."""
    client, channel = server.client(envelope=True), server.key("channel")
    pubsub = server.pubsub(client)
    await got(pubsub.subscribe(channel))
    assert await got(pubsub.get_message(timeout=5)) is None
    assert await got(pubsub.get_message(timeout=0.01)) is None
    await got(client.publish(channel, BODY))
    message = await fetched(pubsub)
    assert message == {"type": "message", "pattern": None, "channel": channel.encode(), "data": BODY}
    received = telemetry.span("receive")
    assert [link.context.span_id for link in received.links] == [span_id(telemetry.span("publish"))]
    with rtobs.consume("chat", message):
        assert here() != NOWHERE
    assert parent_id(telemetry.span("consume")) == span_id(telemetry.span("publish"))


async def test_a_message_taken_by_hand_is_known(server, telemetry):
    """A caller that parses and handles the server's answer himself gets the payload, and a message that is known."""
    client, channel = server.client(envelope=True), server.key("channel")
    pubsub = await server.subscribed(client, channel)
    with rtobs.accept("/chat") as hop:
        await got(client.publish(channel, BODY))
    message = await got(pubsub.handle_message(await got(pubsub.parse_response(block=True))))
    assert message["data"] == BODY
    with rtobs.consume("chat", message) as found:
        assert found.correlation_id == hop.correlation_id


def test_a_sync_iterator_is_timed_and_its_messages_are_known(telemetry, redis_url, unique):
    """Each message of `listen` is received once, its hop is its own, and after a `break` nothing is current."""
    client, channel = rtobs.wrap(redis.Redis.from_url(redis_url), envelope=True), unique("channel")
    pubsub = client.pubsub()
    pubsub.subscribe(channel)
    sent = []
    seen = []
    for message in pubsub.listen():
        if message["type"] == "subscribe":
            for _ in range(2):
                with rtobs.accept("/chat") as hop:
                    client.publish(channel, BODY)
                sent.append(hop.correlation_id)
            continue
        with rtobs.consume("chat", message) as hop:
            seen.append((hop.correlation_id, message["data"]))
        if len(seen) == 2:
            break
    pubsub.close()
    client.close()
    assert seen == [(correlation_id, BODY) for correlation_id in sent]
    assert here() == NOWHERE
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 2
    assert telemetry.spans("receive") == []


async def test_the_server_s_own_notices_are_no_messages(server, telemetry):
    """Keyspace notifications, by handler and one by one, open no hop and count as no message without a journey."""
    client, key = server.client(), server.key()
    seen: list[Any] = []
    channel = f"__keyspace@0__:{key}"
    by_handler = await server.subscribed(client, **{channel: lambda message: seen.append((message["data"], here()))})
    one_by_one = await server.subscribed(client, channel)
    server.bare.publish(channel, "set")  # as the server does where notifications are switched on

    async def heard() -> Any:
        await got(by_handler.get_message(timeout=0.05))
        return seen

    await eventually(heard)
    assert seen == [(b"set", NOWHERE)]
    assert (await fetched(one_by_one))["data"] == b"set"
    assert telemetry.spans() == []
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


# The envelope --------------------------------------------------------------------------------------------------------


async def test_without_an_envelope_the_payload_is_all_there_is(server, telemetry):
    """By default nothing is added to a payload, and its consumer begins a journey and counts that it had to."""
    client, channel = server.client(), server.key("channel")
    pubsub = await server.subscribed(client, channel)
    bare = await server.subscribed(server.client(wrapped=False), channel)
    with rtobs.accept("/chat") as hop:
        assert await got(client.publish(channel, BODY)) == 2
    assert (await fetched(bare))["data"] == BODY
    message = await fetched(pubsub)
    assert message["data"] == BODY
    with rtobs.consume("chat", message) as found:
        assert found.correlation_id != hop.correlation_id
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"chat": 1}


async def test_a_reader_without_rtobs_sees_the_documented_envelope(server, telemetry):
    """A plain client gets one line with version and length, the headers in lines, and the payload behind them."""
    client, channel = server.client(envelope=True), server.key("channel")
    bare = await server.subscribed(server.client(wrapped=False), channel)
    with rtobs.accept("/chat") as hop:
        await got(client.publish(channel, BODY))
    data = (await fetched(bare))["data"]
    first, rest = data.split(b"\n", 1)
    version, length = first.split(b" ")
    assert version == b"rtobs1"
    headers, payload = rest[: int(length, 16)], rest[int(length, 16) :]
    assert payload == BODY
    span = telemetry.span("publish").context
    assert headers.splitlines()[0] == b"traceparent=00-%032x-%016x-03" % (span.trace_id, span.span_id)
    assert headers.splitlines()[-1] == b"baggage=rtobs.cid=" + hop.correlation_id.encode()


@pytest.mark.parametrize(
    "value",
    [b"", b"x", "Zürich ✓", 7, 1.5, bytearray(b"\x00\xff"), memoryview(b"abc")],
    ids=["nothing", "bytes", "text", "int", "float", "bytearray", "memoryview"],
)
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=str)
async def test_every_payload_arrives_as_it_would_without(server, telemetry, options, value):
    """Whatever type a payload has, and whether the reader decodes, it gets the same value as a plain reader does."""
    if options.get("decode_responses") and isinstance(value, bytearray):
        value = bytearray(b"abc")
    client, channel = server.client(envelope=True, options=options), server.key("channel")
    bare = server.client(wrapped=False, options=options)
    readers = [await server.subscribed(each, channel) for each in (client, bare)]
    await got(client.publish(channel, value))
    wrapped = (await fetched(readers[0]))["data"]
    await fetched(readers[1])
    await got(bare.publish(channel, value))
    plain = (await fetched(readers[1]))["data"]
    assert (await fetched(readers[0]))["data"] == wrapped == plain
    assert type(wrapped) is type(plain)


@pytest.mark.parametrize("value", [None, True, [1], object], ids=repr)
async def test_a_value_that_is_none_is_refused_as_ever(server, telemetry, value):
    """A value that Redis cannot take raises the client's own error, wrapped or not."""
    errors = []
    for client in (server.client(wrapped=False), server.client(envelope=True)):
        with pytest.raises(redis.DataError) as caught:
            await got(client.publish("channel", value))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"DataError": 1}


@given(payload=st.binary(max_size=400))
def test_any_bytes_come_back_out_of_an_envelope(payload):
    """Any payload, one that looks like an envelope included, comes back byte for byte, with the headers."""
    headers = {names.TRACEPARENT: f"00-{'a' * 32}-{'b' * 16}-01", names.BAGGAGE: "shop=7"}
    closed = envelope.close(payload, headers)
    assert envelope.open(closed) == (payload, headers)
    assert envelope.open(envelope.close(closed, headers)) == (closed, headers)


FOREIGN = [
    b"rtobs1", b"rtobs1 ", b"rtobs1 0003\nabc", b"rtobs1 00ff\ntraceparent=x\n", b"rtobs1 000g\n",
    b"rtobs2 0004\na=b\nx", b"rtobs1 0004\na=b\x00", b"rtobs1 0000\nx", b"rtobs1 ffff\n" + b"a=b\n" * 16_383,
    b"rtobs1 0004\n\xff=b\nx",
]  # fmt: skip


@pytest.mark.parametrize("payload", FOREIGN, ids=lambda payload: repr(payload[:24]))
async def test_a_foreign_payload_is_left_alone(any_server, telemetry, payload):
    """A payload that begins like an envelope and is none reaches the reader as it was sent."""
    client, channel = any_server.client(envelope=True), any_server.key("channel")
    pubsub = await any_server.subscribed(client, channel)
    any_server.bare.publish(channel, payload)
    assert (await fetched(pubsub))["data"] == payload
    assert telemetry.count(names.PROPAGATION_REJECTED) == 0


async def test_a_message_from_elsewhere_is_known_by_its_shape(any_server, telemetry, monkeypatch):
    """A message that a plain client brought, envelope and all, continues its journey and is not changed."""
    monkeypatch.setattr(redis_leaf, "_elsewhere", redis_leaf.Options())
    client, channel = any_server.client(envelope=True), any_server.key("channel")
    bare = await any_server.subscribed(any_server.client(wrapped=False), channel)
    with rtobs.accept("/chat") as hop:
        await client.publish(channel, BODY)
    message = await fetched(bare)
    data = message["data"]
    with rtobs.consume("chat", message) as found:
        assert found.correlation_id == hop.correlation_id
    assert message["data"] is data
    for other in [{**message, "more": 1}, {**message, "type": "subscribe"}, {"data": data}]:
        with rtobs.consume("chat", other) as found:
            assert found.correlation_id != hop.correlation_id
