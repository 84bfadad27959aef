"""The table of endings: every row of it, and what holds for all inputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs._hop import conclude
from rtobs._journey.outcome import PERMANENT, ErrorCategory, Outcome

OK, FAILED, REJECTED, RETRIED = Outcome.OK, Outcome.FAILED, Outcome.REJECTED, Outcome.RETRIED
DEAD, DROPPED, EXPIRED, CANCELLED = Outcome.DEAD_LETTERED, Outcome.DROPPED, Outcome.EXPIRED, Outcome.CANCELLED
TRANSPORT, RECIPIENT = ErrorCategory.TRANSPORT, ErrorCategory.RECIPIENT

SETTLEMENTS = ["", "acked", "requeued", "rejected", "terminated", "retried"]
REASONS = {"", "tries_used_up", "terminated", "rejected", "rejected_no_dlx_known", "cancelled"}

maybe = st.none() | st.booleans()
categories = st.none() | st.sampled_from(ErrorCategory)
outcomes = st.none() | st.sampled_from(Outcome)
handlings = st.fixed_dictionaries(
    {
        "explicit": outcomes, "settlement": st.sampled_from(SETTLEMENTS), "manual": st.booleans(),
        "failed": st.booleans(), "cancelled": st.booleans(), "category": categories,
        "last_delivery": st.booleans(), "dead_letter": maybe,
    }
)  # fmt: skip
attempts = st.fixed_dictionaries(
    {
        "result": st.sampled_from(["ok", "failed", "cancelled"]), "explicit": outcomes, "category": categories,
        "settled": st.sampled_from(Outcome), "explicit_message": outcomes,
    }
)  # fmt: skip


def settle(**facts: Any) -> Outcome:
    """Conclude a message that was handled without trouble, but for *facts*."""
    plain = {
        "explicit": None, "settlement": "", "manual": True, "failed": "category" in facts, "cancelled": False,
        "category": None, "last_delivery": False, "dead_letter": None,
    }  # fmt: skip
    return conclude.settle(**{**plain, **facts})[0]


def deliver(result: str, settled: Outcome = OK, **facts: Any) -> Outcome | None:
    """Conclude a delivery whose message ended as *settled*."""
    plain = {"explicit": None, "category": None, "explicit_message": None}
    return conclude.deliver(**{**plain, "result": result, "settled": settled, **facts})


# How a message ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, OK),
        ({"settlement": "acked"}, OK),
        ({"settlement": "acked", "category": TRANSPORT}, FAILED),
        ({"settlement": "acked", "category": RECIPIENT}, REJECTED),
        ({"manual": False, "category": TRANSPORT}, FAILED),
        ({"manual": False, "category": RECIPIENT}, REJECTED),
        ({"category": TRANSPORT}, RETRIED),
        ({"category": RECIPIENT}, RETRIED),
        ({"category": TRANSPORT, "last_delivery": True}, DEAD),
        ({"category": TRANSPORT, "last_delivery": True, "dead_letter": False}, FAILED),
        ({"settlement": "requeued"}, RETRIED),
        ({"settlement": "retried"}, RETRIED),
        ({"settlement": "requeued", "last_delivery": True}, DEAD),
        ({"settlement": "requeued", "last_delivery": True, "dead_letter": False}, FAILED),
        ({"settlement": "rejected", "dead_letter": True}, DEAD),
        ({"settlement": "rejected", "last_delivery": True}, DEAD),
        ({"settlement": "terminated"}, DEAD),
        ({"settlement": "rejected", "dead_letter": False}, FAILED),
        ({"settlement": "rejected", "dead_letter": False, "last_delivery": True}, FAILED),
        ({"settlement": "rejected"}, DROPPED),
        ({"cancelled": True}, RETRIED),
        ({"explicit": EXPIRED, "settlement": "acked", "category": TRANSPORT}, EXPIRED),
    ],
    ids=str,
)
def test_a_row_of_the_table_for_messages(facts, expected):
    """Each combination of settlement, failure and dead-letter target ends a message as the design's table says."""
    assert settle(**facts) is expected


def test_a_message_dropped_for_want_of_a_known_target_says_so():
    """A rejection with no dead-letter target known is `dropped` with a reason that names the cause."""
    found = conclude.settle(
        explicit=None, settlement="rejected", manual=True, failed=True, cancelled=False, category=TRANSPORT,
        last_delivery=False, dead_letter=None,
    )  # fmt: skip
    assert found == (DROPPED, "rejected_no_dlx_known")


@given(handlings)
def test_every_handling_has_one_end(facts):
    """Whatever is seen, a message has one end, with one of a closed set of reasons, the same when asked again."""
    outcome, reason = conclude.settle(**facts)
    assert outcome in Outcome
    assert reason in REASONS
    assert conclude.settle(**facts) == (outcome, reason)
    if facts["explicit"] is None:
        assert outcome not in (CANCELLED, EXPIRED)  # these two are only ever said


@given(handlings, st.sampled_from(Outcome))
def test_an_explicit_outcome_beats_all_that_is_seen(facts, said):
    """What user code says is the end, whatever the settlement, the exception and the broker's rules are."""
    assert conclude.settle(**{**facts, "explicit": said}) == (said, "")


@given(handlings, st.booleans(), st.booleans(), categories)
def test_a_settlement_that_gives_back_beats_the_exception(facts, failed, cancelled, category):
    """Where the broker was told to requeue, reject or terminate, it does not matter what was raised."""
    if facts["settlement"] in ("", "acked"):
        facts["settlement"] = "requeued"
    other = {**facts, "failed": failed, "cancelled": cancelled, "category": category}
    assert conclude.settle(**facts) == conclude.settle(**other)


@given(handlings)
def test_nothing_to_settle_is_as_if_acked(facts):
    """Where nobody settles by hand, a hop without settlement ends as if the message had been acked."""
    unsettled = {**facts, "settlement": "", "manual": False}
    assert conclude.settle(**unsettled) == conclude.settle(**{**facts, "settlement": "acked"})


@given(handlings)
def test_no_exception_and_no_settlement_is_presumed_acked(facts):
    """Where messages are settled by hand, a hop that ends quietly counts as acked."""
    quiet = {**facts, "failed": False, "cancelled": False}
    presumed = conclude.settle(**{**quiet, "settlement": ""})
    assert presumed == conclude.settle(**{**quiet, "settlement": "acked"})


@given(handlings)
def test_a_message_that_comes_back_has_no_end_unless_it_was_the_last_time(facts):
    """`retried` is said only of a message that is given back, and never at its last declared delivery."""
    facts["explicit"] = None
    outcome, _ = conclude.settle(**facts)
    given_back = facts["settlement"] in ("requeued", "retried")
    presumed_back = not facts["settlement"] and facts["manual"] and (facts["failed"] or facts["cancelled"])
    if outcome is RETRIED:
        assert given_back or presumed_back
        assert not facts["last_delivery"] or facts["cancelled"]
    else:
        assert not (given_back or presumed_back) or facts["last_delivery"]


@given(handlings)
def test_without_a_dead_letter_target_nothing_is_dead_lettered(facts):
    """Where the queue is known to have no dead-letter target, no message ends as dead-lettered, unless terminated."""
    facts["explicit"], facts["dead_letter"] = None, False
    if conclude.settle(**facts)[0] is DEAD:
        assert facts["settlement"] == "terminated"


# How a delivery ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "facts", "expected"),
    [
        ("ok", {}, OK),
        ("ok", {"settled": FAILED}, OK),
        ("failed", {"category": TRANSPORT, "settled": RETRIED}, None),
        ("failed", {"category": RECIPIENT, "settled": RETRIED}, None),
        ("failed", {"category": TRANSPORT}, FAILED),
        ("failed", {"category": TRANSPORT, "settled": FAILED}, FAILED),
        ("failed", {"category": RECIPIENT}, REJECTED),
        ("failed", {"category": TRANSPORT, "settled": DEAD}, DEAD),
        ("failed", {"category": RECIPIENT, "settled": DEAD}, DEAD),
        ("failed", {"category": TRANSPORT, "settled": DROPPED}, DROPPED),
        ("cancelled", {}, None),
        ("cancelled", {"settled": DEAD}, None),
        ("failed", {"explicit": DROPPED, "settled": RETRIED}, DROPPED),
        ("failed", {"explicit": FAILED, "settled": RETRIED}, None),
        ("failed", {"explicit": FAILED}, FAILED),
        ("failed", {"category": TRANSPORT, "settled": REJECTED, "explicit_message": REJECTED}, REJECTED),
        ("failed", {"category": RECIPIENT, "settled": FAILED, "explicit_message": FAILED}, FAILED),
        ("failed", {"category": TRANSPORT, "settled": EXPIRED, "explicit_message": EXPIRED}, EXPIRED),
    ],
    ids=str,
)
def test_a_row_of_the_table_for_deliveries(result, facts, expected):
    """Each combination of the last attempt and its message's end concludes a delivery as the design's table says."""
    assert deliver(result, **facts) is expected


@given(attempts)
def test_a_delivery_ends_once_or_is_still_owed(facts):
    """A delivery has one outcome or none yet; `retried` is never one."""
    found = conclude.deliver(**facts)
    assert found is None or found in Outcome
    assert found is not RETRIED
    assert conclude.deliver(**facts) is found


@given(attempts, st.sampled_from(Outcome))
def test_a_delivery_that_worked_is_ok_whatever_becomes_of_its_message(facts, settled):
    """Unless user code said otherwise, a delivery is `ok` exactly where its last attempt worked."""
    found = conclude.deliver(**{**facts, "settled": settled})
    if facts["explicit"] not in conclude.FINAL:
        assert (found is OK) == (facts["result"] == "ok")


@given(attempts)
def test_a_failed_attempt_whose_message_comes_back_is_still_owed(facts):
    """While the message will come back nothing is lost yet: a failed attempt concludes nothing."""
    facts.update(settled=RETRIED, result="failed", explicit=None)
    assert conclude.deliver(**facts) is None


@given(attempts)
def test_a_failed_attempt_whose_message_is_gone_is_never_owed(facts):
    """Once the message is gone for good, a failed attempt has an outcome, and a permanent one is nobody's bug."""
    facts.update(result="failed", explicit=None, explicit_message=None)
    if facts["settled"] is RETRIED:
        facts["settled"] = OK
    found = conclude.deliver(**facts)
    assert found is not None
    if facts["settled"] in (OK, FAILED):
        assert found is (REJECTED if facts["category"] in PERMANENT else FAILED)


def test_the_tables_have_no_gap():
    """Every combination of every value is answered: the two functions are total."""
    for explicit, settlement, manual, failed, cancelled, category, last, dead in itertools.product(
        [None, *Outcome], SETTLEMENTS, [True, False], [True, False], [True, False], [None, *ErrorCategory],
        [True, False], [None, True, False],
    ):  # fmt: skip
        outcome, _ = conclude.settle(
            explicit=explicit, settlement=settlement, manual=manual, failed=failed, cancelled=cancelled,
            category=category, last_delivery=last, dead_letter=dead,
        )  # fmt: skip
        assert isinstance(outcome, Outcome)
    for result, explicit, category, settled, message in itertools.product(
        ["ok", "failed", "cancelled"], [None, *Outcome], [None, *ErrorCategory], Outcome, [None, *Outcome]
    ):
        found = conclude.deliver(
            result=result, explicit=explicit, category=category, settled=settled, explicit_message=message
        )
        assert found is None or isinstance(found, Outcome)
