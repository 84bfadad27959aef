"""From a file to a declaration, or to the list of everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

from rtobs.slo import consistency, grammar, source
from rtobs.slo.mistakes import Mistakes, Source, items, table
from rtobs.slo.model import Declaration, from_data


def load(path: str | Path) -> Declaration:
    """Return the declaration in the YAML, TOML or JSON file at *path*.

    Raises:
        DeclarationError: with every mistake: file, line, what was seen, what to do.
        ConfigError: it is YAML and pyyaml is not installed.
    """
    return declare(source.read(path))


def declare(found: Source) -> Declaration:
    """Return the declaration that *found* stands for."""
    mistakes = Mistakes(found)
    data = grammar.DECLARATION.read(found.data, (), mistakes)
    if (whole := table(found.data)) is not None:
        consistency.check(data, mistakes)
        tables = [index for index, one in enumerate(items(whole.get("slos")) or ()) if table(one) is not None]
        for index, slo in zip(tables, data.get("slos", ()), strict=True):
            consistency.check_slo(slo, ("slos", index), mistakes, data.get("owner", ""))
    mistakes.check()
    slos = tuple(from_data(one, data) for one in data["slos"])
    return Declaration(
        data["service"],
        slos,
        tuple(data.get("jobs", ())),
        tuple(data.get("tenants", ())),
        data.get("owner", ""),
        data.get("playbooks", "playbooks"),
        data.get("playbook_url", "").rstrip("/"),
        data.get("dashboard_url", "").rstrip("/"),
        found.file,
    )
