"""The live view in a terminal: three questions, each with its figures and a plain answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rtobs.demo.story import PROMISE, WINDOW
from rtobs.demo.summary import affected, duration, failing, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rtobs.demo.story import Channel, Identity, Story
    from rtobs.demo.suspect import Connector, Suspect


def render(story: Story, title: str, state: str) -> RenderableType:
    """Return the whole view for this moment; it fits a terminal of 80 columns and 24 lines."""
    suspect, connectors, tenants = story.suspect(), story.connectors(), story.tenants()
    return Group(
        Text.assemble((title, "bold"), "   ", (state, "dim")),
        _promises(story.journeys(), story.steady_identity()),
        Text(),
        _heading("Are deliveries delayed?"),
        _channels(story.channels()),
        _heading("Which connector is failing?"),
        _answer(failing(suspect, connectors)[0], alarming=suspect is not None),
        _connectors(connectors, suspect),
        _heading("Is one tenant affected?"),
        *(_answer(line, alarming=any(one.affected for one in tenants)) for line in affected(tenants)),
    )


def _heading(question: str) -> Text:
    return Text(question, style="bold cyan")


def _answer(sentence: str, *, alarming: bool) -> RenderableType:
    return Padding(Text(sentence, style="bold red" if alarming else "green"), (0, 0, 0, 2))


def _promises(journeys: int, identity: Identity) -> Text:
    by_count = sorted(identity.outcomes.items(), key=lambda item: -item[1])
    ended = "  ".join(f"{outcome} {count}" for outcome, count in by_count)
    return Text(
        f"{journeys} messages → {identity.intents} deliveries promised: {ended}  "
        f"open {identity.open}  unaccounted {identity.unaccounted}"
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True, header_style="dim")
    return table


def _indented(table: Table) -> RenderableType:
    return Padding(table, (0, 0, 0, 2))


def _channels(channels: Sequence[Channel]) -> RenderableType:
    table = _table(
        "channel", "delivered", "on time", "p50", "p95", f"p95 {WINDOW:g} s", f"promise {PROMISE:g} s", "wait"
    )
    for channel in channels:
        recent = channel.recent.quantile(0.95)
        late = recent is not None and recent > PROMISE
        table.add_row(
            channel.name,
            str(channel.outcomes.get("ok", 0)),
            "–" if channel.on_time is None else percent(channel.on_time),
            _seconds(channel.times.quantile(0.5)),
            _seconds(channel.times.quantile(0.95)),
            _seconds(recent),
            Text("–" if recent is None else "late" if late else "kept", style="bold red" if late else "green"),
            duration(channel.wait),
        )
    return _indented(table)


def _connectors(connectors: Sequence[Connector], suspect: Suspect | None) -> RenderableType:
    table = _table("connector", "attempts", "failed", "share", "put back", "top error")
    for one in connectors:
        failed = sum(one.by_category.values())
        named = suspect is not None and (suspect.channel, suspect.provider) == (one.channel, one.provider)
        table.add_row(
            f"{one.channel} ({one.provider})",
            str(one.attempts),
            str(failed),
            percent(failed / one.attempts),
            str(one.retries),
            one.top_category or "–",
            style="bold red" if named else "",
        )
    return _indented(table)


def _seconds(value: float | None) -> str:
    return "–" if value is None else duration(value)
