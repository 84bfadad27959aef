"""A worker that stands still, and one that blocks, on each broker: what `rtobs.integrations.watch` shows of them."""

from __future__ import annotations

import asyncio
import time

import pytest

import rtobs
from rtobs import _conventions as names
from tests.chain.places import PLACES
from tests.support.telemetry import telemetry
from tests.support.timing import eventually, scaled

__all__ = ["telemetry"]

INTERVAL = 0.05


@pytest.fixture
def brokers(amqp_url, redis_url, nats_url):
    """All three have to answer."""


@pytest.fixture(params=PLACES)
async def place(request, brokers, telemetry, unique):
    place = PLACES[request.param](unique("saturation").replace("-", "_"))
    await place.open()
    watch = rtobs.integrations.watch(place.client, [place.watched], interval=INTERVAL, slots=place.credit)
    yield place
    watch.stop()
    await place.stop()
    await place.close()


def _queue(telemetry, instrument, place):
    ((_, value, _),) = telemetry.series(instrument, destination=place.name)
    return value


async def test_a_stopped_worker_makes_its_queue_older_by_the_clock(place, telemetry):
    """While a worker works its queue stays young; once it stops the age is that of the first message it left."""
    handled = []

    async def handle():
        handled.append(time.monotonic())

    await eventually(lambda: telemetry.series(names.QUEUE_AGE, destination=place.name))
    await place.work(handle)
    for _ in range(10):
        await place.send()
        await asyncio.sleep(scaled(0.03))
        assert _queue(telemetry, names.QUEUE_AGE, place) < 0.3
    await eventually(lambda: len(handled) == 10)
    await place.stop()
    await eventually(lambda: _queue(telemetry, names.QUEUE_DEPTH, place) == 0)
    await asyncio.sleep(scaled(0.3))  # an idle queue is not an old one
    stopped = time.monotonic()
    for number in range(3):
        await place.send()
        await eventually(lambda: _queue(telemetry, names.QUEUE_DEPTH, place) == number + 1)  # noqa: B023  asked at once
    for _ in range(5):
        await asyncio.sleep(scaled(0.2))
        assert _queue(telemetry, names.QUEUE_AGE, place) == pytest.approx(time.monotonic() - stopped, abs=0.2)
    assert len(handled) == 10
    await place.work(handle)
    await eventually(lambda: _queue(telemetry, names.QUEUE_AGE, place) == 0)
    assert len(handled) == 13


@pytest.mark.parametrize("blocks", [True, False])
async def test_a_worker_that_blocks_and_one_that_waits(place, telemetry, blocks):
    """Either is busy for 1.3 s in its only slot and holds its broker back once; only one of them shows in loop lag."""
    took, done = 1.3, asyncio.Event()

    async def handle():
        if blocks:
            time.sleep(took)  # noqa: ASYNC251  blocking is what is measured
        else:
            await asyncio.sleep(took)
        done.set()

    def busy():
        return sum(value for _, value, _ in telemetry.series(names.BUSY_TIME, worker=place.name))

    def capacity():
        return sum(value for _, value, _ in telemetry.series(names.CAPACITY_TIME, worker=place.name))

    await eventually(lambda: telemetry.series(names.QUEUE_DEPTH, destination=place.name))
    await place.send()
    await place.work(handle)
    idle, begun = capacity(), time.monotonic()
    await done.wait()
    await eventually(lambda: telemetry.count(names.MESSAGE_SETTLED) == 1)
    passed = time.monotonic() - begun
    assert busy() == pytest.approx(took, abs=0.2)
    assert capacity() - idle == pytest.approx(passed, abs=0.2)
    assert telemetry.by(names.BACKPRESSURE, "reason") == {"prefetch_full": 1}
    await asyncio.sleep(0.2)
    late = telemetry.seconds(names.EVENTLOOP_LAG)
    assert took - 0.2 < late if blocks else late < 0.5 * took


async def test_a_watch_outlives_a_new_configuration(place, telemetry):
    """Who configures rtobs after the watch began, and opens no hop, is told of queues and event loop all the same."""
    await eventually(lambda: telemetry.series(names.QUEUE_DEPTH, destination=place.name))
    rtobs.configure(strict=True, logs=telemetry.events.append)
    assert telemetry.series(names.QUEUE_DEPTH) == []
    await eventually(lambda: telemetry.series(names.QUEUE_DEPTH, destination=place.name))
    await eventually(lambda: telemetry.count(names.EVENTLOOP_LAG))
