"""What people read: the promises in words, and where to look when one breaks. Markdown, made from the declaration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rtobs.slo import links
from rtobs.slo.durations import seconds, span
from rtobs.slo.mistakes import listed
from rtobs.slo.model import SLO, Deadline, Declaration, Latency, budget_of
from rtobs.slo.playbooks import Playbook
from rtobs.slo.promql import number
from rtobs.slo.windows import cliff_share, usable

_OPTIONAL: Final = re.compile(r"{{ with .*?{{ end }}")
"""What a summary says only of some alerts."""
_MADE: Final = "<!-- Made by rtobs slo build; change the declaration instead. -->"


def percent(share: float) -> str:
    """Return a share as people write it, in percent."""
    return f"{number(share * 100)} %"


def promises(declaration: Declaration) -> str:
    """Return the page that product and support read: what is promised, to whom, and what happens if it breaks."""
    lines = [_MADE, f"# What {_text(declaration.service)} promises", ""]
    lines += ["| promise | objective | window | owner | if it breaks |", "|---|---|---|---|---|"]
    for slo in declaration.slos:
        link = f"[{slo.playbook}]({_address(declaration, slo.playbook)})"
        window = f"{slo.window.removesuffix('d')} days"
        lines.append(
            f"| {_text(slo.description)} | {number(slo.objective)} % | {window} | {_text(slo.owner)} | {link} |"
        )
    for slo in declaration.slos:
        lines += ["", f"## {slo.name}", "", _text(slo.description), "", *_promise(declaration, slo)]
    return "\n".join([*lines, ""])


def _promise(declaration: Declaration, slo: SLO) -> list[str]:
    allowed, days = seconds(slo.window) * slo.budget, f"{slo.window.removesuffix('d')} days"
    lines = [
        f"- **Counted**: {_counted(slo)}.",
        f"- **Good**: {_good(slo)}.",
        f"- **Error budget**: {percent(slo.budget)} may be bad; that is {_roughly(allowed)} of total outage in {days}.",
    ]
    for what, own in (("tenant", slo.tenants), (slo.group_by, slo.groups)):
        lines += [
            f"- **{what.capitalize()} {_text(name)}**: {number(value)} % is promised,"
            f" {percent(budget_of(value))} may be bad."
            for name, value in own.items()
        ]
    lines += _told(declaration, slo)
    if slo.policy:
        lines += ["- **What we do as the budget goes down**:"]
        for step in sorted(slo.policy, key=lambda step: -step.budget_left):
            lines.append(f"  - {number(step.budget_left)} % left: {_text(step.action)}")
    return lines


def _text(value: str) -> str:
    """Return *value* as it may stand in a table: its Markdown stays, HTML and cells end with it."""
    return value.replace("|", "\\|").replace("<", "&lt;")


def _address(declaration: Declaration, name: str) -> str:
    address = links.playbook(declaration, name)
    return re.sub(r"[\s()<>|]", lambda found: f"%{ord(found[0]):02X}", address)


def _needed(least: int) -> str:
    return "one bad event is enough" if least == 1 else f"at least {least} bad events are needed"


def _roughly(value: float) -> str:
    """Return seconds as whole hours and minutes, or minutes and seconds."""
    return span(round(value / 60) * 60 if value >= 600 else max(round(value), 1))  # noqa: PLR2004  ten minutes


def _speed(factor: float) -> str:
    return "faster than it may" if factor <= 1 else f"{number(factor)} times as fast as it may"


def _told(declaration: Declaration, slo: SLO) -> list[str]:
    if slo.severity == "dashboard":
        return ["- **Nobody is called**: it is shown on the dashboard only."]
    who = {"page": "Somebody is paged", "ticket": "A ticket is opened"}
    lines: list[str] = []
    for severity in ("page", "ticket"):
        tiers = [tier for tier in usable(slo.window, slo.budget) if tier.severity == severity]
        conditions = [
            f"the budget burns {_speed(tier.factor)} over {span(tier.long)} and still over {span(tier.short)}"
            for tier in tiers
        ]
        if severity == "page":
            conditions.append(f"more than {percent(cliff_share(slo.window, slo.budget))} of 5 minutes is bad")
        least = slo.alerting.page if severity == "page" else slo.alerting.ticket
        if conditions:
            does = who["ticket"] if slo.severity == "ticket" else who[severity]
            lines.append(f"- **{does}** when {', or '.join(conditions)}; {_needed(least)}.")
    if declaration.tenants:
        single = {"dashboard": "nobody is called"}.get(
            slo.alerting.single_tenant, f"it is a {slo.alerting.single_tenant}"
        )
        lines.append(f"- **One named tenant alone** ({', '.join(map(_text, declaration.tenants))}): {single}.")
    if slo.every:
        lines.append(f"- **It has to run** every {slo.every}; half as long again without a run opens a ticket.")
    return lines


def _counted(slo: SLO) -> str:
    sli = slo.sli
    if isinstance(sli, Deadline):
        found = "every delivery that was promised, when it is due; one that is lost is bad"
    elif isinstance(sli, Latency) and sli.stage:
        found = f"every stage named {_text(sli.stage)}"
    else:
        found = {
            "accept": "every request that the API takes in; those that the caller got wrong count neither way",
            "consume": "every message whose handling has ended for good",
            "job": "every run that a connector's schedule demands, once",
        }[sli.hop]
    only = [f"{key} {', '.join(map(_text, names))}" for key, names in slo.where.items()]
    return f"{found} ({'; '.join(only)})" if only else found


def _good(slo: SLO) -> str:
    sli = slo.sli
    if isinstance(sli, Deadline):
        step = "the step that its channel promises" if sli.step == "promise" else f"the step {sli.step}"
        return f"it reached {step} within {sli.threshold} of its creation, or is not owed any more"
    if isinstance(sli, Latency):
        return f"it worked, and took {sli.threshold} at most"
    return f"it did not end {listed(sli.bad)}"


def playbook_index(declaration: Declaration, playbooks: Iterable[Playbook], rules: Sequence[Mapping[str, Any]]) -> str:
    """Return the page that leads from what is seen to the playbook; *rules* are all that were made."""
    lines = [_MADE, f"# Playbooks of {_text(declaration.service)}", ""]
    lines += ["| playbook | alerts that lead there | promises | owner | last drilled |", "|---|---|---|---|---|"]
    found = [rule for rule in rules if "alert" in rule]
    for playbook in sorted(playbooks, key=lambda playbook: playbook.id):
        own = [rule for rule in found if rule["labels"]["playbook"] == playbook.id]
        names = ", ".join(dict.fromkeys(f"`{rule['alert']}`" for rule in own))
        promised = ", ".join(dict.fromkeys(rule["labels"]["slo"] for rule in own if "slo" in rule["labels"]))
        drilled = playbook.last_drilled.isoformat() if playbook.last_drilled else "never"
        link = f"[{_text(playbook.title)}]({_address(declaration, playbook.id)})"
        lines.append(f"| {link} | {names} | {promised or '–'} | {_text(playbook.owner)} | {drilled} |")
    lines += ["", "| alert | severity | says | playbook |", "|---|---|---|---|"]
    for rule in found:
        labels = rule["labels"]
        says = re.sub(r"{{ \$labels\.(\w+) }}", r"*\1*", _OPTIONAL.sub("", rule["annotations"]["summary"]))
        lines.append(f"| `{rule['alert']}` | {labels['severity']} | {says} | {labels['playbook']} |")
    return "\n".join([*lines, ""])
