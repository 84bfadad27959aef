"""The pipeline over a real connection to a scripted collector: tries, rests, batches taken apart, what is told."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._export import circuit, pipeline
from rtobs._export.circuit import Circuit
from rtobs._export.otlp import joining, posted
from rtobs._export.pipeline import Exporters, Pipeline
from rtobs._export.sender import Sender, Target
from rtobs._journey.record import HopRecord
from rtobs._telemetry.labels import LabelGuard
from rtobs._telemetry.metrics import Registry
from tests._export.scripted import MOST_BYTES, POISON, RARELY, Collector
from tests.support.timing import SCALE, scaled, wait_until

RESOURCE = Resource({"service.name": "orders"})
_ids = itertools.count(1)


def hop(**facts: Any) -> HopRecord:
    record = HopRecord("accept", "/orders")
    record.trace_id, record.span_id, record.ended = 1, next(_ids), True
    for name, value in facts.items():
        setattr(record, name, value)
    return record


def span(name: str = "query", **facts: Any) -> ReadableSpan:
    context = SpanContext(1, next(_ids), is_remote=False)
    return ReadableSpan(name, context, None, RESOURCE, **{"start_time": 1, "end_time": 2, **facts})


def dropped() -> dict[str, int]:
    return {
        "/".join(values): count
        for (name, values), count in _guard.tallies().items()
        if name == names.TELEMETRY_DROPPED.name
    }


Make = Callable[..., Pipeline]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Generator[Make]:
    """A function that makes a pipeline to a collector, whose pauses and rests are short."""
    monkeypatch.setattr(pipeline, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(pipeline, "_LAST_PAUSE", 0.05)
    monkeypatch.setattr(circuit, "_FIRST_REST", 0.2)
    monkeypatch.setattr(circuit, "_LONGEST_REST", 0.4)
    made: list[Pipeline] = []

    def build(collector: Collector, *, delay: float = 0.05, timeout: float = 1.0, signals: str = "spans") -> Pipeline:
        makers = {}
        for signal in signals.split():
            path = {"spans": "traces"}.get(signal, signal)
            target = Target(f"{collector.endpoint}/v1/{path}", {}, "none", timeout, verify=True, cert=None)
            makers[signal] = lambda resource, signal=signal, target=target: posted(
                signal, Sender(target), target.timeout, resource, joining(signal)
            )
        found = Pipeline(
            Exporters(makers), Registry(LabelGuard(), 1), RESOURCE, span_delay=delay, metric_interval=60.0, delta=False
        )
        made.append(found)
        return found

    with _guard._lock:
        _guard._tallies.clear()
        _guard._last_told.clear()
    yield build
    for found in made:
        found.shutdown(0.5)


# Tries and rests -----------------------------------------------------------------------------------------------------


def test_a_short_wait_that_the_collector_asks_for_is_kept(make: Make) -> None:
    """A request answered with 429 and Retry-After is sent again after that time, inside the time of one export."""
    with Collector("429 short") as collector:
        sending = make(collector, timeout=5.0)
        begun = time.monotonic()
        sending.put_span(hop())
        wait_until(lambda: collector.spans)
        assert time.monotonic() - begun >= 1.0
        assert len(collector.requests) == 2
    assert dropped() == {}
    assert collector.spans.total() == 1


def test_no_wait_at_all_is_not_taken_at_its_word(make: Make) -> None:
    """A collector that is overloaded and asks for tries without a wait between them gets no storm of them."""
    with Collector("429 now") as collector:
        sending = make(collector, timeout=1.0)
        sending.put_span(hop())
        wait_until(lambda: sending._lines["spans"].attempts)
        assert 2 <= len(collector.requests) <= 8
    assert dropped() == {}


def test_a_long_wait_is_not_waited_out(make: Make) -> None:
    """An hour is more than one export has; the spans wait for the next try, and arrive when the collector is back."""
    with Collector("429 long") as collector:
        sending = make(collector)
        sending.put_span(hop())
        wait_until(lambda: collector.requests)
        collector.state = "healthy"
        wait_until(lambda: collector.spans)
    assert dropped() == {}


@pytest.mark.parametrize("state", ["500", "503", "401", "garbage", "page", "reset", "blackhole", "drip"])
def test_what_a_collector_does_not_take_waits_until_it_is_back(state: str, make: Make) -> None:
    """Spans, log events and totals of an outage arrive after it, once, whatever the outage looked like."""
    with Collector(state) as collector:
        sending = make(collector, timeout=0.3, signals="spans logs metrics")
        for number in range(20):
            sending.put_span(hop())
            sending.put_log({"event": "failed", "n": number})
        wait_until(lambda: sending._lines["spans"].attempts >= 2, 20)
        assert sending.queued == {"spans": 20, "logs": 20}
        collector.state = "healthy"
        wait_until(lambda: sending.queued == {"spans": 0, "logs": 0}, 20)
        assert sending.flush(5)
        assert set(collector.spans.values()) == {1}
        assert (collector.spans.total(), collector.logs) == (20, 20)
        assert len(collector.metrics) == 1
    assert "spans" not in {key.partition("/")[0] for key in dropped()}


def test_a_collector_that_is_away_is_left_alone_for_longer_and_longer(make: Make) -> None:
    """After three failed exports there is one try now and then, however much is put meanwhile."""
    with Collector("500") as collector:
        sending = make(collector, delay=0.01)
        line = sending._lines["spans"]
        sending.put_span(hop())
        wait_until(lambda: line.circuit.opened)
        seen = len(collector.requests)
        assert seen == 3
        for _ in range(1000):
            sending.put_span(hop())
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            sending.put_span(hop())
            time.sleep(0.001)
        assert seen <= len(collector.requests) <= seen + 12  # rests of 0.1 to 0.4 s


def test_a_batch_that_never_works_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five exports and two minutes it is counted, so that what is newer has a chance."""
    monkeypatch.setattr(pipeline, "_MOST_PATIENCE", pipeline._MOST_PATIENCE / 100)
    begun = time.monotonic()
    with Collector("500") as collector:
        sending = make(collector)
        sending.put_span(hop())
        wait_until(lambda: dropped() == {"spans/export_failed": 1}, 20)
        assert time.monotonic() - begun >= 1.2
        assert len(collector.requests) >= 5
        assert sending.queued["spans"] == 0


def test_rests_grow_and_differ() -> None:
    """Five seconds, then twice as long each time up to half a minute, less up to half at random."""
    found = []
    for _ in range(200):
        one, rests = Circuit(), []
        for _ in range(8):
            one.failed(100.0)
            rests.append(one.until - 100.0)
        found.append(rests)
    for at, most in enumerate((0, 0, 5, 10, 20, 30, 30, 30)):
        rests = [rests[at] for rests in found]
        if not most:
            assert not any(rest > 0 for rest in rests)
            continue
        assert most / 2 <= min(rests) < max(rests) <= most
        assert len(set(rests)) > 100
    one.worked()
    assert not one.opened
    assert not one.resting(0.0)


def test_once_one_signal_arrives_the_others_try_too(make: Make) -> None:
    """A signal's own rest ends when another one has found the collector back."""
    with Collector("500") as collector:
        sending = make(collector, signals="spans logs")
        sending.put_span(hop())
        sending.put_log({"event": "x"})
        wait_until(lambda: all(sending._lines[signal].circuit.opened for signal in ("spans", "logs")))
        sending._lines["logs"].circuit.until = time.monotonic() + 1000
        collector.state = "healthy"
        wait_until(lambda: collector.logs == 1, 10)


# Taking apart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 1, 3, 40, 511, 512])
def test_r18_poison_costs_itself_only(bad: int, make: Make, measured: Any) -> None:
    """R18: of 512 spans with bad ones at random places exactly the others arrive, and the bad ones are counted."""
    # A third of them cannot be encoded, the others the collector refuses with everything that is sent with them.
    chance = random.Random(bad)
    places = set(chance.sample(range(512), bad))
    with Collector("400") as collector:
        sending = make(collector, delay=60, timeout=20.0)
        good, unencodable = [], 0
        for place in range(512):
            one = hop()
            if place not in places:
                good.append(one.span_id.to_bytes(8, "big"))
            elif place % 3:
                one.attributes = {"x": POISON.decode()}
            else:
                unencodable += 1
                one = span(**chance.choice([{"name": "\udcff"}, {"start_time": "noon"}, {"end_time": -1}]))
            sending.put_span(one)
        sending.flush(30)
        requests = len(collector.requests)
        found = collector.spans
    counted = {key: number for key, number in dropped().items() if number}
    measured(f"R18 {bad:03} bad of 512", f"{found.total()} arrived, {counted} dropped, {requests} requests")
    assert counted == {
        key: number for key, number in (("spans/encode", unencodable), ("spans/rejected", bad - unencodable)) if number
    }
    assert found == dict.fromkeys(good, 1)


def test_r18_poison_in_log_events_costs_itself_only(make: Make) -> None:
    """R18 for log events: one that no encoder takes is found and counted, the others arrive."""
    with Collector() as collector:
        sending = make(collector, delay=60, signals="logs")
        for number in range(100):
            sending.put_log({"event": "x", "note": object() if number == 50 else "\udcff" if number == 70 else "fine"})
        sending.flush(10)
        lost = dropped().get("logs/encode", 0)
        assert collector.logs == 100 - lost
    assert lost <= 2


def test_a_request_that_is_too_large_is_sent_in_parts(make: Make) -> None:
    """A collector that takes only small requests gets small ones; what is too large alone is counted."""
    with Collector("413") as collector:
        sending = make(collector, delay=60, timeout=10.0)
        for _ in range(400):
            sending.put_span(hop(attributes={"x": "y" * 400}))
        sending.put_span(hop(attributes={f"x{place}": "y" * 1000 for place in range(MOST_BYTES // 1000)}))
        assert sending.flush(20)
        assert collector.spans.total() == 400
    assert dropped() == {"spans/rejected": 1}


def test_large_spans_are_not_all_sent_at_once(make: Make) -> None:
    """No request is larger than four megabytes, but for one with a single span that is."""
    with Collector() as collector:
        sending = make(collector, delay=60, timeout=20.0)
        for size in (1_500_000, 1_500_000, 1_500_000, 6_000_000, 100, 100):
            sending.put_span(span(attributes={f"x{place}": "y" * 8000 for place in range(size // 8000)}))
        assert sending.flush(20)
        sizes = [len(request.body) for request in collector.requests]
        assert collector.spans.total() == 6
    assert [round(size / 1e6, 1) for size in sizes] == [3.0, 1.5, 6.0, 0.0]
    assert dropped() == {}


def test_a_collector_that_refuses_everything_is_not_asked_about_each_span_for_ever(make: Make) -> None:
    """After 512 single spans refused in a row it is not the spans' fault, until something is taken again."""
    with Collector("422") as collector:
        sending = make(collector, delay=60, timeout=20.0)
        for _ in range(3):
            for _ in range(600):
                sending.put_span(hop())
            sending.flush(20)
        assert 1000 < len(collector.requests) < 1100
        assert dropped() == {"spans/rejected": 3 * 600}
        collector.state = "healthy"
        sending.put_span(hop())
        assert sending.flush(5)
        assert not sending._lines["spans"].hopeless


def test_what_a_collector_rejects_of_a_request_is_counted(make: Make) -> None:
    """Partial success is no success for all."""
    with Collector("partial") as collector:
        sending = make(collector, delay=60, signals="spans logs metrics")
        for _ in range(100):
            sending.put_span(hop())
            sending.put_log({"event": "x"})
        assert sending.flush(5)
        assert collector.spans.total() == collector.logs == 100 - RARELY
    assert dropped() == {"spans/rejected": RARELY, "logs/rejected": RARELY}


def test_no_more_is_rejected_than_was_sent(make: Make) -> None:
    """A collector that says it rejected 2^63 - 1 of each does not spoil the count of what was lost."""
    with Collector("partial of too many") as collector:
        sending = make(collector, delay=60, signals="spans logs metrics")
        sending._registry.observe(names.BACKPRESSURE, 1, {names.Label.REASON: "slow_confirm"})
        points = sum(len(snapshot.points) for snapshot in sending._registry.collect())
        for _ in range(3):
            sending.put_span(hop())
            sending.put_log({"event": "x"})
        assert sending.flush(5)
    found = dropped()
    assert found["spans/rejected"] == found["logs/rejected"] == 3
    assert 0 < found["metrics/rejected"] <= points + 2  # series of the losses themselves


def test_one_attribute_that_cannot_be_encoded_is_counted_as_such(make: Make) -> None:
    """Its span arrives, and so do its neighbours."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    with Collector() as collector:
        sending = make(collector, delay=60)
        sending.put_span(span(attributes={"bad": object(), "cyclic": cyclic, "large": "x" * 1_000_000, "s": "\udcff"}))
        sending.put_span(span(attributes={"fine": 1}, events=(Event("e", {"bad": {1}}, 1),)))
        assert sending.flush(5)
        assert collector.spans.total() == 2
    assert dropped() == {"attributes/encode": 3}  # what is nested too deep is replaced


def test_what_another_library_hands_over_may_be_anything(make: Make) -> None:
    """An object that is no span at all is counted and hurts nobody."""
    with Collector() as collector:
        sending = make(collector, delay=60)
        for one in (object(), None, hop()):
            sending.put_span(one)
        assert sending.flush(5)
        assert collector.spans.total() == 1
    assert dropped() == {"spans/encode": 2}


# No room -------------------------------------------------------------------------------------------------------------


def test_failed_hops_survive_an_outage_that_healthy_ones_do_not(make: Make) -> None:
    """When the queue is full healthy spans go first; whatever arrives later, failed ones arrive."""
    with Collector("500") as collector:
        sending = make(collector, delay=0.01)
        sending.put_span(hop())
        wait_until(lambda: sending._lines["spans"].circuit.opened)
        sending._lines["spans"].circuit.until = time.monotonic() + 60
        failed = []
        for number in range(6000):
            one = hop(result="failed" if number % 10 == 0 else "ok")
            failed += [one.span_id.to_bytes(8, "big")] * (number % 10 == 0)
            sending.put_span(one)
        assert dropped() == {"spans/queue_full": 6000 - pipeline.QUEUE_LIMIT}
        collector.state = "healthy"
        sending.put_span(span(status=Status(StatusCode.ERROR)))
        assert sending.flush(20)
        assert set(failed) <= collector.spans.keys()
        assert collector.spans.total() == 4096 + 1


def test_the_queue_is_bounded_in_bytes(make: Make) -> None:
    """Spans with large attributes fill it long before their number does."""
    with Collector("blackhole") as collector:
        sending = make(collector, delay=60, timeout=5.0)
        for _ in range(200):
            sending.put_span(span(attributes={"x": "y" * 100_000}))
        lost = dropped()["spans/bytes_full"]
        assert 200 - lost == sending.queued["spans"]
        assert 100 <= sending.queued["spans"] <= (12 << 20) / 100_000


# What is told --------------------------------------------------------------------------------------------------------


def test_one_line_a_minute_and_cause(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """However often it fails, each cause is told once; nobody else's logger says anything."""
    caplog.set_level(logging.DEBUG)
    for quiet in ("urllib3", "requests", "charset_normalizer"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    with Collector("503") as collector:
        sending = make(collector, delay=0.01, timeout=0.4, signals="spans logs metrics")
        for _ in range(3 * pipeline.QUEUE_LIMIT):  # one queue may be under way, another wait
            sending.put_span(hop())
        sending.put_log({"event": "x"})
        wait_until(lambda: len(collector.requests) > 12, 20)
        collector.state = "401"
        wait_until(lambda: len(collector.requests) > 20, 20)
        sending.shutdown(scaled(0.2))
    lines = [record.getMessage() for record in caplog.records]
    causes = Counter(
        cause
        for line in lines
        for cause in ("http 503", "http 401", "timeout", "queue is full", "had not been exported")
        if cause in line
    )
    assert causes.keys() >= {"http 503", "http 401", "queue is full", "had not been exported"}
    assert set(causes.values()) == {1}
    assert len(lines) == len(causes)


# The end -------------------------------------------------------------------------------------------------------------


def test_the_answer_to_the_last_request_is_waited_for(make: Make) -> None:
    """Even a shutdown that has no time lets a request that is under way be answered, so that nobody has to guess."""
    with Collector("slow") as collector:
        sending = make(collector, delay=0.01)
        sending.put_span(hop())
        wait_until(lambda: collector.requests)
        sending.shutdown(0)
        assert collector.spans.total() + dropped().get("spans/unanswered", 0) == 1
        if max(1.0, SCALE) == 1.0:
            assert collector.spans.total() == 1


def test_a_stale_connection_costs_nothing_at_the_end(make: Make) -> None:
    """A collector that has closed the idle connection in the meantime still gets the last spans."""
    with Collector() as collector:
        sending = make(collector, delay=60)
        sending.put_span(hop())
        assert sending.flush(5)
        sender_pool = sending._exporters._made["spans"].shutdown.__self__._adapter.poolmanager.pools
        (pool,) = sender_pool._container.values()
        pool.pool.queue[-1].sock.shutdown(2)
        sending.put_span(hop())
        assert sending.shutdown(5)
        assert collector.spans.total() == 2


def test_a_way_out_that_cannot_be_made_is_told_and_tried_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """An address that is none costs no thread and no host; what waits is counted at the end."""
    with Collector() as collector:
        collector.endpoint = "collector:4318"
        sending = make(collector)
        sending.put_span(hop())
        wait_until(lambda: sending._lines["spans"].circuit.opened, 10)
        assert not sending.shutdown(1)
    assert dropped() == {"spans/shutdown": 1}
    assert "begins with http" in caplog.text
