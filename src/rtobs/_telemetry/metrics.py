"""Metrics: our own pre-aggregated series, counted for every hop before and whatever sampling decides.

A hop leaves two numbers in a list; lists are added up a few dozen numbers at a time, and before anybody looks. Must not
know how series leave the process, or brokers.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import OTHER, Instrument, Label
from rtobs._hop.runtime import runtime
from rtobs._journey.outcome import Outcome

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord
    from rtobs._telemetry.labels import LabelGuard

T = TypeVar("T")

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


_READ = (names.QUEUE_DEPTH, names.QUEUE_AGE, names.BUSY_TIME, names.CAPACITY_TIME, names.HOPS_ACTIVE)
"""Read whole at every collection: ages grow by themselves, and what is not told any more is not shown any more."""


class Exemplar(NamedTuple):
    """One measurement and the span it was made in."""

    value: float
    time_ns: int
    trace_id: int
    span_id: int


Where = tuple[int, str, str]
"""The moment a sampled hop ended, nanoseconds since the epoch, and its trace and span id in hex digits."""


class Counter:
    """A sum that only grows, or a gauge that is set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts by upper bound; the last count is for what exceeds all bounds."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, tuple[float, Where]] = {}
        """By bucket: the last measurement of a sampled hop, and its span."""

    def record(self, value: float, where: Where | None = None) -> None:
        """Add one measurement, with the sampled hop that made it."""
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.total += value
        if where is not None:
            self.exemplars[index] = value, where

    def record_all(self, values: list[float]) -> None:
        """Add many, at a fraction of what each would cost alone; *values* are sorted afterwards."""
        values.sort()
        below = 0
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound)
            if upto != below:
                self.counts[index] += upto - below
                below = upto
                if upto == len(values):
                    break
        self.counts[-1] += len(values) - below
        self.total += sum(values)


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

    def __init__(self, guard: LabelGuard, start_ns: int, bounds: Mapping[str, tuple[float, ...]] | None = None) -> None:
        """Start empty at *start_ns*, nanoseconds since the epoch; *bounds* replace those of histograms, by name."""
        self.guard = guard
        self._bounds = dict(bounds or {})
        self.start_ns = start_ns
        self.lock = threading.RLock()  # a log handler of the user's may count something
        self._tables: dict[str, dict[tuple[str, ...], Counter | Histogram]] = {}
        self._tallied: dict[tuple[str, tuple[str, ...]], int] = {}
        self._used = 0
        self.reduced = 0
        """How often labels were given up so that a series could be had."""
        self.settle: Callable[[], None] = lambda: None
        """Adds up what has been measured and not counted yet."""

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
        bounds = self._bounds.get(instrument.name, instrument.bounds)
        cost = len(bounds) + 3 if instrument.kind == "histogram" else 1
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
                self.reduced += 1
                _guard.tally(names.LABELS_LIMITED, str(given_up), "series")
                found = table.get(labels)
                if found is not None:
                    return found
        series = Histogram(bounds) if instrument.kind == "histogram" else Counter()
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
        self.settle()
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
                    names.INSTRUMENTS[name],
                    self._bounds.get(name, names.INSTRUMENTS[name].bounds),
                    [_point(k, s) for k, s in table.items()],
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
        self.lock = threading.RLock()
        self.guard.reset_after_fork()
        self._tables.clear()
        self._tallied.clear()
        self._used = 0
        self.start_ns = start_ns


def _point(labels: tuple[str, ...], series: Counter | Histogram) -> Point:
    if isinstance(series, Counter):
        return Point(labels, series.value)
    marks = series.exemplars.values()
    found = [Exemplar(value, at, int(trace, 16), int(span, 16)) for value, (at, trace, span) in marks]
    return Point(labels, series.total, tuple(series.counts), tuple(found))


class _Bound:
    """The series of all hops that have the same labels: found once, then added to."""

    __slots__ = ("busy_ns", "counts", "duration", "durations_ns", "lag", "lags", "marks", "most")

    def __init__(
        self, duration: Histogram | None, *counts: Counter, lag: Histogram | None = None,
        busy_ns: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.duration = duration
        self.counts = counts
        self.lag = lag
        self.busy_ns = busy_ns
        self.durations_ns: list[int] = []
        """Of the hops that are not added up yet and not sampled."""
        self.lags: list[float] = []
        """How long messages waited, seconds, not added up yet either."""
        self.marks: list[tuple[int, float | None, int, str, str]] = []
        """Of sampled hops: how long they took and their messages waited, and what ``Where`` says, for exemplars."""
        self.most = _MOST_WAITING
        """Hops that may wait."""

    def settle(self) -> None:
        """Add up what waits. Call with the registry's lock held: threads may go on adding meanwhile."""
        durations_ns, lags, marks = _taken(self.durations_ns), _taken(self.lags), _taken(self.marks)
        duration, lag = self.duration, self.lag
        if marks:
            durations_ns += [mark[0] for mark in marks]
            lags += [mark[1] for mark in marks if mark[1] is not None]
        if durations_ns:
            for counter in self.counts:
                counter.value += len(durations_ns)
            if self.busy_ns is not None:
                self.busy_ns[0] += sum(durations_ns)
            if duration is not None:
                duration.record_all([spent / 1e9 for spent in durations_ns])
        if lags and lag is not None:
            lag.record_all(lags)
        for spent, waited, *place in (max(marks, key=_spent), *marks[-_MOST_MARKS:]) if marks else ():
            where: Any = tuple(place)
            if duration is not None:
                duration.exemplars[bisect_left(duration.bounds, spent / 1e9)] = spent / 1e9, where
            if lag is not None and waited is not None:
                lag.exemplars[bisect_left(lag.bounds, waited)] = waited, where


_spent = itemgetter(0)


def _taken(waiting: list[T]) -> list[T]:
    """Take out what is in a list now; what other threads add at the same moment stays in it."""
    taken = waiting[:]
    del waiting[: len(taken)]
    return taken


_MOST_BOUND = 4096
"""Different sets of labels that are remembered; when there are more, all are looked up again."""
_MOST_MARKS = 8
"""Exemplars made of hops that are added up together, beside that of the slowest: others would only replace them."""
_MOST_WAITING = 64
"""Hops of one set of labels that wait to be added up; more would make one hop in so many noticeably slower."""
MOST_WORKERS = 256
"""Workers that are kept apart here; fewer become labels."""


class MetricSink:
    """Counts every hop."""

    def __init__(self, registry: Registry, *, exemplars: bool = True) -> None:
        """Count into *registry*; without *exemplars* where the spans they would point at are not exported."""
        self._registry = registry
        self._exemplars = exemplars
        registry.settle = self.settle
        self.reset()

    def reset(self) -> None:
        """Forget which series belong to which labels: the registry has begun anew."""
        self._known: dict[tuple[Any, ...], _Bound] = {}
        self._passing: list[_Bound] = []
        """What has been remembered before that."""
        self._busy_ns: dict[str, list[int]] = {}
        self.kinds: set[str] = set()
        """The kinds of hop that have ended so far."""

    def busy(self) -> dict[str, int]:
        """Return how long handlers have held messages, nanoseconds by the destination that these came from."""
        self.settle()
        return {worker: spent[0] for worker, spent in list(self._busy_ns.items())}

    def promise(self, journey: Journey, channel: str, count: int, release_ns: int = 0) -> None:
        """Count promised deliveries, at once, under the tenant and region they will keep."""
        del release_ns
        guard = self._registry.guard
        self._registry.add(
            names.INTENTS, count, guard.label(Label.CHANNEL, channel),
            guard.tenant(journey.promise_tenant or "", named=journey.promise_named),
            guard.label(Label.REGION, journey.promise_region or ""), guard.label(Label.SOURCE, journey.source),
        )  # fmt: skip

    def end(self, record: HopRecord) -> None:
        """Leave an entry for everything that nearly all hops measure, and record the rest."""
        message, journey, rare = record.message, record.journey, record.rare
        sampled = record.sampled and self._exemplars
        key: tuple[Any, ...]
        if record.healthy and rare is None and journey is not None:
            if message is None:
                key = (record.kind, record.name, sampled, journey.tenant, journey.source, journey.named)
            else:
                key = (
                    record.kind, record.name, sampled, journey.tenant, journey.source, journey.named,
                    record.lag_source, message.destination, message.system,
                )  # fmt: skip
        else:
            key = self._long_key(record, sampled=sampled)
        bound = self._known.get(key)
        if bound is None:
            bound = self._bind(key, record, sampled=sampled)
        spent, waited = record.duration_ns, record.lag
        waiting: list[Any]
        if sampled:
            waiting = bound.marks
            span = record.drawn_hex or record.span_hex
            waiting.append((spent, waited, record.wall_ns + spent, record.trace_hex, span))
        else:
            if waited is not None:
                bound.lags.append(waited)
            waiting = bound.durations_ns
            waiting.append(spent)
        if len(waiting) >= bound.most:
            with self._registry.lock:
                bound.settle()
        if rare is not None or not record.healthy or record.sends or record.stages or record.events:
            with self._registry.lock:
                self._more(record, sampled=sampled)

    def settle(self) -> None:
        """Add up all that waits."""
        with self._registry.lock:
            for bound in (*self._known.values(), *self._passing):
                bound.settle()

    @staticmethod
    def _long_key(record: HopRecord, *, sampled: bool) -> tuple[Any, ...]:
        """Return what decides the labels of a hop about which there is something to say."""
        message, journey = record.message, record.journey
        kept = (record.keep_reason or "head") if sampled else ""
        if record.kind == "deliver":
            return "deliver", kept, record.channel, record.provider, record.result, record.category
        return (
            record.kind, kept, record.name, message.system if message is not None else None, record.outcome,
            record.settled, journey.tenant if journey is not None else None, journey is not None and journey.named,
            journey.source if journey is not None else "", record.lag_source,
            message.destination if message is not None else None, record.error_type, record.category, record.state,
        )  # fmt: skip

    def _bind(self, key: tuple[Any, ...], record: HopRecord, *, sampled: bool) -> _Bound:
        """Find the series of a hop's labels; those that cost a label are looked up, and counted, each time."""
        guard, registry = self._registry.guard, self._registry
        with registry.lock:
            known = self._known.get(key)
            if known is not None:  # another thread was quicker
                return known
            before = guard.limited + registry.reduced
            self.kinds.add(record.kind)
            found = self._series(record)
            if sampled:
                found.counts += (registry.counter(names.SAMPLING_KEPT, record.keep_reason or "head"),)
            if guard.limited + registry.reduced == before:
                if len(self._known) >= _MOST_BOUND:
                    self.settle()
                    self._passing = list(self._known.values())  # a thread may be about to add to one of them
                    self._known.clear()
                self._known[key] = found
            else:
                found.most = 1  # nobody else knows it, so nothing may wait in it
            return found

    def _series(self, record: HopRecord) -> _Bound:
        registry, guard, kind, message = self._registry, self._registry.guard, record.kind, record.message
        category = record.category.value if record.category is not None else ""
        if kind == "deliver":
            channel, provider = guard.label(Label.CHANNEL, record.channel), guard.label(Label.PROVIDER, record.provider)
            labels = (channel, provider, record.result, category)
            return _Bound(
                registry.histogram(names.DELIVERY_DURATION, *labels), registry.counter(names.ATTEMPTS, *labels)
            )
        name = guard.label(_NAME_LABELS.get(kind, Label.DESTINATION), record.name)
        if kind == "accept":
            outcome = str(record.outcome) if record.outcome in _PLAIN else "failed"
            return _Bound(registry.histogram(names.ACCEPT_DURATION, name, outcome, category))
        if kind == "job":
            return _Bound(None, registry.counter(names.JOBS, name, record.state))
        system = guard.label(Label.SYSTEM, message.system) if message is not None else names.UNKNOWN
        error_type = guard.label(Label.ERROR_TYPE, record.error_type)
        if kind in _CLIENT_OPERATIONS:
            labels = (system, _CLIENT_OPERATIONS[kind], name, error_type)
            duration = registry.histogram(names.CLIENT_DURATION, *labels)
            return _Bound(duration, *([registry.counter(names.SENT_MESSAGES, *labels)] if kind == "publish" else ()))
        if kind != "consume":
            return _Bound(None)
        operation = (system, "process", name, error_type)
        journey = record.journey
        settled = record.settled if record.settled not in (None, Outcome.CANCELLED) else Outcome.FAILED
        tenant = guard.tenant(journey.tenant, named=journey.named) if journey is not None else names.UNKNOWN
        source = guard.label(Label.SOURCE, journey.source if journey is not None else "")
        worker = message.destination if message is not None else record.name
        if worker not in self._busy_ns and len(self._busy_ns) >= MOST_WORKERS:
            worker = OTHER
        return _Bound(
            registry.histogram(names.PROCESS_DURATION, *operation),
            registry.counter(names.CONSUMED_MESSAGES, *operation),
            registry.counter(names.MESSAGE_SETTLED, name, str(settled), category, tenant, source),
            lag=registry.histogram(names.MESSAGE_LAG, name, record.lag_source) if record.lag is not None else None,
            busy_ns=self._busy_ns.setdefault(worker, [0]),
        )

    def _more(self, record: HopRecord, *, sampled: bool) -> None:
        """Record what only some hops have. Call with the lock held."""
        where = (record.wall_ns + record.duration_ns, record.trace_hex, record.span_hex) if sampled else None
        registry, guard, kind, message = self._registry, self._registry.guard, record.kind, record.message
        if kind == "consume" and (record.attempt > 1 or (message is not None and message.delivery_count > 1)):
            registry.counter(names.MESSAGE_REDELIVERED, guard.label(Label.DESTINATION, record.name)).value += 1
        if kind == "deliver" and record.ambiguous and record.result == "failed":
            channel, provider = guard.label(Label.CHANNEL, record.channel), guard.label(Label.PROVIDER, record.provider)
            registry.counter(names.AMBIGUOUS, channel, provider).value += 1
        if record.sends and kind != "publish":
            name = guard.label(_NAME_LABELS.get(kind, Label.DESTINATION), record.name)
            registry.histogram(names.MESSAGE_FANOUT, name).record(record.sends)
        for stage in record.stages or ():
            if stage.ended:
                labels = guard.label(Label.STAGE, stage.name), stage.outcome
                registry.histogram(names.STAGE_DURATION, *labels).record(stage.duration_ns / 1e9, where)
        for event in record.events or ():
            if event.domain:
                registry.counter(names.EVENTS, guard.label(Label.EVENT, event.name)).value += 1
        if record.delivery_ends:
            self._ends(record, where)

    def _ends(self, record: HopRecord, where: Where | None) -> None:
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
                registry.histogram(names.END_TO_END, channel, end.step).record(end.age, where)


_NAME_LABELS = {
    "accept": Label.ROUTE, "job": Label.CONNECTOR, "deliver": Label.CHANNEL, "receipt": Label.STEP,
}  # fmt: skip
_CLIENT_OPERATIONS = {"publish": "send", "receive": "receive"}
_PLAIN = (Outcome.OK, Outcome.FAILED, Outcome.CANCELLED)
