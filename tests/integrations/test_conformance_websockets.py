"""The leaf of websockets, by the conformance suite, over a real server on loopback.

A test of the suite that is None here is about something that a WebSocket does not have.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Adapter
from tests.integrations.conformance import Conformance
from tests.integrations.websocket_support import WebSocketAdapter


class TestWebsockets(Conformance):
    # Nothing is settled, comes back or becomes a dead letter.
    test_attempts_count_redeliveries = None
    test_settlements_are_timed = None
    test_a_settlement_that_fails_is_timed_with_its_error = None
    test_a_dead_letter_ends_its_promise_once = None
    test_a_client_is_the_same_wrapped_or_not = None  # it settles twice; in test_websockets.py
    # There is no place for headers.
    test_payload_and_foreign_headers_arrive_as_they_were_sent = None
    test_headers_copied_from_another_message_are_replaced = None
    # There are neither callbacks, nor fetches that were worth a span, nor several queues.
    test_an_exception_in_a_callback_is_handled_as_unwrapped = None
    test_a_plain_function_as_callback_sees_its_hop = None
    test_a_fetched_message_is_handled_in_its_own_hop = None
    test_another_message_inside_a_handler_has_its_own_hop = None
    test_lag_of_the_last_iterated_message_is_recorded_too = None  # the connection goes on, whoever has left the loop

    @pytest.fixture
    async def adapter(self) -> AsyncGenerator[Adapter, None]:
        adapter = WebSocketAdapter()
        yield adapter
        await adapter.close()

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

    @pytest.mark.parametrize("consumer", ["plain", "decorator", "decorator and with", "two decorators"])
    @pytest.mark.parametrize("publisher", ["plain", "decorator", "with"])
    async def test_user_code_and_client_are_one_hop(self, adapter, queue, telemetry, publisher, consumer):
        """Whoever opens the hop, decorated code, a block or the client, one message is sent once and consumed once."""
        await super().test_user_code_and_client_are_one_hop(adapter, queue, telemetry, publisher, consumer)
