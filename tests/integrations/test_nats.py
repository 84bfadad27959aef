"""The nats-py leaf on core NATS: what is a message and what is not, headers, requests, and what stays as it was."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import AsyncGenerator, Callable
from importlib.metadata import version

import nats.errors
import pytest
from nats.aio.client import Client
from nats.micro import add_service

import rtobs
from rtobs import _conventions as names
from rtobs._journey.record import HopRecord
from rtobs.errors import UnsupportedError
from rtobs.integrations import _nats, unwrap
from rtobs.integrations import nats as leaf
from tests.integrations.adapter import FOREIGN, NOWHERE, here, place_of
from tests.integrations.nats_support import BODY, Nats, processed, settled
from tests.support.timing import eventually

ADDITIONS = {names.TRACEPARENT, names.JOURNEY, names.BAGGAGE}


@pytest.fixture
async def server(nats_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Nats, None]:
    async with Nats(nats_url, unique) as server:
        yield server


def test_the_leaf_names_the_versions_it_is_tested_with():
    """The nats-py that the tests run with is one that the leaf says it supports."""
    least, below = re.fullmatch(r"nats-py>=([\d.]+),<(\d+)", leaf.SUPPORTS).groups()
    installed = tuple(map(int, version("nats-py").split(".")[:2]))
    assert tuple(map(int, least.split("."))) <= installed < (int(below),)


# What is a message ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "place"),
    [
        ("orders", "orders"),
        ("orders.eu.created", "orders.eu.created"),
        ("orders.*.>", "orders.*.>"),
        ("orders.v2.e2e", "orders.v2.e2e"),
        ("orders.4711.created", "orders.*.created"),
        ("users.0190a7e6-3f7c-7b1c-9d5c-2f1f4c2f7d11.push", "users.*.push"),
        ("users.ann@example.org.push", "users.*.org.push"),
        ("runs.4bf92f3577b34da6a3ce929d0e0e4736", "runs.*"),
        ("runs.01ARZ3NDEKTSV4RRFFQ69G5FAV", "runs.*"),
        ("facade-decade-beef-feed", "facade-decade-beef-feed"),
    ],
)
def test_identifiers_in_a_subject_are_no_labels(subject, place):
    """Numbers, UUIDs, addresses and other long identifiers in a subject become `*`, words stay."""
    assert _nats.place(subject) == place


NOW = 1_800_000_000_123_456_789


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (f"$JS.ACK.ORDERS.worker.2.41.7.{NOW}.3", ("ORDERS", "worker", 2, 41, NOW, 3)),
        (f"$JS.ACK._.hash.ORDERS.worker.2.41.7.{NOW}.3", ("ORDERS", "worker", 2, 41, NOW, 3)),
        (f"$JS.ACK.hub.hash.ORDERS.worker.2.41.7.{NOW}.3.random", ("ORDERS", "worker", 2, 41, NOW, 3)),
        (f"$JS.ACK.7.8.2.41.7.{NOW}.3", ("7", "8", 2, 41, NOW, 3)),
        ("", None),
        ("_INBOX.x.y", None),
        ("$JS.ACK.ORDERS.worker.2.41.7", None),
        (f"$JS.ACK.ORDERS.worker.-2.41.7.{NOW}.3", None),
        (f"$JS.ACK.ORDERS.worker.٢.41.7.{NOW}.3", None),
        (f"$JS.ACK.ORDERS.worker.{'9' * 5000}.41.7.{NOW}.3", None),
        ("$JS.ACK." + "." * 5000, None),
    ],
)
def test_a_reply_subject_says_where_a_message_came_from(reply, found):
    """Stream, consumer, deliveries, sequence, time and backlog are read in each form; anything else says nothing."""
    assert _nats.delivery(reply) == found


async def test_a_message_is_named_by_the_subject_that_was_subscribed_to(server, telemetry):
    """Metrics and span name have the subscribed pattern, the span has the concrete subject, the send a masked one."""
    base, client = server.unique("orders"), await server.connect()
    subscription = await client.subscribe(f"{base}.*.created")
    await client.publish(f"{base}.4711.created", BODY)
    message = await subscription.next_msg()
    with rtobs.consume("orders", message):
        pass
    consumed, sent = telemetry.span("consume").attributes, telemetry.span("publish").attributes
    assert consumed["messaging.system"] == sent["messaging.system"] == "nats"
    assert consumed["messaging.destination.name"] == sent["messaging.destination.name"] == f"{base}.*.created"
    assert consumed["rtobs.address"] == sent["rtobs.address"] == f"{base}.4711.created"
    assert telemetry.by(names.CLIENT_DURATION, "operation", "messaging_destination") == {
        ("send", f"{base}.*.created"): 1,
        ("receive", f"{base}.*.created"): 1,
    }
    assert "messaging.message.id" not in consumed
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"producer": 1}


async def test_subjects_without_end_do_not_cost_without_end(server, telemetry):
    """A subscription for each of 300 users is one destination, and makes no class of its own."""
    base, client = server.unique("users"), await server.connect()
    classes = {type(await client.subscribe(f"{base}.{number}.push")) for number in range(300)}
    assert len(classes) == 1
    words = {type(await client.subscribe(f"{base}.{'ab' * number}")) for number in range(1, 301)}
    assert len(words) <= 257  # 256 destinations, and one for what is beyond


async def test_what_client_and_server_do_for_themselves_is_no_message(server, telemetry):
    """Management, key-value and object stores, inboxes and replies count nothing and carry nothing of ours."""
    client = await server.connect()
    stream = client.jetstream()
    bucket = server.unique("bucket")
    store = await stream.create_key_value(bucket=bucket)
    objects = await stream.create_object_store(bucket)
    try:
        watcher = await store.watch("a.*")
        await store.put("a.b", b"1")
        assert (await store.get("a.b")).value == b"1"
        await eventually(lambda: watcher.updates(timeout=1))
        await objects.put("thing", b"2" * 200_000)
        assert (await objects.get("thing")).data == b"2" * 200_000
        await watcher.stop()
    finally:
        await stream.delete_key_value(bucket)
        await stream.delete_object_store(bucket)
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(inbox, BODY)
    assert (await answers.next_msg()).headers is None
    assert telemetry.spans() == []
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {}


@pytest.mark.parametrize("own", ["inbox_prefix", "prefix"])
async def test_other_prefixes_of_inboxes_and_of_the_api_are_known(server, telemetry, own, monkeypatch):
    """Inboxes with a prefix of the client's, and an API imported under another name, carry no messages either."""
    monkeypatch.setattr(leaf, "_api_prefixes", set())
    if own == "inbox_prefix":
        client = await server.connect(connection={"inbox_prefix": b"answers.to"})
        subscription = await client.subscribe(client.new_inbox())
        await client.publish(subscription.subject, BODY)
        await client.publish("_INBOX.of.another", BODY)
        assert subscription.subject.startswith("answers.to.")
        assert (await subscription.next_msg()).headers is None
    else:
        client = await server.connect()
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(f"{server.unique('elsewhere')}.STREAM.NAMES")
        assert telemetry.count(names.SENT_MESSAGES) == 1
        with pytest.raises(nats.js.errors.ServiceUnavailableError):
            await client.jetstream(prefix=server.unique("hub")).account_info()
        telemetry.forget()
        assert telemetry.count(names.SENT_MESSAGES) == 1
    assert telemetry.spans() == []


# Sending -------------------------------------------------------------------------------------------------------------


async def test_headers_are_ours_and_the_callers_each_exactly(server, telemetry):
    """Without headers a message gets ours, else both arrive to the byte, ours in ASCII, the caller's dict as it was."""
    subject, client = server.unique("orders"), await server.connect()
    subscription = await client.subscribe(subject)
    given = {**FOREIGN, "X-Long": "é" * 500}
    kept = dict(given)
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="Zürich ✓ \U0001f600", region="eu west")
        for headers in (None, {}, given):
            await client.publish(subject, BODY, headers=headers)
    assert given == kept
    for headers in ({}, {}, kept):
        message = await subscription.next_msg()
        assert {name: value for name, value in message.headers.items() if name not in names.OWN_HEADERS} == headers
        ours = {name: value for name, value in message.headers.items() if name in names.OWN_HEADERS}
        assert ours.keys() == ADDITIONS
        assert all(value.isascii() and value == value.strip() for value in ours.values())
        with rtobs.consume("orders", message):
            pass
        assert telemetry.spans("consume")[-1].attributes["rtobs.tenant"] == "Zürich ✓ \U0001f600"


async def test_a_message_that_was_sent_on_gets_new_headers(server, telemetry):
    """Headers of ours that the caller passes on from another message are replaced, foreign baggage stays."""
    first, second, client = server.unique("first"), server.unique("second"), await server.connect()
    one, two = await client.subscribe(first), await client.subscribe(second)
    await client.publish(first, BODY, headers={"baggage": "shop=7"})
    message = await one.next_msg()
    with rtobs.consume("first", message) as hop:
        await client.publish(second, message.data, headers=message.headers)
        journey = hop.correlation_id
    again = await two.next_msg()
    assert again.headers["baggage"] == f"rtobs.cid={journey},shop=7"
    with rtobs.consume("second", again) as hop:
        assert hop.correlation_id == journey
    assert telemetry.spans("consume")[1].parent.span_id == telemetry.spans("publish")[1].context.span_id


@pytest.mark.parametrize("how", ["core", "jetstream", "publish_async"])
async def test_our_headers_never_make_a_message_too_large(own_nats, unique, telemetry, how):
    """Close to the server's limit ours stay out, counted, so that every message that fits without them arrives."""
    limit, given = 4096, {"x-shop": "é" * 100}
    frame = len("NATS/1.0\r\nx-shop: \r\n\r\n") + 200
    own_nats.stop()
    own_nats.start(f"max_payload: {limit}")
    async with Nats(own_nats.url, unique) as server:
        stream = await server.stream("orders")
        client = await server.connect()
        subscription = await client.subscribe(stream)
        context = client.jetstream()
        send = {"core": client.publish, "jetstream": context.publish, "publish_async": context.publish_async}[how]
        await client.publish(stream, BODY)
        ours = await _own_bytes(subscription)
        sizes = [limit - frame - ours - 1, limit - frame - ours, limit - frame - ours + 1, limit - frame]
        carried = []
        for size in sizes:
            pending = await send(stream, b"x" * size, headers=given)
            if how == "publish_async":
                await pending
            message = await subscription.next_msg()
            assert len(message.data) == size
            assert message.headers["x-shop"] == given["x-shop"]
            carried.append(names.JOURNEY in message.headers)
        assert carried == [True, True, False, False]
        assert client.stats["reconnects"] == 0
        assert client.stats["errors_received"] == 0
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason") == {"too_long": 2}
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1 + len(sizes)}


async def _own_bytes(subscription) -> int:
    """Return what the headers of the next message take, all of them ours."""
    message = await subscription.next_msg()
    assert message.headers.keys() == ADDITIONS
    return sum(len(name) + len(value) + len(": \r\n") for name, value in message.headers.items())


async def test_a_server_without_headers_gets_none(own_nats, unique, telemetry):
    """A server that takes no headers, and would hang up on them, is sent messages without ours, counted as sent."""
    own_nats.stop()
    own_nats.start("no_header_support: true")
    async with Nats(own_nats.url, unique) as server:
        client = await server.connect()
        subscription = await client.subscribe(server.unique("orders"))
        await client.publish(subscription.subject, BODY)
        assert (await subscription.next_msg()).data == BODY
        assert client.stats["reconnects"] == 0
    assert telemetry.count(names.SENT_MESSAGES) == 1


@pytest.mark.parametrize("old_style", [False, True])
async def test_a_request_is_one_send_and_its_reply_no_message(server, telemetry, old_style):
    """A request is one publish hop until its reply is there; who replies has a consume hop, and his reply is none."""
    subject, client = server.unique("prices"), await server.connect()
    replier = await server.connect()
    seen = []

    async def reply(message) -> None:
        seen.append(here())
        await message.respond(b"42")

    await replier.subscribe(subject, cb=reply)
    await replier.flush()
    with rtobs.accept("/prices") as hop:
        answer = await client.request(subject, b"?", old_style=old_style, timeout=5)
    assert answer.data == b"42"
    await processed(telemetry)
    sent, consumed = telemetry.span("publish"), telemetry.span("consume")
    assert seen == [place_of(consumed)]
    assert seen[0].correlation_id == hop.correlation_id
    assert consumed.parent.span_id == sent.context.span_id
    assert sent.end_time >= consumed.start_time
    assert telemetry.by(names.CLIENT_DURATION, "operation") == {"send": 1}
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    assert settled(telemetry) == {"ok": 1}


async def test_a_request_that_fails_is_a_failed_send(server, telemetry):
    """Nobody there and no reply in time are the client's own errors, and each one failed send."""
    client, bare = await server.connect(), await server.connect(wrapped=False)
    silent = server.unique("silent")
    await client.subscribe(silent)
    for one in (bare, client):
        with pytest.raises(nats.errors.NoRespondersError):
            await one.request(server.unique("nobody"), b"")
        with pytest.raises(nats.errors.TimeoutError):
            await one.request(silent, b"", timeout=0.02)
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"NoRespondersError": 1, "TimeoutError": 1}
    assert here() == NOWHERE


async def test_a_service_handles_requests_in_hops(server, telemetry):
    """An endpoint of `nats.micro` runs in a consume hop; what a service answers about itself is no message."""
    client = await server.connect()
    caller = await server.connect()
    seen = []

    async def double(request) -> None:
        seen.append(here())
        await request.respond(request.data * 2)

    subject = server.unique("double")
    service = await add_service(client, name="doubler", version="1.0.0")
    await service.add_endpoint(name="double", subject=subject, handler=double)
    assert (await caller.request("$SRV.PING.doubler", b"", timeout=5)).data
    assert (await caller.request(subject, b"ab", timeout=5)).data == b"abab"
    await processed(telemetry)
    assert seen == [place_of(telemetry.span("consume"))]
    assert telemetry.count(names.SENT_MESSAGES) == 1
    await service.stop()


# Receiving -----------------------------------------------------------------------------------------------------------


async def test_the_members_of_a_queue_group_share_the_messages(server, telemetry):
    """Each message to a queue group is one consume hop, at whichever member it arrives."""
    subject, handled = server.unique("orders"), []
    for member in range(3):

        async def handle(message, member: int = member) -> None:
            handled.append((message.data, member))

        client = await server.connect()
        await client.subscribe(subject, "workers", cb=handle)
        await client.flush()
    sender = await server.connect()
    for number in range(60):
        await sender.publish(subject, b"%d" % number)
    await processed(telemetry, 60)
    assert sorted(int(data) for data, _ in handled) == list(range(60))
    assert len({member for _, member in handled}) > 1
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {subject: 60}


async def test_a_subscription_ends_as_unwrapped(server, telemetry):
    """Drain finishes what is there, `unsubscribe(limit)` and `max_msgs` end an iterator after so many messages."""
    client, handled = await server.connect(), []

    async def slow(message) -> None:
        await asyncio.sleep(0.001)
        handled.append(message.data)

    draining = await client.subscribe(server.unique("drain"), cb=slow)
    limited = await client.subscribe(server.unique("limit"))
    short = await client.subscribe(server.unique("short"), max_msgs=2)
    await limited.unsubscribe(limit=3)
    for number in range(5):
        for subscription in (draining, limited, short):
            await client.publish(subscription.subject, b"%d" % number)
    await client.flush()  # what has not arrived when a subscription is drained may be lost, wrapped or not
    await draining.drain()
    assert handled == [b"0", b"1", b"2", b"3", b"4"]
    assert [message.data async for message in limited.messages] == [b"0", b"1", b"2"]
    assert [message.data async for message in short.messages] == [b"0", b"1"]
    await processed(telemetry, 5)
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 5
    await client.drain()
    assert client.is_closed


async def test_one_iterator_may_be_asked_for_again_and_again(server, telemetry):
    """`anext(subscription.messages)` gives one message after the other, each with its lag recorded once."""
    client = await server.connect()
    subscription = await client.subscribe(server.unique("orders"))
    for number in range(3):
        await client.publish(subscription.subject, b"%d" % number)
    assert [(await anext(subscription.messages)).data for _ in range(3)] == [b"0", b"1", b"2"]
    assert telemetry.count(names.MESSAGE_LAG) == 3
    assert telemetry.spans("receive") == []


async def test_a_subscription_does_not_live_in_the_hop_it_was_made_in(server, telemetry):
    """What is subscribed to, or first asked for, inside a hop is neither part of that hop nor keeps it alive."""
    client, seen = await server.connect(), []
    subject = server.unique("orders")

    async def handle(message) -> None:
        seen.append(here())
        if message.reply:
            await message.respond(b"")

    with rtobs.accept("/start"):
        await client.subscribe(subject, cb=handle)
        await client.request(subject, timeout=5)  # the first makes the inbox that all replies come to
    await processed(telemetry)
    await client.publish(subject, BODY)
    await processed(telemetry, 2)
    asked, last = telemetry.spans("consume")
    assert seen == [place_of(asked), place_of(last)]
    assert asked.links == last.links == ()
    assert last.context.trace_id != telemetry.span("accept").context.trace_id

    def kept() -> bool:
        gc.collect()
        return any(type(found) is HopRecord and found.name == "/start" for found in gc.get_objects())

    await eventually(lambda: not kept())


# What stays as it was ------------------------------------------------------------------------------------------------


async def test_results_types_and_errors_are_the_clients_own(server, telemetry):
    """What calls return and raise, right or wrong ones, is the same from a wrapped client and from a bare one."""

    async def handle(message) -> None:
        """Do nothing."""

    async def outcome(call) -> object:
        try:
            result = await call
        except Exception as error:  # noqa: BLE001 - compared below
            return type(error), str(error)
        return None if result is None else (result.__class__, isinstance(result, result.__class__))

    found = {}
    for wrapped in (False, True):
        client = await server.connect(wrapped=wrapped)
        subject = "rtobs-test.same"
        subscription = await client.subscribe(subject)
        called = await client.subscribe(subject, cb=handle)
        await client.publish(subject, BODY, headers={"a": "b"})
        message = await subscription.next_msg()
        found[wrapped] = [
            await outcome(client.publish(subject, BODY)),
            await outcome(client.publish(subject, "text")),
            await outcome(client.publish("", BODY)),
            await outcome(client.publish("two words", BODY)),
            await outcome(client.publish(None, BODY)),
            await outcome(client.publish(7, BODY)),
            await outcome(client.publish(subject, None)),
            await outcome(client.publish(subject, BODY, headers={"a b": "c"})),
            await outcome(client.publish(subject, BODY, headers={"a": 1})),
            await outcome(client.publish(subject, BODY, headers=7)),
            await outcome(client.publish(subject, BODY, headers=[("a", "b")])),
            await outcome(client.publish(subject, BODY, "bad reply")),
            await outcome(client.publish(subject, b"x" * (client.max_payload + 1))),
            await outcome(client.request("", BODY)),
            await outcome(client.subscribe(subject, cb=print)),
            await outcome(client.subscribe(subject, cb=7)),
            await outcome(client.subscribe("a..b")),
            await outcome(client.subscribe(None)),
            await outcome(subscription.next_msg(timeout=0.3)),
            await outcome(subscription.next_msg(timeout=0.01) if wrapped is None else called.next_msg()),
            await outcome(message.ack()),
            await outcome(message.nak()),
            await outcome(message.respond(b"")),
            {name: value for name, value in message.headers.items() if name not in names.OWN_HEADERS},
            subscription.__class__, message.__class__, message.subject, message.data, message.is_acked,
            repr(message).partition("headers")[0].partition("subject")[2],
        ]  # fmt: skip
        with pytest.raises(nats.errors.Error) as caught:
            called.messages  # noqa: B018 - it raises
        await client.close()
        found[wrapped] += [
            str(caught.value),
            await outcome(client.publish(subject, BODY)),
            await outcome(client.drain()),
        ]
    assert found[True] == found[False]
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 0  # there was nothing to settle


async def test_a_message_is_equal_to_its_plain_copy(server, telemetry):
    """A message of a wrapped client equals the same one from a bare client, and its state is what a bare one's is."""
    subject, messages = server.unique("orders"), []
    clients = [await server.connect(), await server.connect(wrapped=False)]
    subscriptions = [await client.subscribe(subject) for client in clients]
    for client in clients:
        await client.flush()
    await clients[0].publish(subject, BODY)
    for subscription in subscriptions:
        message = await subscription.next_msg()
        message._client = None
        messages.append(message)
    assert type(messages[0]) is not type(messages[1])
    assert messages[0] == messages[1]
    assert vars(messages[0]) == vars(messages[1])


async def test_nothing_of_ours_keeps_messages_subscriptions_or_clients_alive(server, telemetry):
    """After use a message, its subscription and its client are freed as soon as nobody else holds them."""
    client = await server.connect()
    subscription = await client.subscribe(server.unique("orders"))
    await client.publish(subscription.subject, BODY)
    await client.publish(subscription.subject, BODY)
    message = await subscription.next_msg()
    iterated = await anext(subscription.messages)
    with rtobs.consume("orders", message):
        pass
    gone = [weakref.ref(found) for found in (message, iterated, subscription, client)]
    held = {"all": (message, iterated)}
    del message, iterated
    assert all(reference() is not None for reference in gone)  # the check below can see a holder
    held.clear()
    await client.close()
    server._clients.clear()
    del subscription, client
    await eventually(lambda: gc.collect() >= 0 and [found() for found in gone] == [None] * 4)


async def test_what_can_be_wrapped(server, telemetry):
    """A client before it is connected or after, or one JetStream context; anything else is refused at once."""
    client = rtobs.wrap(Client())
    await client.connect(server.url)
    subscription = await client.subscribe(server.unique("orders"))
    await client.publish(subscription.subject, BODY)
    message = await subscription.next_msg()
    assert names.JOURNEY in message.headers
    for native in (unwrap(subscription), unwrap(message)):
        with pytest.raises(UnsupportedError, match="give its client"):
            rtobs.wrap(native)
    assert "rtobs" not in type(unwrap(client)).__mro__[0].__module__
    await client.close()


async def test_a_server_that_is_down_is_the_clients_own_error(own_nats, unique, telemetry):
    """Without a server connecting and requests fail as unwrapped, and a failed send has the error's name."""
    async with Nats(own_nats.url, unique) as server:
        client = await server.connect(connection={"reconnect_time_wait": 0.01, "max_reconnect_attempts": -1})
        own_nats.stop()
        await eventually(lambda: client.is_reconnecting)
        with pytest.raises(nats.errors.TimeoutError):
            await client.request("orders", timeout=0.05)
        big = b"x" * 1_000_000
        await client.publish("orders", big)
        await client.publish("orders", big)
        with pytest.raises(nats.errors.OutboundBufferLimitError):
            await client.publish("orders", big)
        fresh = rtobs.wrap(Client())
        with pytest.raises(nats.errors.NoServersError):
            await fresh.connect(
                own_nats.url, max_reconnect_attempts=1, reconnect_time_wait=0.01, error_cb=client._error_cb
            )
        own_nats.start()
        await eventually(lambda: client.is_connected)
    sent = telemetry.by(names.SENT_MESSAGES, "error_type")
    assert (sent["TimeoutError"], sent["OutboundBufferLimitError"]) == (1, 1)


async def test_everything_goes_on_after_a_reconnect(own_nats, unique, telemetry):
    """After the server was away callbacks, iterators, push and pull consumers count each message once, as before."""
    async with Nats(own_nats.url, unique) as server:
        stream = await server.stream("orders")
        client = await server.connect(connection={"reconnect_time_wait": 0.01, "max_reconnect_attempts": -1})
        context, core = client.jetstream(), server.unique("core")

        async def handle(message) -> None:
            """Do nothing."""

        await client.subscribe(core, cb=handle)
        iterated = await client.subscribe(f"{core}.iterated")
        await context.subscribe(f"{stream}.push", "pushed", cb=handle)
        pulled = await context.pull_subscribe(f"{stream}.pull", "pulled")

        async def once() -> None:
            await client.publish(core, BODY)
            await client.publish(f"{core}.iterated", BODY)
            await context.publish(f"{stream}.push", BODY)
            await context.publish(f"{stream}.pull", BODY)
            for message in (await anext(iterated.messages), *await pulled.fetch(timeout=5)):
                with rtobs.consume("handled", message):
                    if message.reply:
                        await message.ack()

        await once()
        await processed(telemetry, 4)
        own_nats.stop()
        await eventually(lambda: client.is_reconnecting)
        own_nats.start()
        await eventually(lambda: client.is_connected)
        await once()
        await processed(telemetry, 8)
        await client.flush()
    assert client.stats["reconnects"] == 1
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {
        core: 2,
        f"{stream}.push": 2,
        "handled": 4,
    }
    assert telemetry.count(names.SENT_MESSAGES) == 8
    assert settled(telemetry) == {"ok": 8}
    assert telemetry.count(names.PROPAGATION_MISSING) == 0
