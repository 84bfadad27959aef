"""The answers: computed from hand-made telemetry, so that every number is known beforehand."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from rtobs.demo import summary, timeline, view
from rtobs.demo.story import PAYLOAD_ID, Story
from rtobs.demo.summary import Process
from tests.demo import support
from tests.demo.support import SECOND, span, spans

INTENTS = "rtobs.delivery.intents"
OUTCOMES = "rtobs.delivery.outcomes"
ATTEMPTS = "rtobs.delivery.attempts"
CID = "0a" * 16


def outcome(channel: str, step: str, outcome: str = "ok", tenant: str = "acme", category: str = "") -> dict[str, str]:
    """Labels of one outcome series."""
    return {
        "channel": channel, "provider": "p", "step": step, "outcome": outcome, "tenant": tenant, "region": "eu",
        "error_category": category,
    }  # fmt: skip


def promised(count: int, tenant: str = "acme") -> tuple[dict[str, str], int]:
    """One intents series."""
    return {"channel": "ticket", "tenant": tenant, "region": "eu", "source": "x"}, count


def test_the_law_of_promises():
    """Intents are outcomes at the promise step, plus open, plus unaccounted; later steps are not counted again."""
    story = Story()
    now = time.time()
    story.telemetry.absorb_metrics(support.counter(INTENTS, [promised(10)]))
    made = [
        (outcome("push", "accepted"), 3), (outcome("push", "displayed"), 2), (outcome("ticket", "delivered"), 2),
        (outcome("ticket", "delivered", "rejected"), 1), (outcome("ticket", "accepted"), 9),
    ]  # fmt: skip
    story.telemetry.absorb_metrics(support.counter(OUTCOMES, made))
    story.telemetry.absorb_traces(spans(
        span("publish", begin=now, correlation_id=CID, intent_id="i1"),
        span("publish", begin=now, correlation_id=CID, intent_id="i2"),
        span("consume", begin=now + 0.1, correlation_id=CID, intent_id="i2", outcome="ok"),
        span("publish", begin=now, correlation_id=CID, intent_id="i3"),
        span("consume", begin=now + 0.1, correlation_id=CID, intent_id="i3", outcome="retried"),
    ))  # fmt: skip
    identity = story.identity()
    assert identity.outcomes == {"ok": 5, "rejected": 1}
    assert (identity.intents, identity.open, identity.unaccounted, identity.inferred) == (10, 2, 2, 0)


def test_silence_ends_being_on_the_way():
    """A message of which nothing was heard for longer than messages wait here is unaccounted for, not open."""
    story = Story()
    now = time.time_ns()
    story.telemetry.absorb_metrics(support.counter(INTENTS, [promised(1)]))
    story.telemetry.absorb_traces(spans(span("publish", begin=now / SECOND, correlation_id=CID, intent_id="i1")))
    assert story.identity(now + 9 * SECOND).open == 1
    assert story.identity(now + 11 * SECOND).open == 0
    assert story.identity(now + 11 * SECOND).unaccounted == 1
    story.telemetry.absorb_traces(spans(span("consume", correlation_id=CID, lag=20.0)))
    assert story.identity(now + 30 * SECOND).open == 1
    assert story.identity(now + 50 * SECOND).open == 0


def test_spans_may_come_in_any_order():
    """The report of a sending that arrives after the report of its handling does not open the delivery again."""
    story = Story()
    now = time.time()
    story.telemetry.absorb_metrics(support.counter(INTENTS, [promised(1)]))
    story.telemetry.absorb_traces(spans(span("consume", begin=now, correlation_id=CID, intent_id="i", outcome="ok")))
    story.telemetry.absorb_traces(spans(span("publish", begin=now - 1, correlation_id=CID, intent_id="i")))
    assert story.identity().open == 0


def test_nothing_is_below_zero():
    """More outcomes than counted promises make promises that are known by their outcome, never a negative number."""
    story = Story()
    story.telemetry.absorb_metrics(support.counter(OUTCOMES, [(outcome("ticket", "delivered"), 4)]))
    now = time.time()
    story.telemetry.absorb_traces(spans(span("publish", begin=now, correlation_id=CID, intent_id="i1")))
    identity = story.identity()
    assert (identity.intents, identity.open, identity.unaccounted, identity.inferred) == (4, 0, 0, 4)


def test_lost_correlation_ids():
    """A consumed message whose payload names another journey is counted, by its span and by the domain event."""
    story = Story()
    kept = span("consume", correlation_id=CID)
    kept["attributes"][PAYLOAD_ID] = CID
    lost = span("consume", correlation_id="0b" * 16, trace="cd" * 16)
    lost["attributes"][PAYLOAD_ID] = CID
    story.telemetry.absorb_traces(spans(kept, lost))
    assert (story.compared(), story.lost_correlation_ids()) == (2, 1)
    story.telemetry.absorb_metrics(support.counter("rtobs.event.count", [({"event": "correlation_lost"}, 3)]))
    assert story.lost_correlation_ids() == 3


def test_on_time_counts_what_failed_as_late():
    """The on-time share is of all ended deliveries: one that never arrived was not on time."""
    story = Story()
    made = [(outcome("sms", "accepted"), 8), (outcome("sms", "accepted", "rejected"), 2)]
    story.telemetry.absorb_metrics(support.counter(OUTCOMES, made))
    labels = {"channel": "sms", "step": "accepted"}
    later = {"channel": "sms", "step": "displayed"}
    story.telemetry.absorb_metrics(
        support.histogram("rtobs.delivery.end_to_end", [(labels, [4, 2, 0, 2, 0]), (later, [9, 0, 0, 0, 0])])
    )
    (channel,) = story.channels()
    assert channel.on_time == 0.6
    assert channel.times.count == 8


def test_retries_belong_to_the_channel_of_their_queue():
    """What was put back is counted for the connector that reads the queue."""
    story = Story()
    handled = span("consume", correlation_id=CID, queue="deliver.ticket")
    tried = span("deliver", parent=handled["id"], correlation_id=CID, channel="ticket", provider="desk", result="ok")
    story.telemetry.absorb_traces(spans(tried, handled))
    story.telemetry.absorb_metrics(support.counter(ATTEMPTS, [
        ({"channel": "ticket", "provider": "desk", "result": "failed", "error_category": "validation"}, 6),
        ({"channel": "ticket", "provider": "desk", "result": "ok", "error_category": ""}, 4),
        ({"channel": "ticket", "provider": "desk", "result": "cancelled", "error_category": ""}, 1),
    ]))  # fmt: skip
    story.telemetry.absorb_metrics(support.counter("rtobs.message.settled", [
        ({"destination": "deliver.ticket", "outcome": "retried"}, 5),
        ({"destination": "deliver.ticket", "outcome": "ok"}, 4),
    ]))  # fmt: skip
    (one,) = story.connectors()
    assert (one.attempts, one.ok, one.by_category, one.retries, one.top_category) == (
        11,
        4,
        {"validation": 6},
        5,
        "validation",
    )


def test_one_tenant_is_affected():
    """A tenant whose deliveries end badly far more often is named; a dead address counts for nobody."""
    story = Story()
    story.telemetry.absorb_metrics(
        support.counter(INTENTS, [promised(100, "acme"), promised(50, "globex"), promised(50, "hooli")])
    )
    story.telemetry.absorb_metrics(support.counter(OUTCOMES, [
        (outcome("sms", "accepted", tenant="acme"), 100), (outcome("sms", "accepted", tenant="globex"), 20),
        (outcome("sms", "accepted", "rejected", "globex", "auth"), 30),
        (outcome("sms", "accepted", tenant="hooli"), 20),
        (outcome("sms", "accepted", "rejected", "hooli", "recipient"), 30),
    ]))  # fmt: skip
    tenants = story.tenants()
    assert [(one.name, one.ok, one.ended) for one in tenants] == [
        ("acme", 100, 100),
        ("globex", 20, 50),
        ("hooli", 20, 50),
    ]
    assert [one.name for one in tenants if one.affected] == ["globex"]


def failing_story() -> Story:
    """One message: accepted, routed, tried twice and dead-lettered."""
    story = Story()
    accept = span("accept", begin=100.0, seconds=0.01, correlation_id=CID, route="/notifications", tenant="acme")
    send = span("publish", begin=100.004, seconds=0.001, parent=accept["id"], correlation_id=CID, queue="inbox")
    route = span(
        "consume", begin=100.02, seconds=0.02, parent=send["id"], service="router", correlation_id=CID,
        queue="inbox", lag=0.015, outcome="ok",
    )  # fmt: skip
    stage = span("", begin=100.021, seconds=0.005, parent=route["id"], stage="normalize")
    attempts = []
    for number, ended in ((1, "retried"), (2, "dead_lettered")):
        consume = span(
            "consume", begin=100 + number, seconds=0.2, parent=route["id"], service="connectors", correlation_id=CID,
            queue="deliver.ticket", lag=0.9, attempt=number, outcome=ended, intent_id="i",
        )  # fmt: skip
        deliver = span(
            "deliver", begin=100.01 + number, seconds=0.15, parent=consume["id"], service="connectors",
            correlation_id=CID, channel="ticket", provider="desk", result="failed", error_category="validation",
            reason="SchemaError",
        )  # fmt: skip
        attempts += [consume, deliver]
    story.telemetry.absorb_traces(spans(*reversed([accept, send, route, stage, *attempts])))
    story.telemetry.absorb_logs(
        support.logs({"event": "delivery failed", "correlation_id": CID, "reason": "SchemaError"})
    )
    return story


def test_the_story_of_a_failed_message():
    """Every hop and stage appears in order under its parent, with its wait, attempt, outcome and reason."""
    story = failing_story()
    tale = timeline.choose_failed(story.telemetry, None)
    assert tale is not None
    assert tale.correlation_id == CID
    assert tale.headline == (
        "A message that failed: ticket by desk ended dead_lettered after 2 tries, last error: validation (SchemaError)."
    )
    assert [(row.depth, row.hop, row.name, row.outcome, row.attempt) for row in tale.rows] == [
        (0, "accept", "/notifications", "ok", None),
        (1, "publish", "inbox", "ok", None),
        (2, "consume", "inbox", "ok", 1),
        (3, "stage", "normalize", "ok", None),
        (3, "consume", "deliver.ticket", "retried", 1),
        (4, "deliver", "ticket by desk", "failed", None),
        (3, "consume", "deliver.ticket", "dead_lettered", 2),
        (4, "deliver", "ticket by desk", "failed", None),
    ]
    assert [row.waited for row in tale.rows if row.hop == "consume"] == [pytest.approx(0.016), 0.9, 0.9]
    assert tale.rows[6].offset == 2.0
    text = "\n".join(timeline.lines(tale))
    assert "200.0 ms  900.0 ms  dead_lettered  attempt 2  [connectors]" in text
    assert "delivery failed" in text


def test_without_a_failure_there_is_no_failed_story():
    """A journey of which every delivery arrived is the delivered story, and no failed one is made up."""
    story = Story()
    deliver = span("deliver", begin=1.0, correlation_id=CID, channel="push", provider="p", result="ok")
    seen = span("receipt", begin=1.5, correlation_id=CID, step="displayed", trace="cd" * 16)
    story.telemetry.absorb_traces(spans(span("accept", begin=0.5, correlation_id=CID), deliver, seen))
    assert timeline.choose_failed(story.telemetry, None) is None
    tale = timeline.choose_delivered(story.telemetry, None)
    assert tale is not None
    assert (
        tale.headline
        == "A message that was delivered: push accepted and seen by the user, the last delivery after 510.0 ms."
    )


def test_a_broken_trace_is_told_all_the_same():
    """Spans whose parents form a ring or are missing are told without an endless loop."""
    story = Story()
    one = span("accept", correlation_id=CID)
    two = span("consume", correlation_id=CID, parent=one["id"])
    one["parent"] = two["id"]
    three = span("consume", correlation_id=CID, parent="f" * 16)
    story.telemetry.absorb_traces(spans(one, two, three))
    tale = timeline.tell(story.telemetry, CID)
    assert tale is not None
    assert len(tale.rows) == 3


def test_the_view_answers_every_question():
    """The view shows a heading for each question, the connector that fails and each tenant."""
    story = failing_story()
    story.telemetry.absorb_metrics(support.counter(INTENTS, [promised(100)]))
    story.telemetry.absorb_metrics(support.counter(OUTCOMES, [(outcome("ticket", "delivered"), 60)]))
    story.telemetry.absorb_metrics(support.counter(ATTEMPTS, [
        ({"channel": "ticket", "provider": "desk", "result": "failed", "error_category": "validation"}, 40),
        ({"channel": "ticket", "provider": "desk", "result": "ok", "error_category": ""}, 60),
    ]))  # fmt: skip
    story.tick()
    screen = Console(file=io.StringIO(), width=120, force_terminal=True)
    screen.print(view.render(story, "rtobs demo", "3 of 20 s"))
    shown = screen.file.getvalue()
    for expected in ("Are deliveries delayed?", "Do messages pile up?", "Which connector is failing?",
                     "Is one tenant affected?", "acme", "ticket (desk) is failing: 40 of 100 tries"):  # fmt: skip
        assert expected in shown


def test_the_view_fits_a_small_terminal():
    """With late channels, queues that pile up and a failing connector it needs at most 80 columns and 24 lines."""
    story = Story("run.")
    absorb = story.telemetry.absorb_metrics
    providers = {"email": "mail-relay", "in_app": "websocket", "push": "push-gateway", "sms": "sms-carrier"}
    tenants = iter(("acme", "globex", "initech", "umbrella", "hooli"))
    for channel, provider in {**providers, "ticket": "ticket-desk"}.items():
        step, failed = ("delivered", 5000) if channel == "ticket" else ("accepted", 100)
        tenant, queue = next(tenants), f"deliver.{channel}"
        handled = span("consume", correlation_id=CID, queue=queue, lag=12.34)
        delivered = span("deliver", parent=handled["id"], correlation_id=CID, channel=channel, provider=provider)
        story.telemetry.absorb_traces(spans(delivered, handled))
        made = [(outcome(channel, step, tenant=tenant), 12345), (outcome(channel, step, "rejected", tenant, "auth"), 7)]
        absorb(support.counter(OUTCOMES, made, instance=channel))
        absorb(support.counter(INTENTS, [({"channel": channel, "tenant": tenant}, 12400)], instance=channel))
        tried = {"channel": channel, "provider": provider}
        bad = tried | {"result": "failed", "error_category": "rejected_downstream"}
        absorb(support.counter(ATTEMPTS, [(bad, failed), (tried | {"result": "ok"}, 12345)], instance=channel))
        times = [({"channel": channel, "step": step}, [1, 0, 0, 2, 99])]
        bounds = (1.0, 5.0, 10.0, 60.0)
        absorb(support.histogram("rtobs.delivery.end_to_end", times, bounds=bounds, instance=channel))
        worker, place = {"worker": f"run.{queue}"}, {"destination": f"run.{queue}", "role": "main"}
        absorb(support.counter("rtobs.worker.busy_time", [(worker, 999)], instance=channel))
        absorb(support.counter("rtobs.worker.capacity_time", [(worker, 1000)], instance=channel))
        absorb(support.gauge("rtobs.queue.depth", [(place, 1234)], instance=channel))
        absorb(support.gauge("rtobs.queue.oldest_age", [(place | {"estimated": "true"}, 12.34)], instance=channel))
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    screen.print(view.render(story, "rtobs demo: slow-consumer on ticket", "3 of 20 s"))
    shown = screen.file.getvalue()
    assert "ticket (ticket-desk) is failing: 5000 of 17345 tries" in shown
    assert "~12.34 s" in shown
    assert "…" not in shown, shown
    assert len(shown.splitlines()) <= 24, shown


def test_an_empty_store_has_a_view_and_a_summary():
    """Before anything arrives the view and the summary say so instead of failing."""
    story = Story()
    Console(file=io.StringIO()).print(view.render(story, "rtobs demo", "starting"))
    text = summary.as_text(story, [Process("platform", 1)])
    assert "No message was delivered." in text
    assert story.suspect() is None
