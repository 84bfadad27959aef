"""Scraping: our series as a collector in ``prometheus_client``'s registry, with exemplars in OpenMetrics.

Names come from the one name function of ``_conventions``, so that a scrape and OTLP agree. A process that forks
workers cannot be scraped as a whole: refused, with advice. Must not know hops, brokers or the environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from math import isinf
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from rtobs import _conventions as names
from rtobs import _guard

if TYPE_CHECKING:
    from rtobs._telemetry.metrics import Exemplar as OwnExemplar
    from rtobs._telemetry.metrics import Point, Registry, Snapshot

_SCOPE_LABEL = "otel_scope_name"


class OwnCollector(Collector):
    """Shows the registry's series whenever somebody scrapes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.refused = False

    def describe(self) -> Iterable[Any]:
        """Say nothing: names are ours alone, and asking must not collect."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Return one family for each instrument; a fault of ours must not cost the host the rest of its page."""
        if self.refused:
            return iter(())
        try:
            return iter([_family(snapshot) for snapshot in self._registry.collect() if snapshot.points])
        except Exception as error:  # noqa: BLE001  see above
            _guard.fault("prometheus.collect", error)
            return iter(())


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
        buckets.append(("+Inf" if isinf(bound) else str(float(bound)), total, _exemplar(inside)))
        below = bound
    return buckets


def _exemplar(one: OwnExemplar | None) -> Exemplar | None:
    if one is None:
        return None
    labels = {"trace_id": f"{one.trace_id:032x}", "span_id": f"{one.span_id:016x}"}
    return Exemplar(labels, one.value, one.time_ns / 1e9)


class Scrape:
    """The collector while it is registered, and the port while one is open."""

    def __init__(self, registry: Registry, port: int | None, host: str) -> None:
        """Register; with a *port*, serve the whole registry of ``prometheus_client`` there too."""
        self._collector = OwnCollector(registry)
        self._server: Any = None
        REGISTRY.register(self._collector)
        if port is None:
            return
        try:
            self._server, _ = start_http_server(port, host)
        except OSError as error:  # the host goes on, and may serve the registry itself
            _guard.tell("prometheus.port", "Prometheus cannot scrape %s:%d: %s", host, port, error.strerror)

    def stop(self) -> None:
        """Unregister and close the port. May be called twice."""
        with contextlib.suppress(KeyError):  # unregistered before
            REGISTRY.unregister(self._collector)
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def after_fork(self) -> None:
        """Show nothing in a forked worker, and leave the port to its parent.

        Nothing is unregistered: another thread may have held the registry's lock at the fork.
        """
        self._collector.refused = True
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
