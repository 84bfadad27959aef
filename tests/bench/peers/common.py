"""How a peer is measured: its hop with instrumentation less the same hop without, by CPU time, as a ratio to FLOOR.

FLOOR, without, with, FLOOR in each round of one process; exporters throw away; what is queued is flushed inside.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tests.bench import floor as bare

ROUNDS = 11
HOPS = 1000

Run = Callable[[int], Any]
"""Run so many hops."""


@dataclass(frozen=True)
class Peer:
    """One row: a peer's way of instrumenting the hop."""

    row: str
    name: str
    what: str
    """The work it does for one hop."""
    instrumented: Run
    plain: Run
    """The same hop without instrumentation."""


def times(hop: Callable[[], object]) -> Run:
    """Return what runs a hop so many times."""

    def run(hops: int) -> None:
        for _ in range(hops):
            hop()

    return run


def times_async(loop: asyncio.AbstractEventLoop, hop: Callable[[], Awaitable[object]]) -> Run:
    """Return what runs an asynchronous hop so many times, in one task of *loop*."""

    async def several(hops: int) -> None:
        for _ in range(hops):
            await hop()

    return lambda hops: loop.run_until_complete(several(hops))


def _spent(run: Run, hops: int) -> float:
    gc.collect()
    begun = time.process_time()
    run(hops)
    return (time.process_time() - begun) / hops


def tell(peers: Sequence[Peer], packages: Sequence[str]) -> None:
    """Measure, print JSON, and end the process."""
    rounds, hops = int(sys.argv[1]), int(sys.argv[2])
    provider = bare.provider()
    floor = times(bare.floor(provider.get_tracer("bare")))

    def flushed(hops: int) -> None:
        floor(hops)
        provider.force_flush()

    for run in (flushed, *(run for peer in peers for run in (peer.plain, peer.instrumented))):
        run(100)
    floors: list[float] = []
    added: dict[str, list[tuple[float, float]]] = {peer.row: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            before = _spent(flushed, hops)
            plain, instrumented = _spent(peer.plain, hops), _spent(peer.instrumented, hops)
            base = (before + _spent(flushed, hops)) / 2
            floors.append(base)
            added[peer.row].append((instrumented - plain, base))
    rows = []
    for peer in peers:
        low, middle, high = statistics.quantiles([more / base for more, base in added[peer.row]], n=4)
        rows.append(
            {
                "row": peer.row, "name": peer.name, "what": peer.what, "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "us": round(statistics.median(more for more, _ in added[peer.row]) * 1e6, 1),
            }
        )  # fmt: skip
    found = {
        "versions": [f"{name} {version(name)}" for name in packages],
        "floor_us": round(statistics.median(floors) * 1e6, 1), "rows": rows,
    }  # fmt: skip
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)
