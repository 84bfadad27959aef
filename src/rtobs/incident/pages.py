"""A summary as people read it: ten lines when it begins, a draft of the postmortem when it is over. Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rtobs.incident.escape import literal
from rtobs.incident.facts import Alert
from rtobs.incident.onset import Onset
from rtobs.incident.signals import missing
from rtobs.incident.summary import Count, Promise, Summary, days_left
from rtobs.slo.durations import span
from rtobs.slo.links import playbook
from rtobs.slo.model import Declaration

UNKNOWN: Final = "unknown"
_KNOWN_ENOUGH: Final = 0.1


def opened(summary: Summary, declaration: Declaration) -> str:
    """Return what whoever is paged should read first."""
    heard = list(dict.fromkeys(alert.name for alert in summary.alerts))
    what = ", ".join(map(literal, heard)) or "no alert fires"
    lines = [
        f"# {literal(summary.service)}: {what}",
        "",
        f"- **Since**: {_time(summary.begin)}, {'for' if summary.ongoing else 'until'} {_until(summary)}",
        f"- **Promises**: {_promises(summary, declaration)}",
        f"- **Affected**: {_affected(summary)}",
        f"- **Began at**: {_onset(summary.first)}",
        f"- **Errors**: {_counts(summary.errors)}",
        f"- **Traces**: {', '.join(map(literal, summary.traces)) or UNKNOWN}",
        f"- **Changed**: {UNKNOWN if 'versions' in summary.unknown else _changes(summary)}",
        f"- **Playbook**: {_suggested(summary, declaration)}",
    ]
    if summary.merged:
        lines.append(f"- **Also, and silent because of the above**: {_names(summary.merged)}")
    return "\n".join([*lines, ""])


def postmortem(summary: Summary, declaration: Declaration) -> str:
    """Return the draft of a postmortem: what is known is filled in, what people have to say is asked."""
    lines = [
        opened(summary, declaration).replace("# ", "# Postmortem (draft): ", 1),
        "## Timeline",
        "",
        *(f"- {_time(at)} {says}" for at, says in _timeline(summary)),
        "",
        "## What it cost",
        "",
        *(f"- {_promise(promise, summary, declaration)}" for promise in summary.promises),
        *(["- unknown"] if not summary.promises else []),
        "",
        "## What could we not see?",
        "",
        *(f'- {signal.words}: nothing was answered (`signal = "{signal.name}"`)' for signal in missing(summary)),
        *(["- Everything that was asked was answered."] if not summary.unknown else []),
        "- What else was missed? `rtobs check` fails until required.toml's stages, channels, connectors … are there.",
        "",
        "## Why did it happen, and what will be different?",
        "",
        "- ",
    ]
    return "\n".join([*lines, ""])


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _length(summary: Summary) -> float:
    return max(summary.end - summary.begin, 0.0)


def _until(summary: Summary) -> str:
    length = span(max(round(_length(summary)), 1))
    return f"{length}, and it goes on" if summary.ongoing else f"{_time(summary.end)}, {length}"


def _promises(summary: Summary, declaration: Declaration) -> str:
    broken = [promise for promise in summary.promises if promise.bad > 0]
    if not summary.promises:
        return UNKNOWN
    return "; ".join(_promise(promise, summary, declaration) for promise in broken) or "none broken"


def _promise(promise: Promise, summary: Summary, declaration: Declaration) -> str:
    share = f" ({promise.bad / promise.total:.1%})" if promise.total else ""
    said = f"{promise.slo}: {promise.bad:,.0f} of {promise.total:,.0f} events bad{share}"
    if promise.covered is None or promise.burned is None:
        return f"{said}, budget burned: unknown"
    known = f"{promise.covered:.0%} of the window known"
    if promise.covered < _KNOWN_ENOUGH:
        return f"{said}, too early to say what that is of the budget ({known})"
    left = "" if promise.left is None else f", {promise.left:.0%} left"
    slo = next(slo for slo in declaration.slos if slo.name == promise.slo)
    days = days_left(slo, promise, _length(summary))
    lasts = f", which lasts {days:.1f} days at this speed" if days is not None and summary.ongoing else ""
    return f"{said}, {promise.burned:.1%} of the budget burned{left}{lasts} ({known})"


def _affected(summary: Summary) -> str:
    if summary.affected is None:
        tenants = "tenants unknown"
    else:
        active = f" of {summary.active:.0f} active" if summary.active is not None else ""
        tenants = f"{summary.affected:.0f}{active} tenants"
    counted = (("tenants", summary.tenants), ("channels", summary.channels), ("connectors", summary.connectors))
    named = [f"{what} {_counts(found)}" for what, found in counted if found]
    return "; ".join([tenants, *named])


def _counts(found: Sequence[Count]) -> str:
    return ", ".join(f"{literal(count.who)} ({count.events:,.0f})" for count in found[:3]) or UNKNOWN


def _onset(onset: Onset | None) -> str:
    if onset is None:
        return UNKNOWN
    return f"{_place(onset)}, {_time(onset.at)}: {_measured(onset)}"


def _place(onset: Onset) -> str:
    return f"{onset.place} {literal(onset.who)}".rstrip()


def _measured(onset: Onset) -> str:
    if onset.measure == "failures":
        return f"{onset.value:.0%} fail, {onset.usual:.0%} is usual"
    return f"{onset.value:.2f} s, {onset.usual:.2f} s is usual"


def _changes(summary: Summary) -> str:
    return "; ".join(map(literal, summary.changes)) or "nothing that is known"


def _suggested(summary: Summary, declaration: Declaration) -> str:
    if not summary.suggestions:
        return UNKNOWN
    best, *others = summary.suggestions
    reasons = "; ".join(map(literal, best.reasons))
    said = f"[{best.playbook}]({playbook(declaration, best.playbook)}) (score {best.score:g}: {reasons})"
    return f"{said}; next {others[0].playbook} ({others[0].score:g})" if others else said


def _names(alerts: Sequence[Alert]) -> str:
    return ", ".join(dict.fromkeys(literal(alert.name) for alert in alerts))


def _timeline(summary: Summary) -> list[tuple[float, str]]:
    found = [(onset.at, f"{_place(onset)}: {_measured(onset)}") for onset in summary.timeline]
    for alert in (*summary.alerts, *summary.merged):
        silent = " (silent)" if alert.inhibited else ""
        who = alert.labels.get("slo") or alert.labels.get("destination") or alert.labels.get("provider") or ""
        name = literal(f"{alert.name} {who}".rstrip())
        found.append((alert.since, f"{name} fires{silent}"))
        if alert.until is not None:
            found.append((alert.until, f"{name} ends"))
    return sorted(found)
