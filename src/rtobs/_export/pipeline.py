"""Pipeline: bounded queues and one lazy thread per process that empties them, whatever the collector does.

Putting never blocks. What was put is taken by the collector, or counted as dropped with its reason, or still queued.
Must not know hops' rules or how signals are encoded.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._export import buffer
from rtobs._export.buffer import HOP_BYTES, Buffer, Waiting
from rtobs._export.circuit import Circuit
from rtobs._export.convert import Deltas, metrics_data
from rtobs._export.transport import Answer, Transport, Unit
from rtobs._journey.record import HopRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._telemetry.metrics import Registry

QUEUE_LIMIT: Final = 4096
QUEUE_BYTES: Final = {"spans": 12 << 20, "logs": 4 << 20}
"""16 MiB together."""
BATCH: Final = 512
"""Waiting items that wake the thread before its time."""
_MOST_AT_ONCE: Final = QUEUE_LIMIT
_MOST_BYTES: Final = 4 << 20
"""Of one request."""
_MOST_ATTEMPTS: Final = 5
_MOST_PATIENCE: Final = 120.0
"""Failed exports of one batch, and seconds since the first of them, after which it makes room for what is newer."""
_FIRST_PAUSE: Final = 0.5
_LAST_PAUSE: Final = 0.2
"""Between two tries of one export, and between the last two before the end."""
_MOST_REFUSED: Final = BATCH
_SIFTING: Final = 3
"""Single items refused in a row, and so many times the time of an export, after which it is not the items' fault."""
_START_AGAIN: Final = 1.0
"""Before another try to start a thread where the system had none left."""
_LONGEST_SET_UP: Final = 5.0
_MANNERS: Final = 32
"""Items encoded between two chances for others to run, while there is no hurry."""
_GRACE: Final = 0.3
"""Added to the time of a shutdown for the answer to what was sent last, so that nobody has to guess about it."""

_random = random.Random()  # noqa: S311  so that processes do not all come back at once


class _SetUp:
    """Held while a way out is made: a fork waits for it, because a module that is half imported stays so in a child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._waited = False

    def before_fork(self) -> None:
        """Wait, but not for ever."""
        self._waited = self.lock.acquire(timeout=_LONGEST_SET_UP)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._waited:
            self.lock.release()

    def after_fork_in_child(self) -> None:
        """Begin with a lock that nobody holds."""
        self.lock = threading.Lock()


_set_up = _SetUp()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_set_up.before_fork, after_in_parent=_set_up.after_fork_in_parent,
        after_in_child=_set_up.after_fork_in_child,
    )  # fmt: skip


class Exporters:
    """The ways out, made on the export thread when they are first needed; None = this signal does not leave."""

    def __init__(self, make: Mapping[str, Callable[[Resource], Transport] | None]) -> None:
        """Take a maker for each of ``spans``, ``metrics`` and ``logs``."""
        self._make = dict(make)
        self._made: dict[str, Transport] = {}
        self._parents: list[dict[str, Transport]] = []

    def wants(self, signal: str) -> bool:
        """Tell whether *signal* leaves at all."""
        return self._make.get(signal) is not None

    def get(self, signal: str, resource: Resource) -> Transport:
        """Return the way out of *signal*."""
        found = self._made.get(signal)
        if found is None:
            make = self._make[signal]
            assert make is not None  # noqa: S101  nothing is queued for a signal that does not leave
            with _set_up.lock:
                found = self._made[signal] = make(resource)
        return found

    def shutdown(self) -> None:
        """Let go of all connections."""
        for signal, transport in list(self._made.items()):
            try:
                transport.shutdown()
            except Exception as error:  # noqa: BLE001  the others are stopped all the same
                _guard.fault(f"export.{signal}.shutdown", error)

    def forget(self) -> None:
        """Leave alone connections that a forked child must not share; closing them would close the parent's."""
        self._parents.append(self._made)
        self._made = {}


def _items(units: Sequence[Unit]) -> int:
    """Return how many spans or log records there are."""
    return sum(items for items, _, _ in units)


class _Line:
    """One signal: what waits, what is ready to be sent, what is being sent."""

    __slots__ = (
        "attempts", "buffer", "circuit", "converting", "failed", "failed_since", "hopeless", "lost", "ready", "signal",
        "unanswered", "under_way", "woken",
    )  # fmt: skip

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.buffer = Buffer(QUEUE_LIMIT, QUEUE_BYTES.get(signal, 0))
        self.circuit = Circuit()
        self.converting: Sequence[Waiting] = ()
        self.ready: list[Unit] = []
        self.under_way: Sequence[Unit] = ()
        self.unanswered = 0
        """Items of what is ready first that were sent without an answer."""
        self.attempts = 0
        """Failed exports of what is ready first."""
        self.failed_since = 0.0
        self.failed = False
        """Whether something did not arrive since the thread last looked after this line."""
        self.hopeless = False
        """Whether so much was refused that it cannot be the items' fault; until something is taken."""
        self.lost = 0
        """Items that found no room since it was last told."""
        self.woken = False
        """Whether the thread knows that a batch waits."""

    @property
    def queued(self) -> int:
        """Spans or log records that have neither arrived nor been dropped."""
        return (
            self.buffer.items
            + sum(items for _, items, _ in self.converting)
            + _items(self.ready)
            + _items(self.under_way)
        )


class Pipeline:
    """Queues and the thread that empties them."""

    def __init__(
        self, exporters: Exporters, registry: Registry, resource: Resource, *, span_delay: float,
        metric_interval: float, delta: bool, wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        """Export spans and logs every *span_delay* seconds or when a batch waits, metrics every *metric_interval*."""
        self._exporters = exporters
        self._registry = registry
        self.resource = resource
        self._span_delay = span_delay
        self._metric_interval = metric_interval
        self._deltas = Deltas() if delta else None
        self._wall_ns = wall_ns
        self._wants_spans = exporters.wants("spans")
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a finaliser that ends a span may run inside; it must not wait for itself
        self._wake = threading.Condition(self._lock)
        self._lines = {signal: _Line(signal) for signal in ("spans", "logs", "metrics")}
        self._spans = self._lines["spans"]
        self._thread: threading.Thread | None = None
        self._start_again = 0.0
        self._stopping = self._abandoned = False
        self._stopped = threading.Event()
        self._stop_at = float("inf")
        self._flushes = self._flushed = 0
        self._clean = True

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
        if not self._wants_spans:
            return
        if type(span) is HopRecord:
            waiting: Waiting = (span, 1, HOP_BYTES) if buffer.is_bare(span) else buffer.hop(span)
            self._put(self._spans, waiting, important=span.rare is not None and buffer.matters(span))
            return
        try:
            waiting, important = buffer.span(span), buffer.has_error(span)
        except Exception as error:  # noqa: BLE001  another library's span may be anything
            _guard.fault("export.put", error)
            waiting, important = (span, 1, 0), False
        self._put(self._spans, waiting, important=important)

    def put_log(self, event: Mapping[str, Any]) -> None:
        """Queue one log event."""
        if self._exporters.wants("logs"):
            self._put(self._lines["logs"], buffer.log(event, self._wall_ns()), important=False)

    def _put(self, line: _Line, waiting: Waiting, *, important: bool) -> None:
        with self._lock:
            if self._stopping:
                lost: tuple[str, int] | None = ("shutdown", waiting[1])
            else:
                lost = line.buffer.add(waiting, important=important)
                if line.buffer.count >= BATCH and not line.woken:
                    line.woken = True
                    self._wake.notify_all()
        if lost is not None:
            line.lost += lost[1]
            _guard.tally(names.TELEMETRY_DROPPED, line.signal, lost[0], by=lost[1])
        if self._thread is None:
            self.start()

    def start(self) -> None:
        """Start the export thread, once per process; where the system has no thread left, try again later."""
        with self._lock:
            if self._thread is not None or self._stopping or time.monotonic() < self._start_again:
                return
            thread = threading.Thread(target=self._run, name="rtobs-export", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._start_again = time.monotonic() + _START_AGAIN
                _guard.fault("export.start", error)
                return
            self._thread = thread

    @property
    def queued(self) -> dict[str, int]:
        """How many spans and log records have neither arrived nor been dropped."""
        with self._lock:
            return {signal: self._lines[signal].queued for signal in ("spans", "logs")}

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attach(Context({_SUPPRESS_INSTRUMENTATION_KEY: True, "suppress_instrumentation": True}))
        for line in self._lines.values():  # what is imported for it takes time, which a shutdown may not have
            if self._exporters.wants(line.signal):
                self._transport(line)
        next_metrics = time.monotonic() + self._metric_interval
        while True:
            with self._lock:
                self._sleep(next_metrics)
                stopping, wanted = self._stopping, self._flushes
                urgent = stopping or wanted != self._flushed
            clean: list[bool] = []
            for signal in ("spans", "logs", "metrics"):
                if signal == "metrics":
                    if not urgent and time.monotonic() < next_metrics:
                        continue
                    next_metrics = time.monotonic() + self._metric_interval
                clean.append(self._look_after(self._lines[signal], urgent=urgent))
            with self._lock:
                self._flushed, self._clean = wanted, all(clean)
                self._wake.notify_all()
            if stopping:
                return

    def _look_after(self, line: _Line, *, urgent: bool) -> bool:
        """Send what there is of one signal; tell whether nothing was left behind. The thread lives on in any case."""
        if not self._exporters.wants(line.signal):
            return True
        try:
            export = self._export_metrics if line.signal == "metrics" else self._drain
            return export(line, urgent=urgent)
        except Exception as error:  # noqa: BLE001  memory that is gone, for example
            with self._lock:
                line.circuit.failed(time.monotonic())
                line.ready[:0], line.under_way = line.under_way, ()
                self._dropped(line, "export_failed", sum(items for _, items, _ in line.converting))
                line.converting = ()
            _guard.fault(f"export.{line.signal}", error)
            return False

    def _sleep(self, next_metrics: float) -> None:
        """Wait until there is something to do. A line that rests is not woken by what is put into it."""
        now = time.monotonic()
        if self._stopping or self._flushed != self._flushes:
            return
        until = min(now + self._span_delay, next_metrics)
        for line in self._lines.values():
            if line.circuit.resting(now):
                until = min(until, line.circuit.until)
            elif line.woken:
                return
        self._wake.wait(max(until - now, 0.01))

    def _drain(self, line: _Line, *, urgent: bool) -> bool:
        self._tell_lost(line)
        with self._lock:
            if line.circuit.resting(time.monotonic()) and not urgent:
                return False
            line.woken = line.failed = False
            left = 2 * QUEUE_LIMIT if urgent else line.buffer.count + len(line.ready)
        transport = self._transport(line)
        if transport is None:
            return False
        while left > 0:
            batch = self._batch(line, transport)
            if not batch:
                break
            left -= len(batch)
            if not self._export(line, transport, batch, urgent=urgent):
                break
        return not line.failed

    def _transport(self, line: _Line) -> Transport | None:
        """Return the way out; None where it cannot be made, for a certificate that is not there for example."""
        try:
            return self._exporters.get(line.signal, self.resource)
        except Exception as error:  # noqa: BLE001  the thread must live on, and may find it there the next time
            line.circuit.failed(time.monotonic())
            why = redaction.error_text(error)
            _guard.tell("export.setup", "%s cannot be exported: %s: %s", line.signal, type(error).__name__, why)
            return None

    def _batch(self, line: _Line, transport: Transport) -> list[Unit]:
        """Return what to send next, as it was before if that failed; what cannot be encoded is counted."""
        if not line.ready:
            with self._lock:
                line.converting = line.buffer.take(_MOST_AT_ONCE)
            units: list[Unit] = []
            unit, bad = transport.unit, 0
            for number, (item, items, _) in enumerate(line.converting):
                if number % _MANNERS == _MANNERS - 1 and line.buffer.count < BATCH:
                    time.sleep(0)  # lets a thread of the host's run now, not after Python's switch interval
                try:
                    units.append(unit(item))
                except Exception as error:  # noqa: BLE001  one poisoned item must not cost the others
                    bad += items
                    _guard.tell("export.encode", "%s cannot be encoded, dropped: %s", line.signal, type(error).__name__)
            with self._lock:
                line.converting = ()
                if self._abandoned:
                    return []
                line.ready, line.attempts, line.unanswered = units, 0, 0
                self._dropped(line, "encode", bad)
        size = count = 0
        for _, own, _ in line.ready:
            size += own
            if size > _MOST_BYTES and count:
                break
            count += 1
        with self._lock:
            line.under_way, line.ready = line.ready[:count], line.ready[count:]
            return list(line.under_way)

    def _export(self, line: _Line, transport: Transport, batch: list[Unit], *, urgent: bool) -> bool:
        """Send a batch that is under way; tell whether to go on with the next."""
        answer = self._try(line, transport, batch, urgent=urgent)
        if answer.state == "refused":
            return self._sift(line, transport, batch, answer, urgent=urgent)
        return self._settle(line, transport, batch, answer)

    def _settle(
        self, line: _Line, transport: Transport, batch: Sequence[Unit], answer: Answer, rest: Sequence[Unit] = ()
    ) -> bool:
        """Book what became of a batch, tell whether to go on; *rest* is under way with it and has not been sent."""
        items = _items(batch)
        if answer.state == "taken":
            with self._lock:
                if line.circuit.opened:  # it is back: the other signals need not wait any longer either
                    for other in self._lines.values():
                        other.circuit.until = 0.0
                line.circuit.worked()
                if not self._abandoned:
                    line.under_way = rest
                    line.attempts, line.unanswered, line.hopeless = 0, 0, False
                    self._dropped(line, "rejected", min(answer.rejected, items))
            if answer.detail:
                text = "the collector at %s took %d of %d %s: %s"
                taken = items - answer.rejected
                _guard.tell("export.partial", text, transport.where, taken, items, line.signal, answer.detail)
            return True
        now = time.monotonic()
        with self._lock:
            line.circuit.failed(now)
            line.attempts += 1
            if line.attempts == 1:
                line.failed_since = now
            tried = line.attempts >= _MOST_ATTEMPTS and now - line.failed_since >= _MOST_PATIENCE
            given_up = answer.final or tried
            if not self._abandoned:
                line.failed, line.under_way = True, ()
                line.ready[:0] = rest if given_up else (*batch, *rest)
                line.unanswered = items if answer.unanswered else 0
                if given_up:
                    line.attempts = line.unanswered = 0
                    self._dropped(line, "unanswered" if answer.unanswered else "export_failed", items)
        self._tell(line, transport, answer, "they are dropped" if given_up else "they wait for the next try")
        return answer.final and not line.circuit.opened

    def _sift(self, line: _Line, transport: Transport, batch: list[Unit], answer: Answer, *, urgent: bool) -> bool:
        """Find what is wrong in a batch that was refused, by halving it; all the rest is sent."""
        self._tell(line, transport, answer, "what it is about is looked for and dropped, the others are sent")
        waiting, part, alone = [batch], batch, 0
        until = time.monotonic() + _SIFTING * transport.timeout
        while waiting:
            part = waiting.pop()
            rest = [unit for one in reversed(waiting) for unit in one]
            if part is not batch and not line.hopeless:
                answer = self._try(line, transport, part, urgent=urgent)
            if answer.state != "refused":
                alone = 0
                if not self._settle(line, transport, part, answer, rest):
                    return False
            elif len(part) == 1 or line.hopeless:
                alone += len(part) == 1
                line.hopeless = line.hopeless or alone >= _MOST_REFUSED or time.monotonic() > until
                with self._lock:
                    if self._abandoned:
                        return False
                    line.under_way = rest
                    reason = "encode" if answer.cause == "encode" else "rejected"
                    self._dropped(line, reason, _items(part))
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
        return True

    def _try(self, line: _Line, transport: Transport, batch: Sequence[Unit], *, urgent: bool) -> Answer:
        """Send a batch, several times where that may help, within the time of one export."""
        deadline = time.monotonic() + transport.timeout
        pause, last = _FIRST_PAUSE, False
        hurried = urgent or line.circuit.opened
        while True:
            try:
                answer = transport.send(batch, min(deadline, self._stop_at))
            except Exception as error:  # noqa: BLE001  they cannot be joined; halving finds the one that is to blame
                return Answer("refused", "encode", type(error).__name__)
            if answer.state != "failed" or not answer.soon or last:
                return answer
            wait = (_LAST_PAUSE if hurried else pause) * _random.uniform(0.75, 1.25)
            if answer.wait is not None:
                wait = max(answer.wait, wait)  # who says "at once" to everybody is not helped by it
            if time.monotonic() + wait >= min(deadline, self._stop_at):
                return answer
            last = self._pause(wait, hurried=hurried)
            pause *= 2

    def _pause(self, seconds: float, *, hurried: bool) -> bool:
        """Wait before the next try; tell whether it must be the last, because somebody waits for us."""
        until = time.monotonic() + seconds
        with self._lock:
            while (left := min(until, self._stop_at) - time.monotonic()) > 0:
                if not hurried and (self._stopping or self._flushed != self._flushes):
                    return True
                self._wake.wait(left)
        return hurried

    def _export_metrics(self, line: _Line, *, urgent: bool) -> bool:
        if line.circuit.resting(time.monotonic()) and not urgent:
            return False  # nothing is lost: the next export has the totals
        transport = self._transport(line)
        if transport is None:
            return False
        found = self._registry.collect()
        data = metrics_data(found, self.resource, self._registry.start_ns, self._wall_ns(), self._deltas)
        answer = self._try(line, transport, [transport.unit(data)], urgent=urgent)
        if answer.state == "taken":
            line.circuit.worked()
            points = sum(len(snapshot.points) for snapshot in found)
            self._dropped(line, "rejected", min(answer.rejected, points))
            if self._deltas is not None:
                self._deltas.commit()
            return True
        line.circuit.failed(time.monotonic())
        self._dropped(line, "rejected" if answer.state == "refused" else "export_failed", 1)
        self._tell(line, transport, answer, "the next export has the totals")
        return False

    # Telling ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _dropped(line: _Line, reason: str, items: int) -> None:
        if items:
            _guard.tally(names.TELEMETRY_DROPPED, line.signal, reason, by=items)

    @staticmethod
    def _tell(line: _Line, transport: Transport, answer: Answer, then: str) -> None:
        detail = f" ({answer.detail})" if answer.detail else ""
        text = "%s could not be exported to %s: %s%s; %s"
        _guard.tell(f"export.{answer.cause}", text, line.signal, transport.where, answer.cause, detail, then)

    @staticmethod
    def _tell_lost(line: _Line) -> None:
        lost, line.lost = line.lost, 0
        if lost:
            _guard.tell(f"export.{line.signal}.full", "%d %s were dropped: their queue is full", lost, line.signal)

    # Flushing and stopping -------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Export everything queued so far, metrics too; tell whether that was done within *timeout* seconds."""
        if not any(self._exporters.wants(signal) for signal in self._lines):
            return True
        self.start()
        deadline = time.monotonic() + timeout
        with self._lock:
            if self._thread is None:
                return False
            self._flushes += 1
            wanted = self._flushes
            self._wake.notify_all()
            while self._flushed < wanted:
                left = deadline - time.monotonic()
                if left <= 0 or not self._wake.wait(left):
                    return False
            return self._clean

    def shutdown(self, timeout: float) -> bool:
        """Export what is queued and stop the thread, within *timeout* seconds; count what is left."""
        with self._lock:
            already, self._stopping = self._stopping, True
            self._stop_at = min(self._stop_at, time.monotonic() + timeout)
            thread = self._thread
            self._wake.notify_all()
        if already:  # nothing is sent after the end; who comes second waits for who came first, and not again later
            self._stopped.wait(max(timeout, 0) + _GRACE)
            return thread is None or not thread.is_alive()
        try:
            return self._finish(thread, timeout)
        finally:
            self._stopped.set()

    def _finish(self, thread: threading.Thread | None, timeout: float) -> bool:
        """Wait for the export thread, or start one for what there is; let go of everything."""
        measured = self._exporters.wants("metrics") and self._registry.series_used
        if thread is None and not measured and not any(self.queued.values()):
            return True
        if thread is None:
            thread = threading.Thread(target=self._run, name="rtobs-export-last", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is going away
                self._abandon()
                return False
        thread.join(max(timeout, 0) + _GRACE)
        left = self._abandon()
        self._exporters.shutdown()
        return not left and not thread.is_alive() and self._clean

    def _abandon(self) -> int:
        """Count what has not arrived as dropped and return how much that is; the export thread finds nothing more."""
        found: dict[str, int] = {}
        with self._lock:
            self._abandoned = True
            for line in self._lines.values():
                everything = line.queued
                unanswered = line.unanswered + _items(line.under_way)
                self._dropped(line, "unanswered", unanswered)
                self._dropped(line, "shutdown", everything - unanswered)
                if everything:
                    found[line.signal] = everything
                line.buffer.take(QUEUE_LIMIT)
                line.converting, line.ready, line.under_way, line.unanswered = (), [], (), 0
        if found:
            what = " and ".join(f"{number} {signal}" for signal, number in found.items())
            _guard.tell("export.shutdown", "%s had not been exported in time before the end; they are lost", what)
        return sum(found.values())
