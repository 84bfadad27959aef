"""The generated rules do what they are for, by the tests generated with them, in Prometheus' own test runner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from rtobs.slo import (
    SLO,
    Alerting,
    Deadline,
    Declaration,
    Latency,
    Ratio,
    alerts,
    cases,
    project,
    rules,
    testfile,
    triggers,
)
from rtobs.slo.cases import FAST
from rtobs.slo.files import to_yaml
from rtobs.slo.series import Scale
from rtobs.slo.windows import INTERVAL
from tests.slo.support import built, check_rules, needs_promtool, run_cases

pytestmark = [needs_promtool, pytest.mark.slow]

GROUPS = sorted(name.removeprefix("rules/").removesuffix(".yaml") for name in built() if name.startswith("rules/"))
SLOS = [name for name in GROUPS if name.startswith("slo-")]
DELIVERY = "slo-delivery-5s"


def test_rules_pass_the_strictest_lint(built, tmp_path):
    """Every rule file parses and has no duplicate, as `promtool check rules --lint=all --lint-fatal` sees it."""
    for name in GROUPS:
        (tmp_path / f"{name}.yaml").write_text(built[f"rules/{name}.yaml"])
    assert check_rules(tmp_path, *(f"{name}.yaml" for name in GROUPS)) == ""


@pytest.fixture(scope="module")
def results(built, tmp_path_factory):
    """What promtool says of the generated tests of each group, two at a time."""

    def run(group):
        test = yaml.safe_load(built[f"tests/{group}.yaml"])
        return run_cases(tmp_path_factory.mktemp(group), built[f"rules/{group}.yaml"], test)

    slowest_first = sorted(GROUPS, key=lambda group: -len(built[f"tests/{group}.yaml"]))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(slowest_first, pool.map(run, slowest_first), strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("group", GROUPS)
def test_the_generated_tests_pass(group, results):
    """All generated cases of an SLO or trigger hold."""
    assert results[group] == ""


PROMISED = {"description": "In time.", "playbook": "api-latency", "owner": "me"}
OTHERS = [
    SLO("low", 90, Latency("1s", "accept"), **PROMISED),
    SLO("strict", 99.999, Latency("200ms", stage="enrich"), window="7d", tenants={"acme": 99.99}, **PROMISED),
    SLO("late", 99, Deadline("opened", "15m"), group_by="channel", where={"channel": ("push", "sms")}, **PROMISED),
    SLO(
        "rare", 99, Ratio("job", ("missed",)), every="1h", group_by="connector", connectors={"a": 99.9, "b": 95},
        alerting=Alerting(1, 1, "page"), **PROMISED,
    ),
    SLO("soft", 99.5, Ratio("consume", ("dead_lettered", "expired")), window="28d", severity="ticket", **PROMISED),
    SLO("quiet", 99, Ratio("accept", ("failed",)), severity="dashboard", **PROMISED),
    SLO("first", 50, Deadline("promise", "100ms"), "Half {{ at once.", "api-latency", "me", alerting=Alerting(1, 1)),
]  # fmt: skip


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """What promtool says of other SLOs, at the edges of what can be declared."""

    def run(slo):
        folder = tmp_path_factory.mktemp(slo.name)
        declaration = Declaration("shop/api (eu)", (slo,), ("shop/api", "shop/worker.1"))
        group = rules.group(declaration, slo, Scale())
        text = to_yaml({"groups": [group]})
        (folder / "rules.yaml").write_text(text)
        test = testfile.test_file(["../rules/slo.yaml"], INTERVAL, cases.cases(declaration, slo, group["rules"]))
        return check_rules(folder, "rules.yaml") + run_cases(folder, text, test)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([slo.name for slo in OTHERS], pool.map(run, OTHERS), strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [slo.name for slo in OTHERS])
def test_other_slos_hold_too(name, others):
    """Low and strict objectives, long deadlines, rare jobs, weeks, tickets only: their generated tests pass as well."""
    assert others[name] == ""


def test_weekly_jobs_are_tested_in_seconds(tmp_path):
    """Rules that wait for days are tested in a file of their own, with few evaluations."""
    weekly = SLO("weekly", 99, Ratio("job", ("missed",)), every="7d", group_by="connector", **PROMISED)
    files = project.build(project.Project(Declaration("notify", (weekly,)), ()))
    usual, seldom = (yaml.safe_load(files[f"tests/slo-weekly{ending}.yaml"]) for ending in ("", "-seldom"))
    assert [case["name"] for case in seldom["tests"]] == [
        "nothing is counted any more", "one connector does not run any more",
    ]  # fmt: skip
    assert not {case["name"] for case in usual["tests"]} & {case["name"] for case in seldom["tests"]}
    rules = files["rules/slo-weekly.yaml"]
    assert run_cases(tmp_path, rules, seldom) == ""
    assert "FAILED" in run_cases(tmp_path, rules.replace("for: 10d12h", "for: 1d"), seldom)


# What the cases say ---------------------------------------------------------------------------------------------------


def _cases(built, group):
    return {case["name"]: case for case in yaml.safe_load(built[f"tests/{group}.yaml"])["tests"]}


def _fire(case, at=None):
    """Return the alerts that a case expects, at one time or at its last, as pairs of name and severity."""
    checks = [check for check in case["promql_expr_test"] if "ALERTS" in check["expr"]]
    check = checks[-1] if at is None else next(check for check in checks if check["eval_time"] == at)
    return sorted(_pair(sample["labels"]) for sample in check["exp_samples"])


def _pair(labels):
    found = dict(part.split("=") for part in labels.strip("{}").split(", "))
    return found["alertname"].strip('"'), found["severity"].strip('"')


@pytest.mark.parametrize("group", SLOS)
def test_every_slo_is_tested_for_what_it_has_to_do(group, built):
    """Silence, paging, tickets, one tenant, recovery and missing data are cases of each SLO, with the right ending."""
    found = _cases(built, group)
    page, slow = (alerts.BURN, "page"), (alerts.BURN_SLOW, "ticket")
    assert _fire(found["healthy: half of the strictest budget"]) == []
    assert [_fire(found["a total outage pages within 3 minutes"], at) for at in ("1h", "1h3m")] == [[], [page]]
    assert page in _fire(found["burn just below the fastest tier"])
    assert slow in _fire(found["four times the budget opens a ticket only"])
    assert page not in _fire(found["four times the budget opens a ticket only"])
    assert _fire(found["2 bad of one event a minute"]) == []
    alone = _fire(found["one tenant of 3 gets nothing"])
    assert (alerts.BURN_TENANT, "ticket") in alone
    assert "page" not in {severity for _, severity in alone}
    assert page in _fire(found["two tenants of 3 get nothing"])
    assert page in _fire(found["tenants without a name get nothing"])
    assert [_fire(found[FAST], at) for at in ("2h30m", "3h20m", "3h32m", "3h44m")] == [[], [], [page], []]
    assert set(_fire(found["nothing is counted any more"])) == {(alerts.NO_DATA, "ticket")}


def test_objectives_of_their_own_are_tested(built):
    """A tenant and channels that were promised something else are held to that, by the same traffic."""
    found = _cases(built, DELIVERY)
    assert (alerts.BURN_TENANT, "ticket") in _fire(found["tenant acme has an objective of its own"])
    assert (alerts.BURN, "page") not in _fire(found["tenant acme has an objective of its own"])
    strict = found["channel in_app has an objective of its own"]["promql_expr_test"][0]["exp_samples"]
    below = [sample["labels"] for sample in strict if alerts.BELOW["channel"] in sample["labels"]]
    assert [labels.count('channel="in_app"') for labels in below] == [1]
    loose = found["channel sms has an objective of its own"]["promql_expr_test"][0]["exp_samples"]
    below = {label for sample in loose if alerts.BELOW["channel"] in (label := sample["labels"])}
    assert len(below) == 3
    assert not any("sms" in label for label in below)


def test_triggers_are_tested_for_what_looks_like_them(built):
    """The cases of the triggers name what has to fire and what has not to."""
    latency = next(iter(_cases(built, "trigger-api-latency").values()))
    assert "p95 from 0.11 to 0.24 s" in latency["name"]
    assert _fire(latency) == [(triggers.LATENCY, "ticket")]
    queues = _cases(built, "trigger-queues")
    shapes = queues["six shapes of the oldest message's age"]
    assert len(shapes["input_series"]) == 6
    assert len(shapes["promql_expr_test"][-2]["exp_samples"]) == 2
    dead = queues["consumers that died, or never lived, are noticed; slow ones and other people's are not"]
    assert _fire(dead) == [(triggers.DEAD, "page")] * 3
    freshness = _cases(built, DELIVERY)["receipts stop, so that no age is measured any more"]
    assert _fire(freshness) == [(alerts.FRESHNESS, "page")]
