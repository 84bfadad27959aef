"""Tenants: nothing of one shows up in another's telemetry, however their tasks interleave (R22)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry import baggage, trace

import rtobs
from rtobs import _config, logs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._journey import carrier
from rtobs.integrations.memory import Broker, Message
from tests.support import telemetry as support
from tests.support.timing import eventually
from tests.unbreakable.telling import EachOnce

TASKS, TENANTS = 1000, 50
_MARK = re.compile(r"mark-(\d+)-")
"""Every value that a task of a tenant uses has its tenant's mark, so that a stray one is known wherever it is."""


class HostError(Exception):
    pass


class _Plan:
    """What each task does, drawn beforehand from a seed, and what is to be counted for its tenant."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.tasks = [
            (number, number % TENANTS, chance.choice(("ok", "ok", "fails", "cancelled")), chance.randrange(4))
            for number in range(TASKS)
        ]
        chance.shuffle(self.tasks)


def _tenant(number: int) -> str:
    return f"tenant{number:02d}"


class _Seen:
    """What the tasks saw of headers, logs and contexts, with the tenant that they ran for."""

    def __init__(self) -> None:
        self.strays: list[str] = []
        self.correlations: dict[str, int] = {}
        """Correlation id -> tenant."""
        self.ends: Counter[tuple[str, str]] = Counter()
        self.exemplars: dict[int, int] = {}
        """Trace -> tenant."""

    def look(self, tenant: int, where: str, value: object) -> None:
        """Note every mark in *value* that is another tenant's."""
        found = {int(mark) for mark in _MARK.findall(str(value))}
        named = {int(number) for number in re.findall(r"tenant(\d\d)\b", str(value))}
        if (found | named) - {tenant}:
            self.strays.append(f"{where} of tenant {tenant}: {value}")


async def _pause(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def _task(plan: tuple[int, int, str, int], broker: Broker, seen: _Seen) -> None:
    """Take one order of a tenant in, publish it, and look at all that travels with it."""
    number, tenant, _, pauses = plan
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant=_tenant(tenant), region=f"mark-{tenant}-region", source=f"mark-{tenant}-source")
        seen.correlations[hop.correlation_id] = tenant
        seen.exemplars[trace.get_current_span().get_span_context().trace_id] = tenant
        await _pause(pauses)
        hop.note(secret=f"mark-{tenant}-note")
        hop.intend("push")
        with rtobs.stage("normalize"):
            await _pause(pauses)
            hop.event("ordered", secret=f"mark-{tenant}-event")
        with rtobs.publish("orders", channel="push") as out:
            seen.look(tenant, "headers", out.headers)
            await _pause(pauses)
            await broker.publish(f"orders-{number % 7}", f"{number} {tenant}".encode())
        seen.look(tenant, "baggage", dict(baggage.get_all()))
        seen.look(tenant, "log", logs.add_journey(None, "info", {"event": f"mark-{tenant}-log"}))
        if rtobs.current().correlation_id != hop.correlation_id:
            seen.strays.append(f"current hop of task {number}")
    if engine.current() is not None:
        seen.strays.append(f"context left in task {number}")


async def _handle(message: Message, plans: Mapping[int, tuple[int, int, str, int]], seen: _Seen) -> None:
    number, tenant = map(int, message.body.split())
    end, pauses = plans[number][2:]
    hop = rtobs.current()
    if seen.correlations[hop.correlation_id] != tenant:
        seen.strays.append(f"message {number} in another's journey")
    seen.look(tenant, "message", message.headers)
    if carried := carrier.extract(message.headers, None).journey:
        seen.look(tenant, "journey", (carried.tenant, carried.region, carried.source))
        if carried.tenant != _tenant(tenant):
            seen.strays.append(f"message {number} carries {carried.tenant}")
    else:
        seen.strays.append(f"message {number} carries no journey")
    hop.note(secret=f"mark-{tenant}-handler")

    @rtobs.deliver("push", f"provider-{tenant % 5}")
    async def deliver() -> None:
        rtobs.current().note(secret=f"mark-{tenant}-delivery")
        await _pause(pauses + 1)
        if end == "fails":
            raise HostError(f"mark-{tenant}-error")
        if end == "cancelled":
            asyncio.current_task().cancel()  # as a deadline of the host's does
            await asyncio.sleep(0)

    with contextlib.suppress(HostError, asyncio.CancelledError):
        await deliver()
    seen.ends[_tenant(tenant), end] += 1


def _check_spans(telemetry: support.Telemetry, seen: _Seen) -> None:
    for span in telemetry.spans():
        attributes: Mapping[str, Any] = span.attributes or {}
        tenant = seen.correlations[attributes["rtobs.correlation_id"]] if "rtobs.correlation_id" in attributes else None
        if tenant is None:  # a stage is told by its trace
            tenant = seen.exemplars[span.context.trace_id]
        if seen.exemplars.get(span.context.trace_id, tenant) != tenant:
            seen.strays.append(f"span {span.name} in a trace of tenant {seen.exemplars[span.context.trace_id]}")
        seen.look(tenant, f"span {span.name}", (span.name, dict(attributes), span.status.description))
        for event in span.events:
            seen.look(tenant, f"span event {event.name}", dict(event.attributes or {}))


def _check_metrics(telemetry: support.Telemetry, seen: _Seen, plan: _Plan) -> None:
    each = Counter(_tenant(tenant) for _, tenant, _, _ in plan.tasks)
    ends = Counter((_tenant(tenant), end) for _, tenant, end, _ in plan.tasks)
    assert seen.ends == ends
    assert telemetry.by(names.INTENTS, "tenant") == each
    assert telemetry.by(names.MESSAGE_SETTLED, "tenant") == each
    outcomes = {pair: count for pair, count in telemetry.by(names.OUTCOMES, "tenant", "outcome").items() if count}
    expected = {(tenant, "ok"): count for (tenant, end), count in ends.items() if end == "ok"}
    expected |= {(tenant, "failed"): count for (tenant, end), count in ends.items() if end == "fails"}
    assert outcomes == expected
    for snapshot in _config._bound.registry.collect():
        for point in snapshot.points:
            labels = dict(zip(snapshot.instrument.labels, point.labels, strict=True))
            of = labels.get(names.Label.TENANT, "")
            if of.startswith("tenant"):
                seen.look(int(of[6:]), snapshot.instrument.name, point.labels)
            for exemplar in point.exemplars:
                if exemplar.trace_id not in seen.exemplars:
                    seen.strays.append(f"exemplar of {snapshot.instrument.name} points nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_tasks_of_fifty_tenants_keep_apart(seed):
    """1,000 tasks of 50 tenants, with exceptions and cancellations: no value of one is in another's telemetry."""
    telemetry = support.start(tenants=[_tenant(number) for number in range(TENANTS)])
    plan, seen = _Plan(seed), _Seen()
    plans = {task[0]: task for task in plan.tasks}
    broker = rtobs.wrap(Broker())
    with EachOnce() as once:
        for queue in range(7):
            broker.consume(f"orders-{queue}", lambda message: _handle(message, plans, seen), prefetch=50)
        async with asyncio.TaskGroup() as tasks:
            for task in plan.tasks:
                tasks.create_task(_task(task, broker, seen))
        await eventually(lambda: sum(seen.ends.values()) == TASKS, timeout=50)
        await asyncio.sleep(0.05)
        await broker.close()
    try:
        assert once.check() == TASKS * 4
        assert len(telemetry.spans("accept")) == len(telemetry.spans("deliver")) == TASKS
        _check_spans(telemetry, seen)
        for event in telemetry.events:
            seen.look(seen.correlations[event["correlation_id"]], "log event", dict(event))
        _check_metrics(telemetry, seen, plan)
        assert seen.strays == []
        assert any("mark-" in str(event) for event in telemetry.events)  # the marks are there to be found
        assert telemetry.by(names.INTERNAL_ERRORS, "site") == {}
    finally:
        support.stop()


def test_a_value_of_another_tenant_is_seen():
    """A mark or a name of another tenant is noticed, its own is not: the check above can fail."""
    seen = _Seen()
    seen.look(3, "span", {"secret": "mark-3-note", "tenant": "tenant03"})
    assert seen.strays == []
    seen.look(3, "span", {"secret": "mark-4-note"})
    seen.look(3, "log", "tenant04")
    assert len(seen.strays) == 2
