"""Which playbook fits: by the alerts that fire, where it began, and what kind of errors there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from rtobs.incident.facts import Alert
from rtobs.incident.onset import Onset
from rtobs.slo.playbooks import Playbook

_PAGE, _TICKET, _STAGE, _CATEGORIES = 2.0, 1.0, 2.0, 4.0
_LEAST: Final = 1.0
"""Below this nothing fits."""
_HOPS: Final = {"wait": "consume", "stage": "consume"}
"""Places that playbooks know by another name."""


class Suggestion(NamedTuple):
    """A playbook, how well it fits, and why."""

    playbook: str
    score: float
    reasons: tuple[str, ...]


def suggest(
    playbooks: Iterable[Playbook],
    alerts: Sequence[Alert],
    first: Onset | None,
    errors: Mapping[str, float],
    bad: float,
) -> list[Suggestion]:
    """Return the playbooks that fit, the best first; none where nothing fired.

    Args:
        playbooks: all there are.
        alerts: those that fired; each name counts once for the playbook it names.
        first: where it began.
        errors: how many errors there were, by error category.
        bad: how many events were bad; errors that explain few of them say little.
    """
    if not alerts:
        return []  # some errors there are always
    total = sum(errors.values())
    explained = min(1.0, total / bad) if bad else 1.0
    found = (_fit(playbook, alerts, first, errors, explained) for playbook in playbooks)
    return sorted(
        (one for one in found if one.score >= _LEAST), key=lambda suggestion: (-suggestion.score, suggestion.playbook)
    )


def _fit(
    playbook: Playbook, alerts: Sequence[Alert], first: Onset | None, errors: Mapping[str, float], explained: float
) -> Suggestion:
    worst, reasons = 0.0, list[str]()
    leading = {alert.name: alert for alert in alerts if alert.labels.get("playbook") == playbook.id}
    for name, alert in sorted(leading.items()):
        worst = max(worst, _PAGE if alert.labels.get("severity") == "page" else _TICKET)
        reasons.append(f"{name} leads there")
    score = worst  # once: several alerts of one SLO say the same thing
    where = "" if first is None else _HOPS.get(first.place, first.place)
    named = {where, first.who} if first is not None else set[str]()
    if named & set(playbook.stages):
        score += _STAGE
        reasons.append(f"it began at {where}")
    total = sum(errors.values())
    share = sum(errors.get(category, 0.0) for category in playbook.error_categories) / total if total else 0.0
    if share:
        score += _CATEGORIES * share * explained
        known = [category for category in playbook.error_categories if errors.get(category)]
        reasons.append(f"{share:.0%} of the errors are {' or '.join(known)}")
    return Suggestion(playbook.id, round(score, 2), tuple(reasons))
