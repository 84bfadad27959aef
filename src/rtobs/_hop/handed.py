"""Handed: native messages that user code got from a client and that no hop has taken yet.

Their facts wait here, found by the identity of the native object, which is kept alive meanwhile: bounded by number and
by bytes, the oldest go first. Must not know clients, nor what becomes of a message.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from rtobs._journey.message import Message

MOST = 10_000
"""Messages that may wait."""
MOST_BYTES = 64 * 1024 * 1024
"""Bytes that their bodies may have together, as far as their leaves say so."""


class Handed:
    """Facts by the identity of the native message, oldest first. All methods may be called from any thread."""

    __slots__ = ("_bytes", "_lock", "waiting")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waiting: OrderedDict[int, tuple[Message, int]] = OrderedDict()
        """What is kept, by the identity of the native object."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, message: Message, now_ns: int) -> None:
        """Keep *message*, which its user got at *now_ns*; the one that was kept for the same object goes."""
        with self._lock:
            self._drop(id(message.native))
            self.waiting[id(message.native)] = message, now_ns
            self._bytes += message.size
            while len(self.waiting) > MOST or (self._bytes > MOST_BYTES and len(self.waiting) > 1):
                self._drop(next(iter(self.waiting)))

    def look(self, native: object) -> Message | None:
        """Return what is known of *native*, and keep it."""
        found = self.waiting.get(id(native))
        return found[0] if found is not None and found[0].native is native else None

    def take(self, native: object) -> tuple[Message, int] | None:
        """Return what is known of *native* and when its user got it, once."""
        with self._lock:
            return self._drop(id(native)) if self.look(native) is not None else None

    def _drop(self, identity: int) -> tuple[Message, int] | None:
        found = self.waiting.pop(identity, None)
        if found is not None:
            self._bytes -= found[0].size
        return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self.waiting.clear()
            self._bytes = 0
