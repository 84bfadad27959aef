"""Real hops at head rate 0: what a failure brings back of its journey, in every way a message can go."""

from __future__ import annotations

import datetime as dt
import gc
import tracemalloc
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import rtobs
from rtobs import Outcome, _guard
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs._journey.journey import Journey
from rtobs._journey.record import HopRecord
from rtobs._telemetry.consistent import JourneySampler, threshold
from rtobs._telemetry.shedding import Shedding
from rtobs.integrations.memory import Broker
from tests._telemetry.conftest import Make, Traced
from tests.support.telemetry import Clock, SeesStarts, Telemetry

__all__: list[str] = []

DAY = 86_400 * 1_000_000_000


@pytest.fixture
def recorded(traced: Make) -> Traced:
    """A process of which nothing is sampled."""
    return traced(sampler=JourneySampler({"default": 0.0}), settings={"service": "all", "logs": lambda _event: None})


def accepted(*destinations: str) -> list[dict[str, str]]:
    """Take a message in and send it on; return the headers of each send."""
    sent = []
    with rtobs.accept("/notify"):
        for destination in destinations:
            with rtobs.publish(destination) as hop:
                sent.append(hop.headers)
    return sent


def passed(name: str, headers: dict[str, str], further: str) -> dict[str, str]:
    """Handle a message and send it on."""
    with rtobs.consume(name, headers=headers, trust="trusted"), rtobs.publish(further) as hop:
        return hop.headers


def failing(name: str, headers: dict[str, str]) -> dict[str, str]:
    """Handle a message and fail; return the headers of what the application sends to try it again."""
    sent: dict[str, str] = {}
    with suppress(TimeoutError), rtobs.consume(name, headers=headers, trust="trusted"):
        with suppress(TimeoutError), rtobs.deliver("push", "fcm"):
            raise TimeoutError
        with rtobs.publish(f"{name} again") as again:
            sent = again.headers
        raise TimeoutError
    return sent


def rebuilt(user: Traced) -> list[str]:
    return [span.name for span in user.spans() if span.attributes.get("rtobs.reconstructed")]


def real(user: Traced) -> list[str]:
    return [span.name for span in user.spans() if not span.attributes.get("rtobs.reconstructed")]


def in_bytes(span: Any) -> str:
    return span.to_json()


# What is kept, and what comes back -----------------------------------------------------------------------------------


def test_a_failure_brings_back_all_that_was_before(recorded: Traced) -> None:
    """Two steps and their sends are rebuilt, in one trace with the failing hop, each the parent of the next."""
    (headers,) = accepted("notify")
    failing("push", passed("notify", headers, "push"))
    assert rebuilt(recorded) == ["accept /notify", "publish notify", "consume notify", "publish push"]
    above = None
    for name in (*rebuilt(recorded), "consume push", "deliver push fcm"):
        span = recorded.span(name)
        assert (span.parent.span_id if span.parent is not None else None) == above
        above = span.context.span_id
    assert len({span.context.trace_id for span in recorded.spans()}) == 1
    assert recorded.span("deliver push fcm").attributes["rtobs.ledger.bytes"] > 56
    assert Telemetry().count(names.SPANS_REBUILT) == 4


def test_a_healthy_message_leaves_nothing(recorded: Traced) -> None:
    """At head rate 0 nothing of a journey that ends well is exported."""
    (headers,) = accepted("notify")
    passed("notify", headers, "push")
    assert recorded.spans() == []


def test_work_after_sending_is_in_the_real_span(recorded: Traced) -> None:
    """A step that fails after it sent is exported itself; what its message became later is beside it, rebuilt."""
    headers: dict[str, str] = {}
    with suppress(ValueError), rtobs.accept("/notify"):
        with rtobs.publish("notify") as hop:
            headers = hop.headers
        raise ValueError("late")
    assert real(recorded) == ["accept /notify"]
    failing("notify", headers)
    copies = [span for span in recorded.spans() if span.name == "accept /notify"]
    assert [bool(span.attributes.get("rtobs.reconstructed")) for span in copies] == [False, True]
    assert len({span.context.span_id for span in copies}) == 1
    assert copies[0].end_time >= copies[1].end_time


def test_a_redelivery_rebuilds_the_same(recorded: Traced) -> None:
    """The same headers, again: each failing try is there, and what is rebuilt twice is the same to the byte."""
    (headers,) = accepted("notify")
    failing("notify", headers)
    failing("notify", headers)
    copies = [in_bytes(span) for span in recorded.spans() if span.attributes.get("rtobs.reconstructed")]
    assert Counter(Counter(copies).values()) == {2: 2}
    assert real(recorded).count("consume notify") == 2


def test_a_retry_that_the_application_sends_is_kept_and_rebuilds_nothing(recorded: Traced) -> None:
    """What a failing hop sends says so: flag 01, the keep flag; each further try is exported, nothing rebuilt twice."""
    (headers,) = accepted("notify")
    again = failing("notify", headers)
    assert again["traceparent"].endswith("-03")
    assert "tracestate" not in again
    assert again["rtobs-journey"][1:3] == "01"
    assert ".failed." in again["rtobs-journey"]
    with rtobs.consume("notify", headers=again, trust="trusted"):
        pass
    assert rebuilt(recorded) == ["accept /notify", "publish notify"]
    assert real(recorded)[-1] == "consume notify"
    assert recorded.spans()[-1].attributes["rtobs.sampling.reason"] == "failed"


async def test_a_dead_letter_queue_and_a_replay_days_later(recorded: Traced, clock: Clock) -> None:
    """A message that died and is put back ten days later still brings its whole way; a failure then tells it all."""
    broker = rtobs.wrap(Broker())
    broker.declare("push", dead_letter="dead")
    with rtobs.accept("/notify"):
        await broker.publish("push", b"x")
    message = await broker.get("push")
    assert message is not None
    with rtobs.consume("push", message):
        await message.reject()
    assert recorded.span("consume push").attributes["rtobs.sampling.reason"] == "dead_lettered"
    first = rebuilt(recorded)
    clock.now += 10 * DAY
    dead = await broker.get("dead")
    assert dead is not None
    with rtobs.consume("dead", dead):
        await broker.publish("push", dead.body, dead.headers)
        await dead.ack()
    message = await broker.get("push")
    assert message is not None
    with pytest.raises(TimeoutError), rtobs.consume("push", message):
        raise TimeoutError
    assert first == ["accept /notify", "publish push"]
    assert rebuilt(recorded)[2:] == [*first, "consume dead", "publish push"]
    assert len({span.context.trace_id for span in recorded.spans()}) == 1
    waited = recorded.span("consume dead").start_time - recorded.spans()[0].start_time
    assert waited // DAY == 10


def test_two_failing_branches_of_one_fan_out(recorded: Traced) -> None:
    """Both rebuild what they have in common, the same to the byte, and each its own send."""
    one, two = accepted("push", "email")
    failing("push", one)
    failing("email", two)
    spans = [span for span in recorded.spans() if span.attributes.get("rtobs.reconstructed")]
    assert [span.name for span in spans] == ["accept /notify", "publish push", "accept /notify", "publish email"]
    assert in_bytes(spans[0]) == in_bytes(spans[2])
    parents = {span.parent.span_id for span in spans if span.parent is not None}
    assert parents == {spans[0].context.span_id}


def test_the_forty_first_of_many_sends(recorded: Traced) -> None:
    """A message with a trace of its own brings back its send as that trace's root, linked to its step in the first."""
    sent = accepted(*["push"] * 41)
    assert sent[40]["traceparent"][3:35] != sent[0]["traceparent"][3:35]
    failing("push", sent[40])
    step, send = (span for span in recorded.spans() if span.attributes.get("rtobs.reconstructed"))
    assert (step.name, send.name, send.parent) == ("accept /notify", "publish push", None)
    assert send.links[0].context.span_id == step.context.span_id
    assert f"{step.context.trace_id:032x}" == sent[0]["traceparent"][3:35]
    assert recorded.span("consume push").parent.span_id == send.context.span_id


def test_a_delivery_that_sends_stands_in_its_handling(recorded: Traced) -> None:
    """A send inside a delivery inside a handler: all three come back, one in the other."""
    (headers,) = accepted("notify")
    with (
        rtobs.consume("notify", headers=headers, trust="trusted"),
        rtobs.deliver("webhook", "crm"),
        rtobs.publish("further") as hop,
    ):
        further = hop.headers
    failing("further", further)
    chain = ["accept /notify", "publish notify", "consume notify", "deliver webhook crm", "publish further"]
    spans = {span.name: span for span in recorded.spans()}
    for parent, child in pairwise([*chain, "consume further"]):
        assert spans[child].parent.span_id == spans[parent].context.span_id


def test_what_a_job_sent_brings_back_the_run(recorded: Traced, clock: Clock) -> None:
    """A message that a scheduled run sent fails an hour later: its send comes back as a root, with the run."""
    due = dt.datetime.fromtimestamp(clock.now / 1e9, dt.UTC)
    with rtobs.job("crm-sync", due=due, window=dt.timedelta(minutes=5)), rtobs.publish("push") as hop:
        headers = hop.headers
    assert recorded.spans() == []
    clock.now += 3600 * 1_000_000_000
    failing("push", headers)
    spans = {span.name: span for span in recorded.spans()}
    assert rebuilt(recorded) == ["job crm-sync", "publish push"]
    run, sent, handled = (spans[name] for name in ("job crm-sync", "publish push", "consume push"))
    assert (run.parent, sent.parent) == (None, None)  # each message of a run is a journey of its own
    assert sent.links[0].context.span_id == run.context.span_id
    assert handled.parent.span_id == sent.context.span_id


def test_a_high_value_tenant_is_kept_as_soon_as_it_is_named(traced: Make) -> None:
    """What is sent after its name is known says so, and is kept at every hop."""
    user = traced(sampler=JourneySampler({"default": 0.0}), settings={"high_value": {"acme"}})
    with rtobs.accept("/notify") as hop:
        before = hop.headers
        hop.segment(tenant="acme")
        with rtobs.publish("notify") as sending:
            after = sending.headers
    assert (before["traceparent"][-2:], after["traceparent"][-2:]) == ("02", "03")
    passed("notify", after, "push")
    assert real(user) == ["publish notify", "accept /notify", "publish push", "consume notify"]
    assert rebuilt(user) == []


def test_an_asked_for_journey_is_kept_from_there_on(recorded: Traced) -> None:
    """``keep`` exports the hop and the hops round it, rebuilds what was before, and says so to what follows."""
    (headers,) = accepted("notify")
    with rtobs.consume("notify", headers=headers, trust="trusted") as hop:
        hop.keep("vip")
        with rtobs.publish("push") as sending:
            further = sending.headers
    passed("push", further, "done")
    assert real(recorded) == ["publish push", "consume notify", "publish done", "consume push"]
    assert rebuilt(recorded) == ["accept /notify", "publish notify"]
    assert {
        span.attributes["rtobs.sampling.reason"]
        for span in recorded.spans("consume")
        if span.resource.attributes.get("rtobs.reconstructed") is None
    } == {"vip"}


# Head sampling on the wire -------------------------------------------------------------------------------------------


def test_a_foreign_tracestate_comes_through(traced: Make) -> None:
    """A remote parent's vendor members and ``rv`` are on the child and what it sends, ``th`` where it can be true."""
    user = traced(sampler=JourneySampler({"default": 0.5}))
    parent = f"00-{1:032x}-{2:016x}-"
    for flag, state, expected in (
        ("01", "ot=th:8;rv:ff000000000001,vendor=1", "ot=th:8;rv:ff000000000001,vendor=1"),
        ("01", "ot=th:c;rv:0f000000000001,vendor=1", "ot=rv:0f000000000001,vendor=1"),
        ("00", "ot=th:8;rv:ff000000000001,vendor=1", "ot=rv:ff000000000001,vendor=1"),
        ("01", "vendor=1,other=2", "vendor=1,other=2"),
    ):
        headers = {"traceparent": parent + flag, "tracestate": state}
        with rtobs.consume("orders", headers=headers, trust="trusted"), rtobs.publish("next") as hop:
            assert hop.headers["tracestate"] == expected
    assert [span.context.trace_state.to_header() for span in user.spans("consume")] == [
        "ot=th:8;rv:ff000000000001,vendor=1", "ot=rv:0f000000000001,vendor=1", "vendor=1,other=2",
    ]  # fmt: skip


def test_a_sampled_journey_says_its_threshold_until_it_is_kept(traced: Make) -> None:
    """``th`` is on a sampled root and on what it sends; after a decision to keep it is gone from headers."""
    traced(sampler=JourneySampler({"default": 0.999}))
    (headers,) = accepted("notify")
    assert headers["tracestate"].startswith("ot=th:00")
    assert "tracestate" not in failing("notify", headers)


def test_all_traces_of_a_journey_are_sampled_or_none(traced: Make) -> None:
    """A receipt's trace, which begins anew, is decided by the number of the journey that it is about."""
    user = traced(sampler=JourneySampler({"default": 0.5}), settings={"wire_key": b"sixteen bytes at least"})
    sampled = 0
    for _ in range(60):
        user.forget()
        with rtobs.deliver("push", "fcm", key="ann") as hop:
            token, cid = hop.receipt_token(), hop.correlation_id
        with rtobs.receipt("displayed", token):
            pass
        found = [span.attributes["rtobs.hop"] for span in user.spans()]
        assert found in ([], ["deliver", "receipt"])
        assert bool(found) == (int(cid[-14:], 16) >= threshold(0.5))
        sampled += bool(found)
    assert 10 < sampled < 50


def test_branches_are_sampled_each_for_itself(traced: Make) -> None:
    """Of 400 messages with a trace of their own about half are sampled at one half, whatever became of their hop."""
    traced(sampler=JourneySampler({"default": 0.5}))
    flags = Counter(headers["traceparent"][-2:] for headers in accepted(*["push"] * 432)[32:])
    assert 130 < flags["03"] < 270


# An outage -----------------------------------------------------------------------------------------------------------


def test_an_outage_stays_under_its_ceiling(recorded: Traced, clock: Clock) -> None:
    """Of 500 failures a second for 20 s some are kept, the first of every kind among them; the rest is counted."""
    deliveries, kinds = 10_000, {TimeoutError: "timeout", ConnectionError: "transport"}
    assert engine.is_on()
    sink = next(sink for sink in runtime.sinks if hasattr(sink, "shedding"))
    sink.shedding = Shedding(lambda: clock.now / 1e9, burst=50, rate=10, ceiling=100)
    gc.collect()
    tracemalloc.start()
    for number in range(deliveries):
        error = ConnectionError if number >= deliveries // 2 else TimeoutError
        clock.now += 2_000_000
        with pytest.raises(error), rtobs.deliver("push", "fcm"):
            raise error
        if number == deliveries // 2:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    spans = recorded.spans()
    telemetry = Telemetry()
    shed = telemetry.by(names.SAMPLING_SHED, "reason")
    kept = telemetry.count(names.SAMPLING_KEPT, reason="failed")
    print(f"\n{deliveries} failures in 20 s: {kept} kept, {shed} shed; {grown / 1e6:.2f} MB more for the second half")
    assert kept == len(spans) == deliveries - sum(shed.values())
    assert len(spans) <= 100 * 21
    assert Counter(span.attributes["rtobs.error_category"] for span in spans).keys() == set(kinds.values())
    seconds = Counter((span.start_time - spans[0].start_time) // 1_000_000_000 for span in spans)
    assert max(seconds.values()) <= 200
    assert telemetry.count(names.ATTEMPTS) == deliveries
    assert grown < 3e6  # the exporter of this test keeps what was kept


# Hostile ledgers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["link", "ignore"])
def test_a_public_edge_ignores_it(recorded: Traced, trust: Any) -> None:
    """Where a caller is not trusted neither ledger nor keep flag are read: nothing of them comes back, even counted."""
    kept = failing("push", passed("notify", accepted("notify")[0], "push"))
    recorded.forget()
    before = dict(_guard.tallies())
    with pytest.raises(TimeoutError), rtobs.accept("/notify", headers={**kept}, trust=trust):
        raise TimeoutError
    with rtobs.accept("/notify", headers={**kept}, trust=trust) as hop:
        assert ".failed." not in hop.headers["rtobs-journey"]
        assert hop.headers["traceparent"].endswith("-02")
    assert rebuilt(recorded) == []
    assert [span.attributes["rtobs.sampling.reason"] for span in recorded.spans()] == ["failed"]
    assert dict(_guard.tallies()) == before


def test_nothing_is_held_after_a_hop_ends(recorded: Traced) -> None:
    """A thousand journeys of two steps leave no record, journey or ledger behind."""
    del recorded
    for _ in range(10):
        passed("notify", accepted("notify")[0], "push")
    gc.collect()
    before = sum(type(one) in (Journey, HopRecord) for one in gc.get_objects())
    for _ in range(1000):
        passed("notify", accepted("notify")[0], "push")
    gc.collect()
    after = sum(type(one) in (Journey, HopRecord) for one in gc.get_objects())
    assert after <= before


def test_a_retried_failure_is_still_shown_once(recorded: Traced) -> None:
    """An outcome that the hop itself says counts as its end: kept under that name."""
    (headers,) = accepted("notify")
    with rtobs.consume("notify", headers=headers, trust="trusted") as hop:
        hop.outcome(Outcome.EXPIRED)
    assert recorded.span("consume notify").attributes["rtobs.sampling.reason"] == "expired"
    assert rebuilt(recorded) == ["accept /notify", "publish notify"]


def test_it_works_where_sdk_spans_stand_for_hops(traced: Make) -> None:
    """With a processor that watches spans start, ids are the SDK's own, and a failure brings all back all the same."""
    user = traced(SeesStarts(), sampler=JourneySampler({"default": 0.0}), kind=SimpleSpanProcessor)
    (headers,) = accepted("notify")
    failing("push", passed("notify", headers, "push"))
    above = 0
    for name in ("accept /notify", "publish notify", "consume notify", "publish push"):
        span = user.span(name)
        assert (span.parent.span_id if span.parent is not None else 0) == above
        above = span.context.span_id
    assert user.span("consume push").parent.span_id == above
