"""The fault matrix: an application in every state of its collector, at every moment of its life.

Run as a program it imports everything once and forks a process for each cell, which comes as a line of JSON on stdin.
That process holds the collector and forks the application; a line of JSON on stdout says what each of them counted.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

_at_the_end: list[Any] = []


@atexit.register  # before rtobs registers its own: this one is called after it
def _report_at_the_end() -> None:
    for report in _at_the_end:
        report()


import opentelemetry.exporter.otlp.proto.common._log_encoder  # noqa: E402  the order of atexit, see above
import opentelemetry.exporter.otlp.proto.common.metrics_encoder  # noqa: F401, E402  as above
from opentelemetry import trace  # noqa: E402  as above
from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: E402  as above

import rtobs  # noqa: E402  as above
import rtobs._export.pipeline  # noqa: E402  as above
import rtobs._export.sender  # noqa: E402  as above
from rtobs import _config, _guard  # noqa: E402  as above
from rtobs._config import environment  # noqa: E402  as above
from rtobs._export.otlp import exported  # noqa: E402  as above
from rtobs._export.pipeline import Pipeline  # noqa: E402  as above
from rtobs._hop.runtime import runtime  # noqa: E402  as above
from tests._export.scripted import POISON, Collector  # noqa: E402  as above
from tests.support.timing import SCALE  # noqa: E402  as above

STATES = (
    "healthy", "refused", "dns", "blackhole", "drip", "reset", "400", "401", "413", "429 short", "429 long", "500",
    "503", "garbage", "partial", "tls expired", "proxy 407", "exporter raises", "exporter returns none",
    "encode error", "clock jump", "no thread",
)  # fmt: skip
MOMENTS = (
    "idle", "steady", "burst", "queue full", "force flush", "shutdown", "fork", "cancel", "interpreter exit",
)  # fmt: skip
AT_EXIT = 5.0
"""Seconds that rtobs gives itself at the end of the interpreter."""
WATCHDOG = 60.0


class Clock:
    """Seconds since it was made, less those in which this thread could run but the machine was busy with others."""

    def __init__(self) -> None:
        self._begun = time.monotonic() - self._waited()

    @staticmethod
    def _waited() -> float:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9

    def took(self) -> float:
        """Return them."""
        return time.monotonic() - self._waited() - self._begun


# The application -----------------------------------------------------------------------------------------------------


class App:
    """Makes hops of all sorts and keeps its own books."""

    def __init__(self, state: str, tell: int) -> None:
        self.state = state
        self.spans = 0
        self.errors: list[str] = []
        self._tell = tell
        self._number = itertools.count()
        self._logs = 0
        self._lines: Counter[str] = Counter()
        self._count_logs()

    def _count_logs(self) -> None:
        app, put, handle = self, Pipeline.put_log, logging.Logger.handle

        def put_log(pipeline: Pipeline, event: Any) -> None:
            app._logs += 1
            put(pipeline, event)

        def counted(logger: logging.Logger, record: logging.LogRecord) -> None:
            app._lines[f"{record.name}: {record.getMessage()}"] += 1
            handle(logger, record)

        Pipeline.put_log = put_log
        logging.Logger.handle = counted

    def emit(self, times: int) -> None:
        """End some hops; every fourth time one fails, one has a stage, one is a neighbour's span."""
        for _ in range(times):
            number = next(self._number)
            try:
                self._one(number)
            except Exception as error:  # noqa: BLE001  nothing of ours may come out
                self.errors.append(repr(error))

    def _one(self, number: int) -> None:
        kind = number % 4
        if kind == 3:
            bad = self.state == "encode error" and number % 8 == 7
            with trace.get_tracer("neighbour").start_as_current_span("\udcff" if bad else "query"):
                self.spans += 1
            return
        with rtobs.accept("/orders") as hop:
            self.spans += 1
            if number % 20 == 5:
                hop.note(word=POISON.decode())
            if kind == 1:
                with rtobs.stage("normalize"):
                    self.spans += 1
            elif kind == 2:
                self.spans += 1
                try:
                    with rtobs.deliver("webhook", "crm"):
                        raise ConnectionError("gone")  # noqa: TRY301  it stands for what a client raises
                except ConnectionError:
                    pass

    async def cancelled(self, tasks: int) -> None:
        """Cancel hops in the middle."""

        async def work() -> None:
            with rtobs.accept("/slow"):
                self.spans += 1
                await asyncio.sleep(60)

        running = [asyncio.create_task(work()) for _ in range(tasks)]
        await asyncio.sleep(0.05)
        for task in running:
            task.cancel()
        for result in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                self.errors.append(repr(result))

    def shutdown(self, timeout: float) -> None:
        """End it and report."""
        clock = Clock()
        rtobs.shutdown(timeout)
        self.report(took=clock.took(), timeout=timeout)

    def report(self, **more: Any) -> None:
        """Tell the other process what this one knows."""
        bound = _config._bound
        dropped = {
            "/".join(labels): count
            for (name, labels), count in _guard.tallies().items()
            if name == "rtobs.telemetry.dropped"
        }
        found = {
            "emitted": {"spans": self.spans, "logs": self._logs}, "dropped": dropped, "errors": self.errors,
            "queued": bound.pipeline.queued if bound is not None else {}, "lines": dict(self._lines), **more,
        }  # fmt: skip
        os.write(self._tell, json.dumps(found).encode() + b"\n")


class _Exporter:
    """Stands for an exporter of the SDK's that misbehaves."""

    def __init__(self, tell: int, *, raises: bool) -> None:
        self._tell = tell
        self._raises = raises

    def export(self, spans: Any) -> SpanExportResult | None:
        if self._raises:
            raise RuntimeError("broken")
        os.write(self._tell, json.dumps({"exported": len(spans)}).encode() + b"\n")
        return None

    def shutdown(self) -> None:
        pass


def _prepare(state: str, collector: Collector, folder: Path, tell: int) -> None:  # noqa: C901  one branch each
    """Bring about what the state says, but for what the collector does by itself."""
    os.environ.update({
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": str(0.5 * max(1.0, SCALE)),
        "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "300", "OTEL_SERVICE_NAME": "matrix",
    })  # fmt: skip
    if state == "dns":
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://collector.invalid:4318"

        def nobody(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(-2, "Name or service not known")

        socket.getaddrinfo = nobody
    elif state == "proxy 407":
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://collector.example:4318"
        os.environ["HTTP_PROXY"] = collector.endpoint
    elif state == "tls expired":
        os.environ["OTEL_EXPORTER_OTLP_CERTIFICATE"] = str(folder / "ca.pem")
    elif state.startswith("exporter"):
        exporter = _Exporter(tell, raises=state == "exporter raises")
        original = environment.exporters

        def exporters(*, logs: bool) -> Any:
            return {**original(logs=logs), "spans": lambda resource: exported("spans", exporter, resource)}

        environment.exporters = exporters
    elif state == "clock jump":
        jumps = itertools.cycle((0, 3600, -3600, 86_400))
        runtime.wall_ns = lambda: time.time_ns() + next(jumps) * 1_000_000_000
    elif state == "no thread":
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith("rtobs"):
                raise RuntimeError("can't start new thread")
            start(thread)  # the SDK itself needs some to find out who it is

        threading.Thread.start = refuse


def _live(app: App, moment: str, timeout: float) -> None:  # noqa: C901  nine moments, side by side
    """Go through one moment of an application's life."""
    if moment == "idle":
        app.emit(8)
        time.sleep(0.3)
    elif moment == "steady":
        for _ in range(20):
            app.emit(8)
            time.sleep(0.02)
    elif moment == "burst":
        app.emit(80)
        time.sleep(0.1)
        app.emit(800)
        time.sleep(0.1)
    elif moment == "queue full":
        app.emit(5000)
    elif moment == "force flush":
        app.emit(200)
        clock = Clock()
        _config.flush(timeout)
        if (took := clock.took()) > timeout + 0.5 * max(1.0, SCALE):
            app.errors.append(f"a flush of {timeout} s took {took:.1f} s")
        app.emit(40)
    elif moment == "shutdown":
        app.emit(600)
    elif moment == "fork":
        app.emit(200)
        child = os.fork()
        if child == 0:
            app.spans = app._logs = 0
            app._lines.clear()
            app.emit(40)
            app.shutdown(timeout)
            os._exit(0)
        app.emit(40)
        os.waitpid(child, 0)
    elif moment == "cancel":
        asyncio.run(app.cancelled(50))
        app.emit(20)


# One cell ------------------------------------------------------------------------------------------------------------


def _cell(state: str, moment: str, timeout: float, folder: Path) -> bool:
    """Run one cell; returns True in the application's process, whose end is a part of it."""
    import ssl

    tls = None
    if state == "tls expired":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "expired.pem")
    collector = Collector({"proxy 407": "407"}.get(state, state), tls)
    if state in ("refused", "dns"):
        collector.stop()
    elif state in (
        "tls expired",
        "exporter raises",
        "exporter returns none",
        "encode error",
        "clock jump",
        "no thread",
    ):
        collector.state = "healthy"
    collector.keep = False
    hear, tell = os.pipe()
    app = os.fork()
    if app == 0:
        os.close(hear)
        collector._listening.close()  # the other process's, too
        _prepare(state, collector, folder, tell)
        made = App(state, tell)
        _live(made, moment, timeout)
        if moment != "interpreter exit":
            made.shutdown(timeout)
            os._exit(0)
        made.emit(200)
        clock = Clock()
        _at_the_end.append(lambda: made.report(timeout=AT_EXIT, took=clock.took()))
        return True
    os.close(tell)
    if state not in ("refused", "dns"):
        collector.start()
    told, late = _heard(hear, app)
    spans = collector.spans
    exported = sum(one.pop("exported", 0) for one in told)
    print(json.dumps({
        "state": state, "moment": moment, "late": late, "reports": [one for one in told if one],
        "spans": spans.total() + exported, "twice": spans.total() - len(spans), "logs": collector.logs,
    }), flush=True)  # fmt: skip
    os._exit(0)


def _heard(hear: int, app: int) -> tuple[list[dict[str, Any]], bool]:
    """Return what the application's processes told until the last of them ended, and whether they had to be killed."""
    data, until, late = b"", time.monotonic() + WATCHDOG, False
    while True:
        ready, _, _ = select.select([hear], [], [], max(until - time.monotonic(), 0))
        if not ready:
            late = True
            os.kill(app, signal.SIGKILL)
            break
        more = os.read(hear, 65536)
        if not more:
            break
        data += more
    os.waitpid(app, 0)
    return [json.loads(line) for line in data.splitlines()], late


def _certificates(folder: Path) -> None:
    import datetime as dt

    import trustme

    authority, long_ago = trustme.CA(), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    expired = authority.issue_cert("localhost", not_before=long_ago, not_after=long_ago)
    expired.private_key_and_cert_chain_pem.write_to_path(folder / "expired.pem")


def main() -> None:
    """Run the cells of stdin, some at a time."""
    folder, parallel = Path(sys.argv[1]), int(sys.argv[2])
    _certificates(folder)
    running: set[int] = set()
    for line in sys.stdin:
        cell = json.loads(line)
        while len(running) >= parallel:
            running.discard(os.waitpid(-1, 0)[0])
        pid = os.fork()
        if pid == 0:
            if _cell(**cell, folder=folder):
                return  # as any program ends
            raise AssertionError
        running.add(pid)
    for pid in running:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
