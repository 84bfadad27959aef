"""The live view in a terminal: questions, each with its figures and a plain answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rtobs.demo.story import PROMISE
from rtobs.demo.summary import affected, age, duration, failing, late, percent, piles_up, piling
from rtobs.demo.telemetry import WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rtobs.demo.queues import Queue
    from rtobs.demo.story import Channel, Identity, Story
    from rtobs.demo.suspect import Connector, Suspect


def render(story: Story, title: str, state: str) -> RenderableType:
    """Return the whole view for this moment; it fits a terminal of 80 columns and 24 lines."""
    suspect, connectors, tenants = story.suspect(), story.connectors(), story.tenants()
    queues = story.queues()
    return Group(
        Text.assemble((title, "bold"), "   ", (state, "dim")),
        _promises(story.journeys(), story.steady_identity()),
        _heading("Are deliveries delayed?"),
        _channels(story.channels()),
        _heading("Do messages pile up?"),
        _answer(piling(queues), alarming=any(map(piles_up, queues))),
        _heading("Which connector is failing?"),
        _answer(failing(suspect, connectors)[0], alarming=suspect is not None),
        _connectors(connectors, suspect),
        _heading("Is one tenant affected?"),
        _answer(" ".join(affected(tenants)), alarming=any(one.affected for one in tenants)),
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
    table = _table("channel", "ok", "on time", f"p95 {WINDOW:g} s", f"{PROMISE:g} s", "wait", "depth", "oldest", "busy")
    for channel in channels:
        recent = channel.recent.quantile(0.95)
        broken = recent is not None and recent > PROMISE
        queue = channel.queue
        table.add_row(
            channel.name,
            str(channel.outcomes.get("ok", 0)),
            "–" if channel.on_time is None else percent(channel.on_time),
            "–" if recent is None else duration(recent),
            Text("–" if recent is None else "late" if broken else "kept", style="bold red" if broken else "green"),
            duration(channel.wait),
            *(_queue(queue) if queue is not None else ("–", "–", "–")),
        )
    return _indented(table)


def _queue(queue: Queue) -> tuple[str, Text, str]:
    return (
        "–" if queue.depth is None else str(queue.depth),
        Text("–" if queue.age is None else age(queue.age), style="bold red" if late(queue.age) else ""),
        "–" if queue.busy is None else percent(queue.busy),
    )


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
