"""From facts to a summary: what, since when, who is affected, where it began, what was burned, what to do.

Every part of which nothing is known is None or empty and named under ``unknown``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from rtobs.incident.facts import Alert, Facts, Labels, Sample
from rtobs.incident.onset import Onset, onsets
from rtobs.incident.signals import SIGNALS, answered
from rtobs.incident.suggest import Suggestion, suggest
from rtobs.slo.durations import seconds
from rtobs.slo.mistakes import items, table
from rtobs.slo.model import SLO, Declaration
from rtobs.slo.playbooks import Playbook

VERSION: Final = "rtobs/incident/v1"
_TRACES: Final = 3


class Promise(NamedTuple):
    """What one SLO lost: bad events of all, share of the window's budget, what is left of it."""

    slo: str
    bad: float
    total: float
    burned: float | None
    """Share of the budget of the whole window that this incident used up."""
    left: float | None
    covered: float | None
    """Share of the window that is known; below a tenth burned and left say little."""


class Count(NamedTuple):
    """Somebody or something, and how many events of theirs were bad."""

    who: str
    events: float


@dataclass(frozen=True, slots=True)
class Summary:
    """An incident in numbers; times are seconds since 1970."""

    service: str
    begin: float
    end: float
    ongoing: bool
    alerts: tuple[Alert, ...]
    """Those that somebody heard of, the first first."""
    merged: tuple[Alert, ...]
    """Those that were silent because of them."""
    promises: tuple[Promise, ...]
    affected: float | None
    active: float | None
    tenants: tuple[Count, ...]
    channels: tuple[Count, ...]
    connectors: tuple[Count, ...]
    first: Onset | None
    timeline: tuple[Onset, ...]
    errors: tuple[Count, ...]
    """By error category, with the provider or destination that has most of them."""
    traces: tuple[str, ...]
    changes: tuple[str, ...]
    suggestions: tuple[Suggestion, ...]
    unknown: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """Return the summary as plain data for JSON; its form is ``incident.schema.json``."""
        found = _plain({"version": VERSION, **asdict(self)})
        return dict(found)


def summarise(facts: Facts, declaration: Declaration, playbooks: Iterable[Playbook]) -> Summary:
    """Return what *facts* say about the service of *declaration*; the same facts give the same summary."""
    samples = facts.samples
    alerts = sorted(facts.alerts, key=lambda alert: (alert.since, alert.name, sorted(alert.labels.items())))
    began = min((alert.since for alert in alerts), default=facts.begin)
    timeline = onsets(facts.lines, facts.begin)
    first = timeline[0] if timeline else None
    errors = (*samples.get("errors", ()), *samples.get("settled", ()))
    categories = _sums(errors, "error_category")
    promises = tuple(_promise(slo, samples) for slo in declaration.slos if _of(slo, samples, "bad") is not None)
    bad = max((one.bad for one in promises), default=0.0)
    traces = tuple(dict.fromkeys(exemplar.trace_id for exemplar in facts.exemplars))[:_TRACES]
    ended = [alert.until for alert in alerts if alert.until is not None]
    ongoing = not facts.over and (not alerts or len(ended) < len(alerts))
    return Summary(
        service=declaration.service,
        begin=min(began, first.at if first is not None else began),
        end=facts.end if ongoing or len(ended) < len(alerts) or not ended else max(ended),
        ongoing=ongoing,
        alerts=tuple(alert for alert in alerts if not alert.inhibited),
        merged=tuple(alert for alert in alerts if alert.inhibited),
        promises=promises,
        affected=_most(samples.get("affected", ())),
        active=_most(samples.get("active", ())),
        tenants=_counts(samples.get("bad_by_tenant", ()), "tenant"),
        channels=_counts(samples.get("bad_by_channel", ()), "channel"),
        connectors=_counts(samples.get("bad_by_connector", ()), "connector"),
        first=first,
        timeline=tuple(timeline),
        errors=_errors(errors, categories),
        traces=traces,
        changes=_changes(samples),
        suggestions=tuple(suggest(playbooks, alerts, first, categories, bad)) if alerts or first or bad else (),
        unknown=tuple(signal.words for signal in SIGNALS if not answered(signal, facts)),
    )


def _promise(slo: SLO, samples: Mapping[str, tuple[Sample, ...]]) -> Promise:
    bad, total = max(_of(slo, samples, "bad") or 0.0, 0.0), _of(slo, samples, "total") or 0.0
    covered = _of(slo, samples, "coverage")
    known = _of(slo, samples, f"total_in_{slo.window}")
    burned = None
    if known and covered:
        burned = round(bad / (slo.budget * known / covered), 6)  # as if the rest of the window were like what is known
    return Promise(slo.name, round(bad, 1), round(total, 1), burned, _of(slo, samples, "left"), covered)


def _of(slo: SLO, samples: Mapping[str, tuple[Sample, ...]], name: str) -> float | None:
    for sample in samples.get(name, ()):
        if sample.labels.get("slo") == slo.name and math.isfinite(sample.value):
            return sample.value
    return None


def _most(samples: Iterable[Sample]) -> float | None:
    return max((sample.value for sample in samples if math.isfinite(sample.value)), default=None)


def _sums(samples: Iterable[Sample], label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        if (name := sample.labels.get(label, "")) and math.isfinite(sample.value):
            found[name] = found.get(name, 0.0) + sample.value
    return found


def _counts(samples: Iterable[Sample], label: str) -> tuple[Count, ...]:
    found = _sums(samples, label)
    return tuple(Count(name, round(found[name], 1)) for name in sorted(found, key=lambda name: (-found[name], name)))


def _errors(samples: Iterable[Sample], categories: Mapping[str, float]) -> tuple[Count, ...]:
    worst: dict[str, Sample] = {}
    for sample in samples:
        category = sample.labels.get("error_category", "")
        if category and (category not in worst or sample.value > worst[category].value):
            worst[category] = sample
    ranked = sorted(categories, key=lambda name: (-categories[name], name))
    return tuple(Count(_at(name, worst[name].labels), round(categories[name], 1)) for name in ranked)


def _at(category: str, labels: Labels) -> str:
    where = labels.get("provider", "") or labels.get("destination", "")
    return f"{category} at {where}" if where else category


def _changes(samples: Mapping[str, tuple[Sample, ...]]) -> tuple[str, ...]:
    """Return what runs at the end and did not at the beginning; nothing where the beginning is not known."""
    found: list[str] = []
    for name, of, what in (("versions", "job", "service_version"), ("revisions", "slo", "revision")):
        before, after = (
            {(sample.labels.get(of, ""), sample.labels.get(what, "")) for sample in samples.get(f"{name}_{when}", ())}
            for when in ("before", "after")
        )
        if before:
            found += [f"{who} is now {value or 'of no version'}" for who, value in sorted(after - before)]
    return tuple(found)


def days_left(slo: SLO, promise: Promise, length: float) -> float | None:
    """Return how many days the rest of the budget lasts at this incident's speed; None = not known, or not at all."""
    if not promise.burned or promise.left is None or promise.left <= 0 or length <= 0:
        return None
    per_day = promise.burned / (length / 86_400)
    return min(promise.left / per_day, seconds(slo.window) / 86_400)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if (pairs := table(value)) is not None:
        return {str(key): _plain(one) for key, one in pairs.items()}
    if (entries := items(value)) is not None:
        return [_plain(one) for one in entries]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
