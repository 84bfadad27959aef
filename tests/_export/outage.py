"""An application that goes through an outage of its collector; run as a program by the tests of R8.

    python -m tests._export.outage RATE PACE    hops per second; what rtobs waits, as a part of what it waits as a rule

It prints a line of JSON after it has warmed up, and reads one line each for: begin with the outage, end it, stop.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import rtobs
from rtobs import _config, _guard
from rtobs._export import circuit, pipeline

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Load:
    """Makes hops at a steady rate and measures the time inside our calls."""

    def __init__(self, rate: float) -> None:
        self.made = 0
        self.times: list[float] = []
        self.preempted = 0
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begun, first = time.perf_counter(), self.made
        while not self._stop.is_set():
            due = first + int((time.perf_counter() - begun) * self._rate)
            while self.made < due:
                self._one()
            time.sleep(0.005)

    def _one(self) -> None:
        """Make one hop; where the system took the processor away meanwhile, its time says nothing about us."""
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        begun = time.perf_counter()
        with rtobs.accept("/orders"):
            pass
        took = time.perf_counter() - begun
        if resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == before:
            self.times.append(took)
        else:
            self.preempted += 1
        self.made += 1


def _lines() -> Counter[tuple[str, int]]:
    """Return a counter of what any logger says from now on, by text and minute."""
    found: Counter[tuple[str, int]] = Counter()
    begun, handle = time.monotonic(), logging.Logger.handle

    def counted(logger: logging.Logger, record: logging.LogRecord) -> None:
        words = "".join(letter for letter in f"{record.name}: {record.getMessage()}" if not letter.isdigit())
        found[words, int((time.monotonic() - begun) / 60)] += 1
        handle(logger, record)

    logging.Logger.handle = counted
    return found


def main() -> None:
    rate, pace = map(float, sys.argv[1:])
    circuit._FIRST_REST *= pace
    circuit._LONGEST_REST *= pace
    pipeline._FIRST_PAUSE *= pace
    lines = _lines()

    def tell(**found: Any) -> None:
        print(json.dumps(found), flush=True)
        sys.stdin.readline()

    load = Load(rate)
    time.sleep(2)
    _config.flush(5)
    tell(warm=True)
    load.times.clear()
    before = peak = _memory()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, _memory())

    watching = threading.Thread(target=watch)
    watching.start()
    tell(outage=True)
    over.set()
    watching.join()
    times = sorted(load.times)
    tell(back=True)
    load.stop()
    _config.flush(10)
    rtobs.shutdown(10)
    dropped = {
        "/".join(labels): n for (name, labels), n in _guard.tallies().items() if name == "rtobs.telemetry.dropped"
    }
    tell(
        made=load.made, dropped=dropped, growth=peak - before, calls=len(times), preempted=load.preempted,
        p50=times[len(times) // 2], p99=times[len(times) * 99 // 100], lines=[[*key, n] for key, n in lines.items()],
    )  # fmt: skip


if __name__ == "__main__":
    main()
