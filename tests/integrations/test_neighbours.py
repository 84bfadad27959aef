"""Beside ddtrace and Sentry: one hop of ours a side, their spans as without us, both ones' headers, no exception."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integrations import neighbours_app
from tests.integrations.kafka_support import kafka_address
from tests.support.scripts import ROOT, environment

__all__ = ["kafka_address"]

PACKAGES = ("ddtrace>=4.16,<5", "sentry-sdk>=2.75,<3")
HEADERS = {"ddtrace": "x-datadog-trace-id", "sentry": "sentry-trace"}
"""What each writes into requests."""
POLLS = "kafka.consume"
"""A span of ddtrace's for each time that a consumer is asked; how often that is depends on the cluster."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the other tracers, and this environment's packages behind them.

    They are no part of this environment: to have ddtrace installed changes how pytest starts.
    """
    folder = tmp_path_factory.mktemp("neighbours") / "env"
    uv = Path(sys.executable).with_name("uv")
    found = str(folder / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(uv), "pip", "install", "--python", found] if uv.exists() else [found, "-m", "pip", "install"]
    subprocess.run([*install, "--quiet", *PACKAGES], check=True, timeout=150)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "rest.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT / 'src'}\n")
    return found


@pytest.fixture(scope="module")
def ran(python: str, kafka_address: str, redis_url: str) -> Any:
    """A function that runs the application beside a tracer, once each."""
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def run(tracer: str, how: str) -> dict[str, Any]:
        if (tracer, how) not in known:
            done = subprocess.run(
                [python, "-m", neighbours_app.__name__, tracer, how],
                env=environment(KAFKA=kafka_address, REDIS=redis_url, PYTHONWARNINGS="default"),
                cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            known[tracer, how] = json.loads(done.stdout.splitlines()[-1])
        return known[tracer, how]

    return run


TRACERS = pytest.mark.parametrize("tracer", ["ddtrace", "sentry"])


@TRACERS
def test_every_message_is_one_hop_a_side_of_one_journey(ran, tracer):
    """By Kafka, Redis Streams and Celery each message is sent and handled once, under one correlation id."""
    found = ran(tracer, "with")
    assert found["arrived"] == dict.fromkeys(("kafka", "redis", "celery"), found["sent"])
    hops = Counter(found["hops"])
    del hops["receive"]
    assert hops == {"accept": 1, "publish": 3, "consume": 3, "deliver": 1}
    assert found["errors"] == 0
    assert found["value"] == "x"


@TRACERS
def test_their_spans_are_those_that_they_make_without_us(ran, tracer):
    """The other tracer finishes the same spans, as often, as beside an application whose clients are not wrapped."""
    with_us, without = (Counter(ran(tracer, how)["theirs"]) for how in ("with", "without"))
    for found in (with_us, without):
        assert found
        del found[POLLS]
    assert with_us == without


@TRACERS
def test_both_write_their_headers(ran, tracer):
    """A request has the tracer's header and ours; so has a Kafka record, where the tracer writes into these."""
    found, plain = ran(tracer, "with"), ran(tracer, "without")
    assert {HEADERS[tracer], "traceparent", "rtobs-journey"} <= {*found["posted"]}
    assert HEADERS[tracer] in plain["posted"]
    assert "rtobs-journey" not in plain["posted"]
    assert "rtobs-journey" in found["written"]
    if tracer == "ddtrace":
        assert HEADERS[tracer] in found["written"]
        assert HEADERS[tracer] in plain["written"]
