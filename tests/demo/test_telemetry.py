"""The store: totals over processes, histograms, journeys."""

from __future__ import annotations

import pytest

from rtobs.demo import telemetry as store
from rtobs.demo.telemetry import Histogram, Telemetry
from tests.demo import support
from tests.demo.support import DELTA


def test_cumulative_counts_of_processes_are_added():
    """A total is the sum of each process's last reading, not of its readings."""
    telemetry = Telemetry()
    for instance, value in (("one", 3), ("one", 5), ("two", 10)):
        telemetry.absorb_metrics(support.counter("sold", [({"what": "tea"}, value)], instance=instance))
    assert telemetry.total("sold") == 15
    assert telemetry.total("sold", what="tea") == 15
    assert telemetry.total("sold", what="coffee") == 0


def test_delta_counts_are_added_up():
    """Readings that say they are differences are summed."""
    telemetry = Telemetry()
    for value in (3, 5):
        telemetry.absorb_metrics(support.counter("sold", [({}, value)], kind=DELTA))
        telemetry.absorb_metrics(support.histogram("waits", [({}, [value, 0, 0, 0, 0])], kind=DELTA))
    assert telemetry.total("sold") == 8
    assert telemetry.histograms("waits")[()].counts == [8, 0, 0, 0, 0]


def test_histograms_by_label():
    """Histograms of several processes are merged by the labels that are asked for."""
    telemetry = Telemetry()
    for instance in ("one", "two"):
        made = [({"channel": "sms", "step": "a"}, [1, 2, 0, 0, 0]), ({"channel": "push", "step": "a"}, [0, 0, 0, 0, 4])]
        telemetry.absorb_metrics(support.histogram("waits", made, instance=instance))
    found = telemetry.histograms("waits", "channel")
    assert found["sms",].counts == [2, 4, 0, 0, 0]
    assert found["push",].count == 8
    assert telemetry.histograms("waits", channel="sms")[()].count == 6


def test_quantiles():
    """A quantile lies inside the bucket that holds it; what is beyond the last bound counts as that bound."""
    times = Histogram((0.1, 0.5, 1.0), [10, 80, 10, 0])
    assert times.quantile(0.5) == pytest.approx(0.3)
    assert times.quantile(0.05) == pytest.approx(0.05)
    assert times.quantile(1.0) == pytest.approx(1.0)
    assert Histogram((0.1,), [0, 5]).quantile(0.5) == pytest.approx(0.1)
    assert Histogram().quantile(0.5) is None


def test_on_time_is_read_at_a_bound():
    """What was within a limit is counted up to the largest bound that is not above it."""
    times = Histogram((0.1, 0.5, 1.0), [1, 2, 4, 8])
    assert [times.within(limit) for limit in (0.05, 0.1, 0.7, 1.0, 9.0)] == [0, 1, 3, 7, 7]


def test_a_window_is_the_difference_of_two_readings():
    """What was recorded since an earlier reading is the difference of the counts."""
    assert Histogram((0.1,), [5, 7]).minus(Histogram((0.1,), [2, 7])).counts == [3, 0]
    assert Histogram((0.1,), [5, 7]).minus(Histogram()).counts == [5, 7]


def test_other_bounds_keep_their_counts():
    """Processes with different bounds can be merged without losing a value or making one look faster."""
    times = Histogram((0.1, 1.0), [1, 1, 1])
    times.add((0.05, 0.5), [1, 1, 1])
    assert times.counts == [2, 2, 2]


def test_stages_find_their_journey():
    """A span without a correlation id belongs to the journey of its trace, also if it comes first."""
    telemetry = Telemetry()
    telemetry.absorb_traces(support.spans(support.span("", stage="normalize")))
    assert telemetry.journey("c1") == []
    telemetry.absorb_traces(
        support.spans(support.span("consume", correlation_id="c1"), support.span("", stage="route"))
    )
    assert len(telemetry.journey("c1")) == 3


def test_journeys_are_bounded(monkeypatch):
    """The oldest journeys go first, except one that is held for the story; their count stays right."""
    monkeypatch.setattr(store, "JOURNEYS_KEPT", 10)
    telemetry = Telemetry()
    for number in range(50):
        telemetry.absorb_traces(
            support.spans(support.span("accept", correlation_id=f"c{number}", trace=f"{number:032x}"))
        )
        if number == 3:
            telemetry.pin("c3")
    assert len(telemetry.journeys) == 10
    assert len(telemetry.correlation_ids) == 50
    assert len(telemetry.journey("c3")) == 1
    telemetry.absorb_traces(support.spans(support.span("receipt", correlation_id="c3", trace="f" * 32)))
    assert len(telemetry.journey("c3")) == 2
    assert telemetry.journey("c4") == []


def test_log_events_by_journey():
    """Log events are found by the correlation id they carry."""
    telemetry = Telemetry()
    telemetry.absorb_logs(support.logs({"event": "x", "correlation_id": "c1"}, {"event": "y", "correlation_id": "c2"}))
    assert [event.body for event in telemetry.journey_events("c1")] == ["x"]
