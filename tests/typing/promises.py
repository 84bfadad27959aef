"""Promises as objects: every public name of rtobs.slo, as mypy --strict and pyright see it."""

from __future__ import annotations

from pathlib import Path

from rtobs.slo import (
    SLO,
    Alerting,
    Deadline,
    Declaration,
    DeclarationError,
    Latency,
    Mistake,
    Ratio,
    Step,
    load,
)

ACK = SLO(
    name="api-ack",
    objective=99.9,
    sli=Latency("300ms", hop="accept"),
    description="Acknowledged in time.",
    playbook="api-latency",
    owner="team-messaging",
    severity="ticket",
    tenants={"acme": 99.5},
    alerting=Alerting(page=20, single_tenant="page"),
    policy=(Step(10, "Only fixes are released."),),
)
DELIVERY = SLO("delivery", 99, Deadline("promise", "5s"), "In time.", "vendor", "me", group_by="channel")
JOBS = SLO("jobs", 99.5, Ratio("job", bad=("late", "missed")), "In time.", "backlog", "me", every="1h")


def declared(path: Path) -> Declaration:
    """Return what a file and this module declare."""
    try:
        return load(path).with_slos([ACK, DELIVERY, JOBS])
    except DeclarationError as error:
        first: Mistake = error.mistakes[0]
        raise SystemExit(f"{first.place}: {first.saw}; {first.do}") from None


budget: float = ACK.budget
threshold: float = DELIVERY.threshold
revision: str = JOBS.revision
services: list[str] = [Declaration("notify", (ACK,), tenants=("acme",)).service]
