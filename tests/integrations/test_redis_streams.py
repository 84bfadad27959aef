"""Redis Streams through a wrapped client, sync and asyncio, on a live Redis."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest
import redis
import redis.asyncio

import rtobs
from rtobs import Outcome
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._journey import envelope
from tests.integrations.adapter import NOWHERE, here, place_of
from tests.integrations.redis_support import (
    GROUP,
    any_server,
    attempts,
    ends,
    entries,
    entry,
    got,
    linked,
    parent_id,
    promised,
    server,
    settled,
    span_id,
)
from tests.support.telemetry import SECOND
from tests.support.timing import eventually

__all__ = ["any_server", "server"]


# What is sent --------------------------------------------------------------------------------------------------------


async def test_the_carrier_is_one_field_behind_the_callers(server, telemetry):
    """XADD sends the caller's fields as they are and one field more, behind them, with the four headers in lines."""
    client, key = server.client(), server.key()
    fields = {"a": 1, "b": b"\xff\x00", "c": "Zürich"}
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        await got(client.xadd(key, fields))
    assert fields == {"a": 1, "b": b"\xff\x00", "c": "Zürich"}
    ((_, found),) = server.bare.xrange(key)
    assert list(found) == [b"a", b"b", b"c", b"rtobs"]
    assert list(found.values())[:3] == [b"1", b"\xff\x00", "Zürich".encode()]
    span = telemetry.span("publish", f"publish {key}").context
    lines = found[b"rtobs"].decode().split("\n")
    assert lines[0] == f"{names.TRACEPARENT}=00-{span.trace_id:032x}-{span.span_id:016x}-03"
    assert lines[1].startswith(f"{names.JOURNEY}=1")
    assert lines[2] == f"{names.BAGGAGE}=rtobs.cid={hop.correlation_id},rtobs.tenant=acme"
    assert lines[3:] == [""]


@pytest.mark.parametrize(
    "options",
    [
        {"maxlen": 3, "approximate": False},
        {"maxlen": 1000, "approximate": True, "limit": 10},
        {"minid": "5-0", "approximate": False},
        {"id": "7-1"},
        {"nomkstream": True},
    ],
    ids=str,
)
async def test_options_of_xadd_keep_their_places(server, telemetry, options):
    """Every option of XADD has the effect that it has without rtobs."""
    streams: dict[bool, list[Any]] = {}
    for wrapped in (False, True):
        client, key = server.client(wrapped=wrapped), server.key()
        if "nomkstream" not in options:
            for number in range(1, 6):
                await got(client.xadd(key, {"n": number}, id=f"{number}-0"))
        result = await got(client.xadd(key, {"n": "last"}, **options))
        found = [(entry_id, fields[b"n"]) for entry_id, fields in server.bare.xrange(key)]
        if "id" not in options and result is not None:
            found[-1] = ("the newest", found[-1][1])
            result = type(result)
        streams[wrapped] = [result, found]
    assert streams[True] == streams[False]


async def test_a_refused_entry_is_refused_by_the_server_all_the_same(server, telemetry):
    """A command without fields raises the server's own error, and the send has failed."""
    bare, client, key = server.client(wrapped=False), server.client(), server.key()
    errors = []
    for each in (bare, client):
        with pytest.raises(redis.ResponseError) as caught:
            await got(each.execute_command("XADD", key, "*"))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ResponseError": 1}


async def test_an_entry_that_is_sent_on_carries_the_journey_on(server, telemetry):
    """Whoever adds a read entry's fields to another stream sends our new carrier once, and foreign baggage stays."""
    client, first, second = server.client(), server.group("first"), server.group("second")
    with rtobs.accept("/orders") as hop:
        await got(client.xadd(first, {"a": 1}))
    found = await entry(client, first)
    with rtobs.consume("first", found):
        await got(client.xadd(second, found[1]))
    again = await entry(client, second)
    assert list(again[1]) == [b"a", b"rtobs"]
    words = "return #redis.call('XRANGE', KEYS[1], '-', '+')[1][2]"  # a dictionary hides what is there twice
    assert server.bare.eval(words, 1, second) == 4
    assert again[1][b"rtobs"] != found[1][b"rtobs"]
    with rtobs.consume("second", again) as last:
        assert last.correlation_id == hop.correlation_id
    assert parent_id(telemetry.spans("consume")[1]) == span_id(telemetry.spans("publish")[1])


async def test_a_message_put_back_into_its_stream_is_the_next_attempt(server, telemetry):
    """A handler that adds its message to the same stream again has sent the second attempt."""
    client, key = server.client(), server.group()
    await got(client.xadd(key, {"a": 1}))
    for _ in range(3):
        found = await entry(client, key)
        with rtobs.consume("orders", found) as hop:
            hop.outcome(Outcome.RETRIED)
            await got(client.xadd(key, {"a": 1}))
            await got(client.xack(key, GROUP, found[0]))
    assert attempts(telemetry) == [1, 2, 3]


# What is read --------------------------------------------------------------------------------------------------------

SHAPES = [
    {}, {"decode_responses": True}, {"protocol": 3}, {"protocol": 3, "decode_responses": True},
    {"protocol": 3, "legacy_responses": False}, {"protocol": 2, "legacy_responses": False},
]  # fmt: skip


def rows(reply: Any) -> list[Any]:
    """Return the entries of a reply of any shape, of all its streams."""
    streams = reply.values() if isinstance(reply, dict) else [found for _, found in reply]
    return [row for found in streams for row in (found[0] if found and isinstance(found[0], list) else found)]


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("how", ["xread", "xreadgroup"])
async def test_a_batch_is_one_receive_span_and_a_hop_for_each(server, telemetry, how, options):
    """A fetch of three entries from two streams is one span, linked to them; each hop continues its own trace."""
    client = server.client(options=options)
    first, second = server.group("first"), server.group("second")
    correlation_ids = []
    for key in (first, first, second):
        with rtobs.accept("/orders") as hop:
            await got(client.xadd(key, {"a": 1}))
        correlation_ids.append(hop.correlation_id)
    if how == "xread":
        reply = await got(client.xread({first: "0", second: "0"}))
    else:
        reply = await got(client.xreadgroup(GROUP, "first", {first: ">", second: ">"}))
    received = telemetry.span("receive")
    assert linked(received) == [span_id(span) for span in telemetry.spans("publish")]
    assert received.attributes["messaging.batch.message_count"] == 3
    assert here() == NOWHERE
    seen = []
    for row in rows(reply):
        with rtobs.consume("orders", row):
            seen.append(here())
    assert [place.correlation_id for place in seen] == correlation_ids
    consumed = telemetry.spans("consume")
    assert [place_of(span) for span in consumed] == seen
    assert [parent_id(span) for span in consumed] == [span_id(span) for span in telemetry.spans("publish")]
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 1
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"orders": 3}
    assert len(leaf.received) == 0


@pytest.mark.parametrize("way", ["pair", "unpacked", "keyword", "method"])
async def test_a_handler_may_take_an_entry_as_it_likes(any_server, telemetry, way):
    """The pair, its two halves, a keyword or a method's argument: the decorated handler runs in its message's hop."""
    client, key = any_server.client(), any_server.group()
    with rtobs.accept("/orders") as hop:
        await client.xadd(key, {"a": 1})
    entry_id, fields = found = await entry(client, key)
    seen = []

    @rtobs.consume("tickets")
    async def pair(found: Any) -> None:
        seen.append(here())

    @rtobs.consume("tickets", message="fields")
    async def keyword(number: int, *, fields: Any) -> None:
        seen.append(here())

    @rtobs.consume("tickets")
    async def unpacked(entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        seen.append(here())

    class Worker:
        @rtobs.consume("tickets")
        async def handle(self, found: Any) -> None:
            seen.append(here())

    if way == "pair":
        await pair(found)
    elif way == "unpacked":
        await unpacked(entry_id, fields)
    elif way == "keyword":
        await keyword(7, fields=fields)
    else:
        await Worker().handle(found)
    assert [place.correlation_id for place in seen] == [hop.correlation_id]
    assert telemetry.span("consume").attributes["messaging.message.id"] == entry_id.decode()
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {}


async def test_an_empty_fetch_is_nothing(server, telemetry):
    """A fetch that brings nothing makes no span and counts nothing."""
    client, key = server.client(), server.group()
    assert await got(client.xreadgroup(GROUP, "first", {key: ">"})) == []
    assert await got(client.xread({key: "0"})) == []
    assert (await got(client.xautoclaim(key, GROUP, "first", 0)))[1] == []
    assert telemetry.spans() == []
    assert telemetry.count(names.CLIENT_DURATION) == 0


async def test_a_deleted_entry_is_no_message(server, telemetry):
    """An entry that was deleted while it was pending comes without fields, and counts as none."""
    client, key = server.client(), server.group()
    await got(client.xadd(key, {"a": 1}))
    entry_id, _ = await entry(client, key)
    server.bare.xdel(key, entry_id)
    telemetry.forget()
    assert (await got(client.xreadgroup(GROUP, "first", {key: "0"})))[0][1] == [(entry_id, {})]
    assert telemetry.spans() == []


async def test_the_id_is_a_clock_where_the_sender_has_none(server, telemetry, clock):
    """The wait of an entry from a client nobody wrapped is counted from its id, by the broker's clock."""
    client, key = server.client(), server.group()
    server.bare.xadd(key, {"a": 1}, id=f"{clock.now // 1_000_000 - 7_000}-0")
    found = await entry(client, key)
    with rtobs.consume("orders", found):
        pass
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"broker": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 7


async def test_the_senders_clock_goes_before_the_id(server, telemetry, clock):
    """An entry with a carrier and an id that its sender chose waits since it was sent, whatever the id says."""
    client, key = server.client(), server.group()
    await got(client.xadd(key, {"a": 1}, id="5-1"))
    clock.now += 7 * SECOND
    found = await entry(client, key)
    with rtobs.consume("orders", found):
        pass
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"producer": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 7
    assert telemetry.by(names.CLOCK_REJECTED, "reason") == {}


@pytest.mark.parametrize(
    "field", [b"", b"x" * 20_000, b"traceparent", b"\xff\xfe=1\n", b"traceparent=x\x00\n", b"[" * 5_000], ids=len
)
async def test_a_hostile_carrier_is_counted_and_ignored(server, telemetry, field):
    """A reserved field that is not ours begins a new journey; nothing raises, and it is counted."""
    client, key = server.client(), server.group()
    server.bare.xadd(key, {"a": 1, "rtobs": field})
    found = await entry(client, key)
    with rtobs.consume("orders", found) as hop:
        assert len(hop.correlation_id) == 32
    assert found[1][b"rtobs"] == field
    assert telemetry.count(names.PROPAGATION_REJECTED) >= 1
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"orders": 1}


# Messages from elsewhere ---------------------------------------------------------------------------------------------


async def test_an_entry_from_elsewhere_is_known_by_its_shape(any_server, telemetry):
    """An entry that XRANGE showed, or another process passed on, continues its journey all the same."""
    client, key = any_server.client(), any_server.key()
    with rtobs.accept("/orders") as hop:
        await client.xadd(key, {"a": 1})
    ((entry_id, fields),) = await client.xrange(key)
    with rtobs.consume("orders", (entry_id, fields)) as again:
        assert again.correlation_id == hop.correlation_id
    for other in [(entry_id, fields, 1), [entry_id, fields], (b"1", fields), (b"1-x", fields), (entry_id, [fields])]:
        with rtobs.consume("orders", other) as unknown:
            assert unknown.correlation_id != hop.correlation_id


@pytest.mark.parametrize("trust", ["link", "ignore"])
async def test_what_comes_from_elsewhere_is_trusted_as_little_as_anything(any_server, telemetry, trust):
    """Once a client of the process is wrapped with less trust, an entry known by its shape alone gets no more."""
    client, key = any_server.client(), any_server.key()
    any_server.client(trust=trust)
    with rtobs.accept("/orders") as hop:
        await client.xadd(key, {"a": 1})
    (found,) = await client.xrange(key)
    with rtobs.consume("orders", found) as again:
        assert again.correlation_id != hop.correlation_id
    (row,) = rows(await client.xread({key: "0"}))
    with rtobs.consume("orders", row) as trusted:
        assert trusted.correlation_id == hop.correlation_id


# Attempts ------------------------------------------------------------------------------------------------------------


async def test_claimed_entries_are_attempts_by_the_brokers_count(server, telemetry):
    """Each of two entries, one claimed once more than the other, is handled as the attempt that the broker counted."""
    client, key = server.client(), server.group()
    for _ in range(3):
        await got(client.xadd(key, {"a": 1}))
    first, second, _ = await entries(client, key, "gone")
    await got(client.xclaim(key, GROUP, "busy", 0, [first[0]]))
    claimed = (await got(client.xautoclaim(key, GROUP, "second", 0, count=2)))[1]
    assert [row[0] for row in claimed] == [first[0], second[0]]
    for row in claimed:
        with rtobs.consume("orders", row):
            await got(client.xack(key, GROUP, row[0]))
    assert attempts(telemetry) == [3, 2]
    assert telemetry.by(names.MESSAGE_REDELIVERED, "destination") == {"orders": 2}


async def test_a_consumers_own_past_is_attempts_too(server, telemetry):
    """A consumer that reads what it had not acknowledged gets the next attempt, from each stream its own count."""
    client, first, second = server.client(), server.group("first"), server.group("second")
    for key in (first, second):
        await got(client.xadd(key, {"a": 1}))
        await entry(client, key)
    await got(client.xreadgroup(GROUP, "first", {second: "0"}))
    reply = await got(client.xreadgroup(GROUP, "first", {first: "0", second: "0"}))
    for row in rows(reply):
        with rtobs.consume("orders", row):
            pass
    assert attempts(telemetry) == [2, 3]


async def test_ids_alone_are_no_messages(server, telemetry):
    """A claim that asks for ids only brings no message, and its result is the client's own."""
    client, key = server.client(), server.group()
    entry_id = await got(client.xadd(key, {"a": 1}))
    await entry(client, key)
    telemetry.forget()
    assert await got(client.xclaim(key, GROUP, "second", 0, [entry_id], justid=True)) == [entry_id]
    assert await got(client.xautoclaim(key, GROUP, "second", 0, justid=True)) == [entry_id]
    assert telemetry.spans() == []


def forbidding(cls: Any) -> Any:
    """Return a client's class that may not ask what is pending."""
    if cls is redis.Redis:

        class Sync(redis.Redis):
            def execute_command(self, *args: Any, **options: Any) -> Any:
                if args[0] == "XPENDING":
                    raise redis.NoPermissionError("this user has no permissions to run the 'xpending' command")
                return super().execute_command(*args, **options)

        return Sync

    class Asyncio(redis.asyncio.Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            if args[0] == "XPENDING":
                raise redis.NoPermissionError("this user has no permissions to run the 'xpending' command")
            return await super().execute_command(*args, **options)

    return Asyncio


async def test_a_claim_that_may_not_ask_is_the_second_attempt_at_least(server, telemetry):
    """Where the server does not tell how often, a claimed entry is its second attempt, and the claim is unharmed."""
    client = server.client(of=forbidding(redis.Redis if server.sync else redis.asyncio.Redis))
    key = server.group()
    await got(client.xadd(key, {"a": 1}))
    await entry(client, key)
    (row,) = (await got(client.xautoclaim(key, GROUP, "second", 0)))[1]
    with rtobs.consume("orders", row):
        pass
    assert attempts(telemetry) == [2]
    assert telemetry.count(names.INTERNAL_ERRORS) == 0


# Settling ------------------------------------------------------------------------------------------------------------


async def test_an_ack_settles_the_hop_it_names(server, telemetry):
    """XACK of this message, alone or among others, settles its hop; of another message or stream, not."""
    client, key, other = server.client(), server.group(), server.group("other")
    for _ in range(4):
        await got(client.xadd(key, {"a": 1}))
    found = await entries(client, key)
    acks = [
        (key, [found[0][0]]),
        (key, [b"1-1", found[1][0].decode()]),
        (key, [b"1-1"]),
        (other, [found[3][0]]),
    ]
    for row, (stream, ids) in zip(found, acks, strict=True):
        with contextlib.suppress(ValueError), rtobs.consume("orders", row):
            await got(client.xack(stream, GROUP, *ids))
            raise ValueError("broken")
    assert settled(telemetry) == {"failed": 2, "retried": 2}
    assert telemetry.by(names.CLIENT_DURATION, "operation", "messaging_destination")["ack", key] == 3


async def test_an_ack_from_inside_a_delivery_settles_the_message(any_server, telemetry):
    """The message is settled wherever in its hop the ack is made."""
    client, key = any_server.client(), any_server.group()
    await client.xadd(key, {"a": 1})
    found = await entry(client, key)
    with contextlib.suppress(ConnectionResetError), rtobs.consume("orders", found), rtobs.deliver("webhook", "crm"):
        await asyncio.create_task(client.xack(key, GROUP, found[0]))
        raise ConnectionResetError
    assert settled(telemetry) == {"failed": 1}
    assert ends(telemetry) == {"failed": 1}


@pytest.mark.parametrize("how", ["group", "noack", "no group"])
async def test_what_needs_no_ack_does_not_come_back(server, telemetry, how):
    """After an error a group's message comes back; one read without a group, or with NOACK, has failed."""
    client, key = server.client(), server.group()
    await got(client.xadd(key, {"a": 1}))
    if how == "no group":
        (row,) = rows(await got(client.xread({key: "0"})))
    else:
        (row,) = await entries(client, key, noack=how == "noack")
    with pytest.raises(ValueError, match="broken"), rtobs.consume("orders", row):
        raise ValueError("broken")
    assert settled(telemetry) == ({"retried": 1} if how == "group" else {"failed": 1})


async def test_the_last_declared_delivery_is_the_last(server, telemetry):
    """With `max_deliveries=2` an error in the second delivery is the end of the message and of its promise."""
    client, key = server.client(max_deliveries=2), server.group()
    await promised(lambda: client.xadd(key, {"a": 1}))
    (row,) = await entries(client, key)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), rtobs.consume("orders", row):
            raise ValueError("broken")
        (row,) = (await got(client.xautoclaim(key, GROUP, "second", 0)))[1]
    assert settled(telemetry) == {"retried": 1, "dead_lettered": 1}
    assert ends(telemetry) == {"dead_lettered": 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


@pytest.mark.parametrize(
    ("command", "arguments", "operation", "outcome"),
    [
        ("XACK", (), "ack", "failed"),
        ("xack", (), "ack", "failed"),
        (b"XACK", (), "ack", "failed"),
        ("XACKDEL", ("KEEPREF", "IDS", 1), "ack", "failed"),
        ("XNACK", ("FAIL", "IDS", 1), "nack", "retried"),
    ],
)
def test_commands_that_settle(telemetry, command, arguments, operation, outcome):
    """Each command that settles is known in every spelling; those of newer servers by their arguments alone."""

    class Deaf(redis.Redis):
        def _execute_command(self, *args: Any, **options: Any) -> Any:
            return 1

    client = rtobs.wrap(Deaf())
    row = (b"1700000000000-0", {b"a": b"1", b"rtobs": envelope.pack({})})
    with contextlib.suppress(ValueError), rtobs.consume("orders", row):
        client.execute_command(command, "stream", GROUP, *arguments, row[0])
        raise ValueError("broken")
    assert settled(telemetry) == {outcome: 1}
    assert telemetry.count(names.CLIENT_DURATION, operation=operation) == 1


# The rest ------------------------------------------------------------------------------------------------------------


async def test_a_client_survives_a_reconnect(server, telemetry):
    """After the server closed its connections, the same client sends and reads messages with their journeys."""
    client, key = server.client(options={"client_name": "rtobs-test"}), server.group()

    async def answers() -> bool:
        try:
            return await got(client.ping())
        except redis.ConnectionError:
            return False

    for _ in range(2):
        await eventually(answers)
        await got(client.xadd(key, {"a": 1}))
        found = await entry(client, key)
        with rtobs.consume("orders", found):
            await got(client.xack(key, GROUP, found[0]))
        for line in server.bare.client_list():
            if line["name"] == "rtobs-test":
                server.bare.client_kill_filter(_id=line["id"])
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 2
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


async def test_a_client_of_a_client_is_wrapped(server, telemetry):
    """The single-connection client that a wrapped client makes sends the journey too."""
    client, key = server.client(), server.key()
    single = client.client()
    await got(single.xadd(key, {"a": 1}))
    assert telemetry.count(names.SENT_MESSAGES) == 1
    await got(single.aclose() if hasattr(single, "aclose") else single.close())


def test_other_objects_of_redis_are_refused():
    """Wrapping what sends no messages itself raises at once, and says what to wrap."""
    with pytest.raises(rtobs.errors.UnsupportedError, match="Sentinel sends no messages itself; wrap the client"):
        rtobs.wrap(redis.Sentinel([("127.0.0.1", 1)]))


def test_an_envelope_needs_an_encoding_that_contains_ascii():
    """A client whose text is not ASCII underneath cannot be given envelopes, and is told so at once."""
    with pytest.raises(rtobs.errors.ConfigError, match=re.escape("got 'utf-16'")):
        rtobs.wrap(redis.Redis(encoding="utf-16"), envelope=True)
    rtobs.wrap(redis.Redis(encoding="latin-1"), envelope=True)


async def test_the_second_hop_on_an_entry_is_its_own(any_server, telemetry):
    """A block inside a handler joins the handler's hop; a block after it is another hop of the same journey."""
    client, key = any_server.client(), any_server.group()
    await client.xadd(key, {"a": 1})
    found = await entry(client, key)
    with rtobs.consume("orders", found) as outer, rtobs.consume("inner", found), rtobs.consume("fields", found[1]):
        pass
    assert len(telemetry.spans("consume")) == 1
    with rtobs.consume("orders", found) as again:
        assert again.correlation_id == outer.correlation_id
    assert len(telemetry.spans("consume")) == 2
