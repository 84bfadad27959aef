"""The pipeline between hops and exporters: bounded, lazy, and alive whatever an exporter does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._export.convert import Deltas, log_record, metrics_data
from rtobs._export.otlp import exported
from rtobs._export.pipeline import BATCH, QUEUE_LIMIT, Exporters, Pipeline
from rtobs._journey.record import HopRecord, StageRecord
from rtobs._telemetry.labels import LabelGuard
from rtobs._telemetry.metrics import Registry
from tests.support.timing import wait_until

_NOBODY = Resource.get_empty()


class Exporter:
    """Stands for an SDK exporter; *answer* says or does what the network does."""

    def __init__(self, answer: Callable[[], Any] = lambda: SpanExportResult.SUCCESS) -> None:
        self.answer = answer
        self.batches: list[Any] = []
        self.stopped = threading.Event()

    def export(self, batch: Any) -> Any:
        self.batches.append(batch)
        return self.answer()

    def shutdown(self) -> None:
        self.stopped.set()


def registry() -> Registry:
    return Registry(LabelGuard(), 1)


Make = Callable[..., Pipeline]


@pytest.fixture
def make() -> Generator[Make]:
    """A function that makes a pipeline with the given exporters, flushed only when asked."""
    made: list[Pipeline] = []

    def build(*, delay: float = 60.0, series: Registry | None = None, **exporters: Any) -> Pipeline:
        makers = {
            signal: (lambda resource, signal=signal, found=found: exported(signal, found, resource))
            for signal, found in exporters.items()
        }
        pipeline = Pipeline(
            Exporters(makers), series or registry(), _NOBODY, span_delay=delay, metric_interval=60.0,
            delta=False,
        )  # fmt: skip
        made.append(pipeline)
        return pipeline

    with _guard._lock:
        _guard._tallies.clear()
    yield build
    for pipeline in made:
        pipeline.shutdown(1.0)


def hop(*stages: bool) -> HopRecord:
    record = HopRecord("accept", "/orders")
    record.trace_id = record.span_id = 7
    record.stages = [StageRecord("s", record, f"{7:016x}") for _ in stages]
    for stage, ended in zip(record.stages, stages, strict=True):
        stage.span_id, stage.ended = 8, ended
    record.ended = True
    return record


def dropped() -> dict[str, int]:
    return {
        "/".join(values): count
        for (name, values), count in _guard.tallies().items()
        if name == names.TELEMETRY_DROPPED.name
    }


def test_nothing_starts_before_something_is_queued(make: Make) -> None:
    """No thread and no exporter exist until the first span; a signal that does not leave starts nothing."""
    spans = Exporter()
    pipeline = make(spans=spans)
    assert pipeline._thread is None
    pipeline.put_log({"event": "x"})
    assert pipeline._thread is None
    pipeline.put_span(hop())
    assert pipeline._thread.daemon
    assert pipeline.flush(5)
    assert len(spans.batches) == 1


def test_a_full_batch_leaves_at_once(make: Make) -> None:
    """With 512 spans waiting nobody waits for the schedule."""
    spans = Exporter()
    pipeline = make(spans=spans)
    for _ in range(BATCH):
        pipeline.put_span(hop())
    wait_until(lambda: sum(map(len, spans.batches)) == BATCH)
    assert all(len(batch) <= BATCH for batch in spans.batches)


def test_less_than_a_batch_leaves_on_schedule(make: Make) -> None:
    """A single span leaves after the delay."""
    spans = Exporter()
    make(spans=spans, delay=0.02).put_span(hop())
    wait_until(lambda: len(spans.batches) == 1)


def boom() -> None:
    raise RuntimeError("broken exporter")


def test_an_exporter_that_raises_or_fails_is_counted_and_the_next_batch_leaves(make: Make) -> None:
    """Spans of a failed batch are counted with their stages; the thread lives on."""
    spans = Exporter(boom)
    pipeline = make(spans=spans)
    pipeline.put_span(hop(True, True, False))
    assert not pipeline.flush(5)
    spans.answer = lambda: SpanExportResult.FAILURE
    pipeline.put_span(hop())
    assert not pipeline.flush(5)
    spans.answer = lambda: SpanExportResult.SUCCESS
    pipeline.put_span(hop())
    assert pipeline.flush(5)
    assert dropped() == {"spans/export_failed": 4}
    assert [len(batch) for batch in spans.batches] == [3, 1, 1]


def test_an_exporter_that_returns_nothing_has_worked(make: Make) -> None:
    """Some exporters return None."""
    pipeline = make(spans=Exporter(lambda: None))
    pipeline.put_span(hop())
    assert pipeline.flush(5)
    assert dropped() == {}


def test_one_poisoned_item_does_not_cost_its_batch(make: Make) -> None:
    """A hop that cannot be converted and an event with broken ids are counted; the others leave."""
    spans, logs = Exporter(), Exporter()
    pipeline = make(spans=spans, logs=logs)
    bad = hop()
    bad.name = None  # type: ignore[assignment]
    bad.kind = "nothing"  # type: ignore[assignment]
    for item in (hop(), bad, hop()):
        pipeline.put_span(item)
    for event in ({"event": "a", "trace_id": "ff"}, {"event": "b", "trace_id": "no number"}, {"event": "c"}):
        pipeline.put_log(event)
    assert pipeline.flush(5)
    assert [len(batch) for batch in spans.batches] == [2]
    assert [record.log_record.body for record in logs.batches[0]] == ["a", "c"]
    assert dropped() == {"spans/encode": 1, "logs/encode": 1}


def test_a_log_record_has_the_keys_that_people_filter_by() -> None:
    """Keys that every event has are there with an empty value too; others are left out where nothing is known."""
    record = log_record(
        {"event": "x", "level": "error", "tenant_id": "", "note": "", "stage": None, "n": 0}, _NOBODY, 5
    )
    assert dict(record.log_record.attributes) == {"tenant_id": "", "n": 0}
    assert (record.log_record.event_name, record.log_record.severity_text, record.log_record.timestamp) == (
        "x",
        "ERROR",
        5,
    )


def test_putting_never_waits(make: Make) -> None:
    """While an exporter hangs, hops end as fast as ever, and what does not fit is counted."""
    release = threading.Event()
    spans = Exporter(lambda: release.wait(20) and None)
    pipeline = make(spans=spans, delay=0.01)
    pipeline.put_span(hop())
    wait_until(lambda: spans.batches)
    begun = time.perf_counter()
    for _ in range(QUEUE_LIMIT + 100):
        pipeline.put_span(hop())
    assert time.perf_counter() - begun < 2
    assert dropped() == {"spans/queue_full": 100}
    assert not pipeline.flush(0.05)
    release.set()
    assert pipeline.flush(10)
    assert sum(map(len, spans.batches)) == QUEUE_LIMIT + 1


def test_shutdown_gives_up_in_time_and_counts_each_span_once(make: Make) -> None:
    """A batch under way and all that waits are counted; when the exporter fails later, they are not counted again."""
    release = threading.Event()

    def hang() -> SpanExportResult:
        release.wait(20)
        return SpanExportResult.FAILURE

    spans = Exporter(hang)
    pipeline = make(spans=spans, delay=0.01)
    pipeline.put_span(hop(True))
    wait_until(lambda: spans.batches)
    for _ in range(10):
        pipeline.put_span(hop())
    begun = time.monotonic()
    assert not pipeline.shutdown(0.1)
    assert time.monotonic() - begun < 1
    assert spans.stopped.is_set()
    release.set()
    pipeline._thread.join(5)
    pipeline.put_span(hop(True))
    assert dropped() == {"spans/unanswered": 2, "spans/shutdown": 12}
    assert len(spans.batches) == 1


def test_a_process_that_only_counted_exports_its_metrics_at_the_end(make: Make) -> None:
    """Without a thread so far, shutdown sends the totals once; where nothing was measured it sends nothing."""
    metrics = Exporter(lambda: MetricExportResult.SUCCESS)
    series = registry()
    pipeline = make(metrics=metrics, series=series)
    series.add(names.EVENTS, 1, "paid")
    assert pipeline.shutdown(5)
    assert len(metrics.batches) == 1
    idle = Exporter()
    assert make(metrics=idle).shutdown(5)
    assert idle.batches == []


def test_a_thread_that_cannot_start_is_counted_and_nothing_raises(make: Make, monkeypatch: Any) -> None:
    """Where the system has no threads left, hops end as always and shutdown counts what is left."""

    def refuse(_thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    pipeline = make(spans=Exporter())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        pipeline.put_span(hop())
        assert not pipeline.flush(0.1)
    assert _guard.tallies()[names.INTERNAL_ERRORS.name, ("export.start",)] == 1  # it does not try at every hop
    pipeline._start_again = 0.0
    pipeline.put_span(hop())
    assert pipeline.flush(5)


# Deltas --------------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 20)), max_size=4), st.booleans()), max_size=8
)


@given(steps)
@settings(max_examples=100)
def test_deltas_that_arrive_add_up_to_the_totals(found: list[tuple[list[tuple[str, float]], bool]]) -> None:
    """Whatever is measured between exports and whichever of them fail, what arrives is each measurement once."""
    series, deltas, arrived, last = registry(), Deltas(), {"a": [0, 0.0, 0], "b": [0, 0.0, 0]}, dict.fromkeys("ab", 1)
    for now, (measured, works) in enumerate([*found, ([], True)], start=2):
        for stage, seconds in measured:
            with series.lock:
                series.histogram(names.STAGE_DURATION, stage, "ok").record(seconds)
                series.counter(names.EVENTS, stage).value += 1
        data = metrics_data(series.collect(), _NOBODY, 1, now, deltas)
        if not works:
            continue
        deltas.commit()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                total = arrived.get(point.attributes.get("stage") or point.attributes.get("event"))
                if total is None:
                    continue
                if metric.name == names.EVENTS.name:
                    total[2] += point.value
                else:
                    assert sum(point.bucket_counts) == point.count
                    assert point.start_time_unix_nano == last[point.attributes["stage"]]
                    last[point.attributes["stage"]] = now
                    total[0] += point.count
                    total[1] += point.sum
    for stage, (count, total, events) in arrived.items():
        values = [seconds for measured, _ in found for name, seconds in measured if name == stage]
        assert count == events == len(values)
        assert total == pytest.approx(sum(values))
