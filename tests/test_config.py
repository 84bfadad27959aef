"""configure() and shutdown(): wrong arguments, new configurations, forks and signals."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import rtobs
from rtobs import ErrorCategory, _config, _guard
from rtobs import _conventions as names
from rtobs._config import environment, process
from rtobs._hop.runtime import runtime
from rtobs._telemetry.consistent import JourneySampler
from rtobs.errors import ConfigError
from tests._export.collector import Collected, collector, plain
from tests.support import scripts
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry, telemetry

__all__ = ["telemetry"]


class Gone(Exception):
    """An exception of the user's."""


class Unspeakable:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.fixture(autouse=True)
def _restored() -> Generator[None]:
    yield
    rtobs.configure()


# Wrong arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "seen", "wanted"),
    [
        ({"service": 5}, "5 (int)", "a name such as"),
        ({"service": ""}, "''", "a name such as"),
        ({"service": b"orders"}, "b'orders' (bytes)", "a name such as"),
        ({"slow": [("push", 5)]}, "(list)", "a mapping such as {'push': 5.0}"),
        ({"slow": {"push": "5"}}, "'5' (str)", "slow['push'] must be seconds greater than 0"),
        ({"slow": {"push": 0}}, "0 (int)", "seconds greater than 0"),
        ({"slow": {"push": -1}}, "-1 (int)", "seconds greater than 0"),
        ({"slow": {"push": True}}, "True (bool)", "seconds greater than 0"),
        ({"slow": {"push": float("nan")}}, "nan (float)", "seconds greater than 0"),
        ({"slow": {"push": float("inf")}}, "inf (float)", "seconds greater than 0"),
        ({"slow": {5: 5}}, "5 (int)", "each key of slow must be a name"),
        ({"sampling": 0.1}, "0.1 (float)", "a mapping such as {'default': 0.1}"),
        ({"sampling": {"default": 10}}, "10 (int)", "a share between 0 and 1"),
        ({"sampling": {"default": -0.1}}, "-0.1 (float)", "a share between 0 and 1"),
        ({"sampling": {"default": float("nan")}}, "nan (float)", "a share between 0 and 1"),
        ({"promises": "displayed"}, "'displayed' (str)", "a mapping such as {'in_app': 'displayed'}"),
        ({"promises": {"in_app": "seen"}}, "'seen' (str)", "accepted, delivered, displayed, opened, acted"),
        ({"promises": {"webhook": "accepted"}}, "'accepted' (str)", "'delivered', which a successful deliver proves"),
        ({"promises": {"": "displayed"}}, "'' (str)", "each key of promises must be a name"),
        ({"promises": {"c" * 40: "displayed"}}, "(str)", "at most 23 bytes"),
        ({"tenants": "acme"}, "'acme' (str)", "write ['acme']"),
        ({"tenants": 5}, "5 (int)", "a collection of str"),
        ({"tenants": [5]}, "5 (int)", "each of tenants must be a str"),
        ({"tenants": [""]}, "'' (str)", "1 to 64 printable characters"),
        ({"tenants": ["a\nb"]}, r"'a\nb' (str)", "1 to 64 printable characters"),
        ({"tenants": ["x" * 65]}, "(str)", "1 to 64 printable characters"),
        ({"tenants": ["株" * 30]}, "(str)", "at most 71 bytes"),
        ({"high_value": "acme"}, "'acme' (str)", "a set or other container of tenants"),
        ({"high_value": 5}, "5 (int)", "a set or other container of tenants"),
        ({"high_value": (t for t in ())}, "(generator)", "a set or other container of tenants"),
        ({"propagate_to": "api.example.org"}, "(str)", "write ['api.example.org']"),
        ({"propagate_to": ["https://api.example.org"]}, "'https://api.example.org' (str)", "a host without scheme"),
        ({"propagate_to": ["api.example.org/v1"]}, "'api.example.org/v1' (str)", "a host without scheme"),
        ({"propagate_to": [None]}, "None (NoneType)", "each of propagate_to must be a str"),
        ({"errors": [Gone]}, "(list)", "a mapping such as"),
        ({"errors": {"Gone": ErrorCategory.TIMEOUT}}, "'Gone' (str)", "each key of errors must be an exception class"),
        ({"errors": {int: ErrorCategory.TIMEOUT}}, "(type)", "an exception class"),
        ({"errors": {Gone: "lost"}}, "'lost' (str)", "errors[Gone] must be an ErrorCategory: transport, timeout"),
        ({"logs": "file"}, "'file' (str)", "'otlp', 'stdout', 'logging' or a function"),
        ({"logs": []}, "[] (list)", "'otlp', 'stdout', 'logging' or a function"),
        ({"wire_key": "a key of sixteen"}, "a str", "a secret of at least 16 bytes"),
        ({"wire_key": b"hunter2"}, "7 bytes", "a secret of at least 16 bytes"),
        ({"sigterm": 1}, "1 (int)", "True or False"),
        ({"strict": "yes"}, "'yes' (str)", "True or False"),
        ({"slow": {"push": Unspeakable()}}, "(Unspeakable)", "seconds greater than 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_argument_says_what_was_seen_and_what_to_do(
    telemetry: Telemetry, arguments: dict[str, Any], seen: str, wanted: str
) -> None:
    """Each wrong argument raises at once, names itself, shows what it got, and nothing has changed."""
    before = _config._settings
    with pytest.raises(ConfigError) as raised:
        rtobs.configure(**arguments)
    text = str(raised.value)
    assert text.startswith("rtobs.configure: ")
    (name,) = arguments
    assert name in text
    assert seen in text
    assert wanted in text
    assert "hunter2" not in text
    assert len(text) < 400
    assert isinstance(raised.value, ValueError)
    assert _config._settings is before


def test_wrong_arguments_are_found_before_anything_changes(telemetry: Telemetry) -> None:
    """One wrong argument among right ones leaves the configuration that was there at work."""
    with pytest.raises(ConfigError):
        rtobs.configure(service="other", promises={"in_app": "displayed"}, tenants=["x"], logs="nowhere")
    with rtobs.deliver("in_app", "chat") as hop:
        hop.outcome(rtobs.Outcome.REJECTED)
    assert telemetry.by(names.OUTCOMES, "step") == {"accepted": 1}
    assert len(telemetry.events) == 1


def test_sigterm_outside_the_main_thread_is_refused_before_anything_changes(telemetry: Telemetry) -> None:
    """Python sets signal handlers in the main thread only; the error says so and changes nothing."""
    before, raised = _config._settings, []

    def configure() -> None:
        try:
            rtobs.configure(service="x", sigterm=True)
        except ConfigError as error:
            raised.append(str(error))

    thread = threading.Thread(target=configure)
    thread.start()
    thread.join()
    assert "main thread" in raised[0]
    assert _config._settings is before


def test_every_argument_is_accepted_in_each_form_that_is_documented() -> None:
    """Mappings, generators, frozen sets, numbers of both kinds and functions are fine."""
    rtobs.configure(
        service="orders", slow={"push": 5, "orders": 0.5}, promises={"in_app": "displayed", "webhook": "delivered"},
        tenants=(name for name in ("acme", "株式会社")), high_value=frozenset({"acme"}),
        sampling={"default": 1, "x": 0.0}, propagate_to={"API.example.org", "localhost"},
        errors={Gone: ErrorCategory.RECIPIENT}, logs=print,
        wire_key=bytes(16), sigterm=False, strict=False,
    )  # fmt: skip
    assert _config._settings.propagate_to == {"api.example.org", "localhost"}
    assert _config._settings.tenants == ("acme", "株式会社")


# New configurations --------------------------------------------------------------------------------------------------


def test_a_new_configuration_replaces_the_old_one_whole() -> None:
    """Series start anew; tenants, key, promises, hosts and error classes of before are gone."""
    first = support.start(
        tenants=["acme"], wire_key=bytes(16), promises={"in_app": "displayed"}, propagate_to=["x"],
        errors={Gone: ErrorCategory.RECIPIENT},
    )  # fmt: skip
    with rtobs.deliver("in_app", "chat") as hop:
        assert hop.receipt_token()
    assert first.count(names.ATTEMPTS) == 1
    second = support.start()
    with suppress(Gone), rtobs.deliver("in_app", "chat") as hop:
        assert hop.receipt_token() == ""
        raise Gone
    assert second.by(names.ATTEMPTS, "result", "error_category") == {("failed", "internal"): 1}
    assert second.by(names.OUTCOMES, "step") == {"accepted": 1}
    assert second.by(names.LABELS_USED, "label").get("tenant") is None
    assert (runtime.wire_key, runtime.propagate_to) == (None, frozenset())


def test_errors_of_the_users_get_the_category_he_says(telemetry: Telemetry) -> None:
    """A class is matched with its subclasses."""

    class Bounced(Gone):
        pass

    rtobs.configure(errors={Gone: ErrorCategory.RECIPIENT}, strict=True)
    with pytest.raises(Bounced), rtobs.deliver("email", "smtp"):
        raise Bounced
    assert telemetry.by(names.ATTEMPTS, "error_category") == {"recipient": 1}


def test_what_was_counted_before_does_not_count_twice() -> None:
    """Faults and drops belong to the series that were there when they happened."""
    support.start()
    with rtobs.accept("/x"):
        _guard.tally(names.CLOCK_REJECTED, "future")
    rtobs.configure()
    with rtobs.accept("/x"):
        pass
    assert Telemetry().count(names.CLOCK_REJECTED) == 0


def test_our_own_provider_follows_a_new_configuration() -> None:
    """A process can set one tracer provider only; the one that we set takes new rates and a new service name."""
    found = scripts.found(
        """
        import json, rtobs
        from opentelemetry import trace
        from rtobs._telemetry.consistent import JourneySampler
        for service, rate in (("one", 0.5), ("two", 0.0)):
            rtobs.configure(service=service, sampling={"default": rate})
            with rtobs.accept("/x"):
                pass
        provider = trace.get_tracer_provider()
        from rtobs import _config
        print(json.dumps([provider.resource.attributes["service.name"], provider.sampler.get_description(),
                          _config._bound.pipeline.resource.attributes["service.name"]]))
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none",
    )  # fmt: skip
    assert found == ["two", JourneySampler({"default": 0.0}).get_description(), "two"]


# The environment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "leaving"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "TRACES METRICS LOGS"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "TRACES"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_LOGS_EXPORTER": "none"}, "TRACES METRICS"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "console"}, "METRICS LOGS"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "console, OTLP"}, "TRACES METRICS LOGS"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": " TRUE "}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
    ],
)
def test_what_leaves_by_otlp(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], leaving: str) -> None:
    """A signal leaves where it has an endpoint and nobody switched it off."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert " ".join(one for one in ("TRACES", "METRICS", "LOGS") if environment.leaves(one)) == leaving


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("250", 0.25), ("", 5.0), ("1", 0.01), ("soon", 5.0), ("nan", 5.0), ("inf", 5.0), ("-5", 5.0), ("0", 5.0)],
)
def test_a_schedule_that_makes_no_sense_is_the_default(
    monkeypatch: pytest.MonkeyPatch, value: str, seconds: float
) -> None:
    """Milliseconds from the environment are bounded below; what is no number costs a log line, not the process."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", value)
    assert environment.seconds("OTEL_BSP_SCHEDULE_DELAY", 5.0) == seconds


@pytest.mark.parametrize(
    ("variables", "service", "name"),
    [
        ({}, "orders", "orders"),
        ({"OTEL_SERVICE_NAME": "env"}, "orders", "env"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=env,service.instance.id=pod-1"}, "orders", "env"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}, "orders", "orders"),
    ],
)
def test_the_environment_names_the_service_first(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], service: str, name: str
) -> None:
    """What operations say goes before what the code says; an instance id is there in any case."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    attributes = environment.resource(service).attributes
    assert attributes["service.name"] == name
    if "pod-1" in str(variables):
        assert attributes["service.instance.id"] == "pod-1"
    else:
        assert len(str(attributes["service.instance.id"])) == 36


# The end of a process ------------------------------------------------------------------------------------------------

WORK = """
import json, os, signal, sys, threading, time
import rtobs
from rtobs import _config

def work(number, route="/orders"):
    for _ in range(number):
        with rtobs.accept(route):
            pass
"""


def run(code: str, arrived: Collected, **variables: str) -> subprocess.CompletedProcess[str]:
    return scripts.run(WORK + code, OTEL_EXPORTER_OTLP_ENDPOINT=arrived.endpoint, **variables)


def accepted(arrived: Collected) -> dict[str, int]:
    """Return what was counted as accepted by route, over all processes: the last export of each."""
    last: dict[tuple[str, str], int] = {}
    for request in arrived.requests("metrics"):
        for group in request.resource_metrics:
            instance = plain(group.resource.attributes)["service.instance.id"]
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                if metric.name == names.ACCEPT_DURATION.name:
                    for point in metric.histogram.data_points:
                        last[instance, plain(point.attributes)["route"]] = point.count
    found: Counter[str] = Counter()
    for (_, route), count in last.items():
        found[route] += count
    return dict(found)


def test_a_process_that_ends_exports_what_it_has(tmp_path: Path) -> None:
    """Nobody has to call shutdown: leaving the interpreter exports spans and counts."""
    with collector("http", tmp_path / "otlp") as arrived:
        done = run("work(10); sys.exit(3)", arrived)
    assert done.returncode == 3, done.stderr
    assert len(arrived.spans()) == 10
    assert accepted(arrived) == {"/orders": 10}


HANDLERS = {
    "default": "",
    "theirs": "signal.signal(signal.SIGTERM, lambda *_: (work(5, '/late'), print('theirs', flush=True), sys.exit(7)))",
    "ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_sigterm_flushes_and_then_does_what_it_did_before(tmp_path: Path, handler: str) -> None:
    """The process ends as it would have without us, with all that it had measured exported; twice set is set once."""
    code = f"""
{HANDLERS[handler]}
for _ in range(2):
    rtobs.configure(sigterm=True)
work(10)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.05)
work(5, "/after")
print("went on", flush=True)
os._exit(9)
"""
    with collector("http", tmp_path / "otlp") as arrived:
        done = run(code, arrived)
    wanted = {"default": (-signal.SIGTERM, ""), "theirs": (7, "theirs\n"), "ignored": (9, "went on\n")}
    assert (done.returncode, done.stdout) == wanted[handler]
    late = {"/late": 5} if handler == "theirs" else {}
    assert accepted(arrived) == {"/orders": 10, **late}
    assert Counter(span.name for span in arrived.spans()) == {
        "accept /orders": 10, **({"accept /late": 5} if late else {}),
    }  # fmt: skip


def test_setting_the_handler_twice_is_setting_it_once() -> None:
    """A second configure does not put a handler of ours round the first."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        rtobs.configure(sigterm=True)
        first = signal.getsignal(signal.SIGTERM)
        rtobs.configure(sigterm=True)
        assert signal.getsignal(signal.SIGTERM) is first
        assert first._before is before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_inside_our_own_code_waits_until_it_is_left(tmp_path: Path) -> None:
    """A signal that interrupts code that may hold a lock of ours is dealt with a moment later, not inside it."""
    code = """
order = []
def sink(event):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.02)
    order.append("sink left")
signal.signal(signal.SIGTERM, lambda *_: (order.append("handler"), print(json.dumps(order), flush=True), os._exit(0)))
rtobs.configure(sigterm=True, logs=sink)
with rtobs.deliver("webhook", "crm") as hop:
    hop.outcome(rtobs.Outcome.FAILED)
time.sleep(5)
"""
    with collector("http", tmp_path / "otlp") as arrived:
        done = run(code, arrived)
    assert done.stdout == '["sink left", "handler"]\n', done.stderr
    assert len(arrived.spans()) == 1


def test_code_of_ours_is_told_from_code_of_the_users() -> None:
    """Only frames of modules that hold locks make a signal wait."""
    frames: dict[str, Any] = {}
    for name in ("rtobs._guard", "rtobs._telemetry.metrics", "rtobs._hop.operation", "app"):
        space: dict[str, Any] = {"__name__": name, "sys": sys}
        exec("def look(): return sys._getframe()", space)  # noqa: S102 - a frame of a module of that name
        frames[name] = space["look"]()
    assert {name for name, frame in frames.items() if process.holds_a_lock(frame)} == {
        "rtobs._guard", "rtobs._telemetry.metrics",
    }  # fmt: skip


# Fork ----------------------------------------------------------------------------------------------------------------


def test_a_forked_child_is_an_instance_of_its_own_and_sends_nothing_twice(tmp_path: Path) -> None:
    """What the parent had queued or open is the parent's; the child's counts, ids and instance are its own."""
    code = """
rtobs.configure(service="orders")
work(10, "/parent")
with rtobs.accept("/open") as hop:
    child = os.fork()
    if child == 0:
        work(20, "/child")
        with rtobs.publish("queue") as sending:
            print(sending.correlation_id == hop.correlation_id, flush=True)
if child == 0:
    sys.exit(0)
work(5, "/parent")
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    with collector("http", tmp_path / "otlp") as arrived:
        done = run(code, arrived)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"
    assert accepted(arrived) == {"/parent": 15, "/open": 1, "/child": 20}
    spans = arrived.spans()
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    assert Counter(span.name for span in spans) == {
        "accept /parent": 15, "accept /open": 1, "accept /child": 20, "publish queue": 1,
    }  # fmt: skip
    resources = arrived.resources()
    assert len(resources) == 2
    assert len({resource["service.instance.id"] for resource in resources}) == 2
    assert {resource["service.name"] for resource in resources} == {"orders"}


def test_a_child_that_only_counts_exports_while_it_runs(tmp_path: Path) -> None:
    """A worker that is killed without notice has exported its counts, though it has no spans that start the export."""
    code = """
work(1, "/parent")
child = os.fork()
if child == 0:
    work(20, "/child")
    assert _config.flush(5)
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    with collector("http", tmp_path / "otlp") as arrived:
        pod = "service.instance.id=pod-1"
        done = run(code, arrived, OTEL_RESOURCE_ATTRIBUTES=pod, OTEL_TRACES_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    assert accepted(arrived) == {"/parent": 1, "/child": 20}
    instances = {resource["service.instance.id"] for resource in arrived.resources()}
    assert "pod-1" in instances
    assert len(instances) == 2


def test_forking_while_threads_emit_does_not_hang(tmp_path: Path) -> None:
    """Whichever lock of ours another thread holds at the fork, the child can open hops and end."""
    code = """
rtobs.configure(tenants=["acme"])
stop = threading.Event()
def busy(number):
    count = 0
    while not stop.is_set():
        count += 1
        with rtobs.accept("/busy") as hop:
            hop.segment(tenant=f"t-{number}-{count}")
            hop.note(x=1)
            hop.event("e")
            with rtobs.publish("q"):
                pass
threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
worst = 0
for _ in range(30):
    child = os.fork()
    if child == 0:
        with rtobs.accept("/child") as hop:
            hop.segment(tenant="new")
            hop.event("e")
            with rtobs.publish("q"):
                pass
        os._exit(0)
    begun = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - begun > 10:
            os.kill(child, signal.SIGKILL)
            print("hangs", flush=True)
            os._exit(1)
        time.sleep(0.002)
stop.set()
after = threading.Thread(target=rtobs.configure, daemon=True)
after.start()
after.join(10)
print("hangs" if after.is_alive() else "ok", flush=True)
os._exit(0)
"""
    done = scripts.run(WORK + code)
    assert done.stdout == "ok\n", done.stderr


def test_a_lock_that_another_thread_holds_at_the_fork_does_not_stop_the_child() -> None:
    """With every lock of ours held elsewhere at the moment of the fork, the child works."""
    code = """
import signal
from rtobs import _guard
from rtobs._hop import hop, leaf
from rtobs.integrations import _twin
from rtobs.integrations.memory import Broker
with rtobs.accept("/x"):
    pass
bound = _config._bound
held, release = threading.Event(), threading.Event()
def hold():
    with (leaf._count_lock, hop._lock, _twin._lock, _guard._lock, bound.registry.lock, bound.registry.guard._lock,
          bound.pipeline._wake, bound.worker_sink._lock):
        held.set()
        release.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    with rtobs.accept("/x") as one:
        one.segment(tenant="new")
        one.note(x=1)
        with rtobs.publish("q"), rtobs.consume("q", headers={"traceparent": "x"}, trust="trusted"):
            pass
    rtobs.wrap(Broker())
    _config.flush(5)
    os._exit(0)
_, status = os.waitpid(child, 0)
release.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = scripts.run(WORK + code)
    assert done.returncode == 0, done.stderr


def test_ids_do_not_repeat_in_a_child(tmp_path: Path) -> None:
    """Parent and children draw different correlation ids."""
    found = scripts.found(
        WORK
        + """
def ids():
    made = []
    for _ in range(50):
        with rtobs.accept("/x") as hop:
            made.append(hop.correlation_id[13:])  # without the time
    return made
with rtobs.accept("/x"):
    pass
parts = []
for _ in range(2):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(ids()).encode())
        os._exit(0)
    os.close(writing)
    parts += json.loads(os.read(reading, 65536))
    os.wait()
print(json.dumps(ids() + parts))
"""
    )
    assert len(found) == len(set(found)) == 150


def test_shutdown_without_anything_to_do_is_quick_and_true() -> None:
    """Nothing configured, nothing measured: nothing to wait for."""
    rtobs.configure()
    assert rtobs.shutdown(0) is True
    with rtobs.accept("/x"):
        pass
    assert rtobs.shutdown(0) is True
    assert rtobs.shutdown() is True


def test_hops_work_after_shutdown(telemetry: Telemetry) -> None:
    """A handler that is still running when the process shuts down is not disturbed."""
    with rtobs.accept("/x"):
        rtobs.shutdown()
    with rtobs.accept("/x") as hop:
        assert hop.correlation_id
    assert telemetry.count(names.ACCEPT_DURATION) == 2


def test_many_threads_bind_once(telemetry: Telemetry) -> None:
    """The first hops of several threads at once find the same rooms."""
    start, found = threading.Barrier(8), []

    def first() -> None:
        start.wait()
        with rtobs.accept("/x"):
            found.append(_config._bound)

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert telemetry.count(names.ACCEPT_DURATION) == 8


def test_a_broken_environment_costs_telemetry_and_nothing_else(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rooms cannot be bound, hops still open and carry their journey."""

    def broken(_settings: Any) -> None:
        raise RuntimeError("broken")

    rtobs.configure()
    monkeypatch.setattr(_config, "_bind_rooms", broken)
    for _ in itertools.repeat(None, 2):
        with rtobs.accept("/x") as hop:
            assert hop.headers["rtobs-journey"]
    assert _guard.tallies()[names.INTERNAL_ERRORS.name, ("config.bind",)] == 1
    _guard.forget()
