"""Playbooks: one Markdown file for each way to fail, with a head that says which alerts lead there.

Reads texts and says what is wrong with them; must not know how alerts are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from rtobs.slo import source
from rtobs.slo.grammar import PLAYBOOK_HEAD
from rtobs.slo.mistakes import DeclarationError, Mistake, Mistakes, listed, table
from rtobs.slo.shapes import MISSING

SECTIONS: Final = ("Meaning", "Is it this?", "Impact", "Stop the damage", "Fix", "Verify", "Escalate")
"""Headings that every playbook has, in this order: at 3 a.m. nobody wants to search."""
_FENCE: Final = "---\n"


@dataclass(frozen=True, slots=True)
class Playbook:
    """One way to fail, and what to do about it.

    Attributes:
        id: its name, which is its file's without ``.md``.
        title: its first heading.
        alerts: names of the alerts that lead to it.
        owner: who keeps it true.
        stages: hops and stages in which this failure shows first.
        error_categories: error categories that it shows with.
        last_drilled: when somebody last went through it; None = never.
        file: where it was read.
    """

    id: str
    title: str
    alerts: tuple[str, ...]
    owner: str
    stages: tuple[str, ...]
    error_categories: tuple[str, ...]
    last_drilled: date | None
    file: str


def parse(text: str, file: str, name: str) -> Playbook:
    """Return the playbook *name* that *text* of *file* is; raise DeclarationError with all that is wrong."""
    _, fence, rest = text.partition(_FENCE)
    head, end, body = rest.partition(f"\n{_FENCE}")
    if not text.startswith(_FENCE) or not fence or not end:
        raise DeclarationError((Mistake(f"{file}:1", "saw no head between two lines of ---", "begin with one"),))
    found = source.parse(f"\n{head}", "YAML", file)  # below the first fence, so that lines are those of the file
    said = table(found.data) or {}
    if isinstance(drilled := said.get("last_drilled"), date):  # YAML knows days
        said["last_drilled"] = drilled.isoformat()
    mistakes = Mistakes(found)
    data: Mapping[str, Any] = PLAYBOOK_HEAD.read(found.data, (), mistakes)
    if data is MISSING:
        mistakes.check()
    if data.get("id", name) != name:
        mistakes.add(("id",), f"saw {data['id']} in a file named {name}.md", "give both one name")
    headings = re.findall(r"^##\s+(.+?)\s*$", body, re.MULTILINE)
    missing = [section for section in SECTIONS if section not in headings]
    if missing:
        mistakes.add((), f"saw no heading {listed(f'## {section}' for section in missing)}", "add what is missing")
    elif [heading for heading in headings if heading in SECTIONS] != list(SECTIONS):
        mistakes.add((), "saw its headings in another order", f"use {', '.join(SECTIONS)}")
    drilled = _date(data.get("last_drilled", ""))
    if "last_drilled" in data and drilled is None:
        mistakes.add(("last_drilled",), f"saw {data['last_drilled']}, which is no day", "give one such as 2026-01-15")
    mistakes.check()
    title = re.search(r"^#\s+(.+?)\s*$", body, re.MULTILINE)
    applies = data.get("applies_to", {})
    return Playbook(
        name,
        title[1] if title else name,
        tuple(data["alerts"]),
        data["owner"],
        tuple(applies.get("stages", ())),
        tuple(applies.get("error_categories", ())),
        drilled,
        file,
    )


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def unnamed(playbooks: Iterable[Playbook], alerts: Iterable[tuple[str, str]]) -> list[Mistake]:
    """Return the alerts whose playbook does not know them; *alerts* are pairs of their name and their playbook's."""
    made = _by_playbook(alerts)
    found: list[Mistake] = []
    for playbook in playbooks:
        for alert in sorted(made.get(playbook.id, set()) - set(playbook.alerts)):
            saw = f"saw no {alert} among its alerts, and that alert leads here"
            found.append(Mistake(playbook.file, saw, "add it to alerts"))
    return found


def unreached(playbooks: Iterable[Playbook], alerts: Iterable[tuple[str, str]]) -> list[Mistake]:
    """Return the playbooks that name alerts which do not lead to them; *alerts* as above."""
    made = _by_playbook(alerts)
    found: list[Mistake] = []
    for playbook in playbooks:
        if playbook.id not in made:
            found.append(
                Mistake(playbook.file, "saw a playbook to which no alert leads", "name it in an SLO, or remove it")
            )
            continue
        for alert in sorted(set(playbook.alerts) - made[playbook.id]):
            saw = f"saw the alert {alert}, which does not lead here"
            found.append(Mistake(playbook.file, saw, "take it out of alerts"))
    return found


def _by_playbook(alerts: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for alert, playbook in alerts:
        made.setdefault(playbook, set()).add(alert)
    return made
