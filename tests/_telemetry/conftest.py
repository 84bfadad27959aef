"""What the tests of this room share: the whole run's telemetry, and providers of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import rtobs
from tests.support.telemetry import Telemetry, clock, start, stop, telemetry

__all__ = ["clock", "telemetry"]


@pytest.fixture
def tolerant() -> Generator[Telemetry]:
    """Telemetry of a process that is configured as in production: faults are counted, not raised."""
    yield start(strict=False)
    stop()


class Traced:
    """A process whose tracer provider is the test's own."""

    def __init__(self, provider: Any, exporter: InMemorySpanExporter) -> None:
        self.provider = provider
        self._exporter = exporter

    def spans(self, hop: str = "") -> list[Any]:
        """Return what was exported so far, in order: all, or one kind of hop."""
        self.provider.force_flush()
        found = self._exporter.get_finished_spans()
        return [span for span in found if not hop or span.attributes.get("rtobs.hop") == hop]

    def forget(self) -> None:
        """Forget the spans so far."""
        self._exporter.clear()

    def span(self, name: str) -> Any:
        """Return the one span of that name."""
        (found,) = (span for span in self.spans() if span.name == name)
        return found


Make = Callable[..., Traced]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Generator[Make]:
    """A function that sets a TracerProvider of the test's own, as if the process had no other."""
    made: list[TracerProvider] = []

    def make(
        *before: SpanProcessor, kind: type[SpanProcessor] = SimpleSpanProcessor, settings: Any = None, **options: Any
    ) -> Traced:
        start(**(settings or {}))
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        made.append(provider)
        for processor in (*before, kind(exporter)):
            provider.add_span_processor(processor)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        return Traced(provider, exporter)

    yield make
    monkeypatch.undo()
    rtobs.configure()
    for provider in made:
        provider.shutdown()
    stop()
