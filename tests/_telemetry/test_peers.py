"""Three defects that were measured in peers and do not exist here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtobs
from rtobs import _conventions as names
from rtobs import _redaction as redaction
from rtobs._journey import carrier
from rtobs._journey.journey import Journey, new_correlation_id
from rtobs.integrations.memory import Broker
from tests._telemetry.tenants import PINNED, TENANTS
from tests.support import telemetry as support
from tests.support.telemetry import Clock, Telemetry, clock, telemetry

__all__ = ["clock", "telemetry"]

SECOND_US = 1_000_000


def aged(seconds: float, waited: float, now_us: int) -> dict[str, str]:
    """Return the headers of a message whose journey is *seconds* old and that was sent *waited* seconds ago."""
    journey = Journey(new_correlation_id(now_us * 1000), now_us - int(seconds * SECOND_US))
    return carrier.write(journey, journey.correlation_id, f"{7:016x}", 1, now_us - int(waited * SECOND_US))


async def test_concurrent_journeys_of_100_s_and_1_s_read_100_s_and_1_s(telemetry: Telemetry, clock: Clock) -> None:
    """Handlers that take turns on one event loop each measure their own journey's age and wait."""
    now_us = clock.now // 1000
    turn = asyncio.Barrier(40)

    async def handle(queue: str, channel: str, seconds: float, waited: float) -> None:
        await turn.wait()
        with rtobs.consume(queue, headers=aged(seconds, waited, now_us), trust="trusted"):
            await turn.wait()
            with rtobs.stage("invoke"):
                await asyncio.sleep(0)
            with rtobs.deliver(channel, "crm"):
                await turn.wait()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(handle("old", "webhook", 100, 50))
            tasks.create_task(handle("young", "connector", 1, 0.5))
    for queue, channel, seconds, waited in (("old", "webhook", 100, 50), ("young", "connector", 1, 0.5)):
        assert telemetry.count(names.END_TO_END, channel=channel, step="delivered") == 20
        assert telemetry.seconds(names.END_TO_END, channel=channel) == 20 * seconds
        assert telemetry.count(names.MESSAGE_LAG, destination=queue, lag_source="producer") == 20
        assert telemetry.seconds(names.MESSAGE_LAG, destination=queue) == 20 * waited


@given(
    queue=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    user=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
@settings(max_examples=60)
def test_any_utf_8_header_and_destination_round_trips_exactly(queue: str, user: str) -> None:
    """A header of any characters reaches the consumer as it was, and so does the name of the queue."""
    telemetry = support.start()

    async def send_and_receive() -> tuple[Any, Any]:
        broker = rtobs.wrap(Broker())
        mine = {"user": user, "größe": user.encode(), user: 1}
        await broker.publish(queue, user.encode(), mine)
        message = await broker.get(queue)
        with rtobs.consume(queue, message):
            pass
        return mine, message

    try:
        mine, message = asyncio.run(send_and_receive())
        assert message.body == user.encode()
        assert {name: message.headers[name] for name in mine} == mine
        assert telemetry.span("consume").attributes["messaging.destination.name"] == redaction.text(queue)
        assert telemetry.span("consume").context.trace_id == telemetry.span("publish").context.trace_id
        if queue.isprintable() and len(queue) < 6:
            assert telemetry.by(names.MESSAGE_SETTLED, "destination") == {queue: 1}
    finally:
        support.stop()


@pytest.mark.slow
def test_20_000_tenants_stay_in_budget_and_a_second_process_names_the_same_ones(tmp_path: Path) -> None:
    """Totals stay exact, declared and early tenants keep their names, and the consumer agrees tenant by tenant."""
    script = str(Path(__file__).with_name("tenants.py"))
    made, taken = tmp_path / "produced.json", tmp_path / "consumed.json"
    with (
        subprocess.Popen([sys.executable, script, "produce", str(made)], stdout=subprocess.PIPE) as producer,
        subprocess.Popen([sys.executable, script, "consume", str(taken)], stdin=producer.stdout) as consumer,
    ):
        producer.stdout.close()
        assert consumer.wait() == producer.wait() == 0
    produced, consumed = json.loads(made.read_text()), json.loads(taken.read_text())
    intents, outcomes = produced[names.INTENTS.name], consumed[names.OUTCOMES.name]
    assert sum(intents.values()) == sum(outcomes.values()) == TENANTS
    assert intents == outcomes
    early = {f"tenant-{number:05d}" for number in range(150)}
    assert (early | set(PINNED)) <= intents.keys()
    assert len(intents) == 201
    assert intents["other"] == TENANTS - 200
    assert produced["series"] < 500
    assert consumed["series"] < 1000
