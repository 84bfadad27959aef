"""Workers: how long handlers have held messages, whether a worker has held all that it may, and which hops run now.

Knows hops and slots. Must not know brokers, nor how series leave the process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rtobs import _conventions as names
from rtobs._conventions import Label
from rtobs._hop.runtime import Reading, runtime
from rtobs._hop.slots import slots
from rtobs._telemetry.metrics import MOST_WORKERS

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord
    from rtobs._telemetry.metrics import MetricSink

FULL_NS = 1_000_000_000
"""A worker that has held all that it may for longer than this keeps its broker waiting."""


class WorkerSink:
    """Adds up what workers hold; a worker's name is the destination that its messages come from."""

    def __init__(self, metrics: MetricSink) -> None:
        """Read from *metrics* how long ended hops have held their messages."""
        self._metrics = metrics
        self.reset()

    def reset(self) -> None:
        """Forget everything: a forked child counts its own."""
        self._lock = threading.RLock()
        self._held: Counter[str] = Counter()
        self._told_ns: Counter[str] = Counter()
        self._kinds: set[str] = set()
        self._full: dict[str, int] = {}
        """Since when a worker holds all that it may; 0 = that was counted."""

    def hold(self, record: HopRecord) -> None:
        """Note that a handler has begun, if it is known how many messages its worker may hold."""
        worker = _worker(record)
        most = slots.of(worker)
        if not most:
            return
        with self._lock:
            if worker not in self._held and len(self._held) >= MOST_WORKERS:
                return
            record.held = True
            self._held[worker] += 1
            if most <= self._held[worker]:
                self._full.setdefault(worker, record.start_ns)

    def release(self, record: HopRecord) -> None:
        """Note that a handler has ended whose begin was noted."""
        worker = _worker(record)
        with self._lock:
            self._held[worker] = max(self._held[worker] - 1, 0)
            counted = self._was_full(worker, record.start_ns + record.duration_ns)
            if worker in self._full and self._held[worker] < slots.of(worker):
                del self._full[worker]
        if counted:
            self._count()

    def _was_full(self, worker: str, now_ns: int) -> bool:
        """Tell, once, that a worker has been full for long."""
        since = self._full.get(worker, 0)
        if not since or now_ns - since <= FULL_NS:
            return False
        self._full[worker] = 0
        return True

    @staticmethod
    def _count() -> None:
        runtime.observe(names.BACKPRESSURE, 1, {Label.REASON: "prefetch_full"})

    def read(self) -> Iterator[Reading]:
        """Return busy and capacity seconds so far, hops that run now counted until now, and how many run."""
        now_ns = runtime.monotonic_ns()
        running = Counter[str]()
        with self._lock:
            busy = Counter(self._metrics.busy())
            for record in list(runtime.open_hops):
                running[record.kind] += 1
                if record.kind == "consume":
                    worker = _worker(record)
                    known = worker in busy or len(busy) < MOST_WORKERS
                    busy[worker if known else names.OTHER] += max(now_ns - record.start_ns, 0)
            for worker, nanoseconds in busy.items():  # a hop that has just ended must not make a counter fall
                self._told_ns[worker] = max(self._told_ns[worker], nanoseconds)
            busy = Counter(self._told_ns)
            full = sum(self._was_full(worker, now_ns) for worker in list(self._full))
            self._kinds.update(running, self._metrics.kinds)
        for _ in range(full):
            self._count()
        for kind in self._kinds:
            yield Reading(names.HOPS_ACTIVE, {Label.KIND: kind}, running[kind])
        for worker, nanoseconds in busy.items():
            yield Reading(names.BUSY_TIME, {Label.WORKER: worker}, nanoseconds / 1e9)
        for worker, seconds in slots.capacity().items():
            yield Reading(names.CAPACITY_TIME, {Label.WORKER: worker}, seconds)


def _worker(record: HopRecord) -> str:
    return record.message.destination if record.message is not None else record.name
