"""Measure what rtobs costs and print it beside what is claimed: ``make bench``, ``make bench ARGS=--json``.

Parts, each in processes of its own: instructions (``instructions``, the one that gates), CPU time (``paired``), spans/s
(``throughput``), bytes (``memory``), real loops over live brokers (``loops``), the ledger in them (``ledger``).
``--write`` keeps the result in ``results/bench.json`` and writes ``docs/benchmarks.md`` from it and from the last
``make bench-peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tests.bench import claims, instructions, ledger, loops, page, paired, tables, throughput
from tests.bench.floor import WHAT
from tests.bench.process import NEVER, NotMeasuredError, result
from tests.bench.variants import ROWS

PACKAGES = ("rtobs", "opentelemetry-sdk", "opentelemetry-exporter-otlp", "structlog", "aio-pika", "redis", "nats-py")


def _instructions(rows: Sequence[str], *, quick: bool) -> Any:
    return instructions.rows(instructions.measure(rows, 100 if quick else instructions.HOPS))


def _paired(rows: Sequence[str], *, quick: bool) -> Any:
    often = ("3", "100") if quick else (str(paired.ROUNDS), str(paired.HOPS))
    return [result("paired", name, *often, environment=NEVER) for name in rows if name != ROWS[name].base]


def _throughput(_rows: Sequence[str], *, quick: bool) -> Any:
    seconds = str(0.1 if quick else throughput.SECONDS)
    return [result("throughput", name, seconds) for name in ("floor_exported", "exported")]


def _memory(_rows: Sequence[str], *, quick: bool) -> Any:
    del quick
    found = ("floor", "users_provider", "sampled")
    return [result("memory", name, environment={**NEVER, **ROWS[name].environment}) for name in found]


def _loops(_rows: Sequence[str], *, quick: bool) -> Any:
    often = ("2", "100") if quick else (str(loops.ROUNDS), "0")
    return [result("loops", name, *often) for name in loops.LOOPS]


def _ledger(_rows: Sequence[str], *, quick: bool) -> Any:
    often = ("2", "100") if quick else (str(loops.ROUNDS), "0")
    return [result("ledger", name, *often) for name in ledger.LOOPS]


PARTS = {
    "instructions": _instructions, "paired": _paired, "throughput": _throughput, "memory": _memory, "loops": _loops,
    "ledger": _ledger,
}  # fmt: skip
TITLES = {
    "instructions": "Instructions per hop, all threads; `adds` is in FLOORs",
    "paired": "CPU time per hop, all threads, as a ratio to a reference in the same rounds",
    "throughput": "Spans per second that arrive without a drop",
    "memory": "Bytes of a span that waits for export",
    "loops": "Real loops over live brokers, hops exported by OTLP",
    "ledger": "The ledger in messages of 200 B over live brokers",
}


def machine() -> str:
    """Return what it was measured on."""
    return f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}"


def measure(parts: Sequence[str], rows: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Return what the parts measured, and the claims judged by it."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(), "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES}, "floor": WHAT,
    }  # fmt: skip
    for part in parts:
        print(f"measuring {part} …", file=sys.stderr, flush=True)
        found[part] = PARTS[part](rows, quick=quick)
    known = json.loads(page.PEERS.read_text()) if page.PEERS.exists() else None
    found["claims"] = claims.judge({**found, "peers": known} if known else found)
    return found


def text(found: Mapping[str, Any]) -> list[str]:
    """Return it all for a terminal."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [f"FLOOR = {found['floor']}", f"Python {found['python']}, {found['machine']}; {versions}", ""]
    for part in PARTS:
        if part in found:
            lines += [f"## {TITLES[part]}", "", *getattr(tables, part)(found[part]), ""]
    lines += ["## The benched hop", "", *page.HOP.read_text().splitlines(), ""]
    return [*lines, "## Claims", "", *tables.claims(found["claims"])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="row", help="of the first two parts"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run, whose numbers mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", action="store_true", help="keep the result and write docs/benchmarks.md")
    asked = parser.parse_args()
    if asked.write and (asked.quick or asked.parts != list(PARTS) or asked.rows != list(ROWS)):
        parser.error("--write wants everything measured: leave out --quick, --parts and --rows")
    try:
        found = measure(asked.parts, asked.rows, quick=asked.quick)
    except NotMeasuredError as error:
        sys.exit(str(error))
    if asked.write:
        page.BENCH.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        page.write()
    print(json.dumps(found, indent=1, ensure_ascii=False) if asked.json else "\n".join(text(found)))


if __name__ == "__main__":
    main()
