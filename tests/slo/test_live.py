"""Faults in the demo, live: a real Prometheus alerts, a real Alertmanager calls, and the summary says what to do.

All scenarios go on at once, each a service of its own; windows go by many times faster than in production, less so
where ``RTOBS_TIME_SCALE`` says that everything takes longer. It ends when everybody has been called who should be, not
at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from rtobs.incident import Summary, opened
from rtobs.slo import alerts, triggers
from tests.slo.live import Live, Scenario
from tests.slo.support import needs_alertmanager, needs_promtool
from tests.support.timing import scaled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(560), needs_promtool, needs_alertmanager]

SLOWER = max(1.0, scaled(1.0))
HEALTHY = 100.0 * SLOWER
"""Seconds: more than the hour, 40 times faster, that says what is usual."""
PATIENCE = 120.0 * SLOWER
"""Seconds within which everybody who should be has been called."""
LATER = 15.0 * SLOWER
"""Seconds after that at which somebody looks: enough to tell what lasts from a single event."""
RATE = 6.0
FAST = 40.0 / SLOWER
"""How many times faster than in production windows go by."""


@dataclass(frozen=True)
class Told:
    """What was heard and found out of one scenario."""

    scenario: Scenario
    pages: list[str]
    summary: Summary
    text: str
    traces: set[str]
    """Trace ids that the demos have exported."""


def scenarios() -> list[Scenario]:
    return [
        Scenario("expired-token", [("expired-token", "ticket")], FAST, (alerts.BURN, triggers.AUTH)),
        Scenario("slow-consumer", [("slow-consumer", "ticket")], FAST, (triggers.LAG,)),
        Scenario("schema-drift", [("schema-drift", "ticket")], FAST, (alerts.BURN,)),
        Scenario("rate-limit", [("rate-limit", "ticket")], FAST, (alerts.BURN, triggers.RETRIES)),
        Scenario(
            "two-at-once", [("expired-token", "ticket"), ("slow-consumer", "sms")], FAST, (triggers.AUTH, triggers.LAG)
        ),
        Scenario("nothing", [("none", "ticket")], FAST / 8),  # a busy machine is slow, but not for a minute
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Told]:
    """What happened in each scenario."""
    folder = tmp_path_factory.mktemp("live")
    with Live(folder, scenarios(), healthy=HEALTHY, rate=RATE) as live:
        broken = time.monotonic() + HEALTHY
        _watch(live, broken)
        while not all(one.heard for one in live.scenarios) and time.monotonic() < broken + PATIENCE:
            _watch(live, time.monotonic() + 1)
        _watch(live, time.monotonic() + LATER)
        now = time.time()
        live.stop()
        found = {}
        for one in live.scenarios:
            summary = live.summary(one, min((alert.since for alert in one.alerts), default=now - LATER), now)
            text = opened(summary, one.project.declaration)
            found[one.name] = Told(one, one.paged, summary, text, live.traces)
        return found


def _watch(live: Live, until: float) -> None:
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))
        live.hear()


@pytest.mark.parametrize(
    ("name", "playbook", "where"),
    [
        ("expired-token", "api-auth-failures", {("deliver", "ticket-desk")}),
        ("slow-consumer", "connector-backlog", {("stage", "look_up_customer"), ("wait", "deliver.ticket")}),
        ("schema-drift", "dead-letter-growth", {("deliver", "ticket-desk")}),
        ("rate-limit", "downstream-vendor-outage", {("deliver", "ticket-desk")}),
    ],
)
def test_each_fault_leads_to_its_playbook_and_place(told, name, playbook, where):
    """Somebody is paged; the summary puts the right playbook first and names the stage that failed first."""
    found = told[name]
    assert found.pages, found.text
    assert found.summary.suggestions[0].playbook == playbook, found.text
    assert (found.summary.first.place, found.summary.first.who) in where, found.text
    assert f"**Playbook**: [{playbook}]" in found.text


@pytest.mark.parametrize("name", ["expired-token", "slow-consumer", "schema-drift", "rate-limit", "two-at-once"])
def test_traces_of_the_summary_were_exported(told, name):
    """Every trace that the summary names is among those that the demo has exported."""
    found = told[name]
    assert found.summary.traces
    assert set(found.summary.traces) <= found.traces
    assert all(trace in found.text for trace in found.summary.traces)


def test_two_faults_at_once_are_both_named(told):
    """Where a token has run out and another channel's consumer is slow, both playbooks and both places are told."""
    found = told["two-at-once"]
    assert found.pages
    assert {"api-auth-failures", "connector-backlog"} <= {one.playbook for one in found.summary.suggestions[:3]}
    places = {(onset.place, onset.who) for onset in found.summary.timeline}
    assert ("deliver", "ticket-desk") in places
    assert places & {("stage", "look_up_customer"), ("wait", "deliver.sms")}
    assert all(alert in found.text for alert in ("RtobsAuthFailures", "RtobsLagGrowing"))


def test_where_nothing_is_wrong_nobody_is_called(told):
    """A healthy platform pages nobody, and a summary of it suggests nothing: unknown."""
    found = told["nothing"]
    assert found.pages == [], found.text
    assert found.summary.suggestions == (), found.text
    assert "**Playbook**: unknown" in found.text
