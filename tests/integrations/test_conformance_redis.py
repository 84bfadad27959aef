"""redis-py's leaf, by the conformance suite, on a live Redis: Streams, Pub/Sub and lists.

A test of the suite that is None here is about something that the mode does not have; `test_redis_*.py` say what it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Adapter
from tests.integrations.conformance import Conformance
from tests.integrations.redis_modes import ListsAdapter, PubSubAdapter, RedisAdapter, StreamsAdapter


async def driven(adapter: RedisAdapter) -> AsyncGenerator[Adapter, None]:
    yield adapter
    await adapter.close()


class NoCallbacks:
    """What stands for a callback is a worker's loop, which opens the hop, and no iterator is the client's."""

    test_an_exception_in_a_callback_is_handled_as_unwrapped = None
    test_a_plain_function_as_callback_sees_its_hop = None
    test_lag_of_an_iterated_message_is_recorded_once = None
    test_lag_of_the_last_iterated_message_is_recorded_too = None

    @pytest.mark.parametrize("consumer", ["plain", "decorator", "decorator and with", "two decorators"])
    @pytest.mark.parametrize("publisher", ["plain", "decorator", "with"])
    async def test_user_code_and_client_are_one_hop(self, adapter, queue, telemetry, publisher, consumer):
        """Whoever opens the hop, decorated code, a block or the client, one message is sent once and consumed once."""
        await super().test_user_code_and_client_are_one_hop(adapter, queue, telemetry, publisher, consumer)


class NothingToSettle:
    """A message is gone once it was brought: nothing acknowledges it, brings it back or makes a dead letter of it."""

    test_attempts_count_redeliveries = None
    test_settlements_are_timed = None
    test_a_dead_letter_ends_its_promise_once = None
    test_payload_and_foreign_headers_arrive_as_they_were_sent = None  # there is no place for them
    test_headers_copied_from_another_message_are_replaced = None

    async def test_an_exception_in_a_block_goes_on_unchanged(self, adapter, queue, telemetry):
        """What a block raises leaves it as the same object, and the message's handling has failed for good."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        error = ValueError("broken")
        with pytest.raises(ValueError, match="broken") as caught, rtobs.consume("tickets", message):
            raise error
        assert caught.value is error
        assert telemetry.span("consume").attributes["error.type"] == "ValueError"
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1}


class SettledOnlyOnce:
    """Settling twice is no error to Redis, or there is no settling; `test_redis_same.py` compares results instead."""

    test_a_settlement_that_fails_is_timed_with_its_error = None
    test_a_client_is_the_same_wrapped_or_not = None


class TestStreams(NoCallbacks, SettledOnlyOnce, Conformance):
    test_attempts_count_redeliveries = None  # nothing is given back; it is claimed
    test_settlements_are_timed = None
    test_a_dead_letter_ends_its_promise_once = None

    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(StreamsAdapter(redis_url)):
            yield adapter


class TestPubSub(NothingToSettle, SettledOnlyOnce, Conformance):
    test_a_cancelled_callback_ends_its_hop = None  # it would cancel the task that reads
    test_a_thousand_concurrent_messages_each_see_their_own_id = None  # callbacks are called one after the other
    test_an_exception_in_a_callback_is_handled_as_unwrapped = None  # nothing comes back; in test_redis_pubsub.py

    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(PubSubAdapter(redis_url)):
            yield adapter


class TestLists(NoCallbacks, NothingToSettle, SettledOnlyOnce, Conformance):
    @pytest.fixture
    async def adapter(self, redis_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(ListsAdapter(redis_url)):
            yield adapter
