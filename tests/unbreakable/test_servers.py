"""R10 with servers: the recipes of ``docs/life-cycle.md``, run by real servers and ended by real signals.

A recipe is a python block of that page whose first line names its file. Must not know how rtobs is made.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests._export.scripted import Collector
from tests.support import pages, scripts
from tests.support.timing import wait_until
from tests.unbreakable import figures

PAGE = pages.ROOT / "docs" / "life-cycle.md"
PLAIN = {
    "app.py": "async def app(scope, receive, send):\n    raise RuntimeError\n",
    "wsgi.py": "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n",
}
"""The same servers without rtobs."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def recipes(folder: Path) -> None:
    """Write the files of the page into *folder*."""
    for block in pages.blocks(PAGE):
        name = block.text.splitlines()[0].removeprefix("# ")
        if block.language == "python" and name.endswith(".py"):
            (folder / name).write_text(block.text, encoding="utf-8")


def hops(collector: Collector, route: str = "") -> dict[str, Counter[bytes]]:
    """Return the span ids of hops by ``service.instance.id``, and how often each was taken.

    A framework that traces itself opens a span round ours, which is the hop's then; so names are not asked.
    """
    found: dict[str, Counter[bytes]] = defaultdict(Counter)
    taken = collector.spans
    for request in collector.requests:
        if not request.path.endswith("traces"):
            continue
        for group in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            facts = {one.key: one.value.string_value for one in group.resource.attributes}
            for scope in group.scope_spans:
                found[facts["service.instance.id"]].update(
                    span.span_id
                    for span in scope.spans
                    if span.span_id in taken
                    and any(one.key == "rtobs.hop" for one in span.attributes)
                    and any(route in one.value.string_value for one in span.attributes)
                )
    return {instance: ids for instance, ids in found.items() if ids}


class Server:
    """A server process and what clients got from it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self._host = wait_until(self._address, 60)
        self.answered = self.asked = 0
        self._lock = threading.Lock()
        wait_until(self._listens, 60)  # a parent may say that it runs before its workers listen

    def _address(self) -> str:
        text = self.log.read_text()
        assert self.process.poll() is None, text
        found = re.search(r"(?:running on|Listening at:) http://(127\.0\.0\.1:\d+)", text)
        return found[1] if found else ""

    def _listens(self) -> bool:
        host, _, port = self._host.partition(":")
        try:
            with socket.create_connection((host, int(port)), 1):
                return True
        except OSError:
            return False

    def ask(self, times: int, path: str = "/orders/1", clients: int = 4) -> None:
        """Ask so often, by several clients at once; a server that stops refuses some."""

        def client() -> None:
            for _ in range(times // clients):
                with self._lock:
                    self.asked += 1
                try:
                    with closing(HTTPConnection(self._host, timeout=60)) as connection:
                        connection.request("GET", path, headers={"connection": "close"})
                        status = connection.getresponse().status
                except (OSError, HTTPException):
                    continue
                with self._lock:
                    self.answered += status == 200

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def told(self, text: str, times: int = 1) -> bool:
        """Tell whether the server has logged *text* so often."""
        return self.log.read_text().count(text) >= times

    def end(self, how: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def served(folder: Path, command: list[str], endpoint: str) -> Iterator[Server]:
    """Run a server in *folder*."""
    log = folder / "log.txt"
    environment = scripts.environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        PYTHONWARNINGS="ignore",
        PYTHONUNBUFFERED="1",
        OTEL_METRICS_EXPORTER="none",
    )
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


UVICORN = ["uvicorn", "app:app", "--host", "127.0.0.1", "--port", "0"]
GUNICORN = ["gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", "-c"]
NO_FILE, FILE = "python:gunicorn.config", "gunicorn.conf.py"


def judge(collector: Collector, server: Server, name: str, at_least: int, more: int = 0) -> None:
    """Every request that was answered is there, once; every worker is an instance of its own."""
    found = hops(collector, "/orders")
    arrived = sum(len(ids) for ids in found.values())
    assert server.answered > 0
    assert server.answered <= arrived <= server.asked + more, server.log.read_text()[-2000:]
    assert all(set(ids.values()) == {1} for ids in found.values())
    assert len(set().union(*found.values())) == arrived  # no span by two instances
    assert len(found) >= at_least
    text = f"{server.answered} requests answered, {arrived} hops arrived, 0 twice, {len(found)} instances"
    figures.record("R10", text, name)


def plain_end(folder: Path, command: list[str]) -> int:
    """Return the exit code of the same server without rtobs."""
    (folder / "plain").mkdir()
    for name, text in PLAIN.items():
        (folder / "plain" / name).write_text(text)
    with served(folder / "plain", command, "") as server:
        return server.end()


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one", "workers"])
def test_r10_uvicorn_loses_nothing_when_it_is_stopped(options: list[str], tmp_path: Path) -> None:
    """R10: by the recipe, every request that uvicorn answered before SIGTERM is told, and it ends as it would have."""
    recipes(tmp_path)
    command = [*UVICORN, *options]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        server.ask(60)
        rest = threading.Thread(target=server.ask, args=(200,))
        rest.start()
        wait_until(lambda: server.answered > 80, 30)
        ended = server.end()
        rest.join()
        judge(collector, server, f"uvicorn {' '.join(options)}".strip(), 1)
    assert ended == plain_end(tmp_path, command)


def test_r10_uvicorn_loses_nothing_when_it_is_recycled(tmp_path: Path) -> None:
    """R10: a uvicorn process that ends after so many requests has told all of them."""
    recipes(tmp_path)
    command = [*UVICORN, "--limit-max-requests", "50"]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        server.ask(80)
        assert server.process.wait(30) == 0
        judge(collector, server, "uvicorn --limit-max-requests", 1)
    assert server.answered >= 50


@pytest.mark.parametrize(
    ("worker", "options", "config"),
    [
        ("sync", ["wsgi:application"], NO_FILE),
        ("gthread", ["wsgi:application", "--threads", "4", "--preload"], NO_FILE),
        ("gthread", ["wsgi:application", "--threads", "4", "--preload"], FILE),
        ("asgi", ["app:app"], NO_FILE),
    ],
    ids=["sync", "gthread preload", "gthread preload by the recipe", "asgi"],
)
def test_r10_gunicorn_loses_nothing_when_it_is_reloaded_and_stopped(
    worker: str, options: list[str], config: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """R10: by the recipes, no answered request is lost at SIGHUP and SIGTERM, and no worker is taken for another."""
    recipes(tmp_path)
    command = [*GUNICORN, config, "-w", "2", "-k", worker, *options]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        wait_until(lambda: server.told("Booting worker", 2), 30)
        server.ask(60)
        rest = threading.Thread(target=server.ask, args=(100,))
        rest.start()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.told("Booting worker", 4), 30)
        rest.join()
        wait_until(lambda: server.told("Worker exiting", 2), 30)  # else old ones may answer all that follows
        server.ask(40)
        ended = server.end()
        judge(collector, server, f"gunicorn {request.node.callspec.id}", 2)
    assert ended == 0


def test_r10_gunicorn_ends_as_it_would_have(tmp_path: Path) -> None:
    """R10: gunicorn's own exit code at SIGTERM, for comparison."""
    assert plain_end(tmp_path, [*GUNICORN, NO_FILE, "wsgi:application"]) == 0


def test_r10_gunicorn_loses_nothing_when_workers_are_recycled(tmp_path: Path) -> None:
    """R10: workers that are replaced after 20 requests each have told all of theirs."""
    recipes(tmp_path)
    command = [*GUNICORN, NO_FILE, "-w", "2", "--max-requests", "20", "wsgi:application"]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        server.ask(120, clients=2)
        assert server.end() == 0
        judge(collector, server, "gunicorn --max-requests", 4)


def test_r10_gunicorn_sends_what_the_parent_measured_once(tmp_path: Path) -> None:
    """R10: with --preload, hops that the parent ended before it forked arrive once, as the parent's."""
    recipes(tmp_path)
    with (tmp_path / "wsgi.py").open("a") as file:
        file.write("\n\nfor _ in range(50):\n    with rtobs.accept('/start'):\n        pass\n")
    command = [*GUNICORN, NO_FILE, "-w", "3", "--preload", "wsgi:application"]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        wait_until(lambda: server.told("Booting worker", 3), 30)
        server.ask(40)
        assert server.end() == 0
        judge(collector, server, "gunicorn --preload, parent", 1)
        (start,) = hops(collector, "/start").values()
        assert start.total() == len(start) == 50
        assert hops(collector, "/start").keys().isdisjoint(hops(collector, "/orders"))


def test_r10_a_worker_that_hangs_loses_nothing_it_had_finished(tmp_path: Path) -> None:
    """R10: a worker that gunicorn aborts after its timeout has told all it had finished, and the hop that hung."""
    recipes(tmp_path)
    command = [*GUNICORN, NO_FILE, "-w", "1", "--timeout", "3", "wsgi:application"]
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        server.ask(20, clients=1)
        server.ask(1, path="/slow", clients=1)
        wait_until(lambda: server.told("WORKER TIMEOUT"), 30)
        wait_until(lambda: sum(hops(collector, "/orders").values(), Counter()).total() >= 21, 20)
        judge(collector, server, "gunicorn --timeout", 1)


def test_r10_a_worker_that_does_not_stop_loses_nothing_it_had_finished(tmp_path: Path) -> None:
    """R10: a worker that is killed after the graceful timeout has told all it had finished when asked to stop."""
    recipes(tmp_path)
    command = [*GUNICORN, NO_FILE, "-w", "1", "-k", "gthread", "--threads", "4", "--graceful-timeout", "2",
               "wsgi:application"]  # fmt: skip
    with Collector() as collector, served(tmp_path, command, collector.endpoint) as server:
        server.ask(40)
        slow = threading.Thread(target=server.ask, args=(1, "/slow", 1))
        slow.start()
        wait_until(lambda: server.asked == 41)
        server.end()
        slow.join()
        judge(collector, server, "gunicorn --graceful-timeout", 1)
    assert server.answered == 40


# Processes without a server ------------------------------------------------------------------------------------------


def test_r10_a_pool_by_the_recipe_loses_nothing(tmp_path: Path) -> None:
    """R10: children that end by ``os._exit`` after their hook lose nothing, recycled after each few tasks."""
    recipes(tmp_path)
    with Collector() as collector:
        subprocess.run(
            [sys.executable, "prefork.py", "10", "7"], cwd=tmp_path, timeout=60, check=True,
            env=scripts.environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_METRICS_EXPORTER="none"),
        )  # fmt: skip
        found = hops(collector)
    assert [len(ids) for ids in found.values()] == [7] * 10
    assert collector.spans.total() == 70
    figures.record("R10", "70 of 70 tasks of 10 recycled children arrived, 10 instances", "pool")


def test_r10_a_program_by_the_recipe_loses_nothing(tmp_path: Path) -> None:
    """R10: the program of the page dies of SIGTERM, and what it had finished is told."""
    recipes(tmp_path)
    with Collector() as collector:
        with subprocess.Popen(
            [sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE,
            env=scripts.environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint),
        ) as process:  # fmt: skip
            process.stdout.readline()
            wait_until(lambda: collector.spans.total() > 600, 30)
            before = collector.spans.total()
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        assert collector.spans.total() > before
        assert collector.spans.total() == len(collector.spans)
