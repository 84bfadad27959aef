"""Log events: a hop that explains something says why, on one line, under the keys that people search by."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtobs
from rtobs import ErrorCategory, Outcome
from rtobs import _conventions as names
from rtobs._config import outputs
from rtobs._conventions import REQUIRED_LOG_KEYS
from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.journey import intent_id
from rtobs._journey.message import Message
from rtobs.integrations.memory import Broker
from tests.support import telemetry as support
from tests.support.telemetry import SECOND, Clock, Telemetry

KEYS = {
    "tenant_id", "event_id", "correlation_id", "destination", "retry_count", "error_category", "outcome", "reason",
    "trace_id", "span_id",
}  # fmt: skip


def received(**facts: Any) -> Message:
    return Message("memory", "orders", id="m-1", native=object(), **facts)


# What explains something ---------------------------------------------------------------------------------------------


def failed_delivery() -> None:
    with suppress(ConnectionError), rtobs.deliver("webhook", "crm"):
        raise ConnectionError


def unknown_recipient() -> None:
    with rtobs.deliver("sms", "carrier") as hop:
        hop.outcome(Outcome.REJECTED, "no_such_number", category=ErrorCategory.RECIPIENT)


def comes_back() -> None:
    with suppress(TimeoutError), leaf.Process(received(manual=True)):
        raise TimeoutError


def dead_lettered() -> None:
    with suppress(TimeoutError), leaf.Process(received(manual=True, delivery_count=3, max_deliveries=3)):
        raise TimeoutError


def ended(outcome: Outcome) -> Any:
    def run() -> None:
        with rtobs.consume("orders") as hop:
            hop.outcome(outcome, "said_so")

    return run


def recovered() -> None:
    with leaf.Process(received(delivery_count=2)):
        pass


def late() -> None:
    with leaf.Process(received(sent_ns=runtime.wall_ns() - 31 * SECOND)):
        pass


def late_by_its_own_limit() -> None:
    with leaf.Process(Message("memory", "fast", native=object(), sent_ns=runtime.wall_ns() - 2 * SECOND)):
        pass


def slow() -> None:
    with rtobs.accept("/slow"):
        runtime.wall_ns.now += 3 * SECOND  # the test's clock


def refused_request() -> None:
    with suppress(ValueError), rtobs.accept("/orders"):
        raise ValueError


@pytest.mark.parametrize(
    ("happens", "event", "explains", "level"),
    [
        (failed_delivery, "deliver.failed", "failed", "warning"),
        (unknown_recipient, "deliver.rejected", "rejected", "info"),
        (comes_back, "consume.retried", "retried", "info"),
        (dead_lettered, "consume.dead_lettered", "dead_lettered", "warning"),
        (ended(Outcome.DROPPED), "consume.dropped", "dropped", "info"),
        (ended(Outcome.EXPIRED), "consume.expired", "expired", "warning"),
        (ended(Outcome.REJECTED), "consume.rejected", "rejected", "warning"),
        (ended(Outcome.FAILED), "consume.failed", "failed", "warning"),
        (recovered, "consume.ok", "recovered", "info"),
        (late, "consume.ok", "late", "info"),
        (late_by_its_own_limit, "consume.ok", "late", "info"),
        (slow, "accept.ok", "slow", "info"),
        (refused_request, "accept.failed", "failed", "warning"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_hop_that_explains_something_says_why(
    clock: Clock, happens: Any, event: str, explains: str, level: str
) -> None:
    """One event for the hop, named by kind and outcome, with what it explains, its level and every key."""
    telemetry = support.start(slow={"/slow": 2.0, "fast": 1.0})
    try:
        happens()
    finally:
        support.stop()
    (found,) = telemetry.events
    assert (found["event"], found["explains"], found["level"]) == (event, explains, level)
    assert found.keys() >= KEYS
    assert found["stream"] == "operational"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["timestamp"])


def test_the_keys_are_the_ones_that_are_promised() -> None:
    """The ten keys that every event has are spelled as people were told."""
    assert set(REQUIRED_LOG_KEYS) == KEYS


def test_a_healthy_way_says_nothing(telemetry: Telemetry) -> None:
    """What works is counted and traced; no log line repeats it."""

    async def work() -> None:
        broker = rtobs.wrap(Broker())
        with rtobs.accept("/orders") as hop, rtobs.stage("normalize"):
            hop.segment(tenant="acme")
            hop.note(order=1)
            await broker.publish("orders", b"x")
        with rtobs.consume("orders", await broker.get("orders")), rtobs.deliver("webhook", "crm"):
            pass

    asyncio.run(work())
    assert telemetry.events == []
    assert telemetry.count(names.OUTCOMES) == 1


def test_an_event_holds_the_facts_of_its_hop_and_message(telemetry: Telemetry) -> None:
    """Tenant, message, try, category, reason, ids, stage and the user's notes are on the failing attempt's event."""
    message = received(manual=True, delivery_count=3)
    with suppress(TimeoutError), leaf.Process(message), rtobs.deliver("webhook", "crm") as hop:
        hop.segment(tenant="acme")
        hop.note(order=7)
        with rtobs.stage("invoke"):
            raise TimeoutError("no answer")
    attempt, handling = telemetry.events
    span = telemetry.span("deliver")
    wanted = {
        "event": "deliver.failed", "hop": "deliver", "tenant_id": "acme", "event_id": "m-1", "retry_count": 2,
        "destination": "webhook", "channel": "webhook", "provider": "crm", "error_category": "timeout",
        "outcome": "failed", "reason": "TimeoutError", "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}", "correlation_id": span.attributes["rtobs.correlation_id"],
        "error": "TimeoutError: no answer", "stage": "invoke", "order": 7,
    }  # fmt: skip
    assert {name: attempt.get(name) for name in wanted} == wanted
    assert handling["event"] == "consume.retried"
    assert handling["destination"] == "orders"
    assert handling["correlation_id"] == attempt["correlation_id"]


@pytest.mark.parametrize("key", ["u1", 7, b"u1"])
def test_a_delivery_with_a_key_says_which_promise_it_is_about(telemetry: Telemetry, key: Any) -> None:
    """The failing attempt's event and span name the intent of its channel and key, also among several recipients."""
    with suppress(TimeoutError), rtobs.accept("/orders") as hop:
        with rtobs.deliver("push", "apns", key="another"):
            pass
        with rtobs.deliver("push", "apns", key=key):
            raise TimeoutError("no answer")
    intent = intent_id(hop.correlation_id, "push", key)
    event = next(event for event in telemetry.events if event["event"] == "deliver.failed")
    assert event["event_id"] == intent
    assert telemetry.spans("deliver")[1].attributes["rtobs.intent_id"] == intent


# Domain events -------------------------------------------------------------------------------------------------------


def test_a_domain_event_is_logged_counted_and_on_the_span(telemetry: Telemetry) -> None:
    """`hop.event` says something in all three signals, in a hop that is healthy otherwise."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        hop.event("order.paid", amount=3, currency="EUR")
        hop.event("order.paid", amount=4)
    assert [event["amount"] for event in telemetry.events] == [3, 4]
    first = telemetry.events[0]
    assert (first["event"], first["level"], first["tenant_id"]) == ("order.paid", "info", "acme")
    assert "explains" not in first
    assert telemetry.by(names.EVENTS, "event") == {"order.paid": 2}
    told = telemetry.span("accept").events
    assert [dict(event.attributes) for event in told] == [{"amount": 3, "currency": "EUR"}, {"amount": 4}]


@pytest.mark.parametrize(
    "name",
    ["event", "self", "name", "level", "timestamp", "facts", "tenant_id", "span_id", "outcome", "args", "method_name"],
)
def test_a_field_of_the_users_breaks_no_key_of_ours(telemetry: Telemetry, name: str) -> None:
    """A note or field of any name is logged; where the name is ours, ours keeps its value and theirs stays too."""
    with rtobs.deliver("webhook", "crm") as hop:
        hop.event("told", **{name: "theirs"})
        hop.note(**{name: "theirs"})
        hop.outcome(Outcome.REJECTED)
    told, ended_as = telemetry.events
    ours = name in list(names.LogKey)
    for event in (told, ended_as):
        assert event[f"user.{name}" if ours else name] == "theirs"
        assert event.keys() >= KEYS
        assert event["span_id"] == f"{telemetry.span('deliver').context.span_id:016x}"
    assert (told["event"], ended_as["event"]) == ("told", "deliver.rejected")


# One line ------------------------------------------------------------------------------------------------------------

anything = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(),
    st.sampled_from(["a\r\nb", "\x1b]8;;http://x\x07", "\u2028\u2029", "\ud800", "\x00", "\u202e", "${jndi:x}", "%n"]),
)  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_know_is_text(value: float) -> None:
    """NaN and infinities leave as text: no parser chokes on the line."""
    line = outputs.line({"event": "x", "ratio": value})
    assert json.loads(line, parse_constant=pytest.fail)["ratio"] == str(value)


class Hostile:
    """An object that cannot be rendered."""

    def __repr__(self) -> str:
        raise RuntimeError("broken")

    __str__ = __repr__


@given(st.text(), st.text(min_size=1), anything, st.text())
@settings(max_examples=150)
def test_a_record_is_one_line_whatever_is_in_it(tenant: str, field: str, value: Any, message: str) -> None:
    """Tenant, field names, values and error texts of any kind become one line of ASCII that parses as JSON."""
    telemetry = support.start()
    try:
        with suppress(ValueError), rtobs.deliver("webhook", tenant) as hop:
            hop.segment(tenant=tenant, region=tenant)
            hop.note(**{field: value, "object": Hostile()})
            hop.event(field, **{field: value})
            raise ValueError(message)
        assert len(telemetry.events) == 2
        for event in telemetry.events:
            line = outputs.line(event)
            assert line.isascii()
            assert line.isprintable()
            assert json.loads(line, parse_constant=pytest.fail).keys() >= KEYS
    finally:
        support.stop()


# Where they go -------------------------------------------------------------------------------------------------------


def test_logs_to_stdout_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`logs="stdout"` prints one JSON object a line, at once, with every key."""
    support.start(logs="stdout")
    failed_delivery()
    (line,) = capsys.readouterr().out.splitlines()
    support.stop()
    assert json.loads(line)["event"] == "deliver.failed"
    assert json.loads(line).keys() >= KEYS


def test_logs_to_logging_are_records_of_the_logger_rtobs(caplog: pytest.LogCaptureFixture) -> None:
    """`logs="logging"`, and the default without an endpoint, hand events to the standard logger with their level."""
    caplog.set_level(logging.INFO)
    for choice in ("logging", None):
        support.start(logs=choice)
        failed_delivery()
        recovered()
    support.stop()
    levels = [(record.name, record.levelname) for record in caplog.records]
    assert levels == [("rtobs", "WARNING"), ("rtobs", "INFO")] * 2
    assert json.loads(caplog.messages[0])["event"] == "deliver.failed"


def test_a_logger_that_is_off_costs_no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the logger's level nothing is rendered."""
    rendered: list[Any] = []
    monkeypatch.setattr(outputs, "line", lambda event: rendered.append(event) or "")
    logger = logging.getLogger("rtobs")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    logger.manager._clear_cache()
    outputs.to_logging({"level": "info"})
    assert rendered == []
    logger.manager._clear_cache()


def test_a_function_gets_the_event_itself(telemetry: Telemetry) -> None:
    """A function is handed plain values under plain str keys."""
    failed_delivery()
    (event,) = telemetry.events
    assert isinstance(event, Mapping)
    assert all(type(name) is str for name in event)
    assert all(type(value) in (str, int, float, bool) for value in event.values())


def test_a_sink_that_raises_is_counted_and_the_hop_is_still_seen(tolerant: Telemetry) -> None:
    """A log function with a bug costs its event; the exception of the handler, the span and the metrics stay."""

    def broken(_event: Any) -> None:
        raise RuntimeError("broken")

    rtobs.configure(logs=broken)
    with pytest.raises(ConnectionError, match="gone"), rtobs.deliver("webhook", "crm"):
        raise ConnectionError("gone")
    assert tolerant.by(names.INTERNAL_ERRORS, "site") == {"EventSink": 1}
    assert tolerant.count(names.ATTEMPTS, result="failed") == 1
    assert len(tolerant.spans("deliver")) == 1


@pytest.mark.parametrize("stream", ["closed", "none", "full"])
def test_a_broken_stdout_is_counted(tolerant: Telemetry, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """A closed, missing or full standard output costs the line only."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    rtobs.configure(logs="stdout")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", {"closed": closed, "none": None, "full": Full()}[stream])
        failed_delivery()
    assert tolerant.by(names.TELEMETRY_DROPPED, "reason") == {"export_failed": 1}
    assert tolerant.by(names.INTERNAL_ERRORS, "site") == {}
