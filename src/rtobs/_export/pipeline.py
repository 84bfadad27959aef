"""Pipeline: one bounded queue per signal and one lazy thread per process, feeding the SDK's OTLP exporters.

Putting never blocks; what does not fit or cannot be sent is counted with its reason. Must not know hops' rules.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._export.convert import Deltas, check_encodable, log_record, metrics_data
from rtobs._journey.record import HopRecord
from rtobs._telemetry.readable import readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._telemetry.metrics import Registry

QUEUE_LIMIT = 4096
BATCH = 512


def _size(item: object) -> int:
    """Return how many spans or log records an item of a queue is."""
    return 1 + sum(stage.ended for stage in item.stages or ()) if isinstance(item, HopRecord) else 1


class Exporters:
    """The three exporters, made on the export thread when they are first needed; None = this signal does not leave."""

    def __init__(self, make: Mapping[str, Callable[[], Any] | None]) -> None:
        """Take a maker for each of ``spans``, ``metrics`` and ``logs``."""
        self._make = dict(make)
        self._made: dict[str, Any] = {}
        self._parents: list[dict[str, Any]] = []

    def wants(self, signal: str) -> bool:
        """Tell whether *signal* leaves at all."""
        return self._make.get(signal) is not None

    def get(self, signal: str) -> Any:
        """Return the exporter of *signal*."""
        found = self._made.get(signal)
        make = self._make.get(signal)
        if found is None and make is not None:
            found = self._made[signal] = make()
        return found

    def shutdown(self) -> None:
        """Stop all exporters; interrupts a retry that is waiting."""
        for signal, exporter in list(self._made.items()):
            try:
                exporter.shutdown()
            except Exception as error:  # noqa: BLE001  the others are stopped all the same
                _guard.fault(f"export.{signal}.shutdown", error)

    def forget(self) -> None:
        """Leave alone connections that a forked child must not share; closing them would close the parent's."""
        self._parents.append(self._made)
        self._made = {}


class Pipeline:
    """Queues and the thread that empties them."""

    def __init__(
        self, exporters: Exporters, registry: Registry, resource: Resource, *, span_delay: float,
        metric_interval: float, delta: bool, wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        """Export spans and logs every *span_delay* seconds or when a batch is full, metrics every *metric_interval*."""
        self._exporters = exporters
        self._registry = registry
        self.resource = resource
        self._span_delay = span_delay
        self._metric_interval = metric_interval
        self._deltas = Deltas() if delta else None
        self._wall_ns = wall_ns
        self._reset()

    def _reset(self) -> None:
        self._spans: deque[Any] = deque()
        self._logs: deque[tuple[Mapping[str, Any], int]] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._woken = self._stopping = self._abandoned = False
        self._flushes = 0
        self._flushed = 0
        self._under_way: tuple[str, int] | None = None

    def after_fork(self) -> None:
        """Start afresh in a child: what the parent queued is the parent's to send."""
        self._reset()
        self._exporters.forget()
        if self._deltas is not None:
            self._deltas = Deltas()

    def resume(self, resource: Resource) -> None:
        """Begin to export in a child, as an instance of its own."""
        self.resource = resource
        if self._exporters.wants("metrics"):
            self.start()

    # Putting ---------------------------------------------------------------------------------------------------------

    def put_span(self, span: object) -> None:
        """Queue an ended hop, or another library's ended span."""
        self._put("spans", self._spans, span)

    def put_log(self, event: Mapping[str, Any]) -> None:
        """Queue one log event."""
        self._put("logs", self._logs, (event, self._wall_ns()))

    def _put(self, signal: str, queue: deque[Any], item: object) -> None:
        if not self._exporters.wants(signal):
            return
        if self._stopping or len(queue) >= QUEUE_LIMIT:
            reason = "shutdown" if self._stopping else "queue_full"
            _guard.tally(names.TELEMETRY_DROPPED, signal, reason, by=_size(item))
            return
        queue.append(item)
        if self._thread is None:
            self.start()
        if len(queue) >= BATCH and not self._woken:
            with self._wake:
                self._woken = True
                self._wake.notify_all()

    def start(self) -> None:
        """Start the export thread, once per process."""
        with self._wake:
            if self._thread is None and not self._stopping:
                thread = threading.Thread(target=self._run, name="rtobs-export", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no threads left, or the interpreter is going away
                    _guard.fault("export.start", error)
                    return
                self._thread = thread

    # Exporting -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attach(Context({_SUPPRESS_INSTRUMENTATION_KEY: True, "suppress_instrumentation": True}))
        next_metrics = time.monotonic() + self._metric_interval
        while True:
            with self._wake:
                if not self._stopping and self._flushed == self._flushes and not self._woken:
                    self._wake.wait(max(min(self._span_delay, next_metrics - time.monotonic()), 0.01))
                stopping, wanted = self._stopping, self._flushes
                self._woken = False
            self._drain()
            if stopping or wanted != self._flushed or time.monotonic() >= next_metrics:
                self._export_metrics()
                next_metrics = time.monotonic() + self._metric_interval
            with self._wake:
                self._flushed = wanted
                self._wake.notify_all()
            if stopping:
                return

    def _drain(self) -> None:
        while not self._abandoned and (self._spans or self._logs):
            self._export("spans", self._take(self._spans), self._as_spans)
            self._export("logs", self._take(self._logs), self._as_logs)

    @staticmethod
    def _take(queue: deque[Any]) -> list[Any]:
        taken: list[Any] = []
        while len(taken) < BATCH:
            try:
                taken.append(queue.popleft())
            except IndexError:  # empty, or emptied by a shutdown that gave up waiting
                break
        return taken

    def _as_spans(self, items: Sequence[Any]) -> list[Any]:
        spans: list[Any] = []
        for item in items:
            try:
                if isinstance(item, HopRecord):
                    spans.extend(readable(item, self.resource))
                else:
                    check_encodable(item)
                    spans.append(item)
            except Exception as error:  # noqa: BLE001  one poisoned item must not cost the batch
                _guard.tally(names.TELEMETRY_DROPPED, "spans", "encode", by=_size(item))
                _guard.tell("export.encode", "a span cannot be encoded and is dropped: %s", type(error).__name__)
        return spans

    def _as_logs(self, items: Sequence[tuple[Mapping[str, Any], int]]) -> list[Any]:
        logs: list[Any] = []
        for event, time_ns in items:
            try:
                logs.append(log_record(event, self.resource, time_ns))
            except Exception as error:  # noqa: BLE001  as above
                _guard.tally(names.TELEMETRY_DROPPED, "logs", "encode")
                _guard.tell("export.encode", "a log event cannot be encoded and is dropped: %s", type(error).__name__)
        return logs

    def _export(self, signal: str, items: list[Any], convert: Callable[[Sequence[Any]], list[Any]]) -> None:
        batch = convert(items)
        if not batch:
            return
        self._under_way = mine = (signal, len(batch))
        try:
            result = self._exporters.get(signal).export(batch)
            sent = result in (SpanExportResult.SUCCESS, None) or getattr(result, "name", "") == "SUCCESS"
        except Exception as error:  # noqa: BLE001  an exporter may raise; the thread must live on
            _guard.fault(f"export.{signal}", error)
            sent = False
        with self._wake:
            counted, self._under_way = self._under_way is not mine, None
        if not sent and not counted:
            _guard.tally(names.TELEMETRY_DROPPED, signal, "export_failed", by=len(batch))
            _guard.tell(
                f"export.{signal}", "%d %s could not be exported; the exporter's own log says why", len(batch), signal
            )

    def _export_metrics(self) -> None:
        if not self._exporters.wants("metrics"):
            return
        try:
            data = metrics_data(
                self._registry.collect(), self.resource, self._registry.start_ns, self._wall_ns(), self._deltas
            )
            result = self._exporters.get("metrics").export(data)
            if result is not MetricExportResult.SUCCESS:
                _guard.tally(names.TELEMETRY_DROPPED, "metrics", "export_failed")
            elif self._deltas is not None:
                self._deltas.commit()
        except Exception as error:  # noqa: BLE001  the thread must live on
            _guard.fault("export.metrics", error)

    # Flushing and stopping -------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Export everything queued so far, metrics too; tell whether that was done within *timeout* seconds."""
        if not any(self._exporters.wants(signal) for signal in ("spans", "metrics", "logs")):
            return True
        self.start()
        deadline = time.monotonic() + timeout
        with self._wake:
            if self._thread is None:
                return False
            self._flushes += 1
            wanted = self._flushes
            self._wake.notify_all()
            while self._flushed < wanted:
                left = deadline - time.monotonic()
                if left <= 0 or not self._wake.wait(left):
                    return self._flushed >= wanted
        return True

    def shutdown(self, timeout: float) -> bool:
        """Export what is queued and stop the thread, within *timeout* seconds; count what is left."""
        deadline = time.monotonic() + timeout
        with self._wake:
            already, self._stopping = self._stopping, True
            thread = self._thread
            self._wake.notify_all()
        if already:  # nothing is sent after the end, and nobody waits twice
            return thread is None or not thread.is_alive()
        if thread is None:
            if not self._exporters.wants("metrics") or not self._registry.series_used:
                return True
            thread = threading.Thread(target=self._export_metrics, name="rtobs-export-last", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is going away
                return False
        thread.join(max(deadline - time.monotonic(), 0))
        done = not thread.is_alive()
        if not done:
            self._abandon()
        self._exporters.shutdown()
        return done

    def _abandon(self) -> None:
        """Count what is queued or under way as dropped; the export thread takes nothing more."""
        self._abandoned = True
        for signal, queue in (("spans", self._spans), ("logs", self._logs)):
            left = 0
            while queue:
                left += sum(_size(item) for item in self._take(queue))
            if left:
                _guard.tally(names.TELEMETRY_DROPPED, signal, "shutdown", by=left)
        with self._wake:
            under_way, self._under_way = self._under_way, None
        if under_way is not None:
            _guard.tally(names.TELEMETRY_DROPPED, under_way[0], "timeout", by=under_way[1])
