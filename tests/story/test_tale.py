"""A story told from spans: what it says is what was done, whatever was exported, rebuilt, twice or damaged."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtobs
from rtobs._journey import ledger
from rtobs._journey.ledger_entries import sent_span_id
from rtobs._telemetry.completion import rebuild
from rtobs.errors import ConfigError
from rtobs.integrations.memory import Broker
from rtobs.story.pick import NotFoundError, Pick
from rtobs.story.spans import spans
from rtobs.story.tale import tell
from tests.story.support import with_base64, with_hex
from tests.support.pages import ROOT
from tests.support.telemetry import telemetry
from tests.support.timing import eventually

__all__ = ["telemetry"]

SCHEMA = json.loads((ROOT / "src/rtobs/story/story.schema.json").read_text())


def story(correlation_id, *groups):
    """Tell a story of what is exported; its data must fit the schema."""
    found = [span for group in groups for span in spans(group)]
    tale = tell(correlation_id, [span for span in found if span.text("rtobs.correlation_id") in ("", correlation_id)])
    assert tale is not None
    jsonschema.validate(json.loads(json.dumps(tale.data(), allow_nan=False)), SCHEMA)
    return tale


async def deliver_over_a_broker(fails):
    """Accept a message, send it over a broker and try to deliver it; the first *fails* tries fail."""
    broker = rtobs.wrap(Broker())
    tried = []

    @rtobs.consume("notify.push")
    async def handle(message):
        with rtobs.stage("normalize"):
            pass
        with rtobs.deliver("push", "fcm", key="u1"):
            tried.append(1)
            if len(tried) <= fails:
                raise TimeoutError("no answer")

    stop = broker.consume("notify.push", handle)
    with rtobs.accept("/notify") as hop:
        hop.segment(tenant="acme", region="eu")
        hop.intend("push", "u1")
        with rtobs.publish("notify.push", channel="push", key="u1"):
            await broker.publish("notify.push", b"hello")
    del stop
    await eventually(lambda: len(tried) > fails)
    await broker.close()
    return hop.correlation_id


async def test_the_way_of_a_message_that_was_delivered_at_the_second_try(telemetry):
    """Accept, send, both handlings and tries are told in order, and that it was accepted after a failed try."""
    correlation_id = await deliver_over_a_broker(1)
    tale = story(correlation_id, with_hex(telemetry.spans()))
    told = [(row.depth, row.hop, row.name, row.outcome) for row in tale.rows]
    assert told[:2] == [(0, "accept", "/notify", "ok"), (1, "publish", "notify.push", "ok")]
    assert [row.outcome for row in tale.rows if row.hop == "deliver"] == ["failed", "ok"]
    assert [row.attempt for row in tale.rows if row.hop == "consume"] == [1, 2]
    assert ("stage", "normalize") in [(row.hop, row.name) for row in tale.rows]
    (delivery,) = tale.deliveries
    assert (delivery.channel, delivery.provider, delivery.tries, delivery.failed_tries) == ("push", "fcm", 2, 1)
    assert (delivery.reached, delivery.outcome, delivery.error_category) == ("accepted", "ok", "")
    assert tale.answer.startswith("push by fcm: accepted by the provider after ")
    assert tale.answer.endswith(", 1 of 2 tries failed before.")
    assert (tale.tenant, tale.region, tale.missing, tale.rebuilt.spans) == ("acme", "eu", 0, 0)
    waits = [row.waited for row in tale.rows if row.hop == "consume"]
    assert all(wait is not None and wait >= 0 for wait in waits)


async def test_the_order_and_form_of_what_is_read_do_not_matter(telemetry):
    """Hexadecimal or base64, one request or one for each span, in any order and twice: the story is the same."""
    correlation_id = await deliver_over_a_broker(1)
    exported = list(telemetry.spans())
    expected = story(correlation_id, with_hex(exported))
    assert story(correlation_id, {"trace": with_base64(exported)}) == expected
    single = [with_hex([span]) for span in exported]
    random.Random(1).shuffle(single)
    assert story(correlation_id, *single, {"result": with_hex(exported)}) == expected


def test_a_message_that_failed_for_good(telemetry):
    """A delivery whose tries are used up is told with its outcome, category and the exception's words."""
    with pytest.raises(TimeoutError), rtobs.accept("/x") as hop, rtobs.deliver("sms", "twilio"):
        raise TimeoutError("no answer")
    tale = story(hop.correlation_id, with_hex(telemetry.spans()))
    assert tale.answer.startswith("sms by twilio: failed after 1 try (timeout")
    (row,) = [row for row in tale.rows if row.hop == "deliver"]
    assert row.error == "TimeoutError: no answer"
    assert tale.kept in ("", "failed")


def test_rejected_before_any_delivery(telemetry):
    """A message that was refused before anybody tried to deliver it was not sent."""
    with rtobs.consume("orders", headers={}, trust="trusted") as hop:
        hop.outcome(rtobs.Outcome.REJECTED, "bad_schema", category=rtobs.ErrorCategory.VALIDATION)
    tale = story(hop.correlation_id, with_hex(telemetry.spans()))
    assert tale.answer == "Not sent: consume orders ended rejected (validation) before any delivery was tried."


def test_two_deliveries_of_one_channel_end_each_for_itself(telemetry):
    """Two recipients of one message have a delivery each, of which one may fail."""
    with rtobs.consume("orders", headers={}, trust="trusted") as hop:
        with pytest.raises(ValueError, match="gone"), rtobs.deliver("push", "fcm", key="a"):
            raise ValueError("gone")
        with rtobs.deliver("push", "fcm", key="b"):
            pass
    tale = story(hop.correlation_id, with_hex(telemetry.spans()))
    assert len({delivery.intent_id for delivery in tale.deliveries}) == 2
    assert [(one.reached, one.outcome) for one in tale.deliveries] == [("", "failed"), ("accepted", "ok")]


def test_a_receipt_says_how_far_it_got(telemetry):
    """A receipt, in a trace of its own, takes the delivery to the step that it proves."""
    rtobs.configure(wire_key=b"k" * 32, logs=print)
    with rtobs.accept("/x") as hop, rtobs.deliver("in_app", "ws") as attempt:
        token = attempt.receipt_token()
    with rtobs.receipt("displayed", token):
        pass
    tale = story(hop.correlation_id, with_hex(telemetry.spans()))
    assert "in_app by ws: displayed to the user" in tale.answer
    assert len(tale.traces) == 2
    assert [row.hop for row in tale.rows] == ["accept", "deliver", "receipt"]


# Rebuilt spans -------------------------------------------------------------------------------------------------------


def ledger_of(steps, correlation_id):
    """Write the ledger of so many steps; return it and the sender that its message comes from."""
    trace, received, text = f"{correlation_id:032x}", "", ""
    now = 1_790_000_000_000_000_000
    for index in range(steps):
        sent = f"{trace}-{sent_span_id(index + 1, 1):016x}"
        label = ledger.label(f"service-{index}", f"queue-{index}", f"queue-{index + 1}")
        kind = ledger.CODES["consume" if index else "accept"]
        text = ledger.append(
            text, received, sent, kind, f"{index + 1:016x}", now, now + 5_000_000, now + 5_000_000, 1, label
        )
        received, now = sent, now + 20_000_000
    return text, int(received[33:], 16)


def test_what_was_rebuilt_is_told_and_from_how_many_bytes(telemetry):
    """Rebuilt steps are marked, in one trace with what was exported, and their bytes are counted."""
    with rtobs.accept("/x") as hop, pytest.raises(TimeoutError), rtobs.deliver("push", "fcm"):
        raise TimeoutError
    name = hop.correlation_id
    text, sender = ledger_of(5, int(name, 16))
    rebuilt = rebuild(ledger.read(text, int(name, 16), sender, int(name, 16)), name)
    tale = story(name, with_hex(telemetry.spans()), with_hex(rebuilt), with_base64(rebuilt))
    assert (tale.rebuilt.spans, tale.rebuilt.steps, tale.rebuilt.bytes) == (10, 5, 105)
    assert tale.rebuilt.duplicates == 10
    marked = [row for row in tale.rows if row.rebuilt]
    assert [row.service for row in marked[::2]] == [f"service-{index}" for index in range(5)]
    assert [row.waited for row in marked if row.hop == "consume"] == [pytest.approx(0.015)] * 4
    assert {row.outcome for row in marked} == {""}
    assert [row.depth for row in marked] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_a_real_span_beats_a_rebuilt_one(telemetry):
    """Where a step was exported and rebuilt, the exported span is told and the other counted."""
    with rtobs.accept("/real") as hop:
        pass
    name = hop.correlation_id
    (real,) = telemetry.spans()
    trace, span = int(name, 16), real.context.span_id
    sent = f"{name}-{sent_span_id(span, 1):016x}"
    start = real.start_time
    label = ledger.label("s", "/real", "q")
    text = ledger.append("", "", sent, ledger.CODES["accept"], f"{span:016x}", start, start, start, 1, label)
    rebuilt = with_hex(rebuild(ledger.read(text, trace, int(sent[33:], 16), trace), name))
    for groups in ([with_hex([real]), rebuilt], [rebuilt, with_hex([real])]):
        tale = story(name, *groups)
        assert [(row.hop, row.rebuilt) for row in tale.rows] == [("accept", False), ("publish", True)]
        assert (tale.rebuilt.duplicates, tale.rebuilt.bytes) == (1, 21)


# Anything at all -----------------------------------------------------------------------------------------------------

NAMES = (
    "resourceSpans", "scopeSpans", "spans", "traceId", "resource", "attributes", "key", "trace", "value", "stringValue",
    "intValue", "events", "links", "status", "spanId", "batches",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=300)
@given(JSON)
def test_any_json_at_all_is_read(found):
    """JSON that is no trace, or half of one, gives no spans or few, and never raises."""
    for span in spans(found):
        assert len(span.trace_id) == 32


@settings(max_examples=100)
@given(st.integers(0, 1 << 40), st.integers(1, 12))
def test_spans_in_any_relation_are_told_once_each(seed, count):
    """Parents that are missing, in a ring, in another trace or a span's own never lose a span or stop the story."""
    drawn = random.Random(seed)
    ids = [f"{drawn.randrange(1, 6):016x}" for _ in range(count)]

    def raw(one):
        facts = {"rtobs.hop": drawn.choice(["consume", "deliver"]), "rtobs.channel": "push"}
        return {
            "traceId": f"{drawn.randrange(1, 3):032x}",
            "spanId": one,
            "parentSpanId": drawn.choice([*ids, "", "00000000000000aa"]),
            "startTimeUnixNano": str(drawn.randrange(10**9)),
            "endTimeUnixNano": drawn.randrange(10**9),
            "links": [{"traceId": f"{1:032x}", "spanId": drawn.choice(ids)}],
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in facts.items()],
            "events": [{"name": "rtobs.delivery", "attributes": []}],
        }

    group = {"resourceSpans": [{"scopeSpans": [{"spans": [raw(one) for one in ids]}]}]}
    tale = story("0" * 31 + "1", group)
    assert len(tale.rows) == len({span.key for span in spans(group)})


# Which journey -------------------------------------------------------------------------------------------------------


def hop_of(correlation_id, trace_id, span_id="00000000000000aa"):
    attributes = [{"key": "rtobs.correlation_id", "value": {"stringValue": correlation_id}}] if correlation_id else []
    span = {"traceId": trace_id, "spanId": span_id, "startTimeUnixNano": "1", "attributes": attributes}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


ONE, TWO, OTHER = "0199aa" + "1" * 26, "0199ab" + "2" * 26, "f" * 32


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(ONE, ONE), (ONE.upper(), ONE), ("0199aa", ONE), ("0199-ab22", TWO), ("ffff", TWO), (OTHER, TWO)],
)
def test_the_first_digits_are_enough(wanted, found):
    """A journey is found by its id, the beginning of it, or a trace of it."""
    pick = Pick(wanted)
    pick.see([*spans(hop_of(ONE, ONE)), *spans(hop_of(TWO, OTHER))])
    assert pick.journey() == found
    mine = list(pick.of(spans([hop_of(ONE, ONE), hop_of(TWO, OTHER), hop_of("", OTHER, "00000000000000ab")])))
    assert len(mine) == (2 if found == TWO else 1)


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ("0199", ConfigError, "beginning of 2 journeys"),
        ("abcd", NotFoundError, "begins with abcd"),
        ("0" * 32, NotFoundError, "no span of a journey whose id has"),
        ("019", ConfigError, "no correlation id"),
        ("order-17", ConfigError, "no correlation id"),
        ("0" * 33, ConfigError, "no correlation id"),
    ],
)
def test_what_is_not_one_journey_is_said(wanted, error, words):
    """Several journeys, none, or no id at all: each is said, with what to do."""

    def chosen():
        pick = Pick(wanted)
        pick.see([*spans(hop_of(ONE, ONE)), *spans(hop_of(TWO, TWO))])
        return pick.journey()

    with pytest.raises(error, match=words):
        chosen()
