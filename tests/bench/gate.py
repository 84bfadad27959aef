"""The gate of CI: instructions per hop, as ratios, against ``recorded.json``; more than 5 % above a value fails.

``make gate`` compares. ``make gate ARGS=--record`` writes what is measured; a value that goes up needs a decision
note that names its row: ``make gate ARGS="--record --decision docs/decisions/NNNN-….md"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench import instructions
from tests.bench.process import ROOT, NotMeasuredError
from tests.bench.variants import ROWS

RECORDED = Path(__file__).parent / "recorded.json"
TOLERANCE = 0.05
_REPEATS_WITHIN = 0.005
_GAINED = 0.05
DECISIONS = ROOT / "docs" / "decisions"

GATED = tuple(name for name, row in ROWS.items() if not row.reference)


def python() -> str:
    """Return the version of Python whose values count: instructions differ from one to the next."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def failures(measured: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """Return what is wrong with the ratios measured, one sentence for each row."""
    found = []
    for name, ratio in measured.items():
        before = recorded.get(name)
        if before is None:
            found.append(f"{name}: {ratio:.4f} of {ROWS[name].base}, and nothing is recorded to compare it with")
        elif ratio > before * (1 + TOLERANCE):
            found.append(f"{name}: {ratio:.4f} of {ROWS[name].base}, recorded {before:.4f}: {ratio / before - 1:+.1%}")
    return found


ADVICE = """\
A row may cost 5 % more than recorded. Make it cheaper again. If what it buys is worth the price, say so in a note in
docs/decisions/ that names the row, and run: make gate ARGS="--record --decision docs/decisions/NNNN-….md"
A new row: make gate ARGS=--record"""


def record(
    measured: Mapping[str, float], before: Mapping[str, Any], decision: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Return what to write down in place of *before*, and the rows that go up without a decision note naming them."""
    ratios, decisions = dict(before.get("ratios", {})), dict(before.get("decisions", {}))
    text = decision.read_text(encoding="utf-8") if decision is not None else ""
    refused = []
    for name, ratio in measured.items():
        known = ratios.get(name)
        if known is not None and ratio > known * (1 + _REPEATS_WITHIN):
            if decision is None or f"`{name}`" not in text:
                refused.append(f"{name}: {known:.4f} to {ratio:.4f}")
                continue
            decisions[name] = str(decision.resolve().relative_to(ROOT))
        ratios[name] = round(ratio, 4)
    kept = {name: ratios[name] for name in GATED if name in ratios}
    decisions = {name: decisions[name] for name in kept if name in decisions}
    versions = {name: version(name) for name in ("opentelemetry-sdk", "structlog")}
    return {"versions": versions, "ratios": kept, "decisions": decisions}, refused


def main() -> None:
    """Measure, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*GATED, []], metavar="row", help="only these; without it all")
    parser.add_argument("--record", action="store_true", help="write down what is measured")
    parser.add_argument("--decision", type=Path, help="the note that says why a value goes up")
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the file of recorded values")
    asked = parser.parse_args()
    if asked.decision is not None and not (asked.decision.is_file() and asked.decision.resolve().parent == DECISIONS):
        parser.error(f"--decision: {asked.decision} is no note in docs/decisions")
    everything = json.loads(asked.recorded.read_text()) if asked.recorded.exists() else {}
    known = everything.get(python(), {})
    if not known and not asked.record:
        sys.exit(f"Nothing is recorded for Python {python()}, only for: {', '.join(everything) or 'none'}.\n{ADVICE}")
    try:
        counted = instructions.measure(asked.rows or GATED)
    except NotMeasuredError as error:
        sys.exit(str(error))
    measured = {name: instructions.ratio(name, counted) for name in counted if name in GATED}
    if asked.record:
        everything[python()], refused = record(measured, known, asked.decision)
        asked.recorded.write_text(json.dumps(everything, indent=1) + "\n")
        print(f"{len(measured) - len(refused)} values written to {asked.recorded}")
        if refused:
            sys.exit("Not written, for they go up and no note names them:\n" + "\n".join(refused) + "\n" + ADVICE)
        return
    for name, ratio in measured.items():
        before = known["ratios"].get(name)
        beside = f"recorded {before:.4f}  {ratio / before - 1:+.1%}" if before else ""
        print(f"{name:<18}{ratio:>9.4f} of {ROWS[name].base:<16}{beside}")
    if wrong := failures(measured, known["ratios"]):
        sys.exit("\n".join(["The gate is closed:", *wrong, ADVICE, _differing(known["versions"])]).rstrip())
    gained = [name for name, ratio in measured.items() if ratio < known["ratios"][name] * (1 - _GAINED)]
    if gained:
        print(f"Cheaper by more than 5 %: {', '.join(gained)}. Keep it: make gate ARGS=--record")


def _differing(recorded: Mapping[str, str]) -> str:
    found = [
        f"{name} {version(name)} (recorded with {then})" for name, then in recorded.items() if version(name) != then
    ]
    return f"Other versions than recorded: {', '.join(found)}" if found else ""


if __name__ == "__main__":
    main()
