"""The leaves of paho-mqtt and aiomqtt, by the conformance suite, on a live Mosquitto: MQTT 5, and 3.1.1 in envelopes.

A test of the suite that is None here is about something that the client or the protocol does not have.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Adapter
from tests.integrations.conformance import Conformance
from tests.integrations.mqtt_support import V3, V5, AiomqttAdapter, MqttAdapter, PahoAdapter

pytestmark = pytest.mark.timeout(180)  # two thousand confirmations, one after the other, on a busy machine


async def driven(adapter: MqttAdapter) -> AsyncGenerator[Adapter, None]:
    yield adapter
    await adapter.close()


class NothingIsRefused:
    """MQTT knows no nack: what is not acknowledged comes with the next connection; nor dead letters."""

    test_attempts_count_redeliveries = None  # test_paho.py
    test_settlements_are_timed = None  # as above
    test_a_settlement_that_fails_is_timed_with_its_error = None  # nor does any fail
    test_a_dead_letter_ends_its_promise_once = None
    test_a_client_is_the_same_wrapped_or_not = None  # test_mqtt_same.py; here it settles twice


class NoHeaders:
    """MQTT 3.1.1 has no place for headers; what the envelope does is in test_mqtt_envelope.py."""

    test_payload_and_foreign_headers_arrive_as_they_were_sent = None
    test_headers_copied_from_another_message_are_replaced = None


class OneByOne:
    """paho calls back for one message after the other, on its own thread, and has neither iterator nor fetch."""

    test_a_fetched_message_is_handled_in_its_own_hop = None
    test_lag_of_an_iterated_message_is_recorded_once = None
    test_lag_of_the_last_iterated_message_is_recorded_too = None
    test_a_thousand_concurrent_messages_each_see_their_own_id = None
    test_a_cancelled_callback_ends_its_hop = None
    test_an_exception_in_a_callback_is_handled_as_unwrapped = None  # it ends the client's thread; test_paho.py


class NothingToSettle:
    """aiomqtt acknowledges before it yields."""

    test_a_fetched_message_is_handled_in_its_own_hop = None  # iterating is the only way to a message
    test_an_exception_in_a_callback_is_handled_as_unwrapped = None  # there are no callbacks
    test_a_plain_function_as_callback_sees_its_hop = None
    test_another_message_inside_a_handler_has_its_own_hop = None  # one iterator brings what comes on all topics

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


class TestPaho(NothingIsRefused, OneByOne, Conformance):
    @pytest.fixture
    async def adapter(self, mqtt_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(PahoAdapter(mqtt_url, V5)):
            yield adapter


class TestPaho311(NoHeaders, NothingIsRefused, OneByOne, Conformance):
    @pytest.fixture
    async def adapter(self, mqtt_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(PahoAdapter(mqtt_url, V3)):
            yield adapter


class TestAiomqtt(NothingIsRefused, NothingToSettle, Conformance):
    @pytest.fixture
    async def adapter(self, mqtt_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(AiomqttAdapter(mqtt_url, V5)):
            yield adapter


class TestAiomqtt311(NoHeaders, NothingIsRefused, NothingToSettle, Conformance):
    @pytest.fixture
    async def adapter(self, mqtt_url: str) -> AsyncGenerator[Adapter, None]:
        async for adapter in driven(AiomqttAdapter(mqtt_url, V3)):
            yield adapter
