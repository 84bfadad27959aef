"""Threads: nothing is lost between them, and no histogram is ever seen half-written (R13)."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Self

import pytest

import rtobs
from rtobs import _config
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs._telemetry.metrics import Histogram
from tests.support import telemetry as support
from tests.support.timing import scaled

THREADS = 64
OPERATIONS = 10_000
"""Measurements of each thread: a stage each."""
IN_CI = 200
"""Messages of each thread, which share its operations: a consume hop, a deliver hop and fifty stages each."""
IN_SOAK = OPERATIONS


class _Collector:
    """Collects over and over, as exporters and scrapes do, and looks at every histogram that it gets.

    Every worker does so too, in the middle of its work: a thread beside 64 others gets little time.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.collections = 0
        self.torn: list[object] = []
        self._last: dict[object, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(scaled(0.002)):
            self.look()

    def look(self) -> None:
        bound = _config._bound
        assert bound is not None
        with self._lock:  # so that one collection is compared with the one before
            for snapshot in bound.registry.collect():
                for point in snapshot.points if snapshot.instrument.kind == "histogram" else ():
                    self._check(snapshot.instrument.name, snapshot.bounds, point)
            self.collections += 1

    def _check(self, name: str, bounds: tuple[float, ...], point: object) -> None:
        """Compare the sum with what the buckets allow, and the buckets with those of the collection before."""
        key, total, counts = (name, point.labels), point.value, point.counts
        before = self._last.get(key, (0,) * len(counts))
        least = sum(bound * count for bound, count in zip((0.0, *bounds), counts, strict=True))
        most = sum(bound * count for bound, count in zip(bounds, counts[:-1], strict=True))
        open_end = counts[-1] > 0
        if (
            len(counts) != len(bounds) + 1
            or any(now < then for now, then in zip(counts, before, strict=True))
            or total < least - 1e-6
            or (not open_end and total > most + 1e-6)
        ):
            self.torn.append((name, point, before))
        self._last[key] = counts


def _work(number: int, messages: int, seen: Counter[str], collector: _Collector) -> None:
    """Do what one worker does: take a message, deliver it or fail, with stages in between."""
    stages = OPERATIONS // messages
    chance = random.Random(number)
    own: Counter[str] = Counter()
    for message in range(messages):
        if message == messages // 2:
            collector.look()
        fails = chance.random() < 0.1
        try:
            with rtobs.consume("orders", headers={}):
                for _ in range(stages - 1):
                    with rtobs.stage("normalize"):
                        pass
                with rtobs.stage("normalize"), rtobs.deliver("push", "fcm"):
                    _deliver(fails=fails)
        except ConnectionError:
            own["failed"] += 1
        else:
            own["ok"] += 1
    own["left"] = int(engine.current() is not None)
    with _lock:
        seen.update(own)


_lock = threading.Lock()


def _deliver(*, fails: bool) -> None:
    if fails:
        raise ConnectionError


def _check_threads(messages: int) -> None:
    telemetry = support.start()
    seen: Counter[str] = Counter()
    assert engine.is_on()
    collector = _Collector()
    threads = [threading.Thread(target=_work, args=(number, messages, seen, collector)) for number in range(THREADS)]
    with collector:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    collector.look()
    found = {
        "processed": telemetry.count(names.PROCESS_DURATION),
        "consumed": telemetry.count(names.CONSUMED_MESSAGES),
        "stages": telemetry.by(names.STAGE_DURATION, "outcome"),
        "settled": telemetry.by(names.MESSAGE_SETTLED, "outcome"),
        "attempts": telemetry.by(names.ATTEMPTS, "result"),
        "durations": telemetry.by(names.DELIVERY_DURATION, "result"),
        "outcomes": telemetry.by(names.OUTCOMES, "outcome"),
        "faults": telemetry.by(names.INTERNAL_ERRORS, "site"),
        "missing": telemetry.count(names.PROPAGATION_MISSING),
    }
    support.stop()
    total, ends = THREADS * messages, {"ok": seen["ok"], "failed": seen["failed"]}
    stages = {**ends, "ok": THREADS * OPERATIONS - seen["failed"]}
    assert seen["left"] == 0
    assert seen["ok"] + seen["failed"] == total
    assert found == {
        "processed": total, "consumed": total, "stages": stages, "settled": ends, "attempts": ends, "durations": ends,
        "outcomes": ends, "faults": {}, "missing": total,
    }  # fmt: skip
    assert runtime.open_hops == set()
    told = (
        f"{THREADS} threads x {OPERATIONS} operations in {total} messages, exact; {collector.collections} collections"
    )
    print(f"\n{told} meanwhile, {len(collector.torn)} torn histograms")
    assert collector.collections > THREADS
    assert collector.torn == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_four_threads_count_exactly_while_telemetry_is_collected():
    """10,000 operations of each of 64 threads are counted exactly; every histogram collected meanwhile agrees."""
    _check_threads(IN_CI)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixty_four_threads_with_ten_thousand_messages_each():
    """640,000 messages of 64 threads are counted to the last one, and no collected histogram is torn."""
    _check_threads(IN_SOAK)


def test_a_torn_histogram_would_be_seen(telemetry):
    """A histogram whose sum and buckets do not agree is noticed: the check above can fail."""
    bound = _config._bound or (rtobs.accept("/"), engine.is_on(), _config._bound)[2]
    with bound.registry.lock:
        series = bound.registry.histogram(names.STAGE_DURATION, "torn", "ok")
        assert isinstance(series, Histogram)
        series.record(0.5)
        series.total += 1000.0
    collector = _Collector()
    collector.look()
    assert [name for name, *_ in collector.torn] == [names.STAGE_DURATION.name]


def test_one_hop_may_be_told_things_by_many_threads(telemetry):
    """Notes, events, promises and segments of one hop from 16 threads: each event and promise is counted once."""
    with rtobs.accept("/orders") as hop:

        def tell(number: int) -> None:
            for each in range(50):
                hop.note(**{f"field-{number}": each})
                hop.event("told")
                hop.intend("push")
                hop.segment(tenant="acme")

        threads = [threading.Thread(target=tell, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert telemetry.count(names.INTENTS) == 16 * 50
    assert len(telemetry.span("accept").events) <= 32
