"""``docs/benchmarks.md``, written from the results that are kept: never by hand (a test compares them).

``python -m tests.bench.page`` writes it again where only words or the form of a table have changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import claims, tables
from tests.bench.process import ROOT

FOLDER = Path(__file__).parent
BENCH = FOLDER / "results" / "bench.json"
PEERS = FOLDER / "results" / "peers.json"
HOP = FOLDER / "hop.py"
PAGE = ROOT / "docs" / "benchmarks.md"

TEXT = """\
# What rtobs costs

Measured on {date} by `make bench ARGS=--write`, which wrote this page: Python {python}, {machine}; {versions}.

**FLOOR** = {floor}: what tracing one message with
OpenTelemetry's SDK costs before anything is measured, propagated or explained. Ratios count; times are of one machine
on one day.

## Claims

{verdict}

{claims}

## The benched hop

```text
{hop}
```

## Instructions per hop

Counted by callgrind between two marks, 500 hops apart, in a process of its own, all threads together. Spans that are
queued are flushed after every 100 hops, so what an export thread does is inside. `sampled` converts each hop to the
SDK's span for an exporter that throws it away; `exported` encodes it and sends it to a collector on loopback. Repeats
are within 0.2 %, also on a busy machine, so this is what `make gate` compares with `tests/bench/recorded.json`.
`adds` is the price of one feature, in FLOORs. Instructions are not time: code that jumps about runs fewer of them in a
microsecond than a tight loop does, which is why the next table is there.

{instructions}

## CPU time per hop

Reference, row, reference in each of 15 rounds; CPU time of the whole process, everything flushed; the median of the
rounds' ratios.

{paired}

## Spans per second without a drop

Offered at rising rates for 3 seconds each, default queues, to one collector on loopback, until some are lost.
`exported` makes full hops of two spans each; `floor_exported` bare spans for the SDK's batch processor and its
OTLP/HTTP exporter.

{throughput}

## Bytes of a span that waits for export

Everything of Python's that stays alive for it, by tracemalloc; each message has a body of its own.

{memory}

## Real loops

Publish and process over brokers on the same cores: plain, wrapped, plain in each of 7 rounds. Wrapped makes two hops a
message and sends their spans to a collector on loopback, which takes its share of the cores.

{loops}

## The ledger

The same loops with messages of 200 B, wrapped all the time: what the ledger of the [flight recorder](sampling.md) adds
to the bytes of our headers after one, six and twelve steps, and what of the rate it takes: without, with, without in
each of 7 rounds.

{ledger}

## Peers

{peers}
"""

PEERS_TEXT = """\
Measured on {date} by `make bench-peers`: Python {python}, {machine}. Each in an environment of its own;
CPU time with its instrumentation less without, exporters that throw away, as a ratio to FLOOR in the same rounds. Read
what work each one does for it.

{peers}

Versions: {versions}."""


def render() -> str:
    """Return the page."""
    found = json.loads(BENCH.read_text(encoding="utf-8"))
    peers = json.loads(PEERS.read_text(encoding="utf-8")) if PEERS.exists() else None
    judged = claims.judge({**found, "peers": peers} if peers else found)
    reached = sum(claim["reached"] in ("aim", "must") for claim in judged)
    parts = ("instructions", "paired", "throughput", "memory", "loops", "ledger")
    return TEXT.format(
        **{name: found[name] for name in ("date", "python", "machine", "floor")},
        **{part: "\n".join(getattr(tables, part)(found[part], page=True)) for part in parts},
        versions=", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        verdict=f"{reached} of {len(judged)} are reached; what was missed says so.",
        claims="\n".join(tables.claims(judged, page=True)),
        hop=HOP.read_text(encoding="utf-8").rstrip(),
        peers=_peers(peers) if peers else "Not measured yet: `make bench-peers`.",
    )


def _peers(found: Mapping[str, Any]) -> str:
    versions = (f"{each['environment']}: {', '.join(each['versions'])}" for each in found["environments"])
    return PEERS_TEXT.format(
        **{name: found[name] for name in ("date", "python", "machine")},
        peers="\n".join(tables.peers(found, page=True)),
        versions="; ".join(versions),
    )


def write() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    write()
