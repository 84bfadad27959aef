"""The alerts of one SLO: budgets that burn, at every level; no data; freshness of what has a deadline.

An alert's labels never change while it fires; numbers that do belong into the incident summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rtobs._conventions import END_TO_END, INTENTS, Label, prometheus_name
from rtobs.slo import links
from rtobs.slo.durations import seconds, span
from rtobs.slo.model import Deadline, Severity, least
from rtobs.slo.promql import ALL, Rule, alert, literal, number, one_of, select, text
from rtobs.slo.series import BURNING, JOB, ONE_TENANT, TOTAL, Series, named
from rtobs.slo.windows import BASE, CLIFF_WINDOW, GROUP_FACTOR, LATE, NO_DATA_FOR, Tier, cliff_share, usable

BURN: Final = "RtobsSLOBurn"
BURN_TENANT: Final = "RtobsSLOBurnTenant"
BURN_SLOW: Final = "RtobsSLOBurnSlow"
NO_DATA: Final = "RtobsSLONoData"
FRESHNESS: Final = "RtobsFreshnessDegraded"
BELOW: Final = {"channel": "RtobsChannelBelowSLO", "connector": "RtobsConnectorBelowSLO"}

FRESHNESS_FOR: Final = 180.0
RECEIPTS_SILENT: Final = 600.0
RECEIPTS_BEFORE: Final = 100
"""Deliveries that reached a step in the hour before; with fewer, ten quiet minutes are luck."""


def tier(series: Series, level: str, each: Tier, matchers: Mapping[str, str] = ALL) -> str:
    """Return the condition of one tier at one level."""
    limit = number(each.factor * series.slo.budget)
    if level != "slo":
        limit = f"{number(each.factor)} * {series.read(f'{level}:error_budget:ratio', matchers=matchers)}"
    enough = series.slo.alerting.page if each.severity == "page" else series.slo.alerting.ticket
    long = series.read(series.ratio(level, each.long), matchers=matchers)
    short = series.fresh(level, each.short, matchers=matchers)
    bad = f"{series.bad_events(level, each.long, matchers=matchers)} >= {enough}"
    return f"({long} > {limit} and {short} > {limit} and {bad})"


def cliff(series: Series, level: str) -> str:
    """Return the condition of the cliff tier: so much is bad that nobody should wait for the hour."""
    limit = number(cliff_share(series.slo.window, series.slo.budget))
    short = series.fresh(level, BASE)
    return f"({short} > {limit} and {series.bad_events(level, CLIFF_WINDOW)} >= {series.slo.alerting.page})"


def alerts(series: Series) -> Iterator[Rule]:
    """Yield the alerts of one SLO."""
    yield from _burn(series)
    yield from _slow(series)
    if series.slo.group_by:
        yield from _below(series)
    if isinstance(series.slo.sli, Deadline):
        yield from _freshness(series, series.slo.sli)
    yield from _no_data(series)


def _alert(
    series: Series, name: str, expression: str, severity: Severity, says: str, *, wait: float = 0, **labels: str
) -> Iterator[Rule]:
    """Yield one alert, unless the SLO has none of its severity."""
    slo = series.slo
    severity = least(severity, slo.severity)
    if severity == "dashboard":
        return
    own = {name: literal(value) for name, value in series.labels.items()}
    found = {**own, "severity": severity, **labels, "owner": literal(slo.owner), "playbook": slo.playbook}
    annotations = {
        "summary": f"{slo.name}: {says}",
        "description": literal(slo.description),
        **links.found_at(series.declaration, slo.playbook, links.PROMISES, slo=slo.name),
    }
    yield alert(name, expression, found, annotations, wait=series.scale.seconds(wait))


def _unless_one_tenant(series: Series, expression: str, on: str = "slo, service") -> str:
    if Label.TENANT not in series.levels:
        return expression
    return f"({expression})\nunless on ({on}) {series.read(ONE_TENANT)}"


def _burn(series: Series) -> Iterator[Rule]:
    """Page for a budget that burns too fast, unless one tenant alone burns it."""
    pages = [each for each in usable(series.slo.window, series.slo.budget) if each.severity == "page"]
    conditions = [*(tier(series, "slo", each) for each in pages), cliff(series, "slo")]
    expression = _unless_one_tenant(series, "\nor\n".join(conditions))
    radius = "multi_tenant" if Label.TENANT in series.levels else "unknown"
    says = "the error budget burns at a speed that cannot wait"
    yield from _alert(series, BURN, expression, "page", says, blast_radius=radius)
    if Label.TENANT in series.levels:
        yield from _alert(
            series,
            BURN_TENANT,
            series.read(BURNING, matchers=named(Label.TENANT)),
            series.slo.alerting.single_tenant,
            "the promise is broken for tenant {{ $labels.tenant }}",
            blast_radius="single_tenant",
        )


def _slow(series: Series) -> Iterator[Rule]:
    """Ask for attention where the budget would not last: of the whole SLO, and of whom it promises something else."""
    slow = [each for each in usable(series.slo.window, series.slo.budget) if each.severity == "ticket"]
    conditions = [tier(series, "slo", each) for each in slow]
    for level in series.levels:
        if own := series.objectives(level):
            conditions += [tier(series, level, each, matchers={level: one_of(own)}) for each in slow]
    if conditions:
        yield from _alert(series, BURN_SLOW, "\nor\n".join(conditions), "ticket", _will_not_last(series))


def _will_not_last(series: Series) -> str:
    levels = [level for level in series.levels if series.objectives(level)]
    says = "the error budget will not last"
    if not levels:
        return says
    names = " ".join(f"$labels.{level}" for level in levels)
    return f"{says}{{{{ with or {names} }}}}, that of {{{{ . }}}} by its own objective{{{{ end }}}}"


def _below(series: Series) -> Iterator[Rule]:
    """Page for one channel or connector far below its objective."""
    level, window = series.slo.group_by, series.group_window
    budget = series.read(f"{level}:error_budget:ratio")
    bad = f"{series.bad_events(level, window)} >= {series.slo.alerting.page}"
    limit = f"{number(GROUP_FACTOR)} * {budget}"
    expression = (
        f"{series.read(series.ratio(level, window))} > {limit} and {series.fresh(level, BASE)} > {limit} and {bad}"
    )
    says = f"{level} {{{{ $labels.{level} }}}} is far below its objective"
    yield from _alert(series, BELOW[level], _unless_one_tenant(series, expression), "page", says)


def _freshness(series: Series, sli: Deadline) -> Iterator[Rule]:
    """Page where deliveries get old before they arrive, or where it is no longer heard that they do."""
    age, channel, enough = prometheus_name(END_TO_END), Label.CHANNEL.value, series.slo.alerting.page
    from_jobs = {JOB: one_of(series.declaration.jobs)}
    if channel in series.slo.where:
        from_jobs[channel] = one_of(series.slo.where[channel])
    at_step = from_jobs if sli.step == "promise" else {**from_jobs, Label.STEP.value: f"={text(sli.step)}"}
    base, silent, hour = (series.scale.span(each) for each in (BASE, RECEIPTS_SILENT, 3600))
    p95 = (
        f"min by (channel) (histogram_quantile(0.95, sum by (channel, step, le)"
        f" (rate({select(f'{age}_bucket', at_step, base)}))))"
    )
    promised = prometheus_name(INTENTS)
    flowing = f"sum by (channel) (increase({select(promised, from_jobs, base)})) >= {enough}"
    before = select(f"{age}_count", at_step, hour, series.scale.seconds(RECEIPTS_SILENT))
    now = select(f"{age}_count", at_step, silent)
    still = f"sum by (channel) (increase({select(promised, from_jobs, silent)})) >= {enough}"
    expression = (
        f"({p95} > {number(series.slo.threshold)} and on (channel) {flowing})\n"
        "or\n"
        f"((sum by (channel, step) (increase({before})) >= {RECEIPTS_BEFORE}\n"
        f"unless on (channel, step) sum by (channel, step) (increase({now})) > 0)\n"
        f"and on (channel) {still})"
    )
    says = "what arrives on {{ $labels.channel }} is old, or it is no longer heard that anything arrives"
    expression = _unless_one_tenant(series, expression, on="")  # ages do not know whose SLO they are
    yield from _alert(series, FRESHNESS, expression, "page", says, wait=FRESHNESS_FOR)


def _no_data(series: Series) -> Iterator[Rule]:
    """Ask for attention where there are no series, or no run of a job that should have begun."""
    slo, level = series.slo, series.slo.group_by
    if not slo.every:
        missing = f"absent({series.read(f'slo:{TOTAL}')})"
        yield from _alert(
            series, NO_DATA, missing, "ticket", "nothing is counted any more", wait=NO_DATA_FOR + slo.offset
        )
        return
    every = seconds(slo.every)
    says = f"no run in {span(LATE * every)}, and one is due every {slo.every}"
    running = f"{series.read(f'{level}:{TOTAL}' if level else f'slo:{TOTAL}')} > 0"
    if not level:
        yield from _alert(series, NO_DATA, f"absent({running})", "ticket", says, wait=LATE * every)
        return
    before = max(10 * every, 86_400.0)
    known = [f"sum by ({level}) (sum_over_time({series.read(f'{level}:{TOTAL}', before)})) > 0"]
    known += [f'label_replace(vector(1), {text(level)}, {text(name)}, "", "")' for name in slo.where.get(level, ())]
    expression = f"({' or '.join(known)})\nunless on ({level}) {running}"
    says = f"{level} {{{{ $labels.{level} }}}}: {says}"
    yield from _alert(series, NO_DATA, expression, "ticket", says, wait=LATE * every)
