"""Slots: how many messages each worker may hold at once, and how much time that comes to.

A worker is what handles the messages of one destination in this process. Must not know brokers or metrics.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from rtobs._conventions import OTHER
from rtobs._hop.runtime import runtime

_MOST_WORKERS = 256
"""Names that are kept apart; further ones are one worker."""


class _Worker:
    """The consumers of one destination and the seconds that their slots have come to."""

    __slots__ = ("consumers", "declared", "seconds", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self.consumers: dict[Hashable, Callable[[], int | None]] = {}
        self.declared: dict[Hashable, int] = {}
        self.seconds = 0.0
        self.since_ns = now_ns

    def slots(self) -> int:
        """Return how many messages it may hold now: what its user has declared, else what its consumers may."""
        if self.declared:
            return max(self.declared.values())
        found = 0
        for key, read in list(self.consumers.items()):
            number = read()
            if number is None:  # it is gone
                self.consumers.pop(key, None)
            found += number or 0
        return found

    def account(self, now_ns: int) -> None:
        """Add the time since the last call, by the slots of now."""
        self.seconds += self.slots() * max(now_ns - self.since_ns, 0) / 1e9
        self.since_ns = now_ns


class Slots:
    """All workers of this process. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: a forked child has no consumers yet."""
        self._lock = threading.RLock()
        self.workers: dict[str, _Worker] = {}
        """By destination; empty where nothing is known of any slots."""

    def restart(self) -> None:
        """Count seconds from zero, and forget workers that have no slots any more: series begin anew."""
        now_ns = runtime.monotonic_ns()
        with self._lock:
            for name, worker in list(self.workers.items()):
                if not worker.slots():
                    del self.workers[name]
                worker.seconds, worker.since_ns = 0.0, now_ns

    def put(self, key: Hashable, worker: str, slots: int | Callable[[], int | None]) -> None:
        """Let *worker* have *slots* from now on: a number its user declares, or what one consumer may hold when asked.

        A consumer that returns None is gone. *key* names it for ``drop``; the same key again replaces it.
        """
        now_ns = runtime.monotonic_ns()
        with self._lock:
            if worker not in self.workers and len(self.workers) >= _MOST_WORKERS:
                worker = OTHER
            found = self.workers.get(worker)
            if found is None:
                found = self.workers[worker] = _Worker(now_ns)
            found.account(now_ns)
            if callable(slots):
                found.consumers[key] = slots
            else:
                found.declared[key] = slots

    def drop(self, key: Hashable) -> None:
        """Take back what was put under *key*."""
        now_ns = runtime.monotonic_ns()
        with self._lock:
            for worker in self.workers.values():
                if key in worker.consumers or key in worker.declared:
                    worker.account(now_ns)
                    worker.consumers.pop(key, None)
                    worker.declared.pop(key, None)

    def of(self, worker: str) -> int:
        """Return how many messages *worker* may hold now; 0 = not known."""
        found = self.workers.get(worker)
        if found is None:
            return 0
        with self._lock:
            return found.slots()

    def capacity(self) -> dict[str, float]:
        """Return the seconds that each worker's slots have come to so far."""
        now_ns = runtime.monotonic_ns()
        with self._lock:
            for worker in self.workers.values():
                worker.account(now_ns)
            return {name: worker.seconds for name, worker in self.workers.items() if worker.seconds}


slots = Slots()
