"""Our own series: within their budget whatever comes, and never a measurement more or less."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import INSTRUMENTS, OTHER, Instrument, Label
from rtobs._hop.runtime import runtime
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._journey.record import DeliveryEnd, HopRecord, StageRecord
from rtobs._telemetry.labels import LabelGuard
from rtobs._telemetry.metrics import _READ, SERIES_LIMIT, Histogram, MetricSink, Registry
from tests.support.telemetry import Telemetry


@pytest.fixture(autouse=True)
def _no_counts() -> Generator[None]:
    with _guard._lock:
        _guard._tallies.clear()
    yield
    with _guard._lock:
        _guard._tallies.clear()


def prometheus_series(registry: Registry) -> int:
    """Count what a scrape would show, apart from the gauges of the guard and tallies of ours."""
    found = 0
    for snapshot in registry.collect():
        per_point = len(snapshot.bounds) + 3 if snapshot.instrument.kind == "histogram" else 1
        found += per_point * len(snapshot.points)
    return found


def total(registry: Registry, instrument: Instrument) -> float:
    for snapshot in registry.collect():
        if snapshot.instrument is instrument:
            return sum(sum(point.counts) if point.counts else point.value for point in snapshot.points)
    return 0


def by(registry: Registry, instrument: Instrument, label: Label) -> dict[str, float]:
    found: Counter[str] = Counter()
    at = instrument.labels.index(label)
    for snapshot in registry.collect():
        if snapshot.instrument is instrument:
            for point in snapshot.points:
                found[point.labels[at]] += sum(point.counts) if point.counts else point.value
    return dict(found)


# Series --------------------------------------------------------------------------------------------------------------

CLOSED: dict[Label, list[str]] = {
    Label.OUTCOME: list(Outcome), Label.RESULT: ["ok", "failed", "cancelled"],
    Label.ERROR_CATEGORY: list(ErrorCategory),
    Label.STEP: ["accepted", "delivered", "displayed", "opened", "acted"], Label.KIND: ["accept", "publish", "consume"],
    Label.LAG_SOURCE: ["producer", "broker", "release"], Label.STATE: ["completed", "late", "missed", "failed"],
    Label.OPERATION: ["send", "receive", "process", "ack", "nack"], Label.SIGNAL: ["spans", "metrics", "logs"],
    Label.ROLE: ["main", "retry", "dead"], Label.SLO: ["api-ack", "delivery-5s"],
}  # fmt: skip
"""Labels whose values are ours."""


@pytest.mark.parametrize("seed", range(3))
def test_no_traffic_makes_more_than_10_000_series_and_no_total_is_lost(seed: int) -> None:
    """Every instrument measured under every label at random: the bill stays bounded, the sums stay exact."""
    draw = random.Random(seed)
    registry = Registry(LabelGuard(), 1)
    measured: Counter[str] = Counter()
    instruments = [
        one for one in INSTRUMENTS.values() if one.kind != "gauge" and one.name not in _TALLIED and one not in _READ
    ]
    for number in range(30_000):
        instrument = draw.choice(instruments)
        labels = {
            label: draw.choice(CLOSED[label]) if label in CLOSED else f"{label.value}-{draw.randrange(500)}"
            for label in instrument.labels
        }
        registry.observe(instrument, 1.0, labels)
        measured[instrument.name] += 1
        if number % 10_000 == 0:
            assert registry.series_used <= SERIES_LIMIT
    assert SERIES_LIMIT * 0.5 < registry.series_used <= SERIES_LIMIT
    assert prometheus_series(registry) <= SERIES_LIMIT
    for instrument in instruments:
        assert total(registry, instrument) == measured[instrument.name], instrument.name


_TALLIED = (
    "rtobs.internal.errors", "rtobs.labels.limited", "rtobs.propagation.missing", "rtobs.propagation.rejected",
    "rtobs.clock.rejected", "rtobs.telemetry.dropped", "rtobs.sampling.kept",
)  # fmt: skip


def test_the_cost_of_a_series_is_what_a_scrape_shows() -> None:
    """A histogram costs its buckets, the infinite one, a sum and a count; a counter costs one."""
    registry = Registry(LabelGuard(), 1)
    registry.observe(names.STAGE_DURATION, 1.0, {Label.STAGE: "normalize", Label.OUTCOME: "ok"})
    assert registry.series_used == len(names.STAGE_DURATION.bounds) + 3
    registry.observe(names.EVENTS, 1, {Label.EVENT: "paid"})
    assert registry.series_used == len(names.STAGE_DURATION.bounds) + 4


def ending(
    tenant: str, region: str, *, channel: str = "webhook", provider: str = "crm", ok: bool = True
) -> DeliveryEnd:
    outcome = Outcome.OK if ok else Outcome.FAILED
    category = None if ok else ErrorCategory.TIMEOUT
    return DeliveryEnd(
        channel, provider, "delivered", outcome, category, tenant, True, region, "api", 1.0 if ok else None,
        promised_here=True, repeated=False, recovered=False,
    )  # fmt: skip


def delivered(end: DeliveryEnd) -> HopRecord:
    record = HopRecord("deliver", end.channel, None)
    record.channel, record.provider, record.result = end.channel, end.provider, "ok"
    record.outcome = end.outcome
    record.delivery_ends = [end]
    return record


def test_an_instrument_beyond_its_share_gives_up_labels_in_order() -> None:
    """Source, then tenant, then provider become `other`; channel, step, outcome, category and region stay."""
    registry = Registry(LabelGuard(), 1)
    sink = MetricSink(registry)
    combinations = list(itertools.product(range(200), ("eu", "us", "apac"), ("webhook", "connector"), (True, False)))
    for tenant, region, channel, ok in combinations:
        sink.end(delivered(ending(f"t-{tenant}", region, channel=channel, ok=ok)))
    assert total(registry, names.OUTCOMES) == total(registry, names.INTENTS) == len(combinations)
    assert by(registry, names.OUTCOMES, Label.TENANT)[OTHER] > 0
    for label, values in (
        (Label.REGION, 3), (Label.CHANNEL, 2), (Label.OUTCOME, 2), (Label.ERROR_CATEGORY, 2), (Label.STEP, 1),
    ):  # fmt: skip
        found = by(registry, names.OUTCOMES, label)
        assert len(found) == values
        assert OTHER not in found
        assert set(found.values()) == {len(combinations) / values}
    counted = _guard.tallies()
    assert counted[names.LABELS_LIMITED.name, ("tenant", "series")] > 0
    tables = {snapshot.instrument.name: len(snapshot.points) for snapshot in registry.collect()}
    assert tables[names.OUTCOMES.name] <= names.OUTCOMES.series + 12
    assert tables[names.INTENTS.name] <= names.INTENTS.series + 6


def test_declared_tenants_keep_their_names_beyond_an_instruments_share() -> None:
    """The tenants that matter are counted apart even when others have used up the series first."""
    declared = [f"declared-{number}" for number in range(20)]
    registry = Registry(LabelGuard({Label.TENANT: declared}), 1)
    sink = MetricSink(registry)
    regions = ("eu", "us", "apac")
    for tenant, region, ok, provider in itertools.product(range(180), regions, (True, False), ("a", "b")):
        sink.end(delivered(ending(f"t-{tenant}", region, ok=ok, provider=provider)))
    for tenant, region in itertools.product(declared, regions):
        sink.end(delivered(ending(tenant, region, provider="late")))
    found = by(registry, names.OUTCOMES, Label.TENANT)
    assert {tenant: found.get(tenant) for tenant in declared} == dict.fromkeys(declared, 3)
    assert {tenant: by(registry, names.INTENTS, Label.TENANT).get(tenant) for tenant in declared} == dict.fromkeys(
        declared, 3
    )


def test_a_large_platform_stays_in_budget() -> None:
    """200 tenants on 5 channels of 8 providers in 4 regions, failing and working: bounded, and exact in every total."""
    registry = Registry(LabelGuard({Label.TENANT: [f"t-{n}" for n in range(10)]}), 1)
    sink = MetricSink(registry)
    channels = ("push", "sms", "email", "in_app", "webhook")
    combinations = list(itertools.product(range(200), channels, range(8), ("eu", "us", "apac", "latam")))
    random.Random(1).shuffle(combinations)
    for number, (tenant, channel, provider, region) in enumerate(combinations):
        sink.end(delivered(ending(f"t-{tenant}", region, channel=channel, provider=f"p-{provider}", ok=number % 9 > 0)))
    assert registry.series_used <= SERIES_LIMIT
    assert prometheus_series(registry) <= SERIES_LIMIT
    assert total(registry, names.OUTCOMES) == total(registry, names.ATTEMPTS) == len(combinations)
    assert by(registry, names.OUTCOMES, Label.CHANNEL) == dict.fromkeys(channels, len(combinations) / 5)
    assert by(registry, names.OUTCOMES, Label.OUTCOME)["failed"] == -(-len(combinations) // 9)
    named = by(registry, names.OUTCOMES, Label.TENANT)
    assert [named.get(f"t-{number}") for number in range(10)] == [len(combinations) / 200] * 10


# Exactness -----------------------------------------------------------------------------------------------------------


def torn(registry: Registry) -> list[Any]:
    """Return stage durations whose sum, count and buckets do not agree; each is 0.25 s, which adds up exactly."""
    return [
        point
        for snapshot in registry.collect()
        if snapshot.instrument is names.STAGE_DURATION
        for point in snapshot.points
        if point.value != 0.25 * sum(point.counts) or point.counts[6] != sum(point.counts)
    ]


def test_threads_lose_no_measurement() -> None:
    """16 threads with 5,000 observations each, collected from meanwhile: sum, count and buckets always agree."""
    threads, each = 16, 5000
    registry = Registry(LabelGuard(), 1)
    sink = MetricSink(registry)
    done = threading.Event()
    broken: list[Any] = []

    def look() -> None:
        while not done.is_set():
            broken.extend(torn(registry))

    def work(number: int) -> None:
        for index in range(each):
            if index % 2:
                labels = {Label.STAGE: "invoke", Label.OUTCOME: "ok"}
                registry.observe(names.STAGE_DURATION, 0.25, labels)
                registry.observe(names.EVENTS, 1, {Label.EVENT: f"event-{number}"})
            else:
                record = HopRecord("accept", "/orders", None)
                stage = StageRecord("invoke", record, f"{1:016x}")
                stage.ended, stage.duration_ns = True, 250_000_000
                record.stages, record.outcome = [stage], Outcome.OK
                record.happened(f"event-{number}", 1, {}, domain=True)
                sink.end(record)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        looking = threading.Thread(target=look)
        working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in (looking, *working):
            thread.start()
        for thread in working:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        done.set()
    looking.join()
    assert broken == []
    assert total(registry, names.STAGE_DURATION) == threads * each
    assert by(registry, names.EVENTS, Label.EVENT) == {f"event-{number}": each for number in range(threads)}
    assert total(registry, names.ACCEPT_DURATION) == threads * each / 2


@pytest.mark.parametrize("instrument", [one for one in INSTRUMENTS.values() if one.bounds], ids=lambda one: one.name)
def test_a_value_falls_into_the_bucket_whose_bound_it_does_not_exceed(instrument: Instrument) -> None:
    """Upper bounds are inclusive, as in OTLP and Prometheus; the last bucket takes the rest."""
    registry = Registry(LabelGuard(), 1)
    assert len(instrument.bounds) <= 16
    for index, bound in enumerate((*instrument.bounds, instrument.bounds[-1] * 2)):
        registry.observe(instrument, bound, {})
        (point,) = next(one.points for one in registry.collect() if one.instrument is instrument)
        assert point.counts[index] == 1
    registry.observe(instrument, instrument.bounds[0] + 1e-9, {})
    (point,) = next(one.points for one in registry.collect() if one.instrument is instrument)
    assert point.counts[1] == 2
    assert sum(point.counts) == len(instrument.bounds) + 2


def test_faults_counted_below_appear_once(telemetry: Telemetry) -> None:
    """What lower rooms tally joins the series at each collection, without being counted again."""
    with rtobs.accept("/orders"):
        _guard.tally(names.CLOCK_REJECTED, "future")
    assert telemetry.count(names.CLOCK_REJECTED) == 1
    _guard.tally(names.CLOCK_REJECTED, "future", by=2)
    assert telemetry.count(names.CLOCK_REJECTED) == telemetry.count(names.CLOCK_REJECTED) == 3


def test_a_reading_that_fails_does_not_cost_the_export(tolerant: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked at collection and cannot answer is counted; everything else is still collected."""

    def broken() -> Any:
        raise RuntimeError("broker gone")

    with rtobs.accept("/orders"):
        pass
    monkeypatch.setitem(runtime.at_collection, "broken", broken)
    assert tolerant.count(names.ACCEPT_DURATION) == 1
    monkeypatch.delitem(runtime.at_collection, "broken")
    assert tolerant.by(names.INTERNAL_ERRORS, "site") == {"collect.broken": 1}


def test_hops_that_run_are_a_gauge(telemetry: Telemetry) -> None:
    """The gauge counts what has begun and not ended, by kind, and comes back to zero."""
    with rtobs.accept("/orders"), rtobs.publish("orders"):
        assert telemetry.by(names.HOPS_ACTIVE, "kind") == {"accept": 1, "publish": 1}
    assert telemetry.by(names.HOPS_ACTIVE, "kind") == {}
    assert telemetry.count(names.HOPS_ACTIVE) == 0


def test_exemplars_are_spans_that_are_exported(telemetry: Telemetry) -> None:
    """A histogram's bucket shows the last exported hop that fell into it."""
    with rtobs.accept("/orders"):
        pass
    registry = telemetry_registry()
    snapshot = next(one for one in registry.collect() if one.instrument is names.ACCEPT_DURATION)
    ((exemplar,),) = (point.exemplars for point in snapshot.points)
    span = telemetry.span("accept")
    assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)
    assert exemplar.value == snapshot.points[0].value


def telemetry_registry() -> Registry:
    from rtobs import _config

    return _config._bound.registry


@given(st.lists(st.floats(0, 400) | st.sampled_from(names.MESSAGE_LAG.bounds), max_size=80))
def test_many_measurements_at_once_are_as_many_single_ones(values: list[float]) -> None:
    """Each bucket, the sum and the count are the same, values on a bound included."""
    one_by_one, together = Histogram(names.MESSAGE_LAG.bounds), Histogram(names.MESSAGE_LAG.bounds)
    for value in values:
        one_by_one.record(value)
    together.record_all(list(values))
    assert together.counts == one_by_one.counts
    assert together.total == pytest.approx(one_by_one.total)


def test_what_waits_is_there_for_whoever_looks(telemetry: Telemetry) -> None:
    """A single hop is in the very next collection, with its exemplar."""
    with rtobs.accept("/orders"):
        pass
    assert telemetry.count(names.ACCEPT_DURATION) == 1
    with rtobs.accept("/orders"):
        pass
    assert telemetry.count(names.ACCEPT_DURATION) == 2
