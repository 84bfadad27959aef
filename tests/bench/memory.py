"""Bytes that stay alive for each span that waits for export; every message has a body of its own.

``python -m tests.bench.memory <row>`` fills the queue of one row to just below a batch and prints JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tracemalloc
from typing import Any

from tests.bench import hop as benched
from tests.bench.cases import seen
from tests.bench.variants import ROWS

HOPS = 250
"""500 spans; from 512 on a batch is sent."""


def measure(name: str) -> dict[str, Any]:
    """Measure one row in this process."""
    case = ROWS[name].prepare()
    run = case.run
    if name != "floor":
        hop = benched.full(lambda: os.urandom(512))

        def run(hops: int) -> None:
            for _ in range(hops):
                hop()

    run(HOPS)
    case.flush()
    before_all = seen()
    tracemalloc.start()
    run(1)
    case.flush()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    run(HOPS)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    case.flush()
    assert seen() - before_all == 2 * (HOPS + 1), "spans left before they were counted"
    return {"row": name, "bytes_per_span": round((after - before) / HOPS / 2)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)
