"""The tests of the triggers: each has to fire for what it is about, and to stay silent for what looks like it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from rtobs._conventions import (
    ACCEPT_DURATION,
    ATTEMPTS,
    MESSAGE_LAG,
    MESSAGE_SETTLED,
    QUEUE_AGE,
    QUEUE_DEPTH,
    SENT_MESSAGES,
    Instrument,
    Label,
    prometheus_label,
    prometheus_name,
)  # fmt: skip
from rtobs.slo import triggers
from rtobs.slo.bounds import bounds
from rtobs.slo.model import Declaration
from rtobs.slo.promql import Rule, number
from rtobs.slo.series import JOB
from rtobs.slo.testfile import MINUTE, Case, Segment, grown, selector

_BEFORE: Final = 75 * MINUTE
"""How long things are as usual: a baseline leaves out the last hour."""
_LAG_BEGINS: Final = 20 * MINUTE
_LAG_ENDS: Final = 60 * MINUTE
_STEP: Final = 30.0

Rules = Mapping[str, Rule]


def _name(declaration: Declaration, instrument: Instrument, part: str = "", **labels: str) -> str:
    return selector(prometheus_name(instrument) + part, {JOB: declaration.jobs[0], **labels})


def _exponential(p95: float) -> Callable[[float], float]:
    """Return the share of durations up to a bound where 95 % take no longer than *p95* seconds."""
    return lambda bound: 1 - math.exp(-bound * math.log(20) / p95)


def _api_latency(declaration: Declaration, rules: Rules) -> Iterator[Case]:
    floor = triggers.latency_floor(declaration)
    case = Case("p95 from 0.11 to 0.24 s is noticed, smaller changes and quiet routes are not")
    routes = {
        "/slow": (1000.0, 1.1 * floor, 2.4 * floor),
        "/little-slower": (1000.0, 1.1 * floor, 1.7 * floor),
        "/fast-enough": (1000.0, 0.3 * floor, 0.8 * floor),
        "/hardly-called": (5.0, 1.1 * floor, 10 * floor),
    }
    limits = [*bounds([3 * floor]), math.inf]
    for route, (volume, before, after) in routes.items():
        for limit in limits:
            flow = [(_BEFORE, volume * _exponential(before)(limit)), (30 * MINUTE, volume * _exponential(after)(limit))]
            le = "+Inf" if math.isinf(limit) else repr(float(limit))
            name = _name(declaration, ACCEPT_DURATION, "_bucket", route=route, outcome="ok", le=le)
            case.series[name] = grown(flow, _STEP)
        count = _name(declaration, ACCEPT_DURATION, "_count", route=route, outcome="ok")
        case.series[count] = grown([(_BEFORE + 30 * MINUTE, volume)], _STEP)
    rule = rules[triggers.LATENCY]
    fires = {"alertname": triggers.LATENCY, "severity": rule["labels"]["severity"], "route": "/slow"}
    case.fires(_BEFORE, [])
    case.fires(_BEFORE + 12 * MINUTE, [fires])
    yield case


def _shapes() -> dict[str, list[float]]:
    """Return six ways in which a lag moves, seconds by half minute: two that grow without a break, four that do not."""
    noise = itertools.cycle((0.0, 7.0, -5.0, 3.0, -7.0, 5.0, -2.0, 6.0, -6.0, 1.0, -3.0))
    count = round(_LAG_ENDS / _STEP) + 1

    def since(step: int) -> float:
        return max(0.0, step * _STEP - _LAG_BEGINS)

    return {
        "steady": [2 + since(step) for step in range(count)],
        "noisy-growth": [2 + (since(step) + (next(noise) if since(step) else 0)) for step in range(count)],
        "sawtooth": [2 + (step * _STEP) % (4 * MINUTE) / 2 for step in range(count)],
        "one-jump": [2 + 300.0 * (since(step) > 0) for step in range(count)],
        "draining": [2 + max(0.0, 1500 - 1.5 * since(step)) for step in range(count)],
        "tiny-drift": [2 + step * _STEP / 1000 for step in range(count)],
    }


def _listed(values: Sequence[float]) -> str:
    return " ".join(number(value) for value in values)


def _ever(alertname: str) -> str:
    firing = f'ALERTS{{alertname="{alertname}",alertstate="firing"}}[1h]'
    return f"count by (destination) (count_over_time({firing}))"


def _queues(declaration: Declaration, _: Rules) -> Iterator[Case]:
    main = {Label.ROLE.value: "main", Label.ESTIMATED.value: "false"}
    grow = {selector("", {"destination": name}): 1.0 for name in ("steady", "noisy-growth")}

    case = Case("six shapes of the oldest message's age")
    for shape, values in _shapes().items():
        case.series[_name(declaration, QUEUE_AGE, destination=shape, **main)] = _listed(values)
    case.fires(_LAG_BEGINS, [])
    case.expect(_LAG_BEGINS + 7 * MINUTE, _ever(triggers.LAG), grow)
    case.expect(_LAG_ENDS, _ever(triggers.LAG), grow)
    case.expect(_LAG_ENDS, _ever(triggers.SATURATED), {})
    yield case

    case = Case("six shapes of the wait of messages that are handled")
    for shape, values in _shapes().items():
        labels = {"destination": shape, Label.LAG_SOURCE.value: "producer"}
        waits = itertools.accumulate(value * 50 for value in values)
        case.series[_name(declaration, MESSAGE_LAG, "_sum", **labels)] = _listed(list(waits))
        case.series[_name(declaration, MESSAGE_LAG, "_count", **labels)] = grown([(_LAG_ENDS, 100)], _STEP)
    case.expect(_LAG_BEGINS + 9 * MINUTE, _ever(triggers.LAG), grow)
    case.expect(_LAG_ENDS, _ever(triggers.LAG), grow)
    yield case

    shapes = _shapes()
    case = Case("most queues grow at once")
    for queue, shape in (("orders", "steady"), ("events", "steady"), ("mail", "draining")):
        case.series[_name(declaration, QUEUE_AGE, destination=queue, **main)] = _listed(shapes[shape])
    page = {"severity": "page"}
    growing = [{"alertname": triggers.LAG, "destination": queue, **page} for queue in ("orders", "events")]
    case.fires(_LAG_BEGINS, [])
    case.fires(_LAG_BEGINS + 10 * MINUTE, [*growing, {"alertname": triggers.SATURATED, **page}])
    yield case
    yield _dead(declaration)


def _dead(declaration: Declaration) -> Case:
    case = Case("consumers that died, or never lived, are noticed; slow ones and other people's are not")
    begin, length = 20 * MINUTE, 20 * MINUTE

    def depth(destination: str, values: str) -> None:
        case.series[_name(declaration, QUEUE_DEPTH, destination=destination, role="main")] = values

    def settled(destination: str, *flow: Segment) -> None:
        labels = {"destination": destination, "outcome": "ok", "tenant": "unknown"}
        case.series[_name(declaration, MESSAGE_SETTLED, **labels)] = grown(flow, _STEP)

    def sent(destination: str) -> None:
        labels = {prometheus_label(Label.MESSAGING_DESTINATION): destination}
        case.series[_name(declaration, SENT_MESSAGES, **labels)] = grown([(begin + length, 120)], _STEP)

    steps = round((begin + length) / _STEP)
    depth("frozen", f"0x{round(begin / _STEP)} 60+60x{round(length / _STEP)}")
    settled("frozen", (begin, 120), (length, 0))
    depth("never-handled", f"0+60x{steps}")
    depth("slow", f"0+1x{steps}")
    settled("slow", (begin + length, 119))
    depth("idle", f"0x{steps}")
    settled("idle", (begin + length, 0))
    sent("sent-frozen")
    settled("sent-frozen", (begin, 120), (length, 0))
    sent("sent-slow")
    settled("sent-slow", (begin + length, 119))
    sent("an-exchange")  # a name that nobody handles messages under
    fires = {"alertname": triggers.DEAD, "severity": "page"}
    case.fires(begin, [{**fires, "destination": "never-handled"}])
    dead = ("frozen", "never-handled", "sent-frozen")
    case.fires(begin + 10 * MINUTE, [{**fires, "destination": name} for name in dead])
    return case


def _spike(
    case: Case, names: Callable[[bool], str], volume: float, before: float, after: float, *, never: bool = False
) -> None:
    """Let a share of what is counted go from *before* to *after*; *names* are the series of the share and the rest."""
    for some in (True, False):
        old, new = (before, after) if some else (1 - before, 1 - after)
        if not (some and never):
            case.series[names(some)] = grown([(_BEFORE, volume * old), (30 * MINUTE, volume * new)], _STEP)


def _spikes(name: str, rules: Rules, series: Mapping[str, Callable[[str, bool], str]]) -> Iterator[Case]:
    """Yield what a trigger for a larger share has to tell apart, for each label in *series* that it is told by."""
    case = Case("a share that leaps is noticed; one that is always large, or of a few, is not")
    for names in series.values():
        _spike(case, partial(names, "leaps"), 100, 0.02, 0.375)
        _spike(case, partial(names, "always"), 100, 0.3, 0.3)
        _spike(case, partial(names, "doubles"), 100, 0.15, 0.3)
        _spike(case, partial(names, "few"), 1, 0.0, 1.0)
        _spike(case, partial(names, "never"), 100, 0.0, 0.0, never=True)
    severity = rules[name]["labels"]["severity"]
    case.fires(_BEFORE, [])
    fires = [{"alertname": name, "severity": severity, label: "leaps", **_CHANNEL.get(label, {})} for label in series]
    case.fires(_BEFORE + 15 * MINUTE, fires)
    yield case


_CHANNEL: Final[dict[str, dict[str, str]]] = {"provider": {"channel": "push"}}


def _retries(declaration: Declaration, rules: Rules) -> Iterator[Case]:
    def settled(destination: str, some: bool) -> str:  # noqa: FBT001  which of the two
        return _name(declaration, MESSAGE_SETTLED, destination=destination, outcome="retried" if some else "ok")

    def attempts(provider: str, some: bool) -> str:  # noqa: FBT001  as above
        ended = {"result": "failed", "error_category": "timeout"} if some else {"result": "ok"}
        return _name(declaration, ATTEMPTS, channel="push", provider=provider, **ended)

    yield from _spikes(triggers.RETRIES, rules, {"destination": settled, "provider": attempts})
    case = Case("what another try does not mend is no retry")
    _spike(case, partial(_rejected, declaration), 100, 0.0, 0.9)
    case.fires(_BEFORE + 15 * MINUTE, [])
    yield case


def _rejected(declaration: Declaration, some: bool) -> str:  # noqa: FBT001  as above
    ended = {"result": "failed", "error_category": "recipient"} if some else {"result": "ok"}
    return _name(declaration, ATTEMPTS, channel="push", provider="fcm", **ended)


def _auth(declaration: Declaration, rules: Rules) -> Iterator[Case]:
    def accepted(route: str, some: bool) -> str:  # noqa: FBT001  as above
        ended = {"outcome": "failed", "error_category": "auth"} if some else {"outcome": "ok"}
        return _name(declaration, ACCEPT_DURATION, "_count", route=route, **ended)

    def attempts(provider: str, some: bool) -> str:  # noqa: FBT001  as above
        ended = {"result": "failed", "error_category": "auth"} if some else {"result": "ok"}
        return _name(declaration, ATTEMPTS, channel="push", provider=provider, **ended)

    yield from _spikes(triggers.AUTH, rules, {"route": accepted, "provider": attempts})


_CASES: Final[dict[str, Callable[[Declaration, Rules], Iterator[Case]]]] = {
    "api-latency": _api_latency,
    "queues": _queues,
    "retries": _retries,
    "auth": _auth,
}


def cases(declaration: Declaration, trigger: str, rules: Sequence[Rule]) -> Iterator[Case]:
    """Yield the tests of *trigger*, whose generated rules are *rules*."""
    found: dict[str, Any] = {rule["alert"]: rule for rule in rules if "alert" in rule}
    return _CASES[trigger](declaration, found)
