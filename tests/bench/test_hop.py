"""The benched hop does what it says it does, so that it cannot be fast by doing less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

from tests.bench.process import ROOT, plain

PROGRAM = textwrap.dedent(
    """
    import json

    import rtobs
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from rtobs import _config
    from rtobs.integrations import memory
    from tests.bench import hop

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    described = []
    describe = memory.describe
    memory.describe = lambda native: described.append(dict(native.headers)) or describe(native)
    events = []
    rtobs.configure(service="bench", strict=True, logs=events.append, slow={"orders": 1e-9})
    hop.full()()
    spans = [
        [s.name, s.kind.name, s.context.trace_id, s.context.span_id, s.parent and s.parent.span_id, len(s.attributes)]
        for s in exporter.get_finished_spans()
    ]
    series = {snapshot.instrument.name: [snapshot.instrument.kind, len(snapshot.points)]
              for snapshot in _config._bound.registry.collect() if snapshot.points}
    print(json.dumps({"spans": spans, "described": described, "events": len(events), "series": series}))
    """
)


def test_the_benched_hop_does_all_that_it_claims():
    """It makes two spans of one trace, carries all headers through the leaf's describe, counts, and decides on logs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False,
        env=plain({"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    published, processed = told["spans"]
    assert published[:2] == ["publish orders", "PRODUCER"]
    assert processed[:2] == ["consume orders", "CONSUMER"]
    assert published[2] == processed[2]
    assert processed[4] == published[3]
    assert min(published[5], processed[5]) >= 8
    assert len(told["described"]) == 1
    assert set(told["described"][0]) == {"traceparent", "rtobs-journey", "baggage"}
    assert told["events"] == 2
    kinds = [kind for name, (kind, _) in told["series"].items() if name.startswith(("messaging.", "rtobs.message."))]
    assert kinds.count("counter") >= 3
    assert kinds.count("histogram") >= 3
