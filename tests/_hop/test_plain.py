"""The plain way and the general one say the same of the same message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context, attach

import rtobs
from rtobs._hop import engine, plain
from rtobs._hop.handover import headers_of
from rtobs._journey import span
from rtobs._journey.carrier import write
from rtobs._journey.journey import Journey
from rtobs._journey.ledger import append, first, label
from rtobs._journey.ledger_entries import CODES
from rtobs._journey.message import Message
from rtobs._journey.record import HopRecord
from tests.support.telemetry import SECOND

TRACE, SPAN, OWN_SPAN = "0190c0ffee007abc0123456789abcdef", "b7ad6b7169203331", "00f067aa0ba902b7"
ALIKE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
US = 1_000_000


def _slots(thing: object) -> dict[str, Any]:
    names = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    return {name: getattr(thing, name) for name in names}


def _told(record: HopRecord) -> dict[str, Any]:
    """Return all that a record says; what stands for the ``with``, the context and the span is told by its type."""
    found = _slots(record) | {"vars": vars(record)}
    found["journey"] = _slots(record.journey)
    found |= {name: type(found[name]) for name in ("previous", "opener", "adopted")}
    return found


def _both_ways(open_hop: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Open and close the same hop by the plain way and by the general one; return what each said."""
    found = []
    for general in (False, True):
        with monkeypatch.context() as patch:
            ways = []
            for name in ("publish", "consume"):
                patch.setattr(plain, name, _watched(getattr(plain, name), ways, general=general))
            patch.setattr(plain, "new_root", lambda _: (TRACE, OWN_SPAN))
            patch.setattr(engine, "new_correlation_id", lambda _: TRACE)
            for room in (engine, span):
                patch.setattr(room, "new_span_id", lambda: OWN_SPAN)
            attach(Context())
            with open_hop() as hop:
                record = hop._record
                opened = _told(record)
                headers = [headers_of(record), headers_of(record)]
                context = dict(engine.get_current())
            found.append([ways, opened, headers, context.keys(), _told(record)])
            assert engine.current() is None
            assert not engine.runtime.open_hops
    return found


def _watched(way: Callable[..., Any], ways: list[bool], *, general: bool) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        record = None if general else way(*args)
        ways.append(record is not None)
        return record

    return call


@ALIKE
@given(wait_ns=st.integers(0, 10 * SECOND))
def test_a_plain_publish_is_a_publish(telemetry, clock, monkeypatch, wait_ns):
    """Record, headers, ledger and context of a publish outside of any hop are the same by both ways."""

    def open_hop() -> Any:
        clock.now = 1_800_000_000 * SECOND + wait_ns
        return rtobs.publish("orders")

    quick, general = _both_ways(open_hop, monkeypatch)
    assert (quick[0], general[0]) == ([True], [False])
    assert quick[1:] == general[1:]


TENANTS = st.sampled_from(("", "acme", "a-b_c", "x" * 96))
LEDGERS = st.sampled_from(("", "00000000" + "A" * 28, "not-one"))


@st.composite
def _messages(draw: st.DrawFn) -> Message:
    """A message as leaves describe it, most of them plain."""
    journey = Journey(TRACE, draw(st.sampled_from((0, 1_799_999_000 * US))), 0)
    journey.tenant, journey.named = draw(TENANTS), draw(st.booleans())
    journey.region = draw(st.sampled_from(("", "", "eu")))
    sent_us = 1_800_000_000 * US - draw(st.sampled_from((0, 5, 3 * US, -4, 40 * 86_400 * US)))
    headers = write(
        journey, TRACE, SPAN, draw(st.integers(0, 3)), sent_us, attempt=draw(st.integers(1, 255)), ledger=draw(LEDGERS),
        tracestate=draw(st.sampled_from(("", "", "vendor=1"))),
    )  # fmt: skip
    message = Message("memory", "orders", headers, "orders.eu", "7", native=object())
    message.delivery_count = draw(st.integers(1, 3))
    message.trust = draw(st.sampled_from(("trusted", "trusted", "link", "ignore")))
    message.replay = draw(st.sampled_from((False, False, True)))
    message.manual = draw(st.booleans())
    return message


@ALIKE
@given(message=_messages())
def test_a_plain_consume_is_a_consume(telemetry, clock, monkeypatch, message):
    """Record, headers, ledger and context of a handled message are the same by both ways, whatever it carries."""
    monkeypatch.setattr(type(engine.runtime), "describe", lambda _self, _native: message)
    quick, general = _both_ways(lambda: rtobs.consume("orders.*", message), monkeypatch)
    assert general[0] in ([False], [])
    assert quick[1:] == general[1:]


def test_the_messages_of_most_systems_take_the_plain_way(telemetry, clock, monkeypatch):
    """What one of ours has published, with a tenant or without, is read in the plain way."""
    for tenant in ("", "acme"):
        with rtobs.publish("orders") as out:
            out.segment(tenant=tenant)
            headers = out.headers
        message = Message("memory", "orders", headers, native=object())
        monkeypatch.setattr(type(engine.runtime), "describe", lambda _self, _native, message=message: message)
        quick, _ = _both_ways(lambda message=message: rtobs.consume("orders", message), monkeypatch)
        assert quick[0] == [True]


@given(
    start_ms=st.integers(1_600_000_000_000, 2_000_000_000_000), waited_ms=st.integers(-10, 1 << 24),
    number=st.integers(1, (1 << 64) - 1), name=st.sampled_from(("orders", "", "x" * 50, "a b")),
)  # fmt: skip
def test_the_first_entry_of_a_ledger_is_an_entry(start_ms, waited_ms, number, name):
    """What is written for a journey's first send in one piece is what is written for any other."""
    known_as, sent = label("shop", "", name), f"{TRACE}-{number:016x}"
    start_ns, now_ns = start_ms * US + 17, (start_ms + waited_ms) * US + 18
    general = append("", "", sent, CODES["publish"], f"{number:016x}", start_ns, now_ns, now_ns, 0, known_as)
    assert first(known_as, sent, CODES["publish"], f"{number:016x}", start_ns, now_ns) == general


def test_a_hop_that_is_current_no_more_is_ended_by_its_with(telemetry):
    """A block in which somebody has changed the context ends its hop all the same, and no other."""
    with rtobs.publish("orders") as other:
        around = engine.get_current()
        attach(Context())
        with rtobs.publish("payments") as hop:
            attach(Context())
        assert hop._record.ended
        assert not other._record.ended
        attach(around)
    assert other._record.ended


def test_one_operation_may_be_entered_by_many(telemetry):
    """Blocks of one object inside one another end each its own hop."""
    operation = rtobs.accept("/orders")
    with operation as outer:
        attached = engine.get_current()
        with operation as inner:
            assert inner._record.parent is outer._record
        assert (inner._record.ended, outer._record.ended) == (True, False)
        assert engine.get_current() == attached
    assert outer._record.ended
