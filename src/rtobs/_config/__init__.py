"""configure() and shutdown(): the only room that reads the environment and binds the others together.

Nothing global is touched before the first hop, so that it does not matter whether ``configure`` or
``set_tracer_provider`` is called first. Must not know brokers.
"""

from __future__ import annotations

import atexit
import inspect
import os
import threading
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._config import arguments, environment, outputs, process, promised
from rtobs._config.arguments import Logs, LogSink, Settings
from rtobs._conventions import Label
from rtobs._hop import engine, hop, leaf, watching
from rtobs._hop.runtime import Runtime, runtime
from rtobs._hop.slots import slots
from rtobs._journey import classify, journey
from rtobs._journey.outcome import ErrorCategory, Step
from rtobs.errors import ConfigError
from rtobs.integrations import _twin

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._export.pipeline import Pipeline
    from rtobs._export.prometheus import Scrape
    from rtobs._journey.journey import Journey
    from rtobs._telemetry.budget import SloSink
    from rtobs._telemetry.metrics import MetricSink, Registry
    from rtobs._telemetry.spans import SpanSink
    from rtobs._telemetry.workers import WorkerSink
    from rtobs.slo.live import Standing
    from rtobs.slo.model import SLO, Declaration

__all__ = ["LogSink", "Logs", "configure", "flush", "shutdown"]


@dataclass
class _Bound:
    """The rooms of this process, bound at the first hop."""

    registry: Registry
    metric_sink: MetricSink
    span_sink: SpanSink
    worker_sink: WorkerSink
    slo_sink: SloSink | None
    pipeline: Pipeline
    scrape: Scrape | None
    tracer: Any

    def shutdown(self, timeout: float) -> bool:
        """Let nothing leave any more, after what is finished has left or *timeout* seconds are over."""
        if self.scrape is not None:
            self.scrape.stop()
        if self.slo_sink is not None:
            self.slo_sink.release(everything=True)
        return self.pipeline.shutdown(timeout)


_lock = threading.RLock()
_settings = Settings()
_bound: _Bound | None = None
_binding = False
_own_provider: Any = None


def configure(
    *, service: str | None = None, slos: str | PathLike[str] | Declaration | Iterable[SLO] = (),
    slow: Mapping[str, float] | None = None, promises: Mapping[str, Step] | None = None,
    tenants: Iterable[str] = (), high_value: Container[str] = (), sampling: Mapping[str, float] | None = None,
    propagate_to: Iterable[str] = (), errors: Mapping[type[BaseException], ErrorCategory] | None = None,
    logs: Logs | LogSink | None = None, wire_key: bytes | None = None, sigterm: bool = False, strict: bool = False,
) -> None:  # fmt: skip
    """Say what rtobs cannot know by itself. Optional; may come before or after the process's own OpenTelemetry set-up.

    A further call replaces everything that was said before.

    Args:
        service: ``service.name``, where the environment or the process's own provider does not say it.
        slos: what is promised: path of a declaration (YAML, TOML or JSON), or ``rtobs.slo`` objects.
        slow: seconds by channel, destination or route from which a hop counts as slow and is kept; goes before
            what ``slos`` promise.
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
        sigterm: flush on SIGTERM before the handler that was there; in the main thread only.
        strict: raise faults of rtobs itself instead of counting them; for tests.

    Raises:
        ConfigError: an argument is wrong; says what was seen and what to do. Nothing has changed then.
    """
    global _settings  # noqa: PLW0603  one configuration per process
    classes = arguments.categories(errors)
    settings = Settings(
        service=arguments.service_name(service),
        slos=arguments.declaration(slos, service),
        slow=arguments.numbers("slow", slow, most=float("inf"), wanted="seconds greater than 0"),
        promises=arguments.steps(promises),
        tenants=arguments.tenants(tenants),
        high_value=arguments.container(high_value),
        sampling=arguments.numbers("sampling", sampling, most=1, wanted="a share between 0 and 1"),
        propagate_to=arguments.hosts(propagate_to),
        logs=arguments.log_target(logs),
        wire_key=arguments.key(wire_key),
    )
    environment.check_scraping()
    if not environment.disabled():
        _load_rooms()
    chain, raising = arguments.flag("sigterm", sigterm), arguments.flag("strict", strict)
    if chain and not process.in_main_thread():
        raise ConfigError(
            "rtobs.configure: sigterm=True works in the main thread only; call configure there or leave it out"
        )
    with _lock:
        if _bound is not None:
            _bound.shutdown(1.0)
            _guard.forget()  # what was counted has been exported with the series that end here
        _settings = settings
        classify.reset()
        classify.extend(classes)
        _guard.strict = raising
        _unbind()
        promised.begin(_bind, _standings if settings.slos is not None and not environment.disabled() else None)
    if chain:
        process.chain_sigterm(flush, shutdown)


# Binding, at the first hop -------------------------------------------------------------------------------------------

_SLOTS = ("admit_tenant", "begin", "declares", "exports", "finish", "hold", "id_generator", "keep", "mint", "observe",
          "off", "promise", "promises", "propagate_to", "redeem", "release", "segmented", "service", "sinks",
          "starts_spans", "wire_key")  # fmt: skip


def _unbind() -> None:
    """Empty the slots; the next hop fills them again."""
    global _bound  # noqa: PLW0603  one set of rooms per process
    _bound = None
    empty = Runtime()
    for slot in _SLOTS:
        setattr(runtime, slot, getattr(empty, slot))
    runtime.open_hops.clear()  # they count in no series that begins now
    runtime.prepare = _bind
    runtime.ready = False


def _standings() -> tuple[Standing, ...]:
    """Return how the declared SLOs stand in this process."""
    if not runtime.ready:
        runtime.prepare()
    bound = _bound
    return bound.slo_sink.standings() if bound is not None and bound.slo_sink is not None else ()


def _bind() -> None:
    """Find the providers that the process has by now, and fill the slots."""
    global _binding  # noqa: PLW0603  as `_bound`
    with _lock:
        if runtime.ready or _binding:  # a signal handler or a log handler of the host's may come in between
            return
        _binding = True
        try:
            if not environment.disabled():
                _bind_rooms(_settings)
                process.at_end_of_pool_worker(shutdown)
        except Exception as error:  # noqa: BLE001  a broken environment must not stop the host; hops do nothing then
            _guard.fault("config.bind", error)
        finally:
            runtime.off = environment.disabled()
            runtime.ready, _binding = True, False


def _load_rooms() -> None:
    """Import what hops need, which takes a fifth of a second that the first message need not wait for."""
    for room in (
        "_export.pipeline",
        "_telemetry.events",
        "_telemetry.labels",
        "_telemetry.spans",
        "_telemetry.workers",
    ):
        import_module(f"rtobs.{room}")
    environment.load_exporters()


def _bind_rooms(settings: Settings) -> None:
    global _bound  # noqa: PLW0603  one set of rooms per process
    from rtobs._export.pipeline import Exporters, Pipeline
    from rtobs._telemetry.events import EventSink
    from rtobs._telemetry.labels import LabelGuard
    from rtobs._telemetry.metrics import MetricSink, Registry
    from rtobs._telemetry.workers import WorkerSink

    declared = settings.slos
    pinned = {Label.TENANT: settings.tenants, Label.CHANNEL: tuple(settings.promises)}
    pinned, bounds, slow = promised.with_declared(declared, pinned, settings.slow)
    registry = Registry(LabelGuard(pinned), runtime.wall_ns(), bounds)
    logs = settings.logs or ("otlp" if environment.leaves("LOGS") else "logging")
    exporters = Exporters(environment.exporters(logs=logs == "otlp" and environment.chosen("LOGS")))
    tracer, id_generator = _tracing(settings)
    resource = environment.completed(tracer.resource, settings.service) if hasattr(tracer, "resource") else None
    pipeline = Pipeline(
        exporters, registry, resource or environment.resource(settings.service),
        span_delay=environment.seconds("OTEL_BSP_SCHEDULE_DELAY", 5.0),
        metric_interval=environment.seconds("OTEL_METRIC_EXPORT_INTERVAL", 60.0), delta=environment.wants_delta(),
    )  # fmt: skip
    metric_sink = MetricSink(registry, exemplars=tracer is not None)
    span_sink = _spans(tracer, slow, settings)
    worker_sink = WorkerSink(metric_sink)
    slots.restart()
    sink: LogSink
    if callable(logs):
        sink = logs
    else:
        sink = {"otlp": pipeline.put_log, "stdout": outputs.to_stdout, "logging": outputs.to_logging}[logs]
    service = str(pipeline.resource.attributes.get("service.name", ""))

    runtime.exports, runtime.service = tracer is not None, service
    runtime.hold, runtime.release = worker_sink.hold, worker_sink.release
    runtime.observe, runtime.finish = registry.observe, shutdown
    runtime.promise = metric_sink.promise
    runtime.admit_tenant = registry.guard.admit_tenant
    tenants = frozenset(pinned[Label.TENANT])
    runtime.declares = lambda tenant: tenant in tenants or tenant in settings.high_value
    runtime.id_generator = id_generator
    runtime.promises = dict(settings.promises)
    runtime.propagate_to = settings.propagate_to
    runtime.wire_key = settings.wire_key
    redaction.use_key(settings.wire_key)
    # Spans first: exemplars point at what is kept.
    runtime.sinks = (span_sink, metric_sink, EventSink(sink, service, slow))
    runtime.use_slow(slow)
    runtime.at_collection["workers"] = worker_sink.read
    runtime.at_collection.pop("slos", None)
    _bind_receipts(settings)
    slo_sink = _bind_slos(declared, registry) if declared is not None else None
    scrape = environment.scrape(registry)
    _bound = _Bound(registry, metric_sink, span_sink, worker_sink, slo_sink, pipeline, scrape, tracer)
    if exporters.wants("metrics"):
        pipeline.start()
    if declared is not None and slo_sink is not None:
        promised.check(
            declared, slo_sink.standings(), pipeline.resource.attributes, pushed=exporters.wants("metrics"),
            scraped=scrape is not None, delta=environment.wants_delta(),
        )  # fmt: skip


def _spans(tracer: Any, slow: Mapping[str, float], settings: Settings) -> SpanSink:
    """Return what makes spans of hops, and let hops ask it."""
    from rtobs._telemetry.consistent import Rates
    from rtobs._telemetry.keeping import Keeping
    from rtobs._telemetry.shedding import Shedding
    from rtobs._telemetry.spans import SpanSink

    tier = Rates(settings.sampling, settings.high_value).tier
    found = SpanSink(tracer, Keeping(slow, settings.high_value, tier), Shedding(_seconds))
    runtime.begin, runtime.keep = found.begin, found.keep
    runtime.starts_spans = lambda: found.fallback
    if found.sees_quiet:
        runtime.segmented = found.segmented
    return found


def _seconds() -> float:
    return runtime.monotonic_ns() / 1e9


def _bind_slos(declared: Declaration, registry: Registry) -> SloSink:
    """Count what is promised, beside the metrics."""
    from rtobs._telemetry.budget import SloSink

    found = SloSink(declared, registry)
    runtime.sinks = (*runtime.sinks, found)
    if found.about_deliveries:
        count = runtime.promise

        def promise(journey: Journey, channel: str, number: int, release_ns: int) -> None:
            count(journey, channel, number, release_ns)
            found.promise(journey, channel, number, release_ns)

        runtime.promise = promise
        runtime.at_collection["slos"] = found.release
    return found


def _bind_receipts(settings: Settings) -> None:
    if settings.wire_key is None:
        runtime.redeem = _no_receipts
        return
    from rtobs.receipts.tokens import Tokens

    tokens = Tokens(settings.wire_key)
    tokens.learn(settings.promises)
    runtime.mint, runtime.redeem = tokens.mint, tokens.redeem


def _no_receipts(_token: object, _step: Step) -> None:
    _guard.tally(names.PROPAGATION_REJECTED, "no_wire_key")
    _guard.tell("receipts", "a receipt came but there is no key to check it with; call rtobs.configure(wire_key=...)")


def _tracing(settings: Settings) -> tuple[Any, Any]:
    """Return the tracer and the provider's own id generator; set a provider only where there is none."""
    global _own_provider  # noqa: PLW0603  the one provider we set
    from opentelemetry import trace
    from opentelemetry.sdk.trace import Tracer
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    provider: Any = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider) and environment.leaves("TRACES"):
        _own_provider = _make_provider(settings)
        trace.set_tracer_provider(_own_provider)
        provider = trace.get_tracer_provider()
    elif provider is _own_provider:
        _reuse_provider(provider, settings)
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None, None
    tracer = provider.get_tracer(names.SCOPE, None, names.SCHEMA_URL)
    if not isinstance(tracer, Tracer):
        return (None if isinstance(tracer, trace.NoOpTracer) else tracer), None
    generator = tracer.id_generator
    return tracer, None if type(generator) is RandomIdGenerator else generator.generate_trace_id


def _make_provider(settings: Settings) -> Any:
    from opentelemetry.sdk.trace import TracerProvider

    from rtobs._telemetry.consistent import JourneySampler
    from rtobs._telemetry.spans import OwnProcessor

    sampler = None if environment.sampler_chosen() else JourneySampler(settings.sampling, settings.high_value)
    resource = environment.resource(settings.service)
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(OwnProcessor(_put_span))
    return provider


def _reuse_provider(provider: Any, settings: Settings) -> None:
    """Let the provider that we set before follow a new configuration: a process can set one only once."""
    from rtobs._telemetry.consistent import JourneySampler

    if isinstance(provider.sampler, JourneySampler) and not environment.sampler_chosen():
        provider.sampler.use(settings.sampling, settings.high_value)
    update = getattr(provider, "_update_resource", None)  # what the SDK itself calls after a fork
    if update is not None and settings.service:
        fresh = environment.resource(settings.service)
        update(fresh)


def _put_span(span: object) -> None:
    bound = _bound
    if bound is not None:
        bound.pipeline.put_span(span)


# The end of the process ----------------------------------------------------------------------------------------------


def shutdown(timeout: float = 5.0) -> bool:
    """Export what is finished and stop; safe to call twice, from any thread and from signal handlers.

    Args:
        timeout: seconds after which it returns, whatever the collector does; what is left is counted as dropped.

    Returns:
        True if everything was exported in time. False at once, while it goes on in the background, where a signal
        handler calls it that has interrupted rtobs itself; the end of the interpreter waits for it.
    """
    if process.holds_a_lock(inspect.currentframe()):
        threading.Thread(target=shutdown, args=(timeout,), name="rtobs-shutdown", daemon=True).start()
        return False
    promised.stop()
    for stop in tuple(runtime.on_shutdown):
        try:
            stop()
        except Exception as error:  # noqa: BLE001  what is finished is exported all the same
            _guard.fault("config.shutdown", error)
    bound = _bound
    return bound.shutdown(timeout) if bound is not None else True


def flush(timeout: float = 5.0) -> bool:
    """Export everything measured so far within *timeout* seconds, and go on; for tests and recycled workers."""
    bound = _bound
    return bound.pipeline.flush(timeout) if bound is not None else True


# Fork ----------------------------------------------------------------------------------------------------------------


def _before_fork() -> None:
    """Wait for a binding that is under way: it holds import locks of Python's, which a child could never release."""
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


_LOCKS: tuple[tuple[Any, str], ...] = ((leaf, "_count_lock"), (hop, "_lock"), (_twin, "_lock"))


def _after_fork_in_child() -> None:
    """Make a forked child a process of its own: new locks, empty series and queues, ids of its own."""
    global _lock  # noqa: PLW0603  a lock that another thread held at the fork is never released in the child
    _lock = threading.RLock()
    for room, lock in _LOCKS:
        setattr(room, lock, threading.RLock())
    _guard.reset_after_fork()
    journey.forget_drawn()
    record = engine.current()
    while record is not None:  # the hops around the fork are the parent's to end
        record.ended = True
        record = record.parent
    slots.clear()
    runtime.open_hops.clear()
    watching.after_fork()
    bound = _bound
    if bound is not None:
        bound.registry.reset(time.time_ns())
        bound.metric_sink.reset()
        bound.worker_sink.reset()
        bound.span_sink.shedding.reset_after_fork()
        if bound.slo_sink is not None:
            bound.slo_sink.reset()
        bound.pipeline.after_fork()
        if bound.scrape is not None:
            bound.scrape.after_fork()
        runtime.prepare, runtime.ready = _resume, False


def _resume() -> None:
    """Start exporting again, at a child's first hop: a thread must not be started while the fork is under way."""
    with _lock:
        bound = _bound
        if runtime.ready or bound is None:
            return
        runtime.ready = True
        try:
            before = bound.pipeline.resource
            found: Resource = getattr(bound.tracer, "resource", before)
            found = environment.another_instance(environment.completed(found, _settings.service), before)
            bound.pipeline.resume(found)
            process.at_end_of_pool_worker(shutdown)
            if bound.scrape is not None:
                _guard.tell("prometheus", "Prometheus scraping is off in this process: %s", environment.ADVICE)
        except Exception as error:  # noqa: BLE001  as in _bind
            _guard.fault("config.resume", error)


_unbind()
atexit.register(shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
