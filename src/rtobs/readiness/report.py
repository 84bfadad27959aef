"""Everything a check found, at once: as text, and as plain data for JSON (``check.schema.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from rtobs.readiness.code import Code
from rtobs.readiness.cost import Cost, table
from rtobs.readiness.coverage import Finding, Thing
from rtobs.slo.mistakes import items

VERSION: Final = "rtobs/check/v1"
READY, NOT_READY = 0, 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a check of some modules found."""

    modules: tuple[str, ...]
    code: Code
    things: tuple[Thing, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    cost: Cost | None

    @property
    def exit_code(self) -> int:
        """READY or NOT_READY."""
        return NOT_READY if self.findings else READY

    def data(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "version": VERSION,
            "modules": list(self.modules),
            "files": list(self.code.files),
            "ready": not self.findings,
            "things": [_listed(asdict(thing)) for thing in self.things],
            "findings": [finding._asdict() for finding in self.findings],
            "notes": list(self.notes),
            "cost": None if self.cost is None else _cost(self.cost),
        }

    def lines(self) -> list[str]:
        """Return the report as people read it."""
        counted = ", ".join(_many(count, word) for word, count in self._counts() if count) or "nothing of rtobs"
        lines = [f"{', '.join(self.modules)}: {counted} in {_many(len(self.code.files), 'file')}"]
        lines += [f"  {finding}" for finding in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        if self.cost is not None:
            lines += ["", *table(self.cost), ""]
        lines.append(f"not ready: {_many(len(self.findings), 'finding')}" if self.findings else "ready")
        return lines

    def _counts(self) -> list[tuple[str, int]]:
        kinds = [thing.kind for thing in self.things]
        hops = sum(kinds.count(kind) for kind in ("accept", "publish", "consume", "receipt"))
        return [("hop", hops), *((word, kinds.count(kind)) for kind, word in _WORDS.items())]


_WORDS: Final = {"stage": "stage", "channel": "channel", "job": "connector"}


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _listed(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found if (found := items(value)) is not None else value for key, value in data.items()}


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        **_listed(asdict(cost)),
        "lines": [{**line._asdict(), "series": line.series} for line in cost.lines],
        "counts": dict(cost.counts),
    }
