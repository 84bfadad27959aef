"""Conformance, the host: messages, clients and memory stay what they were."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs._journey.record import HopRecord
from rtobs.integrations import unwrap
from tests.integrations.adapter import BODY, FOREIGN, Suite, assert_one_of_each
from tests.support.timing import eventually


class Unchanged(Suite):
    """Messages, clients and memory stay what they were."""

    async def test_payload_and_foreign_headers_arrive_as_they_were_sent(self, adapter, queue, telemetry):
        """The payload is identical to the byte, foreign headers too, ours come on top, the caller's mapping stays."""
        client = await adapter.client()
        headers = dict(FOREIGN)
        await adapter.send(client, queue, BODY, headers)
        assert headers == FOREIGN
        message = await self._fetched(adapter, client, queue)
        found = adapter.headers(message)
        assert adapter.body(message) == BODY
        assert {name: value for name, value in found.items() if name not in names.OWN_HEADERS} == FOREIGN
        assert {names.TRACEPARENT, names.JOURNEY, names.BAGGAGE} <= found.keys()
        await adapter.settle(message, "ack")

    async def test_headers_copied_from_another_message_are_replaced(self, adapter, queue, telemetry):
        """Who sends on the headers of another message sends our new ones, no stale trace state, and foreign baggage."""
        client = await adapter.client()
        stale = {
            names.TRACEPARENT: f"00-{'a' * 32}-{'b' * 16}-01", names.TRACESTATE: "vendor=old",
            names.BAGGAGE: f"shop=7,{names.BAGGAGE_CID}={'c' * 32}", names.JOURNEY: "of another message",
        }  # fmt: skip
        with rtobs.accept("/forward") as hop:
            await adapter.send(client, queue, BODY, stale)
        message = await self._fetched(adapter, client, queue)
        found = {name: str(value) for name, value in adapter.headers(message).items()}
        span = telemetry.span("publish").context
        assert found[names.TRACEPARENT].startswith(f"00-{span.trace_id:032x}-{span.span_id:016x}")
        assert names.TRACESTATE not in found
        assert sorted(found[names.BAGGAGE].split(",")) == [f"{names.BAGGAGE_CID}={hop.correlation_id}", "shop=7"]
        assert found[names.JOURNEY] != stale[names.JOURNEY]
        await adapter.settle(message, "ack")

    async def test_a_client_is_the_same_wrapped_or_not(self, adapter, unique, telemetry):
        """Results, types, isinstance and exceptions of a wrapped client are those of a bare one."""
        found: dict[bool, list[Any]] = {}
        for wrapped in (False, True):
            queue = unique("same")
            await adapter.declare(queue)
            client = await adapter.client(wrapped=wrapped)
            empty = await adapter.fetch(client, queue)
            result = await adapter.send(client, queue, BODY)
            message = await self._fetched(adapter, client, queue)
            settled = await adapter.settle(message, "ack")
            with pytest.raises(Exception) as twice:  # noqa: PT011 - whatever the client raises
                await adapter.settle(message, "ack")
            found[wrapped] = [
                client.__class__, isinstance(client, client.__class__), empty, type(result), message.__class__,
                isinstance(message, message.__class__), settled, type(twice.value), str(message)[:20],
            ]  # fmt: skip
        assert found[True] == found[False]

    async def test_wrapping_twice_is_wrapping_once(self, adapter, queue, telemetry):
        """A second `wrap` returns the same client and one message stays one message."""
        client = await adapter.client()
        assert rtobs.wrap(client) is client
        stop = await adapter.callback(client, queue, lambda message: adapter.settle(message, "ack"))
        await adapter.send(client, queue, BODY)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert_one_of_each(telemetry)

    async def test_unwrapping_restores(self, adapter, queue, telemetry):
        """After `unwrap` the client has its class back, writes no headers and counts nothing."""
        bare, client = await adapter.client(wrapped=False), await adapter.client()
        assert type(client) is not type(bare)
        assert unwrap(client) is client
        assert type(client) is type(bare)
        await adapter.send(client, queue, BODY)
        message = await self._fetched(adapter, bare, queue)
        assert not adapter.headers(message).keys() & set(names.OWN_HEADERS)
        assert telemetry.count(names.SENT_MESSAGES) == 0
        await adapter.settle(message, "ack")

    async def test_a_bare_client_beside_a_wrapped_one_is_left_alone(self, adapter, queue, telemetry):
        """Wrapping one client changes no other client of the same class."""
        await adapter.client()
        bare = await adapter.client(wrapped=False)
        await adapter.send(bare, queue, BODY)
        message = await self._fetched(adapter, bare, queue)
        assert not adapter.headers(message).keys() & set(names.OWN_HEADERS)
        assert telemetry.spans() == []
        await adapter.settle(message, "ack")

    async def test_nothing_is_left_of_two_thousand_messages(self, adapter, queue, telemetry):
        """After 2,000 messages as many objects live as before, and no hop among them."""
        client = await adapter.client()
        gc.collect()
        others = _hops()  # of earlier tests, kept by whoever reports on them
        done = itertools.count(1)
        handled = 0

        async def handle(message: Any) -> None:
            nonlocal handled
            await adapter.settle(message, "ack")
            handled = next(done)

        stop = await adapter.callback(client, queue, handle)

        async def run(number: int) -> int:
            target = handled + number
            for _ in range(number):
                await adapter.send(client, queue, BODY)
            await eventually(lambda: handled == target, timeout=30)
            telemetry.forget()
            gc.collect()
            return len(gc.get_objects())

        await run(300)  # caches fill
        before = await run(100)
        after = await run(2000)
        await stop()
        assert after - before < 200
        assert _hops() <= others + 1  # the last one, while its task is kept


def _hops() -> int:
    """How many hops are alive, cycles of a client's own aside."""
    gc.collect()
    return sum(type(found) is HopRecord for found in gc.get_objects())
