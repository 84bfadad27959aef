"""Completion: a ledger becomes the spans that nobody exported, the same to the byte whoever rebuilds them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from rtobs._export.encoder import SpanEncoder, request
from rtobs._journey import ledger
from rtobs._journey.ledger_entries import apart_span_id, sent_span_id
from rtobs._telemetry.completion import rebuild

CID = 0x0199A1B2C3D47E5F8A6B7C8D9E0F1A2B
NAME = f"{CID:032x}"
NOW = 1_790_000_000_000_000_000
MS = 1_000_000


class Journey:
    """A journey's steps, as they write its ledger; each knows what it would have exported."""

    def __init__(self, trace_id: int = CID) -> None:
        self.trace_id = trace_id
        self.ledger = self.received = ""
        self.clock = NOW

    def step(
        self, kind: str, span_id: int, names: tuple[str, str, str], *, number: int = 1, flags: int = 0,
        first_ns: int = 0, apart: int = 0, took: int = 7 * MS,
    ) -> Journey:  # fmt: skip
        """Return the journey of the message that a step sends; the step's own stays as it is."""
        start = self.clock + 3 * MS
        sent = span_id
        if apart:
            sent, flags = apart_span_id(span_id, apart), flags | ledger.APART
        elif number:
            sent = sent_span_id(span_id, number)
        after = Journey(apart or self.trace_id)
        after.received = f"{after.trace_id:032x}-{sent:016x}"
        after.clock = start + took
        after.ledger = ledger.append(
            self.ledger, self.received, after.received, ledger.CODES[kind] | flags, f"{span_id:016x}", start,
            first_ns or after.clock, after.clock, number, ledger.label(*names),
            f"{self.trace_id:032x}" if apart and self.trace_id != CID else "",
        )  # fmt: skip
        return after

    def rebuilt(self, tracestate: str = "") -> list[ReadableSpan]:
        """Return the spans that the receiver of the message rebuilds."""
        told = ledger.read(self.ledger, self.trace_id, int(self.received[33:], 16), CID)
        return rebuild(told, NAME, tracestate)


def as_bytes(spans: list[ReadableSpan]) -> bytes:
    encoder = SpanEncoder(Resource({}))
    return request((source, data) for _, _, (source, data) in map(encoder.span, spans))


def accepted() -> Journey:
    return Journey().step("accept", 0xA, ("api", "/notify", "notify"))


def test_steps_and_sends_have_ids_parents_and_times_of_the_real_ones() -> None:
    """Each step and each send comes back with its id, parent, kind, service, start and end at the handover."""
    spans = accepted().step("consume", 0xB, ("router", "notify", "push")).rebuilt()
    sent, further = sent_span_id(0xA, 1), sent_span_id(0xB, 1)
    found: list[Any] = [
        (
            span.name, span.kind, span.context.span_id if span.context else 0,
            span.parent.span_id if span.parent else 0, (span.start_time or 0) - NOW, (span.end_time or 0) - NOW,
            span.resource.attributes["service.name"],
        )
        for span in spans
    ]  # fmt: skip
    assert found == [
        ("accept /notify", SpanKind.SERVER, 0xA, 0, 3 * MS, 10 * MS, "api"),
        ("publish notify", SpanKind.PRODUCER, sent, 0xA, 10 * MS, 10 * MS, "api"),
        ("consume notify", SpanKind.CONSUMER, 0xB, sent, 13 * MS, 20 * MS, "router"),
        ("publish push", SpanKind.PRODUCER, further, 0xB, 20 * MS, 20 * MS, "router"),
    ]
    for span in spans:
        assert span.attributes is not None
        assert span.attributes["rtobs.reconstructed"] is True
        assert span.resource.attributes["rtobs.reconstructed"] is True
        assert span.attributes["rtobs.correlation_id"] == NAME
        assert span.context is not None
        assert span.context.trace_id == CID
        assert span.context.trace_flags.sampled


def test_what_was_exported_is_not_rebuilt() -> None:
    """A step that says its spans left is not made again; those round it are."""
    spans = accepted().step("consume", 0xB, ("router", "notify", "push"), flags=ledger.EXPORTED)
    names = [span.name for span in spans.step("consume", 0xC, ("worker", "push", "done")).rebuilt()]
    assert names == ["accept /notify", "publish notify", "consume push", "publish done"]


def test_a_send_that_went_apart_is_linked() -> None:
    """A send with a trace of its own is that trace's root, linked to its step in the journey's first trace."""
    other = 0x1234 << 64 | 0x77
    spans = accepted().step("consume", 0xB, ("router", "notify", "push"), number=40, apart=other).rebuilt()
    step, send = spans[2:]
    assert step.context is not None
    assert send.context is not None
    assert (step.context.trace_id, send.context.trace_id) == (CID, other)
    assert send.parent is None
    (link,) = send.links
    assert (link.context.trace_id, link.context.span_id) == (CID, 0xB)


def test_only_a_send_with_no_step_around_it() -> None:
    """A send outside any step is one span, from its start to the sending."""
    (span,) = Journey().step("publish", 0xD, ("cron", "", "reports"), number=0).rebuilt()
    assert (span.name, span.kind, span.start_time, span.end_time) == (
        "publish reports", SpanKind.PRODUCER, NOW + 3 * MS, NOW + 10 * MS,
    )  # fmt: skip


def test_a_send_with_an_id_of_its_own_follows_its_step() -> None:
    """Where a neighbour chose the send's id, step and send are an entry each, and the parents are right."""
    step = Journey().step("accept", 0xA, ("api", "/x", ""), number=0)
    send = step.step("publish", 0xE, ("api", "", "q"), number=0)
    first, second = send.rebuilt()
    assert (first.name, second.name) == ("accept /x", "publish q")
    assert second.parent is not None
    assert second.parent.span_id == 0xA


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ("", ""),
        ("ot=th:fd70a", ""),
        ("vendor=1,ot=th:fd70a;rv:ff000000000001", "ot=rv:ff000000000001"),
        ("vendor=1", ""),
    ],
)
def test_nobody_knows_how_probable_it_was(state: str, left: str) -> None:
    """A rebuilt span has no ``th``, and nothing that may differ from hop to hop; explicit randomness stays."""
    for span in accepted().rebuilt(state):
        assert span.context is not None
        assert span.context.trace_state.to_header() == left


def test_two_failing_branches_of_one_fan_out_rebuild_the_same() -> None:
    """What two branches have in common is the same to the byte, though they left at different times."""
    before = accepted()
    first_ns = before.clock + 10 * MS
    names = ("router", "notify", "push")
    one = before.step("consume", 0xB, names, number=1, first_ns=first_ns)
    two = before.step("consume", 0xB, names, number=2, first_ns=first_ns, took=900 * MS)
    ours, theirs = one.rebuilt(), two.rebuilt()
    assert as_bytes(ours[:3]) == as_bytes(theirs[:3])
    assert ours[3].start_time != theirs[3].start_time


def test_redelivered_with_the_same_headers_it_is_rebuilt_the_same() -> None:
    """A message that comes again, here or in another process, gives the same bytes."""
    journey = accepted().step("consume", 0xB, ("router", "notify", "push"))
    assert as_bytes(journey.rebuilt("ot=th:c,v=1")) == as_bytes(journey.rebuilt("w=2,ot=th:0"))


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 9))
def test_both_encoders_say_the_same_by_service(seed: int, steps: int) -> None:
    """The direct encoder and the SDK's put rebuilt spans under one resource for each service, alike."""
    drawn = random.Random(seed)
    journey = Journey()
    for index in range(steps):
        names = (f"s{drawn.randrange(4)}", f"q{index}", f"q{index + 1}")
        journey = journey.step(drawn.choice(["consume", "accept", "deliver", "job"]), drawn.getrandbits(64) | 1, names)
    spans = journey.rebuilt("ot=rv:00000000000009")
    theirs = encode_spans(spans)
    ours = ExportTraceServiceRequest.FromString(as_bytes(spans))

    def flat(message: Any) -> Any:
        return sorted(
            (
                str(group.resource),
                sorted(span.SerializeToString() for scope in group.scope_spans for span in scope.spans),
            )
            for group in message.resource_spans
        )

    assert flat(ours) == flat(theirs)
    assert len(ours.resource_spans) == len({span.resource.attributes["service.name"] for span in spans})
    assert len(spans) == 2 * steps


def test_any_processor_takes_them() -> None:
    """A processor of the user's exports rebuilt spans like others."""
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    for span in accepted().rebuilt():
        processor.on_end(span)
    assert [span.name for span in exporter.get_finished_spans()] == ["accept /notify", "publish notify"]
