"""Scraping: our series as a collector in ``prometheus_client``'s registry, with exemplars in OpenMetrics.

Names come from the one name function of ``_conventions``, so that a scrape and OTLP agree. A process that forks
workers cannot be scraped as a whole: refused, with advice. Must not know hops or brokers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from rtobs import _conventions as names
from rtobs import _guard

if TYPE_CHECKING:
    from rtobs._telemetry.metrics import Exemplar as OwnExemplar
    from rtobs._telemetry.metrics import Point, Registry, Snapshot

PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
ADVICE = (
    "a process that forks workers cannot be scraped as a whole: each scrape would reach one worker at random. "
    "Push instead: OTEL_METRICS_EXPORTER=otlp and OTEL_EXPORTER_OTLP_ENDPOINT=<your collector>"
)
_SCOPE_LABEL = "otel_scope_name"


class OwnCollector(Collector):
    """Shows the registry's series whenever somebody scrapes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Any]:
        """Say nothing: names are ours alone, and asking must not collect."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield one family for each instrument."""
        for snapshot in self._registry.collect():
            if snapshot.points:
                yield _family(snapshot)


def _family(snapshot: Snapshot) -> Any:
    instrument = snapshot.instrument
    name = names.prometheus_name(instrument)
    labels = [_SCOPE_LABEL, *(names.prometheus_label(label) for label in instrument.labels)]
    family: Any
    if instrument.kind == "histogram":
        family = HistogramMetricFamily(name, instrument.description, labels=labels)
        for point in snapshot.points:
            family.add_metric([names.SCOPE, *point.labels], _buckets(point, snapshot.bounds), point.value)
        return family
    kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
    family = kind(name.removesuffix("_total"), instrument.description, labels=labels)
    for point in snapshot.points:
        family.add_metric([names.SCOPE, *point.labels], point.value)
    return family


def _buckets(point: Point, bounds: tuple[float, ...]) -> list[tuple[str, float, Exemplar | None]]:
    """Return cumulative buckets; each has the last exemplar that fell into it."""
    buckets: list[tuple[str, float, Exemplar | None]] = []
    total, below = 0, float("-inf")
    for bound, count in zip((*bounds, float("inf")), point.counts, strict=True):
        total += count
        inside = next((one for one in point.exemplars if below < one.value <= bound), None)
        buckets.append((floatToGoString(bound), total, _exemplar(inside)))
        below = bound
    return buckets


def _exemplar(one: OwnExemplar | None) -> Exemplar | None:
    if one is None:
        return None
    labels = {"trace_id": f"{one.trace_id:032x}", "span_id": f"{one.span_id:016x}"}
    return Exemplar(labels, one.value, one.time_ns / 1e9)


class Scrape:
    """The collector while it is registered, and the port while one is open."""

    def __init__(self, registry: Registry) -> None:
        """Register; with ``OTEL_EXPORTER_PROMETHEUS_PORT`` set, serve the registry there too."""
        self._collector = OwnCollector(registry)
        self._server: Any = None
        REGISTRY.register(self._collector)
        port = os.environ.get(PORT)
        if port:
            self._server, _ = start_http_server(int(port), os.environ.get(HOST) or "127.0.0.1")

    def stop(self) -> None:
        """Unregister and close the port."""
        try:
            REGISTRY.unregister(self._collector)
        except KeyError:  # somebody cleared the registry
            _guard.log.debug("the collector was unregistered by somebody else")
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def after_fork(self) -> None:
        """Refuse in a forked worker: its numbers would be one worker's, found at random."""
        self._server = None
        try:
            REGISTRY.unregister(self._collector)
        except KeyError:
            return
        _guard.tell("prometheus.prefork", "Prometheus scraping is off in this worker: %s", ADVICE)
