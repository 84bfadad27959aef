"""Spans per second that arrive without a drop, at rising rates, queues as they come, one collector on loopback.

``python -m tests.bench.throughput <row> <seconds>``: ``exported`` makes full hops (two spans each) on our pipeline,
``floor_exported`` bare SDK spans for the SDK's batch processor and OTLP/HTTP exporter. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from tests.bench.references import Case
from tests.bench.sink import Sink
from tests.bench.variants import ROWS

SECONDS = 3.0
TRIES = 2
"""A rate holds if it holds once: a busy machine makes drops, it does not take them away."""
RATES = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 100)
"""Thousands of spans per second."""
_REACHED = 0.97
_PAUSE = 0.002


def offer(case: Case, rate: float, seconds: float) -> tuple[int, float]:
    """Make *rate* spans a second for so many seconds; return how many were made, and the rate that was reached."""
    made, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        due = int(elapsed * rate / 2)
        if due > made:
            case.run(due - made)
            made = due
        time.sleep(_PAUSE)
    return 2 * made, 2 * made / elapsed


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Raise the rate until spans are lost, or this process cannot make more."""
    steps: list[dict[str, Any]] = []
    best, limit = 0.0, "not found"
    with Sink() as sink:
        os.environ.update(sink.environment)
        case = ROWS[name].prepare()
        case.run(200)
        case.flush()
        sink.take()
        for thousands in RATES:
            tries = []
            for _ in range(TRIES):
                made, reached = offer(case, thousands * 1000, seconds)
                case.flush()
                lost = made - sink.take()
                tries.append({"offered": thousands * 1000, "reached": round(reached), "lost": lost})
                if lost == 0 and reached >= _REACHED * thousands * 1000:
                    break
            steps += tries
            whole = [step["reached"] for step in tries if step["lost"] == 0]
            best = max([best, *whole])
            if not whole:
                limit = "drops"
                break
            if max(whole) < _REACHED * thousands * 1000:
                limit = "the process cannot make more"
                break
    return {"row": name, "spans_per_second": round(best), "limit": limit, "steps": steps}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)
