"""The demo over a live RabbitMQ, with a process for each role: the same law, and what a killed worker leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import aio_pika
import jsonschema
import pytest

from rtobs.demo.amqp import AmqpBroker
from rtobs.demo.providers import TRUTH
from tests.demo.support import children, demo

SCHEMA = json.loads(resources.files("rtobs.demo").joinpath("summary.schema.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_separate_processes(amqp_url):
    """Over RabbitMQ, a process per role, nothing is lost, the law holds and the failing connector is named."""
    run = demo("--seconds", "6", "--broker", amqp_url)
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


def role_of(pid: int) -> str:
    """Return the role of one of the demo's processes."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")[-1].decode()


EXPORTED_WITHIN = 4.0
"""Seconds: a worker exports twice a second, and on a busy machine an export takes its time."""


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_worker(amqp_url, tmp_path):
    """What a killed worker had not exported is unaccounted for, no more and no less: the providers know the truth."""
    truth = tmp_path / "truth"
    command = [sys.executable, "-m", "rtobs.cli", "demo", "--json", "--fault", "none", "--seconds", "8"]
    with subprocess.Popen(
        [*command, "--broker", amqp_url], stdout=subprocess.PIPE, text=True, env=os.environ | {TRUTH: str(truth)}
    ) as running:
        deadline = time.monotonic() + 30
        while not truth.exists() or truth.stat().st_size < 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        victim = next(pid for pid in children(running.pid) if role_of(pid) == "connectors")
        killed_at = time.time()
        os.kill(victim, signal.SIGKILL)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    run = json.loads(out)
    lines = [line.split() for line in truth.read_text(encoding="ascii").splitlines()]
    ended = {(correlation_id, channel) for correlation_id, channel, *_ in lines}
    took = {(correlation_id, channel) for correlation_id, channel, verdict, *_ in lines if verdict == "took"}
    unexported = [line for line in lines if int(line[3]) == victim and float(line[4]) > killed_at - EXPORTED_WITHIN]

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


async def test_a_delayed_message_comes_back_and_a_rejected_one_is_kept(amqp_url, unique):
    """A delayed message arrives after its delay, a rejected one is kept as a dead letter; all queues go at the end."""
    run = unique("demo")
    broker = AmqpBroker(amqp_url, run, ["orders"], ["devices"], (0.2, 0.5))
    await broker.open(declare=True)
    arrived: asyncio.Queue[tuple[bytes, float]] = asyncio.Queue()

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await arrived.put((message.body, time.monotonic()))
        await message.reject()

    begin = time.monotonic()
    await broker.consume("orders", handle, 4)
    await broker.send("orders", {"n": 1}, delay=0.3)
    await broker.send("orders", {"n": 2})
    assert (await asyncio.wait_for(arrived.get(), 5))[0] == b'{"n": 2}'
    body, moment = await asyncio.wait_for(arrived.get(), 5)
    assert body == b'{"n": 1}'
    assert 0.5 <= moment - begin < 1.5

    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        dead = await channel.get_queue(f"rtobs-demo-{run}.dead")
        bodies = set()
        for _ in range(2):
            message = await dead.get(timeout=5)
            assert message is not None
            await message.ack()
            bodies.add(message.body)
        assert bodies == {b'{"n": 1}', b'{"n": 2}'}
        await broker.stop_consuming()
        await broker.close()
        for name in ("orders", "devices", "dead", "wait.0.2", "wait.0.5"):
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_queue(f"rtobs-demo-{run}.{name}")
