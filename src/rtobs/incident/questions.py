"""What has to be asked to tell what happened: expressions of PromQL for a service and a time. Asks nobody itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from rtobs._conventions import (
    ACCEPT_DURATION,
    ATTEMPTS,
    CLIENT_DURATION,
    DELIVERY_DURATION,
    END_TO_END,
    MESSAGE_SETTLED,
    QUEUE_AGE,
    SLO_INFO,
    STAGE_DURATION,
    Instrument,
    Label,
    prometheus_label,
    prometheus_name,
)  # fmt: skip
from rtobs.slo.durations import seconds, span
from rtobs.slo.model import Deadline, Declaration
from rtobs.slo.promql import number, one_of, select, text
from rtobs.slo.series import JOB, SERVICE, Scale
from rtobs.slo.windows import INTERVAL

BEFORE: Final = 3600.0
"""Seconds before an incident that say what is usual."""
_POINTS: Final = 240
_SETTLED_BADLY: Final = ("rejected", "dropped", "expired", "dead_lettered", "failed")

SEEN: Final = "seen:"
"""What names of questions begin with that ask whether there is anything to be seen at all; a signal's name follows."""
FAILURES: Final = "failures:"
SLOWNESS: Final = "seconds:"
"""What names of questions about a place begin with; the place follows."""
PLACES: Final = ("accept", "publish", "stage", "deliver", "consume", "wait")
"""The places where a message can fail or wait, causes before what follows from them.

A message is settled badly because a stage or delivery inside failed, and others wait because it took so long.
"""
PLACE_LABELS: Final = {
    "accept": "route", "wait": "destination", "stage": "stage", "consume": "destination", "deliver": "provider",
}  # fmt: skip
"""What tells the lines of one place apart."""


class Question(NamedTuple):
    """One question: answered at a moment, over time in steps, or by exemplars."""

    name: str
    kind: Literal["instant", "range", "exemplars"]
    expression: str
    begin: float
    """Seconds since 1970; an instant question is asked at *end*."""
    end: float
    step: float = 0


def questions(declaration: Declaration, begin: float, end: float, scale: Scale | None = None) -> list[Question]:
    """Return what to ask Prometheus about an incident of a service, from *begin* to *end* in seconds since 1970."""
    asked = _Asked(declaration, max(end - begin, 1.0), scale or Scale())
    found = [Question(name, "instant", expression, begin, end) for name, expression in asked.counts()]
    found += [Question(name, "instant", expression, begin, begin) for name, expression in asked.versions("before")]
    found += [Question(name, "instant", expression, begin, end) for name, expression in asked.versions("after")]
    early = begin - asked.scale.seconds(BEFORE)
    step = max((end - early) / _POINTS, asked.scale.seconds(INTERVAL))
    found += [Question(name, "range", expression, early, end, step) for name, expression in asked.places()]
    found += [Question("exemplars", "exemplars", expression, begin, end) for expression in asked.exemplars()]
    return found


class _Asked(NamedTuple):
    declaration: Declaration
    length: float
    scale: Scale

    def kept(self, name: str, window: str = "") -> str:
        return select(name, {SERVICE: f"={text(self.declaration.service)}"}, window)

    def raw(self, instrument: Instrument, window: str, part: str = "", **matchers: str) -> str:
        found = {JOB: one_of(self.declaration.jobs), **matchers}
        return select(prometheus_name(instrument) + part, found, window)

    def events(self, series: str, window: str = "") -> str:
        """Return how many events a recorded rate stands for."""
        every = number(self.scale.seconds(INTERVAL))
        return f"sum_over_time({self.kept(series, window or span(self.length))}) * {every}"

    def counts(self) -> Iterator[tuple[str, str]]:
        window = span(self.length)
        yield "affected", f"max_over_time({self.kept('slo:tenants_affected:count', window)})"
        yield "active", f"max_over_time({self.kept('slo:tenants_active:count', window)})"
        yield "bad", self.events("slo:sli_bad:rate5m")
        yield "total", self.events("slo:sli_total:rate5m")
        for level in ("tenant", "channel", "connector"):
            yield f"bad_by_{level}", f"topk(5, {self.events(f'{level}:sli_bad:rate5m')} > 0.5)"
        for length in dict.fromkeys(slo.window for slo in self.declaration.slos):
            within = self.scale.span(seconds(length))
            yield f"total_in_{length}", self.events("slo:sli_total:rate5m", within)
        yield "coverage", self.kept("slo:window_coverage:ratio")
        yield "left", self.kept("slo:period_error_budget_remaining:ratio")
        failed = self.raw(ATTEMPTS, window, result='="failed"')
        yield "errors", f"topk(5, sum by (error_category, provider) (increase({failed})) > 0.5)"
        settled = self.raw(MESSAGE_SETTLED, window, outcome=one_of(_SETTLED_BADLY))
        yield "settled", f"topk(5, sum by (error_category, destination) (increase({settled})) > 0.5)"
        for signal, instrument in (("deliveries", ATTEMPTS), ("messages", MESSAGE_SETTLED), ("queue-age", QUEUE_AGE)):
            yield f"{SEEN}{signal}", f"count(last_over_time({self.raw(instrument, window)}))"

    def versions(self, when: str) -> Iterator[tuple[str, str]]:
        info = select("target_info", {JOB: one_of(self.declaration.jobs)})
        yield f"versions_{when}", f"count by (job, service_version) ({info})"
        yield f"revisions_{when}", f"count by (slo, revision) ({self.raw(SLO_INFO, '')})"

    def places(self) -> Iterator[tuple[str, str]]:
        window = self.scale.span(120)
        failed = {Label.OUTCOME.value: '="failed"'}
        yield f"{FAILURES}accept", self.share(ACCEPT_DURATION, "_count", "route", window, failed)
        yield f"{SLOWNESS}accept", self.p95(ACCEPT_DURATION, "route", window, **{Label.OUTCOME.value: '="ok"'})
        operation, error = prometheus_label(Label.OPERATION), prometheus_label(Label.ERROR_TYPE)
        sends = {operation: '="send"'}
        some, every = (
            f"sum (rate({self.raw(CLIENT_DURATION, window, '_count', **matchers)}))"
            for matchers in ({**sends, error: '!=""'}, sends)
        )
        yield f"{FAILURES}publish", f"({some} or 0 * {every}) / ({every} > 0)"
        yield f"{SLOWNESS}publish", self.p95(CLIENT_DURATION, operation, window, **sends)
        ages = self.kept("destination:oldest_age:max")
        yield f"{SLOWNESS}wait", f"{ages} or on (destination) {self.kept('destination:message_lag:mean2m')}"
        yield f"{FAILURES}stage", self.share(STAGE_DURATION, "_count", "stage", window, failed)
        yield f"{SLOWNESS}stage", self.p95(STAGE_DURATION, "stage", window)
        badly = {Label.OUTCOME.value: one_of(_SETTLED_BADLY)}
        yield f"{FAILURES}consume", self.share(MESSAGE_SETTLED, "", "destination", window, badly)
        result = {Label.RESULT.value: '="failed"'}
        yield f"{FAILURES}deliver", self.share(ATTEMPTS, "", "provider", window, result)
        yield f"{SLOWNESS}deliver", self.p95(DELIVERY_DURATION, "provider", window)

    def share(self, instrument: Instrument, part: str, by: str, window: str, some: dict[str, str]) -> str:
        chosen = f"sum by ({by}) (rate({self.raw(instrument, window, part, **some)}))"
        every = f"sum by ({by}) (rate({self.raw(instrument, window, part)}))"
        return f"({chosen} or 0 * {every}) / ({every} > 0)"

    def p95(self, instrument: Instrument, by: str, window: str, **matchers: str) -> str:
        buckets = self.raw(instrument, window, "_bucket", **matchers)
        return f"histogram_quantile(0.95, sum by ({by}, le) (rate({buckets}))) >= 0"

    def exemplars(self) -> Iterator[str]:
        if any(isinstance(slo.sli, Deadline) for slo in self.declaration.slos):
            yield self.raw(END_TO_END, "", "_bucket")
        yield self.raw(DELIVERY_DURATION, "", "_bucket", result='="failed"')
        yield self.raw(ACCEPT_DURATION, "", "_bucket")
