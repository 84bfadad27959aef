"""One SLO under test: which traffic its counters see, and which alerts follow from it.

What should fire is computed from the declaration alone, by other means than the rules: it is what they are held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rtobs._conventions import OTHER, SLO_EXPECTED, SLO_GOOD, Label, prometheus_name
from rtobs.slo import alerts
from rtobs.slo.model import SLO, Severity, budget_of, least
from rtobs.slo.series import JOB, Series
from rtobs.slo.testfile import Case, Segment, grown, selector, up_to_multiple
from rtobs.slo.windows import GROUP_FACTOR, INTERVAL, cliff_share, usable

Cell = tuple[str, str]
"""A tenant, and a channel or connector; empty where the SLO has none."""


@dataclass(frozen=True)
class Bench:
    """One SLO with traffic in a few cells, all of the same volume."""

    series: Series

    @property
    def slo(self) -> SLO:
        """The SLO whose rules are tested."""
        return self.series.slo

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those with objectives of their own, two with names at least if so many are declared, and all the rest."""
        named = self.series.declaration.tenants
        own = [tenant for tenant in named if tenant in self.slo.tenants]
        return (*tuple(dict.fromkeys((*own, *named)))[: max(2, len(own))], OTHER)

    @property
    def groups(self) -> tuple[str, ...]:
        """Channels or connectors: those declared, or a few."""
        group = self.slo.group_by
        if not group:
            return ("",)
        more = ("push", "email") if group == "channel" else ("first", "second")
        return self.slo.where.get(group) or tuple(dict.fromkeys((*self.slo.groups, *more)))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every tenant on every channel or connector."""
        return tuple((tenant, group) for tenant in self.tenants for group in self.groups)

    @property
    def volume(self) -> float:
        """Events a minute in one cell, so many that every guard of bad events is passed at once."""
        strictest = min((self.slo.budget, *map(budget_of, (*self.slo.tenants.values(), *self.slo.groups.values()))))
        return math.ceil(100 / strictest)

    def name(self, metric: str, cell: Cell, job: str = "") -> str:
        """Return the series of one of the two counters in *cell*, of the first job or another."""
        labels = {
            JOB: job or self.series.declaration.jobs[0],
            Label.SLO.value: self.slo.name,
            Label.TENANT.value: cell[0],
        }
        return selector(metric, {**labels, **({self.slo.group_by: cell[1]} if cell[1] else {})})

    def feed(self, case: Case, cell: Cell, expected: list[Segment], good: list[Segment] | None) -> None:
        """Let the counters of *cell* grow; without *good*, that series does not exist."""
        case.series[self.name(prometheus_name(SLO_EXPECTED), cell)] = grown(expected, case.interval)
        if good is not None:
            case.series[self.name(prometheus_name(SLO_GOOD), cell)] = grown(good, case.interval)

    def steady(self, case: Case, length: float, bad: Mapping[Cell, float]) -> None:
        """Let every cell have its share of *bad* events all the time; what is good is so at the last moment."""
        due = self.slo.offset
        case.interval = due / math.ceil(due / INTERVAL) if due else INTERVAL
        for cell in self.cells:
            self.feed(case, cell, [(length + due, self.volume)], [(due, 0.0), (length, self.volume * (1 - bad[cell]))])

    def delay(self) -> float:
        """Seconds by which a deadline puts off what can be known, in whole evaluations."""
        return up_to_multiple(self.slo.offset, INTERVAL) if self.slo.offset > INTERVAL / 3 else 0


@dataclass(frozen=True)
class Steady:
    """A state that has lasted: the share of bad events in each cell."""

    bench: Bench
    bad: Mapping[Cell, float]

    @property
    def alerts(self) -> list[dict[str, str]]:
        """The alerts that fire, by the labels that tell them apart."""
        found: list[dict[str, str]] = []
        for name, severity, labels in (*self._whole(), *self._tenants(), *self._groups()):
            allowed = least(severity, self.bench.slo.severity)
            if allowed != "dashboard":
                found.append({"alertname": name, "severity": allowed, **labels})
        return found

    @property
    def affected(self) -> list[str]:
        """Tenants that burn their own budget at paging speed."""
        if Label.TENANT not in self.bench.series.levels:
            return []
        return [one for one in self.bench.tenants if self._burns(self._share(0, one), self._budget(one), "page")]

    @property
    def alone(self) -> bool:
        """Whether one tenant with a name is affected, and nobody else."""
        return len(self.affected) == 1 and self.affected != [OTHER]

    def _budget(self, tenant: str) -> float:
        return budget_of(self.bench.slo.tenants.get(tenant, self.bench.slo.objective))

    def _share(self, index: int, name: str) -> float:
        inside = [value for cell, value in self.bad.items() if cell[index] == name]
        return sum(inside) / len(inside)

    def _burns(self, value: float, budget: float, severity: Severity) -> bool:
        slo = self.bench.slo
        fast = severity == "page" and value > cliff_share(slo.window, slo.budget)
        factors = [tier.factor for tier in usable(slo.window, slo.budget) if tier.severity == severity]
        return fast or any(value > factor * budget for factor in factors)

    def _whole(self) -> Iterator[tuple[str, Severity, dict[str, str]]]:
        slo, value = self.bench.slo, sum(self.bad.values()) / len(self.bad)
        if self._burns(value, slo.budget, "page") and not self.alone:
            yield alerts.BURN, "page", {}
        if self._burns(value, slo.budget, "ticket"):
            yield alerts.BURN_SLOW, "ticket", {}

    def _tenants(self) -> Iterator[tuple[str, Severity, dict[str, str]]]:
        slo = self.bench.slo
        for tenant in self.affected:
            if tenant != OTHER:
                yield alerts.BURN_TENANT, slo.alerting.single_tenant, {"tenant": tenant}
        for tenant in slo.tenants:
            if self._burns(self._share(0, tenant), self._budget(tenant), "ticket"):
                yield alerts.BURN_SLOW, "ticket", {"tenant": tenant}

    def _groups(self) -> Iterator[tuple[str, Severity, dict[str, str]]]:
        slo = self.bench.slo
        for group in self.bench.groups if slo.group_by else ():
            value, budget = self._share(1, group), budget_of(slo.groups.get(group, slo.objective))
            if value > GROUP_FACTOR * budget and not self.alone:
                yield alerts.BELOW[slo.group_by], "page", {slo.group_by: group}
            if group in slo.groups and self._burns(value, budget, "ticket"):
                yield alerts.BURN_SLOW, "ticket", {slo.group_by: group}
