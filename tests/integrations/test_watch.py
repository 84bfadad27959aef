"""`rtobs.integrations.watch` on live brokers: depth and age of queues, worker saturation, event-loop lag."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from datetime import UTC, datetime

import aio_pika
import httpx
import nats
import pytest
import redis
import redis.asyncio
from nats.js.api import ConsumerConfig

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf, watching
from rtobs._hop.runtime import runtime
from rtobs._hop.slots import slots
from rtobs._hop.watching import Depth
from rtobs._journey.message import Message
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations.memory import Broker
from tests.support import telemetry as support
from tests.support.telemetry import SECOND
from tests.support.timing import eventually, scaled, wait_until

INTERVAL = 0.05


def _age(telemetry, destination):
    """Return (age in seconds, "estimated" label) of one queue, or None while it has none."""
    found = telemetry.series(names.QUEUE_AGE, destination=destination)
    return (found[0][1], found[0][0]["estimated"]) if found else None


def _depth(telemetry, destination):
    found = telemetry.series(names.QUEUE_DEPTH, destination=destination)
    return found[0][1] if found else None


async def _grows(telemetry, destination):
    """Assert that the age of *destination* rises by as much as the clock does, for a while."""
    before, begun = _age(telemetry, destination)[0], time.monotonic()
    await asyncio.sleep(scaled(0.5))
    grown, passed = _age(telemetry, destination)[0] - before, time.monotonic() - begun
    assert grown == pytest.approx(passed, abs=0.05)


@contextlib.asynccontextmanager
async def _rabbit_queue(url, name):
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True)
        try:
            yield connection, channel, queue
        finally:
            await queue.delete(if_unused=False, if_empty=False)


# The age of what nobody consumes -------------------------------------------------------------------------------------


async def test_rabbitmq_age_grows_while_nobody_consumes(telemetry, amqp_url, unique):
    """A RabbitMQ queue without a consumer gets older by the clock, as an estimate, and is young again once emptied."""
    name = unique("queue")
    async with _rabbit_queue(amqp_url, name) as (connection, channel, queue):
        rtobs.wrap(connection)
        watch = rtobs.integrations.watch(connection, [name], interval=INTERVAL)
        await eventually(lambda: _age(telemetry, name) == (0.0, "false"))
        for _ in range(2):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), name)
        await eventually(lambda: _depth(telemetry, name) == 2)
        assert _age(telemetry, name)[1] == "true"
        await _grows(telemetry, name)
        for _ in range(2):
            await (await queue.get()).ack()
        await eventually(lambda: _age(telemetry, name) == (0.0, "false"))
        watch.stop()
        assert telemetry.spans("publish") == []  # the watch asked below the wrapped client
        assert telemetry.spans("receive") == []


@pytest.mark.parametrize("wrapped", [True, False])
async def test_redis_age_is_the_oldest_entry_of_the_slowest_group(telemetry, redis_url, unique, wrapped):
    """A stream is as old as what any of its groups has not acknowledged; the entry's id says how old that is."""
    key = unique("stream")
    client = redis.asyncio.Redis.from_url(redis_url)
    if wrapped:
        rtobs.wrap(client)
    watch = rtobs.integrations.watch(client, [key], interval=INTERVAL)
    try:
        for group in ("fast", "slow"):
            await client.xgroup_create(key, group, mkstream=True)
        begun = time.time()
        await client.xadd(key, {"n": 1})
        await asyncio.sleep(scaled(0.3))
        await client.xadd(key, {"n": 2})
        [[_, entries]] = await client.xreadgroup("fast", "one", {key: ">"})
        await client.xack(key, "fast", *(entry[0] for entry in entries))
        await eventually(lambda: _depth(telemetry, key) == 2)
        age, estimated = _age(telemetry, key)
        assert estimated == "false"
        assert age == pytest.approx(time.time() - begun, abs=0.1)
        await _grows(telemetry, key)
        [[_, [first]]] = await client.xreadgroup("slow", "one", {key: ">"}, count=1)  # handed out, it waits
        asked = runtime.wall_ns()
        await asyncio.sleep(4 * INTERVAL)
        assert _depth(telemetry, key) == 2
        assert _age(telemetry, key)[0] > asked / 1e9 - begun
        [[_, [second]]] = await client.xreadgroup("slow", "one", {key: ">"})
        await client.xack(key, "slow", first[0])
        await eventually(lambda: _depth(telemetry, key) == 1)
        assert scaled(0.2) < _age(telemetry, key)[0] < time.time() - begun - scaled(0.2)
        await client.xack(key, "slow", second[0])
        await eventually(lambda: _age(telemetry, key) == (0.0, "false"))
    finally:
        watch.stop()
        await client.delete(key)
        await client.aclose()


async def test_redis_depth_where_the_server_has_lost_count(telemetry, redis_url, unique):
    """A group that began in the middle, after deletions or trimming, is as deep as what it really has not read."""
    key = unique("stream")
    client = redis.asyncio.Redis.from_url(redis_url)
    depth = lambda: _depth(telemetry, key)  # noqa: E731  read again and again
    for number in range(150):
        await client.xadd(key, {"n": number})
    await client.xgroup_create(key, "late")  # at the end of the stream, as by default
    watch = rtobs.integrations.watch(client, [key], interval=INTERVAL)
    try:
        await eventually(lambda: depth() == 0)
        ids = [await client.xadd(key, {"n": number}) for number in range(3)]
        await eventually(lambda: depth() == 3)
        await client.xdel(key, ids[0])
        await eventually(lambda: depth() == 2)
        for number in range(120):
            await client.xadd(key, {"n": number})
        await eventually(lambda: depth() == 150 + 2 + 120)  # too many to count: the stream's length
        await client.xtrim(key, maxlen=1, approximate=False)
        await eventually(lambda: depth() == 1)
        await client.xreadgroup("late", "one", {key: ">"}, noack=True)
        await client.xadd(key, {"n": 1})
        await client.xtrim(key, maxlen=0, approximate=False)
        await eventually(lambda: _age(telemetry, key) == (0.0, "false"))
        assert depth() == 0
    finally:
        watch.stop()
        await client.delete(key)
        await client.aclose()


async def test_redis_stream_that_is_only_kept_has_no_age(telemetry, redis_url, unique):
    """A stream without groups has a depth and no age: nobody says what was read; ids that are no times are no ages."""
    kept, counted = unique("kept"), unique("counted")
    client = redis.asyncio.Redis.from_url(redis_url)
    watch = rtobs.integrations.watch(client, [kept, counted], interval=INTERVAL)
    try:
        await client.xadd(kept, {"n": 1})
        await client.xadd(counted, {"n": 1}, id="7-1")
        await client.xgroup_create(counted, "all", id="0")
        await eventually(lambda: _depth(telemetry, kept) == 1 and _depth(telemetry, counted) == 1)
        assert _age(telemetry, kept) is None
        assert _age(telemetry, counted)[1] == "true"
        assert _age(telemetry, counted)[0] < 60
    finally:
        watch.stop()
        await client.delete(kept, counted)
        await client.aclose()


def test_a_sync_client_is_asked_on_a_thread(telemetry, redis_url, unique):
    """A client without an event loop is watched too: a list's age is the time since it last was empty or shorter."""
    key = unique("list")
    client = redis.Redis.from_url(redis_url)
    watch = rtobs.integrations.watch(client, {key: "dead"}, interval=INTERVAL)
    try:
        wait_until(lambda: _age(telemetry, key) == (0.0, "false"))
        client.rpush(key, "a", "b")
        wait_until(lambda: _depth(telemetry, key) == 2)
        age, estimated = _age(telemetry, key)
        assert estimated == "true"
        wait_until(lambda: _age(telemetry, key)[0] > age + scaled(0.3))
        older = _age(telemetry, key)[0]
        client.lpop(key)
        wait_until(lambda: _depth(telemetry, key) == 1)
        assert _age(telemetry, key)[0] < older
        assert telemetry.by(names.QUEUE_DEPTH, "destination", "role") == {(key, "dead"): 1}
        rtobs.shutdown()
        assert telemetry.series(names.QUEUE_DEPTH) == []
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "rtobs-watch"])
    finally:
        watch.stop()
        client.delete(key)
        client.close()


async def test_nats_age_is_what_the_stream_says(telemetry, nats_url, unique):
    """A JetStream consumer is as old as the first message that it has not acknowledged, by the stream's own clock."""
    stream, subject = unique("S").replace("-", "_"), unique("orders").replace("-", "_")
    client = await nats.connect(nats_url)
    context = client.jetstream()
    await context.add_stream(name=stream, subjects=[f"{subject}.>"])
    watch = rtobs.integrations.watch(client, [f"{stream}/worker", stream], interval=INTERVAL)
    place = f"{subject}.new"
    try:
        pull = await context.pull_subscribe(place, durable="worker", stream=stream)
        await context.publish(f"{subject}.other", b"not for this consumer")
        await asyncio.sleep(scaled(0.3))
        begun = time.time()
        await context.publish(place, b"x")
        await asyncio.sleep(scaled(0.5))
        later = time.time()
        await context.publish(place, b"x")
        await eventually(lambda: _depth(telemetry, place) == 2)
        age, estimated = _age(telemetry, place)
        assert estimated == "false"
        assert age == pytest.approx(time.time() - begun, abs=0.1)
        await _grows(telemetry, place)
        first, second = await pull.fetch(2, timeout=2)
        await first.ack_sync()
        await eventually(lambda: _depth(telemetry, place) == 1)
        # the second waits, though it was delivered
        assert _age(telemetry, place)[0] == pytest.approx(time.time() - later, abs=0.2)
        await second.ack_sync()
        await eventually(lambda: _age(telemetry, place) == (0.0, "false"))
    finally:
        watch.stop()
        await context.delete_stream(stream)
        await client.close()


async def test_memory_age_is_the_oldest_message_that_is_not_settled(telemetry):
    """A queue in memory is as old as its first unsettled message, from when it came; what is delayed does not wait."""
    broker = rtobs.wrap(Broker())
    watch = rtobs.integrations.watch(broker, ["orders"], interval=INTERVAL)
    begun = time.time()
    await broker.publish("orders", b"x")
    await broker.publish("orders", b"x", delay=3600)
    await asyncio.sleep(scaled(0.3))
    later = time.time()
    await broker.publish("orders", b"x")
    await eventually(lambda: _depth(telemetry, "orders") == 2)
    age, estimated = _age(telemetry, "orders")
    assert estimated == "false"
    assert age == pytest.approx(time.time() - begun, abs=0.1)
    await _grows(telemetry, "orders")
    first, second = [await broker.get("orders") for _ in range(2)]
    await first.ack()
    await eventually(lambda: _depth(telemetry, "orders") == 1)
    # the second waits, though it was delivered
    assert _age(telemetry, "orders")[0] == pytest.approx(time.time() - later, abs=0.2)
    await second.nack()
    await eventually(lambda: _age(telemetry, "orders")[0] < time.time() - later - scaled(0.3))
    await (await broker.get("orders")).ack()
    await eventually(lambda: _age(telemetry, "orders") == (0.0, "false"))
    watch.stop()
    await broker.close()


@pytest.mark.parametrize("policy", ["all", "new", "last", "by_start_sequence", "by_start_time"])
async def test_nats_age_is_that_of_a_message_the_consumer_wants(telemetry, nats_url, unique, policy):
    """A consumer that begins behind old messages is as old as its own first one, estimated where nobody can tell."""
    stream = unique("S").replace("-", "_")
    client = await nats.connect(nats_url)
    context = client.jetstream()
    await context.add_stream(name=stream, subjects=[stream], storage="memory")
    watch = None
    try:
        config = ConsumerConfig(deliver_policy=policy, filter_subject=stream)
        old = time.time()
        await context.publish(stream, b"old")
        await asyncio.sleep(scaled(0.5))
        if policy in ("last", "by_start_sequence"):
            await context.publish(stream, b"the last")
            config.opt_start_seq = 2 if policy == "by_start_sequence" else None
        config.opt_start_time = datetime.now(UTC) if policy == "by_start_time" else None
        begun = old if policy == "all" else time.time()
        pull = await context.pull_subscribe(stream, "worker", stream=stream, config=config)
        watch = rtobs.integrations.watch(client, [f"{stream}/worker"], interval=INTERVAL)
        await eventually(lambda: _depth(telemetry, stream) is not None)
        if policy in ("new", "by_start_time"):
            assert _depth(telemetry, stream) == 0
        await context.publish(stream, b"new")
        await asyncio.sleep(scaled(0.3))
        assert _age(telemetry, stream) == (pytest.approx(time.time() - begun, abs=0.15), "false")
        (message,) = await pull.fetch(1, timeout=2)  # it is out, and none was ever acknowledged
        await asyncio.sleep(3 * INTERVAL)
        told = policy in ("all", "by_start_sequence")
        assert _age(telemetry, stream) == (pytest.approx(time.time() - begun, abs=0.3), "false" if told else "true")
        await message.ack_sync()
        await context.publish(stream, b"newer")
        await eventually(lambda: _age(telemetry, stream)[1] == "false")
    finally:
        if watch is not None:
            watch.stop()
        await context.delete_stream(stream)
        await client.close()


def test_an_age_grows_between_two_answers(clock):
    """Age is computed when it is read: from the oldest message if the broker knows it, else from the last low."""

    def ages():
        return [(r.value, r.labels["estimated"]) for r in queue.read() if r.instrument is names.QUEUE_AGE]

    queue = watching._Queue("orders", "main")
    queue.take([Depth("orders", 0)])
    assert ages() == [(0.0, "false")]
    clock.now += 10 * SECOND
    queue.take([Depth("orders", 3)])  # it was empty ten seconds ago
    assert ages() == [(10.0, "true")]
    clock.now += 5 * SECOND
    assert ages() == [(15.0, "true")]
    queue.take([Depth("orders", 9)])
    assert ages() == [(15.0, "true")]
    queue.take([Depth("orders", 8)])  # something was consumed
    assert ages() == [(0.0, "true")]
    queue.take([Depth("orders", 8, clock.now - 40 * SECOND), Depth("orders", 2, clock.now - 60 * SECOND)])
    clock.now += 2 * SECOND
    assert ages() == [(62.0, "false")]


# What goes wrong -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lenient():
    """What rtobs emits, where counted faults are what the test is about."""
    found = support.start(strict=False)
    yield found
    support.stop()


async def test_a_missing_queue_is_told_once_and_found_later(lenient, amqp_url, unique, caplog):
    """A queue that is not there is told once and asked for more and more seldom, until it is there."""
    name, there = unique("later"), unique("there")
    async with _rabbit_queue(amqp_url, there) as (connection, channel, _):
        watch = rtobs.integrations.watch(connection, [name, there], interval=INTERVAL)
        failures = lambda: lenient.by(names.INTERNAL_ERRORS, "site").get("watch.ask", 0)  # noqa: E731  read twice
        begun = time.monotonic()
        await eventually(lambda: failures() >= 4)
        # pauses of 2, 4 and 8 intervals, 20 % less at least
        assert time.monotonic() - begun > 14 * INTERVAL * 0.8
        assert _depth(lenient, there) == 0  # the others are asked as before
        told = [record.getMessage() for record in caplog.records if name in record.getMessage()]
        assert len(told) == 1
        assert "no answer about" in told[0]
        queue = await channel.declare_queue(name)
        await eventually(lambda: _depth(lenient, name) == 0, 10)
        watch.stop()
        await queue.delete()


async def test_a_broker_that_goes_away_and_comes_back(lenient, own_nats, unique):
    """While a broker is away the host notices nothing and the age goes on growing; then depths are read again."""
    client = await nats.connect(own_nats.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1, error_cb=_quiet)
    context = client.jetstream()
    await context.add_stream(name="S", subjects=["orders"])
    await context.pull_subscribe("orders", durable="worker")
    await context.publish("orders", b"x")
    watch = rtobs.integrations.watch(client, ["S/worker"], interval=INTERVAL)
    await eventually(lambda: _depth(lenient, "orders") == 1)
    await asyncio.to_thread(own_nats.stop)
    await eventually(lambda: lenient.count(names.INTERNAL_ERRORS, site="watch.ask") >= 1, 15)
    await _grows(lenient, "orders")
    await asyncio.to_thread(own_nats.start)
    await eventually(lambda: client.is_connected, 15)
    await context.publish("orders", b"x")
    await eventually(lambda: _depth(lenient, "orders") == 2, 30)
    watch.stop()
    await client.close()


async def _quiet(_error):
    """Say nothing of what this test causes on purpose."""


async def test_an_answer_that_does_not_come_is_given_up(lenient, monkeypatch):
    """A client that hangs is given up after the timeout, and asked again."""
    monkeypatch.setattr(watching, "TIMEOUT", 0.05)
    asked = []

    async def hang(destination):
        asked.append(destination)
        await asyncio.Event().wait()

    watch = watching.Watch(hang, {"orders": "main"}, INTERVAL, None, None)
    watch.start()
    await eventually(lambda: len(asked) >= 2)
    assert lenient.count(names.INTERNAL_ERRORS, site="watch.ask") >= 1
    watch.stop()


async def test_shutdown_stops_every_watch(telemetry, redis_url, unique):
    """After shutdown no task of a watch is left, its series are gone, and slots that it declared count no more."""
    key = unique("list")
    client = redis.asyncio.Redis.from_url(redis_url)
    before = asyncio.all_tasks()
    rtobs.integrations.watch(client, [key], interval=INTERVAL, slots=3)
    await eventually(lambda: _depth(telemetry, key) == 0)
    assert slots.of(key) == 3
    rtobs.shutdown()
    await eventually(lambda: asyncio.all_tasks() == before)
    assert telemetry.series(names.QUEUE_DEPTH) == []
    assert slots.of(key) == 0
    assert runtime.on_shutdown == []
    await client.aclose()


@pytest.mark.parametrize(
    ("destinations", "options", "why"),
    [
        ("orders", {}, r"write \['orders'\]"),
        ([], {}, "destinations is empty"),
        ([7], {}, "destinations must be names; got 7"),
        ({"orders": "parking"}, {}, "one of 'main', 'retry', 'dead'; got 'parking'"),
        (["orders"], {"interval": 0}, "interval must be seconds greater than 0; got 0"),
        (["orders"], {"slots": 0}, "slots must be a positive int; got 0"),
    ],
)
def test_wrong_arguments_are_named(destinations, options, why):
    """A wrong argument raises at once and says what was seen."""
    with pytest.raises(ConfigError, match=why):
        rtobs.integrations.watch(redis.Redis(), destinations, **options)


def test_clients_that_cannot_be_asked_are_named():
    """What no leaf can ask is refused, and so is an asyncio client outside its event loop."""
    with pytest.raises(UnsupportedError, match=r"nothing is known about queues of httpx\.Client"):
        rtobs.integrations.watch(httpx.Client(), ["orders"])
    with pytest.raises(ConfigError, match="call watch in a coroutine on that loop"):
        rtobs.integrations.watch(redis.asyncio.Redis(), ["orders"])
    assert runtime.on_shutdown == []


# Workers and the event loop ------------------------------------------------------------------------------------------


def _lag(telemetry):
    return telemetry.count(names.EVENTLOOP_LAG), telemetry.seconds(names.EVENTLOOP_LAG)


def _seconds(telemetry, instrument, worker):
    return sum(value for _, value, _ in telemetry.series(instrument, worker=worker))


async def test_a_blocking_handler_shows(telemetry, amqp_url, unique):
    """A handler that blocks for 1.3 s shows in event-loop lag, busy time by second, and as a full prefetch."""
    name, done = unique("queue"), asyncio.Event()
    async with _rabbit_queue(amqp_url, name) as (connection, _, _):
        rtobs.wrap(connection)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=2)
        queue = await channel.get_queue(name)
        watch = rtobs.integrations.watch(connection, [name], interval=INTERVAL)

        async def handle(message):
            async with message.process():
                if message.body == b"blocks":
                    time.sleep(1.3)  # noqa: ASYNC251  blocking is what is measured
                    done.set()

        await asyncio.sleep(scaled(0.3))
        assert _lag(telemetry)[1] < 0.5
        tag = await queue.consume(handle)
        await channel.default_exchange.publish(aio_pika.Message(b"blocks"), name)
        await done.wait()
        await eventually(lambda: _lag(telemetry)[1] > 1.0)
        await eventually(lambda: _seconds(telemetry, names.BUSY_TIME, name) == pytest.approx(1.3, abs=0.2))
        assert _seconds(telemetry, names.CAPACITY_TIME, name) > 2 * 1.2
        assert telemetry.by(names.BACKPRESSURE, "reason") == {}  # one of two slots was free
        await queue.cancel(tag)
        assert slots.of(name) == 0
        watch.stop()


async def test_a_full_prefetch_shows_while_it_lasts(telemetry, amqp_url, unique):
    """Handlers that hold all their credit for more than a second count once as held back, and as busy meanwhile."""
    name, release = unique("queue"), asyncio.Event()
    async with _rabbit_queue(amqp_url, name) as (connection, _, _):
        rtobs.wrap(connection)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=2)
        queue = await channel.get_queue(name)

        async def handle(message):
            async with message.process():
                await release.wait()

        await queue.consume(handle)
        for _ in range(3):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), name)
        begun = time.monotonic()
        await eventually(lambda: telemetry.by(names.BACKPRESSURE, "reason") == {"prefetch_full": 1})
        assert time.monotonic() - begun > 0.9
        busy = _seconds(telemetry, names.BUSY_TIME, name)
        assert busy == pytest.approx(2 * (time.monotonic() - begun), abs=0.3)
        assert busy == pytest.approx(_seconds(telemetry, names.CAPACITY_TIME, name), rel=0.2)
        release.set()
        await eventually(lambda: telemetry.count(names.MESSAGE_SETTLED) == 3)
        assert telemetry.by(names.BACKPRESSURE, "reason") == {"prefetch_full": 1}


@pytest.mark.parametrize("own_block", [True, False])
@pytest.mark.parametrize(("taken", "counted"), [(1.2, 1), (0.8, 0)])
def test_a_slow_confirm_shows(telemetry, clock, own_block, taken, counted):
    """A broker that takes more than a second to confirm one message counts once, whoever opened the publish hop."""
    message = Message("memory", "orders")
    with rtobs.publish("orders") if own_block else contextlib.nullcontext():
        clock.now += 5 * SECOND  # before the client's call, so it is not the broker's time
        with leaf.Send(message):
            clock.now += int(taken * SECOND)
    assert telemetry.count(names.BACKPRESSURE, reason="slow_confirm") == counted


async def test_lag_is_true_under_a_load_in_step(telemetry):
    """A load of 45 ms work and 5 ms rest shows its true lag, 20 ms on average, which a steady probe misses."""

    async def nothing(_destination):
        return [Depth("orders", 0)]

    watch = watching.Watch(nothing, {"orders": "main"}, 60.0, None, None)
    watch.start()
    begun, blocked = time.monotonic(), 0.0
    while (now := time.monotonic()) < begun + 5:
        time.sleep(0.045)  # noqa: ASYNC251  blocking is what is measured
        blocked += (time.monotonic() - now) ** 2 / 2
        await asyncio.sleep(0.005)
    truth = blocked / (time.monotonic() - begun)  # what is left of a block at a random moment, on average
    count, total = _lag(telemetry)
    watch.stop()
    assert count > 20
    assert 0.5 * truth < total / count < 2.2 * truth


def test_a_new_configuration_forgets_workers_that_are_gone(telemetry, clock):
    """Capacity begins at zero when series do: workers without slots use up no label, the others go on."""
    try:
        for number in range(40):
            slots.put(number, f"worker-{'abcdefghij'[number % 10]}{'abcd'[number // 10]}", 1)
        clock.now += SECOND
        for number in range(1, 40):
            slots.drop(number)
        rtobs.configure(strict=True, logs=telemetry.events.append)
        with rtobs.accept("/"):
            clock.now += 2 * SECOND
        found = telemetry.series(names.CAPACITY_TIME)
        assert [(labels["worker"], value) for labels, value, _ in found] == [("worker-aa", 2.0)]
    finally:
        slots.drop(0)


async def test_a_slow_nats_subscription_shows(telemetry, nats_url, unique):
    """Messages that the client throws away because nobody takes them count, and the user's own callback hears of it."""
    heard = []

    async def on_error(error):
        heard.append(error)

    client = await nats.connect(nats_url, error_cb=on_error)
    subject, blocked = unique("fast").replace("-", "_"), asyncio.Event()

    async def handle(_message):
        await blocked.wait()

    await client.subscribe(subject, cb=handle, pending_msgs_limit=1)
    watch = rtobs.integrations.watch(client, ["NO_SUCH_STREAM"], interval=60.0)
    await asyncio.sleep(0)
    for _ in range(10):
        await client.publish(subject, b"x")
    await client.flush()
    await eventually(lambda: telemetry.count(names.BACKPRESSURE, reason="slow_consumer") >= 1)
    assert len(heard) == telemetry.count(names.BACKPRESSURE, reason="slow_consumer")
    watch.stop()
    await eventually(lambda: client._error_cb is on_error)
    blocked.set()
    await client.close()


async def test_two_watches_of_one_client_tell_once(lenient, nats_url, unique):
    """What holds a client back counts once, however many watches it has, and still after one of them has ended."""
    heard = []

    async def on_error(error):
        heard.append(error)

    client = await nats.connect(nats_url, error_cb=on_error)
    subject, blocked = unique("fast").replace("-", "_"), asyncio.Event()

    async def handle(_message):
        await blocked.wait()

    await client.subscribe(subject, cb=handle, pending_msgs_limit=1)
    first = rtobs.integrations.watch(client, ["NO_SUCH_STREAM"], interval=60.0)
    second = rtobs.integrations.watch(client.jetstream(), ["NO_SUCH_STREAM"], interval=60.0)
    await asyncio.sleep(0.05)
    for watch in (first, second):
        before = len(heard)
        for _ in range(10):
            await client.publish(subject, b"x")
        await client.flush()
        await eventually(lambda: len(heard) > before)  # noqa: B023  asked at once
        await asyncio.sleep(0.05)
        assert lenient.count(names.BACKPRESSURE, reason="slow_consumer") == len(heard)
        watch.stop()
        await asyncio.sleep(1.2)  # the other one takes over within a second
    assert client._error_cb is on_error
    blocked.set()
    await client.close()


async def test_a_blocked_rabbitmq_connection_shows(lenient, own_rabbitmq, unique):
    """A broker that takes nothing more because its memory is full counts as one blocked connection."""
    own_rabbitmq.stop()
    (own_rabbitmq._folder / "rabbitmq.conf").write_text("vm_memory_high_watermark.absolute = 1MB\n", encoding="utf-8")
    await asyncio.to_thread(own_rabbitmq.start)
    connection = await aio_pika.connect(own_rabbitmq.url)
    channel = await connection.channel(publisher_confirms=False)
    queue = await channel.declare_queue(unique("queue"), auto_delete=True)
    watch = rtobs.integrations.watch(connection, [queue.name], interval=60.0)
    publishing = asyncio.create_task(channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name))
    await eventually(lambda: lenient.by(names.BACKPRESSURE, "reason") == {"connection_blocked": 1}, 10)
    watch.stop()
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing
    await connection.close()
