"""Which promised deliveries are visibly still on their way, read from spans alone.

A delivery is on its way while the last thing heard of it is that its message was sent, or that it was put back to be
tried again, and while that is not longer ago than messages have been seen to wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from rtobs._conventions import Attribute
from rtobs.demo.endings import RETRIED, settled

if TYPE_CHECKING:
    from rtobs.demo.telemetry import Span

PATIENCE: Final = 10.0
"""Seconds of silence after which a message is no longer taken to be on its way; more where longer waits were seen.
Longer than a broker takes to give a killed worker's messages to another one."""

ENDED_KEPT: Final = 100_000
"""Ended deliveries that are remembered, so that a span which arrives late does not open them again."""


class Promises:
    """Follows each intent from its message's sending to its last handling."""

    def __init__(self) -> None:
        self.longest_wait = 0.0
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def watch(self, span: Span) -> None:
        """Take one more span into account; spans may come in any order."""
        hop = span.hop
        if hop == "consume":
            self.longest_wait = max(self.longest_wait, span.number(Attribute.LAG) or 0.0)
        intent = span.text(Attribute.INTENT_ID)
        if not intent or hop not in ("publish", "consume"):
            return
        with self._lock:
            if hop == "publish" or settled(span) == RETRIED:
                if intent not in self._ended:
                    self._waiting[intent] = max(span.end_ns, self._waiting.get(intent, 0))
                return
            self._waiting.pop(intent, None)
            self._ended[intent] = None
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)

    def on_their_way(self, now_ns: int) -> int:
        """Return how many deliveries are open at wall-clock time *now_ns*."""
        oldest = now_ns - int(max(PATIENCE, 2.0 * self.longest_wait) * 1e9)
        with self._lock:
            return sum(1 for heard_ns in self._waiting.values() if heard_ns >= oldest)
