"""Two processes of one app: ``produce`` prints a message's headers for each tenant, ``consume`` reads them.

Run by test_peers.py. Each ends by writing the series it counted to the file that its second argument names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rtobs
from rtobs import _config
from rtobs import _conventions as names

TENANTS = 20_000
PINNED = tuple(f"declared-{number}" for number in range(20))


def produce() -> None:
    """Promise one delivery for each tenant, the declared ones last, and send its message."""
    rtobs.configure(tenants=PINNED)
    for number in range(TENANTS):
        tenant = f"tenant-{number:05d}" if number < TENANTS - len(PINNED) else PINNED[TENANTS - 1 - number]
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant=tenant, region="eu")
            hop.intend("webhook")
            with rtobs.publish("orders") as sending:
                print(json.dumps(sending.headers))


def consume() -> None:
    """Name 200 tenants of its own first, then deliver every message that comes."""
    for number in range(200):
        with rtobs.accept("/local") as hop:
            hop.segment(tenant=f"local-{number}")
    for line in sys.stdin:
        with (
            rtobs.consume("orders", headers=json.loads(line), trust="trusted"),
            rtobs.deliver("webhook", "crm"),
        ):
            pass


def write_counts(path: Path) -> None:
    bound = _config._bound
    found: dict[str, dict[str, float]] = {}
    for snapshot in bound.registry.collect():
        if snapshot.instrument in (names.INTENTS, names.OUTCOMES):
            at = snapshot.instrument.labels.index(names.Label.TENANT)
            by_tenant = found.setdefault(snapshot.instrument.name, {})
            for point in snapshot.points:
                by_tenant[point.labels[at]] = by_tenant.get(point.labels[at], 0) + point.value
    path.write_text(json.dumps({**found, "series": bound.registry.series_used}))


if __name__ == "__main__":
    {"produce": produce, "consume": consume}[sys.argv[1]]()
    write_counts(Path(sys.argv[2]))
