"""redis-py wrapped by rtobs while OpenTelemetry's own instrumentation of it is active: no second span for a message."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor

import rtobs
from rtobs import _conventions as names
from tests.integrations.redis_support import GROUP, entry, got, parent_id, server, span_id
from tests.support.telemetry import Telemetry, user_provider

__all__ = ["server"]

SCOPE = "opentelemetry.instrumentation.redis"


@pytest.fixture
def contrib() -> Generator[Callable[[], None], None, None]:
    """Switches the other instrumentation on; it is off again after the test."""
    instrumentor = RedisInstrumentor()
    yield lambda: instrumentor.instrument(tracer_provider=user_provider(), skip_dep_check=True)
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def theirs(telemetry: Telemetry) -> list[Any]:
    return [span for span in telemetry.spans() if span.instrumentation_scope.name == SCOPE]


@pytest.mark.parametrize("first", ["contrib", "rtobs"])
async def test_a_message_has_our_spans_only(server, telemetry, contrib, first):
    """Sends, fetches and claims are our spans alone, whichever came first; other commands are theirs, in our hop."""
    key = server.group()
    if first == "contrib":
        contrib()
    client = server.client(envelope=True)
    if first == "rtobs":
        contrib()
    items, text = server.key("list"), server.key("text")
    await got(client.xadd(key, {"a": 1}))
    await got(client.rpush(items, b"aa", b"bb"))
    await got(client.publish(server.key("channel"), b"hello"))
    await got(client.lpop(items))
    await entry(client, key, "gone")
    (row,) = (await got(client.xautoclaim(key, GROUP, "second", 0)))[1]
    pipe = client.pipeline()
    pipe.xadd(key, {"a": 2})
    await got(pipe.execute())
    assert theirs(telemetry) == []
    with rtobs.consume("orders", row):
        await got(client.set(text, "x"))
        await got(client.xack(key, GROUP, row[0]))
    assert [span.name for span in theirs(telemetry)] == ["SET", "XACK"]
    assert {parent_id(span) for span in theirs(telemetry)} == {span_id(telemetry.span("consume"))}
    assert telemetry.count(names.SENT_MESSAGES) == 5
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 3


async def test_a_pipeline_without_messages_is_theirs(server, telemetry, contrib):
    """A pipeline that sends and fetches nothing has the other instrumentation's span as ever."""
    contrib()
    client = server.client()
    pipe = client.pipeline()
    pipe.set(server.key(), "x")
    await got(pipe.execute())
    assert len(theirs(telemetry)) == len(telemetry.spans()) == 1
