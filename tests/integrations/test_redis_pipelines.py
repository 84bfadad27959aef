"""Pipelines and transactions of a wrapped client, sync and asyncio, on a live Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._journey import envelope
from tests.integrations.adapter import NOWHERE, here
from tests.integrations.redis_support import (
    GROUP,
    any_server,
    attempts,
    entries,
    got,
    linked,
    parent_id,
    promised,
    server,
    settled,
    span_id,
)
from tests.support.telemetry import SECOND

__all__ = ["any_server", "server"]


def journeys(server: Any, key: str) -> list[str]:
    """Return the span ids in the carriers of a stream's entries."""
    found = [envelope.unpack(fields.get(b"rtobs")) for _, fields in server.bare.xrange(key)]
    return [headers[names.TRACEPARENT].split("-")[2] if headers else "" for headers in found]


@pytest.mark.parametrize("transaction", [True, False])
async def test_what_is_queued_leaves_together(server, telemetry, clock, transaction):
    """Each message of a pipeline is a send of the hop that queued it, and begins when the pipeline is executed."""
    client, stream, items = server.client(envelope=True), server.key("stream"), server.key("list")
    pipe = client.pipeline(transaction=transaction)
    with rtobs.accept("/orders") as hop:
        assert pipe.xadd(stream, {"a": 1}) is pipe
        pipe.set(server.key(), "x").rpush(items, b"aa", b"bb")
        pipe.publish(server.key("channel"), b"hello")
    assert telemetry.spans("publish") == []
    clock.now += 5 * SECOND
    result = await got(pipe.execute())
    assert result[1:] == [True, 2, 0]
    sends = telemetry.spans("publish")
    assert [parent_id(span) for span in sends] == [span_id(telemetry.span("accept"))] * 4
    assert journeys(server, stream) == [f"{span_id(sends[0]):016x}"]
    assert sends[0].start_time == clock.now
    for span in sends[1:3]:
        payload = await got(client.lpop(items))
        with rtobs.consume("jobs", payload) as consumed:
            assert consumed.correlation_id == hop.correlation_id
        assert parent_id(telemetry.spans("consume")[-1]) == span_id(span)
    assert telemetry.count(names.SENT_MESSAGES) == 4
    assert here() == NOWHERE


async def test_a_publish_hop_round_the_queueing_is_the_messages_hop(server, telemetry):
    """A publish hop that queues a message stands for it, whether it is open when the pipeline leaves or has ended."""
    client, stream = server.client(), server.group()
    pipe = client.pipeline()

    def queue() -> Any:
        pipe.xadd(stream, {"a": 1})
        pipe.xadd(stream, {"a": 2})

    correlation_id = await promised(queue)
    with rtobs.publish("others"):
        pipe.xadd(stream, {"a": 3})
        await got(pipe.execute())
    by_id = {f"{span_id(span):016x}": span.name for span in telemetry.spans("publish")}
    assert [by_id[found] for found in journeys(server, stream)] == [
        "publish orders", f"publish {stream}", "publish others",
    ]  # fmt: skip
    assert telemetry.count(names.SENT_MESSAGES) == 3
    first, *_ = await entries(client, stream)
    with rtobs.consume("orders", first) as hop:
        assert hop.correlation_id == correlation_id
        await got(client.xack(stream, GROUP, first[0]))
    assert telemetry.by(names.OUTCOMES, "outcome") == {"ok": 1}


async def test_what_is_never_executed_was_never_sent(server, telemetry):
    """A pipeline that is left without executing it makes no span and counts no message."""
    client, stream = server.client(), server.key()
    pipe = client.pipeline()
    pipe.xadd(stream, {"a": 1})
    await got(pipe.reset())
    assert await got(pipe.execute()) == []
    assert telemetry.spans() == []
    assert telemetry.count(names.SENT_MESSAGES) == 0
    assert telemetry.series(names.HOPS_ACTIVE) == []


async def test_a_pipelines_error_is_all_its_messages(server, telemetry):
    """If one command fails and raises, every message of the pipeline counts as failed; the error quotes the caller."""
    found = []
    for wrapped in (False, True):
        client, text, stream = server.client(wrapped=wrapped, envelope=True), server.key("text"), server.key("stream")
        server.bare.set(text, "x")
        pipe = client.pipeline(transaction=False)
        pipe.xadd(stream, {"a": 1})
        pipe.rpush(text, b"secret")
        with pytest.raises(redis.ResponseError) as caught:
            await got(pipe.execute())
        found.append(str(caught.value).replace(text, "KEY"))
        assert len(pipe) == 0
    assert found[0] == found[1]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ResponseError": 2}


async def test_errors_in_the_results_are_one_message_s_own(server, telemetry):
    """With `raise_on_error=False` the message that was refused has failed, and the other was sent."""
    client, text, stream = server.client(), server.key("text"), server.key("stream")
    server.bare.set(text, "x")
    pipe = client.pipeline(transaction=False)
    pipe.xadd(stream, {"a": 1})
    pipe.xadd(text, {"a": 1})
    result = await got(pipe.execute(raise_on_error=False))
    assert isinstance(result[1], redis.ResponseError)
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {
        (stream, ""): 1, (text, "ResponseError"): 1,
    }  # fmt: skip


async def test_after_watch_a_message_leaves_at_once(server, telemetry):
    """Between WATCH and MULTI an XADD runs at once, after MULTI with the others; each carries its journey."""
    client, stream, watched = server.client(), server.group(), server.key("watched")
    pipe = client.pipeline()
    await got(pipe.watch(watched))
    with rtobs.accept("/orders"):
        entry_id = await got(pipe.xadd(stream, {"now": 1}))
        assert isinstance(entry_id, bytes)
        assert telemetry.count(names.SENT_MESSAGES) == 1
        reply = await got(pipe.xreadgroup(GROUP, "first", {stream: ">"}))
        with rtobs.consume("orders", reply[0][1][0]):
            pass
        pipe.multi()
        pipe.xadd(stream, {"later": 1})
        await got(pipe.execute())
    assert journeys(server, stream) == [f"{span_id(span):016x}" for span in telemetry.spans("publish")]
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


async def test_a_transaction_that_is_tried_again_was_sent_once(server, telemetry):
    """`transaction()` that loses a race and runs again is one failed send and one that worked."""
    client, stream, watched = server.client(), server.key("stream"), server.key("watched")
    runs = []

    def add(pipe: Any) -> Any:
        runs.append(pipe)
        if len(runs) == 1:
            server.bare.set(watched, "changed")
        pipe.multi()
        pipe.xadd(stream, {"a": 1})

    async def add_async(pipe: Any) -> None:
        add(pipe)

    (entry_id,) = await got(client.transaction(add if server.sync else add_async, watched))
    assert [found for found, _ in server.bare.xrange(stream)] == [entry_id]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"WatchError": 1, "": 1}


async def test_a_pipeline_can_fetch_and_settle(server, telemetry):
    """Messages that a pipeline fetched are known, as payloads without envelopes, and its acks settle their hop."""
    client, stream, items = server.client(envelope=True), server.group(), server.key("list")
    for number in range(2):
        with rtobs.accept("/orders") as hop:
            await got(client.xadd(stream, {"a": number}))
    await got(client.rpush(items, b"body"))
    first, second = await entries(client, stream, "gone")
    telemetry.forget()
    pipe = client.pipeline()
    pipe.xclaim(stream, GROUP, "second", 0, [second[0]]).lpop(items).llen(items)
    claimed, payload, left = await got(pipe.execute())
    assert (payload, left) == (b"body", 0)
    assert [len(linked(span)) for span in telemetry.spans("receive")] == [1, 1]
    with rtobs.consume("orders", claimed[0]) as found:
        assert found.correlation_id == hop.correlation_id
        pipe.xack(stream, GROUP, second[0]).xack(stream, GROUP, first[0])
        assert await got(pipe.execute()) == [1, 1]
    assert attempts(telemetry) == [2]
    assert settled(telemetry) == {"ok": 1}
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 2
    assert leaf.known(payload).address == items
    assert leaf.known(claimed[0][1]) is None


async def test_a_pipeline_can_be_executed_again(server, telemetry):
    """A pipeline that was executed and filled again sends the new messages only."""
    client, stream = server.client(), server.key()
    pipe = client.pipeline()
    for number in range(3):
        pipe.xadd(stream, {"n": number})
        assert len(await got(pipe.execute())) == 1
    assert len(set(journeys(server, stream))) == 3
    assert telemetry.count(names.SENT_MESSAGES) == 3


async def test_a_pipeline_that_did_not_get_to_send_can_try_again(server, telemetry):
    """An execution that fails before anything left leaves the queue as it was, and the next one sends it."""
    client, items = server.client(envelope=True), server.key("list")
    pipe = client.pipeline()
    await got(client.register_script("return 1")(client=pipe))
    pipe.rpush(items, b"body")
    before = list(pipe.command_stack)
    errors = iter([OSError("no scripts"), None])
    load = pipe.load_scripts

    def load_scripts() -> Any:
        if (error := next(errors)) is not None:
            raise error
        return load()

    pipe.load_scripts = load_scripts
    with pytest.raises(OSError, match="no scripts"):
        await got(pipe.execute())
    assert pipe.command_stack == before
    assert await got(pipe.execute()) == [1, 1]
    assert await got(client.lpop(items)) == b"body"
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"OSError": 1, "": 1}


async def test_a_pipeline_shows_its_queue_as_ever(server, telemetry):
    """What a caller sees of a pipeline before it leaves is what it queued."""
    found = []
    for wrapped in (False, True):
        pipe = server.client(wrapped=wrapped, envelope=True).pipeline()
        pipe.xadd("stream", {"a": 1}, maxlen=5).rpush("list", b"a").get("key")
        found.append((pipe.command_stack, len(pipe), pipe.__class__))
        await got(pipe.reset())
    assert found[0] == found[1]


async def test_a_cancelled_pipeline_is_cancelled_sends(any_server, telemetry):
    """Messages of a pipeline whose execution was cancelled count as sends that were, and nothing stays current."""
    client, stream = any_server.client(), any_server.key()
    pipe = client.pipeline()
    pipe.xadd(stream, {"a": 1})
    pipe.execute_command("BLPOP", any_server.key("empty"), 0)  # in a transaction it answers at once

    async def run() -> None:
        asyncio.current_task().cancel()
        await pipe.execute()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run())
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"CancelledError": 1}
    assert here() == NOWHERE
