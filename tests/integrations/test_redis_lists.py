"""Redis lists through a wrapped client, sync and asyncio, on a live Redis."""

from __future__ import annotations

from typing import Any

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._journey import envelope
from rtobs.integrations import _redis_commands as commands
from tests.integrations.adapter import here
from tests.integrations.redis_support import (
    any_server,
    got,
    linked,
    parent_id,
    server,
    span_id,
)

__all__ = ["any_server", "server"]

BODY = bytes(range(256))


def popped(command: str, client: Any, key: str, other: str) -> Any:
    """Take one item off *key* by one of the commands that do."""
    return {
        "lpop": lambda: client.lpop(key),
        "lpop count": lambda: client.lpop(key, 1),
        "rpop": lambda: client.rpop(key),
        "blpop": lambda: client.blpop([other, key], 1),
        "brpop": lambda: client.brpop([other, key], 1),
        "lmove": lambda: client.lmove(key, other),
        "blmove": lambda: client.blmove(key, other, 1),
        "rpoplpush": lambda: client.rpoplpush(key, other),
        "brpoplpush": lambda: client.brpoplpush(key, other, 1),
        "lmpop": lambda: client.lmpop(2, other, key, direction="LEFT"),
        "blmpop": lambda: client.blmpop(1, 2, other, key, direction="LEFT"),
    }[command]()


POPS = [
    "lpop", "lpop count", "rpop", "blpop", "brpop", "lmove", "blmove", "rpoplpush", "brpoplpush", "lmpop", "blmpop",
]  # fmt: skip


def item(reply: Any) -> Any:
    """Return the one item of a reply."""
    while isinstance(reply, list | tuple):
        reply = reply[-1]
    return reply


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=str)
@pytest.mark.parametrize("command", POPS)
async def test_every_pop_brings_the_payload_and_the_journey(server, telemetry, command, options):
    """Each command that takes an item brings what was pushed, in the client's own shape, and the journey."""
    body = "Zürich ✓" if options.get("decode_responses") else BODY
    client, bare = server.client(envelope=True, options=options), server.client(wrapped=False, options=options)
    key, other = server.key("list"), server.key("other")
    await got(bare.rpush(key, body))
    plain = await got(popped(command, bare, key, other))
    server.bare.delete(other)
    assert await got(popped(command.replace("b", "", 1), client, key, other)) is None
    with rtobs.accept("/jobs") as hop:
        await got(client.rpush(key, body))
    reply = await got(popped(command, client, key, other))
    assert reply == plain
    assert type(reply) is type(plain)
    received = telemetry.span("receive")
    assert received.attributes["messaging.destination.name"] == key
    assert linked(received) == [span_id(telemetry.span("publish"))]
    with rtobs.consume("jobs", item(reply)) as found:
        assert found.correlation_id == hop.correlation_id
        with rtobs.consume("again", item(reply)) as inner:
            assert inner.correlation_id == hop.correlation_id
    assert parent_id(telemetry.span("consume")) == span_id(telemetry.span("publish"))
    assert len(leaf.received) == 0


@pytest.mark.parametrize("command", ["blpop", "brpop"])
async def test_the_pair_of_a_blocking_pop_is_known_too(server, telemetry, command):
    """What a blocking pop returned may be handed over whole."""
    client, key = server.client(envelope=True), server.key("list")
    with rtobs.accept("/jobs") as hop:
        await got(client.rpush(key, BODY))
    pair = await got(getattr(client, command)([key], 1))
    seen = []
    rtobs.consume("jobs")(lambda _: seen.append(here().correlation_id))(pair)
    assert seen == [hop.correlation_id]


@pytest.mark.parametrize("command", ["lpush", "rpush", "lpushx", "rpushx"])
async def test_each_value_of_a_push_is_a_message(server, telemetry, command):
    """A push of three values is three sends beside each other; each item continues its own span's trace."""
    client, key = server.client(envelope=True), server.key("list")
    server.bare.rpush(key, "first")
    with rtobs.accept("/jobs") as hop:
        assert await got(getattr(client, command)(key, b"aa", "bb", 77)) == 4
    sends = telemetry.spans("publish")
    assert [parent_id(span) for span in sends] == [span_id(telemetry.span("accept"))] * 3
    assert len({span_id(span) for span in sends}) == 3
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.seconds(names.MESSAGE_FANOUT) == 3
    found = await got(client.lrange(key, 0, -1))
    assert found == ([b"77", b"bb", b"aa", b"first"] if command.startswith("l") else [b"first", b"aa", b"bb", b"77"])
    parents = {}
    for _ in range(4):
        payload = await got(client.lpop(key))
        with rtobs.consume("jobs", payload) as consumed:
            if payload != b"first":
                assert consumed.correlation_id == hop.correlation_id
                parents[payload] = None
        if payload in parents:
            parents[payload] = parent_id(telemetry.spans("consume")[-1])
    assert parents == dict(zip([b"aa", b"bb", b"77"], [span_id(span) for span in sends], strict=True))


async def test_one_push_in_a_publish_hop_is_that_hop(server, telemetry):
    """The first value of a push is the message of the publish hop around, the second one is its sibling."""
    client, key = server.client(envelope=True), server.key("list")
    with rtobs.accept("/jobs"), rtobs.publish("jobs"):
        await got(client.rpush(key, b"aa", b"bb"))
    sibling, bound = telemetry.spans("publish")
    assert [bound.name, sibling.name] == ["publish jobs", f"publish {key}"]
    assert parent_id(bound) == parent_id(sibling) == span_id(telemetry.span("accept"))
    with rtobs.consume("jobs", await got(client.lpop(key))):
        pass
    assert parent_id(telemetry.span("consume")) == span_id(bound)


async def test_a_refused_push_is_as_many_failed_sends(server, telemetry):
    """A push to a key of another kind raises the client's error, and each value is a send that failed."""
    client, key = server.client(envelope=True), server.key("text")
    server.bare.set(key, "x")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await got(client.rpush(key, b"aa", b"bb"))
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ResponseError": 2}


@pytest.mark.parametrize("pipelined", [False, True])
async def test_what_finds_no_key_to_add_to_was_not_sent(server, telemetry, pipelined):
    """Commands that add only to what is there return None or 0 where nothing is, and each message is a failed send."""
    client, key = server.client(), server.key("nothing")
    calls = client.pipeline() if pipelined else client
    replies = [
        await got(calls.xadd(key, {"a": 1}, nomkstream=True)),
        await got(calls.lpushx(key, "a")),
        await got(calls.rpushx(key, "a", "b")),
        await got(calls.publish(key, "nobody listens, which is no error")),
        await got(calls.rpush(key, "a")),
        await got(calls.rpushx(key, "b")),
    ]
    if pipelined:
        replies = await got(calls.execute())
    assert replies == [None, 0, 0, 0, 1, 2]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"unroutable": 4, "": 3}
    failed = [span for span in telemetry.spans("publish") if not span.status.is_ok]
    assert {span.attributes["rtobs.reason"] for span in failed} == {"unroutable"}


async def test_without_an_envelope_nothing_is_added(server, telemetry):
    """By default an item is the payload alone; its consumer begins a journey and counts that it had to."""
    client, key = server.client(), server.key("list")
    await got(client.rpush(key, BODY))
    assert server.bare.lrange(key, 0, -1) == [BODY]
    with rtobs.consume("jobs", await got(client.lpop(key))):
        pass
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"jobs": 1}


async def test_every_wrapped_reader_opens_envelopes(server, telemetry):
    """A reader that writes no envelopes itself gets payloads all the same, also where it only looks."""
    sender, reader, key = server.client(envelope=True), server.client(), server.key("list")
    with rtobs.accept("/jobs") as hop:
        await got(sender.rpush(key, BODY, b"two"))
    assert server.bare.lindex(key, 1).startswith(b"rtobs1 ")
    telemetry.forget()
    assert await got(reader.lrange(key, 0, -1)) == [BODY, b"two"]
    assert await got(reader.lindex(key, 0)) == BODY
    assert telemetry.spans() == []
    assert len(leaf.received) == 0
    with rtobs.consume("jobs", await got(reader.lpop(key))) as found:
        assert found.correlation_id == hop.correlation_id


# A list that is being worked on: LMOVE takes, LREM is done -----------------------------------------------------------


@pytest.fixture
def moved(monkeypatch):
    """As if nothing had been moved in this process before."""
    found = commands.Moved()
    monkeypatch.setattr("rtobs.integrations._redis_calls.moved", found)
    return found


@pytest.mark.parametrize("way", ["alone", "pipeline"])
@pytest.mark.parametrize("command", ["lmove", "blmove", "rpoplpush", "brpoplpush"])
async def test_a_moved_item_is_removed_by_its_payload(server, telemetry, moved, command, way):
    """Whoever moved items to a list of work in progress removes each by the payload that he got, each once."""
    client, key, busy = server.client(envelope=True), server.key("list"), server.key("busy")
    await got(client.rpush(key, b"same", b"same", b"other"))
    got_back = [await got(popped(command, client, key, busy)) for _ in range(3)]
    assert sorted(got_back) == [b"other", b"same", b"same"]
    assert server.bare.llen(busy) == 3
    for left, payload in enumerate(["same", b"other", b"same"]):
        if way == "alone":
            removed = await got(client.lrem(busy, 1, payload))
        else:
            pipe = client.pipeline()
            pipe.lrem(busy, 1, payload)
            (removed,) = await got(pipe.execute())
        assert removed == 1
        assert server.bare.llen(busy) == 2 - left
    assert await got(client.lrem(busy, 1, b"same")) == 0
    assert await got(client.lrem(busy, 0, "never there")) == 0


def test_what_was_moved_is_remembered_within_bounds(moved, monkeypatch):
    """Items of lists in progress are remembered by number and bytes up to a limit, the oldest go first."""
    monkeypatch.setattr(commands, "MOST", 3)
    for number in range(4):
        moved.put("busy", b"%d" % number, b"item %d" % number)
    assert [moved.take("busy", b"%d" % number) for number in range(4)] == [None, b"item 1", b"item 2", b"item 3"]
    monkeypatch.setattr(commands, "MOST_BYTES", 10)
    moved.put("busy", b"a", b"x" * 8)
    moved.put("busy", b"b", b"x" * 8)
    assert moved.take("busy", b"a") is None
    assert moved.take("other", b"b") is None
    assert moved.take("busy", b"b") == b"x" * 8
    assert (moved._count, moved._bytes, dict(moved._items)) == (0, 0, {})


# Payloads as values --------------------------------------------------------------------------------------------------


async def test_a_payload_is_known_by_being_the_object_that_came(server, telemetry):
    """An equal value that the client did not hand out is no message; the one it handed out is, once."""
    client, key = server.client(envelope=True), server.key("list")
    with rtobs.accept("/jobs") as hop:
        await got(client.rpush(key, BODY))
    payload = await got(client.lpop(key))
    for other in (bytes(bytearray(BODY)), BODY, "text", [key, BODY]):
        with rtobs.consume("jobs", other) as found:
            assert found.correlation_id != hop.correlation_id
    with rtobs.consume("jobs", payload) as found:
        assert found.correlation_id == hop.correlation_id
    with rtobs.consume("jobs", payload) as again:
        assert again.correlation_id != hop.correlation_id


async def test_other_commands_see_what_is_there(any_server, telemetry):
    """A command that rtobs does not know passes through: what it shows is the envelope."""
    client, key = any_server.client(envelope=True), any_server.key("list")
    await client.rpush(key, b"two", b"one")
    (shown, _) = await client.sort(key, alpha=True)
    assert envelope.open(shown)[0] in (b"one", b"two")
