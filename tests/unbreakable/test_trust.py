"""R17 and R19, and whom each leaf believes: what travels comes out as it went in, and strangers decide nothing."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._journey import carrier
from rtobs._journey.journey import Journey
from rtobs._journey.message import Message, Trust
from rtobs.integrations import (
    aio_pika,
    aiokafka,
    aiomqtt,
    asgi,
    botocore,
    celery,
    confluent_kafka,
    django,
    faststream,
    kafka,
    memory,
    nats,
    paho,
    pika,
    websockets,
    wsgi,
)
from rtobs.integrations import redis as redis_leaf
from tests._export.scripted import Collector
from tests._journey.test_carrier import journeys
from tests.integrations.redis_modes import ListsAdapter, PubSubAdapter, StreamsAdapter
from tests.integrations.test_conformance_aio_pika import AioPikaAdapter
from tests.integrations.test_conformance_memory import MemoryAdapter
from tests.integrations.test_conformance_nats import CoreAdapter, JetStreamAdapter
from tests.support.telemetry import SECOND, Clock, Telemetry, clock, telemetry
from tests.support.timing import eventually
from tests.unbreakable.carriers import INCOMING, AsgiCarrier, HttpxCarrier
from tests.unbreakable.flood import CID, forged
from tests.unbreakable.worker_carriers import WsgiCarrier

__all__ = ["clock", "telemetry"]

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONE, TWO = f"{1:032x}", f"{2:016x}"
ROOT = Path(__file__).parents[2]

# R17: what goes in comes out ---------------------------------------------------------------------------------------

_member_keys = st.from_regex(r"[a-z][a-z0-9_*/-]{0,12}", fullmatch=True).filter(lambda key: key not in ("ot", "rtobs"))
_member_values = st.from_regex(r"[!-+\--<>-~]{1,12}", fullmatch=True)
tracestates = st.dictionaries(_member_keys, _member_values, max_size=4)
baggages = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=10),
    max_size=4,
)
foreign = st.dictionaries(
    st.from_regex(r"x-[a-z0-9-]{1,16}", fullmatch=True).filter(lambda name: name != "x-request-id"),
    st.from_regex(r"[!-~]([ -~]{0,30}[!-~])?", fullmatch=True),
    max_size=5,
)
FACTS = (
    "correlation_id",
    "created_us",
    "tenant",
    "region",
    "source",
    "named",
    "replay",
    "promised",
    "promise_tenant",
    "promise_region",
    "promise_named",
)
SENDERS: tuple[Any, ...] = (*INCOMING, HttpxCarrier)


def _facts(journey: Journey) -> dict[str, Any]:
    return {fact: getattr(journey, fact) for fact in FACTS}


def _written(journey: Journey, state: dict[str, str], bag: dict[str, str]) -> dict[str, str]:
    return carrier.write(
        journey,
        journey.correlation_id,
        f"{7:016x}",
        3,
        1_790_000_000_000_000,
        tracestate=",".join(f"{key}={value}" for key, value in state.items()),
        foreign_baggage=carrier.format_baggage(bag),
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
@given(journeys(), tracestates, baggages, foreign)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_r17_a_journey_goes_on_through_every_carrier(
    telemetry: Telemetry, journey: Journey, state: dict[str, str], bag: dict[str, str], theirs: dict[str, str]
) -> None:
    """R17: taken in, sent on and taken in again a journey is the same, and so are tracestate and baggage of others."""
    telemetry.forget()
    first = carrier.extract(_written(journey, state, bag)).journey
    assert first is not None
    expected = _facts(first)
    rtobs.configure(propagate_to=["crm.internal"], logs=telemetry.events.append)
    for one in INCOMING:
        sender = one if hasattr(one, "sent") else HttpxCarrier()
        sent: Any = one.took(_for(one, _written(journey, state, bag)), lambda sender=sender: _sent(sender, theirs))
        record, out = sent
        if sender.headers:
            assert {name: out[name] for name in theirs} == theirs, one.name
        found = carrier.extract(out)
        assert found.journey is not None, one.name
        assert _facts(found.journey) == expected, one.name
        assert found.parent.trace_id == record.trace_id == int(journey.correlation_id, 16), one.name
        members = dict(member.split("=", 1) for member in found.tracestate.split(",") if member)
        assert {key: value for key, value in members.items() if key in state} == state, one.name
        with rtobs.consume("next", headers=out, trust="trusted"):
            assert {key: baggage.get_baggage(key) for key in bag} == bag, one.name
            assert rtobs.current().correlation_id == journey.correlation_id


def _for(one: Any, headers: dict[str, str]) -> Any:
    """Return headers as the client of a carrier has them."""
    return [(name.encode(), value.encode()) for name, value in headers.items()] if one.name == "asgi" else headers


def _sent(sender: Any, theirs: dict[str, str]) -> Any:
    record = engine.current()
    before = dict(theirs)
    out = sender.sent(theirs)
    assert theirs == before, "the caller's headers are copied, not changed"
    return record, out


# Whom each leaf believes -------------------------------------------------------------------------------------------


def test_the_defaults_of_every_leaf() -> None:
    """Brokers of one's own are trusted, HTTP is linked; a leaf says so in one place, and `wrap` takes it from there."""
    for module in (
        aio_pika,
        pika,
        nats,
        redis_leaf,
        memory,
        kafka,
        aiokafka,
        confluent_kafka,
        botocore,
        celery,
        faststream,
    ):
        assert getattr(module, "TRUST", "trusted") == "trusted", module.__name__
    for module in (asgi, wsgi, paho, aiomqtt, websockets):
        assert module.TRUST == "link", module.__name__
    assert django.Middleware.trust == "link"
    assert inspect.signature(asgi.Middleware.__init__).parameters["trust"].default == "link"
    assert inspect.signature(rtobs.accept).parameters["trust"].default == "link"
    assert inspect.signature(rtobs.consume).parameters["trust"].default is None
    assert Message("x", "y").trust == "trusted"
    assert get_args(Trust) == ("trusted", "link", "ignore")


@pytest.mark.parametrize("one", INCOMING, ids=lambda one: one.name)
def test_a_broker_of_ones_own_is_believed(one: Any, telemetry: Telemetry) -> None:
    """AMQP, NATS, Redis and the memory broker continue the journey: name, trace, tenant and keep flag."""
    journey = Journey(CID, 1_790_000_000_000_000)
    journey.tenant, journey.kept = "acme", "vip"
    headers = carrier.write(journey, ONE, TWO, 1, 1_790_000_000_000_000)
    seen = one.took(_for(one, headers), engine.current)
    assert seen.journey.correlation_id == CID
    assert (seen.trace_id, seen.parent_span_id, seen.journey.tenant, seen.journey.kept) == (1, 2, "acme", "vip")


def _strangers() -> list[Any]:
    class Linking(AsgiCarrier):
        trust = "link"

    class LinkingWsgi(WsgiCarrier):
        trust = "link"

    def accepted(headers: Any, inside: Callable[[], Any]) -> Any:
        with rtobs.accept("/x", headers=headers):
            return inside()

    def consumed(headers: Any, inside: Callable[[], Any]) -> Any:
        with rtobs.consume("x", headers=headers):
            return inside()

    return [
        Linking(),
        LinkingWsgi(),
        SimpleNamespace(name="accept", took=accepted),
        SimpleNamespace(name="consume", took=consumed),
    ]


@pytest.mark.parametrize(
    "one", _strangers(), ids=["asgi middleware", "wsgi middleware", "accept", "consume of an unknown message"]
)
def test_a_stranger_is_linked_and_not_believed(one: Any, telemetry: Telemetry) -> None:
    """At an edge the caller's span is a link: name, trace, tenant, baggage, keep flag, promises and ledger are ours."""

    def look() -> Any:
        record = engine.current()
        return record, record.journey.kept, rtobs.current().headers, dict(baggage.get_all())

    record, kept, out, context = one.took(_for(one, {**forged(), "x-request-id": "abc-1"}), look)
    journey = record.journey
    assert journey.correlation_id != CID
    assert f"{record.trace_id:032x}" == journey.correlation_id
    assert record.parent_span_id == 0
    assert (journey.tenant, journey.region, journey.source, journey.named, kept) == ("", "", "", False, "")
    assert (journey.promised, journey.channel, journey.intent) == (frozenset(), "", "")
    assert record.tracestate in ("", "ot=th:0")  # our own decision; theirs has members besides
    assert context == {}
    assert "evil" not in str(out)
    assert "victim" not in str(out)
    assert CID not in str(out)
    assert abs(journey.created_us - record.wall_ns // 1000) < 60_000_000
    (linked,) = record.links
    assert (linked.trace_id, linked.span_id) == (int(TRACEPARENT[3:35], 16), int(TRACEPARENT[36:52], 16))
    assert record.attributes["rtobs.client_id"] == "abc-1"
    assert telemetry.count(names.INTENTS) == 0


@pytest.mark.parametrize("name", ["x-request-id", "x-correlation-id"])
@pytest.mark.parametrize("value", ["../x", "a b", "a" * 65, "é", "", "a\nb", "{}"])
def test_a_clients_id_is_kept_only_if_it_is_harmless(name: str, value: str, telemetry: Telemetry) -> None:
    """A client's own id is an attribute if it has at most 64 letters, digits, dots, hyphens and underscores."""
    with rtobs.accept("/x", headers={name: value}):
        pass
    assert "rtobs.client_id" not in telemetry.span("accept").attributes


def test_who_is_ignored_leaves_no_trace(telemetry: Telemetry) -> None:
    """With `ignore` there is neither a link nor an id of the client's."""
    with rtobs.accept("/x", headers={**forged(), "x-request-id": "abc"}, trust="ignore"):
        pass
    span = telemetry.span("accept")
    assert span.links == ()
    assert "rtobs.client_id" not in span.attributes


def test_a_receipt_begins_a_trace_of_its_own(telemetry: Telemetry) -> None:
    """What a device reports is linked to the delivery it is about; its headers decide nothing."""
    rtobs.configure(wire_key=b"a key of sixteen", logs=telemetry.events.append)
    with rtobs.deliver("push", "fcm") as hop:
        token = hop.receipt_token()
    with rtobs.receipt("displayed", token):
        inner = engine.current()
    delivery, receipt = telemetry.span("deliver"), telemetry.span("receipt")
    assert inner is not None
    assert receipt.context.trace_id != 0
    assert [link.context.span_id for link in receipt.links] == [delivery.context.span_id]
    assert receipt.parent is None
    with rtobs.receipt("displayed", f"{token[:-3]}AAA"):
        assert engine.current() is None, "a forged token opens nothing"


# R19: a flood of strangers who want to be sampled ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_r19_strangers_do_not_decide_what_is_sampled() -> None:
    """R19: of 20,000 requests that ask to be sampled and kept 1 % +- 0.3 are, and none of their traces becomes ours."""
    with Collector() as collector:
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "PYTHONPATH": str(ROOT)}
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
        command = [sys.executable, "-m", "tests.unbreakable.flood", "20000"]
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        exported = [
            span
            for request in collector.requests
            if request.path.endswith("/traces")
            for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    found = json.loads(ran.stdout)
    assert found == {"done": True, "ours": 20_000, "shared": 0, "believed": 0}
    share = len(exported) / 20_000
    print(f"\nR19: {len(exported)} of 20,000 sampled ({share:.2%}), 0 foreign trace ids")
    assert 0.007 <= share <= 0.013
    assert all(not span.parent_span_id and len(span.links) == 1 for span in exported)
    assert not {span.trace_id for span in exported} & {span.links[0].trace_id for span in exported}


# Clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "counted", "lag"),
    [
        (0, None, 0.0),
        (1, None, 1.0),
        (-0.001, "negative", None),
        (-300, "negative", None),
        (-301, "future", None),
        (30 * 86_400, None, 30 * 86_400.0),
        (30 * 86_400 + 1, "past", None),
        (-(10**9), "future", None),
    ],
)
@pytest.mark.parametrize("one", INCOMING, ids=lambda one: one.name)
def test_clocks_that_disagree_are_counted_and_not_recorded(
    one: Any, seconds: float, counted: str | None, lag: float | None, *, telemetry: Telemetry, clock: Clock
) -> None:
    """On every carrier: a negative lag, one of more than 30 days, and a time 5 minutes in the future are no lags."""
    sent_us = (clock.now - int(seconds * SECOND)) // 1000
    headers = carrier.write(Journey(CID, sent_us), ONE, TWO, 1, sent_us)
    record = one.took(_for(one, headers), engine.current)
    if one.name in ("asgi", "wsgi"):
        assert record.lag is None, "a request was not waiting in a queue"
        return
    assert record.lag == (pytest.approx(lag, abs=1e-6) if lag is not None else None)
    assert telemetry.count(names.MESSAGE_LAG) == (lag is not None)
    found = telemetry.by(names.CLOCK_REJECTED, "reason")
    assert found.get(counted, 0) >= 1 if counted else found == {}
    assert set(found) <= {counted}


def test_time_that_goes_backwards_in_a_process_measures_nothing_negative(telemetry: Telemetry, clock: Clock) -> None:
    """Durations are of the monotonic clock; a wall clock that is set back does not reach them."""
    with rtobs.accept("/x"):
        clock.now += SECOND
    ((_, seconds, number),) = telemetry.series(names.ACCEPT_DURATION)
    assert (seconds, number) == (pytest.approx(1.0), 1)


# On real brokers ---------------------------------------------------------------------------------------------------


BROKERS = [
    pytest.param(AioPikaAdapter, "amqp_url", marks=pytest.mark.broker),
    pytest.param(StreamsAdapter, "redis_url", marks=pytest.mark.broker),
    pytest.param(PubSubAdapter, "redis_url", marks=pytest.mark.broker),
    pytest.param(ListsAdapter, "redis_url", marks=pytest.mark.broker),
    pytest.param(CoreAdapter, "nats_url", marks=pytest.mark.broker),
    pytest.param(JetStreamAdapter, "nats_url", marks=pytest.mark.broker),
    pytest.param(MemoryAdapter, ""),
]


ENVELOPED = (StreamsAdapter, PubSubAdapter, ListsAdapter)
"""Where a sender has no headers of his own."""


@pytest.mark.parametrize(("kind", "url"), BROKERS)
async def test_r17_on_the_wire(
    kind: Any, url: str, telemetry: Telemetry, unique: Any, request: pytest.FixtureRequest
) -> None:
    """R17 on each real broker: twenty journeys with strange tenants arrive as they were sent, headers untouched."""
    adapter = kind(request.getfixturevalue(url)) if url else kind()
    try:
        queue = unique("trust")
        await adapter.declare(queue)
        client = await adapter.client()
        chance = random.Random(17)
        for number in range(20):
            tenant = "".join(chance.choices("aZ0-_~é✓ .%*", k=chance.randrange(1, 12)))
            theirs = {"x-note": f"a{''.join(chance.choices('abc ~!%=;,', k=9))}b", "x-zero": "0"}
            with rtobs.accept("/orders") as hop:
                hop.segment(tenant=tenant, region="eu")
                await adapter.send(client, queue, b"x", theirs)
            message = await eventually(lambda: adapter.fetch(client, queue))
            with rtobs.consume("orders", message) as here:
                assert here.correlation_id == hop.correlation_id
                assert engine.current().journey.tenant == tenant
            headers = adapter.headers(message)
            if kind not in ENVELOPED:
                assert {name: headers[name] for name in theirs} == theirs, number
            await adapter.settle(message, "ack")
        assert telemetry.count(names.PROPAGATION_MISSING) == 0
    finally:
        await adapter.close()
