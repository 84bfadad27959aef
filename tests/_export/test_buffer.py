"""The buffer's bounds and who goes first when there is no room; and what things weigh."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import UserDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from rtobs._export import buffer
from rtobs._export.buffer import Buffer
from rtobs._journey.journey import Journey
from rtobs._journey.record import HopRecord, StageRecord

MOST, MOST_BYTES = 5, 100

steps = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 120), st.booleans()) | st.integers(1, 4),
    max_size=30,
)


@given(steps)
def test_nothing_is_lost_uncounted_and_what_matters_goes_last(found: list[Any]) -> None:
    """Whatever is added and taken: both bounds hold, every item is waiting, taken or reported, plain ones first."""
    waiting, added, gone = Buffer(MOST, MOST_BYTES), 0, 0
    for number, step in enumerate(found):
        if isinstance(step, int):
            taken = waiting.take(step)
            gone += sum(items for _, items, _ in taken)
            matters = [item[1] for item, _, _ in taken]
            assert matters == sorted(matters, reverse=True)
            continue
        items, size, important = step
        before = waiting.count
        lost = waiting.add(((number, important), items, size), important=important)
        added += items
        if lost is not None:
            reason, count = lost
            gone += count
            assert reason == ("queue_full" if before == MOST else "bytes_full")
            if important and all(item[0] != number for item, _, _ in waiting._important):
                assert not waiting._plain or size > MOST_BYTES
        assert waiting.count <= MOST
        assert sum(size for _, _, size in (*waiting._plain, *waiting._important)) == waiting._size <= MOST_BYTES
        assert added == gone + waiting.items
    for queue in (waiting._plain, waiting._important):
        numbers = [item[0] for item, _, _ in queue]
        assert numbers == sorted(numbers)  # oldest first


def test_the_newest_plain_item_makes_room() -> None:
    """An important item takes the place of a plain one; a plain one of nobody's."""
    waiting = Buffer(2, MOST_BYTES)
    for name in ("first", "second"):
        assert waiting.add((name, 1, 1), important=False) is None
    assert waiting.add(("third", 2, 1), important=False) == ("queue_full", 2)
    assert waiting.add(("failed", 1, 1), important=True) == ("queue_full", 1)
    assert waiting.add(("failed too", 1, 1), important=True) == ("queue_full", 1)
    assert waiting.add(("failed again", 1, 1), important=True) == ("queue_full", 1)
    assert [item for item, _, _ in waiting.take(9)] == ["failed", "failed too"]


def test_several_small_ones_go_for_one_that_is_large() -> None:
    """Bytes count too; what is larger than everything drives nobody out."""
    waiting = Buffer(10, 100)
    for number in range(5):
        waiting.add((number, 1, 20), important=False)
    assert waiting.add(("large", 1, 101), important=True) == ("bytes_full", 1)
    assert waiting.add(("failed", 1, 50), important=True) == ("bytes_full", 3)
    assert [item for item, _, _ in waiting.take(9)] == ["failed", 0, 1]


def test_failed_and_kept_hops_matter() -> None:
    """So do spans of other libraries with an error; whoever is healthy can be spared."""

    def hop(**facts: Any) -> HopRecord:
        record = HopRecord("deliver", "x")
        for name, value in facts.items():
            setattr(record, name, value)
        return record

    assert [buffer.matters(one) for one in (hop(), hop(result="ok"), hop(result="failed"))] == [False, False, True]
    assert buffer.matters(hop(keep_reason="slow"))
    assert buffer.matters(hop(error_type="ValueError"))
    assert not buffer.has_error(ReadableSpan("x", status=Status(StatusCode.OK)))
    assert not buffer.has_error(ReadableSpan("x"))
    assert buffer.has_error(ReadableSpan("x", status=Status(StatusCode.ERROR)))


# What things weigh ---------------------------------------------------------------------------------------------------


def test_a_hop_with_its_stages_counts_as_so_many_spans() -> None:
    """One, and one for each stage that has ended."""
    record = HopRecord("accept", "/x")
    record.stages = [StageRecord("s", record, f"{1:016x}") for _ in range(3)]
    record.stages[0].ended = record.stages[2].ended = True
    assert buffer.hop(record)[1] == 3


LONG = "x" * 100_000
CONTEXT = SpanContext(1, 2, is_remote=False)


@pytest.mark.parametrize(
    "span",
    [
        ReadableSpan(LONG),
        ReadableSpan("x", attributes={"a": LONG}),
        ReadableSpan("x", attributes={"a": LONG.encode()}),
        ReadableSpan("x", attributes={"a": tuple(str(n) * 100 for n in range(1000))}),
        ReadableSpan("x", attributes={"a": {"b": [LONG]}}),
        ReadableSpan("x", events=(Event("e", {"a": LONG}),)),
        ReadableSpan("x", links=(Link(CONTEXT, {"a": LONG}),)),
        ReadableSpan("x", attributes={str(n): "x" * 1000 for n in range(100)}),
    ],
    ids=["name", "text", "bytes", "sequence", "nested", "event", "link", "many"],
)
def test_large_spans_of_other_libraries_weigh_what_they_hold(span: ReadableSpan) -> None:
    """Wherever the bytes are, they are seen."""
    assert 90_000 < buffer.span(span)[2] < 300_000


def test_weighing_looks_at_no_more_than_it_must() -> None:
    """Neither cycles nor a million elements nor somebody's own class make it slow; no method of theirs is called."""

    class Own:
        def __len__(self) -> int:
            raise AssertionError

        __bool__ = __iter__ = __sizeof__ = __len__

    cyclic: list[Any] = []
    cyclic += [cyclic] * 1000
    for value in (cyclic, ["x"] * 1_000_000, Own(), UserDict({"a": 1}), None, 1, dict.fromkeys(range(100_000), "x")):
        assert buffer.span(ReadableSpan("x", attributes={"a": value}))[2] > 0


def test_an_estimate_is_near_the_truth() -> None:
    """Hops, spans of the SDK's and log events weigh about what they take of memory, so that the bound is one."""
    tracer = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False).get_tracer("x")

    def own(number: int) -> Any:
        record = HopRecord("consume", "orders")
        record.journey = Journey(f"{number:032x}", number)
        record.attributes = {f"key {n}": f"value {number} {n}" for n in range(4)}
        return record

    def theirs(number: int) -> Any:
        span = tracer.start_span("query", attributes={f"key {n}": f"value {number} {n}" for n in range(8)})
        span.end()
        return span._readable_span()

    def event(number: int) -> Any:
        return {f"key {n}": f"value {number} {n}" for n in range(12)}

    for make, weigh in ((own, buffer.hop), (theirs, buffer.span), (event, lambda e: buffer.log(e, 1))):
        make(0)
        gc.collect()
        tracemalloc.start()
        kept = [make(number) for number in range(1000)]
        gc.collect()
        real = tracemalloc.get_traced_memory()[0] - sys.getsizeof(kept)
        tracemalloc.stop()
        estimated = sum(weigh(one)[2] for one in kept)
        assert 0.6 < estimated / real < 1.7, (make.__name__, estimated, real)
