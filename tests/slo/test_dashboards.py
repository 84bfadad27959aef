"""The dashboards: what they ask exists and parses, and every panel says what to do. There is no Grafana here."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from rtobs._conventions import INSTRUMENTS, prometheus_label, prometheus_name
from rtobs.slo import SLO, Declaration, Latency, boards, load
from tests.slo.support import EXAMPLE, check_rules, needs_promtool

QUESTIONS = [
    "Are deliveries delayed?",
    "Which connector is failing?",
    "Is one tenant affected?",
    "Are we keeping our promises?",
]
EXPORTED = {
    prometheus_name(instrument) + part: {prometheus_label(label) for label in instrument.labels} | {"job"}
    | ({"le"} if part == "_bucket" else set())
    for instrument in INSTRUMENTS.values()
    for part in (("_bucket", "_sum", "_count") if instrument.kind == "histogram" else ("",))
}  # fmt: skip
"""Every series that is exported, and its labels."""


@pytest.fixture(scope="module")
def found(built):
    """The dashboards by title."""
    files = [json.loads(text) for name, text in built.items() if name.startswith("dashboards/")]
    return {board["title"]: board for board in files}


def plain(expression):
    """Return an expression without Grafana's variables."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "5m"))


def selectors(expression):
    """Yield the metrics of an expression, each with the labels that it is selected by."""
    for name, inside in re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"(\\.|[^"])*"', '""', inside)))


def grouped(expression):
    """Return all labels that an expression groups or joins by."""
    return {
        label for inside in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in re.findall(r"\w+", inside)
    }


def known(built):
    """Return every series there is with its labels: exported ones, and those that the rules record."""
    series = dict(EXPORTED)
    recorded = [
        rule
        for name, text in built.items()
        if name.startswith("rules/")
        for rule in yaml.safe_load(text)["groups"][0]["rules"]
        if "record" in rule
    ]
    every = {"tenant", "channel", "connector", "destination", "provider", "route", "step", "stage"}
    for rule in recorded:
        series[rule["record"]] = set(rule["labels"]) | (grouped(rule["expr"]) & every) | every
    series["ALERTS"] = {"alertname", "alertstate", "severity", "service", "slo"}
    return series


def expressions(board):
    """Return all expressions of a dashboard, those of its filters included."""
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [
        re.fullmatch(r"label_values\((.*), \w+\)", variable["query"])[1]
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]


def test_each_answers_one_question(found):
    """There are four dashboards, and their titles are the questions they answer."""
    assert sorted(found) == sorted(QUESTIONS)


@pytest.mark.parametrize("title", QUESTIONS)
def test_every_panel_says_what_to_do(title, found):
    """At most eight panels, each with a unit, a line where it stops being fine, the next step, and its playbook."""
    panels = found[title]["panels"]
    assert 1 <= len(panels) <= 8
    for panel in panels:
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert next(step["value"] for step in defaults["thresholds"]["steps"]) is None
        assert isinstance(defaults["thresholds"]["steps"][1]["value"], int | float)
        assert panel["description"].startswith("What to do next: ")
        assert panel["links"][0]["url"].startswith("https://runbooks.example.com/notify/")
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        if panel["type"] == "timeseries":
            assert defaults["custom"]["thresholdsStyle"] == {"mode": "line"}
    assert panels[0]["type"] == "stat"
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
    assert all(x + w <= 24 for x, _, w, _ in places)
    assert not any(_overlap(a, b) for a in places for b in places if a != b)
    assert len(set(places)) == len(places)


def _overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


@pytest.mark.parametrize("title", QUESTIONS)
def test_every_metric_and_label_exists(title, found, built):
    """Each metric is exported or recorded, and each label that is asked for is one of its labels."""
    series = known(built)
    for expression in expressions(found[title]):
        asked = list(selectors(expression))
        assert asked
        labels = set()
        for name, matched in asked:
            assert name in series, name
            assert matched <= series[name], (name, matched)
            labels |= series[name]
        assert grouped(expression) <= labels, expression


@needs_promtool
def test_every_expression_parses(found, tmp_path):
    """Prometheus accepts each expression, as a recording rule."""
    asked = sorted({plain(expression) for board in found.values() for expression in expressions(board)})
    assert len(asked) > 30
    rules = [{"record": f"panel:number_{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert check_rules(tmp_path, "panels.yaml") == ""


def test_the_promise_is_drawn(found):
    """Ages have a line at the deadline, API answers at what was promised, late deliveries at the budget."""
    panels = {panel["title"]: panel for board in found.values() for panel in board["panels"]}

    def line(title):
        return panels[title]["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]

    assert line("Age at delivery, 95th percentile, by channel") == 5
    assert line("API answers, 95th percentile, by route") == pytest.approx(0.3)
    assert line("Late or lost in the last 5 minutes") == pytest.approx(0.01)
    assert line("Dead letters") == pytest.approx(0.001)
    assert line("Runs outside of their window") == pytest.approx(0.005)


def test_exemplars_are_asked_for_where_they_lead_to_a_trace(found):
    """Panels of durations ask for exemplars; recorded series have none."""
    for board in found.values():
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert target["exemplar"] == ("_bucket" in target["expr"])


def test_what_is_not_declared_is_not_shown():
    """Without named tenants, or groups, the panels that would stay empty are left out."""
    only = SLO("enrich", 99, Latency("200ms", stage="enrich"), "Fast.", "api-latency", "me")
    few = {board.title: len(board.panels) for board in boards.boards(Declaration("notify", (only,)))}
    many = {board.title: len(board.panels) for board in boards.boards(load(EXAMPLE))}
    assert few == {**many, "Is one tenant affected?": 2, "Are we keeping our promises?": 7}


def test_two_services_do_not_share_a_dashboard():
    """Dashboards of two services have identifiers of their own, short enough for Grafana."""
    only = SLO("enrich", 99, Latency("200ms", stage="enrich"), "Fast.", "api-latency", "me")
    uids = {
        boards.links.uid(Declaration(service, (only,)), board.uid)
        for service in (
            "shop/api",
            "shop-api",
            "notify",
            f"{'a very long name ' * 4}one",
            f"{'a very long name ' * 4}two",
        )
        for board in boards.boards(Declaration(service, (only,)))
    }
    assert len(uids) == 20
    assert all(re.fullmatch(r"[a-z0-9-]{1,40}", uid) for uid in uids)
