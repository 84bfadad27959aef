"""A public edge under a flood of strangers who ask to be sampled and kept; run as a program by the tests.

``python -m tests.unbreakable.flood NUMBER`` prints what it saw. It must not know how rtobs decides.
"""

from __future__ import annotations

import json
import random
import sys
from types import SimpleNamespace

import rtobs
from rtobs._hop import engine
from rtobs._journey import carrier
from rtobs._journey import journey as identities
from rtobs._journey.journey import Journey

CID = "0199a1b2c3d47e5f8a6b7c8d9e0f1a2b"


def forged(trace: str = "0af7651916cd43dd8448eb211c80319c", span: str = "b7ad6b7169203331") -> dict[str, str]:
    """Return what a stranger sends who knows all of our headers."""
    journey = Journey(CID, 1_000_000)
    journey.tenant, journey.region, journey.source, journey.named, journey.kept = "victim", "eu", "crm", True, "forged"
    journey.ledger = "A" * 28
    journey.promise("push")
    headers = carrier.write(journey, trace, span, 1, 2_000_000, channel="push")
    return {**headers, "tracestate": "ot=th:0;rv:00000000000000,evil=1", "baggage": f"{headers['baggage']},evil=1"}


def main() -> None:
    chance = random.Random(7)
    rtobs.configure(service="edge", sampling={"default": 0.01}, logs="stdout")
    identities.os = SimpleNamespace(urandom=random.Random(19).randbytes)  # the same ids in every run
    theirs, ours, believed = set(), set(), 0
    for _ in range(int(sys.argv[1])):
        trace = f"{chance.getrandbits(128) | 1:032x}"
        theirs.add(trace)
        with rtobs.accept("/orders", headers=forged(trace, f"{chance.getrandbits(64) | 1:016x}")) as hop:
            record = engine.current()
            ours.add(f"{record.trace_id:032x}")
            journey = record.journey
            believed += bool(journey.kept or journey.tenant or journey.promised or hop.correlation_id == CID)
            believed += "evil" in str(hop.headers) or "victim" in str(hop.headers)
    done = rtobs.shutdown(20)
    print(json.dumps({"done": done, "ours": len(ours), "shared": len(ours & theirs), "believed": believed}))


if __name__ == "__main__":
    main()
