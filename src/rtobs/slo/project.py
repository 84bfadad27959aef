"""A declaration with its playbooks, read from disk; and all files that are made of them.

The only place that knows every other: rules, their tests, routes, dashboards, pages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rtobs.slo import (
    alertmanager,
    boards,
    cases,
    pages,
    playbooks,
    reader,
    rules,
    source,
    testfile,
    trigger_cases,
    triggers,
)
from rtobs.slo.files import to_yaml
from rtobs.slo.links import uid
from rtobs.slo.mistakes import DeclarationError, Mistake, Source, listed, table
from rtobs.slo.model import Declaration
from rtobs.slo.playbooks import Playbook
from rtobs.slo.series import Scale
from rtobs.slo.windows import INTERVAL

_MADE: Final = "Made by rtobs slo build; change the declaration instead."


@dataclass(frozen=True, slots=True)
class Project:
    """A declaration and the playbooks in its folder."""

    declaration: Declaration
    playbooks: tuple[Playbook, ...]


def load(path: str | Path) -> Project:
    """Return what the file at *path* declares, with its playbooks.

    Raises:
        DeclarationError: with every mistake in the declaration, in the playbooks and between them.
        ConfigError: pyyaml is not installed.
    """
    found = source.read(path)
    folder = Path(os.path.normpath(Path(path).parent / _folder(found)))
    read, mistakes = _read(folder)
    try:
        declaration = reader.declare(found)
    except DeclarationError as error:
        raise DeclarationError((*error.mistakes, *mistakes)) from None
    mistakes += _missing(found, declaration, folder)
    mistakes += playbooks.unnamed(read, leads(declaration))
    if mistakes:
        raise DeclarationError(tuple(mistakes))
    return Project(declaration, tuple(read))


def _folder(found: Source) -> str:
    said = (table(found.data) or {}).get("playbooks")
    return said if isinstance(said, str) else "playbooks"


def _read(folder: Path) -> tuple[list[Playbook], list[Mistake]]:
    read: list[Playbook] = []
    mistakes: list[Mistake] = []
    for file in sorted(folder.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        if not text.startswith("---\n"):  # a page beside the playbooks, such as their introduction
            continue
        try:
            read.append(playbooks.parse(text, str(file), file.stem))
        except DeclarationError as error:
            mistakes += error.mistakes
    return read, mistakes


def _missing(found: Source, declaration: Declaration, folder: Path) -> list[Mistake]:
    """Return which playbooks are named and do not exist."""
    there = sorted(file.stem for file in folder.glob("*.md"))
    advice = f"write {folder}/{{}}.md" + (f", or name {listed(there)}" if there else "")
    missing: list[Mistake] = []
    for index, slo in enumerate(declaration.slos):
        if slo.playbook not in there:
            line = found.line(("slos", index, "playbook"))
            place = f'{found.file}:{line}: SLO "{slo.name}", playbook' if line else f'{found.file}: SLO "{slo.name}"'
            missing.append(
                Mistake(place, f"saw {slo.playbook}, and there is no such file", advice.format(slo.playbook))
            )
    for name in dict.fromkeys(triggers.PLAYBOOKS.values()):
        if name not in there:
            leading = " and ".join(alert for alert, other in triggers.PLAYBOOKS.items() if other == name)
            do = f"write {folder}/{name}.md; the one of rtobs is in docs/playbooks"
            missing.append(Mistake(found.file, f"saw no playbook {name}, to which {leading} lead", do))
    return missing


def _groups(declaration: Declaration, scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    for slo in declaration.slos:
        yield f"slo-{slo.name}", rules.group(declaration, slo, scale)
    for trigger in triggers.TRIGGERS:
        yield f"trigger-{trigger.name}", triggers.group(declaration, trigger, scale)


def leads(declaration: Declaration) -> list[tuple[str, str]]:
    """Return each alert that is made of *declaration*, with the playbook it leads to."""
    made = [rule for _, group in _groups(declaration, Scale()) for rule in group["rules"] if "alert" in rule]
    return [(rule["alert"], rule["labels"]["playbook"]) for rule in made]


def build(project: Project, scale: float = 1.0) -> dict[str, str]:
    """Return every file that is made of *project*, by its path: text, the same to the byte each time.

    With a *scale* other than 1, windows go by so many times faster, and no tests are made: they are about real time.

    Raises:
        ModuleNotFoundError: the dashboards' SDK is not installed.
    """
    declaration = project.declaration
    groups = dict(_groups(declaration, Scale(scale)))
    files = {f"rules/{name}.yaml": to_yaml({"groups": [group]}, _MADE) for name, group in groups.items()}
    if scale == 1:
        files |= _tests(declaration, groups)
    files["alertmanager.yaml"] = to_yaml(
        alertmanager.config(declaration), _MADE, "Fill in the receivers, or take routes and inhibition over into yours."
    )
    files |= _dashboards(declaration)
    made = [rule for group in groups.values() for rule in group["rules"]]
    files["slos.md"] = pages.promises(declaration)
    files["playbooks.md"] = pages.playbook_index(declaration, project.playbooks, made)
    return dict(sorted(files.items()))


def _tests(declaration: Declaration, groups: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    slos = {f"slo-{slo.name}": slo for slo in declaration.slos}
    files: dict[str, str] = {}
    for name, group in groups.items():
        if name in slos:
            found = cases.cases(declaration, slos[name], group["rules"])
        else:
            found = trigger_cases.cases(declaration, name.removeprefix("trigger-"), group["rules"])
        by_evaluation: dict[float, list[testfile.Case]] = {}
        for case in found:
            by_evaluation.setdefault(case.evaluation, []).append(case)
        for evaluation, some in by_evaluation.items():
            file = f"tests/{name}{'' if evaluation == INTERVAL else '-seldom'}.yaml"
            test = testfile.test_file([f"../rules/{name}.yaml"], evaluation, some)
            files[file] = to_yaml(test, _MADE, f"promtool test rules {file}")
    heard = [case.data() for case in alertmanager.cases(declaration)]
    files["tests/alertmanager.json"] = json.dumps(heard, indent=2, ensure_ascii=False) + "\n"
    return files


def _dashboards(declaration: Declaration) -> dict[str, str]:
    from rtobs.slo import dashboards  # here, because Grafana's SDK takes a second to load

    return {
        f"dashboards/{uid(declaration, board.uid)}.json": dashboards.to_json(declaration, board)
        for board in boards.boards(declaration)
    }
