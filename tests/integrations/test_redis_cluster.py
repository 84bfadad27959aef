"""Cluster clients, sync and asyncio, on a cluster of one node: Streams, lists, Pub/Sub and pipelines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
import redis
import redis.asyncio

import rtobs
from rtobs import _conventions as names
from rtobs._journey import envelope
from tests.integrations.adapter import here, place_of
from tests.integrations.redis_support import GROUP, attempts, got, settled
from tests.support.redis import OwnCluster, binary
from tests.support.timing import eventually

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Generator[OwnCluster, None, None]:
    if binary() is None:
        pytest.skip("Redis is not installed on this machine; run `make brokers` on Debian or Ubuntu")
    cluster = OwnCluster(tmp_path_factory.mktemp("redis"))
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(params=["sync", "asyncio"])
async def client(cluster, request) -> AsyncGenerator[Any, None]:
    cls = redis.RedisCluster if request.param == "sync" else redis.asyncio.RedisCluster
    client = cls.from_url(cluster.url)
    assert rtobs.wrap(client, envelope=True) is client
    if request.param == "asyncio":
        await client.initialize()  # its Pub/Sub and transactions do not do it themselves
    yield client
    await got(client.aclose() if hasattr(client, "aclose") else client.close())


async def test_an_entry_is_sent_claimed_and_settled(client, telemetry, unique):
    """A stream of a cluster carries the journey, its claims are attempts by the broker's count, its acks settle."""
    key = unique("orders")
    await got(client.xgroup_create(key, GROUP, mkstream=True))
    with rtobs.accept("/orders") as hop:
        await got(client.xadd(key, {"a": 1}))
    reply = await got(client.xreadgroup(GROUP, "gone", {key: ">"}))
    assert len(reply) == 1
    (row,) = (await got(client.xautoclaim(key, GROUP, "second", 0)))[1]
    with rtobs.consume("orders", row) as found:
        assert found.correlation_id == hop.correlation_id
        await got(client.xack(key, GROUP, row[0]))
    assert attempts(telemetry) == [2]
    assert settled(telemetry) == {"ok": 1}
    assert telemetry.count(names.SENT_MESSAGES) == 1


async def test_an_item_travels_in_an_envelope(client, telemetry, unique):
    """A list of a cluster carries the journey, and whoever moved an item removes it by its payload."""
    key = f"{{{unique('jobs')}}}"
    with rtobs.accept("/jobs") as hop:
        await got(client.rpush(key, b"body"))
    payload = await got(client.lmove(key, f"{key}.busy"))
    assert payload == b"body"
    with rtobs.consume("jobs", payload) as found:
        assert found.correlation_id == hop.correlation_id
    assert await got(client.lrem(f"{key}.busy", 1, payload)) == 1


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_pipeline_carries_the_journey(client, telemetry, unique, transaction):
    """Queued messages leave with their carriers; fetched ones come without envelopes."""
    key = f"{{{unique('orders')}}}"
    pipe = client.pipeline(transaction=transaction)
    with rtobs.accept("/orders") as hop:
        pipe.xadd(f"{key}.stream", {"a": 1})
        pipe.rpush(f"{key}.list", b"body")
    pipe.lpop(f"{key}.list")
    entry_id, length, payload = await got(pipe.execute())
    assert (length, payload) == (1, b"body")
    with rtobs.consume("jobs", payload) as found:
        assert found.correlation_id == hop.correlation_id
    ((found_id, fields),) = await got(client.xrange(f"{key}.stream"))
    assert found_id == entry_id
    assert envelope.unpack(fields[b"rtobs"])[names.BAGGAGE] == f"rtobs.cid={hop.correlation_id}"
    assert len(telemetry.spans("publish")) == telemetry.count(names.SENT_MESSAGES) == 2


def test_after_watch_a_message_of_a_transaction_leaves_at_once(telemetry, cluster, unique):
    """Between WATCH and MULTI of a cluster's transaction an XADD runs at once, with its carrier."""
    key = f"{{{unique('orders')}}}"
    with rtobs.wrap(redis.RedisCluster.from_url(cluster.url)) as client:
        pipe = client.pipeline(transaction=True)
        pipe.watch(f"{key}.watched")
        pipe.xadd(f"{key}.stream", {"now": 1})
        assert telemetry.count(names.SENT_MESSAGES) == 1
        pipe.multi()
        pipe.xadd(f"{key}.stream", {"later": 1})
        pipe.execute()
        assert [list(fields) for _, fields in client.xrange(f"{key}.stream")] == [
            [b"now", b"rtobs"],
            [b"later", b"rtobs"],
        ]
    assert telemetry.count(names.SENT_MESSAGES) == 2


async def heard(receive: Any) -> Any:
    """Return the next message, waiting for it."""
    return await eventually(lambda: got(receive(ignore_subscribe_messages=True, timeout=0.05)))


@pytest.mark.parametrize("way", ["handler", "one by one"])
@pytest.mark.parametrize("sharded", [False, True])
async def test_published_messages_carry_the_journey(client, telemetry, unique, sharded, way):
    """Pub/Sub of a cluster, sharded too, by handler and one by one, brings payloads and journeys."""
    channel = unique("channel")
    pubsub = client.pubsub()
    seen: list[Any] = []
    subscribe = pubsub.ssubscribe if sharded else pubsub.subscribe
    receive = pubsub.get_sharded_message if sharded else pubsub.get_message
    if way == "handler":
        await got(subscribe(**{channel: lambda message: seen.append((message["data"], here()))}))
    else:
        await got(subscribe(channel))
    node = redis.Redis(port=client.get_default_node().port)
    await eventually(lambda: (node.pubsub_shardnumsub if sharded else node.pubsub_numsub)(channel)[0][1] == 1)
    node.close()
    with rtobs.accept("/chat") as hop:
        await got((client.spublish if sharded else client.publish)(channel, b"body"))
    if way == "handler":

        async def handled() -> bool:
            await got(receive(ignore_subscribe_messages=True, timeout=0.05))
            return bool(seen)

        await eventually(handled)
        assert seen == [(b"body", place_of(telemetry.span("consume")))]
    else:
        message = await heard(receive)
        assert message["data"] == b"body"
        with rtobs.consume("chat", message):
            pass
        assert len(telemetry.spans("receive")) == 1
    assert place_of(telemetry.span("consume")).correlation_id == hop.correlation_id
    await got(pubsub.aclose() if hasattr(pubsub, "aclose") else pubsub.close())
