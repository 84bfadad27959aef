"""Every public name as a user writes it; never executed, only type-checked by mypy --strict and pyright."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import aio_pika
import httpx

import rtobs
from rtobs import ErrorCategory, Hop, Operation, Outcome
from rtobs.errors import ConfigError, RtobsError, UnsupportedError
from rtobs.logs import add_journey
from rtobs.slo import (
    SLO,
    Alerting,
    Count,
    Deadline,
    Declaration,
    DeclarationError,
    Latency,
    Mistake,
    Ratio,
    Standing,
    Step,
    endpoint,
    load,
    status,
)


class Gone(Exception):
    """A user's own exception."""


def sink(event: Mapping[str, Any]) -> None:
    """Take a log event."""


rtobs.configure(
    service="chat",
    slos="slo.yaml",
    slow={"push": 5.0},
    promises={"in_app": "displayed"},
    tenants=["acme"],
    high_value={"acme"},
    sampling={"default": 0.01},
    propagate_to=["partner.example"],
    errors={Gone: ErrorCategory.RECIPIENT},
    logs=sink,
    wire_key=b"0123456789abcdef",
    sigterm=False,
    strict=False,
)
rtobs.configure(logs="stdout")
rtobs.configure(slos=Path("slo.toml"))
ack = SLO("ack", 99.9, Latency("300ms", hop="accept"), "In time.", "api-latency", "team", alerting=Alerting(page=20))
dead = SLO("dead", 99.9, Ratio("consume", ("dead_lettered",)), "Few.", "dead-letters", "team", policy=(Step(10, "x"),))
arrives = SLO("arrives", 99, Deadline("promise", "5s"), "Soon.", "vendor-outage", "team", group_by="channel")
rtobs.configure(slos=[ack, dead])
rtobs.configure(slos=Declaration("notify", (ack,)).with_slos([arrives]))
try:
    rtobs.configure(slos=load("slo.yaml"))
except DeclarationError as error:
    mistakes: tuple[Mistake, ...] = error.mistakes
mounted: Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]] = endpoint
for standing in status():
    assert_type(standing, Standing)
    assert_type(standing.left, float | None)
    assert_type(standing.counts, tuple[Count, ...])
assert_type(rtobs.shutdown(2.0), bool)


@rtobs.accept("/notify", trust="link")
async def notify(user: str, *, text: str = "") -> int:
    """Accept."""
    hop = rtobs.current()
    assert_type(hop, Hop)
    assert_type(hop.correlation_id, str)
    assert_type(hop.headers, dict[str, str])
    hop.segment(tenant="acme", region="eu", source="slack", device_type="mobile")
    hop.intend("push", user)
    hop.intend("in_app", count=3)
    hop.note(size=len(text), fast=True, ratio=0.5)
    hop.event("template_missing", template="welcome")
    hop.keep("support")
    hop.outcome(Outcome.DROPPED, "stale", category=ErrorCategory.SUPPRESSED)
    return 1


@rtobs.publish("push", channel="push", key="u1")
def announce(body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """Publish."""
    return body


@rtobs.consume("push", message="envelope")
def handle(envelope: object) -> str:
    """Consume."""
    return str(envelope)


def by_user(user: str, text: str) -> str:
    """Key."""
    return user + text[:0]


@rtobs.deliver("push", "fcm", key=by_user)
async def send(user: str, text: str) -> httpx.Response:
    """Deliver."""
    return httpx.Response(200, text=user + text)


def judge(answer: dict[str, Any]) -> Outcome | ErrorCategory | None:
    """Judge."""
    return None if answer["ok"] else ErrorCategory.REJECTED_DOWNSTREAM


@rtobs.deliver("connector", "crm", judge=judge)
def upsert(ticket: int) -> dict[str, Any]:
    """Deliver with a judge."""
    return {"ok": ticket}


@rtobs.deliver("connector", "crm", judge=judge)
async def upsert_later(ticket: int) -> dict[str, Any]:
    """Deliver with a judge, async."""
    return {"ok": ticket}


@rtobs.deliver("in_app", "websocket")
async def stream(room: str) -> AsyncGenerator[str, None]:
    """Deliver a stream."""
    yield room


@rtobs.stage("normalize")
def normalize(body: bytes) -> str:
    """Stage."""
    return body.decode()


class Worker:
    """Methods keep their types too."""

    @rtobs.consume("push")
    async def handle(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Consume."""
        with rtobs.stage("store"):
            await message.ack()


async def use() -> None:
    """Use everything decorated above."""
    assert_type(await notify("u", text="x"), int)
    assert_type(announce(b"x"), bytes)
    assert_type(handle(1), str)
    assert_type(await send("u", "t"), httpx.Response)
    assert_type(upsert(1), dict[str, Any])
    assert_type(await upsert_later(1), dict[str, Any])
    assert_type(normalize(b"x"), str)
    async for item in stream("room"):
        assert_type(item, str)
    with rtobs.consume("push", object(), headers={"traceparent": ""}, trust="trusted") as hop:
        assert_type(hop, Hop)
    with rtobs.consume("push", headers=[("traceparent", b"")]), rtobs.receipt("displayed", "token"):
        pass
    with rtobs.job("crm", due=datetime.now(UTC), window=timedelta(minutes=5)), rtobs.deliver("push", "fcm") as hop:
        assert_type(hop.receipt_token(), str)
    operation: Operation = rtobs.stage("x")
    with operation:
        pass
    connection = rtobs.wrap(
        await aio_pika.connect_robust("amqp://localhost"), dead_letter="push.dead", max_deliveries=5
    )
    assert_type(connection, aio_pika.RobustConnection)
    client = rtobs.wrap(httpx.AsyncClient(), trust="trusted", carrier=False, envelope=False, correlation=True)
    assert_type(client, httpx.AsyncClient)
    assert_type(rtobs.integrations.unwrap(client), httpx.AsyncClient)

    @rtobs.integrations.hands_over
    def put(message: bytes) -> int:
        return len(message)

    assert_type(put(b"x"), int)
    watch = rtobs.integrations.watch(connection, ["push"], interval=15.0, slots=10)
    watch.stop()
    rtobs.integrations.watch(connection, {"push": "main", "push.dead": "dead"}).stop()


errors: tuple[type[RtobsError], ...] = (ConfigError, UnsupportedError)
decorators: Callable[[Callable[[int], str]], Callable[[int], str]] = rtobs.stage("x")
line: MutableMapping[str, Any] = add_journey(None, "info", {"event": "looked up"})
