"""Scraping: what a Prometheus server would read from prometheus_client's registry."""

from __future__ import annotations

import multiprocessing
import socket
import sys
import urllib.request
from collections import defaultdict
from itertools import pairwise

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import rtobs
from rtobs import _conventions as names
from rtobs.errors import ConfigError
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry


@pytest.fixture
def scraped(monkeypatch):
    """Rtobs configured for Prometheus, as the environment says it."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    found = support.start()
    yield found
    monkeypatch.undo()
    support.stop()


def _page():
    """What a scrape would bring, parsed: family name -> family."""
    text = generate_latest(REGISTRY).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def _total(family, suffix="", **labels):
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    )


@rtobs.deliver("sms", "twilio")
def _deliver(*, fail: bool) -> None:
    if fail:
        raise TimeoutError


def _work(good, bad):
    for number in range(good + bad):
        with rtobs.accept("/notify"):
            try:
                _deliver(fail=number >= good)
            except TimeoutError:
                continue


def test_counts_are_those_of_the_program(scraped: Telemetry) -> None:
    """A scrape shows each count once, under the name and labels of `_conventions`, with the scope beside them."""
    _work(good=5, bad=2)
    page = _page()
    outcomes = page[names.prometheus_name(names.OUTCOMES).removesuffix("_total")]
    assert outcomes.type == "counter"
    assert _total(outcomes, "_total", channel="sms", outcome="ok", step="accepted") == 5
    assert _total(outcomes, "_total", channel="sms", outcome="failed") == 2
    wanted = {names.prometheus_label(label) for label in names.OUTCOMES.labels} | {"otel_scope_name"}
    assert all(set(sample.labels) == wanted for sample in outcomes.samples)
    assert {sample.labels["otel_scope_name"] for sample in outcomes.samples} == {names.SCOPE}


def test_histograms_are_cumulative(scraped: Telemetry) -> None:
    """A histogram's buckets rise to its count, which is the number of measurements, and its sum is theirs."""
    _work(good=6, bad=0)
    duration = _page()[names.prometheus_name(names.ACCEPT_DURATION)]
    buckets = [sample.value for sample in duration.samples if sample.name.endswith("_bucket")]
    assert len(buckets) == len(names.ACCEPT_DURATION.bounds) + 1
    assert buckets == sorted(buckets)
    assert buckets[-1] == _total(duration, "_count") == 6
    assert _total(duration, "_sum") == pytest.approx(scraped.seconds(names.ACCEPT_DURATION))


def test_every_instrument_has_the_name_it_has_by_otlp(scraped: Telemetry) -> None:
    """The page has whatever was measured, under the one name that `_conventions` gives it, and nothing else of ours."""
    _work(good=1, bad=1)
    shown = {
        sample.name
        for family in _page().values()
        for sample in family.samples
        if sample.labels.get("otel_scope_name") == names.SCOPE
    }
    plain = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in shown}
    known = {names.prometheus_name(one): one for one in names.INSTRUMENTS.values()}
    known["rtobs_event_count"] = names.EVENTS
    assert plain <= set(known)
    bound = rtobs._config._bound
    assert {known[name].name for name in plain} == {one.instrument.name for one in bound.registry.collect()}


def test_exemplars_point_at_exported_spans(scraped: Telemetry) -> None:
    """Each exemplar of the page names a span that was exported, of the hop that made the measurement."""
    _work(good=4, bad=1)
    by_family = defaultdict(set)
    page = _page()
    for family in page.values():
        for sample in family.samples:
            if sample.exemplar is not None:
                by_family[family.name].add((sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"]))
    lower = {str(bound): low for low, bound in pairwise([-1.0, *names.ACCEPT_DURATION.bounds, float("inf")])}
    for sample in page[names.prometheus_name(names.ACCEPT_DURATION)].samples:
        if sample.exemplar is not None:
            bound = float(sample.labels["le"])
            assert lower[str(bound)] < sample.exemplar.value <= bound
    exported = {
        kind: {(f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}") for s in scraped.spans(kind)}
        for kind in ("accept", "deliver")
    }
    assert by_family[names.prometheus_name(names.ACCEPT_DURATION)]
    assert by_family[names.prometheus_name(names.ACCEPT_DURATION)] <= exported["accept"]
    assert by_family[names.prometheus_name(names.DELIVERY_DURATION)] <= exported["deliver"]


def test_shutdown_unregisters(scraped: Telemetry) -> None:
    """After shutdown a scrape has nothing of rtobs, and the rest of the registry is as it was."""
    _work(good=1, bad=0)
    assert "rtobs_accept_duration_seconds" in _page()
    rtobs.shutdown()
    assert not [name for name in _page() if name.startswith("rtobs")]
    assert "python_info" in _page()
    rtobs.shutdown()


def test_a_new_configuration_replaces_the_old_series(scraped: Telemetry) -> None:
    """configure() again registers the new series only: nothing is shown twice."""
    _work(good=3, bad=0)
    rtobs.configure(logs=scraped.events.append, strict=True)
    _work(good=2, bad=0)
    assert _total(_page()["rtobs_accept_duration_seconds"], "_count") == 2


def test_a_fault_of_ours_leaves_the_page_of_the_host(scraped: Telemetry, monkeypatch) -> None:
    """If our series cannot be collected, the host's own are still served, and the fault is counted."""
    rtobs.configure(logs=scraped.events.append)
    _work(good=1, bad=0)
    with monkeypatch.context() as broken:
        broken.setattr(rtobs._config._bound.registry, "collect", None)
        assert "python_info" in _page()
    assert scraped.by(names.INTERNAL_ERRORS, "site") == {"prometheus.collect": 1}


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_a_port_serves_the_registry(monkeypatch) -> None:
    """With OTEL_EXPORTER_PROMETHEUS_PORT the registry is served on the loopback interface until shutdown."""
    port = _free_port()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp,prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    support.start()
    try:
        _work(good=1, bad=0)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            text = answer.read().decode()
        assert 'rtobs_delivery_outcomes_total{channel="sms",' in text
        assert "trace_id=" in text
        assert rtobs._config._bound.scrape._server.server_address[0] == "127.0.0.1"
        rtobs.shutdown()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=1)
    finally:
        monkeypatch.undo()
        support.stop()


def test_a_port_in_use_is_told_and_not_raised(monkeypatch, caplog) -> None:
    """Another program on the port costs the scrape, never the message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(taken.getsockname()[1]))
        found = support.start()
        try:
            _work(good=1, bad=0)
            assert found.count(names.ATTEMPTS) == 1
            assert "Prometheus cannot scrape 127.0.0.1:" in caplog.text
        finally:
            monkeypatch.undo()
            support.stop()


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("PROMETHEUS_MULTIPROC_DIR", "/tmp", "forks workers cannot be scraped as a whole.*OTEL_METRICS_EXPORTER=otlp"),  # noqa: S108  never opened
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "many", "OTEL_EXPORTER_PROMETHEUS_PORT must be a port number; got 'many'"),
    ],
)
def test_what_cannot_work_is_refused(monkeypatch, caplog, variable, value, why) -> None:
    """configure() raises with advice; without configure() it is told once and messages go on."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    rtobs.configure()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=why):
        rtobs.configure()
    rtobs._guard._last_told.clear()
    _work(good=1, bad=0)
    _work(good=1, bad=0)
    assert caplog.text.count("OTEL_METRICS_EXPORTER names prometheus, but") == 1
    assert not [name for name in _page() if name.startswith("rtobs")]
    monkeypatch.undo()
    rtobs.configure()


def test_the_missing_extra_is_named(monkeypatch) -> None:
    """Without prometheus_client configure() raises with the line that installs it."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r'pip install "rtobs\[prometheus\]"'):
        rtobs.configure()


def _in_a_worker(pipe):
    """Work in a forked worker, and tell what a scrape of it would show and what was logged."""
    told = []
    rtobs._guard.log.addFilter(lambda record: told.append(record.getMessage()) or False)
    _work(good=1, bad=0)
    _work(good=1, bad=0)
    pipe.send(([name for name in _page() if name.startswith("rtobs")], told))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # forking is what is tested
def test_a_forked_worker_is_refused(scraped: Telemetry) -> None:
    """A worker forked after the first hop shows nothing, says once what to do instead, and the parent is unharmed."""
    _work(good=2, bad=0)
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_in_a_worker, args=(theirs,))
    worker.start()
    assert ours.poll(20)
    shown, told = ours.recv()
    worker.join(10)
    assert worker.exitcode == 0
    assert shown == []
    assert len(told) == 1
    assert "OTEL_METRICS_EXPORTER=otlp" in told[0]
    assert _total(_page()["rtobs_accept_duration_seconds"], "_count") == 2
