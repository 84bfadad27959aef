"""``docs/reliability.md``, written from the table of promises and the figures that are kept: never by hand.

``python -m tests.unbreakable.page`` writes it; ``--run`` runs the tests of the table first and keeps their figures
(``make reliability``); further arguments are pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.unbreakable import figures
from tests.unbreakable.promises import ROWS, Row

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KEPT_BY_THEMSELVES = frozenset({"R6", "R7", "R8", "R9", "R11", "R18"})
"""Rows whose tests report a property and keep the figure, too."""

TEXT = """\
# Reliability: what is promised, where it ends, and what was measured

rtobs lives inside other people's programs. It must not harm them, and it must not lose what it measures without saying
so. Each promise below has a number, its limits, the tests that hold it, and what these measured. The page is written by
`make reliability` from the figures that the tests left, and a test compares it with them. Figures are of one machine
with two cores, busy with other things.

Losses are counted in `rtobs.telemetry.dropped` with the reasons `queue_full`, `bytes_full`, `encode`, `rejected`,
`export_failed`, `shutdown` and `unanswered`; faults of rtobs itself in `rtobs.internal.errors`.

"""


def row_of(nodeid: str) -> str | None:
    """Return the row that a test belongs to."""
    name = nodeid.partition("[")[0].removeprefix("tests/")
    return next((number for number, row in ROWS.items() if name in row.tests), None)


def text() -> str:
    """Return the page."""
    kept = figures.recorded()
    return TEXT + "\n".join(_section(number, row, kept.get(number, [])) for number, row in ROWS.items())


def _section(number: str, row: Row, kept: list[dict[str, str]]) -> str:
    lines = [f"## {number}: {row.title}", "", row.promise, "", f"**Limits.** {row.limits}", "", "**Measured.**"]
    lines += ["", *_figures(kept), "", "**Held by.**", ""]
    by_file: dict[str, list[str]] = {}
    for test in row.tests:
        file, _, name = test.partition("::")
        by_file.setdefault(file, []).append(f"`{name}`")
    lines += [f"- [{file}](../tests/{file}): {', '.join(names)}" for file, names in by_file.items()]
    return "\n".join([*lines, ""])


def _figures(kept: list[dict[str, str]]) -> list[str]:
    """Return a line for each figure; parts that measured the same share one."""
    parts: dict[tuple[str, str], list[str]] = {}
    for one in kept:
        parts.setdefault((one["text"], one["date"]), []).append(one["part"].replace("_", " "))
    found = []
    for (measured, date), names in parts.items():
        name = "; ".join(filter(None, names))
        found.append(f"- {name}{': ' if name else ''}{measured} ({date})")
    return found or ["Not measured yet."]


def tests() -> list[str]:
    """Return the tests of the table, as pytest wants them."""
    return [f"tests/{test}" for row in ROWS.values() for test in row.tests]


def main() -> None:
    """Write the page, after a run of the tests if that is wanted."""
    code = 0
    if "--run" in sys.argv:
        options = sys.argv[sys.argv.index("--run") + 1 :] or ["-m", "soak or not soak"]
        command = [sys.executable, "-m", "pytest", "-p", "tests.unbreakable.recording", "-q", *options, *tests()]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, "RTOBS_TEST_FIGURES": "1"}, check=False).returncode
    PAGE.write_text(text(), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
