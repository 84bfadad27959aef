"""The recorded series of one SLO: names, labels and the expressions that alerts and dashboards read them by.

Levels: ``series`` (as counted), ``slo`` (the whole promise), ``tenant`` and the SLO's group, ``channel`` or
``connector``. Every recorded series has the labels ``slo`` and ``service``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rtobs._conventions import OTHER, SLO_EXPECTED, SLO_GOOD, Instrument, Label, prometheus_name
from rtobs.slo import promql
from rtobs.slo.durations import seconds, span
from rtobs.slo.model import SLO, Declaration
from rtobs.slo.promql import ALL
from rtobs.slo.windows import BASE, GROUP_WINDOW, INTERVAL

SERVICE: Final = "service"
"""Label of every series and alert: what the promises are about."""
JOB: Final = "job"
"""Label that Prometheus gives to what it scrapes or receives."""
REVISION: Final = Label.REVISION.value
TOTAL, BAD = "sli_total:rate5m", "sli_bad:rate5m"
ONE_TENANT: Final = "slo:one_tenant:count"
ACTIVE, AFFECTED = "slo:tenants_active:count", "slo:tenants_affected:count"
BURNING: Final = "tenant:burning:ratio"


@dataclass(frozen=True, slots=True)
class Scale:
    """How many times faster than real time the windows go by; 1 outside of live tests."""

    factor: float = 1.0

    def seconds(self, value: float) -> float:
        """Return *value* seconds of the declaration as seconds of the clock."""
        return value / self.factor

    def span(self, value: float) -> str:
        """Return *value* seconds of the declaration as PromQL has them."""
        return span(value / self.factor)


@dataclass(frozen=True, slots=True)
class Series:
    """The series of one SLO of one declaration."""

    declaration: Declaration
    slo: SLO
    scale: Scale = Scale()

    @property
    def labels(self) -> dict[str, str]:
        """Labels that every recorded series has."""
        return {Label.SLO.value: self.slo.name, SERVICE: self.declaration.service}

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels below the whole SLO: tenant where tenants are named, and the SLO's group."""
        tenant = (Label.TENANT.value,) if self.declaration.tenants else ()
        return (*tenant, self.slo.group_by) if self.slo.group_by else tenant

    @property
    def group_window(self) -> float:
        """Seconds in which one channel or connector is judged; rare jobs need longer."""
        return max(GROUP_WINDOW, 2 * seconds(self.slo.every)) if self.slo.every else GROUP_WINDOW

    def objectives(self, level: str) -> dict[str, float]:
        """Objectives of single tenants, channels or connectors at *level*, percent."""
        return dict(self.slo.tenants if level == Label.TENANT else self.slo.groups)

    def read(self, name: str, window: float = 0, matchers: Mapping[str, str] = ALL) -> str:
        """Return the selector of a recorded series of this SLO; *window* in seconds of the declaration."""
        equal = {label: f"={promql.text(value)}" for label, value in self.labels.items()}
        return promql.select(name, {**equal, **matchers}, self.scale.span(window) if window else "")

    def counted(self, instrument: Instrument, *, offset: float = 0) -> str:
        """Return the rate per second of one of the two counters, by the labels that this SLO has."""
        matchers = {Label.SLO.value: f"={promql.text(self.slo.name)}", JOB: promql.one_of(self.declaration.jobs)}
        selector = promql.select(prometheus_name(instrument), matchers, self.scale.span(BASE), offset)
        return f"sum{self.by} (rate({selector}))"

    @property
    def by(self) -> str:
        """The clause that keeps the labels of the levels."""
        return f" by ({', '.join(self.levels)})" if self.levels else ""

    @property
    def expected(self) -> str:
        """Rate of what was expected, put off until it can be known to be bad."""
        return self.counted(SLO_EXPECTED, offset=self.slo.offset)

    @property
    def good(self) -> str:
        """Rate of what kept the promise."""
        return self.counted(SLO_GOOD)

    def bad_events(self, level: str, window: float, matchers: Mapping[str, str] = ALL) -> str:
        """Return how many events were bad in *window* seconds: rates, summed over evaluations that are evenly apart.

        Signed: what was in time before it was due comes off again, so that a burst is not bad at its end.
        """
        rates = self.read(f"{level}:{BAD}", window, matchers=matchers)
        return f"sum_over_time({rates}) * {promql.number(self.scale.seconds(INTERVAL))}"

    def ratio(self, level: str, window: float) -> str:
        """Return the name of the recorded share of bad events in *window* seconds."""
        return f"{level}:sli_error:ratio_rate{span(window)}"

    def fresh(self, level: str, window: float, matchers: Mapping[str, str] = ALL) -> str:
        """Return the share of bad events in the shorter *window* of a tier.

        Where a job runs only now and then, what its last run was like holds until the next.
        """
        name = self.ratio(level, window)
        if not self.slo.every:
            return self.read(name, matchers=matchers)
        kept = max(window, seconds(self.slo.every))
        return f"last_over_time({self.read(name, kept, matchers=matchers)})"


def named(level: str) -> dict[str, str]:
    """Return the matcher that leaves out what has no name of its own at *level*."""
    return {level: promql.none_of([OTHER])} if level == Label.TENANT else {}
