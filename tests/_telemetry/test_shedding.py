"""The budget of a mass outage: under its ceiling, with the first of every kind, by one rule for a journey's hops."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from rtobs._telemetry.consistent import MASK
from rtobs._telemetry.shedding import CEILING, FIRST, FULL, MOST_KEYS, Shedding

OUTAGE = ("push", "fcm", "unavailable")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_an_outage_stays_under_its_budget_and_its_start_is_there():
    """Of 500 failures a second the first thousand are kept, then about fifty a second; what is shed adds up."""
    clock, drawn, found = Clock(), random.Random(3), Counter()
    shedding = Shedding(clock)
    first = []
    for _ in range(30_000):
        verdict = shedding.admit(OUTAGE, drawn.getrandbits(56), 3)
        found[verdict.shed] += 1
        first.append(verdict.shed)
        clock.now += 0.002
    assert first[:1000] == [""] * 1000
    assert found[""] + found[FULL] == 30_000
    assert 2500 < found[""] <= 1000 + 50 * 60 + 1
    assert all("" in first[500 * second : 500 * second + 2500] for second in range(0, 55, 5))


def test_hops_of_one_journey_agree():
    """Two processes under the same outage keep mostly the same journeys, for both ask the journey's randomness."""
    clock, drawn = Clock(), random.Random(5)
    processes = [Shedding(clock, rate=50.0), Shedding(clock, rate=50.0)]
    both = either = 0
    for number in range(20_000):
        journey = drawn.getrandbits(56)
        kept = [not one.admit(OUTAGE, journey).shed for one in processes]
        if number > 2000:
            both += all(kept)
            either += any(kept)
        clock.now += 0.002
    assert either > 500
    assert both / either > 0.8


def test_what_is_kept_of_a_kind_stands_for_all_of_it():
    """The threshold of each verdict says how many it stands for: the sum is near the number of failures."""
    clock, drawn = Clock(), random.Random(11)
    shedding, total = Shedding(clock, rate=50.0, burst=200.0), 0.0
    for _ in range(30_000):
        verdict = shedding.admit(OUTAGE, drawn.getrandbits(56))
        if not verdict.shed:
            total += 1 / (1 - verdict.limit / (MASK + 1))
        clock.now += 0.002
    assert 15_000 < total < 45_000


def test_the_first_of_a_kind_is_kept_even_at_the_ceiling():
    """While one outage uses up the ceiling, the first failures of every other kind are kept."""
    clock, drawn = Clock(), random.Random(7)
    shedding = Shedding(clock, burst=1e6, rate=1e6, ceiling=100.0)
    found = Counter(shedding.admit(OUTAGE, drawn.getrandbits(56)).shed for _ in range(5000))
    assert found[""] <= 100
    assert found[CEILING] == 5000 - found[""]
    for number in range(20):
        kinds = [shedding.admit(("sms", f"p{number}", "timeout"), drawn.getrandbits(56)).shed for _ in range(FIRST)]
        assert kinds == [""] * FIRST


def test_a_kept_journey_goes_on_into_debt_but_not_without_end():
    """Hops that follow a kept one find room beyond the ceiling, as much again, and no more."""
    clock = Clock()
    shedding = Shedding(clock, ceiling=100.0)
    found = Counter(shedding.follow() for _ in range(1000))
    assert found == {"": 200, CEILING: 800}
    clock.now += 1.0
    assert Counter(shedding.follow() for _ in range(1000)) == {"": 100, CEILING: 900}


def test_after_an_outage_everything_is_kept_again():
    """Some time after an outage its kind has its whole budget again."""
    clock, drawn = Clock(), random.Random(1)
    shedding = Shedding(clock)
    for _ in range(20_000):
        shedding.admit(OUTAGE, drawn.getrandbits(56))
        clock.now += 0.002
    for _ in range(60):
        clock.now += 1.0
        shedding.admit(("other", "", ""), MASK)
        shedding.admit(OUTAGE, 0)
    clock.now += 30.0
    assert [shedding.admit(OUTAGE, 0).shed for _ in range(15)] == [""] * 15


def test_memory_is_flat_whatever_fails():
    """Ten thousand kinds of failure take no more memory than a few hundred."""
    clock = Clock()
    shedding = Shedding(clock)
    for number in range(MOST_KEYS * 2):
        shedding.admit(("push", f"p{number}", "timeout"), MASK)
    tracemalloc.start()
    for number in range(10_000):
        shedding.admit(("push", f"q{number}", "timeout"), MASK)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 10_000


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, MASK), st.integers(1, 20), st.floats(0, 0.5), st.booleans())),
    st.floats(20, 100),
)
def test_never_more_than_the_ceiling_and_its_debt(asked, ceiling):
    """Whatever is asked and when, what is kept is at most the ceiling's rate, its burst and as much debt."""
    clock = Clock()
    shedding = Shedding(clock, ceiling=ceiling)
    spans = 0
    for kind, randomness, size, pause, follows in asked:
        clock.now += pause
        if follows:
            shed = shedding.follow(size)
        else:
            shed = shedding.admit(("push", str(kind), "timeout"), randomness, size).shed
        spans += 0 if shed else size
        assert spans <= ceiling * (clock.now - 1000.0 + 2) + 1e-6
