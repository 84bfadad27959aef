"""Print what a full hop costs as a ratio to two bare SDK spans: ``make bench``, ``make bench ARGS=--json``.

Paired: floor, hop, floor in each round, CPU time of the process, so that drift of the machine cancels out.
Each variant runs in a process of its own, because a process has one tracer provider.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

ROUNDS = 15
HOPS = 2000


def spent(hop: Callable[[], None], hops: int) -> float:
    """Return CPU seconds of this process for *hops* hops."""
    gc.collect()
    begun = time.process_time()
    for _ in range(hops):
        hop()
    return time.process_time() - begun


def measure(variant: str, rounds: int, hops: int) -> dict[str, object]:
    """Measure one variant in this process."""
    from opentelemetry import trace

    import rtobs
    from tests.bench import hop

    trace.set_tracer_provider(hop.provider(hop.SAMPLERS[variant]))
    rtobs.configure(service="bench", logs="logging", strict=True)
    bare, full = hop.floor(hop.provider().get_tracer("bare")), hop.full()
    spent(bare, hops)
    spent(full, hops)
    ratios, floors = [], []
    for _ in range(rounds):
        before, hopped, after = spent(bare, hops), spent(full, hops), spent(bare, hops)
        floors.append((before + after) / 2)
        ratios.append(hopped / floors[-1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "variant": variant,
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "floor_us": round(statistics.median(floors) / hops * 1e6, 1),
        "hop_us": round(middle * statistics.median(floors) / hops * 1e6, 1),
    }


def main() -> None:
    """Run every variant and print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--hops", type=int, default=HOPS)
    parser.add_argument("--variant", help="measure this one in this process and print its JSON (used by itself)")
    asked = parser.parse_args()
    if asked.variant:
        print(json.dumps(measure(asked.variant, asked.rounds, asked.hops)))
        return
    rows = []
    for variant in ("sampled", "unsampled"):
        command = [sys.executable, "-m", "tests.bench.run", "--variant", variant]
        done = subprocess.run(
            [*command, "--rounds", str(asked.rounds), "--hops", str(asked.hops)],
            check=True,
            capture_output=True,
            text=True,
        )
        rows.append(json.loads(done.stdout))
    result = {
        "floor": "two bare SDK spans, 8 attributes, batch processor, null exporter, sampled",
        "versions": {name: version(name) for name in ("rtobs", "opentelemetry-sdk", "structlog")},
        "python": sys.version.split()[0],
        "rows": rows,
    }
    if asked.json:
        print(json.dumps(result, indent=1))
        return
    print(f"FLOOR = {result['floor']}; Python {result['python']}, SDK {result['versions']['opentelemetry-sdk']}")
    print(f"{'full hop':<12}{'ratio to FLOOR':>16}{'quartiles':>20}{'hop':>12}{'floor':>12}")
    for row in rows:
        quartiles = "{:.2f} to {:.2f}".format(*row["quartiles"])
        times = f"{row['hop_us']:>9.1f} us{row['floor_us']:>9.1f} us"
        print(f"{row['variant']:<12}{row['ratio']:>16.2f}{quartiles:>20}{times}")


if __name__ == "__main__":
    main()
