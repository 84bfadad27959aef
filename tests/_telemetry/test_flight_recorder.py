"""The pieces together, as a hop uses them: sampler, ledger, keep decision and completion over simulated journeys."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import NamedTuple

import pytest

from rtobs._journey import ledger, tracestate
from rtobs._journey.journey import Journey, new_correlation_id
from rtobs._journey.ledger_entries import sent_span_id
from rtobs._journey.outcome import Outcome
from rtobs._journey.record import HopRecord
from rtobs._telemetry import consistent
from rtobs._telemetry.completion import rebuild
from rtobs._telemetry.consistent import DEFAULT, Rates
from rtobs._telemetry.keeping import Keeping

JOURNEYS = 20_000
HOPS = 4
RATE = 0.01
START = 1_790_000_000_000_000_000
MS = 1_000_000


class Exported(NamedTuple):
    """A span as a backend has it."""

    journey: int
    hop: int
    parent: int
    start_ns: int
    th: int | None
    rebuilt: bool


class Message(NamedTuple):
    """What travels."""

    sender: int
    tracestate: str
    sampled: bool
    kept: str
    ledger: str


class Platform:
    """Four services, one after the other; the last one delivers."""

    def __init__(self):
        self.drawn = random.Random(2026)
        self.rates = Rates({DEFAULT: RATE})
        self.keeping = Keeping({"push": 5.0}, {"acme"})
        self.exported: dict[int, list[Exported]] = defaultdict(list)
        """By span id."""
        self.truth: dict[tuple[int, int], tuple[int, int, int]] = {}
        """Span id, parent and start by journey and hop."""
        self.fate: dict[int, str] = {}
        self.failed_tries = 0

    def journey(self, number):
        """Let one message go its way."""
        identity = int(new_correlation_id(START + number), 16)
        fate = self.drawn.choices(["failed", "slow", "acme", "healthy"], [2, 1, 1, 96])[0]
        self.fate[number] = fate
        limit = self.rates.limit()
        sampled = consistent.decide(tracestate.randomness(identity), limit)
        message = Message(0, tracestate.root_state(limit) if sampled else "", sampled, "", "")
        for hop in range(HOPS):
            message = self.step(number, hop, identity, message, fate)

    def step(self, number, hop, identity, came, fate):
        """Do what the engine does for one process step, and return what its message carries."""
        last = hop == HOPS - 1
        name = f"{identity:032x}"
        record = HopRecord("deliver" if last else "consume" if hop else "accept", "push" if last else f"queue-{hop}")
        journey = record.journey = Journey(name, START // 1000)
        record.span_id, record.parent_span_id = self.drawn.getrandbits(64) | 1, came.sender
        record.wall_ns = START + hop * 40 * MS + (7200_000 * MS if fate == "slow" and last else 0)
        record.duration_ns = 10 * MS
        record.channel = "push" if last else ""
        record.healthy, record.outcome = True, Outcome.OK
        journey.kept = came.kept
        if fate == "acme":  # the application says whose message it is before it sends on
            journey.tenant = "acme"
            if self.keeping.is_high_value(record):
                journey.kept = journey.kept or "high_value"
        record.sampled = came.sampled or journey.kept != ""
        if last and fate == "failed":
            record.healthy, record.outcome, record.result = False, Outcome.FAILED, "failed"
        self.truth[number, hop] = record.span_id, came.sender, record.wall_ns
        # before the hop ends it sends, and tells what it knows so far
        sent = sent_span_id(record.span_id, 1)
        text = ledger.append(
            came.ledger, f"{name}-{came.sender:016x}" if came.sender else "", f"{name}-{sent:016x}",
            ledger.CODES[record.kind] | (ledger.EXPORTED if record.sampled else 0), record.span_hex, record.wall_ns,
            record.wall_ns + 8 * MS, record.wall_ns + 8 * MS, 1, ledger.label(f"service-{hop}", record.name, "next"),
        )  # fmt: skip
        # it ends
        reason = self.keeping.reason(record)
        state = came.tracestate
        if reason:
            state = tracestate.certain_state(state) if self.keeping.own(record) else tracestate.without_th(state)
            if came.ledger and not came.kept:
                told = ledger.read(came.ledger, identity, came.sender, identity)
                for span in rebuild(told, name, came.tracestate):
                    self.export(number, span)
        if record.sampled or reason:
            found = Exported(number, hop, came.sender, record.wall_ns, tracestate.limit_of(state), rebuilt=False)
            self.exported[record.span_id].append(found)
        return Message(sent, came.tracestate, record.sampled, journey.kept, text)

    def export(self, number, span):
        """Keep a rebuilt span of a step as a backend would."""
        if span.attributes["rtobs.hop"] != "publish":
            hop = int(span.resource.attributes["service.name"].removeprefix("service-"))
            parent = span.parent.span_id if span.parent is not None else 0
            th = tracestate.limit_of(span.context.trace_state.to_header())
            self.exported[span.context.span_id].append(Exported(number, hop, parent, span.start_time, th, rebuilt=True))


@pytest.fixture(scope="module")
def platform():
    found = Platform()
    for number in range(JOURNEYS):
        found.journey(number)
    return found


def test_every_failed_slow_and_high_value_journey_is_whole(platform):
    """Each has every step once, with its real parent and start, at a head rate of 1 %; most steps are rebuilt."""
    for number, fate in platform.fate.items():
        for hop in range(HOPS):
            span_id, parent, start_ns = platform.truth[number, hop]
            found = platform.exported.get(span_id, [])
            if fate != "healthy":
                (span,) = found
                assert (span.hop, span.parent, span.journey) == (hop, parent, number)
                assert abs(span.start_ns - start_ns) < 2 * MS
    failed = sum(fate == "failed" for fate in platform.fate.values())
    rebuilt = sum(span.rebuilt for spans in platform.exported.values() for span in spans)
    assert rebuilt > 2.8 * failed


def test_one_percent_of_the_healthy_ones_is_there_and_whole(platform):
    """Of healthy journeys the head's share is exported, each with all its steps, and nothing of the others."""
    healthy = [number for number, fate in platform.fate.items() if fate == "healthy"]
    whole = 0
    for number in healthy:
        there = sum(platform.truth[number, hop][0] in platform.exported for hop in range(HOPS))
        assert there in (0, HOPS)
        whole += there == HOPS
    share = whole / len(healthy)
    assert abs(share - RATE) < 3 * math.sqrt(RATE * (1 - RATE) / len(healthy))


def test_counts_adjusted_by_th_agree_with_what_happened(platform):
    """Spans weighed by their ``th`` add up to all hops, at every hop; failures to exactly as many as there were."""
    totals = defaultdict(float)
    failures = 0.0
    for spans in platform.exported.values():
        for span in spans:
            if span.th is not None:
                totals[span.hop] += consistent.adjusted_count(span.th)
                if span.hop == HOPS - 1 and platform.fate[span.journey] == "failed":
                    failures += consistent.adjusted_count(span.th)
    spread = math.sqrt(JOURNEYS * (1 - RATE) / RATE)
    for hop in range(HOPS):
        assert abs(totals[hop] - JOURNEYS) < 3 * spread, hop
    assert failures == sum(fate == "failed" for fate in platform.fate.values())


def test_what_leaves_is_a_fraction_of_everything(platform):
    """Keeping all that matters exports less than a tenth of the spans that exporting everything would."""
    exported = sum(len(spans) for spans in platform.exported.values())
    assert exported < JOURNEYS * HOPS * 0.1
