"""Playbooks and alerts name one another, and what a playbook tells people to ask is a question that has an answer."""

from __future__ import annotations

import re
from datetime import date

import pytest
import yaml

from rtobs.slo import DeclarationError, lint, playbooks, project
from tests.slo.support import EXAMPLE, PLAYBOOKS, check_rules, needs_promtool
from tests.slo.test_dashboards import known, selectors

GOOD = """\
---
id: broker
alerts: [RtobsSLOBurn]
applies_to: {stages: [consume], error_categories: [overload]}
owner: me
last_drilled: 2026-01-15
---
# The broker

## Meaning
## Is it this?
## Impact
## Stop the damage
## Fix
## Verify
## Escalate
"""


def test_a_playbook_is_read():
    """The head and the title of a playbook are known."""
    found = playbooks.parse(GOOD, "broker.md", "broker")
    assert (found.id, found.title, found.alerts, found.owner) == ("broker", "The broker", ("RtobsSLOBurn",), "me")
    assert (found.stages, found.error_categories) == (("consume",), ("overload",))
    assert found.last_drilled == date(2026, 1, 15)


@pytest.mark.parametrize(
    ("good", "broken", "told"),
    [
        ("---\nid", "id", "broker.md:1: saw no head between two lines of ---; begin with one"),
        ("id: broker", "id: other", "broker.md:2: id: saw other in a file named broker.md; give both one name"),
        ("owner: me\n", "", "broker.md:2: saw no owner; give it one line of text"),
        (
            "[overload]",
            "[tired]",
            (
                'broker.md:4: applies_to.error_categories[0]: saw "tired"; give transport, timeout, rate_limited, '
                "unavailable, auth, validation, recipient, suppressed, rejected_downstream, overload or internal"
            ),
        ),
        (
            "2026-01-15",
            "last week",
            "broker.md:6: last_drilled: saw last week, which is no day; give one such as 2026-01-15",
        ),
        (
            "## Impact\n## Stop the damage\n",
            "",
            "broker.md:2: saw no heading ## Impact or ## Stop the damage; add what is missing",
        ),
        (
            "## Fix\n## Verify\n",
            "## Verify\n## Fix\n",
            (
                "broker.md:2: saw its headings in another order; "
                "use Meaning, Is it this?, Impact, Stop the damage, Fix, Verify, Escalate"
            ),
        ),
        ("owner: me", "owner: [", "broker.md:6: this is not YAML (expected ',' or ']', but got"),
        (GOOD[4 : GOOD.index("---\n#")], "- 1\n", "broker.md:2: saw a list; give a head with id, alerts and owner"),
    ],
)
def test_a_broken_playbook_is_told(good, broken, told):
    """A mistake in a playbook is told with its file and line, and what to do."""
    with pytest.raises(DeclarationError) as caught:
        playbooks.parse(GOOD.replace(good, broken, 1), "broker.md", "broker")
    assert str(caught.value.mistakes[0]).startswith(told)


def test_alerts_and_playbooks_name_one_another():
    """An alert that its playbook does not know, and a playbook that no alert leads to, are found, each way."""
    book = playbooks.parse(GOOD, "broker.md", "broker")
    assert playbooks.unnamed([book], [("RtobsSLOBurn", "broker")]) == []
    assert playbooks.unreached([book], [("RtobsSLOBurn", "broker")]) == []
    (mistake,) = playbooks.unnamed([book], [("RtobsSLOBurn", "broker"), ("RtobsNew", "broker")])
    assert str(mistake) == "broker.md: saw no RtobsNew among its alerts, and that alert leads here; add it to alerts"
    (mistake,) = playbooks.unreached([book], [("RtobsSLOBurn", "other")])
    assert str(mistake) == "broker.md: saw a playbook to which no alert leads; name it in an SLO, or remove it"
    (mistake,) = playbooks.unreached([book], [("RtobsNew", "broker")])
    assert str(mistake) == "broker.md: saw the alert RtobsSLOBurn, which does not lead here; take it out of alerts"


def test_an_alert_that_its_playbook_does_not_know_stops_the_build(tmp_path):
    """Loading a declaration whose playbook lacks one of its alerts is refused."""
    (tmp_path / "slo.yaml").write_text(EXAMPLE.read_text().replace("../../docs/playbooks", "."))
    for file in PLAYBOOKS.glob("*.md"):
        (tmp_path / file.name).write_text(file.read_text().replace("  - RtobsSLONoData\n", ""))
    with pytest.raises(DeclarationError, match=r"api-latency\.md: saw no RtobsSLONoData among its alerts"):
        project.load(tmp_path / "slo.yaml")


def test_what_should_be_known_is_told():
    """A playbook that was never tried, or half a year ago, is a warning; the example has none."""
    found = project.load(EXAMPLE)
    assert lint.warnings(found, date(2026, 11, 23)) == []
    never = playbooks.parse(GOOD.replace("last_drilled: 2026-01-15\n", ""), "broker.md", "broker")
    (told,) = lint.warnings(project.Project(found.declaration, (never,)), date(2026, 7, 14))[1:]
    assert str(told) == "broker.md: saw no last_drilled: nobody has tried it; go through it once"
    tried = playbooks.parse(GOOD, "broker.md", "broker")
    aged = project.Project(found.declaration, (tried,))
    assert [str(warning) for warning in lint.warnings(aged, date(2026, 7, 14))][1:] == []
    assert str(lint.warnings(aged, date(2026, 7, 15))[-1]) == (
        "broker.md: saw that it was last tried on 2026-01-15, more than 180 days ago; go through it again"
    )


def test_an_objective_too_low_for_a_tier_is_told():
    """Without policy and tenants, and with a tier that cannot fire, the warnings say so."""
    low = project.reader.declare(
        project.source.parse(
            "apiVersion: rtobs/v1\nservice: a\nowner: me\nslos:\n- {name: low, description: d, objective: 90, "
            "playbook: p, sli: {kind: ratio, hop: accept, bad: [failed]}}",
            "YAML",
            "slo.yaml",
        )
    )
    told = [str(warning) for warning in lint.warnings(project.Project(low, ()), date(2026, 1, 1))]
    assert told == [
        (
            'slo.yaml: SLO "low": saw that its budget cannot burn 14.4 times as fast as it may over 1h, even if '
            "everything is bad, so that this alert is left out; raise the objective"
        ),
        'slo.yaml: SLO "low": saw no policy; write what the team does when 50, 10 and 0 % of the budget are left',
        (
            "slo.yaml: saw no tenants, so that nobody is told whether one or all are affected; "
            "name the most important ones under tenants"
        ),
    ]


# Ours ----------------------------------------------------------------------------------------------------------------

OURS = sorted(PLAYBOOKS.glob("*.md"))


def queries(page):
    """Return the questions of a playbook: the lines of its fenced blocks."""
    return [
        line.strip()
        for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


def test_there_are_six():
    """Each failure mode that was promised has its playbook."""
    assert [file.stem for file in OURS] == [
        "api-auth-failures",
        "api-latency",
        "broker-saturation",
        "connector-backlog",
        "dead-letter-growth",
        "downstream-vendor-outage",
    ]


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.stem)
def test_a_playbook_can_be_followed(file):
    """It asks three questions at least, names log fields and a dashboard, and says how to undo each safe step."""
    page = file.read_text()
    parts = dict(zip(playbooks.SECTIONS, re.split(r"^## .*$", page, flags=re.MULTILINE)[1:], strict=True))
    assert len(re.findall(r"^\d\. ", parts["Is it this?"], re.MULTILINE)) >= 3
    assert re.search(r"^Logs: .*`\w+`", parts["Is it this?"], re.MULTILINE | re.DOTALL)
    assert re.search(r"^Dashboards?: \*", parts["Is it this?"], re.MULTILINE)
    steps = re.findall(r"^\d\. .*(?:\n   .*)*", parts["Stop the damage"], re.MULTILINE)
    assert len(steps) >= 3
    assert sum("Undo:" in " ".join(step.split()) for step in steps) >= 3
    assert queries(parts["Verify"])


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.stem)
def test_its_questions_are_about_what_exists(file, built):
    """Every series a playbook asks for is exported or recorded, under the labels it is asked by."""
    series = known(built)
    for query in queries(file.read_text()):
        for name, labels in selectors(query):
            assert labels <= series[name], (name, labels)
        names = set(re.findall(r"\b(?:rtobs_|messaging_client_|messaging_process_)\w+", query))
        names |= set(re.findall(r"\b\w+:[\w:]+", query))
        names -= {"messaging_operation_name", "messaging_destination_name"}
        assert names, query
        assert names <= set(series), names - set(series)


@needs_promtool
def test_their_questions_parse(tmp_path):
    """Prometheus accepts every question of our playbooks."""
    asked = sorted({query for file in OURS for query in queries(file.read_text())})
    assert len(asked) > 25
    rules = [{"record": f"question:number_{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump({"groups": [{"name": "questions", "rules": rules}]}))
    assert check_rules(tmp_path, "questions.yaml") == ""
