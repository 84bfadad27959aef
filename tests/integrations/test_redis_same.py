"""A wrapped client gives the same results as a bare one: every command that the leaf knows, and some others."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import redis
import redis.asyncio

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import unwrap
from tests.integrations.redis_support import Redis, got, server
from tests.support import telemetry

__all__ = ["server"]

OPTIONS = [{}, {"decode_responses": True}, {"protocol": 2}, {"protocol": 3, "decode_responses": True}]
PIPELINES = [None, {"transaction": True}, {"transaction": False}]


class Steps:
    """Runs commands one by one or as one pipeline, and keeps what came back."""

    def __init__(self, client: Any, pipeline: dict[str, Any] | None) -> None:
        self._client = client
        self._pipe = client.pipeline(**pipeline) if pipeline is not None else None
        self.results: list[Any] = []

    async def run(self, name: str, *args: Any, **options: Any) -> Any:
        target = self._pipe if self._pipe is not None else self._client
        try:
            result = getattr(target, name)(*args, **options)
            if self._pipe is not None:
                (result,) = await got(self._pipe.execute())
            result = await got(result)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
            result = error
        self.results.append(result)
        return result


async def streams(steps: Steps, key: str, other: str) -> None:
    await steps.run("xgroup_create", key, "g", mkstream=True)
    for number in range(1, 5):
        await steps.run("xadd", key, {"n": number, "text": "Zürich ✓"}, id=f"{number}-1")
    await steps.run("xadd", key, {"n": 0}, id="1-0")
    await steps.run("xadd", other, {"n": 0}, nomkstream=True)
    await steps.run("xread", {key: "2-1"}, count=1)
    await steps.run("xread", {key: "9-0", other: "0"})
    await steps.run("xreadgroup", "g", "a", {key: ">"}, count=2)
    await steps.run("xreadgroup", "g", "a", {key: ">"}, noack=True, count=1)
    await steps.run("xreadgroup", "g", "a", {key: "0"})
    await steps.run("xreadgroup", "missing", "a", {key: ">"})
    await steps.run("xclaim", key, "g", "b", 0, ["1-1"])
    await steps.run("xclaim", key, "g", "b", 0, ["1-1"], justid=True)
    await steps.run("xautoclaim", key, "g", "c", 0, count=1)
    await steps.run("xautoclaim", key, "g", "c", 0, justid=True)
    await steps.run("xpending", key, "g")
    await steps.run("xack", key, "g", "1-1", "9-9")
    await steps.run("xack", key, "g", "1-1")
    await steps.run("xrange", key)
    await steps.run("xlen", key)
    await steps.run("xdel", key, "3-1")
    await steps.run("xtrim", key, maxlen=1, approximate=False)
    await steps.run("xadd", key, {})


async def lists(steps: Steps, key: str, other: str) -> None:
    await steps.run("lpushx", key, "nobody")
    await steps.run("rpush", key, "a", "bb", 3, "Zürich ✓", "")
    await steps.run("lpush", key, "first")
    await steps.run("rpushx", key, "last", "last")
    await steps.run("lrange", key, 0, -1)
    await steps.run("lindex", key, -1)
    await steps.run("lindex", key, 99)
    await steps.run("llen", key)
    await steps.run("lpop", key)
    await steps.run("lpop", key, 2)
    await steps.run("lpop", key, 0)
    await steps.run("rpop", key)
    await steps.run("lmove", key, other, "LEFT", "RIGHT")
    await steps.run("rpoplpush", key, other)
    await steps.run("blmove", key, other, 1)
    await steps.run("brpoplpush", key, other, 1)
    await steps.run("lrem", other, 1, "last")
    await steps.run("lrem", other, 0, "not there")
    await steps.run("blpop", [key, other], 1)
    await steps.run("brpop", other, 1)
    await steps.run("rpush", key, "x", "yy", "zzz")
    await steps.run("lmpop", 2, other, key, direction="LEFT", count=2)
    await steps.run("blmpop", 1, 1, key, direction="RIGHT", count=5)
    for name, args in (("lpop", (key,)), ("lpop", (key, 3)), ("lmpop", (1, key, "LEFT")), ("lmove", (key, other))):
        await steps.run(name, *args)
    await steps.run("rpush", key)
    await steps.run("rpush", key, None)
    await steps.run("set", other, "text")
    await steps.run("lpop", other)


async def others(steps: Steps, key: str, other: str) -> None:
    await steps.run("publish", key, "hello")
    await steps.run("spublish", key, "hello")
    await steps.run("set", key, "x")
    await steps.run("get", key)
    await steps.run("hset", other, mapping={"a": 1})
    await steps.run("hgetall", other)
    await steps.run("execute_command", "ECHO", "hello")
    await steps.run("execute_command", "xadd", key, "*", "a", 1)
    await steps.run("eval", "return redis.call('TIME')[3]", 0)
    await steps.run("incr", key)


def plain(value: Any, keys: list[str]) -> Any:
    """Return a result without what must differ: names of keys, our field, moments, and the identity of errors."""
    if isinstance(value, Exception):
        return type(value), [plain(each, keys) for each in value.args]
    if isinstance(value, dict):
        return {
            plain(name, keys): plain(each, keys)
            for name, each in value.items()
            if name not in (b"rtobs", "rtobs", "time_since_delivered")
        }
    if isinstance(value, list | tuple):
        return type(value)(plain(each, keys) for each in value)
    for number, key in enumerate(keys):
        if isinstance(value, str):
            value = value.replace(key, f"key{number}")
        elif isinstance(value, bytes):
            value = value.replace(key.encode(), b"key%d" % number)
    return type(value), value


async def results(server: Redis, script: Any, options: Any, pipeline: Any, how: dict[str, Any] | None) -> list[Any]:
    client = server.client(wrapped=how is not None, options=options, **(how or {}))
    keys = [server.key("one"), server.key("two")]
    steps = Steps(client, pipeline)
    await script(steps, *keys)
    return [plain(each, keys) for each in steps.results]


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("script", [streams, lists, others], ids=lambda script: script.__name__)
async def test_commands_give_the_same_results(server, telemetry, script, options, pipeline):
    """Results, their types and errors of every command are those of a bare client, with and without envelopes."""
    bare = await results(server, script, options, pipeline, None)
    assert len(bare) > 8
    for how in ({}, {"envelope": True}, {"carrier": False}):
        wrapped = await results(server, script, options, pipeline, how)
        for number, (expected, found) in enumerate(zip(bare, wrapped, strict=True)):
            if script is not others or number != 8:  # the time
                assert found == expected, f"step {number}"
    assert telemetry.count(names.INTERNAL_ERRORS) == 0


async def test_a_client_stays_what_it_is(server, telemetry):
    """Class, isinstance, kind of methods and attributes are those of a bare client, and `unwrap` restores the type."""
    bare, client = server.client(wrapped=False), server.client()
    pairs = [
        (bare, client), (bare.pipeline(), client.pipeline()), (bare.pubsub(), client.pubsub()),
    ]  # fmt: skip
    for one, other in pairs:
        assert other.__class__ is one.__class__
        assert isinstance(other, type(one))
        assert inspect.iscoroutinefunction(other.execute_command) == inspect.iscoroutinefunction(one.execute_command)
        assert repr(type(other)) == repr(type(one))
        assert vars(other).keys() == vars(one).keys()
        assert type(unwrap(other)) is type(one)
    assert rtobs.wrap(client) is rtobs.wrap(client)
    for one, other in pairs[1:]:
        for each in (one, other):
            closing = each.reset() if hasattr(each, "command_stack") else getattr(each, "aclose", each.close)()
            await got(closing)


@pytest.mark.parametrize("way", ["alone", "pipeline"])
async def test_a_server_that_is_down_gives_the_clients_own_error(server, telemetry, way, unused_tcp_port):
    """A server that does not answer raises what it raises without rtobs, and the send has failed with it."""
    errors = []
    for wrapped in (False, True):
        client = (redis.Redis if server.sync else redis.asyncio.Redis)(port=unused_tcp_port, retry=None)
        if wrapped:
            rtobs.wrap(client)

        async def send(client: Any = client) -> None:
            adding = (client if way == "alone" else client.pipeline()).xadd("stream", {"a": 1})
            await got(adding if way == "alone" else adding.execute())

        with pytest.raises(redis.ConnectionError) as caught:
            await send()
        errors.append((type(caught.value), str(caught.value)))
        await got(client.aclose() if hasattr(client, "aclose") else client.close())
    assert errors[0] == errors[1]
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ConnectionError": 1}


FAULTS = [
    ("rtobs._journey.envelope", "pack"), ("rtobs._journey.envelope", "unpack"), ("rtobs._journey.envelope", "open"),
    ("rtobs._journey.envelope", "close"), ("rtobs.integrations._redis_commands", "entries"),
    ("rtobs.integrations._redis_commands", "reader"), ("rtobs.integrations._redis_commands", "question"),
    ("rtobs.integrations._redis_commands", "deliveries"), ("rtobs.integrations._redis_commands", "each_item"),
    ("rtobs.integrations._redis_commands", "old_field"), ("rtobs.integrations._redis_commands", "with_field"),
    ("rtobs.integrations._redis_commands", "encoder"), ("rtobs.integrations._redis_calls", "entry_facts"),
    ("rtobs.integrations._redis_calls", "item_facts"), ("rtobs.integrations._redis_calls", "_message_of"),
    ("rtobs.integrations._redis_pubsub", "published_facts"), ("rtobs.integrations._redis_pubsub", "opened"),
    ("rtobs._hop.leaf", "receive"), ("rtobs._hop.leaf", "handed_out"), ("rtobs._hop.leaf", "known"),
    ("rtobs._hop.engine", "start"), ("rtobs._hop.leaf", "headers_of"), ("rtobs._hop.engine", "end"),
]  # fmt: skip


async def published(server: Redis, how: dict[str, Any] | None) -> list[Any]:
    """Return what a handler, a fetch and an iterator get of three messages."""
    client, channel = server.client(wrapped=how is not None, **(how or {})), server.key("channel")
    seen: list[Any] = []
    by_handler = await server.subscribed(client, **{channel: lambda message: seen.append(message["data"])})
    one_by_one = await server.subscribed(client, channel)
    for body in (b"aa", b"bb"):
        await got(client.publish(channel, body))
    for _ in range(2):
        await got(by_handler.get_message(timeout=5))
    seen.append((await got(one_by_one.get_message(timeout=5)))["data"])
    listening = one_by_one.listen()
    seen.append((await got(anext(listening) if hasattr(listening, "__anext__") else next(listening)))["data"])
    await got(listening.aclose() if hasattr(listening, "aclose") else listening.close())
    return seen


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: ".".join(fault)[6:])
async def test_a_fault_of_ours_changes_no_result(server, monkeypatch, fault):
    """Whatever of ours fails beside a command, the command does what it does without us, and the fault is counted."""
    bare = [await results(server, script, {}, None, None) for script in (streams, lists)]
    plainly = await published(server, None)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    counted = telemetry.start(strict=False)
    # A payload whose envelope cannot be taken off is not what was sent, so there none is put on.
    how = {} if fault[1] in ("open", "opened", "each_item") else {"envelope": True}
    try:
        monkeypatch.setattr(importlib.import_module(fault[0]), fault[1], fail)
        found = [await results(server, script, {}, None, how) for script in (streams, lists)]
        handled = await published(server, how)
        monkeypatch.undo()
        with rtobs.accept("/after"):  # counts are exported from the first hop on, and here none may have begun
            pass
        faults = counted.count(names.INTERNAL_ERRORS)
    finally:
        telemetry.stop()
    assert [bare, plainly] == [found, handled]
    assert faults > 0
