"""A hundred thousand journeys of real hops at 1 %: what matters is whole, the rest is the head's share."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import rtobs
from rtobs import _conventions as names
from rtobs._export.encoder import SpanEncoder
from rtobs._hop.runtime import runtime
from rtobs._journey import journey as identities
from rtobs._journey.tracestate import limit_of
from rtobs._telemetry.consistent import JourneySampler, adjusted_count
from tests.support.telemetry import Clock, Telemetry, start, stop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

JOURNEYS = 100_000
RATE = 0.01
A_SECOND = 500
"""Messages a second, by a clock of the test's own."""
MS = 1_000_000
WAY = ("accept", "publish", "consume", "publish", "consume", "deliver")
FATES = {"failed": 2, "slow": 1, "acme": 1, "healthy": 96}


class Gone(SpanProcessor):
    """Counts what is exported, and how many bytes it is."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, tuple[str, int | None, bool]]] = defaultdict(dict)
        """By journey and span id: kind of hop, threshold, whether it was rebuilt."""
        self.bytes = self.spans = 0
        self._encoder = SpanEncoder(Resource({}))

    def on_end(self, span: Any) -> None:
        facts = span.attributes
        rebuilt = "rtobs.reconstructed" in facts
        told = facts["rtobs.hop"], limit_of(span.context.trace_state.to_header()), rebuilt
        self.found[facts["rtobs.correlation_id"]][span.context.span_id] = told
        self.spans += 1
        self.bytes += self._encoder.span(span)[1]


class Run(NamedTuple):
    """What became of all journeys."""

    fates: dict[str, str]
    gone: Gone
    all_spans: float
    all_bytes: float
    """Exporting everything."""
    telemetry: Telemetry


def send(clock: Clock, fate: str) -> str:
    """Let one message go through three processes; return its correlation id."""
    clock.now += 1_000_000_000 // A_SECOND
    with rtobs.accept("/notify") as hop:
        if fate == "acme":
            hop.segment(tenant="acme")
        with rtobs.publish("notify") as out:
            headers = out.headers
    clock.now += 100_000
    with rtobs.consume("notify", headers=headers, trust="trusted"), rtobs.publish("push") as out:
        headers = out.headers
    with suppress(TimeoutError), rtobs.consume("push", headers=headers, trust="trusted"), rtobs.deliver("push", "fcm"):
        if fate == "slow":
            clock.now += 6_000 * MS
        if fate == "failed":
            raise TimeoutError
    return hop.correlation_id


@pytest.fixture(scope="module")
def run() -> Generator[Run]:
    patch, clock = pytest.MonkeyPatch(), Clock()
    patch.setattr(runtime, "wall_ns", clock)
    patch.setattr(runtime, "monotonic_ns", clock)
    everything = Gone()
    _process(patch, everything, 1.0, logs=lambda _event: None)
    for _ in range(500):
        send(clock, "healthy")
    gone = Gone()
    options = {"slow": {"push": 5.0}, "high_value": {"acme"}, "logs": lambda _event: None}
    _process(patch, gone, RATE, **options)
    drawn = random.Random(2026)
    identities.forget_drawn()
    patch.setattr(identities, "os", SimpleNamespace(urandom=random.Random(2026).randbytes))
    fates = {}
    for fate in drawn.choices(list(FATES), list(FATES.values()), k=JOURNEYS):
        fates[send(clock, fate)] = fate
    yield Run(fates, gone, everything.spans / 500 * JOURNEYS, everything.bytes / 500 * JOURNEYS, Telemetry())
    patch.undo()
    identities.forget_drawn()
    stop()


def _process(patch: pytest.MonkeyPatch, gone: Gone, rate: float, **settings: Any) -> None:
    """Be a process with a tracer provider of its own."""
    start(**settings)
    provider = TracerProvider(sampler=JourneySampler({"default": rate}), shutdown_on_exit=False)
    provider.add_span_processor(gone)
    patch.setattr(trace, "_TRACER_PROVIDER", provider)


def test_what_matters_is_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Every failed, slow and high-value journey has all its spans, once each; nothing was shed."""
    whole = Counter(run.fates[cid] for cid, found in run.gone.found.items() if kinds(found) == Counter(WAY))
    there = Counter(run.fates[cid] for cid in run.gone.found)
    of = Counter(run.fates.values())
    with capsys.disabled():
        print(f"\n{JOURNEYS} journeys at {RATE:.0%}: kind, journeys, exported, whole")
        for fate in FATES:
            print(f"  {fate:8} {of[fate]:7} {there[fate]:6} {whole[fate]:6}")
        print(f"  spans {run.gone.spans} of {run.all_spans:.0f} ({run.gone.spans / run.all_spans:.1%}), bytes "
              f"{run.gone.bytes} of {run.all_bytes:.0f} ({run.gone.bytes / run.all_bytes:.1%})")  # fmt: skip
    for fate in ("failed", "slow", "acme"):
        assert whole[fate] == of[fate]
    assert whole == there
    assert run.telemetry.count(names.SAMPLING_SHED) == 0


def test_of_the_others_the_heads_share_is_there(run: Run) -> None:
    """Of healthy journeys of other tenants 1 % is exported, give or take a tenth of a percent of all."""
    healthy = [cid for cid, fate in run.fates.items() if fate == "healthy"]
    assert abs(sum(cid in run.gone.found for cid in healthy) / len(healthy) - RATE) <= 0.001


def test_counts_adjusted_by_threshold_agree_with_the_metrics(run: Run) -> None:
    """Consume hops weighed by ``th`` are as many as metrics say, within 3 standard deviations; failures to one."""
    counted = run.telemetry.count(names.MESSAGE_SETTLED)
    told = [facts for found in run.gone.found.values() for facts in found.values()]
    estimate = sum(adjusted_count(th) for kind, th, _ in told if kind == "consume" and th is not None)
    failed = sum(
        adjusted_count(th)
        for cid, found in run.gone.found.items()
        for kind, th, _ in found.values()
        if run.fates[cid] == "failed" and kind == "deliver" and th is not None
    )
    assert counted == 2 * JOURNEYS
    assert abs(estimate - counted) <= 3 * 2 * math.sqrt(JOURNEYS * (1 - RATE) / RATE)
    assert failed == run.telemetry.count(names.ATTEMPTS, result="failed")


def kinds(found: dict[int, tuple[str, int | None, bool]]) -> Counter[str]:
    return Counter(kind for kind, _, _ in found.values())
