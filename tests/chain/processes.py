"""Other processes of an app that a test plays with, and what all of them exported."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from tests._export.collector import Collected, plain
from tests.support.scripts import ROOT, environment
from tests.support.timing import wait_until

PATIENCE = 60.0
"""Seconds that a process has for what it does next; a few on an idle machine."""


class Process:
    """A program that says one JSON object a line, and ends when its input is closed."""

    def __init__(self, popen: subprocess.Popen[str], errors: IO[str]) -> None:
        self._popen = popen
        self._errors = errors
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._popen.stdout:
            self._lines.put(line)

    def says(self, what: str, *others: Process) -> Any:
        """Return what its next line says of *what*, unless it or one of the *others* fails before."""

        def next_line() -> str:
            for each in (self, *others):
                each.check()
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=0.1)
            return ""

        found = json.loads(wait_until(next_line, PATIENCE))
        assert what in found, found
        return found[what]

    def check(self) -> None:
        """Fail if it has failed, or complained."""
        self._errors.seek(0)
        errors = self._errors.read()
        if self._popen.poll() or errors:
            message = f"{self._popen.args}, exit code {self._popen.returncode}:\n{errors}"
            raise AssertionError(message)

    def tell(self) -> None:
        """Let it go on to the next thing."""
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def close(self, what: str) -> dict[str, Any]:
        """Close its input; return its last line, which says *what* too, after it has ended without a complaint."""
        self._popen.stdin.close()
        self._popen.wait(PATIENCE)
        self.check()
        found = json.loads(wait_until(lambda: self._lines.get(timeout=1)))
        assert what in found, found
        return found

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._popen.kill()
        self._popen.wait(PATIENCE)


@contextmanager
def running(program: str, *args: str, **variables: str) -> Generator[Process]:
    """Run a module of the tests in an interpreter of its own, where warnings are errors, until the block ends."""
    command = [sys.executable, "-m", program, *args]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environment(**variables), cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        ) as popen,
    ):  # fmt: skip
        try:
            yield Process(popen, errors)
        finally:
            popen.kill()


def exporting(collected: Collected, every: float) -> dict[str, str]:
    """Return the environment of a process that exports to a collector *every* so many seconds, and at its end."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": str(int(every * 1000)),
        "OTEL_METRIC_EXPORT_INTERVAL": str(int(every * 1000)),
    }


# What was exported ---------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """One exported span."""

    service: str
    name: str
    trace_id: str
    span_id: bytes
    parent_id: bytes
    attributes: dict[str, Any]


def spans(collected: Collected, hop: str = "") -> list[Span]:
    """Return the exported spans: all, or those of one kind of hop."""
    found = [
        Span(
            plain(group.resource.attributes)["service.name"], span.name, span.trace_id.hex(), span.span_id,
            span.parent_span_id, plain(span.attributes),
        )
        for request in collected.requests("traces")
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]  # fmt: skip
    return [span for span in found if not hop or span.attributes.get("rtobs.hop") == hop]


class Series(NamedTuple):
    """One series as a process exported it last: a counter's value, or a histogram's sum and number."""

    labels: dict[str, Any]
    value: float
    count: int


def series(collected: Collected, metric: str) -> list[Series]:
    """Return the series of one metric of all processes, dead ones included."""
    last: dict[str, Any] = {}
    for request in collected.requests("metrics"):
        for group in request.resource_metrics:
            for scope in group.scope_metrics:
                for found in scope.metrics:
                    if found.name == metric:
                        last[plain(group.resource.attributes)["service.instance.id"]] = found
    return [
        Series(plain(point.attributes), point.sum, point.count)
        if found.WhichOneof("data") == "histogram"
        else Series(plain(point.attributes), point.as_double or point.as_int, 0)
        for found in last.values()
        for point in getattr(found, found.WhichOneof("data")).data_points
    ]


def total(collected: Collected, metric: str, **labels: str) -> int:
    """Return the sum of a counter, or the number of a histogram's measurements, over the series with *labels*."""
    return sum(int(one.count or one.value) for one in series(collected, metric) if labels.items() <= one.labels.items())
