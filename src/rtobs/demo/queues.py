"""Whether messages pile up, and whether it is the workers that are full: depth and age of queues, busy time of workers.

A queue and the worker that reads it have one name. Read from metrics alone.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtobs import _conventions as names
from rtobs.demo.telemetry import WINDOW

if TYPE_CHECKING:
    from rtobs.demo.telemetry import Labels, Telemetry


@dataclass(frozen=True, slots=True)
class Age:
    """How long the oldest message of a queue has been there."""

    seconds: float
    estimated: bool
    """The broker tells no ages: this is since the queue was last empty or shorter, and the message may be older."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue and its workers. None where nobody told."""

    name: str
    depth: int | None
    """Messages that wait now; where the broker counts them, those that are being handled too."""
    age: Age | None
    """Of the oldest of them."""
    deepest: int | None
    oldest: Age | None
    """The greatest depth and age that were seen in the run."""
    busy: float | None
    """Share of its workers' slots that were in use recently."""
    busy_overall: float | None
    """The same over the run."""


class Queues:
    """Asks one `Telemetry` store.

    Args:
        telemetry: what was received.
        prefix: what names of queues begin with on a broker that several runs share.
    """

    def __init__(self, telemetry: Telemetry, prefix: str) -> None:
        self._telemetry = telemetry
        self._prefix = prefix
        self._readings: deque[tuple[float, dict[str, tuple[float, float]]]] = deque(maxlen=64)

    def tick(self) -> None:
        """Take a reading of how busy workers have been; call it about once a second."""
        self._readings.append((time.monotonic(), self._times()))

    def all(self) -> list[Queue]:
        """Return all queues that were watched and all workers, by name."""
        ages = self._ages(self._telemetry.gauges(names.QUEUE_AGE.name))
        oldest = self._ages(self._telemetry.peaks(names.QUEUE_AGE.name))
        depths = self._depths(self._telemetry.gauges(names.QUEUE_DEPTH.name))
        deepest = self._depths(self._telemetry.peaks(names.QUEUE_DEPTH.name))
        times = self._times()
        since = time.monotonic() - WINDOW
        before = next(
            (reading for taken, reading in reversed(self._readings) if taken <= since), dict[str, tuple[float, float]]()
        )
        return [
            Queue(
                name,
                depths.get(name),
                ages.get(name),
                deepest.get(name),
                oldest.get(name),
                _share(times.get(name), before.get(name, (0.0, 0.0))),
                _share(times.get(name), (0.0, 0.0)),
            )
            for name in sorted(set(oldest) | set(deepest) | set(times))
        ]

    def _ages(self, readings: dict[Labels, float]) -> dict[str, Age]:
        found: dict[str, Age] = {}
        for labels, seconds in readings.items():
            name = self._name(labels, names.Label.DESTINATION)
            if name not in found or seconds > found[name].seconds:
                found[name] = Age(seconds, dict(labels).get(names.Label.ESTIMATED) == "true")
        return found

    def _depths(self, readings: dict[Labels, float]) -> dict[str, int]:
        return {self._name(labels, names.Label.DESTINATION): round(messages) for labels, messages in readings.items()}

    def _times(self) -> dict[str, tuple[float, float]]:
        """Return each worker's busy and capacity seconds so far, over all processes."""
        busy = self._telemetry.series(names.BUSY_TIME.name)
        capacity = self._telemetry.series(names.CAPACITY_TIME.name)
        return {
            self._name(labels, names.Label.WORKER): (busy.get(labels, 0.0), seconds)
            for labels, seconds in capacity.items()
        }

    def _name(self, labels: Labels, label: names.Label) -> str:
        return dict(labels).get(label, "").removeprefix(self._prefix)


def _share(now: tuple[float, float] | None, before: tuple[float, float]) -> float | None:
    if now is None or now[1] <= before[1]:
        return None
    return min(1.0, max(0.0, now[0] - before[0]) / (now[1] - before[1]))
