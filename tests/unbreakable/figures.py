"""What the tests of the reliability table have measured, kept for ``docs/reliability.md``.

A figure is written only where RTOBS_TEST_FIGURES is set (``make reliability``): a run that nobody asked to be recorded
changes no file. Must not know what is measured or what the page looks like.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def record(row: str, text: str, part: str = "") -> None:
    """Keep what was measured for *row* of the table (``R7``); *part* tells several figures of a row apart."""
    print(f"\n{row}{part and f' {part}'}: {text}")
    if not os.environ.get("RTOBS_TEST_FIGURES"):
        return
    FOLDER.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", f"{row} {part}".strip().lower()).strip("-")
    found = {"row": row, "part": part, "text": text, "date": datetime.now(UTC).date().isoformat()}
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded() -> dict[str, list[dict[str, str]]]:
    """Return the figures that are kept, by row, in the order of their parts."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(one["row"], []).append(one)
    return found
