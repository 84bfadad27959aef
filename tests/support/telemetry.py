"""What came out of one test: counts from the registry, finished spans, log events.

One TracerProvider, as a user would have it, serves the whole run, because OpenTelemetry takes only one per process;
what it finished is cleared before each test. Ask for the fixture ``telemetry``.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import rtobs
from rtobs import _config, _guard
from rtobs import _conventions as names
from rtobs._conventions import Instrument, Label
from rtobs._hop import engine, leaf
from rtobs._hop.runtime import runtime

SECOND = 1_000_000_000
"""Nanoseconds."""

_exporter = InMemorySpanExporter()
_ready: list[TracerProvider] = []


class SeesStarts(SpanProcessor):
    """A processor that watches spans start: hops have to be SDK spans then."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        pass


def user_provider() -> TracerProvider:
    """Return the run's provider; its finished spans are in memory."""
    if not _ready:
        found = trace.get_tracer_provider()
        if not isinstance(found, TracerProvider):
            found = TracerProvider()
            trace.set_tracer_provider(found)
        found.add_span_processor(SimpleSpanProcessor(_exporter))
        if os.environ.get("RTOBS_TEST_SPANS") == "fallback":
            found.add_span_processor(SeesStarts())
        _ready.append(found)
    return _ready[0]


class Telemetry:
    """Reads what rtobs emitted since the test began."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        """Log events, oldest first."""

    # Metrics ---------------------------------------------------------------------------------------------------------

    def series(self, instrument: Instrument, **labels: str) -> list[tuple[dict[str, str], float, int]]:
        """Return (labels, value, number of measurements) of the series that have all of *labels*.

        Labels are named as the members of ``Label``, in lower case: ``destination``, ``messaging_destination``.
        """
        bound = _config._bound
        wanted = {Label[name.upper()]: value for name, value in labels.items()}
        unknown = set(wanted) - set(instrument.labels)
        assert not unknown, f"{instrument.name} has no label {unknown}"
        found = []
        for snapshot in bound.registry.collect() if bound is not None else ():
            if snapshot.instrument is not instrument:
                continue
            for point in snapshot.points:
                named = dict(zip(instrument.labels, point.labels, strict=True))
                if wanted.items() <= named.items():
                    plain = {label.name.lower(): value for label, value in named.items()}
                    found.append((plain, point.value, sum(point.counts)))
        return found

    def count(self, instrument: Instrument, **labels: str) -> int:
        """Return a counter's total, or how many measurements a histogram holds, over the series with *labels*."""
        histogram = instrument.kind == "histogram"
        return int(sum(number if histogram else value for _, value, number in self.series(instrument, **labels)))

    def seconds(self, instrument: Instrument, **labels: str) -> float:
        """Return the sum of a histogram's measurements."""
        assert instrument.kind == "histogram"
        return sum(value for _, value, _ in self.series(instrument, **labels))

    def by(self, instrument: Instrument, *labels: str) -> dict[Any, int]:
        """Return counts by the values of one label, or by tuples of the values of several; zeros are left out."""
        found: dict[Any, int] = {}
        for named, value, number in self.series(instrument):
            key = tuple(named[label] for label in labels)
            count = int(number if instrument.kind == "histogram" else value)
            if count:
                found[key if len(key) > 1 else key[0]] = found.get(key if len(key) > 1 else key[0], 0) + count
        return found

    # Spans -----------------------------------------------------------------------------------------------------------

    def spans(self, hop: str = "", name: str = "") -> list[ReadableSpan]:
        """Return finished spans in the order they ended: all, or those of one kind of hop, or of one name."""
        return [
            span
            for span in _exporter.get_finished_spans()
            if (not hop or (span.attributes or {}).get("rtobs.hop") == hop) and (not name or span.name == name)
        ]

    def span(self, hop: str = "", name: str = "") -> ReadableSpan:
        """Return the one such span."""
        found = self.spans(hop, name)
        assert len(found) == 1, f"expected one span {hop} {name}, found {[span.name for span in found]}"
        return found[0]

    def forget(self) -> None:
        """Forget the spans and events so far; counts go on."""
        _exporter.clear()
        self.events.clear()


def start(**options: Any) -> Telemetry:
    """Configure rtobs for one test, strict, with nothing counted yet; *options* are those of ``configure``."""
    user_provider()
    found = Telemetry()
    rtobs.configure(**{"strict": True, "logs": found.events.append, **options})
    with _guard._lock:  # these two belong to the process, not to what `configure` binds
        _guard._tallies.clear()
        _guard._last_told.clear()
    leaf.received.clear()
    _exporter.clear()
    return found


def stop() -> None:
    """Leave the process as it was: defaults, not strict."""
    rtobs.configure()
    _exporter.clear()


@pytest.fixture
def telemetry() -> Generator[Telemetry, None, None]:
    """What rtobs emits during this test; faults of rtobs are raised.

    No hop may stay current after a plain test; an async one runs in a context of its own and has to look itself.
    """
    found = start()
    yield found
    left = engine.current()
    faults = found.by(names.INTERNAL_ERRORS, "site")
    if left is not None:
        attach(Context())  # the tests that follow shall not suffer
    stop()
    assert left is None, f"{left!r} stayed current after the test"
    assert faults == {}


class Clock:
    """Time that passes only when a test says so, nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Both clocks of rtobs stand still."""
    found = Clock()
    monkeypatch.setattr(runtime, "wall_ns", found)
    monkeypatch.setattr(runtime, "monotonic_ns", found)
    return found
