"""Celery's workers as processes of their own: what they handled arrives at a collector, whatever ends them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests._export.collector import Collected, collector, plain
from tests.support.scripts import ROOT, environment
from tests.support.timing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def worker(broker: str, queue: str, collected: Collected, *options: str) -> Generator[Celery, None, None]:
    """Run a worker; what is given sends to it."""
    app = Celery("sender", broker=broker)
    app.conf.task_default_queue = queue
    own = {"CELERY_TEST_BROKER": broker, "CELERY_TEST_QUEUE": queue, "OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint}
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.integrations.celery_app", "worker"]
    process = subprocess.Popen(
        [*command, "--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "ERROR", *options],
        cwd=ROOT, env=environment(**own, PYTHONWARNINGS="ignore"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield app
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stderr.close()
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            if broker.startswith("amqp"):
                channel.queue_delete(queue)
            else:
                channel.client.delete(queue)
        app.close()


def handled(collected: Collected) -> list[dict[str, Any]]:
    """Return the attributes of all consume hops that have arrived."""
    found = [plain(span.attributes) for span in collected.spans()]
    return [attributes for attributes in found if attributes.get("rtobs.hop") == "consume"]


def _a_hundred(broker: str, queue: str, path: Path, *pool: str) -> None:
    with collector("http", path) as collected, worker(broker, queue, collected, *pool) as app:
        for number in range(100):
            app.send_task("count", args=[number], task_id=f"task-{number}")
        wait_until(lambda: len(handled(collected)) >= 100, timeout=220)
        ids = Counter(hop["messaging.message.id"] for hop in handled(collected))
        assert ids == {f"task-{number}": 1 for number in range(100)}


def test_a_hundred_processes_of_one_task_each_lose_nothing(redis_url, unique, tmp_path):
    """With `--max-tasks-per-child 1` each of 100 child processes exports its hop before it ends, none twice."""
    pool = ("-P", "prefork", "-c", "12", "--max-tasks-per-child", "1")
    _a_hundred(redis_url, unique("celery"), tmp_path / "got", *pool)


def test_a_hundred_tasks_in_threads_lose_nothing(amqp_url, unique, tmp_path):
    """A pool of threads exports 100 of 100 hops, each in its own task's context."""
    _a_hundred(amqp_url, unique("celery"), tmp_path / "got", "-P", "threads", "-c", "4")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("die", [("failed", "WorkerLostError", "internal")]),
        ("hang", [("failed", "TimeLimitExceeded", "timeout")]),
        ("die.again", [("ok", None, None)]),
    ],
)
def test_a_task_whose_process_is_lost_is_told_of_by_its_parent(amqp_url, unique, tmp_path, name, expected):
    """A killed process or a hard time limit ends the hop as failed; what comes back is told of then."""
    with (
        collector("http", tmp_path / "got") as collected,
        worker(amqp_url, unique("celery"), collected, "-P", "prefork", "-c", "1", "--max-tasks-per-child", "1") as app,
    ):
        app.send_task(name)
        app.send_task("count", args=[1])
        wait_until(lambda: len(handled(collected)) >= 2, timeout=60)
        found = [hop for hop in handled(collected) if hop["messaging.destination.name"] == name]
        assert [(h["rtobs.outcome"], h.get("error.type"), h.get("rtobs.error_category")) for h in found] == expected
