"""Buffer: what waits to be exported, bounded by number and by bytes; what matters goes last when there is no room.

Not locked: its owner does that. Must not know what the items are for.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, cast

from rtobs._conventions import Attribute
from rtobs._journey.record import HopRecord

Waiting = tuple[Any, int, int]
"""One item, how many spans or log records it is, and what it weighs: bytes of memory, estimated."""

_RECONSTRUCTED: Final = Attribute.RECONSTRUCTED.value
HOP_BYTES: Final = 900
"""A hop with its message and its share of the journey, without what the application adds."""
_STAGE_BYTES: Final = 500
_SPAN_BYTES: Final = 2400
"""A span of the SDK's without attributes."""
_EVENT_BYTES: Final = 500
"""An event, a link or a log record, without attributes."""
_ENTRY_BYTES: Final = 60
"""One attribute or element, without what it holds."""
_TEXT: Final = (str, bytes)
_MOST_DEPTH: Final = 3
_MOST_LOOKED_AT: Final = 64
"""Elements whose sizes stand for those of all the others."""


class Buffer:
    """Two queues, oldest first: items that matter are taken before others, and dropped after them."""

    __slots__ = ("_important", "_most", "_most_bytes", "_plain", "_size", "count")

    def __init__(self, most: int, most_bytes: int) -> None:
        """Hold up to *most* items that weigh up to *most_bytes* together."""
        self._most = most
        self._most_bytes = most_bytes
        self._plain: deque[Waiting] = deque()
        self._important: deque[Waiting] = deque()
        self._size = 0
        self.count = 0
        """How many items wait."""

    @property
    def items(self) -> int:
        """How many spans or log records wait."""
        return sum(items for _, items, _ in (*self._plain, *self._important))

    def add(self, new: Waiting, *, important: bool) -> tuple[str, int] | None:
        """Take an item in; return why and how many spans or records had to go for that, its own perhaps among them."""
        size = new[2]
        if self.count < self._most and self._size + size <= self._most_bytes:
            (self._important if important else self._plain).append(new)
            self._size += size
            self.count += 1
            return None
        reason, lost = "queue_full" if self.count >= self._most else "bytes_full", new[1]
        if important and size <= self._most_bytes:
            lost = 0
            while self._plain and not self._has_room(size):
                lost += self._removed(self._plain.pop())[1]
            if self._has_room(size):
                self.add(new, important=True)
            else:
                lost += new[1]
        return reason, lost

    def _has_room(self, size: int) -> bool:
        return self.count < self._most and self._size + size <= self._most_bytes

    def take(self, most: int) -> list[Waiting]:
        """Return up to *most* items, those that matter first; they wait no more."""
        if most >= self.count:
            everything = [*self._important, *self._plain]
            self._important.clear()
            self._plain.clear()
            self._size = self.count = 0
            return everything
        taken: list[Waiting] = []
        for queue in (self._important, self._plain):
            while queue and len(taken) < most:
                taken.append(self._removed(queue.popleft()))
        return taken

    def _removed(self, one: Waiting) -> Waiting:
        self._size -= one[2]
        self.count -= 1
        return one


# What things weigh ---------------------------------------------------------------------------------------------------


def is_bare(found: HopRecord) -> bool:
    """Tell whether an ended hop holds nothing that needs weighing."""
    return not (found.attributes or found.events or found.stages)


def hop(found: HopRecord) -> Waiting:
    """Weigh an ended hop: a fixed part, and what its attributes, events and stages hold."""
    items, size = 1, HOP_BYTES
    if found.attributes:
        size += _weight(found.attributes, 0)
    if found.events:
        size += _events(found.events)
    if found.stages:
        for stage in found.stages:
            items += stage.ended
            size += _STAGE_BYTES + _weight(stage.attributes, 0) + _events(stage.events)
    return found, items, size


def span(found: Any) -> Waiting:
    """Weigh another library's span in the same way."""
    size = _SPAN_BYTES + _weight(found.name, 0) + _weight(found.attributes, 0)
    return found, 1, size + _events(found.events) + _events(found.links)


def log(event: Mapping[str, Any], time_ns: int) -> Waiting:
    """Weigh a log event."""
    return (event, time_ns), 1, _EVENT_BYTES + _weight(event, 0)


def matters(found: HopRecord) -> bool:
    """Tell whether a hop goes last: it failed or is kept for a reason."""
    return found.rare is not None and bool(found.keep_reason or found.error_type or found.result == "failed")


def has_error(found: Any) -> bool:
    """Tell the same of another library's span, and of one that was rebuilt for a journey that is kept."""
    return (not found.status.is_unset and not found.status.is_ok) or _RECONSTRUCTED in (found.attributes or ())


def _events(found: Any) -> int:
    return sum(_EVENT_BYTES + _weight(one.attributes, 0) for one in found or ())


def _weight(value: Any, depth: int) -> int:
    """Estimate; of a long value from its first elements, and never of what hides behind somebody's method."""
    if type(value) in _TEXT:
        return sys.getsizeof(value)
    mapping = isinstance(value, Mapping)
    if depth < _MOST_DEPTH and (mapping or isinstance(value, tuple | list)):
        many: Any = cast("Any", value)
        inside = many.values() if mapping else many
        weights = [_ENTRY_BYTES + _weight(one, depth + 1) for one in islice(inside, _MOST_LOOKED_AT)]
        return _ENTRY_BYTES + sum(weights) * len(many) // max(len(weights), 1)
    return _ENTRY_BYTES
