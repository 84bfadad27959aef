"""The platform's processes: started, watched, replaced where one is killed, and ended with the run.

A child learns everything from its first line of standard input; ``go`` lets it begin and ``stop`` ends it, and so does
the end of that input: a child never outlives the observer. What it writes to standard error is kept for the report.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from rtobs.demo.options import BrokenRunError
from rtobs.demo.summary import Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
LEAVE_SECONDS: Final = 5.0
"""How long processes of a run that broke may take to tidy up behind them."""
EXPORT_MILLISECONDS: Final = 500
REPLACEMENTS: Final = 3
"""Killed processes that are replaced in one run; more are a broken run."""


@dataclass(slots=True)
class _Child:
    role: str
    popen: subprocess.Popen[str]
    errors: IO[bytes]
    port: int
    """Where Prometheus may scrape it; 0 = nowhere."""
    said: queue.Queue[str] = field(default_factory=queue.Queue[str])
    done: bool = False
    """The child said that it has sent all its messages."""
    ended: str = ""

    def tell(self, line: str) -> None:
        """Write one line to the child, which may be gone."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self.popen.stdin.write(line + "\n")
                self.popen.stdin.flush()

    @property
    def metrics(self) -> str:
        """The address that Prometheus may scrape; empty = none."""
        return f"http://127.0.0.1:{self.port}/metrics" if self.port else ""

    def leave(self) -> None:
        """Tell the child that nobody listens any more; it ends by itself."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()

    def listen(self) -> None:
        """Read what the child says, until it ends."""
        for line in self.popen.stdout or ():
            self.said.put(line.strip())
            self.done = self.done or line.strip() == "done"
        self.said.put("")

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error."""
        self.errors.seek(0)
        lines = self.errors.read()[-20_000:].decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-12:]) or "nothing"


class Platform:
    """The platform as the observer sees it: roles with process ids.

    Args:
        endpoint: OTLP/HTTP endpoint all processes export to.
        config: plain values each process gets.
        ports: where Prometheus may scrape each process, in the order of their start; 0 = it may not.
    """

    def __init__(self, endpoint: str, config: Mapping[str, Any], ports: Iterable[int]) -> None:
        self._config = dict(config)
        self._endpoint = endpoint
        self._ports = iter(ports)
        self._running: list[_Child] = []
        self._gone: list[_Child] = []
        self._started = 0

    @property
    def processes(self) -> list[Process]:
        """All processes that took part, with how those that ended early did so."""
        return [Process(one.role, one.popen.pid, one.ended, one.metrics) for one in [*self._gone, *self._running]]

    def start(self, *roles: str) -> None:
        """Start one process for each role and wait until all are ready.

        Raises:
            BrokenRunError: one ended instead, or took too long.
        """
        self._await_ready([self._spawn(role, next(self._ports)) for role in roles])

    def go(self) -> None:
        """Let all begin."""
        for child in self._running:
            child.tell("go")

    def supervise(self) -> None:
        """Replace a process that was killed; call it often.

        Raises:
            BrokenRunError: one ended by its own fault, or too many were killed.
        """
        for child in [one for one in self._running if one.popen.poll() is not None]:
            code = child.popen.returncode
            self._running.remove(child)
            self._gone.append(child)
            child.ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if code >= 0 or child.role in ("api", "platform") or len(self._gone) > REPLACEMENTS:
                raise BrokenRunError(
                    f"The {child.role} process {child.ended} during the run. It said:\n{child.last_words()}\n"
                    "Run the demo again; with --broker, check that the broker stays up."
                )
            child.ended += " and was replaced"
            replacement = self._spawn(child.role, child.port)
            self._await_ready([replacement])
            replacement.tell("go")

    def sent_everything(self) -> bool:
        """Tell whether the processes that make messages have made all of theirs."""
        return all(child.done for child in self._running if child.role in ("api", "platform"))

    def stop(self) -> None:
        """End all, those that make messages and own the queues last, so that each can export what it still holds.

        Raises:
            BrokenRunError: one did not end cleanly.
        """
        trouble = ""
        for last in (False, True):
            batch = [one for one in self._running if (one.role in ("api", "platform")) is last]
            for child in batch:
                child.tell("stop")
            deadline = time.monotonic() + STOP_SECONDS
            for child in batch:
                try:
                    code = child.popen.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.popen.kill()
                    code = child.popen.wait()
                if code:
                    child.ended = f"ended with exit code {code}"
                    trouble = (
                        f"The {child.role} process {child.ended} when told to stop. It said:\n{child.last_words()}"
                    )
        if trouble:
            raise BrokenRunError(f"{trouble}\nThe counts of this run may be incomplete; run the demo again.")

    def close(self) -> None:
        """Leave no process behind, whatever happened before, and nothing of theirs if they can help it."""
        for child in self._running:
            child.leave()
        deadline = time.monotonic() + LEAVE_SECONDS
        for child in self._running:
            try:
                child.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.popen.kill()
                child.popen.wait()
        for child in [*self._gone, *self._running]:
            child.errors.close()
            for pipe in (child.popen.stdin, child.popen.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _spawn(self, role: str, port: int) -> _Child:
        self._started += 1
        name = f"{role}-{self._started}"
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`, read before
        popen = subprocess.Popen(
            [sys.executable, "-m", "rtobs.demo.role", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=self._environment(role, name, port),
            # Ctrl-C is the observer's: it ends the platform in order
            start_new_session=True,
        )
        child = _Child(role, popen, errors, port)
        self._running.append(child)
        threading.Thread(target=child.listen, name=f"listen-{name}", daemon=True).start()
        child.tell(json.dumps(self._config | {"name": name}))
        return child

    def _environment(self, role: str, name: str, port: int) -> dict[str, str]:
        """The caller's environment without its telemetry settings, which would send the demo's data elsewhere."""
        others = ("OTEL_", "PROMETHEUS_", "PYTEST_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        if port:
            kept |= {"OTEL_METRICS_EXPORTER": "otlp,prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
        interval = str(EXPORT_MILLISECONDS)
        return kept | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self._endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative",
            "OTEL_METRIC_EXPORT_INTERVAL": interval,
            "OTEL_BSP_SCHEDULE_DELAY": interval,
            "OTEL_BLRP_SCHEDULE_DELAY": interval,
            "OTEL_SERVICE_NAME": role,
            "OTEL_RESOURCE_ATTRIBUTES": f"service.namespace=rtobs-demo,service.instance.id={name}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _await_ready(self, children: Iterable[_Child]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for child in children:
            try:
                while (line := child.said.get(timeout=max(0.0, deadline - time.monotonic()))) not in ("ready", ""):
                    pass
            except queue.Empty:
                raise BrokenRunError(
                    f"The {child.role} process was not ready after {READY_SECONDS:g} s. "
                    f"It said:\n{child.last_words()}\n"
                    "Run the demo again on a machine with less load."
                ) from None
            if not line:
                child.popen.wait()
                raise BrokenRunError(
                    f"The {child.role} process ended before it was ready (exit code {child.popen.returncode}). "
                    f"It said:\n{child.last_words()}"
                )
