"""The demo over live brokers, with a process for each role: the same law, and what a killed worker leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aio_pika
import jsonschema
import nats
import pytest
import redis
from nats.js.errors import NotFoundError

from rtobs.demo import jetstream, puller, redis_streams
from rtobs.demo.amqp import AmqpBroker
from rtobs.demo.brokers import Delivery
from rtobs.demo.jetstream import JetStreamBroker
from rtobs.demo.providers import TRUTH
from rtobs.demo.redis_streams import RedisBroker
from tests.demo.support import children, command, demo, sabotage
from tests.support import brokers
from tests.support.timing import eventually, scaled, wait_until

SCHEMA = json.loads(resources.files("rtobs.demo").joinpath("summary.schema.json").read_text())

BROKERS = {"rabbitmq": brokers.AMQP, "redis": brokers.REDIS, "nats": brokers.NATS}

QUEUES = {"notifications", *(f"deliver.{channel}" for channel in ("push", "sms", "email", "in_app", "ticket"))}


# Whole runs, side by side --------------------------------------------------------------------------------------------


class Killed(NamedTuple):
    """A run of which one worker was killed."""

    run: dict[str, Any]
    victim: int
    at: float
    books: list[list[str]]
    """What the providers wrote down: correlation id, channel, verdict, process, time."""


def role_of(pid: int) -> str:
    """Return the role of one of the demo's processes."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")[-1].decode()


def run_and_kill(url: str, truth: Path) -> Killed:
    """Run the demo without a fault, and kill one of its workers while it works."""
    command = [sys.executable, "-m", "rtobs.cli", "demo", "--json", "--fault", "none", "--seconds", "8"]
    with subprocess.Popen(
        [*command, "--broker", url], stdout=subprocess.PIPE, text=True, env=os.environ | {TRUTH: str(truth)}
    ) as running:
        wait_until(lambda: truth.exists() and truth.stat().st_size > 10_000, 60)
        victim = next(pid for pid in children(running.pid) if role_of(pid) == "connectors")
        killed_at = time.time()
        os.kill(victim, signal.SIGKILL)
        out, _ = running.communicate(timeout=90)
    assert running.returncode == 0
    books = [line.split() for line in truth.read_text(encoding="ascii").splitlines()]
    return Killed(json.loads(out), victim, killed_at, books)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that returns one of the runs, which are all made from the start, three at a time."""
    folder = tmp_path_factory.mktemp("truth")
    with ThreadPoolExecutor(3) as pool:
        made: dict[tuple[str, str], Future[Any]] = {}
        for kind in ("whole", "killed"):
            for name, broker in BROKERS.items():
                if brokers.reason_to_skip(broker):
                    continue
                if kind == "whole":
                    made[kind, name] = pool.submit(demo, "--seconds", "6", "--broker", broker.url)
                elif sys.platform.startswith("linux"):
                    made[kind, name] = pool.submit(run_and_kill, broker.url, folder / name)

        def result(kind, name):
            if reason := brokers.reason_to_skip(BROKERS[name]):
                pytest.skip(reason)
            return made[kind, name].result()

        yield result


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(180)  # the first test waits for those that are made beside it, too
@pytest.mark.parametrize("name", BROKERS)
def test_separate_processes(runs, name):
    """With a process per role nothing is lost, the law holds and the failing connector is named."""
    run = runs("whole", name)
    jsonschema.validate(run, SCHEMA)
    assert {one["role"] for one in run["processes"]} == {"api", "router", "connectors", "clients"}
    assert len({one["pid"] for one in run["processes"]}) >= 4
    assert "@" not in run["broker"]
    assert run["journeys"] > 100
    assert run["lost_correlation_ids"] == 0
    assert run["compared"] == run["consumed"] > run["journeys"] + run["intents"]
    assert run["intents"] == sum(run["outcomes"].values())
    assert (run["open"], run["unaccounted"], run["inferred"]) == (0, 0, 0)
    assert (run["failing"]["channel"], run["failing"]["category"]) == ("ticket", "validation")
    assert run["channels"]["in_app"]["displayed"] > 0
    story = run["stories"]["failed"]
    assert {"api", "router", "connectors"} <= {row["service"] for row in story["rows"]}
    assert "ticket by ticket-desk ended dead_lettered after 5 tries" in story["headline"]
    tries = [row for row in story["rows"] if row["name"] == "deliver.ticket" and row["hop"] == "consume"]
    assert [row["attempt"] for row in tries] == [1, 2, 3, 4, 5]
    assert [row["outcome"] for row in tries] == ["retried"] * 4 + ["dead_lettered"]


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", BROKERS)
def test_queues_and_workers(runs, name):
    """Every queue has been asked about, every worker's slots are known, and only RabbitMQ's ages are estimates."""
    queues = runs("whole", name)["queues"]
    assert set(queues) == QUEUES
    assert all(0 < queue["busy"] < 1 for queue in queues.values())
    assert all(queue["oldest_age_seconds"] is not None for queue in queues.values())
    if name != "rabbitmq":
        assert not any(queue["estimated"] for queue in queues.values())
        assert sum(queue["deepest"] for queue in queues.values()) > 0
    if name == "nats":  # what waits for its next try is in the queue, there
        assert queues["deliver.ticket"]["oldest_age_seconds"] > 1


EXPORTED_WITHIN = 4.0
"""Seconds: a worker exports twice a second, and on a busy machine an export takes its time."""


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(180)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", BROKERS)
def test_a_killed_worker(runs, name):
    """What a killed worker had not exported is unaccounted for, no more and no less: the providers know the truth."""
    run, victim, killed_at, books = runs("killed", name)
    ended = {(correlation_id, channel) for correlation_id, channel, *_ in books}
    took = {(correlation_id, channel) for correlation_id, channel, verdict, *_ in books if verdict == "took"}
    unexported = [line for line in books if int(line[3]) == victim and float(line[4]) > killed_at - EXPORTED_WITHIN]

    assert [one["ended"] for one in run["processes"] if one["pid"] == victim] == [
        "was killed by SIGKILL and was replaced"
    ]
    assert run["lost_correlation_ids"] == 0
    assert run["intents"] == sum(run["outcomes"].values()) + run["open"] + run["unaccounted"]
    assert run["open"] == 0
    assert 0 <= run["unaccounted"] <= len(unexported)
    assert len(ended) == sum(run["outcomes"].values()) + run["unaccounted"] == run["intents"]
    assert run["outcomes"]["ok"] <= len(took) <= run["outcomes"]["ok"] + run["unaccounted"]
    assert run["failing"] is None


@pytest.mark.slow
def test_a_broken_run_leaves_nothing(redis_url, tmp_path):
    """If a process cannot even start, the others end in order and take what they declared with them."""
    apart = urlsplit(redis_url)._replace(path="/9").geturl()  # a database that nobody else looks into
    code = "import rtobs.demo.roles\nrtobs.demo.roles.connectors = lambda *arguments: 1 / 0\n"
    done = command("demo", "--json", "--broker", apart, **sabotage(tmp_path, code))
    assert (done.returncode, done.stdout) == (1, "")
    assert "The connectors process ended before it was ready (exit code 1). It said:" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    with redis.Redis.from_url(apart) as client:
        assert client.keys("rtobs-demo-*") == []


# One broker at a time ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(*platform):
    """Open brokers as the processes of one platform do, the first declares; leave nothing behind."""
    first, *others = platform
    await first.open(declare=True)
    for other in others:
        await other.open(declare=False)
    try:
        yield first
    finally:
        for one in platform:
            await one.stop_consuming()
        for one in (*others, first):
            await one.close()


class Seen:
    """A handler's notes: what came, and when."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[tuple[Delivery, float]] = asyncio.Queue()

    async def note(self, delivery: Delivery) -> None:
        await self.arrived.put((delivery, time.monotonic()))

    async def next(self) -> tuple[Delivery, float]:
        return await asyncio.wait_for(self.arrived.get(), 10)


async def two_orders(broker):
    """Send two orders, the first with a delay of 0.3 s; reject both as they come; return when the delayed one came."""
    seen, begin = Seen(), time.monotonic()
    await broker.consume("orders", seen.note, 4)
    await broker.send("orders", {"n": 1}, delay=0.3)
    await broker.send("orders", {"n": 2})
    first, _ = await seen.next()
    assert first.body == b'{"n": 2}'
    await first.reject()
    second, moment = await seen.next()
    assert second.body == b'{"n": 1}'
    await second.reject()
    return moment - begin


async def test_rabbitmq_delays_and_keeps_dead_letters(amqp_url, unique):
    """A delayed message arrives after its delay, a rejected one is kept as a dead letter; all queues go at the end."""
    prefix = unique("demo") + "."
    async with await aio_pika.connect(amqp_url) as connection:
        async with opened(AmqpBroker(amqp_url, prefix, ["orders"], ["devices"], (0.2, 0.5))) as broker:
            assert await two_orders(broker) >= 0.5
            dead = await (await connection.channel()).get_queue(f"{prefix}dead")
            bodies = set()
            for _ in range(2):
                message = await dead.get(timeout=5)
                assert message is not None
                await message.ack()
                bodies.add(message.body)
            assert bodies == {b'{"n": 1}', b'{"n": 2}'}
        for name in ("orders", "devices", "dead", "wait.0.2", "wait.0.5"):
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_queue(f"{prefix}{name}")


async def test_redis_delays_and_keeps_dead_letters(redis_url, unique):
    """A delayed message arrives after its delay, a rejected one is kept as a dead letter; all keys go at the end."""
    prefix = unique("demo") + "."
    with redis.Redis.from_url(redis_url) as client:
        async with opened(RedisBroker(redis_url, prefix, ["orders"], ["devices"])) as broker:
            assert await two_orders(broker) >= 0.3
            await broker.send_outside("devices", {"n": 3})
            await broker.send("orders", {"n": 4}, delay=3600)
            bodies = [fields[b"body"] for _, fields in client.xrange(f"{prefix}dead")]
            assert bodies == [b'{"n": 2}', b'{"n": 1}']
            assert client.xpending(f"{prefix}orders", "workers")["pending"] == 0
            keys = {key.decode().removeprefix(prefix) for key in client.keys(f"{prefix}*")}
            assert keys == {"orders", "devices", "dead", "waiting"}
            await eventually(lambda: client.ttl(f"{prefix}orders") > 0)  # for a run that cannot tidy up
        assert client.keys(f"{prefix}*") == []


async def test_redis_forgets_what_is_handled(redis_url, unique, monkeypatch):
    """Handled entries are removed in time, those that are not handled stay."""
    monkeypatch.setattr(redis_streams, "TIDY_SECONDS", 0.05)
    prefix, seen = unique("demo") + ".", Seen()
    with redis.Redis.from_url(redis_url) as client:
        async with opened(RedisBroker(redis_url, prefix, ["orders"], [])) as broker:
            await broker.consume("orders", seen.note, 4)
            for number in range(3):
                await broker.send("orders", {"n": number})
            taken = [(await seen.next())[0] for _ in range(3)]
            await taken[0].ack()
            await eventually(lambda: client.xlen(f"{prefix}orders") == 2)
            await taken[2].ack()
            await taken[1].ack()
            await eventually(lambda: client.xlen(f"{prefix}orders") == 1)  # the last one marks the place


async def test_redis_acknowledges_many_at_once(redis_url, unique):
    """More acknowledgements at once than a pool has connections wait for one; none is refused and comes back later."""
    prefix, many, ready = unique("demo") + ".", 150, asyncio.Event()
    taken: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        taken.append(delivery)
        await ready.wait()
        await delivery.ack()

    with redis.Redis.from_url(redis_url) as client:
        async with opened(RedisBroker(redis_url, prefix, ["orders"], [])) as broker:
            await broker.consume("orders", handle, many)
            for number in range(many):
                await broker.send("orders", {"n": number})
            await eventually(lambda: len(taken) == many, 20)
            ready.set()
            await eventually(lambda: client.xpending(f"{prefix}orders", "workers")["pending"] == 0)


async def test_nats_naks_with_delay_and_keeps_dead_letters(nats_url, unique):
    """A message that is put back comes again, counted, a rejected one is a dead letter; the stream goes at the end."""
    prefix, seen = unique("demo") + ".", Seen()
    client = await nats.connect(nats_url)
    context = client.jetstream()
    async with opened(JetStreamBroker(nats_url, prefix, ["orders"])) as broker:
        await broker.consume("orders", seen.note, 4)
        await broker.send("orders", {"n": 1})
        first, begin = await seen.next()
        assert first.later is not None
        await first.later(0.3)
        again, moment = await seen.next()
        assert (again.body, first.count, again.count) == (first.body, 1, 2)
        assert moment - begin >= 0.3
        await again.reject()
        assert (await context.get_last_msg(prefix.strip("."), f"{prefix}dead")).data == b'{"n": 1}'
    with pytest.raises(NotFoundError):
        await context.stream_info(prefix.strip("."))
    await client.close()


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.parametrize("name", ["redis", "nats"])
async def test_a_long_handler_is_not_taken_for_dead(request, unique, monkeypatch, name):
    """A message stays with its worker for as long as that handles it, and goes to another one if it falls silent."""
    url = request.getfixturevalue(f"{name}_url")
    monkeypatch.setattr({"redis": redis_streams, "nats": jetstream}[name], "AGAIN_AFTER", scaled(1.0))
    monkeypatch.setattr(redis_streams, "CLAIM_SECONDS", 0.05)
    monkeypatch.setattr(puller, "KEEP_SECONDS", scaled(0.1))
    prefix, begun = unique("demo") + ".", asyncio.Queue()

    async def handle(delivery: Delivery) -> None:
        await begun.put(delivery)
        await asyncio.sleep(scaled(2.5))
        await delivery.ack()

    def worker():
        return RedisBroker(url, prefix, ["orders"], []) if name == "redis" else JetStreamBroker(url, prefix, ["orders"])

    other = worker()
    async with opened(worker(), other) as first:
        await first.consume("orders", handle, 4)
        await first.send("orders", {"n": 1})
        await asyncio.wait_for(begun.get(), 10)
        await other.consume("orders", handle, 4)
        await asyncio.sleep(scaled(3.0))
        assert begun.empty()

        await first.send("orders", {"n": 2})
        await asyncio.wait_for(begun.get(), 10)
        for one in (*first._pullers, *other._pullers):
            await puller.end([one._keeping])  # nobody keeps anything alive any more
        assert (await asyncio.wait_for(begun.get(), 10)).body == b'{"n": 2}'
