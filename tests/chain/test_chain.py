"""One message through four processes and three brokers: HTTP -> RabbitMQ -> Redis Streams -> NATS, on live brokers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
from collections import defaultdict
from typing import NamedTuple

import aio_pika
import httpx
import nats
import pytest
import redis

from rtobs import _conventions as names
from tests._export.collector import collector
from tests.chain import links
from tests.chain.processes import Span, exporting, running, series, spans, total
from tests.support.timing import scaled

pytestmark = pytest.mark.timeout(180)  # four processes on what may be one busy core

MESSAGES = 400
AT_ONCE = 8
"""Requests of the client's that are open at a time."""

LINKS = ("api", "router", "relay", "connector")
WAY = (
    ("accept", "api", ""),
    ("publish", "api", "rabbitmq"),
    ("consume", "router", "rabbitmq"),
    ("publish", "router", "redis"),
    ("consume", "relay", "redis"),
    ("publish", "relay", "nats"),
    ("consume", "connector", "nats"),
    ("deliver", "connector", ""),
)
"""Kind, process and broker of each hop of a message, each the parent of the next."""

HOPS = {
    "RabbitMQ": ("api", "router", None),
    "Redis Streams": ("router", "relay", None),
    "NATS JetStream": ("relay", "connector", 0),
    "core NATS": ("relay", "connector", 1),
}
"""Between two handlers: who sent, who handled, and which messages: all, even or odd ones."""


class Run(NamedTuple):
    """What is known after all messages are through."""

    journeys: dict[int, str]
    """The correlation id that the API answered, by message."""
    books: dict[str, dict]
    """What each process wrote down itself."""
    ways: dict[str, list[Span]]
    """The exported spans of each journey, save those of fetches, which bring several."""
    collected: object


@pytest.fixture(scope="module")
def run(amqp_url, redis_url, nats_url, unique, tmp_path_factory):
    """Send the messages through the chain once."""
    name = unique("chain").replace("-", "_")
    with collector("http", tmp_path_factory.mktemp("chain") / "otlp") as collected, _places(name):
        with contextlib.ExitStack() as stack:
            chain = {
                link: stack.enter_context(
                    running(links.__name__, link, str(MESSAGES), name, **exporting(collected, every=2.0))
                )
                for link in LINKS
            }
            ready = {link: process.says("ready") for link, process in chain.items()}
            journeys = asyncio.run(_send(f"{ready['api']}/orders"))
            assert chain["connector"].says("done", *chain.values()) == MESSAGES
            books = {link: process.close("begun") for link, process in chain.items()}
        ways = defaultdict(list)
        for span in spans(collected):
            if span.attributes.get("rtobs.hop") != "receive":
                ways[span.attributes["rtobs.correlation_id"]].append(span)
        yield Run(journeys, books, ways, collected)


@contextlib.contextmanager
def _places(name):
    """Make the queue and the streams, and delete them in the end."""

    async def make():
        async with await aio_pika.connect(links.brokers.AMQP.url) as connection:
            await (await connection.channel()).declare_queue(name)
        client = await nats.connect(links.brokers.NATS.url)
        await client.jetstream().add_stream(name=name, subjects=[name], storage="memory")
        await client.close()

    async def delete():
        async with await aio_pika.connect(links.brokers.AMQP.url) as connection:
            await (await connection.channel()).queue_delete(name)
        client = await nats.connect(links.brokers.NATS.url)
        await client.jetstream().delete_stream(name)
        await client.close()

    with redis.Redis.from_url(links.brokers.REDIS.url) as client:
        client.xgroup_create(name, "relays", mkstream=True)
        try:
            asyncio.run(make())
            yield
        finally:
            asyncio.run(delete())
            client.delete(name)


async def _send(url):
    """Send every message by HTTP, a few at a time; return their correlation ids."""
    journeys, numbers = {}, iter(range(MESSAGES))

    async def client_of_the_api():
        for number in numbers:
            answer = await client.post(url, content=str(number).encode())
            journeys[number] = answer.raise_for_status().text

    async with httpx.AsyncClient() as client, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client_of_the_api())
    return journeys


def test_every_process_had_every_message_once(run):
    """Each of 400 messages is handled once by each process, and everything that was measured is exported."""
    numbers = {str(number) for number in range(MESSAGES)}
    for link in LINKS[1:]:
        assert set(run.books[link]["begun"]) == numbers
    assert all(book["flushed"] for book in run.books.values())
    assert total(run.collected, names.INTENTS.name, channel="webhook") == MESSAGES
    assert total(run.collected, names.OUTCOMES.name) == MESSAGES
    assert total(run.collected, names.MESSAGE_SETTLED.name, outcome="ok") == 3 * MESSAGES
    assert total(run.collected, names.INTERNAL_ERRORS.name) == total(run.collected, names.PROPAGATION_MISSING.name) == 0


def test_a_message_is_one_trace_from_request_to_delivery(run):
    """All hops of a message are in the one trace that its correlation id names, each the child of the one before."""
    assert len(set(run.journeys.values())) == MESSAGES
    assert set(run.ways) == set(run.journeys.values())
    for journey, way in run.ways.items():
        assert {span.trace_id for span in way} == {journey}
        by_parent = {span.parent_id: span for span in way}
        assert len(by_parent) == len(way) == len(WAY)
        above, seen = b"", []
        for _ in WAY:
            span = by_parent[above]
            seen.append((span.attributes["rtobs.hop"], span.service, span.attributes.get("messaging.system", "")))
            above = span.span_id
        assert tuple(seen) == WAY


class Lag(NamedTuple):
    """The lag of one message, in seconds."""

    told: float
    """As it was exported."""
    least: float
    """From just after the send to just before the hop."""
    most: float
    """From just before the send to the handler's first line."""

    @property
    def off(self) -> float:
        """By how much it is wrong, whatever the machine did between two readings of a clock."""
        return max(self.least - self.told, self.told - self.most, 0.0)


def _lags(run, sender, receiver, odd):
    """Return the lag of each message between two processes."""
    begun, sent = run.books[receiver]["begun"], run.books[sender]["sent"]
    found = []
    for number, journey in run.journeys.items():
        if odd is None or number % 2 == odd:
            (span,) = (s for s in run.ways[journey] if s.attributes["rtobs.hop"] == "consume" and s.service == receiver)
            assert span.attributes["rtobs.lag_source"] == "producer"
            ((before_send, after_send), (before_hop, in_handler)) = sent[str(number)], begun[str(number)]
            least, most = (before_hop - after_send) / 1e9, (in_handler - before_send) / 1e9
            found.append(Lag(span.attributes["rtobs.lag"], least, most))
    return found


def _p95(values):
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _ms(seconds):
    return f"{1e3 * seconds:.3f} ms"


@pytest.mark.parametrize("hop", HOPS)
def test_lag_is_true(run, hop, capsys):
    """The lag of each hop is what its two processes measured themselves: within 2 ms for 95 %, within 50 ms for all."""
    lags = _lags(run, *HOPS[hop])
    waited, off = [lag.most for lag in lags], [lag.off for lag in lags]
    apart = statistics.median(lag.most - lag.least for lag in lags)
    plain = [abs(lag.told - lag.most) for lag in lags]
    with capsys.disabled():
        print(
            f"\n{hop:14} {len(lags)} messages, p50 wait {_ms(statistics.median(waited))}; lag is off by "
            f"{_ms(_p95(off))} p95, {_ms(max(off))} max from what the clocks enclose ({_ms(apart)} p50), "
            f"by {_ms(_p95(plain))} p95, {_ms(max(plain))} max from call to handler",
            end="",
        )
    assert len(lags) >= 200
    assert _p95(waited) > scaled(0.02)  # so that a wrong lag would show
    assert apart <= 0.001
    assert _p95(off) <= 0.002
    assert max(off) <= 0.050


def test_the_lag_metric_is_the_spans_lags(run):
    """`rtobs.message.lag` holds each hop's lag once: number and sum are those of the spans."""
    of_spans = [
        span.attributes["rtobs.lag"] for way in run.ways.values() for span in way if "rtobs.lag" in span.attributes
    ]
    found = series(run.collected, names.MESSAGE_LAG.name)
    assert sum(one.count for one in found) == len(of_spans) == 3 * MESSAGES
    assert sum(one.value for one in found) == pytest.approx(sum(of_spans))
