"""The SQS leaves, boto3's and aiobotocore's, by the conformance suite, on moto's server.

A test of the suite that is None here is about something that SQS does not have.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import unwrap
from tests.integrations.adapter import BODY, Adapter, here
from tests.integrations.conformance import Conformance
from tests.integrations.sqs_modes import AiobotocoreAdapter, Boto3Adapter


class Sqs(Conformance):
    """The suite where SQS differs from other brokers: a worker's loop, that opens hops, stands for callbacks."""

    test_an_exception_in_a_callback_is_handled_as_unwrapped = None
    test_a_plain_function_as_callback_sees_its_hop = None
    test_lag_of_an_iterated_message_is_recorded_once = None  # no iterator is the client's
    test_lag_of_the_last_iterated_message_is_recorded_too = None
    test_a_client_is_the_same_wrapped_or_not = (
        None  # deleting twice is no error; tests of sends and receives compare the rest
    )

    test_nothing_is_left_of_two_thousand_messages = None  # in test_sqs_receives.py, of fewer: one takes moto 50 ms
    at_once = 50

    @pytest.mark.parametrize("consumer", ["plain", "decorator", "decorator and with", "two decorators"])
    @pytest.mark.parametrize("publisher", ["plain", "decorator", "with"])
    async def test_user_code_and_client_are_one_hop(self, adapter, queue, telemetry, publisher, consumer):
        """Whoever opens the hop, decorated code, a block or the client, one message is sent once and consumed once."""
        await super().test_user_code_and_client_are_one_hop(adapter, queue, telemetry, publisher, consumer)

    async def test_unwrapping_restores(self, adapter, queue, telemetry):
        """After `unwrap` the client has the class back that was made for it, writes no attribute and counts nothing."""
        client = await adapter.client(wrapped=False)
        own = type(client)
        assert rtobs.wrap(client) is client
        assert type(client) is not own
        assert unwrap(client) is client
        assert type(client) is own
        await adapter.send(client, queue, BODY)
        message = await self._fetched(adapter, client, queue)
        assert not adapter.headers(message).keys() & set(names.OWN_HEADERS)
        assert telemetry.count(names.SENT_MESSAGES) == 0
        await adapter.settle(message, "ack")

    @pytest.mark.parametrize("how", ["ack", "nack"])
    async def test_settlements_are_timed(self, adapter, queue, telemetry, how):
        """Each deletion, and each visibility timeout of 0, counts one duration, inside a hop and after it."""
        await super().test_settlements_are_timed(adapter, queue, telemetry, how)

    async def test_a_dead_letter_ends_its_promise_once(self, adapter, unique, telemetry):
        """Given back at its last delivery a message ends as dead-lettered; reading it again counts no second end."""
        queue, dead = unique("orders"), unique("dead")
        await adapter.declare(dead)
        await adapter.declare(queue, dead_letter=dead)
        client = await adapter.client(max_deliveries=1, dead_letter=dead)
        with rtobs.accept("/orders") as hop:
            hop.intend("webhook")
            with rtobs.publish("orders", channel="webhook", key="7"):
                await adapter.send(client, queue, BODY)
        message = await self._fetched(adapter, client, queue)
        with rtobs.consume("orders", message):
            await adapter.settle(message, "nack")
        expected = {("webhook", "dead_lettered"): 1}
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"dead_lettered": 1}
        assert telemetry.by(names.OUTCOMES, "channel", "outcome") == expected
        assert not await adapter.fetch(client, queue)  # now the broker has moved it
        message = await self._fetched(adapter, client, dead)
        with rtobs.consume("dead", message):
            assert here().correlation_id == hop.correlation_id
            await adapter.settle(message, "ack")
        assert telemetry.by(names.OUTCOMES, "channel", "outcome") == expected
        assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


class TestAiobotocore(Sqs):
    @pytest.fixture
    async def adapter(self, aws_url: str) -> AsyncGenerator[Adapter, None]:
        adapter = AiobotocoreAdapter(aws_url)
        yield adapter
        await adapter.close()


class TestBoto3(Sqs):
    @pytest.fixture
    async def adapter(self, aws_url: str) -> AsyncGenerator[Adapter, None]:
        adapter = Boto3Adapter(aws_url)
        yield adapter
        await adapter.close()
