"""What ``required.toml`` demands, held against what the code has.

What only Prometheus can tell is asked there, if one is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from rtobs._prometheus import QueryError
from rtobs.incident.gather import Asked
from rtobs.incident.questions import questions
from rtobs.incident.required import Requirement
from rtobs.incident.signals import SIGNALS
from rtobs.readiness.code import EVENT, Code
from rtobs.readiness.coverage import Finding
from rtobs.slo.model import Declaration

_HOUR: Final = 3600.0

_NAMED: Final[dict[str, Callable[[Code], set[str]]]] = {
    "route": lambda code: code.names("accept"),
    "destination": lambda code: code.names("publish", "consume"),
    "connector": lambda code: code.names("job"),
    "stage": lambda code: code.names("stage"),
    "channel": lambda code: code.channels,
    "provider": lambda code: {one.provider for one in code.of("deliver") if one.provider},
    "event": lambda code: code.names(EVENT),
}
_OPENED: Final = {
    "route": "rtobs.accept", "destination": "rtobs.consume or rtobs.publish", "connector": "rtobs.job",
    "stage": "rtobs.stage", "channel": "rtobs.deliver", "provider": "rtobs.deliver", "event": "hop.event",
}  # fmt: skip

_SIGNALS: Final[dict[str, tuple[Callable[[Code, Declaration], bool], str]]] = {
    "tenants": (
        lambda code, declaration: bool(declaration.tenants) and "segment(tenant)" in code.uses,
        "name tenants in the declaration, and call hop.segment(tenant=…)",
    ),
    "promises": (lambda code, _: "configure(slos)" in code.uses, "call rtobs.configure(slos=…)"),
    "deliveries": (lambda code, _: any(code.of("deliver")), "open rtobs.deliver(…) round what carries a message"),
    "messages": (lambda code, _: any(code.of("consume")), "open rtobs.consume(…) round what handles a message"),
    "queue-age": (lambda code, _: "watch" in code.uses, "call rtobs.integrations.watch(…)"),
    "onset": (lambda code, _: bool(code.operations), "open hops"),
}
"""What code has to have for a signal, and what to do where it has not; the other signals only Prometheus shows."""


def unmet(
    required: Iterable[Requirement], code: Code, declaration: Declaration | None, asked: Asked | None
) -> Iterator[Finding]:
    """Yield what is required and is not there.

    Raises:
        PrometheusError: it cannot be asked.
    """
    wanted = tuple(required)
    silent = _silent({one.name for one in wanted if one.kind == "signal"}, declaration, asked)
    for one in wanted:
        why = f"it was missed in: {one.missed}"
        if one.kind != "signal":
            if one.name not in _NAMED[one.kind](code):
                saw = f"saw no {one.kind} {one.name} in the code"
                yield Finding("required", one.place, saw, f"open it with {_OPENED[one.kind]} ({why})")
            continue
        has, do = _SIGNALS.get(one.name, (None, ""))
        if has is not None and declaration is not None and not has(code, declaration):
            yield Finding("required", one.place, f"saw nothing in the code that gives {one.name}", f"{do} ({why})")
        elif one.name in silent:
            saw = f"saw nothing of {one.name} in Prometheus within the last hour"
            yield Finding("required", one.place, saw, f"{do or 'see that it is exported and recorded'} ({why})")


def unasked(required: Iterable[Requirement]) -> list[str]:
    """Return the signals that nobody can see in the code, and that are not checked without a Prometheus."""
    return sorted({one.name for one in required if one.kind == "signal" and one.name not in _SIGNALS})


def _silent(names: set[str], declaration: Declaration | None, asked: Asked | None) -> set[str]:
    """Return which of the signals *names* have no answer in the last hour."""
    if asked is None or declaration is None:
        return set()
    now = time.time()
    by_name = {signal.name: signal for signal in SIGNALS}
    every = questions(declaration, now - _HOUR, now)
    silent: set[str] = set()
    for name in sorted(names):
        mine = [question for question in every if question.name in by_name[name].questions]
        if not any(_answered(asked, one.kind, one.expression, now) for one in mine):
            silent.add(name)
    return silent


def _answered(asked: Asked, kind: str, expression: str, now: float) -> bool:
    try:
        if kind == "exemplars":
            return bool(asked.examples(expression, now - _HOUR, now))
        if kind == "range":
            return bool(asked.over_time(expression, now - _HOUR, now, 60))
        return bool(asked.instant(expression, now))
    except QueryError:
        return False
