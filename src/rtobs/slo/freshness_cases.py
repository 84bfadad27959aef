"""The tests of freshness: deliveries that get old, and receipts that stop while deliveries go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from rtobs._conventions import END_TO_END, INTENTS, Instrument, Label, prometheus_name
from rtobs.slo import alerts
from rtobs.slo.model import SLO, Deadline, Declaration
from rtobs.slo.series import JOB
from rtobs.slo.testfile import MINUTE, Case, Segment, grown, selector

_STEP: Final = 30.0
_BEGIN: Final = 10 * MINUTE
_LONG: Final = 70 * MINUTE
"""Receipts have to have come for an hour before anybody misses them."""
_LENGTH: Final = 20 * MINUTE
_VOLUME: Final = 600.0


def cases(declaration: Declaration, slo: SLO, severity: str) -> Iterator[Case]:
    """Yield the tests of the freshness alert of *slo*."""
    sli = slo.sli
    if not isinstance(sli, Deadline):
        return
    named = slo.where.get(Label.CHANNEL.value, ())
    channel = named[0] if named else "push"
    step = "accepted" if sli.step == "promise" else sli.step
    fires = {"alertname": alerts.FRESHNESS, "severity": severity, "channel": channel}

    def series(instrument: Instrument, part: str = "", **labels: str) -> str:
        labels = {JOB: declaration.jobs[0], "channel": channel, **labels}
        return selector(prometheus_name(instrument) + part, labels)

    def case(name: str, volume: float, late: Mapping[float, float], begin: float = _BEGIN, arriving: float = 1) -> Case:
        """Return a test where from *begin* on shares of deliveries are older than bounds, and some arrive at all."""
        found = Case(name)
        found.series[series(INTENTS)] = grown([(begin + _LENGTH, volume)], _STEP)
        for limit, share in {**late, math.inf: 0.0}.items():
            flow: list[Segment] = [(begin, volume), (_LENGTH, volume * arriving * (1 - share))]
            le = "+Inf" if math.isinf(limit) else repr(float(limit))
            found.series[series(END_TO_END, "_bucket", step=step, le=le)] = grown(flow, _STEP)
        found.series[series(END_TO_END, "_count", step=step)] = grown(
            [(begin, volume), (_LENGTH, volume * arriving)], _STEP
        )
        return found

    limit, only = slo.threshold, f'alertname="{alerts.FRESHNESS}"'
    old = {limit / 2: 0.5, limit: 0.2, 2 * limit: 0.0}
    slow = case("deliveries get old before they arrive", _VOLUME, old)
    slow.fires(_BEGIN, [], only)
    slow.fires(_BEGIN + 9 * MINUTE, [fires], only)
    yield slow

    fine = case("a few late ones are no loss of freshness", _VOLUME, {limit / 2: 0.5, limit: 0.02, 2 * limit: 0.0})
    fine.fires(_BEGIN + 9 * MINUTE, [], only)
    yield fine

    few = 0.05 * slo.alerting.page  # a minute: a quarter of what has to be promised in five
    rare = case("with hardly any deliveries nothing is said about their age", few, old)
    rare.fires(_BEGIN + 9 * MINUTE, [], only)
    yield rare

    stopped = case("receipts stop, so that no age is measured any more", _VOLUME, {limit: 0.0}, _LONG, 0)
    stopped.fires(_LONG, [], only)
    stopped.fires(_LONG + 15 * MINUTE, [{**fires, Label.STEP.value: step}], only)
    yield stopped
