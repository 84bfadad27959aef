"""A story for a terminal: the answer first, then the way of the message, readable at 80 columns and without colour.

Needs rich. Must not know where spans are from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rtobs.story.deliveries import FINAL_BAD, length
from rtobs.story.tale import Row, Tale

QUESTION: Final = "Was it sent, accepted, delivered or displayed?"
MOST_ROWS: Final = 200
"""Rows that are shown; a story this long has a message that is retried without end."""
_DEEPEST: Final = 12
_ADJECTIVES: Final = frozenset({"failed", "dead_lettered", "expired", "rejected", "slow", "high_value"})


def render(tale: Tale) -> RenderableType:
    """Return the whole story."""
    return Group(*_parts(tale))


def _parts(tale: Tale) -> Iterator[RenderableType]:
    yield Text.assemble("Journey ", (tale.correlation_id, "bold"))
    yield Text(f"  began {tale.began}, took {length(tale.seconds)}", style="dim")
    about = [f"{name} {value}" for name, value in (("tenant", tale.tenant), ("region", tale.region)) if value]
    if tale.kept:
        about.append(f"kept as {tale.kept.replace('_', ' ')}" if tale.kept in _ADJECTIVES else f"kept: {tale.kept}")
    if about:
        yield Text("  " + ", ".join(about), style="dim")
    yield Text()
    yield Text(QUESTION, style="bold")
    bad = any(one.outcome in FINAL_BAD for one in tale.deliveries)
    for sentence in tale.answer.removesuffix(".").split("; "):
        yield Padding(Text(sentence, style="red" if bad else "green"), (0, 0, 0, 2), expand=False)
    yield Text()
    yield _way(tale)
    yield from _notes(tale)


def _way(tale: Tale) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("at", "took", "waited"):
        table.add_column(name, justify="right", no_wrap=True, header_style="dim")
    table.add_column("what happened", overflow="fold", header_style="dim")
    service = ""
    for row in tale.rows[:MOST_ROWS]:
        if row.service and row.service != service:
            service = row.service
            table.add_row("", "", "", Text(f"{service}:", style="bold"))
        table.add_row(
            f"{'+' if row.at >= 0 else '-'}{length(abs(row.at))}",
            "" if row.took == 0 and row.rebuilt else length(row.took),
            "" if row.waited is None else length(row.waited),
            _what(row),
        )
    return table


def _what(row: Row) -> RenderableType:
    indent = 2 * min(row.depth, _DEEPEST)
    bad = row.outcome in FINAL_BAD
    style = "red" if bad else "yellow" if row.outcome == "retried" else "dim" if row.rebuilt else ""
    facts = [row.outcome.replace("_", "-"), row.error_category]
    if row.reason and not row.error.startswith(f"{row.reason}:"):
        facts.append(row.reason)
    if row.attempt > 1:
        facts.append(f"attempt {row.attempt}")
    ended = ", ".join(filter(None, facts))
    first = Text(f"{row.hop} {row.name}".rstrip() + (f": {ended}" if ended else ""), style=style)
    line = Table.grid()
    line.add_column(width=indent + 2, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row("~" if row.rebuilt else "", first)
    if row.error and bad:
        line.add_row("", Text(row.error, style=style))
    return line


def _notes(tale: Tale) -> Iterator[RenderableType]:
    if len(tale.rows) > MOST_ROWS:
        yield Text(f"{len(tale.rows) - MOST_ROWS} more rows are left out; --json has them all.")
    rebuilt = tale.rebuilt
    if rebuilt.spans:
        again = f" {rebuilt.duplicates} further copies are not shown." if rebuilt.duplicates else ""
        yield Text()
        yield Text(
            f"~ {rebuilt.spans} spans of {rebuilt.steps} steps were not exported; they were rebuilt from "
            f"{rebuilt.bytes} bytes that travelled inside the message. They end where it was handed on.{again}"
        )
    if tale.missing:
        yield Text(f"{tale.missing} spans have a sender or parent that is not here: their beginning is not known.")
