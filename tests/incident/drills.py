"""Drills of our playbooks: for each a failure that begins, fires its alert and ends, on series in a real Prometheus.

``python -m tests.incident.drills --write`` runs them, and writes the day into the playbooks that passed. What a drill
shows: the alert leads to the playbook, and each of its questions under Verify says no while it is broken and yes
when it is over. Nobody's hands are drilled by it.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from rtobs.slo import playbooks, project
from rtobs.slo.promql import text
from rtobs.slo.testfile import Case, grown, selector, test_file
from tests.slo.support import EXAMPLE, PLAYBOOKS, promtool

STEP = 30
WELL = 4200.0
HEALED = 2400.0


@dataclass(frozen=True)
class Drill:
    """One failure: which alert it fires, and for each question under Verify the labels of what is broken."""

    alert: str
    broken: tuple[dict[str, str], ...]
    counters: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Events a minute before, during and after."""
    ages: dict[str, bool] = field(default_factory=dict)
    """Queues, and whether they wait longer and longer."""
    lasts: float = 1200.0

    def series(self):
        """Yield each series with its samples, as promtool has them."""
        for name, rates in self.counters.items():
            yield name, grown(zip((WELL, self.lasts, HEALED), rates, strict=True), STEP)
        for queue, waits in self.ages.items():
            name = selector(
                "rtobs_queue_oldest_age_seconds", {"job": "notify-worker", "destination": queue, "role": "main"}
            )
            well, failing, healed = (int(one / STEP) for one in (WELL, self.lasts, HEALED))
            yield name, f"1x{well} {f'31+30x{failing - 1}' if waits else f'1x{failing - 1}'} 1x{healed}"


def counter(name, **labels):
    return selector(name, {"job": "notify-worker", **labels})


def tries(result, category=""):
    labels = {"channel": "push", "provider": "fcm", "result": result, "error_category": category}
    return counter("rtobs_delivery_attempts_total", **labels)


def promised(slo, **labels):
    names = ("rtobs_slo_expected_total", "rtobs_slo_good_total")
    return [counter(name, slo=slo, tenant="acme", **labels) for name in names]


def buckets(slow):
    """Return the counters of an API whose answers take less than 0.1 s, and meanwhile 0.3 to 0.5 s."""
    name, labels = "rtobs_accept_duration_seconds_bucket", {"route": "/send", "outcome": "ok"}
    fast = (600, 0, 600) if slow else (600, 600, 600)
    return {
        counter(name, **labels, le="0.1"): fast,
        counter(name, **labels, le="0.3"): fast,
        counter(name, **labels, le="0.5"): (600, 600, 600),
        counter(name, **labels, le="+Inf"): (600, 600, 600),
        counter("rtobs_accept_duration_seconds_count", **labels): (600, 600, 600),
    }


DRILLS = {
    "api-auth-failures": Drill(
        "RtobsAuthFailures",
        ({"provider": "fcm"}, {"provider": "fcm"}),
        {tries("ok"): (600, 0, 600), tries("failed", "auth"): (1, 600, 1)},
    ),
    "api-latency": Drill(
        "RtobsSLOBurn",
        ({"route": "/send"}, {"slo": "api-ack"}),
        {**buckets(slow=True), **dict(zip(promised("api-ack"), ((600, 600, 600), (600, 0, 600)), strict=True))},
    ),
    "broker-saturation": Drill(
        "RtobsBrokerSaturated", ({}, {"destination": "push"}), ages={"push": True, "ticket": True, "email": False}
    ),
    "connector-backlog": Drill(
        "RtobsLagGrowing",
        ({"destination": "ticket"}, {"connector": "crm-sync"}),
        {counter("rtobs_connector_jobs_total", connector="crm-sync", state="completed"): (1, 0, 1)},
        {"push": False, "email": False, "ticket": True},
        lasts=2700.0,
    ),
    "dead-letter-growth": Drill(
        "RtobsSLOBurn",
        ({"destination": "ticket"}, {"channel": "ticket"}),
        {
            counter("rtobs_message_settled_total", destination="ticket", outcome="ok"): (600, 300, 600),
            counter("rtobs_message_settled_total", destination="ticket", outcome="dead_lettered"): (0, 300, 0),
            counter("rtobs_delivery_recovered_total", channel="ticket", provider="crm"): (0, 0, 60),
            **dict(zip(promised("dead-letter"), ((600, 600, 600), (600, 300, 600)), strict=True)),
        },
    ),
    "downstream-vendor-outage": Drill(
        "RtobsRetrySpike",
        ({"provider": "fcm"}, {"slo": "delivery-5s"}),
        {
            tries("ok"): (600, 100, 600),
            tries("failed", "timeout"): (5, 500, 5),
            **dict(zip(promised("delivery-5s", channel="push"), ((600, 600, 600), (600, 100, 600)), strict=True)),
        },
    ),
}


def questions(page):
    """Return what a playbook asks under Verify."""
    verify = page.partition("\n## Verify\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```text\n(.*?)```", verify, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def says_yes(question, broken):
    """Return the expression that is 1 where *question* is answered for what was *broken*, and 0 where it is not."""
    about = "".join(
        f' and on ({label}) label_replace(vector(1), "{label}", {text(value)}, "", "")'
        for label, value in broken.items()
    )
    return f"(count(({question}){about}) > bool 0) or vector(0)"


def case(name, page):
    """Return the test of one playbook's drill."""
    drill = DRILLS[name]
    found = Case(name, STEP, series=dict(drill.series()))
    during, after = WELL + drill.lasts - 2 * STEP, WELL + drill.lasts + HEALED - STEP
    fired = f'count(ALERTS{{alertstate="firing",alertname="{drill.alert}",playbook="{name}"}}) > bool 0 or vector(0)'
    for at, value in ((WELL - STEP, 0.0), (during, 1.0), (after, 0.0)):
        found.expect(at, fired, {"{}": value})
    asked = questions(page)
    assert len(asked) == len(drill.broken), f"{name} asks {len(asked)} questions under Verify"
    for question, broken in zip(asked, drill.broken, strict=True):
        found.expect(during, says_yes(question, broken), {"{}": 0})
        found.expect(after, says_yes(question, broken), {"{}": 1})
    return found


def needed(name, page, content):
    """Return whether rules in *content* make the alert of a drill, or record what its playbook asks for."""
    asked = set(re.findall(r"\b\w+:[\w:]+", " ".join(questions(page))))
    made = yaml.safe_load(content)["groups"][0]["rules"]
    leads = any(rule.get("alert") == DRILLS[name].alert and rule["labels"]["playbook"] == name for rule in made)
    recorded = bool(asked & {rule.get("record") for rule in made})
    slos = {broken.get("slo") for broken in DRILLS[name].broken} - {None}
    about = {rule["labels"].get("slo") for rule in made if "labels" in rule} - {None}
    return (leads or recorded) and (not slos or not about or bool(slos & about))


def run(name, folder, rules, page=None):
    """Run one drill against *rules* in *folder*; return what promtool says is wrong."""
    page = page or (PLAYBOOKS / f"{name}.md").read_text()
    rules = {path: content for path, content in rules.items() if needed(name, page, content)}
    for path, content in rules.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    test = folder / f"drill-{name}.yaml"
    test.write_text(yaml.safe_dump(test_file(sorted(rules), STEP, [case(name, page)])))
    content, said = promtool("test", "rules", test.name, cwd=folder)
    return "" if content else said


def rules():
    """Return the rule files of the example, by path."""
    files = project.build(project.load(EXAMPLE))
    return {path: content for path, content in files.items() if path.startswith("rules/")}


def dated(page, day):
    """Return a playbook with the day of its drill in its head."""
    without = re.sub(r"^last_drilled: .*\n", "", page, count=1, flags=re.MULTILINE)
    head, fence, body = without.removeprefix("---\n").partition("---\n")
    return f"---\n{head}last_drilled: {day.isoformat()}\n{fence}{body}"


def main():
    """Run every drill; with --write note the day in the playbooks that passed."""
    made, today, failed = rules(), dt.datetime.now(dt.UTC).date(), 0
    for name in DRILLS:
        with tempfile.TemporaryDirectory() as folder:
            said = run(name, Path(folder), made)
        print(f"{name}: {said or 'passed'}")
        failed += bool(said)
        file = PLAYBOOKS / f"{name}.md"
        if not said and "--write" in sys.argv[1:]:
            page = dated(file.read_text(), today)
            playbooks.parse(page, str(file), name)
            file.write_text(page)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
