"""What watching costs: the formula, its bounds, and how close it comes to what the demo really exports."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs import _conventions as names
from rtobs.demo.options import CHANNELS
from rtobs.demo.world import REGIONS, SOURCES, TENANTS
from rtobs.readiness import importing
from rtobs.readiness.code import Code, Operation, Place
from rtobs.readiness.cost import BYTES_PER_SAMPLE, BYTES_PER_SPAN, COUNTED, MONTH, reckon, table
from rtobs.slo import project
from tests._export.collector import collector
from tests._telemetry.test_series import _prometheus_series
from tests.demo.support import demo
from tests.incident.support import rtobs
from tests.slo.support import EXAMPLE, needs_promtool, promtool

AT = Place("shop.py", 1, 1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run of the demo in one process: its Prometheus series by instrument, its spans, and their bytes."""
    series, spans, size = Counter(), 0, 0
    with collector("http", tmp_path_factory.mktemp("otlp") / "otlp") as collected:
        demo("--seconds", "5", "--otlp", collected.endpoint)
    for export in collected.requests("metrics"):
        for metric in (m for group in export.resource_metrics for scope in group.scope_metrics for m in scope.metrics):
            points = getattr(metric, metric.WhichOneof("data")).data_points
            series[metric.name] = max(series[metric.name], sum(map(_prometheus_series, points)))
    for export in collected.requests("traces"):
        size += export.ByteSize()
        spans += sum(len(scope.spans) for group in export.resource_spans for scope in group.scope_spans)
    return series, spans, size


@pytest.mark.slow
@pytest.mark.timeout(180)  # a run of the demo, on whatever machine
def test_series_agree_with_what_the_demo_exports(ran, capsys):
    """The estimate of series is no less than what the demo really has, and no more than twice as much."""
    given = {
        "channel": len(CHANNELS), "provider": len(CHANNELS), "destination": 1 + len(CHANNELS), "route": 1, "step": 2,
        "tenant": len(TENANTS), "region": len(REGIONS), "source": len({*SOURCES.values(), "app"}),
    }  # fmt: skip
    cost = reckon(importing.find(["rtobs.demo.roles"])[0], None, given)
    real = ran[0].total()
    with capsys.disabled():
        print(
            f"\ndemo: {real} Prometheus series in one process, {cost.series} reckoned ({cost.series / real:.2f} times)"
        )
    assert real <= cost.series <= 2 * real
    reckoned = {line.instrument for line in cost.lines}
    assert {name for name, count in ran[0].items() if count > 20} <= reckoned  # nothing that matters is forgotten


@pytest.mark.slow
@pytest.mark.timeout(180)  # a run of the demo, on whatever machine
def test_spans_are_as_large_as_they_are_said_to_be(ran, capsys):
    """A span of the demo, as it is sent, has the bytes that are reckoned with, to a quarter."""
    _, spans, size = ran
    with capsys.disabled():
        print(f"\ndemo: {size / spans:.0f} bytes a span, {BYTES_PER_SPAN} reckoned")
    assert abs(size / spans / BYTES_PER_SPAN - 1) < 0.25


@needs_promtool
def test_samples_are_as_large_as_they_are_said_to_be(tmp_path, capsys):
    """What Prometheus keeps on disk of a sample under steady traffic is what is reckoned with, to a factor of two."""
    luck, moments = random.Random(1), range(1_800_000_000, 1_800_000_000 + 7200, 15)
    lines = []
    for number in range(100):
        total = 0
        for at in moments:
            total += luck.choice([0, 0, 0, 1, 1, 2, 5]) if number % 3 else 0  # a third of the series stand still
            lines.append(f'x_total{{n="{number}"}} {total} {at}')
    (tmp_path / "x.txt").write_text("\n".join([*lines, "# EOF", ""]))
    content, said = promtool("tsdb", "create-blocks-from", "openmetrics", "x.txt", "data", cwd=tmp_path)
    assert content, said
    size = sum(path.stat().st_size for path in (tmp_path / "data").rglob("chunks/*"))
    each = size / len(lines)
    with capsys.disabled():
        print(f"\nPrometheus: {each:.2f} bytes a sample, {BYTES_PER_SAMPLE} reckoned")
    assert BYTES_PER_SAMPLE / 2 < each < BYTES_PER_SAMPLE * 2


def line(cost, instrument):
    return next((found for found in cost.lines if found.instrument == instrument.name), None)


def test_the_formula():
    """Series are combinations of labels times a histogram's bounds; bytes are series, samples and their size."""
    operations = (
        Operation("accept", "/a", AT), Operation("accept", "/b", AT), Operation("deliver", "push", AT, provider="fcm"),
        Operation("stage", "s", AT),
    )  # fmt: skip
    cost = reckon(Code((), operations), None, {"tenant": 3}, processes=2, interval=30, rate=10, head=0.1)
    assert line(cost, names.ACCEPT_DURATION)[1:] == (4, 17)
    assert line(cost, names.STAGE_DURATION).series == 2 * 17
    assert line(cost, names.INTENTS).series == 3
    assert line(cost, names.OUTCOMES).series == 1 * 3 * 2
    assert line(cost, names.MESSAGE_SETTLED) is None
    assert cost.series == 2 * sum(one.series for one in cost.lines)
    assert cost.metric_bytes == cost.series * MONTH / 30 * BYTES_PER_SAMPLE
    assert (cost.spans, cost.span_bytes) == (4, 4 * 10 * 0.1 * MONTH * BYTES_PER_SPAN)
    assert cost.assumed == ()


def test_promises_cost_series_of_their_own():
    """Declared SLOs count by tenant and group, where the code gives them to configure."""
    code = Code((), (Operation("deliver", "push", AT, provider="fcm"),), frozenset({"configure(slos)"}))
    declaration = project.load(EXAMPLE).declaration
    cost = reckon(code, declaration, {})
    tenants = 4  # three declared ones, and all others
    assert cost.counts["channel"] == 3
    assert line(cost, names.SLO_EXPECTED).series == tenants * (1 + 3 + 2 + 1)
    assert line(reckon(Code((), code.operations), declaration, {}), names.SLO_EXPECTED) is None


def test_computed_names_are_assumed_and_said():
    """Where a name is computed a number is assumed, and told, unless it is given."""
    code = Code((), (Operation("consume", "", AT), Operation("deliver", "", AT)))
    cost = reckon(code, None, {})
    assert cost.assumed == ("channel", "destination", "provider")
    assert (cost.counts["destination"], cost.counts["channel"], cost.counts["provider"]) == (5, 5, 5)
    assert any("assumed, because names are computed: channel, destination, provider" in one for one in table(cost))
    assert reckon(code, None, {"channel": 2, "provider": 2, "destination": 2}).assumed == ()


@given(st.dictionaries(st.sampled_from([str(label) for label in COUNTED]), st.integers(0, 100_000)), st.integers(1, 50))
def test_no_process_is_reckoned_with_more_than_it_may_have(values, processes):
    """However many names there are, no instrument exceeds its share and no process its 10,000 series."""
    kinds = ("accept", "publish", "consume", "deliver", "job", "stage")
    cost = reckon(Code((), tuple(Operation(kind, "", AT) for kind in kinds)), None, values, processes=processes)
    assert 0 < cost.series <= 10_000 * processes
    for one in cost.lines:
        if one.instrument in names.INSTRUMENTS:
            assert one.combinations <= names.INSTRUMENTS[one.instrument].series


def test_the_command_prints_the_cost(tmp_path):
    """With --cost the command prints series and bytes, and has them in its JSON; without it does not."""
    command = ["check", "rtobs.demo.roles", "--slo", EXAMPLE]
    _, out, _ = rtobs(*command, "--cost", "--values", "channel=5,provider=5", "--processes", "3", cwd=tmp_path)
    assert " series in 3 processes, each at most 10,000\n" in out
    assert " a month in Prometheus\n" in out
    assert "assumed, because names are computed: destination, route, step; say how many with --values\n" in out
    _, out, _ = rtobs(*command, "--cost", "--json", "--rate", "0", cwd=tmp_path)
    cost = json.loads(out)["cost"]
    assert cost["series"] == sum(one["series"] for one in cost["lines"])
    assert cost["span_bytes"] == 0
    assert json.loads(rtobs(*command, "--json", cwd=tmp_path)[1])["cost"] is None
