"""Zero code: `opentelemetry-instrument python app.py`, where app.py knows nothing of rtobs, on live brokers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import rtobs
from tests._export.scripted import Collector
from tests.integrations.kafka_support import kafka_address
from tests.support.scripts import environment

APPS = Path(__file__).parent / "zero_code"
CLI = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
RTOBS = Path(rtobs.__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
__all__ = ["kafka_address"]


class Seen(NamedTuple):
    """A span that left the application."""

    scope: str
    kind: str
    trace: str
    attributes: dict[str, str]
    links: frozenset[str]


def spans(collector: Collector) -> list[Seen]:
    found = []
    for request in list(collector.requests):
        if not request.path.endswith("traces"):
            continue
        for group in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    attributes = {one.key: one.value.string_value for one in span.attributes}
                    kind = attributes.get("rtobs.hop", "")
                    links = frozenset(link.trace_id.hex() for link in span.links)
                    found.append(Seen(scope.scope.name, kind, span.trace_id.hex(), attributes, links))
    return found


def run(app: str, *arguments: str, collector: Collector | None = None, **variables: str) -> Any:
    if collector is not None:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
        variables["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    return subprocess.run(
        [CLI, sys.executable, str(APPS / f"{app}_app.py"), *arguments],
        env=environment(**{"PYTHONWARNINGS": "default", **variables}),
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


WHERE = {
    "aio_pika": "amqp_url", "nats": "nats_url", "paho": "mqtt_url", "redis": "redis_url", "kafka": "kafka_address",
    "flask": "nats_url",
}  # fmt: skip
"""Application -> the fixture that knows its broker."""


@pytest.fixture(params=WHERE)
def hops(request, unique) -> Any:
    """The name of an application, and the hops that left it, by kind; each must have come once."""
    app = request.param
    with Collector() as collector:
        done = run(app, request.getfixturevalue(WHERE[app]), unique(app), collector=collector)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        found = [span for span in spans(collector) if span.kind]
    assert len({span.kind for span in found}) == len(found)
    return app, {span.kind: span for span in found}


def test_an_application_without_a_line_of_ours_has_one_hop_on_either_side(hops):
    """Also beside contrib's instrumentation a message is one publish and one consume hop, which belong together."""
    app, found = hops
    # Where a client has no callback, what was received is linked to: only the application knows what its handling is.
    other = {"redis": "receive", "kafka": "receive", "flask": "accept"}.get(app, "consume")
    assert found.keys() == {"publish", other}
    sent, seen = found["publish"], found[other]
    if other == "receive" or app == "paho":  # MQTT's publishers are not trusted
        assert seen.links == {sent.trace}
    else:
        assert (seen.trace, seen.attributes["rtobs.correlation_id"]) == (
            sent.trace, sent.attributes["rtobs.correlation_id"],
        )  # fmt: skip


@pytest.mark.parametrize("error", ["raise RuntimeError", "raise ImportError", "def", "import no_such_module"])
def test_an_application_runs_although_the_whole_of_rtobs_cannot_be_imported(error, nats_url, unique, tmp_path):
    """Whatever is wrong with the package, an instrumented application does what it does."""
    (tmp_path / "rtobs").mkdir()
    (tmp_path / "rtobs" / "__init__.py").write_text(error)
    done = run("nats", nats_url, unique("nats"), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_an_application_runs_although_a_leaf_cannot_be_imported(nats_url, unique, tmp_path):
    """A leaf that fails costs the application nothing but its telemetry."""
    shutil.copytree(RTOBS, tmp_path / "rtobs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "rtobs" / "integrations" / "nats.py").write_text("raise RuntimeError")
    with Collector() as collector:
        done = run("nats", nats_url, unique("nats"), collector=collector, PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert [span for span in spans(collector) if span.kind] == []
