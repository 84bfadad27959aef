"""The questions a view may ask, answered from received telemetry and nothing else.

Counts come from metrics, which see every message; what is still on its way, and the single stories, come from spans.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rtobs import _conventions as names
from rtobs._conventions import Attribute
from rtobs._journey.outcome import proven_step
from rtobs.demo.endings import bad_endings
from rtobs.demo.promises import Promises
from rtobs.demo.queues import Queue, Queues
from rtobs.demo.suspect import (
    BACKGROUND,
    FEWEST_BAD,
    NOBODYS_FAULT,
    SURPRISE,
    Connector,
    Suspect,
    find_suspect,
    surprise,
)
from rtobs.demo.telemetry import WINDOW, Histogram, Telemetry

if TYPE_CHECKING:
    from rtobs.demo.telemetry import Span

PROMISE: Final = 1.0
"""Seconds from creation within which a delivery counts as on time; a bound of the end-to-end histogram."""
TRIES_KEPT: Final = 10_000
"""Tries that wait for the span of the handling they belong to."""
LOST: Final = "correlation_lost"
"""The platform's domain event for a message whose payload names another journey than its headers."""
PAYLOAD_ID: Final = "payload_correlation_id"
"""Span attribute with the copy of the correlation id that the payload carried."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The law of the promises: intents = outcomes + open + unaccounted."""

    intents: int
    outcomes: dict[str, int]
    """Terminal outcomes at the promise step of their channel."""
    open: int
    """Visibly still on their way."""
    unaccounted: int
    """Promised, no outcome, nothing heard of them any more."""
    inferred: int
    """Intents known only by their outcomes: the process that counted them died before its export."""


@dataclass(frozen=True, slots=True)
class Channel:
    """How deliveries of one channel keep the promise of time."""

    name: str
    times: Histogram
    recent: Histogram
    outcomes: dict[str, int]
    wait: float
    """Median wait in the channel's queue, seconds."""
    longest_wait: float
    displayed: int
    queue: Queue | None
    """The queue that its messages wait in; None where it is not watched."""

    @property
    def on_time(self) -> float | None:
        """Share of ended deliveries that arrived within the promise; None before the first."""
        ended = sum(self.outcomes.values())
        return min(1.0, self.times.within(PROMISE) / ended) if ended else None


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant gets."""

    name: str
    intents: int
    ok: int
    ended: int
    bad: int
    """Ended badly by somebody's fault."""
    affected: bool


class Story:
    """Asks one `Telemetry` store; made before the store, which it watches.

    Args:
        prefix: what names of queues begin with on a broker that several runs share.

    Example:
        ``story = Story(); Receiver(story.telemetry)``
    """

    def __init__(self, prefix: str = "") -> None:
        self.promises = Promises()
        self.telemetry = Telemetry(self._watch)
        self._queues = Queues(self.telemetry, prefix)
        self._waits: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=200))
        self._longest: defaultdict[str, float] = defaultdict(float)
        self._readings: deque[tuple[float, dict[str, Histogram]]] = deque(maxlen=64)
        self._queue_channel: dict[str, str] = {}
        self._tries: OrderedDict[str, Span] = OrderedDict()
        self._unaccounted: deque[int] = deque(maxlen=3)
        self._compared = 0
        self._differing = 0

    # counts

    def journeys(self) -> int:
        """Return how many messages were accepted."""
        accepted = self.telemetry.histograms(names.ACCEPT_DURATION.name, names.Label.OUTCOME)
        return sum(times.count for (outcome,), times in accepted.items() if outcome == "ok")

    def consumed(self) -> int:
        """Return how many messages were consumed, redeliveries included."""
        return round(self.telemetry.total(names.CONSUMED_MESSAGES.name))

    def compared(self) -> int:
        """Return in how many consume spans the payload's copy of the correlation id was compared."""
        return self._compared

    def lost_correlation_ids(self) -> int:
        """Return how many consumed messages did not carry the id minted at their accept."""
        return max(self._differing, round(self.telemetry.total(names.EVENTS.name, event=LOST)))

    def identity(self, now_ns: int | None = None) -> Identity:
        """Return the promises and what became of them at wall-clock time *now_ns* (default: now)."""
        counted = round(self.telemetry.total(names.INTENTS.name))
        outcomes: defaultdict[str, int] = defaultdict(int)
        for by_outcome in self._outcomes().values():
            for outcome, count in by_outcome.items():
                outcomes[outcome] += count
        ended = sum(outcomes.values())
        # A promise whose outcome is known was made, even if its count died with a process.
        intents = max(counted, ended)
        on_their_way = min(self.promises.on_their_way(time.time_ns() if now_ns is None else now_ns), intents - ended)
        return Identity(
            intents, dict(outcomes), on_their_way, intents - ended - on_their_way, inferred=intents - counted
        )

    def steady_identity(self) -> Identity:
        """Return the identity for a view that is watched while spans and metrics arrive at different moments.

        What is unaccounted only in this reading and not in those of the last seconds counts as on its way.
        """
        now = self.identity()
        steady = min([now.unaccounted, *self._unaccounted])
        return replace(now, open=now.open + now.unaccounted - steady, unaccounted=steady)

    # the questions

    def channels(self) -> list[Channel]:
        """Answer "are deliveries delayed?" by channel."""
        now = self._end_to_end()
        before = self._reading_before(time.monotonic() - WINDOW)
        outcomes = self._outcomes()
        displayed = self._displayed()
        queues = {self._queue_channel.get(queue.name): queue for queue in self.queues()}
        with self.telemetry.lock:
            waits = {channel: statistics.median(seen) for channel, seen in self._waits.items()}
        return [
            Channel(
                name,
                now.get(name, Histogram()),
                now.get(name, Histogram()).minus(before.get(name, Histogram())),
                dict(outcomes.get(name, {})),
                waits.get(name, 0.0),
                self._longest.get(name, 0.0),
                displayed.get(name, 0),
                queues.get(name),
            )
            for name in sorted(set(now) | set(outcomes))
        ]

    def queues(self) -> list[Queue]:
        """Answer "do messages pile up?" by queue."""
        return self._queues.all()

    def connectors(self) -> list[Connector]:
        """Answer "which connector is failing?" with the tries of each."""
        ok: defaultdict[tuple[str, str], int] = defaultdict(int)
        failed: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        total: defaultdict[tuple[str, str], int] = defaultdict(int)
        for labels, value in self.telemetry.series(names.ATTEMPTS.name).items():
            have, count = dict(labels), round(value)
            key = have.get(names.Label.CHANNEL, ""), have.get(names.Label.PROVIDER, "")
            total[key] += count
            if have.get(names.Label.RESULT) == "ok":
                ok[key] += count
            elif have.get(names.Label.RESULT) == "failed" and count:
                failed[key][have.get(names.Label.ERROR_CATEGORY, "") or "internal"] += count
        retries = self._retries()
        return [
            Connector(*key, total[key], ok[key], dict(failed[key]), retries.get(key[0], 0))
            for key in sorted(total)
            if total[key]
        ]

    def suspect(self) -> Suspect | None:
        """Name the failing connector, or None."""
        with self.telemetry.lock:
            waits = {channel: statistics.median(seen) for channel, seen in self._waits.items()}
        return find_suspect(self.connectors(), self._end_to_end(), waits, PROMISE)

    def tenants(self) -> list[Tenant]:
        """Answer "is one tenant affected?": largest first."""
        intents: defaultdict[str, int] = defaultdict(int)
        for labels, value in self.telemetry.series(names.INTENTS.name).items():
            intents[dict(labels).get(names.Label.TENANT, "")] += round(value)
        ok: defaultdict[str, int] = defaultdict(int)
        ended: defaultdict[str, int] = defaultdict(int)
        bad: defaultdict[str, int] = defaultdict(int)
        for labels, value in self.telemetry.series(names.OUTCOMES.name).items():
            have, count = dict(labels), round(value)
            if have.get(names.Label.STEP) != proven_step(have.get(names.Label.CHANNEL, "")):
                continue
            tenant = have.get(names.Label.TENANT, "")
            ended[tenant] += count
            if have.get(names.Label.OUTCOME) == "ok":
                ok[tenant] += count
            elif have.get(names.Label.ERROR_CATEGORY) not in NOBODYS_FAULT:
                bad[tenant] += count
        return [
            Tenant(name, intents[name], ok[name], ended[name], bad[name], affected=_stands_out(name, bad, ended))
            for name in sorted(set(intents) | set(ended), key=lambda name: (-intents[name], name))
        ]

    def tick(self) -> None:
        """Take a reading for the recent window; call it about once a second."""
        self._unaccounted.append(self.identity().unaccounted)
        self._readings.append((time.monotonic(), self._end_to_end()))
        self._queues.tick()

    # inside

    def _watch(self, span: Span) -> None:
        self.promises.watch(span)
        if span.hop == "consume":
            self._watch_consume(span)
        elif span.hop == "deliver":
            self._tries[span.parent_id] = span
            if len(self._tries) > TRIES_KEPT:
                self._tries.popitem(last=False)

    def _watch_consume(self, span: Span) -> None:
        # a process exports spans as they end: the tries come before the handling they belong to
        last = self._tries.pop(span.span_id, None)
        queue, wait = queue_of(span), span.number(Attribute.LAG)
        channel = last.text(Attribute.CHANNEL) if last is not None else self._queue_channel.get(queue, "")
        if channel:
            self._queue_channel[queue] = channel
        if bad_endings([span] if last is None else [span, last]):
            self.telemetry.pin(span.text(Attribute.CORRELATION_ID))
        if channel and wait is not None and not span.number(Attribute.ATTEMPT):
            # only first attempts: later ones wait on purpose
            self._waits[channel].append(wait)
            self._longest[channel] = max(self._longest[channel], wait)
        copy = span.text(PAYLOAD_ID)
        if copy:
            self._compared += 1
            self._differing += copy != span.text(Attribute.CORRELATION_ID)

    def _outcomes(self) -> dict[str, dict[str, int]]:
        found: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for labels, value in self.telemetry.series(names.OUTCOMES.name).items():
            have = dict(labels)
            channel = have.get(names.Label.CHANNEL, "")
            if value and have.get(names.Label.STEP) == proven_step(channel):
                found[channel][have.get(names.Label.OUTCOME, "")] += round(value)
        return {channel: dict(outcomes) for channel, outcomes in found.items()}

    def _displayed(self) -> dict[str, int]:
        found: defaultdict[str, int] = defaultdict(int)
        for labels, value in self.telemetry.series(names.OUTCOMES.name).items():
            have = dict(labels)
            if have.get(names.Label.STEP) == "displayed" and have.get(names.Label.OUTCOME) == "ok":
                found[have.get(names.Label.CHANNEL, "")] += round(value)
        return found

    def _retries(self) -> dict[str, int]:
        """Messages put back, by channel; the settlement counter knows only the queue, the spans know its channel."""
        found: defaultdict[str, int] = defaultdict(int)
        for labels, value in self.telemetry.series(names.MESSAGE_SETTLED.name).items():
            have = dict(labels)
            if have.get(names.Label.OUTCOME) == "retried":
                found[self._queue_channel.get(have.get(names.Label.DESTINATION, ""), "")] += round(value)
        return found

    def _end_to_end(self) -> dict[str, Histogram]:
        by_step = self.telemetry.histograms(names.END_TO_END.name, names.Label.CHANNEL, names.Label.STEP)
        return {channel: times for (channel, step), times in by_step.items() if step == proven_step(channel)}

    def _reading_before(self, moment: float) -> dict[str, Histogram]:
        return next((reading for taken, reading in reversed(self._readings) if taken <= moment), dict[str, Histogram]())


def queue_of(span: Span) -> str:
    """Return the name under which metrics know the queue of a consume span."""
    return span.text(Attribute.DESTINATION_TEMPLATE) or span.text(Attribute.DESTINATION_NAME)


def _stands_out(name: str, bad: dict[str, int], ended: dict[str, int]) -> bool:
    others_bad = sum(bad.values()) - bad[name]
    others_ended = sum(ended.values()) - ended[name]
    background = others_bad / others_ended if others_ended else 0.0
    weight = surprise(bad[name], ended[name], min(0.9, max(BACKGROUND, 2.0 * background)))
    return bad[name] >= FEWEST_BAD and weight >= SURPRISE
