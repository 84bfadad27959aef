"""Who hears of an alert: routes by severity, and what need not be said beside something worse.

Also the cases that show it, and the part of Alertmanager's rules for inhibition that they need. Must not know files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rtobs._conventions import Label
from rtobs.slo import alerts, triggers
from rtobs.slo.model import Declaration
from rtobs.slo.promql import one_of
from rtobs.slo.series import SERVICE

Labels = Mapping[str, str]

PAGE, TICKET, NOBODY = "rtobs-page", "rtobs-ticket", "rtobs-nobody"
_SLO: Final = Label.SLO.value


def config(declaration: Declaration) -> dict[str, Any]:
    """Return a configuration of Alertmanager; its receivers are to be filled in."""
    # Without slo!="" a page that is about no SLO would silence tickets that are about none: a label that both lack
    # counts as equal.
    return {
        "route": {
            "receiver": NOBODY,
            "group_by": [SERVICE, "playbook"],
            "routes": [
                {
                    "matchers": [f"{SERVICE}{one_of([declaration.service])}"],
                    "receiver": NOBODY,
                    "routes": [
                        {"matchers": ['severity="page"'], "receiver": PAGE},
                        {
                            "matchers": ['severity="ticket"'],
                            "receiver": TICKET,
                            "group_by": [SERVICE, "playbook", _SLO],
                            "group_wait": "5m",
                            "repeat_interval": "24h",
                        },
                    ],
                }
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['severity="page"', f'{_SLO}!=""'],
                "target_matchers": ['severity="ticket"'],
                "equal": [_SLO, SERVICE],
            },
            {
                "source_matchers": ['blast_radius="multi_tenant"'],
                "target_matchers": ['blast_radius="single_tenant"'],
                "equal": [_SLO, SERVICE],
            },
            {
                "source_matchers": [f'alertname="{triggers.SATURATED}"'],
                "target_matchers": [f"alertname{one_of((triggers.LAG, triggers.DEAD))}"],
                "equal": [SERVICE],
            },
        ],
        "receivers": [{"name": name} for name in (PAGE, TICKET, NOBODY)],
    }


class Case(NamedTuple):
    """Alerts that fire together, and which of them somebody hears of, by receiver."""

    name: str
    firing: Sequence[Labels]
    heard: Mapping[str, Sequence[int]]
    """Positions in *firing*, by receiver."""

    def data(self) -> dict[str, Any]:
        """Return the case as plain data."""
        heard = {receiver: list(positions) for receiver, positions in self.heard.items()}
        return {"name": self.name, "firing": [dict(labels) for labels in self.firing], "heard": heard}


def cases(declaration: Declaration) -> list[Case]:
    """Return what has to be heard, and what not."""
    one = {SERVICE: declaration.service, _SLO: declaration.slos[0].name}
    other = {**one, _SLO: f"not-{one[_SLO]}"}
    service = {SERVICE: declaration.service}
    page = {"alertname": alerts.BURN, "severity": "page", "blast_radius": "multi_tenant", **one}
    slow = {"alertname": alerts.BURN_SLOW, "severity": "ticket"}
    tenant = {"alertname": alerts.BURN_TENANT, "blast_radius": "single_tenant", "tenant": "acme", **one}
    lag = {"alertname": triggers.LAG, "severity": "page", **service}
    orders, events = ({**lag, "destination": name} for name in ("orders", "events"))
    dead = {"alertname": triggers.DEAD, "severity": "page", "destination": "orders", **service}
    saturated = {"alertname": triggers.SATURATED, "severity": "page", **service}
    retries = {"alertname": triggers.RETRIES, "severity": "ticket", "provider": "fcm", **service}
    below = {"alertname": alerts.BELOW["channel"], "severity": "page", "channel": "push", **one}
    elsewhere = f"not-{declaration.service}"
    tenant_page = {**tenant, "severity": "page"}
    return [
        Case("a page silences the tickets of its own SLO", (page, {**slow, **one}), {PAGE: [0]}),
        Case("tickets of another SLO are heard beside it", (page, {**slow, **other}), {PAGE: [0], TICKET: [1]}),
        Case("a page that is about no SLO silences no ticket", (orders, retries), {PAGE: [0], TICKET: [1]}),
        Case("a ticket alone is heard", ({**slow, **one},), {TICKET: [0]}),
        Case("one tenant alone is heard", ({**tenant, "severity": "ticket"},), {TICKET: [0]}),
        Case("many tenants silence each single one", (page, tenant_page), {PAGE: [0]}),
        Case("many tenants of one SLO do not silence one of another", (page, {**tenant_page, **other}), {PAGE: [0, 1]}),
        Case("a channel does not silence a tenant", (below, tenant_page), {PAGE: [0, 1]}),
        Case("many tenants do not silence a channel", (page, below), {PAGE: [0, 1]}),
        Case("a broker silences its queues", (saturated, orders, events, dead), {PAGE: [0]}),
        Case("a broker does not silence promises", (saturated, page, retries), {PAGE: [0, 1], TICKET: [2]}),
        *(
            Case(
                f"another service does not silence {what}",
                ({**loud, SERVICE: elsewhere}, quiet),
                {NOBODY: [0], who: [1]},
            )
            for what, loud, quiet, who in (
                ("a queue", saturated, dead, PAGE),
                ("a ticket", page, {**slow, **one}, TICKET),
                ("a tenant", page, tenant_page, PAGE),
            )
        ),
    ]


def heard(config: Mapping[str, Any], firing: Sequence[Labels]) -> dict[str, list[int]]:
    """Return who hears of which of the alerts that are *firing*, by receiver, under *config*."""
    found: dict[str, list[int]] = {}
    for index, labels in enumerate(firing):
        if not any(_inhibited(rule, labels, firing) for rule in config["inhibit_rules"]):
            found.setdefault(_receiver(config["route"], labels), []).append(index)
    return found


def _receiver(route: Mapping[str, Any], labels: Labels) -> str:
    inner = next((one for one in route.get("routes", ()) if _matches(one.get("matchers", ()), labels)), None)
    return _receiver(inner, labels) if inner is not None else str(route["receiver"])


def _inhibited(rule: Mapping[str, Any], target: Labels, firing: Iterable[Labels]) -> bool:
    """Return whether *rule* keeps *target* quiet: a label that both sides lack counts as equal."""
    if not _matches(rule["target_matchers"], target):
        return False
    return any(
        _matches(rule["source_matchers"], source)
        and all(source.get(label, "") == target.get(label, "") for label in rule["equal"])
        and not (_matches(rule["source_matchers"], target) and _matches(rule["target_matchers"], source))
        for source in firing
    )


def _matches(matchers: Iterable[str], labels: Labels) -> bool:
    return all(_match(matcher, labels) for matcher in matchers)


def _match(matcher: str, labels: Labels) -> bool:
    found = re.fullmatch(r'(\w+)(=~|!=|=)"(.*)"', matcher)
    if found is None:
        raise ValueError(matcher)
    label, how, value = found.groups()
    seen, value = labels.get(label, ""), re.sub(r"\\(.)", r"\1", value)
    if how == "=~":
        return re.fullmatch(value, seen) is not None
    return (seen == value) == (how == "=")
