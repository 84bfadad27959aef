"""An incident told from data: where it began, what it cost, what to do; and unknown where nothing was answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from rtobs import incident
from rtobs.errors import ConfigError
from rtobs.incident import Alert, Exemplar, Facts, Line, Sample, opened, postmortem, questions, summarise
from rtobs.slo import alerts, project, triggers
from rtobs.slo.series import Scale
from tests.slo.support import EXAMPLE, check_rules, needs_promtool
from tests.slo.test_dashboards import known, selectors

BEGIN = 1_800_000_000.0
END = BEGIN + 1800
STEP = 60.0
SCHEMA = json.loads((Path(incident.__file__).parent / "incident.schema.json").read_text())


@pytest.fixture(scope="module")
def example():
    """The example's declaration with its playbooks."""
    return project.load(EXAMPLE)


def line(usual, bad=None, at=0.0, /, **labels):
    """Return values that are as usual for an hour, and as bad as *bad* from *at* seconds after the beginning."""
    moments = [BEGIN - 3600 + STEP * number for number in range(91)]
    noise = (0.0, 0.1, -0.1, 0.05)
    return Line(
        labels,
        tuple(
            (moment, bad if bad is not None and moment >= BEGIN + at else usual * (1 + noise[number % 4]))
            for number, moment in enumerate(moments)
        ),
    )


def alert(name, playbook, after=300.0, severity="page", *, until=None, inhibited=False, **labels):
    ends = None if until is None else BEGIN + until
    labels = {"alertname": name, "playbook": playbook, "severity": severity, "service": "notify", **labels}
    return Alert(labels, BEGIN + after, ends, inhibited)


HEALTHY = {
    "failures:accept": (line(0.001, route="/send"),),
    "seconds:accept": (line(0.1, route="/send"),),
    "failures:publish": (line(0.0),),
    "seconds:publish": (line(0.004),),
    "seconds:wait": (line(0.5, destination="push"), line(0.4, destination="ticket")),
    "failures:stage": (line(0.001, stage="normalize"),),
    "seconds:stage": (line(0.02, stage="normalize"),),
    "failures:consume": (line(0.0, destination="push"), line(0.0, destination="ticket")),
    "failures:deliver": (line(0.01, provider="fcm"), line(0.01, provider="crm")),
    "seconds:deliver": (line(0.2, provider="fcm"), line(0.3, provider="crm")),
}
SAMPLES = {
    "affected": (Sample({"slo": "delivery-5s"}, 3.0),),
    "active": (Sample({"slo": "delivery-5s"}, 4.0),),
    "bad": (Sample({"slo": "delivery-5s"}, 900.0), Sample({"slo": "api-ack"}, 0.0)),
    "total": (Sample({"slo": "delivery-5s"}, 3000.0), Sample({"slo": "api-ack"}, 3000.0)),
    "total_in_30d": (Sample({"slo": "delivery-5s"}, 500_000.0), Sample({"slo": "api-ack"}, 500_000.0)),
    "coverage": (Sample({"slo": "delivery-5s"}, 0.5), Sample({"slo": "api-ack"}, 0.5)),
    "left": (Sample({"slo": "delivery-5s"}, 0.4), Sample({"slo": "api-ack"}, 1.0)),
    "bad_by_tenant": (Sample({"tenant": "acme"}, 600.0), Sample({"tenant": "other"}, 300.0)),
    "bad_by_channel": (Sample({"channel": "push"}, 900.0),),
    "versions_before": (Sample({"job": "notify-api", "service_version": "1.4"}, 1.0),),
    "versions_after": (Sample({"job": "notify-api", "service_version": "1.5"}, 1.0),),
    "settled": (),
}


def facts(changed, errors, fired, **more):
    lines = {**HEALTHY, **changed}
    samples = {**SAMPLES, "errors": tuple(Sample(dict(labels), value) for labels, value in errors), **more}
    return Facts(BEGIN, END, tuple(fired), samples, lines, (Exemplar("ab" * 16, 9.0, {}), Exemplar("cd" * 16, 8.0, {})))


def error(category, count, provider="fcm"):
    return ({"error_category": category, "provider": provider}, count)


EXPIRED_TOKEN = facts(
    {"failures:deliver": (line(0.01, 0.98, 60, provider="fcm"), line(0.01, provider="crm"))},
    [error("auth", 800.0), error("timeout", 20.0)],
    [
        alert(triggers.AUTH, "api-auth-failures", severity="ticket", provider="fcm"),
        alert(alerts.BURN, "downstream-vendor-outage", slo="delivery-5s"),
    ],
)
SLOW_CONSUMER = facts(
    {
        "seconds:wait": (line(0.5, destination="push"), line(0.4, 90.0, 120, destination="ticket")),
        "seconds:stage": (line(0.02, 2.5, 60, stage="normalize"),),
    },
    [error("timeout", 3.0)],
    [
        alert(triggers.LAG, "connector-backlog", destination="ticket"),
        alert(alerts.BURN, "downstream-vendor-outage", 600, slo="delivery-5s"),
    ],
)
SCHEMA_DRIFT = facts(
    {
        "failures:deliver": (line(0.01, provider="fcm"), line(0.01, 0.6, 0, provider="crm")),
        "failures:consume": (line(0.0, destination="push"), line(0.0, 0.6, 0, destination="ticket")),
    },
    [error("validation", 500.0, "crm"), error("timeout", 10.0)],
    [
        alert(alerts.BURN, "dead-letter-growth", slo="dead-letter"),
        alert(alerts.BURN, "downstream-vendor-outage", slo="delivery-5s"),
    ],
)
RATE_LIMIT = facts(
    {"failures:deliver": (line(0.01, 0.5, 0, provider="fcm"), line(0.01, provider="crm"))},
    [error("rate_limited", 700.0)],
    [
        alert(triggers.RETRIES, "downstream-vendor-outage", severity="ticket", provider="fcm"),
        alert(alerts.BURN, "downstream-vendor-outage", slo="delivery-5s"),
    ],
)


@pytest.mark.parametrize(
    ("given", "playbook", "place", "who"),
    [
        (EXPIRED_TOKEN, "api-auth-failures", "deliver", "fcm"),
        (SLOW_CONSUMER, "connector-backlog", "stage", "normalize"),
        (SCHEMA_DRIFT, "dead-letter-growth", "deliver", "crm"),
        (RATE_LIMIT, "downstream-vendor-outage", "deliver", "fcm"),
    ],
    ids=["expired-token", "slow-consumer", "schema-drift", "rate-limit"],
)
def test_the_right_playbook_and_place(given, playbook, place, who, example):
    """Of four faults each leads to its own playbook first, and to the place where it began."""
    summary = summarise(given, example.declaration, example.playbooks)
    assert summary.suggestions[0].playbook == playbook
    assert (summary.first.place, summary.first.who) == (place, who)
    assert len({suggestion.playbook for suggestion in summary.suggestions}) == len(summary.suggestions)


def test_two_at_once_are_both_named(example):
    """Where a token ran out and another queue is stuck, both playbooks are suggested, and both places are told."""
    both = facts(
        {
            "failures:deliver": EXPIRED_TOKEN.lines["failures:deliver"],
            "seconds:wait": SLOW_CONSUMER.lines["seconds:wait"],
        },
        [error("auth", 800.0)],
        [*EXPIRED_TOKEN.alerts, *SLOW_CONSUMER.alerts],
    )
    summary = summarise(both, example.declaration, example.playbooks)
    assert {"api-auth-failures", "connector-backlog"} <= {one.playbook for one in summary.suggestions[:3]}
    assert {(onset.place, onset.who) for onset in summary.timeline} == {("deliver", "fcm"), ("wait", "ticket")}


def test_nothing_is_unknown_and_nothing_is_suggested(example):
    """Where all is well there is no place, no playbook and nothing broken."""
    quiet = facts({}, [], [], bad=(Sample({"slo": "delivery-5s"}, 0.0),))
    summary = summarise(quiet, example.declaration, example.playbooks)
    assert (summary.first, summary.timeline, summary.suggestions) == (None, (), ())
    page = opened(summary, example.declaration)
    assert "# notify: no alert fires" in page
    assert "- **Promises**: none broken" in page
    assert "- **Playbook**: unknown" in page


def test_without_answers_all_is_unknown(example):
    """Where nothing was answered every line says unknown, and the postmortem asks for what could not be seen."""
    summary = summarise(Facts(BEGIN, END), example.declaration, example.playbooks)
    page = opened(summary, example.declaration)
    for part in ("Promises", "Began at", "Errors", "Traces", "Changed", "Playbook"):
        assert f"- **{part}**: unknown" in page
    assert "- **Affected**: tenants unknown" in page
    draft = postmortem(summary, example.declaration)
    seen = draft.partition("## What could we not see?")[2].partition("##")[0]
    for words in ("tenants affected", "bad events", "versions", "where it began", "example traces"):
        assert f"- {words}: nothing was answered" in seen


def test_the_first_page_says_it_in_ten_lines(example):
    """Whoever is paged reads since when, what it costs, who, where, why, traces, what changed and what to do."""
    summary = summarise(RATE_LIMIT, example.declaration, example.playbooks)
    assert opened(summary, example.declaration) == (
        "# notify: RtobsRetrySpike, RtobsSLOBurn\n"
        "\n"
        "- **Since**: 2027-01-15 08:00:00 UTC, for 30m, and it goes on\n"
        "- **Promises**: delivery-5s: 900 of 3,000 events bad (30.0%), 9.0% of the budget burned, 40% left, "
        "which lasts 0.1 days at this speed (50% of the window known)\n"
        "- **Affected**: 3 of 4 active tenants; tenants acme (600), other (300); channels push (900)\n"
        "- **Began at**: deliver fcm, 2027-01-15 08:00:00 UTC: 50% fail, 1% is usual\n"
        "- **Errors**: rate_limited at fcm (700)\n"
        f"- **Traces**: {'ab' * 16}, {'cd' * 16}\n"
        "- **Changed**: notify-api is now 1.5\n"
        "- **Playbook**: [downstream-vendor-outage](https://runbooks.example.com/notify/downstream-vendor-outage.md) "
        "(score 7.11: RtobsRetrySpike leads there; RtobsSLOBurn leads there; it began at deliver; "
        "100% of the errors are rate_limited); next api-auth-failures (2)\n"
    )


def test_when_it_is_over_there_is_a_timeline(example):
    """The draft of the postmortem tells in order what began, what fired and what ended, and how long it took."""
    over = facts(
        {"failures:deliver": RATE_LIMIT.lines["failures:deliver"]},
        [error("rate_limited", 700.0)],
        [
            alert(alerts.BURN, "downstream-vendor-outage", 180, until=1200, slo="delivery-5s"),
            alert(
                alerts.BURN_SLOW,
                "downstream-vendor-outage",
                240,
                "ticket",
                until=1200,
                inhibited=True,
                slo="delivery-5s",
            ),
        ],
    )
    summary = summarise(over, example.declaration, example.playbooks)
    assert (summary.ongoing, summary.begin, summary.end) == (False, BEGIN, BEGIN + 1200)
    assert [one.name for one in summary.merged] == [alerts.BURN_SLOW]
    draft = postmortem(summary, example.declaration)
    assert draft.startswith("# Postmortem (draft): notify: RtobsSLOBurn\n")
    assert "until 2027-01-15 08:20:00 UTC, 20m" in draft
    assert "silent because of the above**: RtobsSLOBurnSlow" in draft
    told = re.findall(r"^- 2027-01-15 (\S+) UTC (.*)$", draft.partition("## Timeline")[2], re.MULTILINE)
    assert told == [
        ("08:00:00", "deliver fcm: 50% fail, 1% is usual"),
        ("08:03:00", "RtobsSLOBurn delivery-5s fires"),
        ("08:04:00", "RtobsSLOBurnSlow delivery-5s fires (silent)"),
        ("08:20:00", "RtobsSLOBurn delivery-5s ends"),
        ("08:20:00", "RtobsSLOBurnSlow delivery-5s ends"),
    ]


def test_a_young_budget_is_not_announced(example):
    """Where less than a tenth of the window is known, it is too early to say what a budget has lost."""
    young = facts({}, [], [], coverage=(Sample({"slo": "delivery-5s"}, 0.02),))
    page = opened(summarise(young, example.declaration, example.playbooks), example.declaration)
    assert (
        "900 of 3,000 events bad (30.0%), too early to say what that is of the budget (2% of the window known)" in page
    )


def test_what_is_usual_is_no_onset(example):
    """A place that always fails a little, one leap, and what began before the incident are not where it began."""
    spike = line(0.01, provider="spike")
    leap = tuple((at, 0.9 if at == BEGIN + 120 else value) for at, value in spike.points)
    usual = {
        "failures:deliver": (line(0.3, 0.45, 0, provider="always"), Line(spike.labels, leap)),
        "seconds:wait": (line(40.0, 40.0, -1800, destination="slow"),),
    }
    assert summarise(facts(usual, [], []), example.declaration, example.playbooks).first is None


def test_the_cause_goes_first_where_two_begin_together(example):
    """Of places that begin within two steps the one that can cause the others goes first; later ones do not."""
    together = {
        "failures:deliver": (line(0.01, 0.5, 60, provider="fcm"),),
        "failures:accept": (line(0.0, 0.5, 120, route="/send"),),
        "seconds:publish": (line(0.004, 3.0, 600),),
    }
    summary = summarise(facts(together, [], []), example.declaration, example.playbooks)
    assert [onset.place for onset in summary.timeline] == ["accept", "deliver", "publish"]


def test_the_same_facts_give_the_same_text(example):
    """Facts in another order are the same incident, to the byte."""
    shuffled = Facts(
        BEGIN,
        END,
        RATE_LIMIT.alerts[::-1],
        dict(reversed([(name, samples[::-1]) for name, samples in RATE_LIMIT.samples.items()])),
        dict(reversed([(name, lines[::-1]) for name, lines in RATE_LIMIT.lines.items()])),
        RATE_LIMIT.exemplars,
    )
    first, second = (summarise(given, example.declaration, example.playbooks) for given in (RATE_LIMIT, shuffled))
    assert json.dumps(first.data(), sort_keys=True) == json.dumps(second.data(), sort_keys=True)
    assert postmortem(first, example.declaration) == postmortem(second, example.declaration)


@pytest.mark.parametrize("given", [EXPIRED_TOKEN, SLOW_CONSUMER, SCHEMA_DRIFT, RATE_LIMIT, Facts(BEGIN, END)])
def test_the_data_have_the_form_of_the_schema(given, example):
    """The summary as JSON is what incident.schema.json says."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = json.loads(json.dumps(summarise(given, example.declaration, example.playbooks).data(), allow_nan=False))
    jsonschema.validate(data, SCHEMA)


def test_numbers_that_are_none_are_left_out(example):
    """What is not a number, or infinite, is not counted and does not break the summary."""
    odd = facts(
        {"seconds:wait": (Line({"destination": "odd"}, ((BEGIN, float("nan")), (BEGIN + 60, float("inf")))),)},
        [error("timeout", float("nan"))],
        [],
        affected=(Sample({}, float("nan")),),
        bad=(Sample({"slo": "delivery-5s"}, float("nan")),),
    )
    summary = summarise(odd, example.declaration, example.playbooks)
    assert (summary.affected, summary.promises, summary.errors) == (None, (), ())
    json.dumps(summary.data(), allow_nan=False)


# What is asked, and what is heard -------------------------------------------------------------------------------------


def test_a_webhook_is_read():
    """What Alertmanager sends becomes alerts: firing ones go on, resolved ones have ended."""
    payload = {
        "version": "4",
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": "A", "slo": "x"},
                "startsAt": "2027-01-15T08:00:00.5Z",
                "endsAt": "0001-01-01T00:00:00Z",
            },
            {
                "status": "resolved",
                "labels": {"alertname": "B"},
                "startsAt": "2027-01-15T08:00:00Z",
                "endsAt": "2027-01-15T08:10:00Z",
            },
        ],
    }
    assert incident.from_webhook(payload) == (
        Alert({"alertname": "A", "slo": "x"}, BEGIN + 0.5),
        Alert({"alertname": "B"}, BEGIN, BEGIN + 600),
    )


@pytest.mark.parametrize(
    "payload",
    [None, [], {}, {"alerts": 3}, {"alerts": [{}]}, {"alerts": [{"labels": [], "startsAt": "x"}]}, {"alerts": ["x"]}],
)
def test_what_is_no_webhook_is_refused(payload):
    """Anything else is refused with what to give instead."""
    with pytest.raises(ConfigError, match="This is not what Alertmanager sends to a webhook; give a JSON object"):
        incident.from_webhook(payload)


def test_what_is_asked_exists(example, built):
    """Every question is about series and labels that are exported or recorded."""
    series = known(built) | {"target_info": {"job", "service_version"}}
    asked = questions(example.declaration, BEGIN, END)
    assert len({question.name for question in asked}) > 20
    for question in asked:
        found = list(selectors(question.expression))
        assert found
        for name, labels in found:
            assert name in series, name
            assert labels <= series[name], (name, labels)


@needs_promtool
def test_what_is_asked_parses(example, tmp_path):
    """Prometheus accepts every question, also of a service whose time goes by sixty times faster."""
    for scale in (1, 60):
        asked = sorted({one.expression for one in questions(example.declaration, BEGIN, END, Scale(scale))})
        rules = [{"record": f"question:number_{number}", "expr": query} for number, query in enumerate(asked)]
        (tmp_path / "questions.yaml").write_text(yaml.safe_dump({"groups": [{"name": "questions", "rules": rules}]}))
        assert check_rules(tmp_path, "questions.yaml") == ""


def test_when_it_is_asked(example):
    """Counts are asked at the end, versions at both ends, places from an hour before in at most 240 steps."""
    asked = {question.name: question for question in questions(example.declaration, BEGIN, END)}
    assert (asked["bad"].end, asked["versions_before"].end, asked["versions_after"].end) == (END, BEGIN, END)
    places = asked["failures:deliver"]
    assert (places.begin, places.end) == (BEGIN - 3600, END)
    assert (places.end - places.begin) / places.step <= 240
    assert asked["exemplars"].kind == "exemplars"
