"""SLOs in a running process: what ``configure(slos=…)`` takes, what it changes, and what can be asked of it."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from starlette.applications import Starlette
from starlette.routing import Mount

import rtobs
from rtobs import _config
from rtobs import _conventions as names
from rtobs._config import promised
from rtobs._conventions import Label
from rtobs._telemetry.keeping import EVERY, is_slow
from rtobs.errors import ConfigError
from rtobs.slo import (
    SLO,
    Deadline,
    Declaration,
    DeclarationError,
    Latency,
    Ratio,
    endpoint,
    live,
    load,
    rules,
    status,
)
from rtobs.slo.series import Scale
from tests.slo.support import EXAMPLE, needs_promtool, promtool
from tests.support import scripts
from tests.support import telemetry as support
from tests.support.http import listening
from tests.support.prometheus import free_port
from tests.support.telemetry import SECOND
from tests.support.timing import scaled, wait_until


def slo(sli: Any, name: str = "promise", **options: Any) -> SLO:
    return SLO(name, 99, sli, "A promise.", "what-to-do", "the-owner", **options)


ACK = slo(Latency("300ms", hop="accept"), "ack")
ARRIVES = slo(Deadline("promise", "5s"), "arrives")


@pytest.fixture
def configured():
    """A function that configures rtobs for this test, as its users do."""
    yield support.start
    support.stop()


# What is taken -------------------------------------------------------------------------------------------------------


def test_a_file_is_read(configured):
    """A path of a declaration, as text or as a Path, declares its SLOs."""
    for path in (str(EXAMPLE), Path(EXAMPLE)):
        configured(slos=path)
        assert [one.slo for one in status()] == ["api-ack", "delivery-5s", "connector-window", "dead-letter"]


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_other_forms_are_read_without_pyyaml(tmp_path, ending):
    """TOML and JSON need no extra; YAML without pyyaml says at once what to install."""
    file = tmp_path / f"slo.{ending}"
    one = {"name": "ack", "objective": 99, "description": "A.", "playbook": "p", "owner": "o"}
    sli = {"kind": "latency", "hop": "accept", "threshold": "300ms"}
    if ending == "json":
        text = json.dumps({"apiVersion": "rtobs/v1", "service": "s", "slos": [one | {"sli": sli}]})
    else:
        rows = [*(f"{key} = {json.dumps(value)}" for key, value in one.items()), "[slos.sli]"]
        rows += [f"{key} = {json.dumps(value)}" for key, value in sli.items()]
        text = "\n".join(['apiVersion = "rtobs/v1"', 'service = "s"', "[[slos]]", *rows])
    file.write_text(text)
    yaml_file = tmp_path / "slo.yaml"
    yaml_file.write_text("apiVersion: rtobs/v1")
    said = scripts.found(
        f"""
        import sys, json
        sys.modules["yaml"] = None
        import rtobs, rtobs.errors, rtobs.slo
        rtobs.configure(slos={str(file)!r})
        known = [one.slo for one in rtobs.slo.status()]
        try:
            rtobs.configure(slos={str(yaml_file)!r})
        except rtobs.errors.ConfigError as error:
            print(json.dumps([known, str(error), [one.slo for one in rtobs.slo.status()]]))
        """
    )
    assert said[0] == said[2] == ["ack"]
    assert 'pip install "rtobs[slo]"' in said[1]


def test_objects_are_taken(configured):
    """SLO objects, from any iterable, and whole declarations do as well as a file."""
    configured(slos=(one for one in (ACK, ARRIVES)))
    assert [one.slo for one in status()] == ["ack", "arrives"]
    configured(slos=load(EXAMPLE).with_slos([ACK]))
    assert [one.slo for one in status()][-1] == "ack"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "slos must be the path of a declaration, or rtobs.slo.SLO objects; got 7 (int)"),
        (None, "slos must be the path of a declaration, or rtobs.slo.SLO objects; got None (NoneType)"),
        (b"slo.yaml", "slos must be the path of a declaration, or rtobs.slo.SLO objects; got b'slo.yaml' (bytes)"),
        ({"slos": []}, "slos must be the path of a declaration, or rtobs.slo.SLO objects; got {'slos': []} (dict)"),
        (ACK, "slos must be the path of a declaration, or rtobs.slo.SLO objects; got SLO("),
        (["slo.yaml"], "each of slos must be an rtobs.slo.SLO; got 'slo.yaml' (str)"),
        ([ACK, ACK], "saw two SLOs named 'ack'; give each SLO a name of its own"),
        ("nowhere.yaml", "nowhere.yaml: it cannot be read (No such file or directory); give the path of a declaration"),
        ("slo.txt", "slo.txt: saw a name that ends in .txt; end it in .yaml, .toml or .json"),
        (
            Declaration("s", (ACK,), tenants=("ö" * 64,)),
            "each of tenants of slos must be at most 71 bytes of UTF-8: it travels in a header; got",
        ),
    ],
)
def test_a_mistake_is_told_at_once_and_changes_nothing(configured, given, says):
    """What is no declaration raises with what was seen and what to do, and what was configured goes on."""
    configured(slos=[ARRIVES])
    with pytest.raises(ConfigError, match=re.escape(says)):
        rtobs.configure(slos=given)
    assert [one.slo for one in status()] == ["arrives"]


def test_every_mistake_in_a_file_is_told(configured, tmp_path):
    """All mistakes of a file come in one error, each with its line."""
    del configured
    file = tmp_path / "slo.yaml"
    text = (
        EXAMPLE.read_text().replace("objective: 99.5", "objective: 101").replace("threshold: 300ms", "threshold: 300")
    )
    file.write_text(text)
    with pytest.raises(DeclarationError) as raised:
        rtobs.configure(slos=file)
    assert len(raised.value.mistakes) == 2
    assert all(re.match(rf"{re.escape(str(file))}:\d+: ", str(one)) for one in raised.value.mistakes)


def test_a_further_call_replaces_the_slos(configured):
    """As every other argument: what is not said again is not there any more, and counts begin anew."""
    configured(slos=[ACK])
    with rtobs.accept("/x"):
        pass
    assert status()[0].expected == 1
    configured(slos=[ACK])
    assert status()[0].expected == 0
    configured()
    assert status() == ()


# What it changes -----------------------------------------------------------------------------------------------------


def test_series_exist_although_nothing_happens(configured, monkeypatch):
    """A process that declares SLOs and handles no message shows its series at zero after a while."""
    monkeypatch.setattr(promised, "WITHIN", 0.05)
    telemetry = configured(slos=[ACK])
    assert _config._bound is None
    wait_until(lambda: _config._bound is not None)
    assert [value for _, value, _ in telemetry.series(names.SLO_EXPECTED)] == [0]


def test_nothing_begins_after_the_end(configured, monkeypatch):
    """A process that ends before it has handled anything stays without series and threads of export."""
    monkeypatch.setattr(promised, "WITHIN", 0.05)
    configured(slos=[ACK])
    rtobs.shutdown()
    time.sleep(scaled(0.2))
    assert _config._bound is None


def test_slow_is_what_breaks_a_promise():
    """By route, destination or channel where the SLO names them, else for every such hop; the strictest counts."""
    declaration = Declaration(
        "test",
        (
            ACK,
            slo(Latency("100ms", hop="accept"), "fast", where={"route": ("/now",)}),
            slo(Latency("200ms", hop="accept"), "faster", where={"route": ("/now", "/soon")}),
            slo(Deadline("promise", "5s"), "arrives", where={"channel": ("sms",)}),
            slo(Deadline("displayed", "1m"), "seen"),
            slo(Latency("1s", stage="enrich"), "stage"),
            slo(Ratio("consume", ("dead_lettered",)), "dead"),
        ),
    )
    assert promised.slow(declaration) == {
        EVERY["accept"]: 0.3, "/now": 0.1, "/soon": 0.2, "sms": 5.0, EVERY["deliver"]: 60.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("slow", "kept"),
    [({}, {"/late"}), ({"/late": 10.0}, set()), ({"/quick": 0.1}, {"/late", "/quick"})],
)
def test_what_breaks_a_promise_is_kept(configured, clock, slow, kept):
    """A hop that was too slow for its SLO is slow for sampling too, unless ``configure(slow=…)`` says otherwise."""
    telemetry = configured(slos=[ACK], slow=slow)
    for route, seconds in (("/late", 0.4), ("/quick", 0.2)):
        with rtobs.accept(route):
            clock.now += round(seconds * SECOND)
    reasons = {
        span.attributes["rtobs.route"]: span.attributes.get("rtobs.sampling.reason") for span in telemetry.spans()
    }
    assert {route for route, reason in reasons.items() if reason == "slow"} == kept
    assert {event["destination"] for event in telemetry.events} == kept


def test_a_kind_of_hop_is_no_name(clock):
    """What is slow for every hop of a kind cannot be mistaken for a channel or route of that name."""
    del clock
    record = support.engine.start("accept", "consume")
    record.duration_ns = SECOND
    assert not is_slow(record, {EVERY["consume"]: 0.5})
    assert is_slow(record, {EVERY["accept"]: 0.5})
    assert is_slow(record, {"consume": 0.5})
    support.engine.end(record)


def test_declared_names_are_never_other(configured):
    """Declared tenants, channels, routes, stages and connectors keep their names in a process with too many."""
    configured(
        slos=Declaration(
            "test",
            (
                slo(Ratio("job", ("late",)), "jobs", where={"connector": ("crm",)}, group_by="connector"),
                slo(ARRIVES.sli, "arrives", group_by="channel", channels={"fax": 98}, tenants={"acme": 99.9}),
                slo(ACK.sli, "ack", where={"route": ("/vip",)}),
                slo(Latency("1s", stage="enrich"), "stage"),
            ),
        )
    )
    status()
    assert _config._bound is not None
    guard = _config._bound.registry.guard
    for label, name in (
        (Label.CONNECTOR, "crm"), (Label.CHANNEL, "fax"), (Label.TENANT, "acme"), (Label.ROUTE, "/vip"),
        (Label.STAGE, "enrich"),
    ):  # fmt: skip
        for number in range(300):
            guard.label(label, f"filler-{'abcdefghij'[number // 30]}-{number}")
        assert guard.label(label, name) == name


# The check at the start ----------------------------------------------------------------------------------------------


def told(declaration: Declaration, **facts: Any) -> list[str]:
    said = {"service.name": "api", "service.namespace": "notify"}
    given = {"pushed": True, "scraped": False, "delta": False, **facts}
    return list(promised.mismatches(declaration, (), given.pop("attributes", said), **given))


def test_a_job_that_no_rule_reads_is_told():
    """A process whose Prometheus job is not among the declaration's is told so, with the name to add."""
    declaration = Declaration("notify", (ACK,), jobs=("notify-api", "notify/worker"))
    (said,) = told(declaration)
    assert said == (
        "this process is the Prometheus job 'notify/api', and rules read notify-api, notify/worker; "
        "add it to jobs of the declaration"
    )
    assert told(Declaration("notify", (ACK,), jobs=("notify/api",))) == []
    assert told(Declaration("api", (ACK,)), attributes={"service.name": "api"}) == []
    assert told(declaration, pushed=False, scraped=True) == []  # the scraper names the job


def test_metrics_that_do_not_leave_are_told():
    """Counters that nobody gets, or gets as differences, alert nobody: that is told at the start."""
    declaration = Declaration("notify/api", (ACK,))
    assert [one.partition(";")[0] for one in told(declaration, pushed=False)] == ["no metrics leave this process"]
    assert [one.partition(",")[0] for one in told(declaration, delta=True)] == ["metrics leave as differences"]
    empty = live.standing(ACK, (), 0, ended=False)
    said = promised.mismatches(
        declaration, [empty], {"service.name": "notify/api"}, pushed=True, scraped=False, delta=False
    )
    assert list(said) == ["SLO 'ack' has no series; declare fewer tenants, channels or connectors"]


def test_the_check_is_made_when_the_process_begins(configured, caplog):
    """A process whose metrics go nowhere logs one warning about its SLOs, and none where it declares none."""
    caplog.set_level(logging.WARNING, "rtobs")
    configured()
    with rtobs.accept("/x"):
        pass
    assert not caplog.records
    configured(slos=[ACK])
    with rtobs.accept("/x"):
        pass
    (record,) = caplog.records
    assert record.getMessage().startswith("SLOs are counted here, but alerts on them may not work: no metrics leave")


# What can be asked ---------------------------------------------------------------------------------------------------


async def asked(method: str = "GET", app: Any = endpoint, path: str = "/") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as caller:
        return await caller.request(method, path)


async def test_the_route_answers_with_json(configured):
    """GET returns what ``status()`` says, HEAD its head, anything else 405; nothing is cached."""
    configured(slos=[ACK])
    with rtobs.accept("/x"):
        pass
    answer = await asked()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "version": "rtobs/slo-status/v1",
        "slos": [
            {
                "slo": "ack", "revision": ACK.revision, "objective": 99,
                "expected": 1, "good": 1, "bad": 0, "left": 1.0,
                "counts": [{"tenant": "other", "channel": "", "connector": "", "expected": 1, "good": 1}],
            }
        ],
    }  # fmt: skip
    head = await asked("HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    refused = await asked("POST")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "GET, HEAD", b"")


async def test_the_route_can_be_mounted(configured):
    """It is mounted into an application like any other."""
    configured()
    answer = await asked(app=Starlette(routes=[Mount("/slo", endpoint)]), path="/slo/")
    assert answer.json()["slos"] == []


async def test_the_route_serves_http_only():
    """Alone under a server, or on a WebSocket, it says what to do."""
    with pytest.raises(RuntimeError, match="serves HTTP only; saw 'lifespan'; mount it inside of your app"):
        await endpoint({"type": "lifespan"}, None, None)  # type: ignore[arg-type]


# In the process, on the wire and in Prometheus -----------------------------------------------------------------------

LOAD = """
    import json, time, urllib.request
    import rtobs, rtobs._config, rtobs.slo.live
    from rtobs import ErrorCategory, Outcome
    rtobs.configure(slos={file!r}, service="notify-api")
    for number in range(300):
        with rtobs.accept("/notifications") as hop:
            hop.segment(tenant=("acme", "globex", "initech", "umbrella")[number % 4])
            if number % 50 == 7:
                hop.outcome(Outcome.FAILED, category=ErrorCategory.UNAVAILABLE)
        with rtobs.consume("deliver.sms") as hop:
            hop.segment(tenant="acme")
            with rtobs.deliver(("sms", "push")[number % 2], "provider") as attempt:
                if number % 30 == 3:
                    attempt.outcome(Outcome.REJECTED, category=ErrorCategory.AUTH)
            if number % 20 == 1:
                hop.outcome(Outcome.DEAD_LETTERED)
    rtobs._config.flush()
    shown = {{}}
    if {port}:
        with urllib.request.urlopen("http://127.0.0.1:{port}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("rtobs_slo_"):
                    series, _, value = line.rpartition(" ")
                    shown[series] = float(value)
    print(json.dumps([json.loads(rtobs.slo.live.to_json()), shown]))
"""


def test_a_scrape_and_the_process_say_the_same():
    """What Prometheus scrapes and what the process says of itself are the same numbers, series by series."""
    port = free_port()
    said, shown = scripts.found(
        LOAD.format(file=str(EXAMPLE), port=port), OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
    )  # fmt: skip
    found: dict[tuple[str, ...], float] = {}
    for series, value in shown.items():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
        key = tuple(labels.get(name, "") for name in ("slo", "tenant", "channel", "connector"))
        if "_info" not in series and "_created" not in series:
            found[series.partition("{")[0], *key] = value
    wanted = {
        (f"rtobs_slo_{part}_total", one["slo"], count["tenant"], count["channel"], count["connector"]): count[part]
        for one in said["slos"]
        for count in one["counts"]
        for part in ("expected", "good")
    }
    assert found == wanted
    sums = {one["slo"]: (one["expected"], one["good"]) for one in said["slos"]}
    assert sums["api-ack"] == (300, 294)
    assert sums["dead-letter"] == (300, 285)
    assert sum(value == 1 for series, value in shown.items() if "slo_info" in series) == 4


def test_what_is_pushed_and_the_process_say_the_same():
    """The last push over OTLP holds the same numbers as the process."""
    with listening() as collector:
        said, _ = scripts.found(
            LOAD.format(file=str(EXAMPLE), port=0), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url(""),
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )  # fmt: skip
        pushes = [request.body for request in collector.received if request.path == "/v1/metrics"]
    latest: dict[tuple[str, ...], float] = {}
    for body in pushes:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                for point in metric.sum.data_points:
                    labels = {pair.key: pair.value.string_value for pair in point.attributes}
                    key = (metric.name, *(labels.get(name, "") for name in ("slo", "tenant", "channel", "connector")))
                    latest[key] = point.as_double or point.as_int
    for one in said["slos"]:
        for count in one["counts"]:
            key = (one["slo"], count["tenant"], count["channel"], count["connector"])
            assert latest["rtobs.slo.expected", *key] == count["expected"]
            assert latest["rtobs.slo.good", *key] == count["good"]


STEP = 15
"""Seconds between two scrapes."""
STEPS = 160
"""Forty minutes; nothing happens in the first two and the last eight, so that nothing is on its way at the ends."""


@needs_promtool
def test_prometheus_comes_to_the_same_budget(configured, clock, tmp_path):
    """What the rules say is used of a budget, from scrapes of a process, is within 1 % of what the process says."""
    arrives = slo(ARRIVES.sli, "arrives", group_by="channel")
    declaration = Declaration("test", (ACK, arrives), jobs=("test",), tenants=("acme",))
    telemetry = configured(slos=declaration)
    status()
    series: dict[str, list[float]] = {}
    number = 0
    for step in range(STEPS):
        for _ in range(STEP):
            clock.now += SECOND
            if 8 <= step < STEPS - 32:
                number += 1
                with rtobs.accept("/x") as hop:
                    hop.segment(tenant="acme" if number % 3 else "globex")
                    now = clock.now
                    clock.now += 0 if number % 40 else SECOND
                clock.now = now
                with rtobs.consume("orders"), rtobs.deliver("sms", "carrier") as hop:
                    if number % 5 == 0:  # rates take the sudden beginning and end of all this for two events fewer
                        hop.outcome(rtobs.Outcome.FAILED)
        for instrument in (names.SLO_EXPECTED, names.SLO_GOOD):
            for labels, value, _ in telemetry.series(instrument):
                found = ",".join(f'{name}="{said}"' for name, said in labels.items())
                name = f'{names.prometheus_name(instrument)}{{job="test",{found}}}'
                series.setdefault(name, [0.0] * step).append(value)
    used = {one.slo: 1 - one.left for one in status() if one.left is not None}
    assert used == {"ack": pytest.approx(2.5), "arrives": pytest.approx(20)}
    left = "slo:period_error_budget_remaining:ratio"
    case = {
        "interval": f"{STEP}s",
        "input_series": [{"series": name, "values": " ".join(map(str, values))} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'abs(1 - {left}{{slo="{name}"}} - {value}) < bool {value / 100}',
                "eval_time": f"{STEP * (STEPS - 1)}s",
                "exp_samples": [{"labels": f'{{slo="{name}", service="test"}}', "value": 1}],
            }
            for name, value in used.items()
        ],
    }
    files = [f"{one.name}.yaml" for one in declaration.slos]
    for file, one in zip(files, declaration.slos, strict=True):
        group = rules.group(declaration, one, Scale())
        (tmp_path / file).write_text(yaml.safe_dump({"groups": [group]}))
    test = {"rule_files": files, "evaluation_interval": "30s", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    content, said = promtool("test", "rules", "test.yaml", cwd=tmp_path)
    assert content, said
