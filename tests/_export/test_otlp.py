"""Telemetry over a real wire: an app in one process, a collector in another, parsed by opentelemetry-proto."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rtobs import _conventions as names
from rtobs._conventions import REQUIRED_LOG_KEYS
from tests._export.collector import Collected, collector, plain
from tests.support import scripts
from tests.support.timing import SCALE

APP = str(Path(__file__).with_name("app.py"))
CUMULATIVE, DELTA = 2, 1


def run_app(endpoint: str, *arguments: str, **variables: str) -> dict[str, Any]:
    """Run the app against a collector; return what it knows of itself."""
    environment = scripts.environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_RESOURCE_ATTRIBUTES="service.name=orders",
        PYTHONPATH=os.pathsep.join((str(scripts.ROOT), os.environ.get("PYTHONPATH", ""))), **variables,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, APP, *arguments], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def values(metric: Any, *labels: str) -> dict[Any, float]:
    """Return a metric's values, or numbers of measurements, by some of its labels."""
    found: Counter[Any] = Counter()
    data = metric.histogram if metric.HasField("histogram") else metric.sum
    for point in data.data_points:
        attributes = plain(point.attributes)
        key = tuple(attributes.get(label, "") for label in labels)
        amount = point.count if metric.HasField("histogram") else point.as_double or point.as_int
        found[key if len(key) != 1 else key[0]] += amount
    return dict(found)


@pytest.fixture(scope="module", params=["http", "grpc"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Collected]:
    """One run of the app, over each protocol: what it knows, and what arrived."""
    path = tmp_path_factory.mktemp("otlp") / request.param
    with collector(request.param, path) as arrived:
        protocol = {"http": "http/protobuf", "grpc": "grpc"}[request.param]
        found = run_app(arrived.endpoint, "whole", OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert found["done"] is True
    assert found["dropped"] == {}
    return found, arrived


def test_metric_totals_equal_the_apps_own_counts(story: tuple[dict[str, Any], Collected]) -> None:
    """Every message, intent, attempt and outcome arrives, neither more nor less."""
    truth, metrics = story[0]["truth"], story[1].metrics()[-1]
    assert values(metrics["rtobs.accept.duration"], "route", "outcome") == {("/orders", "ok"): truth["accepted"]}
    assert values(metrics["messaging.client.sent.messages"]) == {(): truth["sent"]}
    assert values(metrics["messaging.client.consumed.messages"]) == {(): truth["consumed"]}
    assert values(metrics["rtobs.delivery.intents"], "tenant", "region") == {
        ("acme", "eu"): truth["intents"] / 2, ("zenith", "eu"): truth["intents"] / 2,
    }  # fmt: skip
    assert values(metrics["rtobs.delivery.attempts"], "result") == {"ok": truth["ok"], "failed": truth["failed"]}
    assert values(metrics["rtobs.delivery.outcomes"], "outcome") == {"ok": truth["ok"], "failed": truth["failed"]}
    assert values(metrics["rtobs.delivery.end_to_end"], "channel", "step") == {("webhook", "delivered"): truth["ok"]}
    assert values(metrics["rtobs.stage.duration"], "stage") == {"invoke": truth["stages"]}
    assert values(metrics["rtobs.message.lag"], "lag_source") == {"producer": truth["consumed"]}


def test_metrics_have_the_units_bounds_and_kind_that_conventions_say(
    story: tuple[dict[str, Any], Collected],
) -> None:
    """Histograms are in seconds with our bounds, counters monotonic, both cumulative from one start."""
    for metrics in story[1].metrics():
        starts = set()
        for name, metric in metrics.items():
            known = names.INSTRUMENTS[name]
            assert (metric.unit, metric.description) == (known.unit, known.description)
            if known.kind == "histogram":
                assert metric.histogram.aggregation_temporality == CUMULATIVE
                for point in metric.histogram.data_points:
                    assert tuple(point.explicit_bounds) == known.bounds
                    assert sum(point.bucket_counts) == point.count
                    starts.add(point.start_time_unix_nano)
            elif known.kind == "counter":
                assert metric.sum.is_monotonic
                assert metric.sum.aggregation_temporality == CUMULATIVE
                starts |= {point.start_time_unix_nano for point in metric.sum.data_points}
            else:
                assert metric.HasField("gauge")
        assert len(starts) == 1
    for request in story[1].requests("metrics"):
        assert [scope.scope.name for group in request.resource_metrics for scope in group.scope_metrics] == ["rtobs"]


def test_every_span_arrives_with_its_parent_and_its_journeys_name(story: tuple[dict[str, Any], Collected]) -> None:
    """Hops, stages and the neighbour's spans form one tree per message, under the id it was given when accepted."""
    truth, spans = story[0]["truth"], story[1].spans()
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    assert Counter(span.name for span in spans) == {
        "accept /orders": truth["accepted"], "publish orders": truth["sent"], "consume orders": truth["consumed"],
        "receive orders": truth["consumed"], "deliver webhook crm": truth["consumed"], "invoke": truth["stages"],
        "query": truth["neighbours"],
    }  # fmt: skip
    parents = {
        "accept /orders": "", "publish orders": "accept /orders", "consume orders": "publish orders",
        "invoke": "consume orders", "query": "invoke", "deliver webhook crm": "consume orders", "receive orders": "",
    }  # fmt: skip
    for span in spans:
        parent = by_id[span.parent_span_id].name if span.parent_span_id else ""
        assert parent == parents[span.name]
    traces = {span.trace_id.hex() for span in spans if span.name != "receive orders"}
    assert traces == set(story[0]["cids"])


def test_exemplars_point_at_exported_spans(story: tuple[dict[str, Any], Collected]) -> None:
    """Each exemplar names a span that arrived, and lies in the bucket it is an example for."""
    exported = {(span.trace_id, span.span_id) for span in story[1].spans()}
    exemplars = [
        (point, exemplar)
        for metric in story[1].metrics()[-1].values()
        for point in metric.histogram.data_points
        for exemplar in point.exemplars
    ]
    assert len(exemplars) >= 8
    for point, exemplar in exemplars:
        assert (exemplar.trace_id, exemplar.span_id) in exported
        assert 0 <= exemplar.as_double <= point.sum
        assert point.start_time_unix_nano <= exemplar.time_unix_nano <= point.time_unix_nano


def test_failed_hops_arrive_as_log_records(story: tuple[dict[str, Any], Collected]) -> None:
    """Each failure is told once by its attempt and once by its message, with every key and its span's ids."""
    truth, records = story[0]["truth"], story[1].logs()
    assert Counter(record.event_name for record in records) == {
        "deliver.failed": truth["failed"], "consume.failed": truth["failed"],
    }  # fmt: skip
    spans = {span.span_id: span for span in story[1].spans()}
    for record in records:
        fields = plain(record.attributes)
        assert set(REQUIRED_LOG_KEYS) <= set(fields)
        assert fields["tenant_id"] in ("acme", "zenith")
        assert fields["error_category"] == "transport"
        assert fields["trace_id"] == record.trace_id.hex() == fields["correlation_id"]
        assert spans[record.span_id].trace_id == record.trace_id
        assert record.severity_text == "WARNING"
        assert record.time_unix_nano > 0


def test_one_resource_names_service_and_instance(story: tuple[dict[str, Any], Collected]) -> None:
    """Spans, metrics and logs come from one resource that says which service and which process of it."""
    (resource,) = story[1].resources()
    assert resource["service.name"] == "orders"
    assert len(resource["service.instance.id"]) == 36


# Temporality ---------------------------------------------------------------------------------------------------------

PARTS = 100
"""Messages of the app's four parts together."""


def test_cumulative_series_grow_from_one_start(tmp_path: Path) -> None:
    """By default each export has the totals since the start; a failed one costs nothing."""
    with collector("http", tmp_path / "otlp", "refuse:metrics:1") as arrived:
        found = run_app(arrived.endpoint, "parts")
    totals = [values(metrics["messaging.client.sent.messages"])[()] for metrics in arrived.metrics()]
    assert totals == [30, 60, PARTS, PARTS]
    starts = {
        point.start_time_unix_nano
        for metrics in arrived.metrics()
        for point in metrics["messaging.client.sent.messages"].sum.data_points
    }
    assert len(starts) == 1
    assert found["dropped"] == {"metrics/rejected": 1}
    assert values(arrived.metrics()[-1]["rtobs.telemetry.dropped"], "signal", "reason") == {("metrics", "rejected"): 1}


def test_delta_reports_each_measurement_once(tmp_path: Path) -> None:
    """With delta preferred, intervals follow each other without gap, and a failed export is repeated in the next."""
    with collector("http", tmp_path / "otlp", "refuse:metrics:1") as arrived:
        run_app(arrived.endpoint, "parts", OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta")
    exports = arrived.metrics()
    sent = [values(metrics["messaging.client.sent.messages"])[()] for metrics in exports]
    assert sent == [30, 30, 40, 0]
    assert sum(values(metrics["rtobs.delivery.end_to_end"])[()] for metrics in exports) == PARTS * 4 / 5
    ends: dict[Any, int] = {}
    for metrics in exports:
        for name in ("messaging.client.sent.messages", "rtobs.delivery.end_to_end"):
            data = metrics[name].histogram if metrics[name].HasField("histogram") else metrics[name].sum
            assert data.aggregation_temporality == DELTA
            for point in data.data_points:
                series = name, tuple(sorted(plain(point.attributes).items()))
                assert point.start_time_unix_nano == ends.get(series, point.start_time_unix_nano)
                ends[series] = point.time_unix_nano
    exemplars = [
        (exemplar.span_id, exemplar.time_unix_nano)
        for metrics in exports
        for point in metrics["rtobs.delivery.end_to_end"].histogram.data_points
        for exemplar in point.exemplars
    ]
    assert len(exemplars) == len(set(exemplars)) > 0


# What is not exported ------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("state", ["refused", "hanging"])
def test_shutdown_keeps_its_timeout_and_counts_what_is_left(tmp_path: Path, state: str, protocol: str) -> None:
    """With a collector that refuses or never answers, shutdown returns in time and every span is accounted for."""
    with collector("hang", tmp_path / "otlp") as arrived:
        endpoint = arrived.endpoint if state == "hanging" else f"http://127.0.0.1:{closed_port()}"
        found = run_app(
            endpoint, "end", "2000", "1.0", OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_BSP_SCHEDULE_DELAY="100"
        )
    assert found["done"] is False
    assert found["took"] < 1.0 + 0.5 * max(1.0, SCALE)
    assert found["again"] < 0.1
    spans = {reason: count for reason, count in found["dropped"].items() if reason.startswith("spans/")}
    assert sum(spans.values()) == found["truth"]["accepted"] == 2003
    assert spans.keys() <= {"spans/unanswered", "spans/shutdown", "spans/export_failed"}
    assert spans["spans/shutdown"] >= 3


def test_a_full_queue_drops_the_newest_and_counts_them(tmp_path: Path) -> None:
    """What does not fit while nobody answers is counted as such; nothing is lost without a reason."""
    with collector("hang", tmp_path / "otlp") as arrived:
        found = run_app(arrived.endpoint, "end", "6000", "0.2", OTEL_METRICS_EXPORTER="none")
    assert sum(found["dropped"].values()) == found["truth"]["accepted"] == 6003
    assert 6003 - 4096 - 3 - 512 <= found["dropped"]["spans/queue_full"] <= 6003 - 4096


def test_a_batch_that_is_refused_once_is_sent_in_halves(tmp_path: Path) -> None:
    """What a collector refuses is taken apart; as it takes the halves, nothing is lost, and no other signal sees it."""
    with collector("http", tmp_path / "otlp", "refuse:traces:1") as arrived:
        found = run_app(arrived.endpoint, "parts")
    assert found["dropped"] == {}
    assert len(arrived.spans()) == PARTS * 7
    assert len(arrived.logs()) == 2 * PARTS / 5


def test_a_neighbours_span_that_cannot_be_encoded_does_not_cost_its_batch(tmp_path: Path) -> None:
    """A span whose name is no text is left out, counted; the whole batch would be lost otherwise."""
    with collector("http", tmp_path / "otlp") as arrived:
        found = run_app(arrived.endpoint, "poison")
    assert found["dropped"] == {"spans/encode": 2}
    assert len(arrived.spans()) == 5 * 7


@pytest.mark.parametrize(
    ("variables", "spans", "metrics", "logs"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "failed", True, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, "", True, True),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, "all", False, False),
    ],
    ids=["sampler", "no traces", "no metrics and logs"],
)
def test_the_environment_decides_what_leaves(
    tmp_path: Path, variables: dict[str, str], spans: str, metrics: bool, logs: bool
) -> None:
    """OTEL_TRACES_SAMPLER is the head's decision (failures are still kept); an exporter set to none sends nothing."""
    with collector("http", tmp_path / "otlp") as arrived:
        found = run_app(arrived.endpoint, "whole", **variables)
    kept = {"failed": found["truth"]["failed"], "all": found["truth"]["consumed"], "": 0}[spans]
    assert sum(span.name == "deliver webhook crm" for span in arrived.spans()) == kept
    assert bool(arrived.metrics()) == metrics
    assert bool(arrived.logs()) == logs
    exported = {span.span_id for span in arrived.spans()}
    for metric in arrived.metrics()[-1:]:
        for one in metric.values():
            for point in one.histogram.data_points:
                assert all(exemplar.span_id in exported for exemplar in point.exemplars)
