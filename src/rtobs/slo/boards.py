"""The four dashboards: each answers one question, from its first row down to where to act."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rtobs._conventions import ATTEMPTS, OUTCOMES, Label
from rtobs.slo import links
from rtobs.slo.boards_inside import connectors, tenants
from rtobs.slo.boards_outside import delayed, promises
from rtobs.slo.model import Declaration
from rtobs.slo.panels import Board, Panel, Pick


def boards(declaration: Declaration) -> tuple[Board, ...]:
    """Return the four dashboards of *declaration*."""
    pick = Pick(declaration)
    budgets = pick.kept("slo:error_budget:ratio")
    slo = (Label.SLO.value, f"label_values({budgets}, slo)")
    provider = (Label.PROVIDER.value, f"label_values({pick.raw(ATTEMPTS)}, provider)")
    tenant = (Label.TENANT.value, f"label_values({pick.raw(OUTCOMES)}, tenant)")
    questions: tuple[tuple[str, str, Callable[[Pick], Iterator[Panel]], tuple[tuple[str, str], ...]], ...] = (
        (links.DELAYED, "Are deliveries delayed?", delayed, ()),
        (links.CONNECTORS, "Which connector is failing?", connectors, (provider,)),
        (links.TENANTS, "Is one tenant affected?", tenants, (tenant,)),
        (links.PROMISES, "Are we keeping our promises?", promises, (slo,)),
    )
    return tuple(Board(uid, title, tuple(panels(pick)), filters) for uid, title, panels, filters in questions)
