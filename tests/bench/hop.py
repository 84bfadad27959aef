"""The benched hop: one publish and one consume of a 512-byte message, by public API only.

What it does: a publish hop and a consume hop, all headers of ``docs/wire-format.md`` out and in, the in-memory leaf's
``describe``, trust, sanitiser, guard, label guard, three counters and three histograms, a gauge of running hops, span,
log decision. ``test_hop.py`` holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable

import rtobs
from rtobs.integrations import memory
from rtobs.integrations.memory import Broker, Message
from tests.bench.floor import BODY


def full(body: Callable[[], bytes] = lambda: BODY) -> Callable[[], None]:
    """Return the full hop; *body* makes each message's body."""
    arrive = arrival()

    def hop() -> None:
        with rtobs.publish("orders") as out:
            headers = out.headers
        with rtobs.consume("orders", arrive(headers, body())):
            pass

    return hop


def arrival() -> Callable[..., Message]:
    """Return a function that makes the message of some headers as a wrapped client hands it out."""
    broker = rtobs.wrap(Broker())
    options = memory.options_of(broker)

    def arrive(headers: dict[str, str], body: bytes = BODY) -> Message:
        return memory.become(Message(broker, "orders", body, headers, 1, 1), memory._Message, options)

    return arrive
