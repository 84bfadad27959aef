"""Our records, series and events in the SDK's own data classes, for its exporters.

Pure. Must not know threads or the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as SdkHistogram
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from rtobs import _conventions as names
from rtobs._conventions import LogKey
from rtobs._telemetry.metrics import Exemplar, Point, Snapshot
from rtobs._telemetry.readable import SCOPE

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

_SEVERITY = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
}


_TIME_END = 1 << 64


class Deltas:
    """Remembers what was exported, so that delta temporality reports each measurement once."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, tuple[str, ...]], Point] = {}
        self._since: dict[tuple[str, tuple[str, ...]], int] = {}
        self._pending: list[tuple[tuple[str, tuple[str, ...]], Point, int]] = []

    def commit(self) -> None:
        """The export arrived: the next one begins where it ended. Without it the next one repeats it."""
        for key, point, now_ns in self._pending:
            self._before[key], self._since[key] = point, now_ns

    def begin(self) -> None:
        """Start another export, whether the one before arrived or not."""
        self._pending.clear()

    def since(self, name: str, labels: tuple[str, ...], start_ns: int) -> int:
        """Return where this series' interval begins."""
        return self._since.get((name, labels), start_ns)

    def take(self, name: str, point: Point, now_ns: int) -> Point:
        """Return what came to a series since the last time."""
        key = (name, point.labels)
        before = self._before.get(key)
        self._pending.append((key, point, now_ns))
        if before is None:
            return point
        counts = tuple(now - then for now, then in zip(point.counts, before.counts, strict=True))
        fresh = tuple(one for one in point.exemplars if one not in before.exemplars)
        return Point(point.labels, point.value - before.value, counts, fresh)


def metrics_data(
    snapshots: Sequence[Snapshot], resource: Resource, start_ns: int, now_ns: int, deltas: Deltas | None = None
) -> MetricsData:
    """Return all series as the SDK's MetricsData; with *deltas* sums and histograms are deltas."""
    if deltas is not None:
        deltas.begin()
    metrics = [_metric(snapshot, start_ns, now_ns, deltas) for snapshot in snapshots if snapshot.points]
    scope = ScopeMetrics(SCOPE, metrics, names.SCHEMA_URL)
    return MetricsData([ResourceMetrics(resource, [scope], resource.schema_url)])


def _metric(snapshot: Snapshot, start_ns: int, now_ns: int, deltas: Deltas | None) -> Metric:
    instrument = snapshot.instrument
    temporality = AggregationTemporality.CUMULATIVE if deltas is None else AggregationTemporality.DELTA
    points: list[Any] = []
    for point in snapshot.points:
        labels = {str(name): value for name, value in zip(instrument.labels, point.labels, strict=True) if value}
        if instrument.kind == "gauge":
            points.append(NumberDataPoint(labels, start_ns, now_ns, point.value))
            continue
        begun, shown = start_ns, point
        if deltas is not None:
            begun = deltas.since(instrument.name, point.labels, start_ns)
            shown = deltas.take(instrument.name, point, now_ns)
        if instrument.kind == "counter":
            points.append(NumberDataPoint(labels, begun, now_ns, shown.value))
        else:
            points.append(_histogram_point(labels, begun, now_ns, shown, snapshot.bounds))
    data: Any
    if instrument.kind == "gauge":
        data = Gauge(points)
    elif instrument.kind == "counter":
        data = Sum(points, temporality, is_monotonic=True)
    else:
        data = SdkHistogram(points, temporality)
    return Metric(instrument.name, instrument.description, instrument.unit, data)


def _histogram_point(
    labels: dict[str, str], start_ns: int, now_ns: int, point: Point, bounds: tuple[float, ...]
) -> HistogramDataPoint:
    nothing: Any = None  # the SDK's class asks for a float, its encoder leaves None out
    return HistogramDataPoint(
        labels, start_ns, now_ns, sum(point.counts), point.value, point.counts, bounds, nothing, nothing,
        [_exemplar(one) for one in point.exemplars],
    )  # fmt: skip


def _exemplar(one: Exemplar) -> SdkExemplar:
    return SdkExemplar({}, one.value, one.time_ns, one.span_id, one.trace_id)


def check_encodable(span: ReadableSpan) -> None:
    """Raise for a span of another library that would cost its whole batch: the encoder refuses all or nothing.

    Raises:
        ValueError: a name is no text, or a time is no unsigned 64-bit number of nanoseconds.
    """
    for word in (span.name, span.status.description or "", *(event.name for event in span.events)):
        word.encode()
    for moment in (span.start_time, span.end_time, *(event.timestamp for event in span.events)):
        if not 0 <= (moment or 0) < _TIME_END:
            raise ValueError("time out of range")


def log_record(event: Mapping[str, Any], resource: Resource, now_ns: int) -> ReadableLogRecord:
    """Return one log event as the SDK's log record: the event's name is body and event name."""
    fields = {name: v for name, v in event.items() if name in names.REQUIRED_LOG_KEYS or v not in ("", None)}
    name = str(fields.pop(LogKey.EVENT, ""))
    level = str(fields.pop(LogKey.LEVEL, "info"))
    fields.pop(LogKey.TIMESTAMP, None)
    span = SpanContext(
        int(str(fields.get(LogKey.TRACE_ID, "0")), 16), int(str(fields.get(LogKey.SPAN_ID, "0")), 16), is_remote=False
    )
    record = LogRecord(
        timestamp=now_ns,
        observed_timestamp=now_ns,
        context=set_span_in_context(NonRecordingSpan(span)),
        severity_text=level.upper(),
        severity_number=_SEVERITY.get(level, SeverityNumber.INFO),
        body=name,
        attributes=fields,
        event_name=name,
    )
    return ReadableLogRecord(record, resource, SCOPE)
