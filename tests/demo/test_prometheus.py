"""A real Prometheus scrapes a running demo; its answers are compared with the summary and with the providers' books."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from bisect import bisect_left
from math import ceil
from typing import Any, NamedTuple

import pytest

from rtobs._conventions import END_TO_END
from rtobs._journey.outcome import proven_step
from rtobs.demo.options import Options
from rtobs.demo.providers import TRUTH
from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Telemetry
from tests.support.prometheus import OwnPrometheus, binary
from tests.support.timing import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binary() is None, reason="Prometheus is not installed; run `make brokers` on Debian or Ubuntu"),
]

EVER = "[10m]"
"""How far back a query looks: the demo has ended by then, and instant values go with it."""


def free_ports(number: int) -> list[int]:
    """Return that many ports in a row on which nobody listens."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000):
        found = range(first, first + number)
        try:
            for port in found:
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return list(found)
    raise OSError("no free ports in a row")


class Scraped(NamedTuple):
    """One run with a slow consumer, over."""

    server: OwnPrometheus
    ports: list[int]
    run: dict[str, Any]
    """Its summary."""
    told: str
    """What it wrote to standard error."""
    books: list[list[str]]
    """What the providers wrote down: correlation id, channel, verdict, process, time."""
    spans: set[tuple[str, str]]
    """What it exported: trace ids and span ids."""


@pytest.fixture(scope="module")
def scraped(redis_url, tmp_path_factory):
    """A run that Prometheus has scraped from its start to its end, and everything else that is known of it."""
    folder = tmp_path_factory.mktemp("prometheus")
    ports = free_ports(len(Options(broker=redis_url).roles))
    spans = set()
    store = Telemetry(lambda span: spans.add((span.trace_id, span.span_id)))
    command = [sys.executable, "-m", "rtobs.cli", "demo", "--json", "--fault", "slow-consumer", "--seconds", "6"]
    with Receiver(store) as copy, OwnPrometheus(folder, *ports, interval="200ms") as server:
        command += ["--broker", redis_url, "--prometheus", str(ports[0]), "--otlp", copy.endpoint]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {TRUTH: f"{folder}/truth"},
        ) as running:
            wait_until(
                lambda: running.poll() is None and sum(server.values("up", "instance").values()) == len(ports), 40
            )
            out, err = running.communicate(timeout=60)
        assert running.returncode == 0, err
        books = [line.split() for line in (folder / "truth").read_text(encoding="ascii").splitlines()]
        yield Scraped(server, ports, json.loads(out), err, books, spans)


@pytest.mark.timeout(120)  # waits for the run
def test_every_process_is_scraped(scraped):
    """Each process has a port, which is told at the start and in the summary, and is scraped there."""
    addresses = [f"http://127.0.0.1:{port}/metrics" for port in scraped.ports]
    assert [one["metrics"] for one in scraped.run["processes"]] == addresses
    first, *lines = scraped.told.splitlines()
    assert "Prometheus can scrape" in first
    assert [line.split()[0] for line in lines] == addresses
    assert [line.split()[1] for line in lines] == [one["role"] for one in scraped.run["processes"]]
    up = scraped.server.values(f"max_over_time(up{EVER})", "instance")
    assert up == {f"127.0.0.1:{port}": 1 for port in scraped.ports}


def test_delivery_success_by_channel(scraped):
    """Prometheus counts each outcome of each channel as the demo and the providers do, exactly."""
    query = f"sum by (channel, step, outcome) (last_over_time(rtobs_delivery_outcomes_total{EVER}))"
    found: dict[str, dict[str, float]] = {}
    for (channel, step, outcome), count in scraped.server.values(query, "channel", "step", "outcome").items():
        if count and step == proven_step(channel):
            found.setdefault(channel, {})[outcome] = count
    assert found == {name: channel["outcomes"] for name, channel in scraped.run["channels"].items()}
    for channel, outcomes in found.items():
        took = {journey for journey, its, verdict, *_ in scraped.books if (its, verdict) == (channel, "took")}
        assert outcomes["ok"] == len(took) > 20


def test_p95_end_to_end(scraped):
    """The 95th percentile that Prometheus computes is the demo's, and in the bucket of the true one or next to it."""
    query = (
        "histogram_quantile(0.95, sum by (channel, step, le) "
        f"(last_over_time(rtobs_delivery_end_to_end_seconds_bucket{EVER})))"
    )
    found = scraped.server.values(query, "channel", "step")
    for channel, told in scraped.run["channels"].items():
        p95 = found[channel, proven_step(channel)]
        assert p95 == pytest.approx(told["p95_seconds"], rel=1e-3)
        # a journey's name begins with the millisecond of its creation; the providers write when they took it
        ages = sorted(
            float(moment) - int(journey[:12], 16) / 1000
            for journey, its, verdict, _, moment in scraped.books
            if (its, verdict) == (channel, "took")
        )
        place = bisect_left(END_TO_END.bounds, ages[ceil(0.95 * len(ages)) - 1])
        assert (0.0, 0.0, *END_TO_END.bounds)[place] <= p95 <= (*END_TO_END.bounds, float("inf"))[place + 1], channel
    assert found["ticket", "delivered"] > 1


def test_queue_age_and_saturation(scraped):
    """The slow consumer's queue is as old as its messages have waited and its worker is full; the others are not."""
    query = f"max by (destination, estimated) (max_over_time(rtobs_queue_oldest_age_seconds{EVER}))"
    ages = {
        destination.partition(".")[2]: seconds
        for (destination, estimated), seconds in scraped.server.values(query, "destination", "estimated").items()
        if estimated == "false"
    }
    queues = scraped.run["queues"]
    assert set(ages) == set(queues)
    waited = scraped.run["channels"]["ticket"]["longest_wait_seconds"]
    assert waited > 2
    assert ages["deliver.ticket"] == pytest.approx(waited, abs=1.5)
    assert ages["deliver.ticket"] == pytest.approx(queues["deliver.ticket"]["oldest_age_seconds"], abs=1.0)

    share = (
        f"sum by (worker) (last_over_time(rtobs_worker_busy_time_seconds_total{EVER}))"
        f" / sum by (worker) (last_over_time(rtobs_worker_capacity_time_seconds_total{EVER}))"
    )
    busy = {worker.partition(".")[2]: value for worker, value in scraped.server.values(share, "worker").items()}
    assert set(busy) == set(queues)
    assert busy["deliver.ticket"] > 0.5 > max(value for worker, value in busy.items() if worker != "deliver.ticket")
    assert {worker: pytest.approx(value, abs=0.1) for worker, value in busy.items()} == {
        worker: queue["busy"] for worker, queue in queues.items()
    }


def test_exemplars_point_at_exported_traces(scraped):
    """The exemplars that Prometheus stored name spans that the demo exported."""
    now = time.time()
    stored = scraped.server.ask(
        "query_exemplars", query="rtobs_delivery_end_to_end_seconds_bucket", start=now - 600, end=now + 60
    )
    found = {(one["labels"]["trace_id"], one["labels"]["span_id"]) for series in stored for one in series["exemplars"]}
    assert len(found) > 5
    assert found <= scraped.spans
