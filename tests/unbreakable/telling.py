"""What rtobs told of one run of a host program, without what differs from run to run: ids, moments, durations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from rtobs import _config
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from tests.support.telemetry import Telemetry

_VARY = frozenset({
    names.INTERNAL_ERRORS.name, names.LABELS_USED.name, names.LABELS_LIMIT.name, names.BUSY_TIME.name,
    names.CAPACITY_TIME.name, names.HOPS_ACTIVE.name, names.CLOCK_REJECTED.name,
})  # fmt: skip
"""Instruments whose values are times, or that count what we do ourselves."""
_IDS = frozenset({
    "rtobs.correlation_id", "rtobs.intent_id", "messaging.message.id", "messaging.message.conversation_id",
    "messaging.consumer.group.name", "messaging.kafka.offset",
})  # fmt: skip

_UNIQUE = re.compile(r"rtobs-test-\w+-\d+-")
"""What a queue of this run is called, before its label."""

Counts = Mapping[tuple[str, tuple[str, ...]], float]


def counts() -> dict[tuple[str, tuple[str, ...]], float]:
    """Return counters as they are, and of histograms how many measurements they hold."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    bound = _config._bound
    for snapshot in bound.registry.collect() if bound is not None else ():
        if snapshot.instrument.name in _VARY:
            continue
        for point in snapshot.points:
            key = snapshot.instrument.name, tuple(map(_plain, point.labels))
            found[key] = found.get(key, 0) + (sum(point.counts) if point.counts else point.value)
    return found


class Told(NamedTuple):
    """Spans by what they say, and what was counted."""

    spans: Counter[tuple[object, ...]]
    counts: dict[tuple[str, tuple[str, ...]], float]


class Telling:
    """``with Telling(telemetry) as telling:`` round a run; after it ``telling.told``."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __enter__(self) -> Self:
        self._telemetry.forget()
        self._before = counts()
        return self

    def __exit__(self, *_: object) -> None:
        now = counts()
        changed = {key: value - self._before.get(key, 0) for key, value in now.items()}
        self.told = Told(_spans(self._telemetry), {key: value for key, value in changed.items() if value})


def _spans(telemetry: Telemetry) -> Counter[tuple[object, ...]]:
    spans = telemetry.spans()
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    found: Counter[tuple[object, ...]] = Counter()
    for span in spans:
        parent = by_id.get(span.parent.span_id) if span.parent is not None else None
        attributes: Mapping[str, Any] = span.attributes or {}
        known = frozenset(
            (key, _plain(value)) for key, value in attributes.items() if key not in _IDS and not _varies(value)
        )
        events = tuple(event.name for event in span.events)
        origin = _plain(parent.name) if parent is not None else ("remote" if span.parent is not None else "")
        found[_plain(span.name), span.kind, span.status.status_code, span.status.description, origin, events, known,
              frozenset(attributes), len(span.links)] += 1  # fmt: skip
    return found


def _plain(value: Any) -> Any:
    return _UNIQUE.sub("", value) if isinstance(value, str) else value


def _varies(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, str) and value[-1:].isdigit() and len(value) > 8)


class EachOnce:
    """``with EachOnce() as seen:``; afterwards every hop that began has ended, once."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []

    def __enter__(self) -> Self:
        assert engine.is_on()
        self._begin, self._sinks = runtime.begin, runtime.sinks
        runtime.begin = self._see
        runtime.sinks = (*runtime.sinks, self)
        return self

    def _see(self, record: Any) -> bool:
        self.begun.append(record)
        return self._begin(record)

    def end(self, record: Any) -> None:
        self.ended.append(record)

    def __exit__(self, *_: object) -> None:
        runtime.begin, runtime.sinks = self._begin, self._sinks

    def check(self) -> int:
        """Return how many hops there were; fail if one has not ended, or ended twice."""
        ends = Counter(map(id, self.ended))
        assert [record for record in self.begun if ends[id(record)] != 1] == []
        assert len(self.ended) == len(self.begun)
        return len(self.begun)
