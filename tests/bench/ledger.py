"""What the flight recorder's ledger costs on live brokers: bytes in a message of 200 B, and messages a second.

``python -m tests.bench.ledger <loop> <rounds> <messages>``: without, with, without in each round, the client wrapped
all the time and spans exported. Prints JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
from typing import Any

import rtobs
from rtobs._hop import handover
from tests.bench import loops
from tests.bench.sink import Sink

BODY = b"x" * 200
STEPS = (1, 6, 12)
"""How far a message has come when its ledger is weighed."""
LOOPS = ("rabbitmq_pipelined", "redis_batched", "nats_streaming")

_WRITES = {name: getattr(handover, name) for name in ("_first", "_told")}


def switch(*, on: bool) -> None:
    """Let what is sent carry a ledger, or not."""
    for name, write in _WRITES.items():
        setattr(handover, name, write if on else lambda *_: "")


def weigh() -> dict[str, list[int]]:
    """Return the bytes of all our headers after each of ``STEPS``, with a ledger and without."""
    found = {}
    for which, on in (("with", True), ("without", False)):
        switch(on=on)
        headers: dict[str, str] = {}
        weights = []
        for step in range(1, max(STEPS) + 1):
            opening = rtobs.consume(f"orders.{step}", headers=headers, trust="trusted") if headers else None
            with opening or rtobs.accept("/orders"), rtobs.publish(f"orders.{step + 1}") as out:
                headers = out.headers
            if step in STEPS:
                weights.append(sum(len(name) + len(value) for name, value in headers.items()))
        found[which] = weights
    switch(on=True)
    return found


async def measure(name: str, rounds: int, messages: int | None) -> dict[str, Any]:
    """Measure one loop in this process."""
    what, make, at_once, usual = loops.LOOPS[name]
    messages = messages or usual
    loops.BODY = BODY
    async with contextlib.AsyncExitStack() as stack:
        sink = stack.enter_context(Sink())
        os.environ.update(sink.environment)
        rtobs.configure(service="bench", logs="logging")
        loop = await stack.enter_async_context(make(rtobs.wrap, at_once))
        found = []
        for kept in (False, *[True] * rounds):  # the first one warms up
            seconds = []
            for on in (False, True, False):
                switch(on=on)
                seconds.append((await loops.spent(loop, messages))[0])
            if kept:
                found.append((seconds[1], (seconds[0] + seconds[2]) / 2))
        weights = weigh()
    lost = statistics.quantiles([1 - without / recorded for recorded, without in found], n=4)
    return {
        "loop": name,
        "what": what,
        "bytes": [more - less for more, less in zip(weights["with"], weights["without"], strict=True)],
        "headers_bytes": weights["without"],
        "per_second": round(statistics.median(1 / recorded for recorded, _ in found)),
        "per_second_without": round(statistics.median(1 / without for _, without in found)),
        "lost": round(lost[1], 3),
        "quartiles": [round(lost[0], 3), round(lost[2], 3)],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None))))
    sys.stdout.flush()
    os._exit(0)
