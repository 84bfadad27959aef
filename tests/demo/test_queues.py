"""Queues and workers: read from hand-made gauges and counters, and put into words."""

from __future__ import annotations

import pytest

from rtobs.demo import queues as rooms
from rtobs.demo import summary, telemetry
from rtobs.demo.queues import Age, Queue, Queues
from rtobs.demo.telemetry import Telemetry
from tests.demo import support

DEPTH = "rtobs.queue.depth"
AGE = "rtobs.queue.oldest_age"
BUSY = "rtobs.worker.busy_time"
CAPACITY = "rtobs.worker.capacity_time"


def place(name: str = "run.orders", **more: str) -> dict[str, str]:
    """Labels of one queue's series."""
    return {"destination": name, "role": "main", **more}


@pytest.fixture
def store():
    """An empty store."""
    return Telemetry()


def only(store: Telemetry) -> Queue:
    """The one queue of a store."""
    (found,) = Queues(store, "run.").all()
    return found


def test_the_worst_of_several_processes(store):
    """Of processes that ask about one queue the one that sees most counts, and the queue has the platform's name."""
    for instance, depth, age in (("one", 3, 2.5), ("two", 5, 1.5)):
        store.absorb_metrics(support.gauge(DEPTH, [(place(), depth)], instance=instance))
        store.absorb_metrics(support.gauge(AGE, [(place(estimated="false"), age)], instance=instance))
    assert only(store) == Queue("orders", 5, Age(2.5, False), 5, Age(2.5, False), None, None)


def test_what_a_process_does_not_tell_any_more_is_over(store):
    """A reading counts until the same process tells something else, and as the greatest of the run for ever."""
    store.absorb_metrics(support.gauge(AGE, [(place(estimated="true"), 7.0)]))
    store.absorb_metrics(support.gauge(AGE, [(place(estimated="false"), 0.0)]))
    assert only(store).age == Age(0.0, False)
    assert only(store).oldest == Age(7.0, True)


def test_a_process_that_fell_silent_does_not_count(store, monkeypatch):
    """The readings of a process that has told nothing for long are not what is true now."""
    store.absorb_metrics(support.gauge(DEPTH, [(place(), 9)]))
    monkeypatch.setattr(telemetry, "FRESH_SECONDS", -1.0)
    assert (only(store).depth, only(store).deepest) == (None, 9)


def test_how_busy_workers_are(store, monkeypatch):
    """A worker's share is busy time of capacity, over all processes, lately and over the run; without slots nothing."""
    found = Queues(store, "run.")
    orders, other = {"worker": "run.orders"}, {"worker": "run.other"}
    store.absorb_metrics(support.counter(BUSY, [(orders, 10), (other, 10)]))
    store.absorb_metrics(support.counter(CAPACITY, [(orders, 100)]))
    store.absorb_metrics(support.counter(CAPACITY, [(orders, 100)], instance="two"))
    found.tick()
    monkeypatch.setattr(rooms, "WINDOW", 0.0)
    store.absorb_metrics(support.counter(BUSY, [(orders, 40), (other, 10)]))
    store.absorb_metrics(support.counter(CAPACITY, [(orders, 140)]))
    (one,) = found.all()
    assert (one.name, one.busy, one.busy_overall) == ("orders", 30 / 40, 40 / 240)


def queue(name: str, depth: int, age: Age, busy: float | None = None) -> Queue:
    """A queue whose run has been as it is now."""
    return Queue(name, depth, age, depth, age, busy, busy)


@pytest.mark.parametrize(
    ("queues", "now", "run"),
    [
        ([], "Not known yet.", ["No broker was asked."]),
        (
            [queue("a", 2, Age(0.2, False), 0.25), queue("b", 5, Age(0.1, False), 0.5)],
            "No: nothing is older than 200 ms (a); workers at most 50 % busy.",
            [
                "a: at most 2 messages, the oldest for 200 ms; workers 25 % busy.",
                "b: at most 5 messages, the oldest for 100 ms; workers 50 % busy.",
            ],
        ),
        (
            [queue("a", 1, Age(0.9, True)), queue("b", 40, Age(5.5, False), 1.0)],
            "b: 40 messages, the oldest for 5.50 s; workers 100 % busy.",
            ["b: at most 40 messages, the oldest for 5.50 s; workers 100 % busy.", "a: at most 1 message."],
        ),
        (
            [queue("a", 59, Age(0.04, True), 0.98), queue("b", 0, Age(0.0, False))],
            "a: 59 messages; workers 98 % busy.",
            ["a: at most 59 messages; workers 98 % busy.", "b: nothing was seen to wait."],
        ),
        (
            [queue("a", 2, Age(6.0, True), 0.0)],
            "a: 2 messages, not fewer for ~6.00 s; workers 0 % busy.",
            ["a: at most 2 messages, not fewer for ~6.00 s; workers 0 % busy."],
        ),
        (
            [queue("a", 2, Age(0.3, True), 0.1)],
            "No: at most 2 messages (a); workers at most 10 % busy.",
            ["a: at most 2 messages; workers 10 % busy."],
        ),
        ([Queue("a", None, None, None, None, 0.5, 0.5)], "Not known yet.", ["a: not asked about; workers 50 % busy."]),
    ],
)
def test_in_words(queues, now, run):
    """Where ages are told they decide; an estimate says only that nothing was taken, and many messages are a pile."""
    assert summary.piling(queues) == now
    assert summary.piles(queues) == run
