"""How much of each error budget is left, by what Prometheus recorded: questions, and what their answers mean.

Asks nobody itself. Below a tenth of the window nothing is announced: a budget two hours old says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rtobs.slo.model import SLO, Declaration, Step
from rtobs.slo.promql import text
from rtobs.slo.series import SERVICE

VERSION: Final = "rtobs/slo-budgets/v1"
OK, UNKNOWN, REACHED, SPENT = 0, 1, 3, 4
"""Exit codes: nothing to do; an SLO of which nothing is known; a step of the policy is reached; a budget is used up."""
KNOWN_ENOUGH: Final = 0.1
"""Share of the window that has to be known before a budget means something."""

_LEFT, _COVERED, _BURN = (
    "slo:period_error_budget_remaining:ratio", "slo:window_coverage:ratio", "slo:current_burn_rate:ratio",
)  # fmt: skip
NAMES: Final = (_LEFT, _COVERED, _BURN)


def question(declaration: Declaration, name: str) -> str:
    """Return the query for one of NAMES of every SLO of *declaration*."""
    return f"{name}{{{SERVICE}={text(declaration.service)}}}"


@dataclass(frozen=True, slots=True)
class Budget:
    """The state of one SLO's error budget.

    Attributes:
        slo: whose.
        left: share of the budget that is left, below 0 where it is overdrawn; None = not known.
        covered: share of the window that is known.
        burn: how many times as fast as it may it burned in the last 5 minutes; None = nothing happened.
        step: the step of the policy that is reached; None = none, or too little is known.
    """

    slo: SLO
    left: float | None
    covered: float
    burn: float | None
    step: Step | None

    @property
    def code(self) -> int:
        """One of OK, UNKNOWN, REACHED and SPENT."""
        if self.left is None:
            return UNKNOWN
        if self.covered < KNOWN_ENOUGH:
            return OK
        if self.left <= 0:
            return SPENT
        return REACHED if self.step is not None else OK


def judge(declaration: Declaration, answers: Mapping[str, Mapping[str, float]]) -> list[Budget]:
    """Return the budgets of *declaration* by *answers*: for each of NAMES, values by name of SLO."""
    found: list[Budget] = []
    for slo in declaration.slos:
        left, covered, burn = (_number(answers.get(name, {}).get(slo.name)) for name in NAMES)
        known = covered or 0.0
        step = None
        if left is not None and known >= KNOWN_ENOUGH:
            reached = [step for step in slo.policy if left * 100 <= step.budget_left]
            step = min(reached, key=lambda step: step.budget_left, default=None)
        found.append(Budget(slo, left, known, burn, step))
    return found


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def exit_code(budgets: Sequence[Budget]) -> int:
    """Return the worst of the codes: what is used up, then a step of the policy, then what is not known."""
    codes = {budget.code for budget in budgets}
    return next((code for code in (SPENT, REACHED, UNKNOWN) if code in codes), OK)


def lines(budgets: Sequence[Budget]) -> list[str]:
    """Return the budgets as people read them, one line each, and a second where something is to be done."""
    width = max((len(budget.slo.name) for budget in budgets), default=0)
    found: list[str] = []
    for budget in budgets:
        name = f"{budget.slo.name:<{width}}"
        if budget.left is None:
            found.append(f"{name}  nothing is known: no series, or no traffic, in {budget.slo.window}")
            continue
        burn = "no traffic now" if budget.burn is None else f"burns {budget.burn:.1f} times as fast as it may"
        known = f"{budget.covered:.0%} of {budget.slo.window} known"
        left = f"{max(budget.left, -9.99):>5.0%} of the budget left" if budget.covered >= KNOWN_ENOUGH else _TOO_EARLY
        found.append(f"{name}  {left}  {burn}  {known}")
        if budget.step is not None:
            found.append(f"{'':<{width}}  -> {budget.step.action}")
    return found


def data(declaration: Declaration, budgets: Sequence[Budget]) -> dict[str, Any]:
    """Return the budgets as plain data for JSON; its form is ``status.schema.json``."""
    found = [
        {
            "slo": budget.slo.name,
            "objective": budget.slo.objective,
            "window": budget.slo.window,
            "left": budget.left,
            "covered": budget.covered,
            "known_enough": budget.covered >= KNOWN_ENOUGH and budget.left is not None,
            "burn": budget.burn,
            "action": None if budget.step is None else budget.step.action,
        }
        for budget in budgets
    ]
    return {"version": VERSION, "service": declaration.service, "code": exit_code(budgets), "slos": found}


_TOO_EARLY: Final = "too early to say"
