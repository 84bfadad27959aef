"""configure() and shutdown(): the only room that reads the environment and binds the others together.

Nothing global is touched before the first hop, so that it does not matter whether ``configure`` or
``set_tracer_provider`` is called first. Must not know brokers.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import Label, LogKey
from rtobs._hop.runtime import runtime
from rtobs._journey import classify, journey
from rtobs._journey.outcome import ErrorCategory, Step
from rtobs.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._export.pipeline import Pipeline
    from rtobs._telemetry.metrics import MetricSink, Registry
    from rtobs._telemetry.spans import SpanSink

LogSink = Callable[[Mapping[str, Any]], None]
Logs = Literal["otlp", "stdout", "logging"]

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_MIN_KEY = 16


@dataclass
class _Settings:
    """What ``configure`` was told."""

    service: str | None = None
    slow: Mapping[str, float] = field(default_factory=dict)
    promises: Mapping[str, Step] = field(default_factory=dict)
    tenants: tuple[str, ...] = ()
    high_value: Container[str] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    propagate_to: frozenset[str] = frozenset()
    logs: Logs | LogSink | None = None
    wire_key: bytes | None = None
    configured: bool = False


@dataclass
class _Bound:
    """The rooms of this process, bound at the first hop."""

    registry: Registry
    metric_sink: MetricSink
    span_sink: SpanSink
    pipeline: Pipeline


_lock = threading.RLock()
_settings = _Settings()
_bound: _Bound | None = None
_own_provider: Any = None


def configure(
    *, service: str | None = None, slow: Mapping[str, float] | None = None, promises: Mapping[str, Step] | None = None,
    tenants: Iterable[str] = (), high_value: Container[str] = (), sampling: Mapping[str, float] | None = None,
    propagate_to: Iterable[str] = (), errors: Mapping[type[BaseException], ErrorCategory] | None = None,
    logs: Logs | LogSink | None = None, wire_key: bytes | None = None, sigterm: bool = False, strict: bool = False,
) -> None:  # fmt: skip
    """Say what rtobs cannot know by itself. Optional; may come before or after the process's own OpenTelemetry set-up.

    Args:
        service: ``service.name``, where ``OTEL_SERVICE_NAME`` does not say it.
        slow: seconds by channel, destination or route from which a hop counts as slow and is kept.
        promises: the step by which a delivery on a channel counts as done, where it is later than the one a
            successful ``deliver`` proves.
        tenants: tenants that always keep a metric label of their own.
        high_value: tenants whose journeys are always exported whole.
        sampling: share of journeys exported, by channel, destination or route; ``default`` for the rest.
        propagate_to: hosts outside that may get our headers.
        errors: your exception classes and what they mean.
        logs: where log events go: ``otlp``, ``stdout``, ``logging`` or a function. Without it OTLP where an endpoint
            is set, else the standard logger ``rtobs``.
        wire_key: secret, 16 bytes or more, that signs our header and receipt tokens.
        sigterm: flush on SIGTERM before the handler that was there.
        strict: raise faults of rtobs itself instead of counting them; for tests.

    Raises:
        ConfigError: an argument is wrong; says what was seen and what to do.
    """
    global _settings  # noqa: PLW0603  one configuration per process
    slow, promises, sampling, errors = slow or {}, promises or {}, sampling or {}, errors or {}
    _check(
        service=service, slow=slow, promises=promises, sampling=sampling, errors=errors, logs=logs, wire_key=wire_key
    )
    with _lock:
        _settings = _Settings(
            service, dict(slow), dict(promises), _words("tenants", tenants), high_value, dict(sampling),
            frozenset(host.lower() for host in _words("propagate_to", propagate_to)), logs, wire_key, configured=True,
        )  # fmt: skip
        classify.reset()
        classify.extend(errors)
        _guard.strict = strict
        if _bound is not None:
            shutdown(1.0)
        _unbind()
    if sigterm:
        _chain_sigterm()


def _words(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str | bytes):
        raise ConfigError(
            f"rtobs.configure: {argument} must be a collection of str; got the single value {values!r}; write [{values!r}]"
        )
    found = tuple(values)
    for value in found:
        if not isinstance(value, str):
            raise ConfigError(
                f"rtobs.configure: {argument} must contain str only; got {value!r} ({type(value).__name__})"
            )
    return found


def _check(
    *, service: object, slow: Mapping[str, object], promises: Mapping[str, object], sampling: Mapping[str, object],
    errors: Mapping[type[BaseException], ErrorCategory], logs: object, wire_key: object,
) -> None:  # fmt: skip
    if service is not None and (not isinstance(service, str) or not service):
        raise ConfigError(f"rtobs.configure: service must be a name; got {service!r}")
    for name, seconds in slow.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ConfigError(f"rtobs.configure: slow[{name!r}] must be seconds greater than 0; got {seconds!r}")
    for channel, step in promises.items():
        if step not in get_args(Step):
            raise ConfigError(
                f"rtobs.configure: promises[{channel!r}] must be one of {', '.join(get_args(Step))}; got {step!r}"
            )
    for name, rate in sampling.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ConfigError(f"rtobs.configure: sampling[{name!r}] must be a share between 0 and 1; got {rate!r}")
    for kind, category in errors.items():
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigError(f"rtobs.configure: errors must map exception classes; got the key {kind!r}")
        if category not in tuple(ErrorCategory):
            raise ConfigError(f"rtobs.configure: errors[{kind.__name__}] must be an ErrorCategory; got {category!r}")
    if logs is not None and logs not in get_args(Logs) and not callable(logs):
        raise ConfigError(f"rtobs.configure: logs must be 'otlp', 'stdout', 'logging' or a function; got {logs!r}")
    if wire_key is not None and (not isinstance(wire_key, bytes) or len(wire_key) < _MIN_KEY):
        raise ConfigError(f"rtobs.configure: wire_key must be at least {_MIN_KEY} bytes; got {type(wire_key).__name__}")


# Binding, at the first hop -------------------------------------------------------------------------------------------


def _unbind() -> None:
    global _bound  # noqa: PLW0603  one set of rooms per process
    _bound = None
    runtime.ready = False
    runtime.prepare = _bind
    runtime.sinks = ()


def _bind() -> None:
    """Find the providers that the process has by now, and fill the slots."""
    with _lock:
        if runtime.ready:
            return
        try:
            _bind_rooms()
        except Exception as error:  # noqa: BLE001  a broken environment must not stop the host; hops do nothing then
            _guard.fault("config.bind", error)
        runtime.ready = True


def _bind_rooms() -> None:
    global _bound  # noqa: PLW0603  one set of rooms per process
    from rtobs._export import pipeline as pipelines
    from rtobs._telemetry.events import EventSink
    from rtobs._telemetry.labels import LabelGuard
    from rtobs._telemetry.metrics import MetricSink, Registry
    from rtobs._telemetry.spans import SpanSink

    settings = _settings
    pinned = {Label.TENANT: settings.tenants, Label.CHANNEL: tuple(settings.promises)}
    registry = Registry(LabelGuard(pinned), runtime.wall_ns())
    exporters = pipelines.Exporters(_exporters())
    tracer, resource, id_generator = _tracing()
    pipeline = pipelines.Pipeline(
        exporters, registry, resource,
        span_delay=_milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000), metric_interval=_milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
        delta=os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower() in ("delta", "lowmemory"),
    )  # fmt: skip
    metric_sink = MetricSink(registry)
    span_sink = SpanSink(tracer, settings.slow, settings.high_value)
    service = str(resource.attributes.get("service.name", ""))
    event_sink = EventSink(_log_sink(settings, pipeline), service, settings.slow)

    def begin(record: Any) -> bool:
        metric_sink.begin(record)
        return span_sink.begin(record)

    runtime.begin = begin
    runtime.observe = registry.observe
    runtime.promise = metric_sink.promise
    runtime.admit_tenant = registry.guard.admit_tenant
    runtime.id_generator = id_generator
    runtime.promises = dict(settings.promises)
    runtime.propagate_to = settings.propagate_to
    runtime.wire_key = settings.wire_key
    runtime.sinks = (span_sink, metric_sink, event_sink)  # spans first: exemplars point at what is kept
    if settings.wire_key is not None:
        from rtobs.receipts.tokens import Tokens

        tokens = Tokens(settings.wire_key)
        tokens.learn(settings.promises)
        runtime.mint, runtime.redeem = tokens.mint, tokens.redeem
    _bound = _Bound(registry, metric_sink, span_sink, pipeline)
    if exporters.wants("metrics"):
        pipeline.start()


def _tracing() -> tuple[Any, Resource, Any]:
    """Return tracer, resource and the provider's own id generator; set a provider only where there is none."""
    global _own_provider  # noqa: PLW0603  the one provider we set
    from opentelemetry import trace
    from opentelemetry.sdk.trace import Tracer
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    provider: Any = trace.get_tracer_provider()
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if isinstance(provider, trace.ProxyTracerProvider) and not disabled and _wants("OTEL_TRACES_EXPORTER", "TRACES"):
        _own_provider = _make_provider()
        trace.set_tracer_provider(_own_provider)
        provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None, _resource(), None
    tracer = provider.get_tracer(names.SCOPE, None, names.SCHEMA_URL)
    if not isinstance(tracer, Tracer):
        return (None if isinstance(tracer, trace.NoOpTracer) else tracer), _resource(), None
    generator = tracer.id_generator
    own_ids = None if type(generator) is RandomIdGenerator else generator.generate_trace_id
    return tracer, tracer.resource, own_ids


def _make_provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider

    from rtobs._telemetry.sampling import HeadSampler
    from rtobs._telemetry.spans import OwnProcessor

    sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else HeadSampler(_settings.sampling)
    provider = TracerProvider(sampler=sampler, resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(OwnProcessor(_put_span))
    return provider


def _put_span(span: object) -> None:
    bound = _bound
    if bound is not None:
        bound.pipeline.put_span(span)


def _resource() -> Resource:
    from opentelemetry.sdk.resources import Resource

    found: dict[str, Any] = {"service.instance.id": str(uuid.uuid4())}
    if _settings.service and not os.environ.get("OTEL_SERVICE_NAME"):
        found["service.name"] = _settings.service
    return Resource.create(found)


def _endpoint(signal_name: str) -> bool:
    return bool(os.environ.get(_ENDPOINT) or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal_name}_ENDPOINT"))


def _wants(variable: str, signal_name: str) -> bool:
    """Tell whether a signal leaves: an endpoint is set and the signal is not switched off."""
    chosen = os.environ.get(variable, "otlp").strip().lower()
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return _endpoint(signal_name) and "otlp" in chosen and not disabled


def _exporters() -> dict[str, Callable[[], Any] | None]:
    wants_logs = _settings.logs == "otlp" or (_settings.logs is None and _wants("OTEL_LOGS_EXPORTER", "LOGS"))
    return {
        "spans": _exporter("TRACES", "trace_exporter", "OTLPSpanExporter")
        if _wants("OTEL_TRACES_EXPORTER", "TRACES")
        else None,
        "metrics": _exporter("METRICS", "metric_exporter", "OTLPMetricExporter")
        if _wants("OTEL_METRICS_EXPORTER", "METRICS")
        else None,
        "logs": _exporter("LOGS", "_log_exporter", "OTLPLogExporter") if wants_logs else None,
    }


def _exporter(signal_name: str, module: str, cls: str) -> Callable[[], Any]:
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal_name}_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    package = "grpc" if protocol.strip().lower() == "grpc" else "http"

    def make() -> Any:
        from importlib import import_module

        return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), cls)()

    return make


def _milliseconds(variable: str, default: float) -> float:
    try:
        found = float(os.environ.get(variable, default))
    except ValueError:
        _guard.tell(
            variable,
            "%s=%r is not a number of milliseconds; using %d",
            variable,
            os.environ.get(variable),
            int(default),
        )
        found = default
    return max(found, 10) / 1000


# Log events ----------------------------------------------------------------------------------------------------------


def _log_sink(settings: _Settings, pipeline: Pipeline) -> LogSink:
    chosen = settings.logs
    if chosen is None:
        chosen = "otlp" if _wants("OTEL_LOGS_EXPORTER", "LOGS") else "logging"
    if chosen == "otlp":
        return pipeline.put_log
    if chosen == "stdout":
        return _to_stdout
    if chosen == "logging":
        return _to_logging
    return chosen


def _render(event: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: value for name, value in event.items() if value not in ("", None)}, ensure_ascii=True, default=str
    )


def _to_stdout(event: Mapping[str, Any]) -> None:
    sys.stdout.write(_render(event) + "\n")


def _to_logging(event: Mapping[str, Any]) -> None:
    level = {"debug": 10, "info": 20, "warning": 30, "error": 40}.get(str(event.get(LogKey.LEVEL)), 20)
    if _guard.log.isEnabledFor(level):
        _guard.log.log(level, "%s", _render(event))


# The end of the process ----------------------------------------------------------------------------------------------


def shutdown(timeout: float = 5.0) -> bool:
    """Export what is finished and stop; safe to call twice, from any thread.

    Args:
        timeout: seconds after which it returns, whatever the collector does; what is left is counted as dropped.

    Returns:
        True if everything was exported in time.
    """
    bound = _bound
    if bound is None:
        return True
    return bound.pipeline.shutdown(timeout)


def flush(timeout: float = 5.0) -> bool:
    """Export everything measured so far within *timeout* seconds, and go on; for tests and recycled workers."""
    bound = _bound
    return bound.pipeline.flush(timeout) if bound is not None else True


def _chain_sigterm() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "rtobs.configure: sigterm=True works in the main thread only; call configure there or leave it out"
        )
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: Any) -> None:
        shutdown()
        if callable(before):
            before(number, frame)
        elif before is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if getattr(before, "__qualname__", "") != on_sigterm.__qualname__:
        signal.signal(signal.SIGTERM, on_sigterm)


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603  a lock that another thread held at the fork is never released in the child
    _lock = threading.RLock()
    _guard.reset_after_fork()
    journey.reseed()
    bound = _bound
    if bound is not None:
        bound.registry.reset(time.time_ns())
        resource = bound.pipeline.resource
        bound.pipeline.after_fork(resource.merge(_instance()))


def _instance() -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource({"service.instance.id": str(uuid.uuid4())})


_unbind()
atexit.register(shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
