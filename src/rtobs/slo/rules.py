"""The recording and alerting rules of one SLO: one group, evaluated in order, alerts last.

Two series per SLO are derived from the counters, ``bad`` and ``total`` over five minutes; all longer windows are
sums of those, so that quiet hours weigh less than busy ones. Must not know files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rtobs._conventions import OTHER, Label
from rtobs.slo import alerts
from rtobs.slo.durations import seconds
from rtobs.slo.model import SLO, Declaration, budget_of
from rtobs.slo.promql import ALL, Rule, none_of, number, one_of, record
from rtobs.slo.series import ACTIVE, AFFECTED, BAD, BURNING, ONE_TENANT, REVISION, TOTAL, Scale, Series
from rtobs.slo.windows import BASE, INTERVAL, Tier, tiers, usable

_HOUR = 3600.0


def group(declaration: Declaration, slo: SLO, scale: Scale) -> dict[str, Any]:
    """Return the rule group of *slo*, as Prometheus' rule files have it."""
    series = Series(declaration, slo, scale)
    rules = [*_counted(series), *_whole(series)]
    for level in series.levels:
        rules += _level(series, level)
    if Label.TENANT in series.levels:
        rules += _blast_radius(series)
    return {
        "name": f"rtobs-slo-{declaration.service}-{slo.name}",
        "interval": scale.span(INTERVAL),
        "rules": [*rules, *alerts.alerts(series)],
    }


def _counted(series: Series) -> Iterator[Rule]:
    """Record bad and total as counted, and summed over the whole SLO."""
    labels = series.labels
    total = series.read(f"series:{TOTAL}")
    on = f"on ({', '.join(series.levels)})"
    yield record(f"series:{TOTAL}", series.expected, labels)
    # Where nothing has been good yet, everything is bad, and not unknown; what is in time before it is due comes off.
    expected, good = f"({total} or {on} 0 * {series.good})", f"({series.good} or {on} 0 * {total})"
    yield record(f"series:{BAD}", f"{expected} - {on} {good}", labels)
    for one in (TOTAL, BAD):
        yield record(f"slo:{one}", f"sum by (slo, service) ({series.read(f'series:{one}')})", labels)


def _whole(series: Series) -> Iterator[Rule]:
    """Record the budget, and the share of bad events over every window that a tier or the objective is about."""
    slo, labels = series.slo, series.labels
    window = seconds(slo.window)
    budget = series.read("slo:error_budget:ratio")
    yield record("slo:error_budget:ratio", f"vector({number(slo.budget)})", labels)
    yield record("slo:revision:info", "vector(1)", {**labels, REVISION: slo.revision})
    found = {each for tier in tiers(slo.window) for each in (tier.short, tier.long)} | {window}
    for each in sorted(found):
        yield record(series.ratio("slo", each), _share(series, "slo", each), labels)
    yield record("slo:current_burn_rate:ratio", f"{series.read(series.ratio('slo', BASE))} / {budget}", labels)
    left = f"1 - {series.read(series.ratio('slo', window))} / {budget}"
    yield record("slo:period_error_budget_remaining:ratio", left, labels)
    known = f"count_over_time({series.read(f'slo:{TOTAL}', window)})"
    covered = f"{known} * {number(series.scale.seconds(INTERVAL))} / {number(series.scale.seconds(window))}"
    yield record("slo:window_coverage:ratio", f"clamp_max({covered}, 1)", labels)


def _share(series: Series, level: str, window: float, matchers: Mapping[str, str] = ALL) -> str:
    """Return the share of bad events in *window* seconds: nothing where nothing was expected."""
    bad, total = series.read(f"{level}:{BAD}", matchers=matchers), series.read(f"{level}:{TOTAL}", matchers=matchers)
    if window != BASE:
        bad = f"sum_over_time({series.read(f'{level}:{BAD}', window, matchers=matchers)})"
        total = f"sum_over_time({series.read(f'{level}:{TOTAL}', window, matchers=matchers)})"
    return f"clamp_min({bad}, 0) / ({total} > 0)"


def _level(series: Series, level: str) -> Iterator[Rule]:
    """Record what single tenants, channels or connectors are like, each against its own objective."""
    slo, labels = series.slo, series.labels
    for one in (TOTAL, BAD):
        yield record(f"{level}:{one}", f"sum by (slo, service, {level}) ({series.read(f'series:{one}')})", labels)
    yield record(f"{level}:error_budget:ratio", _budgets(series, level), labels)
    fast = {each for tier in tiers(slo.window) if tier.severity == "page" for each in (tier.short, tier.long)}
    windows = fast if level == Label.TENANT else {BASE, series.group_window, _HOUR}
    for each in sorted(windows):
        yield record(series.ratio(level, each), _share(series, level, each), labels)
    burn = f"{series.read(series.ratio(level, _HOUR))} / {series.read(f'{level}:error_budget:ratio')}"
    yield record(f"{level}:burn:rate1h", burn, labels)
    own = series.objectives(level)
    if own:
        slow = {each for tier in tiers(slo.window) if tier.severity == "ticket" for each in (tier.short, tier.long)}
        for each in sorted(slow - windows):
            share = _share(series, level, each, matchers={level: one_of(own)})
            yield record(series.ratio(level, each), share, labels)


def _budgets(series: Series, level: str) -> str:
    """Return the error budget of everyone at *level*: their own, or else the SLO's."""
    own = series.objectives(level)
    total = f"{level}:{TOTAL}"
    found = [
        f"0 * {series.read(total, matchers={level: one_of([name])})} + {number(budget_of(objective))}"
        for name, objective in own.items()
    ]
    others = {level: none_of(own)} if own else {}
    found.append(f"0 * {series.read(total, matchers=others)} + {number(series.slo.budget)}")
    return "\nor\n".join(found)


def _blast_radius(series: Series) -> Iterator[Rule]:
    """Record which tenants burn at paging speed, how many of how many, and whether it is one alone."""
    labels, tenant = series.labels, Label.TENANT.value
    conditions = [alerts.tier(series, tenant, each) for each in usable_pages(series.slo)]
    yield record(BURNING, "\nor\n".join((*conditions, alerts.cliff(series, tenant))), labels)
    heard = f"sum_over_time({series.read(f'{tenant}:{TOTAL}', _HOUR)}) > 0"
    yield record(ACTIVE, f"count by (slo, service) ({heard})", labels)
    active, affected = series.read(ACTIVE), series.read(AFFECTED)
    yield record(AFFECTED, f"count by (slo, service) ({series.read(BURNING)}) or 0 * {active}", labels)
    # Tenants without a name share one series, so nobody knows how many of them are affected: never "one alone".
    unnamed = series.read(BURNING, matchers={tenant: one_of([OTHER])})
    alone = f"({affected} == 1 and {active} > 1) unless on (slo, service) {unnamed}"
    yield record(ONE_TENANT, alone, labels)


def usable_pages(slo: SLO) -> tuple[Tier, ...]:
    """Return the paging tiers of *slo* that can fire."""
    return tuple(tier for tier in usable(slo.window, slo.budget) if tier.severity == "page")
