"""Metrics: our own pre-aggregated series, counted for every hop before and whatever sampling decides.

One lock section per hop. Must not know how series leave the process, or brokers.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import OTHER, Instrument, Label
from rtobs._hop.runtime import runtime
from rtobs._journey.outcome import Outcome

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord
    from rtobs._telemetry.labels import LabelGuard

SERIES_LIMIT = 10_000
"""Prometheus series of one process, buckets included."""
_RESERVE = 1_000
"""Part of it kept for series of which only closed sets of ours are left (about 600), so that no total is ever lost."""
_FOR_DECLARED = SERIES_LIMIT // 2
"""Up to here declared names may cost more than their instrument's share; beyond it the room is for what comes later."""
_LADDER = (
    Label.SOURCE,
    Label.DESTINATION,
    Label.MESSAGING_DESTINATION,
    Label.ERROR_TYPE,
    Label.TENANT,
    Label.PROVIDER,
    Label.ROUTE,
)
"""What is given up, in this order, once an instrument has used up its series; channel, step and outcome never are."""
_LAST_RESORT = (
    Label.ERROR_CATEGORY, Label.REGION, Label.REASON, Label.EVENT, Label.STAGE, Label.SITE, Label.CONNECTOR,
    Label.WORKER, Label.SYSTEM, Label.CHANNEL,
)  # fmt: skip
"""What is given up after that, once the process has used up all its series."""


_READ = (names.QUEUE_DEPTH, names.QUEUE_AGE, names.BUSY_TIME, names.CAPACITY_TIME)
"""Read whole at every collection: ages grow by themselves, and what is not told any more is not shown any more."""


class Exemplar(NamedTuple):
    """One measurement and the span it was made in."""

    value: float
    time_ns: int
    trace_id: int
    span_id: int


class Counter:
    """A sum that only grows, or a gauge that is set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts by upper bound; the last count is for what exceeds all bounds."""

    __slots__ = ("bounds", "count", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def record(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Add one measurement."""
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.count += 1
        self.total += value
        if exemplar is not None:
            self.exemplars[index] = exemplar


class Point(NamedTuple):
    """One series as it is now. Histograms have *counts*, others a *value*."""

    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()


class Snapshot(NamedTuple):
    """One instrument and all its series."""

    instrument: Instrument
    bounds: tuple[float, ...]
    points: list[Point]


class Registry:
    """All series of one process, within its budget."""

    def __init__(self, guard: LabelGuard, start_ns: int) -> None:
        """Start empty at *start_ns*, nanoseconds since the epoch."""
        self.guard = guard
        self.start_ns = start_ns
        self.lock = threading.Lock()
        self._tables: dict[str, dict[tuple[str, ...], Counter | Histogram]] = {}
        self._tallied: dict[tuple[str, tuple[str, ...]], int] = {}
        self._used = 0

    # Series ----------------------------------------------------------------------------------------------------------

    def counter(self, instrument: Instrument, *labels: str) -> Counter:
        """Return the series of these guarded labels, in the instrument's order. Call with the lock held."""
        found = self._series(instrument, labels)
        assert isinstance(found, Counter)  # noqa: S101  an instrument has one kind
        return found

    def histogram(self, instrument: Instrument, *labels: str) -> Histogram:
        """Return the series of these guarded labels, in the instrument's order. Call with the lock held."""
        found = self._series(instrument, labels)
        assert isinstance(found, Histogram)  # noqa: S101  an instrument has one kind
        return found

    def _series(self, instrument: Instrument, labels: tuple[str, ...]) -> Counter | Histogram:
        table = self._tables.get(instrument.name)
        if table is None:
            table = self._tables[instrument.name] = {}
        found = table.get(labels)
        return found if found is not None else self._create(instrument, table, labels)

    def _create(
        self, instrument: Instrument, table: dict[tuple[str, ...], Counter | Histogram], labels: tuple[str, ...]
    ) -> Counter | Histogram:
        cost = len(instrument.bounds) + 3 if instrument.kind == "histogram" else 1
        full = self._used + cost > SERIES_LIMIT - _RESERVE
        crowded = self._used + cost > _FOR_DECLARED
        if full or len(table) >= instrument.series:
            for given_up in (*_LADDER, *_LAST_RESORT) if full else _LADDER:
                if given_up not in instrument.labels:
                    continue
                index = instrument.labels.index(given_up)
                value = labels[index]
                if value in (OTHER, "") or (not crowded and value in self.guard.pinned.get(given_up, ())):
                    continue  # a declared name costs more than its instrument's share rather than being lost
                labels = (*labels[:index], OTHER, *labels[index + 1 :])
                _guard.tally(names.LABELS_LIMITED, str(given_up), "series")
                found = table.get(labels)
                if found is not None:
                    return found
        series = Histogram(instrument.bounds) if instrument.kind == "histogram" else Counter()
        table[labels] = series
        self._used += cost
        return series

    def declare(self, instrument: Instrument, *labels: str) -> None:
        """Let a series exist at zero before anything happens."""
        with self.lock:
            self._series(instrument, labels)

    def observe(self, instrument: Instrument, value: float, labels: Mapping[Label, str]) -> None:
        """Record one measurement that no hop carries; labels are guarded here."""
        guarded = tuple(self.guard.label(label, labels.get(label, "")) for label in instrument.labels)
        with self.lock:
            series = self._series(instrument, guarded)
            if isinstance(series, Histogram):
                series.record(value)
            elif instrument.kind == "gauge":
                series.value = value
            else:
                series.value += value

    def add(self, instrument: Instrument, by: float, *labels: str) -> None:
        """Add to one counter or gauge under the lock."""
        with self.lock:
            self.counter(instrument, *labels).value += by

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def series_used(self) -> int:
        """Prometheus series in use, buckets included."""
        return self._used

    def collect(self) -> list[Snapshot]:
        """Return everything as it is now, our own tallies included."""
        for (name, values), count in _guard.tallies().items():
            instrument = names.INSTRUMENTS[name]
            guarded = tuple(
                self.guard.label(label, value) for label, value in zip(instrument.labels, values, strict=True)
            )
            with self.lock:
                self._tally(instrument, guarded, values, count)
        for label, (used, limit) in self.guard.usage().items():
            self.observe(names.LABELS_USED, used, {Label.LABEL: label})
            self.observe(names.LABELS_LIMIT, limit, {Label.LABEL: label})
        readings = self._readings()
        with self.lock:
            for instrument in _READ:
                self._used -= len(self._tables.pop(instrument.name, ()))
            for instrument, guarded, value in readings:
                series = self.counter(instrument, *guarded)
                series.value = max(series.value, value) if instrument.kind == "gauge" else series.value + value
            return [
                Snapshot(
                    names.INSTRUMENTS[name], names.INSTRUMENTS[name].bounds, [_point(k, s) for k, s in table.items()]
                )
                for name, table in self._tables.items()
            ]

    def _readings(self) -> list[tuple[Instrument, tuple[str, ...], float]]:
        """Ask for what is true now; a topic whose answer fails is left out, the others are exported."""
        found: list[tuple[Instrument, tuple[str, ...], float]] = []
        for topic, read in tuple(runtime.at_collection.items()):
            try:
                found += [
                    (instrument, tuple(self.guard.label(label, labels[label]) for label in instrument.labels), value)
                    for instrument, labels, value in read()
                ]
            except Exception as error:  # noqa: BLE001  it may ask a broker's client, and must not cost the export
                _guard.fault(f"collect.{topic}", error)
        return found

    def _tally(self, instrument: Instrument, guarded: tuple[str, ...], raw: tuple[str, ...], count: int) -> None:
        known = self._tallied.get((instrument.name, raw), 0)
        self._tallied[instrument.name, raw] = count
        self.counter(instrument, *guarded).value += count - known

    def reset(self, start_ns: int) -> None:
        """Forget everything: a forked child counts its own."""
        self.lock = threading.Lock()
        self.guard.reset_after_fork()
        self._tables.clear()
        self._tallied.clear()
        self._used = 0
        self.start_ns = start_ns


def _point(labels: tuple[str, ...], series: Counter | Histogram) -> Point:
    if isinstance(series, Counter):
        return Point(labels, series.value)
    return Point(labels, series.total, tuple(series.counts), tuple(series.exemplars.values()))


class MetricSink:
    """Counts every hop."""

    def __init__(self, registry: Registry, *, exemplars: bool = True) -> None:
        """Count into *registry*; without *exemplars* where the spans they would point at are not exported."""
        self._registry = registry
        self._exemplars = exemplars

    def begin(self, record: HopRecord) -> None:
        """Count a hop as running."""
        self._registry.add(names.HOPS_ACTIVE, 1, record.kind)

    def promise(self, journey: Journey, channel: str, count: int) -> None:
        """Count promised deliveries under the tenant and region they will keep."""
        guard = self._registry.guard
        self._registry.add(
            names.INTENTS, count, guard.label(Label.CHANNEL, channel),
            guard.tenant(journey.promise_tenant or "", named=journey.promise_named),
            guard.label(Label.REGION, journey.promise_region or ""), guard.label(Label.SOURCE, journey.source),
        )  # fmt: skip

    def end(self, record: HopRecord) -> None:  # noqa: C901  what each kind of hop measures, side by side
        """Record everything that one hop measured, under one lock."""
        registry, guard = self._registry, self._registry.guard
        exemplar = None
        if record.sampled and self._exemplars:
            exemplar = Exemplar(0.0, record.wall_ns + record.duration_ns, record.trace_id, record.span_id)
        category = record.category.value if record.category is not None else ""
        duration = record.duration_ns / 1e9
        name = guard.label(_NAME_LABELS.get(record.kind, Label.DESTINATION), record.name)
        error_type = guard.label(Label.ERROR_TYPE, record.error_type)
        stages = [
            (guard.label(Label.STAGE, s.name), s.outcome, s.duration_ns / 1e9) for s in record.stages or () if s.ended
        ]
        events = [guard.label(Label.EVENT, e.name) for e in record.events or () if e.domain]
        system = guard.label(Label.SYSTEM, record.message.system) if record.message is not None else names.UNKNOWN
        kind = record.kind
        with registry.lock:
            active = registry.counter(names.HOPS_ACTIVE, kind)
            active.value = max(active.value - 1, 0)  # after a fork, hops end that this process has not begun
            if kind == "accept":
                outcome = str(record.outcome) if record.outcome in _PLAIN else "failed"
                accepted = registry.histogram(names.ACCEPT_DURATION, name, outcome, category)
                accepted.record(duration, _at(exemplar, duration))
            elif kind in _CLIENT_OPERATIONS:
                labels = (system, _CLIENT_OPERATIONS[kind], name, error_type)
                registry.histogram(names.CLIENT_DURATION, *labels).record(duration, _at(exemplar, duration))
                if kind == "publish":
                    registry.counter(names.SENT_MESSAGES, *labels).value += 1
            elif kind == "consume":
                self._consume(record, (system, "process", name, error_type), category, exemplar)
            elif kind == "deliver":
                self._deliver(record, category, duration, exemplar)
            elif kind == "job":
                registry.counter(names.JOBS, name, record.state).value += 1
            if record.sends and kind != "publish":
                registry.histogram(names.MESSAGE_FANOUT, name).record(record.sends)
            for stage, outcome, seconds in stages:
                registry.histogram(names.STAGE_DURATION, stage, outcome).record(seconds, _at(exemplar, seconds))
            for event in events:
                registry.counter(names.EVENTS, event).value += 1
            if record.delivery_ends:
                self._ends(record, exemplar)

    def _consume(self, record: HopRecord, operation: tuple[str, ...], category: str, exemplar: Exemplar | None) -> None:
        registry, guard, journey = self._registry, self._registry.guard, record.journey
        name, duration = operation[2], record.duration_ns / 1e9
        registry.histogram(names.PROCESS_DURATION, *operation).record(duration, _at(exemplar, duration))
        registry.counter(names.CONSUMED_MESSAGES, *operation).value += 1
        if record.lag is not None:
            registry.histogram(names.MESSAGE_LAG, name, record.lag_source).record(record.lag, _at(exemplar, record.lag))
        settled = record.settled if record.settled not in (None, Outcome.CANCELLED) else Outcome.FAILED
        tenant = guard.tenant(journey.tenant, named=journey.named) if journey is not None else names.UNKNOWN
        source = guard.label(Label.SOURCE, journey.source if journey is not None else "")
        registry.counter(names.MESSAGE_SETTLED, name, str(settled), category, tenant, source).value += 1
        message = record.message
        if record.attempt > 1 or (message is not None and message.delivery_count > 1):
            registry.counter(names.MESSAGE_REDELIVERED, name).value += 1

    def _deliver(self, record: HopRecord, category: str, duration: float, exemplar: Exemplar | None) -> None:
        registry, guard = self._registry, self._registry.guard
        channel, provider = guard.label(Label.CHANNEL, record.channel), guard.label(Label.PROVIDER, record.provider)
        labels = (channel, provider, record.result, category)
        registry.counter(names.ATTEMPTS, *labels).value += 1
        registry.histogram(names.DELIVERY_DURATION, *labels).record(duration, _at(exemplar, duration))
        if record.ambiguous and record.result == "failed":
            registry.counter(names.AMBIGUOUS, channel, provider).value += 1

    def _ends(self, record: HopRecord, exemplar: Exemplar | None) -> None:
        registry, guard = self._registry, self._registry.guard
        for end in record.delivery_ends or ():
            channel, provider = guard.label(Label.CHANNEL, end.channel), guard.label(Label.PROVIDER, end.provider)
            if end.recovered:
                registry.counter(names.RECOVERED, channel, provider).value += 1
                continue
            tenant, region = guard.tenant(end.tenant, named=end.named), guard.label(Label.REGION, end.region)
            if end.promised_here:
                registry.counter(
                    names.INTENTS, channel, tenant, region, guard.label(Label.SOURCE, end.source)
                ).value += 1
            category = end.category.value if end.category is not None else ""
            registry.counter(
                names.OUTCOMES, channel, provider, end.step, end.outcome.value, category, tenant, region
            ).value += 1
            if end.repeated:
                registry.counter(names.REPEATED, channel, provider).value += 1
            if end.age is not None and end.outcome is Outcome.OK:
                registry.histogram(names.END_TO_END, channel, end.step).record(end.age, _at(exemplar, end.age))


_NAME_LABELS = {
    "accept": Label.ROUTE, "job": Label.CONNECTOR, "deliver": Label.CHANNEL, "receipt": Label.STEP,
}  # fmt: skip
_CLIENT_OPERATIONS = {"publish": "send", "receive": "receive"}
_PLAIN = (Outcome.OK, Outcome.FAILED, Outcome.CANCELLED)


def _at(exemplar: Exemplar | None, value: float) -> Exemplar | None:
    return None if exemplar is None else exemplar._replace(value=value)
