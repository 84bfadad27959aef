"""Six processes, one broker, nothing sampled: a failure in the last step brings back the whole journey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import pytest
from google.protobuf.json_format import MessageToJson

from rtobs import _conventions as names
from rtobs.story.pick import Pick
from rtobs.story.spans import spans
from rtobs.story.tale import tell
from tests._export.collector import collector, plain
from tests.chain import steps
from tests.chain.processes import exporting, running, total

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.broker]  # six processes on a busy core

JOURNEYS = 200
"""On each broker: half of them fail at once, half two hours later. A process keeps 5,000 spans a second at most."""
MS = 1_000_000
WAY = [
    (f"service-{step}", kind)
    for step in range(1, steps.STEPS)
    for kind in ("accept" if step == 1 else "consume", "publish")
]
"""What has to be rebuilt, in order: each the parent of the next."""


class Run(NamedTuple):
    """What is known after all messages have failed."""

    books: list[dict[str, Any]]
    spans: dict[str, list[Any]]
    """By journey, with their services: (service, span)."""
    collected: Any


@pytest.fixture(scope="module")
def run(amqp_url, redis_url, nats_url, unique, tmp_path_factory):
    """Send the messages through the six steps, over one broker after the other."""
    name = unique("flight").replace("-", "_")
    with collector("http", tmp_path_factory.mktemp("flight") / "otlp") as collected, _queues(name):
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(
                    running(steps.__name__, str(step), str(JOURNEYS), name, **exporting(collected, every=1.0))
                )
                for step in range(1, steps.STEPS + 1)
            ]
            for process in processes:
                process.says("ready")
            for broker in steps.PLACES:
                processes[0].tell()
                assert processes[-1].says("done", *processes[1:-1]) == broker
            books = [process.close("begun") for process in processes]
        assert all(book["flushed"] for book in books)
        found = defaultdict(list)
        for request in collected.requests("traces"):
            for group in request.resource_spans:
                service = plain(group.resource.attributes)
                for scope in group.scope_spans:
                    for span in scope.spans:
                        cid = plain(span.attributes).get("rtobs.correlation_id", "")
                        found[cid].append((service["service.name"], "rtobs.reconstructed" in service, span))
        yield Run(books, found, collected)


@contextlib.contextmanager
def _queues(name):
    """Make the queues of a run, and delete them in the end."""

    async def do(what):
        for make in steps.PLACES.values():
            place = make(name)
            await place.open()
            await getattr(place, what)()
            await place.close()

    asyncio.run(do("make"))
    try:
        yield
    finally:
        asyncio.run(do("remove"))


CASES = pytest.mark.parametrize(
    ("broker", "later"), [(broker, later) for broker in steps.PLACES for later in (False, True)]
)


def chosen(run, broker, later):
    """Yield the messages of one broker that failed at once, or two hours later, and their journeys."""
    for key, cid in run.books[0]["journeys"].items():
        name, _, number = key.rpartition(" ")
        if name == broker and steps.is_later(int(number)) == later:
            yield key, cid


def is_rebuilt(span):
    return "rtobs.reconstructed" in plain(span.attributes)


def rebuilt_once(found):
    """Return the rebuilt spans of a journey, once each; copies are the same to the byte."""
    once = {}
    for service, marked, span in found:
        if is_rebuilt(span):
            assert marked, "the resource says it too"
            data = span.SerializeToString(deterministic=True)
            assert once.setdefault(span.span_id, (service, span, data)) == (service, span, data)
    return {span_id: (service, span) for span_id, (service, span, _) in once.items()}


@CASES
def test_every_journey_is_whole(run, broker, later, capsys):
    """Each journey has all six steps in one trace with the right parents, the first five and sends rebuilt."""
    copies = Counter()
    for key, cid in chosen(run, broker, later):
        found = run.spans[cid]
        assert {span.trace_id.hex() for _, _, span in found} == {cid}
        once = rebuilt_once(found)
        copies["rebuilt"] += sum(is_rebuilt(span) for _, _, span in found)
        copies["once"] += len(once)
        above, way = b"", []
        by_parent = {span.parent_span_id: (service, span) for service, span in once.values()}
        for _ in WAY:
            service, span = by_parent[above]
            way.append((service, plain(span.attributes)["rtobs.hop"]))
            above = span.span_id
        assert way == WAY, key
        assert len(once) == len(WAY)
        real = [span for _, _, span in found if not is_rebuilt(span)]
        kinds = Counter(plain(span.attributes)["rtobs.hop"] for span in real)
        assert kinds == {"consume": 3, "deliver": 3, "publish": 1}  # given back, sent again, for good
        assert len({span.span_id for span in real}) == len(real)
        assert sum(span.parent_span_id == above for span in real) == 2  # both deliveries of the same message
        assert {plain(span.attributes).get("rtobs.sampling.reason") for span in real} <= {"failed"}
        copies["journeys"] += 1
    assert copies["journeys"] == JOURNEYS // 2
    with capsys.disabled():
        print(
            f"\n{broker}, {'two hours later' if later else 'at once'}: {copies['journeys']} journeys, all whole; "
            f"{copies['once']} spans rebuilt, {copies['rebuilt']} with copies", end="",
        )  # fmt: skip


def test_all_is_counted(run):
    """Rebuilt spans are counted, copies too; nothing was shed or refused, and nothing of ours failed."""
    rebuilt = sum(is_rebuilt(span) for found in run.spans.values() for _, _, span in found)
    assert total(run.collected, names.SPANS_REBUILT.name) == rebuilt
    for none in (names.SAMPLING_SHED, names.INTERNAL_ERRORS, names.PROPAGATION_REJECTED, names.TELEMETRY_DROPPED):
        assert total(run.collected, none.name) == 0


@CASES
def test_start_and_handover_are_true(run, broker, later, capsys):
    """Rebuilt steps begin and hand over when their processes say: 95 % within 2 ms, all within 50 ms."""
    off = {"start": [], "handover": []}
    for key, cid in chosen(run, broker, later):
        for service, span in rebuilt_once(run.spans[cid]).values():
            book = run.books[int(service[-1]) - 1]
            kind = plain(span.attributes)["rtobs.hop"]
            if kind != "publish":
                off["start"].append(_off(span.start_time_unix_nano, book["begun"][key]))
            off["handover"].append(_off(span.end_time_unix_nano, book["sent"][key]))
    with capsys.disabled():
        for what, values in off.items():
            p95 = sorted(values)[math.ceil(0.95 * len(values)) - 1]
            print(f"\n{what}: {len(values)} off by {p95 / MS:.3f} ms p95, {max(values) / MS:.3f} ms max", end="")
            assert p95 <= 2 * MS
            assert max(values) <= 50 * MS


def _off(told_ns, between):
    """Return by how much a moment lies outside of the two between which it was."""
    return max(between[0] - told_ns, told_ns - between[1], 0)


def test_its_story_can_be_told(run):
    """From what was exported, as OTLP's JSON, the story says what became of a message, and from how many bytes."""
    key, cid = next(chosen(run, "rabbitmq", later=False))
    exported = [json.loads(MessageToJson(request)) for request in run.collected.requests("traces")]
    pick = Pick(cid)
    pick.see(spans(exported))
    tale = tell(cid, pick.of(spans(exported)))
    assert tale is not None, key
    assert tale.services == tuple(f"service-{step}" for step in range(1, steps.STEPS + 1))
    assert (tale.rebuilt.spans, tale.rebuilt.steps, tale.rebuilt.bytes) == (len(WAY), 5, 5 * 21)
    assert tale.rebuilt.duplicates == len(WAY)
    assert tale.missing == 0
    assert tale.answer.startswith("push by to-rabbitmq: ")
    assert "after 3 tries" in tale.answer
