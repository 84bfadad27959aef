"""Conformance, facts: attempts, lag, settlements, dead letters, and what the options of ``wrap`` change."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import BODY, How, Place, Suite, here, place_of
from tests.support.telemetry import SECOND
from tests.support.timing import eventually


class Facts(Suite):
    """What is known of a message, and what the options of ``wrap`` change."""

    async def test_attempts_count_redeliveries(self, adapter, queue, telemetry):
        """A message that is nacked twice is handled as attempts 1, 2 and 3, and counted as redelivered and retried."""
        client = await adapter.client()
        how: list[How] = ["nack", "nack", "ack"]
        left = iter(how)
        stop = await adapter.callback(client, queue, lambda message: adapter.settle(message, next(left)))
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: len(telemetry.spans("consume")) == 3)
        await stop()
        spans = telemetry.spans("consume")
        attempts = [span.attributes.get("rtobs.attempt", 1) for span in spans]
        assert attempts == ([1, 2, 3] if adapter.counts_deliveries else [1, 2, 2])
        assert {place_of(span).correlation_id for span in spans} == {correlation_id}
        assert telemetry.count(names.MESSAGE_REDELIVERED) == 2
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 2, "ok": 1}

    async def test_lag_of_an_iterated_message_is_recorded_once(self, adapter, queue, telemetry, clock):
        """The wait in the queue is recorded once per message, whether a hop took it or the loop went on without one."""
        client = await adapter.client()
        for _ in range(4):
            await self._send(adapter, client, queue)
        clock.now += 7 * SECOND
        taken = 0
        async for message in await adapter.iterate(client, queue):
            taken += 1
            if taken % 2:
                await adapter.settle(message, "ack")
                continue
            with rtobs.consume("tickets", message):
                await adapter.settle(message, "ack")
            if taken == 4:
                break
        assert telemetry.by(names.MESSAGE_LAG, "destination") == {"tickets": 2, adapter.destination(queue): 2}
        assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"producer": 4}
        assert telemetry.seconds(names.MESSAGE_LAG) == 28

    async def test_lag_of_the_last_iterated_message_is_recorded_too(self, adapter, queue, telemetry, clock):
        """A message after which the loop is left, and that no hop took, has its lag recorded when the iterator ends."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        clock.now += 7 * SECOND
        async for message in await adapter.iterate(client, queue):
            await adapter.settle(message, "ack")
            break
        await eventually(lambda: gc.collect() >= 0 and telemetry.count(names.MESSAGE_LAG))
        assert telemetry.seconds(names.MESSAGE_LAG, destination=adapter.destination(queue)) == 7

    @pytest.mark.parametrize("how", ["ack", "nack", "reject"])
    async def test_settlements_are_timed(self, adapter, queue, telemetry, how):
        """Each settlement counts one duration under its operation, inside a hop and after it."""
        client = await adapter.client()
        operation = "ack" if how == "ack" else "nack"
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        with rtobs.consume("tickets", message):
            await adapter.settle(message, how)
        assert telemetry.count(names.CLIENT_DURATION, operation=operation) == 1
        if how != "nack":
            await self._send(adapter, client, queue)
        late = await self._fetched(adapter, client, queue)
        with rtobs.consume("tickets", late):
            pass
        await adapter.settle(late, how)
        assert telemetry.count(names.CLIENT_DURATION, operation=operation) == 2
        expected = {"ack": "ok", "nack": "retried", "reject": "dropped"}
        outcomes = Counter([expected[how], "ok"])  # what comes after the hop changes nothing
        found = telemetry.by(names.MESSAGE_SETTLED, "outcome")
        if how == "reject" and "failed" in found:
            outcomes = Counter(["failed", "ok"])  # the leaf knows that the queue has no dead-letter target
        assert found == outcomes
        if how == "nack":
            message = await self._fetched(adapter, client, queue)
            await adapter.settle(message, "ack")

    async def test_a_settlement_that_fails_is_timed_with_its_error(self, adapter, queue, telemetry):
        """A settlement that raises is timed with its error, goes on unchanged, and does not decide how its hop ends."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        await adapter.settle(message, "ack")
        with rtobs.consume("tickets", message), pytest.raises(Exception) as caught:  # noqa: PT011 - the client's own
            await adapter.settle(message, "reject")
        error = type(caught.value).__qualname__
        assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type")["nack", error] == 1
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}

    async def test_a_dead_letter_ends_its_promise_once(self, adapter, unique, telemetry):
        """A rejected message ends its promise as dead-lettered; reading the dead-letter queue counts no second end."""
        queue, dead = unique("orders"), unique("dead")
        await adapter.declare(dead)
        await adapter.declare(queue, dead_letter=dead)
        client = await adapter.client()
        with rtobs.accept("/orders") as hop:
            hop.intend("webhook")
            with rtobs.publish("orders", channel="webhook", key="7"):
                await adapter.send(client, queue, BODY)
        stop = await adapter.callback(client, queue, lambda message: adapter.settle(message, "reject"))
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        expected = {("webhook", "dead_lettered"): 1}
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"dead_lettered": 1}
        assert telemetry.by(names.OUTCOMES, "channel", "outcome") == expected
        message = await self._fetched(adapter, client, dead)
        with rtobs.consume("dead", message):
            assert here().correlation_id == hop.correlation_id
            await adapter.settle(message, "ack")
        assert telemetry.by(names.OUTCOMES, "channel", "outcome") == expected
        assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}

    # Options of wrap -------------------------------------------------------------------------------------------------

    async def test_without_carrier_nothing_of_ours_is_written(self, adapter, queue, telemetry):
        """`carrier=False` sends counted messages without our headers, and their consumer begins a new journey."""
        client = await adapter.client(carrier=False)
        correlation_id = await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        assert not adapter.headers(message).keys() & set(names.OWN_HEADERS)
        with rtobs.consume("tickets", message) as hop:
            await adapter.settle(message, "ack")
        assert hop.correlation_id != correlation_id
        assert telemetry.count(names.SENT_MESSAGES) == 1
        assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"tickets": 1}

    @pytest.mark.parametrize("trust", ["link", "ignore"])
    async def test_an_untrusted_source_names_no_journey(self, adapter, queue, telemetry, trust):
        """From an untrusted source come neither name, trace nor tenant; with `link` the sender's span is linked."""
        sender, receiver = await adapter.client(), await adapter.client(trust=trust)
        correlation_id = await self._send(adapter, sender, queue, tenant="acme")
        message = await self._fetched(adapter, receiver, queue)
        with rtobs.consume("tickets", message) as hop:
            await adapter.settle(message, "ack")
        sent, consumed = telemetry.span("publish"), telemetry.span("consume")
        assert sent.attributes["rtobs.tenant"] == "acme"
        assert "rtobs.tenant" not in consumed.attributes
        assert hop.correlation_id
        assert hop.correlation_id != correlation_id
        assert consumed.parent is None
        assert consumed.context.trace_id != sent.context.trace_id
        assert telemetry.count(names.PROPAGATION_MISSING) == 0  # it is there, and not believed
        expected = [sent.context.span_id] if trust == "link" else []
        assert [link.context.span_id for link in consumed.links] == expected

    async def test_a_decorators_trust_beats_the_clients(self, adapter, queue, telemetry):
        """A callback decorated with its own trust believes no more than that, though its client is trusted."""
        client = await adapter.client()
        seen: list[Place] = []

        @rtobs.consume("tickets", trust="link")
        async def handle(message: Any) -> None:
            seen.append(here())
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, queue, handle)
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert len(seen) == 1
        assert seen[0].correlation_id not in ("", correlation_id)
        sent = telemetry.span("publish").context
        assert [link.context.span_id for link in telemetry.span("consume").links] == [sent.span_id]

    async def test_a_message_without_a_journey_is_counted(self, adapter, queue, telemetry):
        """A message from a client that nobody wrapped begins a journey where it is consumed, and is counted."""
        sender, receiver = await adapter.client(wrapped=False), await adapter.client()
        seen: list[Place] = []

        async def handle(message: Any) -> None:
            seen.append(here())
            await adapter.settle(message, "ack")

        stop = await adapter.callback(receiver, queue, handle)
        await adapter.send(sender, queue, BODY)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert len(seen[0].correlation_id) == 32
        assert seen == [place_of(telemetry.span("consume"))]
        assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {adapter.destination(queue): 1}
