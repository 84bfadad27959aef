"""Consistent head sampling: the specification's numbers, one decision for all of a journey, nobody's state lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from rtobs._journey import randomness, tracestate
from rtobs._journey.carrier import Parent, extract
from rtobs._telemetry import consistent
from rtobs._telemetry.consistent import ALL, DEFAULT, HIGH_VALUE, MASK, NONE, JourneySampler, Rates, decide, threshold

RANDOMNESS = st.integers(0, MASK)
RATES = st.floats(0, 1)
TABLE = {
    1: "0", 2: "8", 3: "aaab", 4: "c", 5: "cccd", 8: "e", 10: "e666", 16: "f", 100: "fd70a", 1000: "ffbe77",
    10_000: "fff9724", 100_000: "ffff583a", 1_000_000: "ffffef39",
}  # fmt: skip
"""1-in-N sampling and its threshold in four digits, from the specification's table."""


@pytest.mark.parametrize(("of", "text"), TABLE.items())
def test_thresholds_are_those_of_the_specification(of, text):
    """A rate's threshold, and how it is written, are what the specification lists."""
    assert tracestate.th(threshold(1 / of)) == text
    assert consistent.adjusted_count(threshold(1 / of)) == pytest.approx(of, rel=1e-4)


@given(RATES, RATES, RANDOMNESS)
def test_a_higher_rate_keeps_all_that_a_lower_one_keeps(first, second, drawn):
    """What is kept at one rate is kept at every higher one; 0 keeps nothing, 1 everything."""
    low, high = sorted((first, second))
    assert decide(drawn, threshold(high)) or not decide(drawn, threshold(low))
    assert not decide(drawn, threshold(0))
    assert decide(drawn, threshold(1))


@given(st.floats(1e-12, 1))
@example(0.01)
def test_a_threshold_is_as_good_as_its_rate(rate):
    """The share that a threshold keeps is its rate to a part in a thousand; it survives being written and read."""
    limit = threshold(rate)
    assert (NONE - limit) / NONE == pytest.approx(rate, rel=1e-3)
    assert tracestate.limit_of(f"ot=th:{tracestate.th(limit)}") == limit


KEYS = st.from_regex(r"[a-z][a-z0-9_*/-]{0,8}", fullmatch=True).filter(lambda key: key != "ot")
VALUES = st.from_regex(r"[!-+\-.-<>-~]{1,8}", fullmatch=True)
FOREIGN = st.dictionaries(KEYS, VALUES, max_size=5).map(
    lambda pairs: [f"{key}={value}" for key, value in pairs.items()]
)


@given(
    before=FOREIGN, after=FOREIGN, drawn=st.none() | RANDOMNESS, rate=st.none() | RATES, sampled=st.booleans(),
    trace_id=st.integers(1, (1 << 128) - 1),
)  # fmt: skip
def test_children_keep_what_is_not_ours_and_no_th_that_cannot_be_true(*, before, after, drawn, rate, sampled, trace_id):
    """Foreign members keep their order, rv stays, th stays exactly where it agrees with the sampled flag."""
    keys = {member.partition("=")[0] for member in before}
    after = [member for member in after if member.partition("=")[0] not in keys]
    limit = None if rate is None else min(threshold(rate), MASK)
    own = [f"th:{tracestate.th(limit)}"] if limit is not None else []
    own += [f"rv:{drawn:014x}"] if drawn is not None else []
    members = [*before, *(["ot=" + ";".join(own)] if own else []), *after]
    state = tracestate.child_state(",".join(members), trace_id, sampled=sampled)
    assert [member for member in state.split(",") if member and not member.startswith("ot=")] == [*before, *after]
    known = trace_id & MASK if drawn is None else drawn
    assert tracestate.randomness(trace_id, state) == known
    true = limit is not None and sampled and known >= limit
    assert tracestate.limit_of(state) == (limit if true else None)
    if drawn is not None:
        assert tracestate.only_rv(state) == f"ot=rv:{drawn:014x}"
    assert TraceState.from_header([state]).to_header() == state


@settings(max_examples=500)
@given(st.text(max_size=200) | st.from_regex(r"(ot=)?(th:|rv:)[0-9a-fxyz;:,=]{0,20}", fullmatch=True))
def test_any_tracestate_at_all_is_read(state):
    """A tracestate that says nonsense never raises and never gives a threshold out of range."""
    limit = tracestate.limit_of(state)
    assert limit is None or 0 <= limit <= MASK
    assert 0 <= tracestate.randomness(7, state) <= MASK
    for sampled in (True, False):
        tracestate.child_state(state, 7, sampled=sampled)
    tracestate.root_state(5, explicit=9, tracestate=state)


def parent_of(state, *, sampled=True, trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736):
    context = SpanContext(
        trace_id, 0x00F067AA0BA902B7, is_remote=True, trace_flags=TraceFlags(int(sampled)),
        trace_state=TraceState.from_header([state]),
    )  # fmt: skip
    return trace.set_span_in_context(NonRecordingSpan(context))


def test_a_childs_tracestate_keeps_vendor_and_rv_with_a_right_th():
    """Of a remote parent's ``ot=th:…;rv:…,vendor=1`` an SDK span keeps all three, and its attributes, through us."""
    tracer = TracerProvider(sampler=JourneySampler({DEFAULT: 0.01})).get_tracer("neighbour")
    state = "ot=th:e;rv:ff000000000001,vendor=1"
    span = tracer.start_span("query", parent_of(state), attributes={"db": "x"})
    assert span.get_span_context().trace_state.to_header() == state
    assert span.attributes == {"db": "x"}
    wrong = tracer.start_span("query", parent_of("ot=th:e;rv:00000000000001,vendor=1"))
    assert wrong.get_span_context().trace_state.to_header() == "ot=rv:00000000000001,vendor=1"
    dropped = tracer.start_span("query", parent_of(state, sampled=False))
    assert not dropped.get_span_context().trace_flags.sampled
    assert dropped.get_span_context().trace_state.to_header() == "ot=rv:ff000000000001,vendor=1"


def test_dropped_attributes_come_back():
    """A decision to drop returns attributes and state too, for samplers that record what is dropped."""
    result = JourneySampler({DEFAULT: 0.0}).should_sample(None, 5, "x", attributes={"tenant": "acme"})
    assert result.decision is Decision.DROP
    assert result.attributes == {"tenant": "acme"}


def test_one_percent_is_one_percent_and_counts_add_up():
    """Of 100,000 roots 1 % are sampled, and the counts they stand for add up to all of them."""
    drawn = random.Random(7)
    sampler = JourneySampler({DEFAULT: 0.01})
    total = kept = 0.0
    for _ in range(100_000):
        result = sampler.should_sample(None, drawn.getrandbits(128) | 1, "x")
        if result.decision is Decision.RECORD_AND_SAMPLE:
            kept += 1
            total += consistent.adjusted_count(tracestate.limit_of(result.trace_state.to_header()))
    assert 0.009 < kept / 100_000 < 0.011
    assert total == pytest.approx(100_000, rel=0.1)


@given(RANDOMNESS, RATES, st.integers(0, (1 << 72) - 1), st.integers(1, (1 << 128) - 1))
def test_restarted_and_linked_traces_decide_alike(journey, rate, bits, foreign):
    """A new trace of a journey is sampled as the first one was: its id carries the randomness, or ``rv`` does."""
    limit = threshold(rate)
    ours = randomness.trace_id_with(journey, bits)
    assert decide(tracestate.randomness(ours), limit) == decide(journey, limit)
    state = tracestate.root_state(limit, explicit=journey)
    assert decide(tracestate.randomness(foreign, state), limit) == decide(journey, limit)


def test_branches_of_a_fan_out_are_sampled_each_for_itself():
    """Of ten thousand branches about the rate's share is sampled, whatever became of their journey; always the same."""
    limit = threshold(0.1)
    for journey in (0, 1, MASK, 0x123456789ABCDE):
        drawn = [randomness.branch_randomness(journey, number) for number in range(33, 10_033)]
        assert len(set(drawn)) == len(drawn)
        assert 900 < sum(decide(one, limit) for one in drawn) < 1100
        assert drawn == [randomness.branch_randomness(journey, number) for number in range(33, 10_033)]


def test_names_that_are_not_random_give_randomness():
    """Journeys named by others, one after the other, are sampled by rate; the key decides which."""
    limit = threshold(0.1)
    names = [f"{number:032x}" for number in range(10_000)]
    kept = {name for name in names if decide(randomness.foreign_randomness(name, b"k" * 16), limit)}
    assert 900 < len(kept) < 1100
    assert kept != {name for name in names if decide(randomness.foreign_randomness(name), limit)}


def test_tier_before_channel_before_destination():
    """The most specific rate holds: a tenant's tier, then the channel, then destination or route, then default."""
    rates = Rates({DEFAULT: 0.0, "push": 0.5, "orders": 0.25, HIGH_VALUE: 0.75}, {"acme"})
    assert rates.limit("push", "orders", "acme") == threshold(0.75)
    assert rates.limit("push", "orders", "small") == threshold(0.5)
    assert rates.limit("sms", "orders") == threshold(0.25)
    assert rates.limit("sms", "other") == NONE
    assert rates.uniform is None
    assert Rates({}).uniform == ALL
    assert Rates({DEFAULT: 0.1}, {"acme"}).limit(tenant="acme") == ALL


def test_the_sdk_finds_it_by_name():
    """``OTEL_TRACES_SAMPLER=rtobs`` with a rate is our sampler; a rate that is none is refused."""
    (found,) = entry_points(group="opentelemetry_traces_sampler", name="rtobs")
    assert found.load()("0.01").rates.uniform == threshold(0.01)
    assert found.load()(None).rates.uniform == ALL
    for wrong in ("much", "1.5", "nan"):
        with pytest.raises(ValueError, match=r"could not convert|between 0 and 1"):
            found.load()(wrong)


_PROGRAM = """
from opentelemetry import propagate, trace
from opentelemetry.sdk._configuration import _OTelSDKConfigurator

_OTelSDKConfigurator().configure()
tracer = trace.get_tracer("a service without rtobs in its code")
print(sum(tracer.start_span("root").get_span_context().trace_flags.sampled for _ in range(2000)))
parent = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03",
    "tracestate": "ot=th:8;rv:ff000000000001,vendor=1",
}
child = tracer.start_span("child", propagate.extract(parent)).get_span_context()
print(child.trace_flags.sampled, child.trace_state.to_header())
"""


def test_a_process_with_nothing_but_the_sdk_samples_by_it():
    """By two environment variables alone an SDK samples its share, and children keep ``vendor``, ``rv`` and ``th``."""
    environment = {
        **os.environ, "OTEL_TRACES_SAMPLER": "rtobs", "OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
    }  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    sampled, child = ran.stdout.splitlines()
    assert 850 <= int(sampled) <= 1150  # six standard deviations
    assert child == "True ot=th:8;rv:ff000000000001,vendor=1"


def test_a_carriers_tracestate_is_what_the_functions_take():
    """What the carrier lets through of a remote tracestate is read by the sampler's functions as it came."""
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "ot=th:c;rv:d0000000000000,vendor=1",
    }
    found = extract(headers)
    assert isinstance(found.parent, Parent)
    assert tracestate.child_state(found.tracestate, found.parent.trace_id, sampled=True) == headers["tracestate"]
    assert tracestate.certain_state(found.tracestate) == "ot=th:0;rv:d0000000000000,vendor=1"
    assert tracestate.without_th(found.tracestate) == "ot=rv:d0000000000000,vendor=1"
