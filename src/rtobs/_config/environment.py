"""What OpenTelemetry's environment variables say: which signals leave, where to, how often, and as whom.

The only place that reads the environment. Must not know hops or brokers.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rtobs import _guard
from rtobs.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._export.prometheus import Scrape
    from rtobs._export.sender import Compression, Target
    from rtobs._export.transport import Transport
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


# Where signals go ----------------------------------------------------------------------------------------------------

_PATHS = {"spans": "traces", "metrics": "metrics", "logs": "logs"}
_CLASSES = {
    "spans": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}
_TIMEOUT = 10.0

Maker = Callable[["Resource"], "Transport"]


def exporters(*, logs: bool) -> dict[str, Maker | None]:
    """Return a maker of a way out for each signal that leaves."""
    leaving = {"spans": leaves("TRACES"), "metrics": leaves("METRICS"), "logs": logs}
    return {signal: _maker(signal) if leaving[signal] else None for signal in leaving}


def load_exporters() -> None:
    """Import what the ways out are made of, so that neither an early shutdown nor a fork has to wait for it."""
    for signal, path in _PATHS.items():
        if leaves(path.upper()):
            _way_out(signal)


def _maker(signal: str) -> Maker:
    def make(resource: Resource) -> Transport:
        return _way_out(signal)(resource)

    return make


def _way_out(signal: str) -> Maker:
    from rtobs._export.otlp import exported, joining, posted

    grpc = (_of(signal, "PROTOCOL") or "").strip().lower() == "grpc"
    if grpc or _credentials(signal):  # a session that somebody else makes is the SDK's exporter's to use
        module, cls = _CLASSES[signal]
        found = import_module(f"opentelemetry.exporter.otlp.proto.{'grpc' if grpc else 'http'}.{module}")
        return lambda resource: exported(signal, getattr(found, cls)(), resource)
    from rtobs._export.sender import Sender

    join, where = joining(signal), target(signal)
    return lambda resource: posted(signal, Sender(where), where.timeout, resource, join)


def _of(signal: str, name: str) -> str | None:
    """Return ``OTEL_EXPORTER_OTLP_{SIGNAL}_{name}``, or the variable for all signals."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{_PATHS[signal].upper()}_{name}")
    return own or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or None


def _credentials(signal: str) -> bool:
    prefix = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_"
    own = os.environ.get(f"{prefix}{_PATHS[signal].upper()}_CREDENTIAL_PROVIDER")
    return bool(own or os.environ.get(f"{prefix}CREDENTIAL_PROVIDER"))


def target(signal: str) -> Target:
    """Return where ``spans``, ``metrics`` or ``logs`` go by OTLP/HTTP, as the SDK's exporter reads the environment."""
    from importlib.metadata import version

    from opentelemetry.util.re import parse_env_headers

    from rtobs._export.sender import Target

    path = _PATHS[signal]
    url = os.environ.get(f"OTEL_EXPORTER_OTLP_{path.upper()}_ENDPOINT")
    if not url:
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        url = f"{base.removesuffix('/')}/v1/{path}"
    headers = {"content-type": "application/x-protobuf", "user-agent": f"rtobs/{version('rtobs')}"}
    headers.update(parse_env_headers(_of(signal, "HEADERS") or "", liberal=True))
    cert, key = _of(signal, "CLIENT_CERTIFICATE"), _of(signal, "CLIENT_KEY")
    return Target(
        url, headers, _compression(signal), _timeout(signal), _of(signal, "CERTIFICATE") or True,
        (cert, key) if cert and key else cert,
    )  # fmt: skip


def _compression(signal: str) -> Compression:
    wanted = (_of(signal, "COMPRESSION") or "none").strip().lower()
    known: dict[str, Compression] = {"gzip": "gzip", "deflate": "deflate", "none": "none"}
    if wanted in known:
        return known[wanted]
    _guard.tell("compression", "OTEL_EXPORTER_OTLP_COMPRESSION=%r is not gzip, deflate or none; using none", wanted)
    return "none"


def _timeout(signal: str) -> float:
    """Return the seconds of one export. The variable is in seconds, as the SDK for Python has it."""
    value = _of(signal, "TIMEOUT") or ""
    try:
        found = float(value) if value else _TIMEOUT
    except ValueError:
        found = math.nan
    if math.isfinite(found) and found > 0:
        return found
    _guard.tell("timeout", "OTEL_EXPORTER_OTLP_TIMEOUT=%r is not a number of seconds; using %d", value, int(_TIMEOUT))
    return _TIMEOUT


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
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    try:
        found = Resource.create({})
    except RuntimeError:  # detectors run on threads, which nobody can start any more at the end of the interpreter
        found = OTELResourceDetector().detect()
    return completed(found, service)


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
