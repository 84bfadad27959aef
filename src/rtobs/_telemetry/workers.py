"""Workers: how long handlers have held messages, and whether a worker has held all that it may.

Knows consume hops and slots. Must not know brokers, nor how series leave the process.
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

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord

FULL_NS = 1_000_000_000
"""A worker that has held all that it may for longer than this keeps its broker waiting."""


_MOST_WORKERS = 256
"""Names that are kept apart here; fewer become labels."""


class WorkerSink:
    """Sees every consume hop begin and end; a worker's name is the destination its messages come from."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: a forked child counts its own."""
        self._lock = threading.Lock()
        self._running: dict[HopRecord, str] = {}
        self._held: Counter[str] = Counter()
        self._busy_ns: Counter[str] = Counter()
        self._told_ns: Counter[str] = Counter()
        self._full: dict[str, int] = {}
        """Since when a worker holds all that it may; 0 = that was counted."""

    def begin(self, record: HopRecord) -> None:
        """Note that a handler has begun."""
        if record.kind != "consume":
            return
        worker = record.message.destination if record.message is not None else record.name
        most = slots.of(worker)
        with self._lock:
            if worker not in self._held and len(self._held) >= _MOST_WORKERS:
                worker = names.OTHER
            self._running[record] = worker
            self._held[worker] += 1
            if 0 < most <= self._held[worker]:
                self._full.setdefault(worker, record.start_ns)

    def end(self, record: HopRecord) -> None:
        """Add what an ended hop has held."""
        if record.kind != "consume":
            return
        with self._lock:
            worker = self._running.pop(record, None)
            if worker is None:  # it began before a fork
                return
            self._busy_ns[worker] += record.duration_ns
            self._held[worker] -= 1
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
        """Return busy and capacity seconds so far; hops that run now count until now."""
        now_ns = runtime.monotonic_ns()
        with self._lock:
            busy = Counter(self._busy_ns)
            for record, worker in self._running.items():
                busy[worker] += max(now_ns - record.start_ns, 0)
            for worker, nanoseconds in busy.items():  # a hop that has just ended must not make a counter fall
                self._told_ns[worker] = max(self._told_ns[worker], nanoseconds)
            busy = Counter(self._told_ns)
            full = sum(self._was_full(worker, now_ns) for worker in list(self._full))
        for _ in range(full):
            self._count()
        for worker, nanoseconds in busy.items():
            yield Reading(names.BUSY_TIME, {Label.WORKER: worker}, nanoseconds / 1e9)
        for worker, seconds in slots.capacity().items():
            yield Reading(names.CAPACITY_TIME, {Label.WORKER: worker}, seconds)
