"""pika's leaf, by the conformance suite, on a live RabbitMQ: blocking connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Adapter
from tests.integrations.conformance import Conformance
from tests.integrations.pika_support import PikaAdapter


class TestPika(Conformance):
    """A blocking connection sends and calls back one after the other."""

    test_a_thousand_concurrent_messages_each_see_their_own_id = None
    test_concurrent_sends_in_one_publish_hop_are_one_each = None

    @pytest.fixture
    async def adapter(self, amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Adapter, None]:
        adapter = PikaAdapter(amqp_url, unique)
        yield adapter
        await adapter.close()

    async def test_a_settlement_that_fails_is_timed_with_its_error(self, adapter, queue, telemetry):
        """A settlement on a channel that is closed raises, is timed with its error, and decides nothing."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        adapter._channel(client, queue).close()
        with rtobs.consume("tickets", message), pytest.raises(Exception) as caught:  # noqa: PT011 - the client's own
            await adapter.settle(message, "reject")
        error = type(caught.value).__qualname__
        assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type")["nack", error] == 1
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}
