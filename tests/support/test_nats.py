"""A test's own NATS server: real, private, and gone afterwards."""

from __future__ import annotations

import nats
import pytest
from nats.errors import NoServersError

from tests.support import brokers


async def _ignore(_: Exception) -> None:
    """Say nothing of connections that break on purpose."""


async def test_a_stream_survives_stop_and_start(own_nats):
    """The private server keeps its port and its streams over a stop, and nobody answers in between."""
    client = await nats.connect(own_nats.url)
    stream = client.jetstream()
    await stream.add_stream(name="kept", subjects=["kept"])
    await stream.publish("kept", b"still here")
    await client.close()

    own_nats.stop()
    assert "refused" in brokers.silence(own_nats.url, own_nats.port, brokers.NATS.hello)
    with pytest.raises(NoServersError):
        await nats.connect(own_nats.url, max_reconnect_attempts=1, reconnect_time_wait=0.01, error_cb=_ignore)

    own_nats.start()
    client = await nats.connect(own_nats.url)
    subscription = await client.jetstream().subscribe("kept")
    assert (await subscription.next_msg(timeout=5)).data == b"still here"
    await client.close()


async def test_it_starts_with_a_configuration(own_nats):
    """What a test configures holds: here the largest payload, which the server tells its clients."""
    own_nats.stop()
    own_nats.start("max_payload: 2048")
    client = await nats.connect(own_nats.url)
    assert client.max_payload == 2048
    await client.close()
