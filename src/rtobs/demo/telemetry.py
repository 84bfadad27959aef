"""What arrived over OTLP, kept so that questions can be asked of it: metric series, spans by journey, log events.

Knows the protocol and the names of `rtobs._conventions`; knows nothing of the platform that emitted it.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from rtobs._conventions import Attribute, LogKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, NumberDataPoint
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanProto

Value = str | int | float | bool
Labels = tuple[tuple[str, str], ...]

DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA

JOURNEYS_KEPT: Final = 2000
"""Journeys whose spans are held; the oldest go first. Totals do not depend on them."""
PINNED_KEPT: Final = 200
EVENTS_KEPT: Final = 5000
IDS_KEPT: Final = 1_000_000
WINDOW: Final = 10.0
"""Seconds that "recent" means in the view."""
FRESH_SECONDS: Final = 5.0
"""How long a gauge of a process that tells nothing any more is taken to be true: several export intervals."""


@dataclass(slots=True)
class Span:
    """One finished operation of a journey."""

    trace_id: str
    span_id: str
    parent_id: str
    """The span that caused it; where it has no parent, the first one it is linked to."""
    name: str
    service: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Value]

    def text(self, name: str) -> str:
        """Return attribute *name* as text, empty where it is missing."""
        value = self.attributes.get(name, "")
        return value if isinstance(value, str) else str(value)

    def number(self, name: str) -> float | None:
        """Return attribute *name* as a number, None where it is missing or is none."""
        value = self.attributes.get(name)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def hop(self) -> str:
        """Return the kind of hop, empty for a stage or somebody else's span."""
        return self.text(Attribute.HOP)


@dataclass(slots=True)
class LogEvent:
    """One structured log event."""

    time_ns: int
    service: str
    body: str
    attributes: dict[str, Value]


@dataclass(slots=True)
class Histogram:
    """Bucket counts of one or several series."""

    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list[int])

    @property
    def count(self) -> int:
        """Return how many values were recorded."""
        return sum(self.counts)

    def add(self, bounds: Sequence[float], counts: Sequence[int]) -> None:
        """Add buckets; buckets with other bounds go where their upper bound belongs."""
        if not self.counts:
            self.bounds, self.counts = tuple(bounds), list(counts)
            return
        for place, count in enumerate(counts):
            upper = bounds[place] if place < len(bounds) else math.inf
            self.counts[bisect.bisect_left(self.bounds, upper)] += count

    def minus(self, earlier: Histogram) -> Histogram:
        """Return what was recorded since *earlier*, an older reading of the same series."""
        if not earlier.counts or earlier.bounds != self.bounds:
            return Histogram(self.bounds, list(self.counts))
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Histogram(self.bounds, [max(0, now - then) for now, then in pairs])

    def within(self, limit: float) -> int:
        """Return how many values were at most *limit* seconds, by the largest bound that is not above it."""
        return sum(self.counts[: bisect.bisect_right(self.bounds, limit)])

    def quantile(self, share: float) -> float | None:
        """Return the value below which *share* of all lie, interpolated inside its bucket; None without values."""
        rank, seen = share * self.count, 0
        if not self.count:
            return None
        for place, count in enumerate(self.counts):
            if count and seen + count >= rank:
                low = self.bounds[place - 1] if place else 0.0
                high = self.bounds[place] if place < len(self.bounds) else low
                return low + (high - low) * (rank - seen) / count
            seen += count
        return self.bounds[-1] if self.bounds else None


class Telemetry:
    """Everything that was received. All methods may be called from any thread."""

    def __init__(self, watch: Callable[[Span], None] | None = None) -> None:
        self.lock = threading.RLock()
        self.spans_received = 0
        self.instances: dict[str, str] = {}
        self.correlation_ids: set[bytes] = set()
        self.journeys: OrderedDict[str, list[Span]] = OrderedDict()
        self.pinned: dict[str, list[Span]] = {}
        self.events: deque[LogEvent] = deque(maxlen=EVENTS_KEPT)
        self._watch = watch
        self._trace_journey: dict[str, str] = {}
        self._homeless: dict[str, list[Span]] = {}
        self._counters: defaultdict[str, dict[tuple[str, Labels], float]] = defaultdict(dict)
        self._histograms: defaultdict[str, dict[tuple[str, Labels], Histogram]] = defaultdict(dict)
        self._gauges: defaultdict[str, dict[str, tuple[float, dict[Labels, float]]]] = defaultdict(dict)
        self._peaks: defaultdict[str, dict[Labels, float]] = defaultdict(dict)

    # what comes in

    def absorb_metrics(self, request: ExportMetricsServiceRequest) -> None:
        """Take in the points of sums, histograms and gauges."""
        with self.lock:
            for resource in request.resource_metrics:
                _, instance = self._emitter(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.HasField("sum"):
                            delta = metric.sum.aggregation_temporality == DELTA
                            for point in metric.sum.data_points:
                                self._absorb_sum(metric.name, instance, point, delta=delta)
                        elif metric.HasField("histogram"):
                            delta = metric.histogram.aggregation_temporality == DELTA
                            for bucket in metric.histogram.data_points:
                                self._absorb_histogram(metric.name, instance, bucket, delta=delta)
                        elif metric.HasField("gauge"):
                            self._absorb_gauge(metric.name, instance, metric.gauge.data_points)

    def absorb_traces(self, request: ExportTraceServiceRequest) -> None:
        """Take in spans and file them under their journey."""
        with self.lock:
            for resource in request.resource_spans:
                service, _ = self._emitter(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for item in scope.spans:
                        self.spans_received += 1
                        span = Span(
                            trace_id=item.trace_id.hex(),
                            span_id=item.span_id.hex(),
                            parent_id=(item.parent_span_id or _first_link(item.links)).hex(),
                            name=item.name,
                            service=service,
                            start_ns=item.start_time_unix_nano,
                            end_ns=item.end_time_unix_nano,
                            failed=item.status.code == item.status.STATUS_CODE_ERROR,
                            attributes=_attributes(item.attributes),
                        )
                        if span.hop != "receive":  # a fetch brings messages of many journeys, and is part of none
                            self._file(span)

    def absorb_logs(self, request: ExportLogsServiceRequest) -> None:
        """Take in log events."""
        with self.lock:
            for resource in request.resource_logs:
                service, _ = self._emitter(resource.resource.attributes)
                for scope in resource.scope_logs:
                    for record in scope.log_records:
                        body = _value(record.body)
                        attributes = _attributes(record.attributes)
                        if record.body.HasField("kvlist_value"):
                            attributes = _attributes(record.body.kvlist_value.values) | attributes
                            body = attributes.get(LogKey.EVENT, "")
                        time_ns = record.time_unix_nano or record.observed_time_unix_nano
                        self.events.append(LogEvent(time_ns, service, str(body), attributes))

    # what may be asked

    def series(self, name: str) -> dict[Labels, float]:
        """Return the total of each label combination of counter *name*, summed over processes."""
        totals: defaultdict[Labels, float] = defaultdict(float)
        with self.lock:
            for (_, labels), value in self._counters[name].items():
                totals[labels] += value
        return dict(totals)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of counter *name* over all series that carry *labels*."""
        wanted = labels.items()
        return sum(value for mine, value in self.series(name).items() if wanted <= dict(mine).items())

    def histograms(self, name: str, *by: str, **labels: str) -> dict[tuple[str, ...], Histogram]:
        """Return histogram *name* per combination of the labels *by*, over all series that carry *labels*."""
        merged: defaultdict[tuple[str, ...], Histogram] = defaultdict(Histogram)
        with self.lock:
            for (_, mine), histogram in self._histograms[name].items():
                have = dict(mine)
                if labels.items() <= have.items():
                    merged[tuple(have.get(label, "") for label in by)].add(histogram.bounds, histogram.counts)
        return dict(merged)

    def gauges(self, name: str) -> dict[Labels, float]:
        """Return what gauge *name* is now by its labels: the highest of the processes that still tell."""
        oldest = time.monotonic() - FRESH_SECONDS
        found: dict[Labels, float] = {}
        with self.lock:
            for told_at, readings in self._gauges[name].values():
                for labels, value in readings.items() if told_at >= oldest else ():
                    found[labels] = max(value, found.get(labels, value))
        return found

    def peaks(self, name: str) -> dict[Labels, float]:
        """Return the highest reading that gauge *name* ever had, by its labels."""
        with self.lock:
            return dict(self._peaks[name])

    def pin(self, correlation_id: str) -> None:
        """Hold a journey for the story at the end, however many come after it."""
        with self.lock:
            if len(self.pinned) < PINNED_KEPT and correlation_id in self.journeys:
                self.pinned[correlation_id] = self.journeys[correlation_id]

    def journey(self, correlation_id: str) -> list[Span]:
        """Return the spans of one journey that are still held, by start time."""
        with self.lock:
            spans = self.pinned.get(correlation_id) or self.journeys.get(correlation_id, [])
            return sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))

    def journey_events(self, correlation_id: str) -> list[LogEvent]:
        """Return the log events of one journey that are still held, by time."""
        with self.lock:
            mine = [event for event in self.events if event.attributes.get(LogKey.CORRELATION_ID) == correlation_id]
        return sorted(mine, key=lambda event: event.time_ns)

    # inside

    def _emitter(self, attributes: Iterable[KeyValue]) -> tuple[str, str]:
        resource = _attributes(attributes)
        service = str(resource.get("service.name", ""))
        instance = str(resource.get("service.instance.id", service))
        self.instances[instance] = service
        return service, instance

    def _absorb_sum(self, name: str, instance: str, point: NumberDataPoint, *, delta: bool) -> None:
        value = _number(point)
        series = self._counters[name]
        key = instance, _labels(point.attributes)
        series[key] = series.get(key, 0.0) + value if delta else value

    def _absorb_histogram(self, name: str, instance: str, point: HistogramDataPoint, *, delta: bool) -> None:
        series = self._histograms[name]
        key = instance, _labels(point.attributes)
        if not delta or key not in series:
            series[key] = Histogram()
        series[key].add(point.explicit_bounds, point.bucket_counts)

    def _absorb_gauge(self, name: str, instance: str, points: Iterable[NumberDataPoint]) -> None:
        """Keep what one process tells now, in place of all that it told before: series may have ended."""
        readings = {_labels(point.attributes): _number(point) for point in points}
        self._gauges[name][instance] = time.monotonic(), readings
        peaks = self._peaks[name]
        for labels, value in readings.items():
            peaks[labels] = max(value, peaks.get(labels, value))

    def _file(self, span: Span) -> None:
        correlation_id = span.text(Attribute.CORRELATION_ID)
        if correlation_id:
            self._trace_journey[span.trace_id] = correlation_id
            for earlier in self._homeless.pop(span.trace_id, ()):
                self._file(earlier)
        else:
            correlation_id = self._trace_journey.get(span.trace_id, "")
            if not correlation_id:
                # a stage or a neighbour's span that overtook the hop it belongs to
                if len(self._homeless) < JOURNEYS_KEPT:
                    self._homeless.setdefault(span.trace_id, []).append(span)
                return
        if len(self.correlation_ids) < IDS_KEPT:
            self.correlation_ids.add(_packed(correlation_id))
        pinned = self.pinned.get(correlation_id)
        spans = self.journeys.setdefault(correlation_id, pinned if pinned is not None else [])
        if not _add(spans, span):
            return
        if len(self.journeys) > JOURNEYS_KEPT:
            _, evicted = self.journeys.popitem(last=False)
            for old in evicted:
                self._trace_journey.pop(old.trace_id, None)
        if self._watch is not None:
            self._watch(span)


def _add(spans: list[Span], span: Span) -> bool:
    """Add a span to its journey's, unless it is a copy; an exported one takes the place of one that was rebuilt."""
    rebuilt = Attribute.RECONSTRUCTED in span.attributes
    for place, known in enumerate(spans):
        if known.span_id == span.span_id and (rebuilt or Attribute.RECONSTRUCTED in known.attributes):
            if not rebuilt:
                spans[place] = span
            return False
    spans.append(span)
    return True


def _first_link(links: Sequence[SpanProto.Link]) -> bytes:
    """A receipt has a trace of its own and is linked to the delivery it confirms."""
    return links[0].span_id if links else b""


def _packed(correlation_id: str) -> bytes:
    try:
        return bytes.fromhex(correlation_id)
    except ValueError:
        return correlation_id.encode()


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return ", ".join(str(_value(item)) for item in value.array_value.values)
    plain = getattr(value, kind) if kind is not None else ""
    return plain if isinstance(plain, (str, int, float, bool)) else ""


def _number(point: NumberDataPoint) -> float:
    return point.as_double if point.HasField("as_double") else float(point.as_int)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _labels(pairs: Iterable[KeyValue]) -> Labels:
    return labels_of({pair.key: str(_value(pair.value)) for pair in pairs})


def labels_of(labels: Mapping[str, str]) -> Labels:
    """Return *labels* in the one order in which series are filed."""
    return tuple(sorted(labels.items()))
