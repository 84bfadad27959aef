"""A real Prometheus scrapes a running platform; its answers are compared with the platform's own books."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path

import pytest
import redis

from rtobs._conventions import END_TO_END
from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Telemetry
from tests.support.prometheus import OwnPrometheus, binary, free_port
from tests.support.timing import wait_until

PLATFORM = Path(__file__).parent / "platform_process.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binary() is None, reason="Prometheus is not installed; run `make brokers` on Debian or Ubuntu"),
]


@contextlib.contextmanager
def _platform(redis_url, streams, port, otlp):
    """Run the platform until the block ends; yield its books once all its messages are through."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = {
        **own,
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    command = [sys.executable, "-W", "error", str(PLATFORM), redis_url, *streams]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield json.loads(line)
            _, errors = process.communicate(timeout=20)  # closes its input
            assert process.returncode == 0, errors
            assert errors == ""
        finally:
            process.kill()


@pytest.fixture(scope="module")
def scraped(redis_url, unique, tmp_path_factory):
    """Prometheus after it has scraped everything, the platform's books, and the ids of all spans it exported."""
    streams = [unique("work"), unique("stuck")]
    port, spans = free_port(), set()
    store = Telemetry(lambda span: spans.add((span.trace_id, span.span_id)))
    try:
        with (
            Receiver(store) as receiver,
            _platform(redis_url, streams, port, receiver.endpoint) as books,
            OwnPrometheus(tmp_path_factory.mktemp("prometheus"), port) as server,
        ):
            wait_until(lambda: server.values("rtobs_delivery_attempts_total", "channel"), 20)
            yield server, books, spans, streams
    finally:
        with redis.Redis.from_url(redis_url) as client:
            client.delete(*streams)


def test_delivery_success_by_channel(scraped):
    """Prometheus knows how many deliveries worked and failed on each channel, exactly."""
    server, books, _, _ = scraped
    query = 'sum by (channel, outcome) (rtobs_delivery_outcomes_total{otel_scope_name="rtobs"})'
    found = server.values(query, "channel", "outcome")
    wanted = {(channel, "ok"): count for channel, count in books["delivered"].items()}
    wanted |= {(channel, "failed"): count for channel, count in books["failed"].items()}
    assert wanted[("push", "failed")] == 10
    assert found == wanted
    share = (
        'sum by (channel) (rtobs_delivery_outcomes_total{outcome="ok"})'
        " / sum by (channel) (rtobs_delivery_outcomes_total)"
    )
    assert server.values(share, "channel") == pytest.approx({"push": 2 / 3, "sms": 1.0})


def test_p95_end_to_end(scraped):
    """The 95th percentile that Prometheus computes is in the bucket that the true one is in, by channel."""
    server, books, _, _ = scraped
    query = "histogram_quantile(0.95, sum by (channel, le) (rtobs_delivery_end_to_end_seconds_bucket))"
    found = server.values(query, "channel")
    assert set(found) == {"push", "sms"}
    for channel, ages in books["ages"].items():
        rank = sorted(ages)[math.ceil(0.95 * len(ages)) - 1]
        # the platform reads its clock just outside of rtobs, so a value next to a bound may be on either side of it
        places = {bisect_left(END_TO_END.bounds, rank - slack) for slack in (0.0, 0.002)}
        lower = (0.0, *END_TO_END.bounds)[min(places)]
        assert lower <= found[channel] <= END_TO_END.bounds[max(places)], (channel, rank)
    assert found["sms"] > found["push"]


def test_queue_age_and_depth(scraped):
    """The age of a queue that nobody reads is the time since its first message, and rises while nothing happens."""
    server, books, _, (work, stuck) = scraped

    def ages():
        data = server.ask("query", query=f'timestamp(rtobs_queue_oldest_age_seconds{{destination="{stuck}"}})')
        value = server.values(f'rtobs_queue_oldest_age_seconds{{destination="{stuck}"}}', "estimated")
        return float(data["result"][0]["value"][1]), value

    at, found = wait_until(lambda: ages() if server.values("rtobs_queue_depth", "destination").get(stuck) else None)
    assert set(found) == {"false"}
    assert found["false"] == pytest.approx(at - books["stuck_since"], abs=1.5)
    wait_until(lambda: ages()[1]["false"] > found["false"] + 1.5, 15)
    assert server.values("rtobs_queue_depth", "destination", "role") == {(work, "main"): 0, (stuck, "main"): 3}
    assert server.values(f'rtobs_queue_oldest_age_seconds{{destination="{work}"}}', "role") == {"main": 0}


def test_worker_saturation(scraped):
    """Busy time, capacity time and event-loop lag are there, and capacity grows by slots a second."""
    server, _, _, (work, _) = scraped
    busy = server.values("rtobs_worker_busy_time_seconds_total", "worker")
    assert 0.2 < busy[work] < 10
    # the first rates of a series that has just appeared are too low
    query = "rate(rtobs_worker_capacity_time_seconds_total[5s])"
    wait_until(lambda: server.values(query, "worker").get(work) == pytest.approx(4, rel=0.1), 30)
    assert server.values("rtobs_eventloop_lag_seconds_count", "job")["rtobs"] > 5


def test_exemplars_point_at_exported_traces(scraped):
    """The exemplars that Prometheus stored name spans that the platform exported."""
    server, _, spans, _ = scraped
    now = time.time()

    def stored():
        return server.ask(
            "query_exemplars", query="rtobs_delivery_end_to_end_seconds_bucket", start=now - 300, end=now + 60
        )

    found = [one["labels"] for series in wait_until(stored, 15) for one in series["exemplars"]]
    assert found
    exported = {(str(trace), str(span)) for trace, span in spans}
    assert {(one["trace_id"], one["span_id"]) for one in found} <= exported
