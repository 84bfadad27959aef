"""docs/telemetry.md names what the code emits."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtobs._conventions import INSTRUMENTS, Attribute, Instrument, LogKey, prometheus_name
from rtobs._telemetry.labels import BUDGETS

PAGE = (Path(__file__).parent.parent / "docs" / "telemetry.md").read_text()


@pytest.mark.parametrize("instrument", INSTRUMENTS.values(), ids=INSTRUMENTS)
def test_every_instrument_has_its_row(instrument: Instrument) -> None:
    """An instrument's row says its kind, unit, labels and Prometheus name as they are in the code."""
    labels = ", ".join(f"`{label}`" for label in instrument.labels)
    start = (
        f"| `{instrument.name}` | {instrument.kind} | {instrument.unit} | {labels} | `{prometheus_name(instrument)}` |"
    )
    assert start in PAGE


def test_every_budget_attribute_and_log_key_is_named() -> None:
    """Label budgets, span attributes and log keys are on the page."""
    missing = [
        f"| `{label}` | {number} |" for label, number in BUDGETS.items() if f"| `{label}` | {number} |" not in PAGE
    ]
    missing += [name for name in (*Attribute, *LogKey) if f"`{name.value}`" not in PAGE]
    assert missing == []
