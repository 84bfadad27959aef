"""The tests of one SLO's rules: what must be silent, what must page, what must open a ticket, and until when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rtobs._conventions import OTHER, SLO_EXPECTED, Label, prometheus_name
from rtobs.slo import alerts, freshness_cases
from rtobs.slo.bench import Bench, Cell, Steady
from rtobs.slo.durations import seconds
from rtobs.slo.model import SLO, Declaration, budget_of
from rtobs.slo.series import AFFECTED, BAD, SERVICE, Scale, Series
from rtobs.slo.testfile import MINUTE, STALE, Case, Segment, grown, selector, up_to_multiple
from rtobs.slo.windows import GROUP_FACTOR, INTERVAL, LATE, NO_DATA_FOR, cliff_share, tiers

HEALTHY: Final = "healthy: half of the strictest budget"
FAST: Final = "1.1 times the fastest burn pages, and recovery ends the page within 6 minutes"
_STEADY: Final = 10 * MINUTE
"""When a steady state is looked at: shorter than every wait."""
_HEALTHY: Final = 150 * MINUTE
"""So long that an hour of the fastest burn does not fire the next tier, of six hours."""
_HOUR: Final = 60 * MINUTE
_LONG_WAIT: Final = 6 * _HOUR
_EVALUATIONS: Final = 200
"""How often rules are evaluated while something is waited for that takes longer."""


def cases(declaration: Declaration, slo: SLO, rules: list[dict[str, Any]]) -> Iterator[Case]:
    """Yield the tests of *slo*, whose generated rules are *rules*."""
    bench = Bench(Series(declaration, slo, Scale()))
    by_name = {rule["alert"]: rule for rule in rules if "alert" in rule}
    yield from _steady_states(bench)
    if alerts.BURN in by_name:
        yield from _outages(bench, by_name[alerts.BURN])
    yield from _quiet(bench)
    if alerts.NO_DATA in by_name:
        yield from _silence(bench, by_name[alerts.NO_DATA])
    if slo.offset:
        yield from _deadlines(bench)
    if alerts.FRESHNESS in by_name:
        yield from freshness_cases.cases(declaration, slo, by_name[alerts.FRESHNESS]["labels"]["severity"])


def _steady_states(bench: Bench) -> Iterator[Case]:
    slo = bench.slo
    budgets = [slo.budget, *map(budget_of, (*slo.tenants.values(), *slo.groups.values()))]
    states: dict[str, dict[Cell, float]] = {
        HEALTHY: dict.fromkeys(bench.cells, min(budgets) / 2),
        "everything is bad": dict.fromkeys(bench.cells, 1.0),
    }
    fast = tiers(slo.window)[0]
    if fast.factor * slo.budget < 1:
        states["burn just below the fastest tier"] = dict.fromkeys(bench.cells, 0.9 * fast.factor * slo.budget)
    if 4 * slo.budget < 1:
        states["four times the budget opens a ticket only"] = dict.fromkeys(bench.cells, 4 * slo.budget)
    if Label.TENANT in bench.series.levels:
        first, *others = bench.tenants
        count = len(bench.tenants)
        states[f"one tenant of {count} gets nothing"] = {cell: float(cell[0] == first) for cell in bench.cells}
        states["tenants without a name get nothing"] = {cell: float(cell[0] == OTHER) for cell in bench.cells}
        if len(others) > 1:
            two = {first, others[0]}
            states[f"two tenants of {count} get nothing"] = {cell: float(cell[0] in two) for cell in bench.cells}
    for level, own in (("tenant", slo.tenants), (slo.group_by, slo.groups)):
        for name, objective in own.items():
            between = GROUP_FACTOR * math.sqrt(budget_of(objective) * slo.budget)
            if between < 1 and objective != slo.objective:
                states[f"{level} {name} has an objective of its own"] = dict.fromkeys(bench.cells, between)
    for name, bad in states.items():
        case = Case(name)
        bench.steady(case, _STEADY, bad)
        case.fires(_STEADY + bench.delay(), Steady(bench, bad).alerts)
        if name == HEALTHY:  # while somebody else's SLO of the same name is not
            theirs = bench.name(prometheus_name(SLO_EXPECTED), bench.cells[0], "somebody-else")
            case.series[theirs] = grown([(_STEADY + bench.delay(), 100 * bench.volume)], case.interval)
        yield case


def _outages(bench: Bench, page: Mapping[str, Any]) -> Iterator[Case]:
    """Outages end in a page soon, also where nothing has ever been good; burns page in time, and no longer."""
    slo, volume = bench.slo, bench.volume
    begin, late = _HOUR, bench.delay()  # long enough that five bad minutes are no bad hour
    labels = {"alertname": alerts.BURN, "severity": page["labels"]["severity"]}
    only = f'alertname="{alerts.BURN}"'

    case = Case("a total outage pages within 3 minutes")
    for cell in bench.cells:
        bench.feed(case, cell, [(begin + 1800, volume)], [(begin, volume), (1800, 0)])
    case.fires(begin, [])
    case.fires(begin + 3 * MINUTE + late, [labels], only)
    case.shows(begin + 3 * MINUTE + late, page, [{}])
    soon = begin + 6 * MINUTE + late
    case.expect(soon, _rounded(bench.series.read(bench.series.ratio("slo", 300))), {_of(bench): 1000})
    if Label.TENANT in bench.series.levels:
        case.expect(soon, bench.series.read(AFFECTED), {_of(bench, AFFECTED): len(bench.tenants)})
    yield case

    case = Case("what has never been good is bad, and not unknown")
    for cell in bench.cells:
        bench.feed(case, cell, [(10 * MINUTE + late, volume)], None)
    case.fires(10 * MINUTE + late, [labels], only)
    yield case

    fast = tiers(slo.window)[0]
    share = 1.1 * fast.factor * slo.budget
    if share >= cliff_share(slo.window, slo.budget):
        return
    case = Case(FAST)
    for cell in bench.cells:
        # Six worse minutes at the end: without the shorter window the hour would keep the page alive.
        bad = [(fast.long + 2 * MINUTE, volume * (1 - share)), (6 * MINUTE, volume * max(0, 1 - 2 * share))]
        good = [(late, 0), (_HEALTHY, volume), *bad, (10 * MINUTE, volume)]  # at the last moment, where that is far off
        bench.feed(case, cell, [(sum(seconds for seconds, _ in good), volume)], good)
    case.fires(_HEALTHY, [])
    for minutes in (5, 30, 50):  # an hour's budget takes an hour to burn
        case.fires(_HEALTHY + minutes * MINUTE, [], only)
    case.fires(_HEALTHY + fast.long + 2 * MINUTE + late, [labels], only)
    case.fires(_HEALTHY + fast.long + 14 * MINUTE + late, [], only)
    yield case


def _quiet(bench: Bench) -> Iterator[Case]:
    """A failure or two of a service with hardly any traffic alarm nobody."""
    least = min(bench.slo.alerting.page, bench.slo.alerting.ticket)
    few = min(2, least - 1)
    if not few:  # one bad event is declared to be enough
        return
    begin = 30 * MINUTE
    case = Case(f"{few} bad of one event a minute")
    rest = 26 * MINUTE + bench.delay()
    quiet = [(begin + few * MINUTE + rest, 1.0)]
    good = [(begin, 1.0), (few * MINUTE, 0.0), (rest, 1.0)]
    for index, cell in enumerate(bench.cells):
        bench.feed(case, cell, *((quiet, good) if not index else ([(begin, 1e-9)], [(begin, 1e-9)])))
    for minutes in (2, 4, 6, 12, 25):
        case.fires(begin + minutes * MINUTE + bench.delay(), [])
    yield case


def _silence(bench: Bench, rule: Mapping[str, Any]) -> Iterator[Case]:
    """Series that vanish, and jobs that do not run, are noticed."""
    slo, volume, late = bench.slo, bench.volume, bench.delay()
    wait = LATE * seconds(slo.every) if slo.every else NO_DATA_FOR + slo.offset
    # Days of waiting, evaluated twice a minute, would take promtool hours.
    seldom = wait > _LONG_WAIT
    step = up_to_multiple(wait / _EVALUATIONS, INTERVAL) if seldom else INTERVAL
    begin = max(10 * MINUTE, 2 * step)
    case = Case("nothing is counted any more", 2 * MINUTE if seldom else INTERVAL, step)
    for cell in bench.cells:
        bench.feed(case, cell, [(begin, volume)], [(begin, volume)])
    case.series = {name: f"{values} {STALE}" for name, values in case.series.items()}
    who: list[dict[str, str]] = [{slo.group_by: group} for group in bench.groups if slo.every and slo.group_by] or [{}]
    base = {"alertname": alerts.NO_DATA, "severity": rule["labels"]["severity"]}
    quiet, loud = begin + late + wait - MINUTE, up_to_multiple(begin + late + wait + 6 * MINUTE, step)
    if seldom:
        quiet, loud = up_to_multiple(wait, step), loud + step
    case.fires(quiet, [])
    case.fires(loud, [{**base, **one} for one in who])
    if not slo.every:
        case.shows(loud, rule, [{}])
    yield case
    if not (slo.every and slo.group_by and len(bench.groups) > 1):
        return
    case = Case(f"one {slo.group_by} does not run any more", case.interval, step)
    stopped = bench.groups[0]
    for cell in bench.cells:
        flow = [(begin, volume), (loud - begin, 0.0 if cell[1] == stopped else volume)]
        bench.feed(case, cell, flow, flow)
    case.fires(quiet, [])
    case.fires(loud, [{**base, slo.group_by: stopped}])
    yield case


def _deadlines(bench: Bench) -> Iterator[Case]:
    """What is not due yet is not bad, and a burst is not bad at its end."""
    series, volume, due = bench.series, bench.volume, bench.slo.offset
    step = due / math.ceil(due / INTERVAL)
    case = Case("what is not due yet is not bad", interval=step)
    steps = math.floor(300 / step)
    for cell in bench.cells:
        burst = [((steps - 1) * step, 0.0), (step, volume / step * MINUTE)]
        bench.feed(case, cell, [*burst, (due + 5 * MINUTE, 0.0)], [(due, 0.0), *burst, (5 * MINUTE, 0.0)])
    bad = f"max_over_time({series.read(f'slo:{BAD}', 600)}) > 0"
    case.expect(300, bad, {})
    case.expect(up_to_multiple(300 + due, INTERVAL) + 60, bad, {})
    yield case

    case = Case("a burst each hour, all delivered in time")
    hour: list[Segment] = [(10 * MINUTE, 0.0), (5 * MINUTE, volume), (45 * MINUTE, 0.0)]
    for cell in bench.cells:
        bench.feed(case, cell, hour * 2, hour * 2)
    for minutes in (10.5, 11, 15, 16, 19.5, 20, 20.5, 30, 45, 71, 75, 80, 80.5, 100):
        case.fires(minutes * MINUTE, [])
    yield case


def _rounded(expression: str) -> str:
    return f"round(1000 * {expression})"


def _of(bench: Bench, name: str = "") -> str:
    return selector(name, {Label.SLO.value: bench.slo.name, SERVICE: bench.series.declaration.service})
