"""Conformance, sends: which hop a send is, what its span covers, and where fan-out leaves the trace."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import BODY, Suite, place_of
from tests.support.telemetry import SECOND
from tests.support.timing import eventually


class Sends(Suite):
    """Which hop a send is."""

    async def test_the_first_of_two_sends_binds_and_the_second_is_its_sibling(self, adapter, queue, telemetry):
        """Of two sends in one publish hop the first is that hop; the second is a hop beside it, of the same parent."""
        client = await adapter.client()
        with rtobs.accept("/orders"), rtobs.publish("orders"):
            await adapter.send(client, queue, b"1")
            await adapter.send(client, queue, b"2")
        accepted = telemetry.span("accept")
        sibling, bound = sorted(telemetry.spans("publish"), key=lambda span: span.name == "publish orders")
        assert [span.parent.span_id for span in (bound, sibling)] == [accepted.context.span_id] * 2
        assert telemetry.by(names.SENT_MESSAGES, "messaging_destination") == {"orders": 1, adapter.target(queue): 1}
        parents = {}
        for _ in range(2):
            message = await self._fetched(adapter, client, queue)
            with rtobs.consume("orders", message):
                await adapter.settle(message, "ack")
            parents[adapter.body(message)] = telemetry.spans("consume")[-1].parent.span_id
        assert parents == {b"1": bound.context.span_id, b"2": sibling.context.span_id}

    async def test_concurrent_sends_in_one_publish_hop_are_one_each(self, adapter, queue, telemetry):
        """Sends gathered in one publish hop make as many hops as messages; exactly one is the hop that was opened."""
        client = await adapter.client()
        ready = asyncio.Barrier(5)

        async def meet() -> None:
            await ready.wait()

        adapter.before_send(client, meet)  # nobody has sent until all are sending
        with rtobs.accept("/orders"), rtobs.publish("orders"):
            await asyncio.gather(*(adapter.send(client, queue, b"%d" % number) for number in range(5)))
        spans = telemetry.spans("publish")
        assert Counter(span.name == "publish orders" for span in spans) == {True: 1, False: 4}
        assert {span.parent.span_id for span in spans} == {telemetry.span("accept").context.span_id}
        assert len({span.context.span_id for span in spans}) == 5
        assert telemetry.count(names.SENT_MESSAGES) == 5

    async def test_a_retry_inside_a_publish_hop_is_the_same_send(self, adapter, queue, telemetry):
        """A send that fails and is tried again in its publish hop is one sent message, without an error."""
        client = await adapter.client()
        errors = iter([ConnectionError("gone"), None])

        async def fail_once() -> None:
            error = next(errors)
            if error is not None:
                raise error

        adapter.before_send(client, fail_once)
        with rtobs.publish("orders"):
            with pytest.raises(ConnectionError):
                await adapter.send(client, queue, BODY)
            await adapter.send(client, queue, BODY)
        assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {("orders", ""): 1}
        assert telemetry.span("publish").status.is_ok
        message = await self._fetched(adapter, client, queue)
        with rtobs.consume("orders", message):
            await adapter.settle(message, "ack")
        assert telemetry.span("consume").parent.span_id == telemetry.span("publish").context.span_id

    @pytest.mark.parametrize("case", ["client works", "client fails", "user works", "user fails"])
    async def test_a_send_span_covers_the_clients_own_wait(self, adapter, queue, telemetry, clock, case):
        """A send that takes the broker 5 s is a span of 5 s, whether it works or fails, with the failure's type."""
        opened_by, _, how = case.partition(" ")
        fails = how == "fails"
        client = await adapter.client()
        error = ConnectionResetError("gone")

        async def wait() -> None:
            clock.now += 5 * SECOND
            await asyncio.sleep(0)
            if fails:
                raise error

        adapter.before_send(client, wait)

        async def send() -> None:
            if opened_by == "user":
                with rtobs.publish("orders"):
                    await adapter.send(client, queue, BODY)
            else:
                await adapter.send(client, queue, BODY)

        if fails:
            with pytest.raises(ConnectionResetError) as caught:
                await send()
            assert caught.value is error
        else:
            await send()
        span = telemetry.span("publish")
        assert span.end_time - span.start_time == 5 * SECOND
        labels = {"operation": "send", "error_type": "ConnectionResetError" if fails else ""}
        assert telemetry.count(names.CLIENT_DURATION, **labels) == 1
        assert telemetry.seconds(names.CLIENT_DURATION, **labels) == 5
        assert telemetry.count(names.SENT_MESSAGES, **labels) == 1
        assert span.status.is_ok is not fails

    async def test_a_swallowed_failure_is_the_publish_hops_own(self, adapter, queue, telemetry):
        """A publish hop whose only send failed counts as failed, although the user's code kept the error to itself."""
        client = await adapter.client()

        async def fail() -> None:
            raise ConnectionResetError("gone")

        adapter.before_send(client, fail)
        with rtobs.publish("orders"), contextlib.suppress(ConnectionResetError):
            await adapter.send(client, queue, BODY)
        assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ConnectionResetError": 1}

    async def test_from_the_33rd_send_on_each_has_a_trace_of_its_own(self, adapter, queue, telemetry):
        """Sends 1 to 32 stay in their publisher's trace; each further one has its own, linked, in the same journey."""
        client = await adapter.client()
        stop = await adapter.callback(client, queue, lambda message: adapter.settle(message, "ack"))
        with rtobs.accept("/broadcast") as hop:
            for number in range(40):
                await adapter.send(client, queue, b"%d" % number)
        await eventually(lambda: len(telemetry.spans("consume")) == 40)
        await stop()
        publisher = telemetry.span("accept").context
        sends = telemetry.spans("publish")
        assert [span.context.trace_id == publisher.trace_id for span in sends] == [True] * 32 + [False] * 8
        assert [span.parent is None for span in sends] == [False] * 32 + [True] * 8
        for span in sends[32:]:
            assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [
                (publisher.trace_id, publisher.span_id)
            ]
        assert len({span.context.trace_id for span in sends}) == 9
        consumed = telemetry.spans("consume")
        assert {place_of(span).correlation_id for span in (*sends, *consumed)} == {hop.correlation_id}
        assert {(span.parent.trace_id, span.parent.span_id) for span in consumed} == {
            (span.context.trace_id, span.context.span_id) for span in sends
        }
        assert telemetry.seconds(names.MESSAGE_FANOUT) == 40
