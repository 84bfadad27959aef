"""An app whose own counts are the truth that a collector's are compared with; run as a program by the tests."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from opentelemetry import trace

import rtobs
from rtobs import _config, _guard
from rtobs.integrations.memory import Broker

truth: Counter[str] = Counter()
cids: list[str] = []


async def work(messages: int) -> None:
    """Accept, publish and deliver; every fifth delivery fails and its message is dropped."""
    broker = rtobs.wrap(Broker())
    for number in range(messages):
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant="acme" if number % 2 else "zenith", region="eu")
            hop.intend("webhook")
            cids.append(hop.correlation_id)
            await broker.publish("orders", b"{}")
        truth["accepted"] += 1
        truth["sent"] += 1
        truth["intents"] += 1
        message = await broker.get("orders")
        try:
            with rtobs.consume("orders", message), rtobs.stage("invoke"):
                with trace.get_tracer("neighbour").start_as_current_span("query"):
                    await message.ack()
                with rtobs.deliver("webhook", "crm"):
                    call(works=number % 5 != 0)
        except ConnectionError:
            truth["failed"] += 1
        else:
            truth["ok"] += 1
        truth["consumed"] += 1
        truth["stages"] += 1
        truth["neighbours"] += 1


def call(*, works: bool) -> None:
    """Stand for the call to a provider."""
    if not works:
        raise ConnectionError("gone")


def hops(number: int) -> None:
    """End *number* hops, fast."""
    for _ in range(number):
        with rtobs.accept("/orders"):
            pass
    truth["accepted"] += number


def dropped() -> dict[str, int]:
    """Return what was counted as not exported: ``signal/reason``."""
    found: dict[str, int] = {}
    for (name, values), count in _guard.tallies().items():
        if name == "rtobs.telemetry.dropped":
            found["/".join(values)] = count
    return found


def tell(**more: Any) -> None:
    """Print what this process knows of itself."""
    print(json.dumps({"truth": truth, "cids": cids, "dropped": dropped(), **more}))


def main() -> None:
    doing = sys.argv[1]
    if doing == "whole":
        asyncio.run(work(120))
        tell(done=rtobs.shutdown())
    elif doing == "parts":
        for messages in (10, 20, 30, 40):
            asyncio.run(work(messages))
            _config.flush()
        tell(done=rtobs.shutdown())
    elif doing == "poison":
        asyncio.run(work(5))
        with trace.get_tracer("neighbour").start_as_current_span("bad\udcff"):
            pass
        with trace.get_tracer("neighbour").start_as_current_span("good") as span:
            span.add_event("bad\udcff")
        tell(done=rtobs.shutdown())
    else:
        number, timeout = int(sys.argv[2]), float(sys.argv[3])
        hops(number)
        begun = time.monotonic()
        done = rtobs.shutdown(timeout)
        took = time.monotonic() - begun
        hops(3)
        again = time.monotonic()
        rtobs.shutdown(timeout)
        tell(done=done, took=took, again=time.monotonic() - again)


if __name__ == "__main__":
    main()
