"""Whole processes: the order of set-up does not matter, and nothing happens that nobody asked for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import scripts

SET_PROVIDER = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry import trace
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
CONFIGURE = """
import rtobs
rtobs.configure(service="orders", strict=True)
"""
USE = """
import json, rtobs
with rtobs.accept("/orders") as hop, rtobs.stage("normalize"):
    with trace.get_tracer("neighbour").start_as_current_span("query"):
        pass
    cid = hop.correlation_id
provider.force_flush()
spans = {s.name: s for s in exporter.get_finished_spans()}
by_id = {s.context.span_id: name for name, s in spans.items()}
parents = {name: by_id[s.parent.span_id] if s.parent else "" for name, s in spans.items()}
print(json.dumps({"parents": parents, "traces": len({s.context.trace_id for s in spans.values()}),
                  "named": f"{spans['accept /orders'].context.trace_id:032x}" == cid,
                  "theirs": trace.get_tracer_provider() is provider}))
"""


@pytest.mark.parametrize("order", [(CONFIGURE, SET_PROVIDER), (SET_PROVIDER, CONFIGURE), (SET_PROVIDER, "")])
def test_the_order_of_configure_and_set_tracer_provider_does_not_matter(order: tuple[str, str]) -> None:
    """Either way, or without configure at all, the user's own processor gets the same tree of spans."""
    found = scripts.found("".join(order) + USE)
    assert found == {
        "parents": {"accept /orders": "", "normalize": "accept /orders", "query": "normalize"},
        "traces": 1, "named": True, "theirs": True,
    }  # fmt: skip


WORK = """
import asyncio, io, json, logging, os, sys, threading
import structlog
from opentelemetry import trace

before = (structlog.get_config(), list(logging.root.handlers), logging.root.level, structlog.is_configured(),
          logging.Logger.manager.disable, logging.getLoggerClass(), sys.excepthook, threading.excepthook)
import rtobs
from rtobs.integrations.memory import Broker
{configure}

async def work():
    broker = rtobs.wrap(Broker())
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        hop.event("order.paid", amount=3)
        await broker.publish("orders", b"x")
    with rtobs.consume("orders", await broker.get("orders")), rtobs.stage("invoke"):
        with rtobs.deliver("webhook", "crm"):
            pass
    try:
        with rtobs.consume("orders", headers={{"traceparent": "nonsense"}}, trust="trusted"), rtobs.deliver("sms", "p"):
            raise ConnectionError("gone")
    except ConnectionError:
        pass
    for number in range(300):
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant=f"tenant-{{number}}")

asyncio.run(work())
after = (structlog.get_config(), list(logging.root.handlers), logging.root.level, structlog.is_configured(),
         logging.Logger.manager.disable, logging.getLoggerClass(), sys.excepthook, threading.excepthook)
sockets = [link for link in (os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")
           if os.path.islink(f"/proc/self/fd/{{fd}}")) if link.startswith("socket:")]
result = {{"same": before == after, "threads": [t.name for t in threading.enumerate()], "sockets": sockets,
          "provider": type(trace.get_tracer_provider()).__name__}}
{end}
"""
QUIET = {"same": True, "threads": ["MainThread"], "sockets": [], "provider": "ProxyTracerProvider"}
TELL = "sys.stderr.write(json.dumps(result))"


@pytest.mark.parametrize(
    ("configure", "variables"),
    [
        ("", {}),
        ("rtobs.configure(service='orders', tenants=['acme'], strict=False)", {}),
        ("", {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
        ("rtobs.configure(logs='otlp')", {"OTEL_SDK_DISABLED": "true"}),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none",
              "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}),
    ],
    ids=["not configured", "configured", "disabled", "disabled, logs asked for", "no exporters"],
)  # fmt: skip
def test_silent_where_nothing_is_to_be_exported(configure: str, variables: dict[str, str]) -> None:
    """Without an endpoint, or switched off, there is no output, no thread, no socket and no global provider of ours."""
    done = scripts.run(WORK.format(configure=configure, end=TELL), **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert scripts.json.loads(done.stderr) == QUIET


@pytest.mark.parametrize("logs", ["stdout", "logging"])
def test_the_users_structlog_and_logging_configuration_is_never_touched(logs: str) -> None:
    """Whatever our own events do, global structlog and logging state stay as the user left them."""
    theirs = "logging.basicConfig(level=30, stream=io.StringIO())"
    code = WORK.format(configure=f"rtobs.configure(logs={logs!r})", end=TELL)
    code = code.replace("before = (", f"{theirs}\nbefore = (")
    done = scripts.run(code)
    assert done.returncode == 0, done.stderr
    assert scripts.json.loads(done.stderr) == QUIET
    assert bool(done.stdout) == (logs == "stdout")


def test_a_users_own_structlog_set_up_does_not_change_our_events() -> None:
    """A global structlog configuration with other processors, classes and caching leaves our lines as they are."""
    code = """
    import structlog, collections
    structlog.configure(processors=[lambda *_: 1/0], context_class=collections.OrderedDict,
                        wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=True)
    import rtobs
    rtobs.configure(logs="stdout", strict=True)
    try:
        with rtobs.deliver("webhook", "crm"):
            raise ConnectionError
    except ConnectionError:
        pass
    """
    assert scripts.found(code)["event"] == "deliver.failed"


UNDER_PYTEST = """
import threading
import rtobs
from opentelemetry import trace

def test_users(capfd, caplog):
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        try:
            with rtobs.deliver("webhook", "crm"):
                raise ConnectionError
        except ConnectionError:
            pass
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == 1
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
"""


def test_silent_under_a_users_pytest(tmp_path: Any) -> None:
    """A user's test suite sees no output, no threads and no global provider of ours."""
    (tmp_path / "test_users.py").write_text(UNDER_PYTEST)
    code = f"""
    import sys, pytest
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", {str(tmp_path)!r},
                          {str(tmp_path)!r}]))
    """
    done = scripts.run(code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 passed")
    assert done.stderr == ""


OFF = """
import asyncio, json, sys
import rtobs
from rtobs.integrations.memory import Broker, Message

handled = []

@rtobs.consume("orders")
async def handle(message):
    handled.append((message.body, message.headers, rtobs.current().correlation_id))

async def work():
    broker = rtobs.wrap(Broker())
    with rtobs.accept("/orders") as hop, rtobs.stage("parse"):
        hop.intend("push")
        hop.segment(tenant="acme")
        await broker.publish("orders", b"x", {"theirs": "1"})
        await broker.publish("orders", b"y")
    await handle(await broker.get("orders"))
    stop = broker.consume("orders", handle)
    await asyncio.sleep(0.05)
    stop()
    try:
        with rtobs.deliver("push", "apns"):
            raise ConnectionError("gone")
    except ConnectionError:
        pass
    return hop

hop = asyncio.run(work())
print(json.dumps([[body.decode(), headers, cid] for body, headers, cid in handled]))
print(json.dumps([hop.correlation_id, hop.headers, rtobs.current().headers]))
"""


def test_switched_off_nothing_of_ours_runs() -> None:
    """With the SDK disabled no hop is opened and no header written; functions and wrapped clients work as ever."""
    done = scripts.run(OFF, OTEL_SDK_DISABLED="true")
    assert done.returncode == 0, done.stderr
    handled, hop = map(scripts.json.loads, done.stdout.splitlines())
    assert handled == [["x", {"theirs": "1"}, ""], ["y", {}, ""]]
    assert hop == ["", {}, {}]


FIRST = """
import json, sys
import rtobs
{configure}
before = set(sys.modules)
with rtobs.accept("/orders"), rtobs.publish("orders") as hop:
    hop.headers
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_first_message_does_not_wait_for_imports() -> None:
    """After `configure` the first hop imports nothing any more."""
    done = scripts.run(FIRST.format(configure="rtobs.configure(service='orders')"))
    assert done.returncode == 0, done.stderr
    assert scripts.json.loads(done.stdout) == []
    assert scripts.json.loads(scripts.run(FIRST.format(configure="")).stdout) != []


QUEUED = """
import gc, json, weakref
import rtobs
from rtobs._hop.runtime import runtime
from rtobs.integrations.memory import Broker

class Body(bytearray):
    pass

async def main():
    broker, bodies = rtobs.wrap(Broker()), []
    for number in range(20):
        body = Body(1000)
        bodies.append(weakref.ref(body))
        await broker.publish("orders", body)
        del body
        message = await broker.get("orders")
        with rtobs.consume("orders", message):
            await message.ack()
        del message
    gc.collect()
    return sum(body() is not None for body in bodies)

import asyncio
rtobs.configure(service="orders", strict=True)
alive = asyncio.run(main())
from rtobs import _config
print(json.dumps({"alive": alive, "queued": _config._bound.pipeline.queued["spans"]}))
"""


def test_a_span_that_waits_keeps_no_body() -> None:
    """What is queued for export holds neither the bodies nor the headers of its messages."""
    found = scripts.found(QUEUED, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="3600000")
    assert found == {"alive": 0, "queued": 60}
