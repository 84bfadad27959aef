"""Facts of an incident: asks a Prometheus what ``questions`` names, and puts the answers together.

Where something is not answered, that answer is missing; nothing is made up. Must not know where Prometheus is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from rtobs._conventions import ACCEPT_DURATION, END_TO_END, Label, prometheus_name
from rtobs._prometheus import Example, QueryError, Value, Values
from rtobs.incident.facts import Alert, Exemplar, Facts, Labels, Line, Sample
from rtobs.incident.questions import SEEN, Question, questions
from rtobs.incident.signals import TRACES
from rtobs.slo import alertmanager
from rtobs.slo.model import Deadline, Declaration, Latency
from rtobs.slo.promql import one_of, select, text
from rtobs.slo.series import SERVICE, Scale
from rtobs.slo.windows import INTERVAL

_LEAD: Final = 600.0
"""Seconds before the first alert at which it may have begun: alerts wait, and rates are over minutes."""
_EARLIEST: Final = 6 * 3600.0
"""How long before its alert a budget may have begun to burn, seconds."""
_POINTS: Final = 10_000
"""Fewer than Prometheus gives in one answer."""
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")


class Asked(Protocol):
    """What is asked of a Prometheus; ``rtobs._prometheus.Prometheus`` is one."""

    def instant(self, query: str, at: float | None = None) -> list[Value]:
        """Return what *query* is at a moment."""
        ...

    def over_time(self, query: str, begin: float, end: float, step: float) -> list[Values]:
        """Return what *query* was."""
        ...

    def examples(self, query: str, begin: float, end: float) -> list[Example]:
        """Return exemplars."""
        ...


def gather(
    asked: Asked,
    declaration: Declaration,
    alerts: Iterable[Alert],
    begin: float,
    end: float,
    *,
    scale: Scale | None = None,
    over: bool = False,
) -> Facts:
    """Return what *asked* knows of an incident of the service of *declaration*.

    Args:
        asked: the Prometheus.
        declaration: whose rules it evaluates.
        alerts: those that are known already, from Alertmanager; the others are asked for.
        begin: since when, in seconds since 1970; where alerts are known it may have begun earlier.
        end: until when.
        scale: how much faster than real time its windows go by.
        over: whether it is known to be over at *end*.

    Raises:
        PrometheusError: it cannot be asked.
    """
    scale = scale or Scale()
    known = tuple(alerts)
    fired = quiet(declaration, _merged(known, _fired(asked, declaration, begin, end, scale)))
    start = _beginning(asked, declaration, fired, begin, scale) if known else begin
    samples: dict[str, tuple[Sample, ...]] = {}
    lines: dict[str, tuple[Line, ...]] = {}
    exemplars: list[Exemplar] = []
    for question in questions(declaration, start, end, scale):
        try:
            match question.kind:
                case "instant":
                    samples[question.name] = tuple(_samples(asked, question))
                case "range":
                    found = asked.over_time(question.expression, question.begin, question.end, question.step)
                    lines[question.name] = tuple(Line(_plain(one.labels), one.points) for one in found)
                case "exemplars":
                    every = asked.examples(question.expression, question.begin, question.end)
                    if every:
                        samples[f"{SEEN}{TRACES}"] = (Sample({}, 1.0),)
                    exemplars += chosen(every, declaration)
        except QueryError:
            continue
    return Facts(start, end, fired, samples, {name: one for name, one in lines.items() if one}, tuple(exemplars), over)


def _samples(asked: Asked, question: Question) -> Iterator[Sample]:
    for one in asked.instant(question.expression, question.end):
        yield Sample(_plain(one.labels), one.value)


def _plain(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(labels.items()) if name != "__name__"}


# Alerts --------------------------------------------------------------------------------------------------------------


def _fired(asked: Asked, declaration: Declaration, begin: float, end: float, scale: Scale) -> Iterator[Alert]:
    """Yield each time an alert fired: ``ALERTS`` is there while it does."""
    step = max(scale.seconds(INTERVAL), (end - begin) / _POINTS)
    query = select("ALERTS", {SERVICE: f"={text(declaration.service)}", "alertstate": '="firing"'})
    for line in asked.over_time(query, begin, end, step):
        labels = {name: value for name, value in _plain(line.labels).items() if name != "alertstate"}
        moments = [at for at, _ in line.points]
        first = 0
        for index in range(len(moments)):
            last = index == len(moments) - 1
            if last or moments[index + 1] - moments[index] > 2.5 * step:
                goes_on = last and end - moments[index] < 2 * step
                yield Alert(labels, moments[first], None if goes_on else moments[index] + step)
                first = index + 1


def _merged(known: Sequence[Alert], found: Iterable[Alert]) -> tuple[Alert, ...]:
    """Return *known* alerts and those *found* beside them; Alertmanager's times are exact, and it may add labels."""
    more = [alert for alert in found if not any(alert.labels.items() <= one.labels.items() for one in known)]
    return (*known, *more)


def quiet(declaration: Declaration, alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """Return *alerts* with those marked as inhibited of which nobody hears beside the others."""
    heard = alertmanager.heard(alertmanager.config(declaration), [alert.labels for alert in alerts])
    audible = {index for indexes in heard.values() for index in indexes}
    return tuple(
        Alert(alert.labels, alert.since, alert.until, alert.inhibited or index not in audible)
        for index, alert in enumerate(alerts)
    )


def _beginning(asked: Asked, declaration: Declaration, alerts: Sequence[Alert], begin: float, scale: Scale) -> float:
    """Return from when on to look: since when the budgets burn about which there are alerts, or some minutes before."""
    since = min((alert.since for alert in alerts), default=begin)
    found = [since - scale.seconds(_LEAD)]
    slos = sorted({alert.labels["slo"] for alert in alerts if alert.labels.get("slo")})
    if slos:
        matchers = {SERVICE: f"={text(declaration.service)}", Label.SLO.value: one_of(slos)}
        query = select("slo:current_burn_rate:ratio", matchers)
        lines = asked.over_time(query, since - scale.seconds(_EARLIEST), since, scale.seconds(2 * INTERVAL))
        found += [moment for line in lines if (moment := burning_since(line.points)) is not None]
    return min(found)


def burning_since(points: Iterable[tuple[float, float]]) -> float | None:
    """Return since when a budget has burned faster than it may without a break, up to the last of *points*."""
    first = None
    for at, burn in points:
        if not burn > 1:
            first = None
        elif first is None:
            first = at
    return first


# Traces --------------------------------------------------------------------------------------------------------------


def chosen(examples: Iterable[Example], declaration: Declaration) -> list[Exemplar]:
    """Return those of *examples* that were bad: failed or too late; of each series the worst goes first."""
    by_series: dict[tuple[tuple[str, str], ...], list[Exemplar]] = {}
    for one in examples:
        trace = one.labels.get("trace_id", "")
        if _TRACE_ID.fullmatch(trace) and _was_bad(one, declaration):
            series = tuple(sorted((name, value) for name, value in one.series.items() if name != "le"))
            by_series.setdefault(series, []).append(Exemplar(trace, one.value, dict(series)))
    ranked = [sorted(found, key=lambda one: (-one.value, one.trace_id)) for _, found in sorted(by_series.items())]
    turns = max((len(found) for found in ranked), default=0)
    return [found[turn] for turn in range(turns) for found in ranked if turn < len(found)]


def _was_bad(example: Example, declaration: Declaration) -> bool:
    if example.series.get(Label.RESULT.value) == "failed" or example.series.get(Label.OUTCOME.value) == "failed":
        return True
    name = example.series.get("__name__", "")
    return any(name.startswith(series) and example.value > most for series, most in _promised(declaration))


def _promised(declaration: Declaration) -> Iterator[tuple[str, float]]:
    for slo in declaration.slos:
        if isinstance(slo.sli, Deadline):
            yield prometheus_name(END_TO_END), slo.threshold
        elif isinstance(slo.sli, Latency) and slo.sli.hop == "accept":
            yield prometheus_name(ACCEPT_DURATION), slo.threshold


def of_service(alerts: Iterable[Alert], declaration: Declaration) -> tuple[Alert, ...]:
    """Return those of *alerts* that are about the service of *declaration*."""
    return tuple(alert for alert in alerts if _service(alert.labels) == declaration.service)


def _service(labels: Labels) -> str:
    return labels.get(SERVICE, "")
