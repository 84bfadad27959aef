"""Broken rules are found: each defect, put into the generated rules, makes one of the generated tests fail."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from rtobs.slo import alertmanager
from rtobs.slo.cases import FAST
from tests.slo.support import check_rules, needs_promtool, run_cases

DELIVERY = "slo-delivery-5s"


class Mutant:
    """A defect: what is taken out of a group's rules, what stands there instead, and which case notices."""

    def __init__(self, name, group, pattern, instead, case):
        self.name, self.group, self.case = name, group, case
        self.pattern, self.instead = pattern, instead

    def put_into(self, rules):
        broken, count = re.subn(self.pattern, self.instead, rules)
        assert count > 0, f"{self.name}: nothing to break"
        return broken


def _whole(factor):
    return rf"(slo:sli_error:ratio_rate\w+\{{[^}}]*\}} > ){factor}\b"


MUTANTS = [
    Mutant("guard removed", DELIVERY, r" and sum_over_time\([^()]*\) \* 30 >= \d+", "", "2 bad of one event a minute"),
    Mutant(
        "delivered-count denominator", DELIVERY, "rtobs_slo_expected_total", "rtobs_slo_good_total",
        "a total outage pages within 3 minutes",
    ),
    Mutant(
        "no `or 0 * total`", DELIVERY, r" or on \(tenant, channel\) 0 \* series:sli_total:rate5m\{[^}]*\}", "",
        "what has never been good is bad, and not unknown",
    ),
    Mutant(
        "tenant's override ignored", DELIVERY, r'(tenant="acme"\} \+ )0\.005', r"\g<1>0.01",
        "tenant acme has an objective of its own",
    ),
    Mutant(
        "channel's override ignored", DELIVERY, r'(channel="in_app"\} \+ )0\.001', r"\g<1>0.01",
        "channel in_app has an objective of its own",
    ),
    Mutant("factor x10", "slo-api-ack", _whole("0.0144"), r"\g<1>0.144", FAST),
    Mutant("factor / 10", "slo-api-ack", _whole("0.006"), r"\g<1>0.0006", "four times the budget opens a ticket only"),
    Mutant("second tier dropped", "slo-api-ack", _whole("0.006"), r"\g<1>1", "burn just below the fastest tier"),
    Mutant(
        "short window dropped", "slo-api-ack", r" and slo:sli_error:ratio_rate5m\{[^}]*\} > 0\.0144", "", FAST,
    ),
    Mutant(
        "long window dropped", "slo-api-ack", r"slo:sli_error:ratio_rate1h\{[^}]*\} > 0\.0144 and ", "", FAST,
    ),
    Mutant(
        "cliff tier dropped", DELIVERY, r"\n +or\n +\(slo:sli_error:ratio_rate5m\{[^}]*\} > 0\.4 [^\n]*\)\)",
        ")", "a total outage pages within 3 minutes",
    ),
    Mutant("offset dropped", DELIVERY, " offset 5s", "", "what is not due yet is not bad"),
    Mutant(
        "difference cut at 0", DELIVERY, r"(record: series:sli_bad:rate5m\n +expr: )([^\n]*)", r"\1clamp_min(\2, 0)",
        "a burst each hour, all delivered in time",
    ),
    Mutant(
        "one tenant pages all the same", DELIVERY, r"\n +unless on \([^)]*\) slo:one_tenant:count\{[^}]*\}", "",
        "one tenant of 3 gets nothing",
    ),
    Mutant(
        "tenants without a name are one", DELIVERY, r" unless on \(slo, service\) tenant:burning:ratio\{[^}]*\}", "",
        "tenants without a name get nothing",
    ),
    Mutant(
        "affected tenants are active ones", DELIVERY, r"(slo:tenants_affected:count\n +expr: ).*",
        r"\1slo:tenants_active:count", "one tenant of 3 gets nothing",
    ),
    Mutant("page becomes a ticket", DELIVERY, "severity: page", "severity: ticket", "everything is bad"),
    Mutant("no data is not waited for", DELIVERY, "for: 10m5s", "for: 0s", "nothing is counted any more"),
    Mutant("no data is never told", DELIVERY, "for: 10m5s", "for: 2h", "nothing is counted any more"),
    Mutant(
        "jobs of others counted", "slo-dead-letter", r',job=~"[^"]*"', "", "healthy: half of the strictest budget",
    ),
    Mutant(
        "another SLO's events counted", "slo-dead-letter", r'(rtobs_slo_good_total\{)slo="dead-letter",',
        r'\1slo!="dead-letter",', "healthy: half of the strictest budget",
    ),
    Mutant(
        "a connector that does not run is forgotten", "slo-connector-window",
        r"sum by \(connector\) \(sum_over_time\([^()]*\)\) > 0 or (label_replace[^\n]* or )", "",
        "one connector does not run any more",
    ),
    Mutant(
        "receipts that stop are not missed", DELIVERY,
        r"\n +or\n +\(\(sum by \(channel, step\)[^\n]*\n[^\n]*\n[^\n]*\)\)\n", ")\n",
        "receipts stop, so that no age is measured any more",
    ),
    Mutant(
        "lag may jump", "trigger-queues", r" and min_over_time\(deriv\([^()]*\)\[5m:30s\]\) > 0", "",
        "six shapes of the oldest message's age",
    ),
    Mutant(
        "lag may drift", "trigger-queues", r"(service=\"notify\"\}( offset 5m)?) > 5 and", r"\1 > 0 and",
        "six shapes of the oldest message's age",
    ),
    Mutant(
        "consumers that never lived", "trigger-queues", r"\(min_over_time[^\n]*\n +or on \(destination\)\n +", "",
        "consumers that died, or never lived, are noticed; slow ones and other people's are not",
    ),
    Mutant(
        "p95 without a floor", "trigger-api-latency", r"\n +and route:accept_p95:5m\{[^}]*\} > 0\.1", "",
        "p95 from 0.11 to 0.24 s is noticed, smaller changes and quiet routes are not",
    ),
    Mutant(
        "p95 of quiet routes", "trigger-api-latency", ">= 50", ">= 0",
        "p95 from 0.11 to 0.24 s is noticed, smaller changes and quiet routes are not",
    ),
    Mutant(
        "every large share is a spike", "trigger-retries", r"> 3 \* ", "> 0 * ",
        "a share that leaps is noticed; one that is always large, or of a few, is not",
    ),
]  # fmt: skip


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_found(mutant, built, tmp_path):
    """A rule file with one defect still parses, and a generated test of its group fails on it."""
    rules = mutant.put_into(built[f"rules/{mutant.group}.yaml"])
    (tmp_path / "broken.yaml").write_text(rules)
    assert check_rules(tmp_path, "broken.yaml") == ""
    test = yaml.safe_load(built[f"tests/{mutant.group}.yaml"])
    assert "FAILED" in run_cases(tmp_path, rules, test, [mutant.case])


ROUTES = [
    ('inhibition without slo!=""', lambda config: config["inhibit_rules"][0]["source_matchers"].remove('slo!=""')),
    ("tickets of other SLOs silenced", lambda config: config["inhibit_rules"][0]["equal"].remove("slo")),
    ("tickets of other services silenced", lambda config: config["inhibit_rules"][0]["equal"].remove("service")),
    ("channels silence tenants", lambda config: config["inhibit_rules"][1]["source_matchers"].clear()),
    ("many tenants silence channels", lambda config: config["inhibit_rules"][1]["target_matchers"].clear()),
    ("tenants of other SLOs silenced", lambda config: config["inhibit_rules"][1]["equal"].remove("slo")),
    ("tenants of other services silenced", lambda config: config["inhibit_rules"][1]["equal"].remove("service")),
    ("anything silences queues", lambda config: config["inhibit_rules"][2]["source_matchers"].clear()),
    ("a broker silences everything", lambda config: config["inhibit_rules"][2]["target_matchers"].clear()),
    ("queues of other services silenced", lambda config: config["inhibit_rules"][2]["equal"].remove("service")),
    ("broker and queues all told", lambda config: config["inhibit_rules"].pop()),
    ("tickets page", lambda config: config["route"]["routes"][0]["routes"][1].update(receiver="rtobs-page")),
    ("other services page here", lambda config: config["route"]["routes"][0]["matchers"].clear()),
]


@pytest.mark.parametrize(("name", "broken"), ROUTES, ids=[name for name, _ in ROUTES])
def test_a_broken_route_is_found(name, broken, built):
    """A defect in Alertmanager's routes or inhibition makes one of the generated cases fail."""
    config = yaml.safe_load(built["alertmanager.yaml"])
    cases = json.loads(built["tests/alertmanager.json"])
    assert all(alertmanager.heard(config, case["firing"]) == case["heard"] for case in cases)
    broken(config)
    assert any(alertmanager.heard(config, case["firing"]) != case["heard"] for case in cases)
