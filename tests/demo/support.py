"""Telemetry made by hand, in the protocol's own messages, and a way to run the demo as a user does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

CUMULATIVE, DELTA = 2, 1
BOUNDS = (0.1, 0.5, 1.0, 5.0)
SECOND = 1_000_000_000
_ids = itertools.count(1)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    """Return attributes as the protocol writes them."""
    found = []
    for key, value in attributes.items():
        if isinstance(value, bool):
            found.append(KeyValue(key=key, value=AnyValue(bool_value=value)))
        elif isinstance(value, int):
            found.append(KeyValue(key=key, value=AnyValue(int_value=value)))
        elif isinstance(value, float):
            found.append(KeyValue(key=key, value=AnyValue(double_value=value)))
        else:
            found.append(KeyValue(key=key, value=AnyValue(string_value=str(value))))
    return found


def counter(
    name: str, series: Sequence[tuple[Mapping[str, str], int]], *, instance: str = "one", kind: int = CUMULATIVE
):
    """Return a request with one counter."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(pairs({"service.name": "api", "service.instance.id": instance}))
    metric = resource.scope_metrics.add().metrics.add(name=name)
    metric.sum.aggregation_temporality = kind
    metric.sum.is_monotonic = True
    for labels, value in series:
        point = metric.sum.data_points.add(as_int=value)
        point.attributes.extend(pairs(labels))
    return request


def gauge(name: str, series: Sequence[tuple[Mapping[str, str], float]], *, instance: str = "one"):
    """Return a request with one gauge."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(pairs({"service.name": "api", "service.instance.id": instance}))
    metric = resource.scope_metrics.add().metrics.add(name=name)
    for labels, value in series:
        point = metric.gauge.data_points.add(as_double=value)
        point.attributes.extend(pairs(labels))
    return request


def histogram(
    name: str, series: Sequence[tuple[Mapping[str, str], Sequence[int]]], *, bounds: Sequence[float] = BOUNDS,
    instance: str = "one", kind: int = CUMULATIVE,
):  # fmt: skip
    """Return a request with one histogram."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(pairs({"service.name": "api", "service.instance.id": instance}))
    metric = resource.scope_metrics.add().metrics.add(name=name)
    metric.histogram.aggregation_temporality = kind
    for labels, counts in series:
        point = metric.histogram.data_points.add(count=sum(counts), bucket_counts=counts, explicit_bounds=bounds)
        point.attributes.extend(pairs(labels))
    return request


def span(
    hop: str, *, begin: float = 0.0, seconds: float = 0.01, parent: str = "", trace: str = "ab" * 16,
    service: str = "api",
    queue: str = "", **attributes: Any,
):  # fmt: skip
    """Return a span as keyword arguments for `spans`; attribute names are words after ``rtobs.``."""
    named = {f"rtobs.{key}": value for key, value in attributes.items()}
    if hop:
        named["rtobs.hop"] = hop
    if queue:
        named["messaging.destination.template"] = queue
    return {
        "trace": trace,
        "id": f"{next(_ids):016x}",
        "parent": parent,
        "begin": int(begin * SECOND),
        "end": int((begin + seconds) * SECOND),
        "service": service,
        "attributes": named,
    }


def spans(*made: Mapping[str, Any]) -> ExportTraceServiceRequest:
    """Return a request with these spans."""
    request = ExportTraceServiceRequest()
    for one in made:
        resource = request.resource_spans.add()
        resource.resource.attributes.extend(
            pairs({"service.name": one["service"], "service.instance.id": one["service"]})
        )
        item = resource.scope_spans.add().spans.add(name=one["attributes"].get("rtobs.hop", "x"))
        item.trace_id, item.span_id = bytes.fromhex(one["trace"]), bytes.fromhex(one["id"])
        item.parent_span_id = bytes.fromhex(one["parent"])
        item.start_time_unix_nano, item.end_time_unix_nano = one["begin"], one["end"]
        item.attributes.extend(pairs(one["attributes"]))
    return request


def logs(*events: Mapping[str, Any]) -> ExportLogsServiceRequest:
    """Return a request with these log events."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(pairs({"service.name": "api", "service.instance.id": "one"}))
    scope = resource.scope_logs.add()
    for event in events:
        record = scope.log_records.add(time_unix_nano=time.time_ns())
        record.body.string_value = event.get("event", "")
        record.attributes.extend(pairs(event))
    return request


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``rtobs`` with *arguments* and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "rtobs.cli", *arguments],
        capture_output=True, text=True, timeout=110, check=False, env=os.environ | environment,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def sabotage(folder: Path, code: str) -> dict[str, str]:
    """Return the environment in which every process of the demo runs *code* first."""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def demo(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run ``rtobs demo --json`` and return its object; it must end with 0 and print nothing else."""
    done = command("demo", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
