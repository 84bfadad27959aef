"""The processor for a user's own structlog chain."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
import structlog
from opentelemetry import trace

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs.logs import add_journey
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry, telemetry

__all__ = ["telemetry"]

ADDED = {"tenant_id", "correlation_id", "destination", "trace_id", "span_id"}


@pytest.fixture
def lines() -> Generator[list[dict[str, Any]]]:
    """What a user's own logger, with our processor in its chain, has written."""
    written: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: Any) -> str:
        written.append(json.loads(structlog.processors.JSONRenderer()(None, "", event)))
        return ""

    log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[add_journey, keep])
    written_by.append(log)
    yield written
    written_by.clear()


written_by: list[Any] = []


def log(event: str, **fields: Any) -> None:
    written_by[0].info(event, **fields)


def test_a_line_inside_a_hop_says_whose_journey_it_is(telemetry: Telemetry, lines: list[dict[str, Any]]) -> None:
    """Tenant, correlation id, destination, trace and span of the current hop are added."""
    with rtobs.consume("orders") as hop:
        hop.segment(tenant="acme")
        log("looked up", order=7)
        cid = hop.correlation_id
    span = telemetry.span("consume")
    assert lines == [
        {
            "event": "looked up", "order": 7, "tenant_id": "acme", "correlation_id": cid, "destination": "orders",
            "trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}",
        }
    ]  # fmt: skip


def test_outside_a_hop_nothing_is_added(telemetry: Telemetry, lines: list[dict[str, Any]]) -> None:
    """A line that belongs to no message stays as it is, also under a span of somebody else's."""
    log("started")
    with trace.get_tracer("user").start_as_current_span("request"):
        log("inside a span")
    assert [line.keys() & ADDED for line in lines] == [set(), set()]


def test_what_is_not_known_is_not_added(telemetry: Telemetry, lines: list[dict[str, Any]]) -> None:
    """Without a tenant there is no key for one."""
    with rtobs.accept("/orders"):
        log("x")
    assert lines[0].keys() & ADDED == ADDED - {"tenant_id"}


@pytest.mark.parametrize("name", sorted(ADDED))
def test_a_key_of_the_users_is_never_overwritten(telemetry: Telemetry, lines: list[dict[str, Any]], name: str) -> None:
    """What the line already says stays, even where it says nothing."""
    with rtobs.consume("orders") as hop:
        hop.segment(tenant="acme")
        log("x", **{name: "mine"})
        log("y", **{name: None})
    assert [line[name] for line in lines] == ["mine", None]
    assert all(line.keys() >= ADDED for line in lines)


def test_the_span_is_the_innermost_one(telemetry: Telemetry, lines: list[dict[str, Any]]) -> None:
    """Inside a stage or another library's span, the line belongs to that span, in the same journey."""
    with rtobs.consume("orders"):
        with rtobs.stage("normalize"):
            log("in the stage")
        with trace.get_tracer("neighbour").start_as_current_span("query"):
            log("in the query")
        with rtobs.deliver("webhook", "crm"):
            log("in the delivery")
    expected = [telemetry.span(name=name) for name in ("normalize", "query", "deliver webhook crm")]
    assert [line["span_id"] for line in lines] == [f"{span.context.span_id:016x}" for span in expected]
    assert {line["trace_id"] for line in lines} == {f"{expected[0].context.trace_id:032x}"}
    assert [line["destination"] for line in lines] == ["orders", "orders", "webhook"]


class ReadOnly(dict[str, Any]):
    """An event that takes no further keys."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("read only")


def test_it_never_raises() -> None:
    """An event dictionary that cannot be added to comes back as it was, counted."""
    telemetry = support.start(strict=False)
    event = ReadOnly(event="x")
    with rtobs.consume("orders"):
        assert add_journey(None, "info", event) is event
    assert event == {"event": "x"}
    assert telemetry.by(names.INTERNAL_ERRORS, "site") == {"logs.add_journey": 1}
    support.stop()


def test_a_tenant_breaks_no_line(telemetry: Telemetry) -> None:
    """A tenant or a destination of any characters is made safe for any renderer."""
    with rtobs.consume("orders") as hop:
        hop.segment(tenant="a\r\nb")
        engine.current().name = "q\x1b[2J"
        found = add_journey(None, "info", {"event": "x"})
    assert (found["tenant_id"], found["destination"]) == ("a\ufffd\ufffdb", "q\ufffd[2J")
