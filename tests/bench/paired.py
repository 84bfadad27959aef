"""CPU time of a row as a ratio to its reference: reference, row, reference in each round, so that drift cancels out.

All threads count, and what is queued is flushed inside, so work moved to an export thread is not free.
``python -m tests.bench.paired <row> <rounds> <hops>`` measures one row in this process and prints JSON.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import sys
import time
from typing import Any

from tests.bench.cases import seen
from tests.bench.process import NotMeasuredError
from tests.bench.references import Case
from tests.bench.sink import Sink
from tests.bench.variants import ROWS

ROUNDS = 15
HOPS = 1000


def spent(case: Case, hops: int, block: int) -> float:
    """Return CPU seconds of this process for one hop."""
    gc.collect()
    begun = time.process_time()
    for _ in range(0, hops, block):
        case.run(block)
        case.flush()
    found = time.process_time() - begun
    if case.bare is not None:
        begun = time.process_time()
        for _ in range(0, hops, block):
            case.bare(block)
        found -= time.process_time() - begun
    return found / hops


def measure(name: str, rounds: int, hops: int) -> dict[str, Any]:
    """Measure one row in this process."""
    row = ROWS[name]
    reference = ROWS[row.base]
    block = hops if row.sink else min(row.block, hops)
    hops = -(-hops // block) * block
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink()) if row.sink else None
        os.environ.update({**row.environment, **(sink.environment if sink is not None else {})})
        case, bare = row.prepare(), reference.prepare()
        spent(bare, hops, block)
        before = seen()
        spent(case, hops, block)
        if case.spans is not None and seen() - before != case.spans * hops:
            raise NotMeasuredError(f"{name}: {seen() - before} spans in {hops} hops, not {case.spans} each")
        ratios, bases = [], []
        for _ in range(rounds):
            before, own, after = (spent(each, hops, block) for each in (bare, case, bare))
            bases.append((before + after) / 2 / reference.calls)
            ratios.append(own / row.calls / bases[-1])
        if sink is not None:
            made = 2 * hops * (rounds + 1 + (2 * rounds + 1 if reference.sink else 0))
            arrived = sink.take()
            if arrived != made:
                raise NotMeasuredError(f"{name}: of {made} spans {arrived} arrived")
    low, middle, high = statistics.quantiles(ratios, n=4)
    base = statistics.median(bases)
    return {
        "row": name,
        "base": row.base,
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "us": round(middle * base * 1e6, 2),
        "base_us": round(base * 1e6, 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    sys.stdout.flush()
    os._exit(0)
