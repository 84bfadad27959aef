"""What a dashboard is made of, as plain data: panels, their queries, and the selectors that these are written with.

Knows the series; must not know Grafana's JSON, nor which panels there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from rtobs._conventions import Instrument, prometheus_name
from rtobs.slo.model import Deadline, Declaration
from rtobs.slo.promql import ALL, one_of, select, text
from rtobs.slo.series import JOB, SERVICE

RATE: Final = "$__rate_interval"
"""Grafana's own window: long enough for the scrape interval, as long as a pixel is wide."""
SHARE, SECONDS, TIMES, COUNT, PER_SECOND = "percentunit", "s", "suffix:×", "short", "cps"


class Query(NamedTuple):
    """One expression, and how its lines are named."""

    expression: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows, in which unit, where the promise is, and what to do next."""

    title: str
    next: str
    unit: str
    queries: tuple[Query, ...]
    promise: float
    """Where it stops being fine: a line is drawn there, or a number turns red."""
    playbook: str
    kind: Literal["stat", "lines", "table"] = "lines"
    less_is_bad: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard; its title is a question, and its first row the answer."""

    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[tuple[str, str], ...] = ()
    """Names of filters, and the query that lists their values."""


@dataclass(frozen=True)
class Pick:
    """Selectors of one declaration."""

    declaration: Declaration

    def raw(self, instrument: Instrument, matchers: Mapping[str, str] = ALL, window: str = "", part: str = "") -> str:
        """Return the selector of an exported series; *matchers* are rests of matchers by label."""
        found = {JOB: one_of(self.declaration.jobs), **matchers}
        return select(prometheus_name(instrument) + part, found, window)

    def rate(
        self, by: str, instrument: Instrument, matchers: Mapping[str, str] = ALL, window: str = RATE, part: str = ""
    ) -> str:
        """Return how much a counter grows per second, by labels."""
        return f"sum by ({by}) (rate({self.raw(instrument, matchers, window, part)}))"

    def p95(self, by: str, instrument: Instrument, matchers: Mapping[str, str] = ALL) -> str:
        """Return the 95th percentile of a histogram, by labels."""
        return f"histogram_quantile(0.95, {self.rate(f'{by}, le', instrument, matchers, part='_bucket')})"

    def share(
        self,
        by: str,
        of: str,
        instrument: Instrument,
        some: Mapping[str, str],
        *,
        matchers: Mapping[str, str] = ALL,
        window: str = RATE,
    ) -> str:
        """Return the share that *some* have, by more labels, of what is counted by the labels *of*."""
        part = self.rate(by, instrument, {**matchers, **some}, window)
        return f"{part} / on ({of}) group_left {self.rate(of, instrument, matchers, window)}"

    def kept(self, name: str, matchers: Mapping[str, str] = ALL) -> str:
        """Return the selector of a series that the rules record."""
        return select(name, {SERVICE: f"={text(self.declaration.service)}", **matchers})


def budget(declaration: Declaration, about: str) -> float:
    """Return the strictest budget of the SLOs about a kind of hop or "deadline"; a hundredth if there are none."""
    found = [slo.budget for slo in declaration.slos if about in {slo.sli.kind, getattr(slo.sli, "hop", "")}]
    return min(found, default=0.01)


def limit(declaration: Declaration) -> float:
    """Return the shortest deadline in seconds; a minute if there is none."""
    return min((slo.threshold for slo in declaration.slos if isinstance(slo.sli, Deadline)), default=60.0)


def playbook(declaration: Declaration) -> str:
    """Return the playbook of the SLO about deliveries, or of the first."""
    slos = declaration.slos
    return next((slo for slo in slos if isinstance(slo.sli, Deadline)), slos[0]).playbook
