"""What the run showed, as one JSON object for programs and as plain words for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rtobs.demo import timeline
from rtobs.demo.story import PROMISE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtobs.demo.options import Options
    from rtobs.demo.queues import Age, Queue
    from rtobs.demo.story import Channel, Identity, Story, Tenant
    from rtobs.demo.suspect import Connector, Suspect


MANY: Final = 10
"""Messages that wait, from which a queue is said to pile up where its broker tells no ages."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the platform, as the operating system knows it."""

    role: str
    pid: int
    ended: str = ""
    """How it ended if it did before it was told to; empty = as it should."""
    metrics: str = ""
    """The address that Prometheus could scrape; empty = none."""


def as_json(story: Story, options: Options, processes: Sequence[Process]) -> dict[str, Any]:
    """Return the object that ``--json`` prints; its schema is ``summary.schema.json``."""
    identity, suspect = story.identity(), story.suspect()
    failed = timeline.choose_failed(story.telemetry, suspect)
    delivered = timeline.choose_delivered(story.telemetry, suspect)
    return {
        "fault": options.fault,
        "target": options.target,
        "seconds": options.seconds,
        "rate": options.rate,
        "seed": options.seed,
        "broker": options.broker_shown,
        "processes": [asdict(one) for one in processes],
        "journeys": story.journeys(),
        "consumed": story.consumed(),
        "compared": story.compared(),
        "lost_correlation_ids": story.lost_correlation_ids(),
        "intents": identity.intents,
        "outcomes": identity.outcomes,
        "open": identity.open,
        "unaccounted": identity.unaccounted,
        "inferred": identity.inferred,
        "failing": None if suspect is None else _suspect_json(suspect),
        "queues": {queue.name: _queue_json(queue) for queue in story.queues()},
        "channels": {channel.name: _channel_json(channel) for channel in story.channels()},
        "connectors": [_connector_json(one) for one in story.connectors()],
        "tenants": {tenant.name: _tenant_json(tenant) for tenant in story.tenants()},
        "stories": {
            "failed": None if failed is None else failed.as_json(),
            "delivered": None if delivered is None else delivered.as_json(),
        },
    }


def as_text(story: Story, processes: Sequence[Process]) -> list[str]:
    """Return the summary and two messages' stories as lines; a line that ends in ``?`` is a heading."""
    channels, suspect = story.channels(), story.suspect()
    lines = [*opening(story.identity(), story.journeys(), story.consumed(), story.lost_correlation_ids()), ""]
    lines += [f"{one.role} (process {one.pid}) {one.ended}." for one in processes if one.ended]
    lines += ["Are deliveries delayed?", *(f"  {sentence}" for sentence in delays(channels)), ""]
    lines += ["Do messages pile up?", *(f"  {sentence}" for sentence in piles(story.queues())), ""]
    lines += [
        "Which connector is failing?",
        *(f"  {sentence}" for sentence in failing(suspect, story.connectors())),
        "",
    ]
    lines += ["Is one tenant affected?", *(f"  {sentence}" for sentence in affected(story.tenants())), ""]
    failed = timeline.choose_failed(story.telemetry, suspect)
    delivered = timeline.choose_delivered(story.telemetry, suspect)
    lines += timeline.lines(failed) if failed else ["No message failed for good."]
    lines += ["", *(timeline.lines(delivered) if delivered else ["No message was delivered."])]
    return lines


def opening(identity: Identity, journeys: int, consumed: int, lost: int) -> list[str]:
    """Say what became of everything that was promised."""
    by_count = sorted(identity.outcomes.items(), key=lambda item: -item[1])
    ended = ", ".join(f"{count} {outcome}" for outcome, count in by_count) or "no outcome yet"
    promises = (
        f"{many(journeys, 'message')} accepted, {many(identity.intents, 'delivery', 'deliveries')} promised: {ended}, "
        f"{identity.open} still on their way, {identity.unaccounted} unaccounted for."
    )
    messages = f"A message was consumed {many(consumed, 'time')}; {lost or 'none'} had lost its correlation id."
    lines = [promises, messages]
    if identity.inferred:
        lines.append(
            f"{many(identity.inferred, 'promise')} known only by the outcome: the process that counted was killed."
        )
    return lines


def delays(channels: Sequence[Channel]) -> list[str]:
    """Say which channels keep the promise of time."""
    sentences: list[str] = []
    for channel in sorted(channels, key=lambda one: (1.0 if one.on_time is None else one.on_time, one.name)):
        middle, high = channel.times.quantile(0.5), channel.times.quantile(0.95)
        if middle is None or high is None or channel.on_time is None:
            sentences.append(f"{channel.name}: nothing arrived yet.")
            continue
        sentences.append(
            f"{channel.name}: {percent(channel.on_time)} within the promised {PROMISE:g} s, "
            f"half after {duration(middle)}, 95 % after {duration(high)}; "
            f"queue wait {duration(channel.wait)}, at most {duration(channel.longest_wait)}."
        )
    return sentences


def piles(queues: Sequence[Queue]) -> list[str]:
    """Say how much has waited at most, and how busy those were that handle it; the longest wait first."""
    known = sorted(queues, key=lambda one: -one.oldest.seconds if one.oldest else 0.0)
    return [f"{one.name}: {_most(one)}{_busy(one.busy_overall)}." for one in known] or ["No broker was asked."]


def piling(queues: Sequence[Queue]) -> str:
    """Say in a sentence which queue piles up now, or that none does."""
    asked = [one for one in queues if one.age is not None]
    if not asked:
        return "Not known yet."
    worst = max(asked, key=lambda one: (piles_up(one), one.age is not None and one.age.seconds, one.depth or 0))
    messages = many(worst.depth or 0, "message")
    if piles_up(worst):
        return f"{worst.name}: {messages}{_since(worst.age)}{_busy(worst.busy)}."
    shares = [one.busy for one in queues if one.busy is not None]
    busiest = f"; workers at most {percent(max(shares))} busy" if shares else ""
    if worst.age is not None and not worst.age.estimated:
        return f"No: nothing is older than {age(worst.age)} ({worst.name}){busiest}."
    return f"No: at most {messages} ({worst.name}){busiest}."


def piles_up(queue: Queue) -> bool:
    """Tell whether messages that wait break the promise of time already, or are many where no age is told."""
    if queue.age is None:
        return False
    return late(queue.age) or (queue.age.estimated and (queue.depth or 0) >= MANY)


def late(found: Age | None) -> bool:
    """Tell whether an age breaks the promise of time."""
    return found is not None and found.seconds > PROMISE


def age(found: Age) -> str:
    """Return an age as people write it; one that the broker does not tell is marked as an estimate."""
    return ("~" if found.estimated else "") + duration(found.seconds)


def failing(suspect: Suspect | None, connectors: Sequence[Connector]) -> list[str]:
    """Name the failing connector in a sentence, or say that none is."""
    if suspect is None:
        tries, bad = sum(one.attempts for one in connectors), sum(one.bad for one in connectors)
        return [f"None: {bad} of {tries} tries failed, which is normal, and no connector stands out."]
    mine = (one for one in connectors if (one.channel, one.provider) == (suspect.channel, suspect.provider))
    again = [
        f"Its messages were put back to be tried again {many(one.retries, 'time')}." for one in mine if one.retries
    ]
    return [sentence(suspect), *again]


def sentence(suspect: Suspect) -> str:
    """Say in one sentence what is wrong with the failing connector."""
    if suspect.symptom == "slow":
        return (
            f"{suspect.channel} ({suspect.provider}) is too slow: {suspect.bad} of {suspect.of} deliveries were late "
            f"({percent(suspect.share)}, elsewhere {percent(suspect.background)}) and its queue makes them wait."
        )
    return (
        f"{suspect.channel} ({suspect.provider}) is failing: {suspect.bad} of {suspect.of} tries "
        f"({percent(suspect.share)}, elsewhere {percent(suspect.background)}), mostly {suspect.category}."
    )


def affected(tenants: Sequence[Tenant]) -> list[str]:
    """Say whether failures are one tenant's."""
    shares = "; ".join(f"{one.name} {percent(one.ok / one.ended)}" for one in tenants if one.ended)
    marked = [one.name for one in tenants if one.affected]
    verdict = f"{' and '.join(marked)} more than the others." if marked else "No: no tenant stands out."
    return [verdict, f"Delivered, largest tenant first: {shares or 'nothing yet'}."]


def many(count: int, one: str, more: str = "") -> str:
    """Return a count with its noun in the right number."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def percent(share: float) -> str:
    """Return a share as people write it; never 100 % where something is missing, nor 0 % where something is there."""
    rounded = round(share * 100, 1)
    if share not in (0.0, 1.0):
        rounded = min(99.9, max(0.1, rounded))
    return f"{rounded:g} %"


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _suspect_json(suspect: Suspect) -> dict[str, Any]:
    return {
        "channel": suspect.channel,
        "provider": suspect.provider,
        "symptom": suspect.symptom,
        "category": suspect.category or None,
        "bad": suspect.bad,
        "of": suspect.of,
        "background": round(suspect.background, 4),
        "sentence": sentence(suspect),
    }


def _most(queue: Queue) -> str:
    if queue.deepest is None:
        return "not asked about"
    if not queue.deepest:
        return "nothing was seen to wait"
    return f"at most {many(queue.deepest, 'message')}{_since(queue.oldest)}"


def _since(found: Age | None) -> str:
    """Say how old the oldest message is; an estimate may be far too low, and says nothing but that it is no shorter."""
    if found is None:
        return ""
    if not found.estimated:
        return f", the oldest for {age(found)}"
    return f", not fewer for {age(found)}" if late(found) else ""


def _busy(share: float | None) -> str:
    return "" if share is None else f"; workers {percent(share)} busy"


def _queue_json(queue: Queue) -> dict[str, Any]:
    return {
        "deepest": queue.deepest,
        "oldest_age_seconds": None if queue.oldest is None else queue.oldest.seconds,
        "estimated": queue.oldest is not None and queue.oldest.estimated,
        "busy": queue.busy_overall,
    }


def _channel_json(channel: Channel) -> dict[str, Any]:
    return {
        "outcomes": channel.outcomes,
        "on_time": channel.on_time,
        "p50_seconds": channel.times.quantile(0.5),
        "p95_seconds": channel.times.quantile(0.95),
        "wait_seconds": channel.wait,
        "longest_wait_seconds": channel.longest_wait,
        "displayed": channel.displayed,
    }


def _connector_json(one: Connector) -> dict[str, Any]:
    return {
        "channel": one.channel,
        "provider": one.provider,
        "attempts": one.attempts,
        "ok": one.ok,
        "failed": dict(one.by_category),
        "retries": one.retries,
    }


def _tenant_json(tenant: Tenant) -> dict[str, Any]:
    return {
        "intents": tenant.intents,
        "ended": tenant.ended,
        "ok": tenant.ok,
        "affected": tenant.affected,
    }
