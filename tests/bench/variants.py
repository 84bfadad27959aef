"""The rows of the benchmark: what each measures and what it is compared with; ``references`` and ``cases`` say how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.bench import cases, floor, leaves, references
from tests.bench.cases import ANOTHER_EXPORTER, OUR_PIPELINE
from tests.bench.references import Case


@dataclass(frozen=True)
class Row:
    """What a row measures and how."""

    what: str
    prepare: Callable[[], Case]
    environment: Mapping[str, str] = field(default_factory=dict)
    block: int = 100
    """Hops between two flushes."""
    base: str = "floor"
    """The row that its ratio is to."""
    over: str = ""
    """The row that it is compared with to see the price of one feature."""
    calls: int = 1
    """Call sites in one hop, where a row is about one."""
    reference: bool = False
    """Not ours: what others are compared with."""
    sink: bool = False
    """Exports to a loopback sink, which whoever runs it starts and names in the environment."""


def _ours(what: str, prepare: Callable[..., Case], **options: Any) -> Row:
    return Row(what, prepare, OUR_PIPELINE, **options)


def _feature(what: str, prepare: Callable[..., Case], *, over: str = "sampled", **options: Any) -> Row:
    return _ours(what, prepare, over=over, **options)


_KEY = b"sixteen bytes at least"
_REFERENCES = {
    "floor": Row(floor.WHAT, references.floor, reference=True),
    "floor_unsampled": Row("two bare SDK spans, not sampled", references.floor_unsampled, reference=True),
    "floor_exception": Row(
        "two bare SDK spans, the second records an exception raised 8 calls deep",
        references.floor_exception,
        reference=True,
    ),
    "floor_exported": Row(
        "two bare SDK spans, the SDK's OTLP/HTTP exporter, a loopback sink",
        references.floor_exported,
        reference=True,
        sink=True,
    ),
    "sdk_metrics": Row("1 counter + 3 histograms of the SDK, 4 labels", references.sdk_metrics, reference=True),
    "no_op": Row(
        "a no-op API span: start_span, end", partial(references.no_op, current=False), calls=2, reference=True
    ),
    "no_op_current": Row(
        "a no-op API span: start_as_current_span",
        partial(references.no_op, current=True),
        base="no_op",
        calls=2,
        reference=True,
    ),
}
_PATHS = {
    "sampled": _ours("full hop, sampled, our pipeline; encoded, thrown away where it would be sent", cases.ours),
    "converted": Row(
        "full hop, sampled, our pipeline, another exporter; converted to SDK spans, null exporter",
        cases.ours,
        ANOTHER_EXPORTER,
    ),
    "exported": Row(
        "full hop, sampled, our pipeline; encoded, sent to a loopback sink",
        cases.exported,
        base="floor_exported",
        sink=True,
    ),
    "users_provider": Row("full hop, sampled, the user's SDK TracerProvider", cases.users),
    "fallback": Row("full hop, sampled, shown as an SDK span to a processor that watches starts", cases.fallback),
    "unsampled": _ours(
        "full hop, unsampled, our pipeline: metrics, headers and log decision kept",
        partial(cases.ours, sampling={"default": 0}, spans=0),
    ),
    "users_unsampled": Row("full hop, unsampled, the user's SDK TracerProvider", cases.users_unsampled),
    "metrics": _ours(
        "metrics of a full hop, 3 counters + 3 histograms of ours", cases.metrics_alone, base="sdk_metrics"
    ),
    "disabled": Row(
        "OTEL_SDK_DISABLED=true, per call site", cases.off, {"OTEL_SDK_DISABLED": "true"}, base="no_op", calls=2
    ),
}
_CONDITIONS = {
    "exception": _ours("handler raises 8 calls deep: span, metrics, a log line", cases.failing),
    "log": _feature("healthy but slow: one log line to a handler of logging", cases.logged),
    "notes_8": _feature("8 facts of the user's on either hop", partial(cases.noting, 8)),
    "notes_20": _feature("20 facts of the user's on either hop", partial(cases.noting, 20)),
    "labels_1": _feature("one label set with a tenant", partial(cases.labelled, 1, 1)),
    "labels_1000": _feature("1,000 label sets in turn", partial(cases.labelled, 40, 25), over="labels_1", block=1000),
    "threads_4": _feature("4 threads", partial(cases.threaded, 4)),
    "tasks_1000": _feature("1,000 asyncio tasks at once, without what asyncio costs", cases.in_tasks, block=1000),
}
_FEATURES = {
    "no_headers": _feature("no headers written or read", cases.headerless),
    "no_ledger": _feature("no ledger of past steps in the headers", cases.unrecorded),
    "no_metrics": _feature("no metrics", partial(cases.without, "MetricSink")),
    "no_log": _feature("no log decision", partial(cases.without, "EventSink")),
    "no_spans": Row("no tracing in the process", partial(cases.ours, spans=0), over="sampled"),
    "decorated": _feature("decorators in place of with", cases.decorated),
    "signed": _feature("headers signed and checked (wire_key)", partial(cases.ours, wire_key=_KEY)),
    "baggage": _feature("foreign baggage carried on", cases.in_baggage),
    "tracestate": _feature(
        "foreign tracestate read", partial(cases.with_headers, {"tracestate": "vendor=00f067aa0ba902b7"})
    ),
    "stages": _feature("two stages in the consume hop", cases.staged),
    "deliver": _feature("a deliver hop inside", partial(cases.delivering, token=False)),
    "receipt_token": _feature(
        "a deliver hop that mints a receipt token, headers signed too",
        partial(cases.delivering, token=True, wire_key=_KEY),
        over="deliver",
    ),
}

_LEAVES = {f"leaf_{name}": _feature(leaf.what, leaf.prepare, base="sampled") for name, leaf in leaves.LEAVES.items()}

ROWS: dict[str, Row] = {**_REFERENCES, **_PATHS, **_CONDITIONS, **_FEATURES, **_LEAVES}
