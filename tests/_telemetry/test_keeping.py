"""Which ended hops are kept: every bad ending, everything that broke a promise, and nothing of a healthy hop."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs._journey.journey import Journey
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._journey.record import DeliveryEnd, HopRecord
from rtobs._telemetry.keeping import REASONS, Keeping

NOW = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
BAD = {
    Outcome.FAILED: "failed", Outcome.DEAD_LETTERED: "dead_lettered", Outcome.EXPIRED: "expired",
    Outcome.REJECTED: "rejected",
}  # fmt: skip


def hop(kind="consume", name="orders", *, age=0.0, seconds=0.01, **fields):
    """Make an ended hop whose journey was *age* seconds old when it began."""
    record = HopRecord(kind, name)
    record.wall_ns, record.duration_ns, record.ended = NOW, int(seconds * SECOND), True
    record.journey = Journey("0199a1b2c3d47e5f8a6b7c8d9e0f1a2b", int(NOW // 1000 - age * 1e6))
    record.healthy, record.outcome = True, Outcome.OK
    for field, value in fields.items():
        setattr(record.journey if field in ("tenant", "kept") else record, field, value)
    return record


def bad(outcome, category=None, **fields):
    return hop(healthy=False, outcome=outcome, settled=outcome, category=category, **fields)


def ended(outcome, category=None):
    return DeliveryEnd(
        "push", "fcm", "accepted", outcome, category, "", False, "", "", None, promised_here=False, repeated=False,
        recovered=False,
    )  # fmt: skip


NOTHING_ASKED = Keeping({}, ())


@pytest.mark.parametrize(("outcome", "reason"), BAD.items())
def test_every_bad_ending_is_kept_under_its_own_name(outcome, reason):
    """A message that ended badly is kept, whether its handling says so or a delivery inside it."""
    assert NOTHING_ASKED.reason(bad(outcome)) == reason
    assert NOTHING_ASKED.reason(hop(healthy=False, delivery_ends=[ended(Outcome.OK), ended(outcome)])) == reason
    assert reason in REASONS


@pytest.mark.parametrize("category", [ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED])
def test_what_is_nobodys_fault_is_not_kept(category):
    """A recipient who is gone or has opted out is no failure of the system."""
    assert NOTHING_ASKED.reason(bad(Outcome.REJECTED, category)) == ""
    assert NOTHING_ASKED.reason(hop("deliver", "push", healthy=False, result="failed", category=category)) == ""
    assert NOTHING_ASKED.reason(hop(healthy=False, delivery_ends=[ended(Outcome.REJECTED, category)])) == ""


def test_a_failed_try_is_kept_although_its_message_comes_back():
    """An attempt that failed is kept as failed while its message is retried."""
    record = hop(
        "deliver", "push", healthy=False, result="failed", outcome=Outcome.FAILED, category=ErrorCategory.TIMEOUT
    )
    assert NOTHING_ASKED.reason(record) == "failed"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (hop(seconds=2.5), "slow"),
        (hop(seconds=1.5), ""),
        (hop(lag=2.5), "slow"),
        (hop(age=9.0), ""),  # a queue's limit is about the queue
        (hop("deliver", "push", channel="push", age=6.0), "slow"),
        (hop("deliver", "push", channel="push", age=4.0), ""),
        (hop("deliver", "push", channel="push", age=40 * 86_400.0), ""),  # a clock that is wrong
        (hop("deliver", "push", channel="push", age=-9.0), ""),
        (hop("deliver", "sms", channel="sms", seconds=8.0), "slow"),
        (hop("accept", "/notify", seconds=100.0), ""),
    ],
)
def test_slower_than_promised_by_hop_wait_or_age(record, reason):
    """What took longer than its queue's or channel's promise is slow: itself, its wait, or the journey so far."""
    assert Keeping({"orders": 2.0, "push": 5.0, "*deliver*": 7.0}, ()).reason(record) == reason


def test_a_message_that_stands_for_a_channel_is_judged_by_its_promise():
    """A worker that handles a push too late is slow although it never tried to deliver."""
    record = hop(age=6.0)
    record.journey.channel = "push"
    assert Keeping({"push": 5.0}, ()).reason(record) == "slow"


def test_high_value_asked_and_forwarded():
    """A high-value tenant, a word given to ``keep`` and a journey kept before are reasons, the nearest one first."""
    keeping = Keeping({}, {"acme"})
    assert keeping.reason(hop(tenant="acme")) == "high_value"
    assert keeping.reason(hop(tenant="small")) == ""
    assert NOTHING_ASKED.reason(hop(keep_reason="vip", tenant="acme")) == "vip"
    assert NOTHING_ASKED.reason(hop(kept="slow")) == "slow"
    assert NOTHING_ASKED.reason(bad(Outcome.EXPIRED, kept="slow")) == "expired"


@given(st.sampled_from(["accept", "publish", "consume", "deliver", "job", "receipt"]), st.floats(0, 4), st.floats(0, 4))
def test_a_healthy_hop_within_its_promises_is_never_kept(kind, seconds, lag):
    """No healthy hop within its promises of a tenant like others is kept, whatever its kind."""
    keeping = Keeping({"orders": 4.1, "push": 9.0}, {"acme"})
    assert keeping.reason(hop(kind, seconds=seconds, lag=lag, tenant="small")) == ""


@given(
    st.sampled_from(["accept", "publish", "consume", "job"]), st.sampled_from(["orders", "other"]), st.floats(0, 9),
    st.floats(0, 9), st.sampled_from(["", "acme", "small"]),
)  # fmt: skip
def test_the_short_way_says_what_the_long_one_does(kind, name, seconds, lag, tenant):
    """A healthy hop of which nothing unusual is known is judged by the same rules as every other."""
    keeping = Keeping({"orders": 4.0, "*consume*": 7.0}, {"acme"})
    record = hop(kind, name, seconds=seconds, lag=lag, tenant=tenant)
    assert record.rare is None
    assert keeping.reason(record) == keeping.own(record)


@pytest.mark.parametrize(
    ("keeping", "most"), [(NOTHING_ASKED, 30), (Keeping({"orders": 2.0, "push": 5.0}, {"acme"}), 75)]
)
def test_a_healthy_hop_costs_a_handful_of_bytecodes(keeping, most):
    """A healthy hop is let go within 30 bytecodes, or 75 where promises and high-value tenants are declared."""
    found = 0

    def trace(frame, event, argument):
        nonlocal found
        frame.f_trace_opcodes = True
        found += event == "opcode"
        return trace

    record = hop(tenant="small", lag=0.5)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        keeping.reason(record)
    finally:
        sys.settrace(before)
    assert found <= most
