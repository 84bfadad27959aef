"""What is not wrong, but should be known before anybody relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Final

from rtobs.slo import playbooks
from rtobs.slo.durations import span
from rtobs.slo.mistakes import Mistake
from rtobs.slo.model import SLO
from rtobs.slo.project import Project, leads
from rtobs.slo.promql import number
from rtobs.slo.windows import tiers, usable

_DRILL_AFTER: Final = timedelta(days=180)


def warnings(project: Project, today: date) -> list[Mistake]:
    """Return what to look at in *project*, in the order of its parts."""
    declaration = project.declaration
    found = [warning for slo in declaration.slos for warning in _slo(slo, declaration.file)]
    if not declaration.tenants:
        saw = "saw no tenants, so that nobody is told whether one or all are affected"
        found.append(Mistake(declaration.file, saw, "name the most important ones under tenants"))
    found += playbooks.unreached(project.playbooks, leads(declaration))
    for playbook in project.playbooks:
        if playbook.last_drilled is None:
            found.append(Mistake(playbook.file, "saw no last_drilled: nobody has tried it", "go through it once"))
        elif today - playbook.last_drilled > _DRILL_AFTER:
            saw = f"saw that it was last tried on {playbook.last_drilled.isoformat()}, more than 180 days ago"
            found.append(Mistake(playbook.file, saw, "go through it again"))
    return found


def _slo(slo: SLO, file: str) -> Iterator[Mistake]:
    place = f'{file}: SLO "{slo.name}"'
    for tier in set(tiers(slo.window)) - set(usable(slo.window, slo.budget)):
        saw = f"saw that its budget cannot burn {number(tier.factor)} times as fast as it may over {span(tier.long)}"
        yield Mistake(place, f"{saw}, even if everything is bad, so that this alert is left out", "raise the objective")
    if not slo.policy:
        yield Mistake(place, "saw no policy", "write what the team does when 50, 10 and 0 % of the budget are left")
