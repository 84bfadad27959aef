"""What OpenTelemetry's environment variables say: which signals leave, where to, how often, and as whom.

The only place that reads the environment. Must not know hops or brokers.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rtobs import _guard
from rtobs.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._export.prometheus import Scrape
    from rtobs._telemetry.metrics import Registry

_INSTANCE = "service.instance.id"
_SERVICE = "service.name"


def _word(variable: str, default: str = "") -> str:
    return os.environ.get(variable, default).strip().lower()


def disabled() -> bool:
    """Tell whether ``OTEL_SDK_DISABLED`` is set."""
    return _word("OTEL_SDK_DISABLED") == "true"


def chosen(signal: str) -> bool:
    """Tell whether a signal (``TRACES``, ``METRICS``, ``LOGS``) may leave by OTLP at all."""
    return "otlp" in _word(f"OTEL_{signal}_EXPORTER", "otlp") and not disabled()


def leaves(signal: str) -> bool:
    """Tell whether a signal leaves by OTLP: an endpoint is set and the signal is not switched off."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return bool(endpoint) and chosen(signal)


def sampler_chosen() -> bool:
    """Tell whether ``OTEL_TRACES_SAMPLER`` names the sampler of a provider that we make."""
    return bool(_word("OTEL_TRACES_SAMPLER"))


def wants_delta() -> bool:
    """Tell whether sums and histograms are to leave as deltas."""
    return _word("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE") in ("delta", "lowmemory")


def exporters(*, logs: bool) -> dict[str, Callable[[], Any] | None]:
    """Return a maker of an exporter for each signal that leaves."""
    return {
        "spans": _exporter("TRACES", "trace_exporter", "OTLPSpanExporter") if leaves("TRACES") else None,
        "metrics": _exporter("METRICS", "metric_exporter", "OTLPMetricExporter") if leaves("METRICS") else None,
        "logs": _exporter("LOGS", "_log_exporter", "OTLPLogExporter") if logs else None,
    }


def _exporter(signal: str, module: str, cls: str) -> Callable[[], Any]:
    protocol = _word(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _word("OTEL_EXPORTER_OTLP_PROTOCOL")
    package = "grpc" if protocol == "grpc" else "http"

    def make() -> Any:
        from importlib import import_module

        return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), cls)()

    return make


# Scraping ------------------------------------------------------------------------------------------------------------

_PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
_HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_MOST_PORT = 65_535
ADVICE = (
    "a process that forks workers cannot be scraped as a whole: each scrape would reach one worker at random. "
    "Push instead: OTEL_METRICS_EXPORTER=otlp and OTEL_EXPORTER_OTLP_ENDPOINT=<your collector>"
)


def _scraped() -> bool:
    chosen = {word.strip() for word in _word("OTEL_METRICS_EXPORTER").split(",")}
    return "prometheus" in chosen and not disabled()


def _why_not_scraped() -> str:
    """Return why Prometheus, which is wanted, cannot scrape this process, and what to do; empty: it can."""
    if find_spec("prometheus_client") is None:
        return 'prometheus-client is not installed; run: pip install "rtobs[prometheus]"'
    if os.environ.get(_MULTIPROCESS):
        return f"{_MULTIPROCESS} is set, and {ADVICE}"
    port = _word(_PORT)
    if port and not (port.isdecimal() and int(port) <= _MOST_PORT):
        return f"{_PORT} must be a port number; got {port!r}"
    return ""


def check_scraping() -> None:
    """Raise a ConfigError where ``OTEL_METRICS_EXPORTER`` names Prometheus and that cannot work."""
    if _scraped() and (why := _why_not_scraped()):
        raise ConfigError(f"rtobs.configure: OTEL_METRICS_EXPORTER names prometheus, but {why}")


def scrape(registry: Registry) -> Scrape | None:
    """Let Prometheus scrape *registry* if that is wanted; where it cannot be, tell why and go on without."""
    if not _scraped():
        return None
    if why := _why_not_scraped():
        _guard.tell("prometheus", "OTEL_METRICS_EXPORTER names prometheus, but %s", why)
        return None
    from rtobs._export.prometheus import Scrape

    port = _word(_PORT)
    return Scrape(registry, int(port) if port else None, os.environ.get(_HOST) or "127.0.0.1")


def seconds(variable: str, default: float) -> float:
    """Return a variable that holds milliseconds, in seconds; *default* seconds where it is no such number."""
    value = os.environ.get(variable)
    if not value:
        return default
    try:
        found = float(value) / 1000
    except ValueError:
        found = math.nan
    if math.isfinite(found) and found > 0:
        return max(found, 0.01)
    _guard.tell(variable, "%s=%r is not a number of milliseconds; using %d", variable, value, int(default * 1000))
    return default


# Who we are ----------------------------------------------------------------------------------------------------------


def resource(service: str | None) -> Resource:
    """Return the resource of a process that has no provider of its own."""
    from opentelemetry.sdk.resources import Resource

    return completed(Resource.create({}), service)


def completed(found: Resource, service: str | None) -> Resource:
    """Return *found* with a service name, where nobody gave it one, and an instance id, where it has none."""
    from opentelemetry.sdk.resources import Resource

    missing: dict[str, Any] = {}
    if service and str(found.attributes.get(_SERVICE, "unknown_service")).startswith("unknown_service"):
        missing[_SERVICE] = service
    if not found.attributes.get(_INSTANCE):
        missing[_INSTANCE] = str(uuid.uuid4())
    return found.merge(Resource(missing)) if missing else found


def another_instance(found: Resource, before: Resource) -> Resource:
    """Return *found* with an instance id that is not the one of *before*: a forked child is another instance."""
    from opentelemetry.sdk.resources import Resource

    if found.attributes.get(_INSTANCE) not in (None, before.attributes.get(_INSTANCE)):
        return found
    return found.merge(Resource({_INSTANCE: str(uuid.uuid4())}))
