"""The direct encoder against the SDK's: parsed by opentelemetry-proto, both must say the same."""

from __future__ import annotations

import logging
import math
import struct
from collections import Counter, UserDict, UserList
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from rtobs._export import encoder
from rtobs._export.encoder import SpanEncoder, request
from rtobs._journey.journey import Journey
from rtobs._journey.message import Message
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._journey.record import DeliveryEnd, HopRecord, StageRecord
from rtobs._journey.span import Event as HopEvent
from rtobs._journey.span import Linked
from rtobs._telemetry.readable import KINDS, SCOPE, readable

RESOURCE = Resource({"service.name": "orders", "n": 3, "hosts": ("a", "b")}, "https://example.org/schema")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Generator[None]:
    """The SDK logs each attribute that it cuts or drops; here there are thousands."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


# What may be in a span -----------------------------------------------------------------------------------------------

words = st.text(max_size=20)
"""Any characters but surrogates, as hypothesis makes them."""
long_words = st.integers(90, 300).flatmap(lambda n: st.sampled_from("aé漢🎉").map(lambda c: c * n))
moments = st.integers(0, 2**64 - 1)
integers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 127, 128, 2**63 - 1, -(2**63)])
plain = st.none() | st.booleans() | integers | st.floats() | words | long_words | st.binary(max_size=20)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(words | st.integers(), inner, max_size=3)
        | st.lists(inner, max_size=2).map(UserList)
        | st.dictionaries(words, inner, max_size=2).map(UserDict)
    ),
    max_leaves=8,
)
attributes = st.dictionaries(words | st.sampled_from(["a", "b", "messaging.system"]) | long_words, values, max_size=6)


def bounded(found: dict[str, Any]) -> BoundedAttributes:
    """As the SDK's own spans have them: cleaned, and those beyond a limit dropped and counted."""
    return BoundedAttributes(3, {name or "empty": value for name, value in found.items()}, max_value_len=50)


mappings = st.none() | attributes | attributes.map(bounded)


@st.composite
def contexts(draw: Any) -> SpanContext:
    """Ids of any size, trace state, local or remote."""
    members = draw(st.lists(st.tuples(st.from_regex("[a-z]{1,9}", fullmatch=True), st.sampled_from("xyz")), max_size=3))
    return SpanContext(
        draw(st.integers(0, 2**128 - 1)), draw(st.integers(0, 2**64 - 1)), draw(st.booleans()),
        TraceFlags(draw(st.integers(0, 255))), TraceState(members),
    )  # fmt: skip


def listed(found: list[Any], limit: int | None) -> Any:
    """As the SDK's own spans have events and links: those beyond a limit dropped and counted."""
    if limit is None:
        return tuple(found)
    kept = BoundedList(limit)
    for one in found:
        kept.append(one)
    return kept


@st.composite
def lists(draw: Any, one: Any) -> Any:
    return listed(draw(st.lists(one, max_size=3)), draw(st.none() | st.integers(1, 2)))


events = st.builds(Event, words, mappings, moments)
links = st.builds(Link, contexts(), mappings)
statuses = st.builds(Status, st.just(StatusCode.ERROR), st.none() | words) | st.builds(
    Status, st.sampled_from([StatusCode.UNSET, StatusCode.OK])
)
resources = st.builds(Resource, st.dictionaries(words, st.booleans() | integers | words, max_size=3), st.none() | words)
scopes = st.builds(InstrumentationScope, words, st.none() | words, st.none() | words, st.none() | attributes)
spans = st.builds(
    ReadableSpan,
    name=words | long_words, context=contexts(), parent=st.none() | contexts(),
    resource=resources | st.just(RESOURCE), attributes=mappings, events=lists(events), links=lists(links),
    kind=st.sampled_from(SpanKind), status=statuses, start_time=st.none() | moments, end_time=st.none() | moments,
    instrumentation_scope=st.none() | scopes | st.just(SCOPE),
)  # fmt: skip

names = st.sampled_from(["orders", "/orders/{id}", "größe"])
rarely = st.sampled_from(["", "", "x"])
few = st.dictionaries(st.sampled_from(["a", "b"]), st.booleans() | integers | st.floats() | words, max_size=2)
hop_events = st.builds(HopEvent, words, moments, few, st.booleans())
linked = st.builds(Linked, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3), few)
ends = st.builds(
    DeliveryEnd, names, names, st.just("delivered"), st.sampled_from(Outcome),
    st.none() | st.sampled_from(ErrorCategory), rarely, st.booleans(), rarely, rarely, st.none() | st.floats(0, 9),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip


def filled(draw: Any, record: Any, **strategies: Any) -> Any:
    for name, strategy in strategies.items():
        setattr(record, name, draw(strategy))
    return record


@st.composite
def hops(draw: Any) -> HopRecord:
    """Hops of every kind, with whatever may be known of them."""
    journey = Journey("0123456789abcdef" * 2, 1)
    filled(draw, journey, tenant=rarely, region=rarely, source=rarely, device_type=rarely, intent=rarely)
    message = Message(draw(names), draw(names))
    filled(
        draw, message, address=names | st.just(""), conversation_id=st.just("") | words, id=st.just("") | words,
        group=rarely, pending=st.none() | st.integers(0, 99),
    )  # fmt: skip
    record = HopRecord(draw(st.sampled_from(sorted(KINDS))), draw(names), draw(st.sampled_from([message, None])))
    record.journey = draw(st.sampled_from([journey, None]))
    record.ended = True
    filled(
        draw, record, trace_id=st.integers(1, 2**128 - 1), span_id=st.integers(1, 2**64 - 1),
        parent_span_id=st.just(0) | st.integers(1, 2**64 - 1), sampled=st.booleans(), wall_ns=st.integers(0, 2**62),
        duration_ns=st.integers(0, 2**40), tracestate=st.sampled_from(["", "a=1,b=2", "broken"]),
        healthy=st.booleans(), attributes=st.none() | few, named=st.booleans(), channel=rarely,
        provider=rarely, result=st.sampled_from(["", "ok", "failed", "cancelled"]),
        outcome=st.none() | st.sampled_from(Outcome), settled=st.none() | st.sampled_from(Outcome),
        category=st.none() | st.sampled_from(ErrorCategory), reason=rarely, error_type=rarely, error_message=words,
        settlement=st.sampled_from(["", "acked"]), keep_reason=rarely, lag=st.none() | st.floats(0, 9),
        lag_source=rarely, age=st.none() | st.floats(0, 9), attempt=st.integers(1, 3), sends=st.integers(0, 2),
        ambiguous=st.booleans(), state=rarely, promise_id=rarely,
        events=st.none() | st.lists(hop_events, max_size=2), links=st.none() | st.lists(linked, max_size=2),
        delivery_ends=st.none() | st.lists(ends, max_size=2),
    )  # fmt: skip
    record.stages = draw(st.sampled_from([None, [], [StageRecord(draw(names), record, record.span_hex)] * 2]))
    for stage in record.stages or ():
        filled(
            draw, stage, span_id=st.integers(1, 2**64 - 1), wall_ns=st.integers(0, 2**62), ended=st.booleans(),
            duration_ns=st.integers(0, 2**40), outcome=st.sampled_from(["ok", "failed"]), error_type=rarely,
            attributes=st.none() | few, events=st.none() | st.lists(hop_events, max_size=2),
        )  # fmt: skip
    return record


# What both say -------------------------------------------------------------------------------------------------------


def said(message: Any) -> Counter[Any]:
    """Return what a request says, whatever the order of resources, scopes, spans and attributes in it."""
    found: Counter[Any] = Counter()
    for group in message.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                for holder in (span, *span.events, *span.links, group.resource, scope.scope):
                    ordered = sorted(holder.attributes, key=lambda one: one.SerializeToString(deterministic=True))
                    del holder.attributes[:]
                    holder.attributes.extend(ordered)
                assert span.HasField("status")
                parts = (group.resource, group.schema_url, scope.scope, scope.schema_url, span)
                found[tuple(p if isinstance(p, str) else p.SerializeToString(deterministic=True) for p in parts)] += 1
    return found


def parsed(data: bytes) -> Any:
    return ExportTraceServiceRequest.FromString(data)  # fields it does not know are kept, and would be a difference


def ours(items: list[Any], using: SpanEncoder) -> Any:
    units = [using.hop(one) if isinstance(one, HopRecord) else using.span(one) for one in items]
    return parsed(request(content for _, _, content in units))


def the_sdks(items: list[Any]) -> Any:
    whole = [span for one in items for span in (readable(one, RESOURCE) if isinstance(one, HopRecord) else [one])]
    return parsed(encode_spans(whole).SerializeToString())


@given(st.lists(spans, max_size=3), st.lists(hops(), max_size=2))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_spans_and_hops_say_what_the_sdks_encoder_says(of_others: list[Any], own: list[Any]) -> None:
    """Whatever is in spans of other libraries and in hops, parsed back it is what the SDK's encoder makes of them."""
    items, using = [*of_others, *own], SpanEncoder(RESOURCE)
    assert said(ours(items, using)) == said(the_sdks(items))
    assert said(ours(items, using)) == said(the_sdks(items))  # again, with everything remembered
    assert using.lost == 0


@given(hops())
def test_an_encoder_counts_the_spans_of_a_hop(record: HopRecord) -> None:
    """A hop is one span, and one more for each stage that ended."""
    items, size, content = SpanEncoder(RESOURCE).hop(record)
    assert items == len(readable(record, RESOURCE))
    (group,) = parsed(request([content])).resource_spans
    assert sum(len(scope.spans) for scope in group.scope_spans) == items
    assert size == len(content[1])


def test_texts_of_every_length_arrive() -> None:
    """Wherever the lengths of a text, its attribute and its span begin to take another byte, they do."""
    using = SpanEncoder(RESOURCE)
    for size in (*range(300), 16_370, 16_384, 2_097_140, 2_097_152):
        found = {"a": "x" * size, "k" * size: "x"}
        span = ReadableSpan("n" * size, SpanContext(1, 2, is_remote=False), None, RESOURCE, found, kind=SpanKind.CLIENT)
        assert said(ours([span], using)) == said(the_sdks([span]))


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny bounds, so that everything is forgotten again and again, requests are the same."""
    for bound in ("_MOST_KEYS", "_MOST_PAIRS", "_MOST_SOURCES", "_MOST_NAMES", "_MOST_VALUES", "_STRIKES"):
        monkeypatch.setattr(encoder, bound, 2)
    using = SpanEncoder(RESOURCE)
    for number in range(50):
        found = {f"key {number % 5}": f"value {n}" for n in range(3)} | {"same": "same", f"v{number}": str(number)}
        span = ReadableSpan(
            f"name {number % 4}", SpanContext(1, number + 1, is_remote=False), None, Resource({"n": number % 3}), found,
            instrumentation_scope=InstrumentationScope(f"scope {number % 3}"), start_time=1, end_time=2,
        )  # fmt: skip
        assert said(ours([span], using)) == said(the_sdks([span]))
        assert len(using._keys) <= 2
        assert sum(len(key.pairs) for key in using._keys.values()) <= 4
        assert len(using._names) <= 2
        assert len(using._groups) <= 2
        assert len(using._scopes) <= 2


# What cannot be said -------------------------------------------------------------------------------------------------


class Breaks(UserDict):  # type: ignore[type-arg]
    """A mapping that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")


class Endless(UserList):  # type: ignore[type-arg]
    """A sequence that does not end."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


def cyclic() -> list[Any]:
    found: list[Any] = []
    found += [found, found]
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(60):
        found = [found]
    return found


HOPELESS = {
    "object": object(), "set": {1}, "complex": 1j, "class": int, "large": 2**63, "small": -(2**63) - 1,
    "surrogate": "\udcff", "inside": ["fine", {"x": "\udcff"}], "key inside": {"\udcff": 1}, "cyclic": cyclic(),
    "deep": deep(), "breaks": Breaks(), "endless": Endless(),
}  # fmt: skip


@pytest.mark.parametrize("value", HOPELESS.values(), ids=list(HOPELESS))
def test_an_attribute_that_cannot_be_said_is_left_out_and_counted(value: Any) -> None:
    """Its span arrives with all others, and says that one attribute of it does not; so do its events and links."""
    context = SpanContext(1, 2, is_remote=False)
    found = {"before": "b", "bad": value, "after": 1}
    span = ReadableSpan(
        "query", context, None, RESOURCE, found, (Event("e", found, 1),), (Link(context, found),), start_time=1,
        end_time=2, instrumentation_scope=SCOPE,
    )  # fmt: skip
    using = SpanEncoder(RESOURCE)
    arrived = ours([span], using).resource_spans[0].scope_spans[0].spans[0]
    for holder in (arrived, arrived.events[0], arrived.links[0]):
        assert [one.key for one in holder.attributes] == ["before", "after"]
        assert holder.dropped_attributes_count == 1
    assert using.lost == 3


@pytest.mark.parametrize("name", [5, None, b"\xff", "\udcff"], ids=str)
def test_an_attribute_without_a_name_is_left_out_and_counted(name: Any) -> None:
    """A name that is no text costs its attribute only."""
    context = SpanContext(1, 2, is_remote=False)
    using = SpanEncoder(RESOURCE)
    span = ReadableSpan("query", context, None, RESOURCE, {name: 1, "fine": 1}, instrumentation_scope=SCOPE)
    arrived = ours([span], using).resource_spans[0].scope_spans[0].spans[0]
    assert [one.key for one in arrived.attributes] == ["fine"]
    assert arrived.dropped_attributes_count == using.lost == 1


def test_a_long_string_arrives_whole() -> None:
    """One megabyte in an attribute, a name and an event is no reason to lose anything."""
    context, long = SpanContext(1, 2, is_remote=False), "é" * 500_000
    span = ReadableSpan(
        long, context, None, RESOURCE, {"long": long, long: 1}, (Event(long, {}, 1),), start_time=1, end_time=2,
        instrumentation_scope=SCOPE,
    )  # fmt: skip
    using = SpanEncoder(RESOURCE)
    assert said(ours([span, span], using)) == said(the_sdks([span, span]))


good = {"name": "n", "context": SpanContext(1, 2, is_remote=False), "start_time": 1, "end_time": 2}
POISON = {
    "name": {"name": "\udcff"}, "no name": {"name": None}, "start": {"start_time": "noon"},
    "before": {"start_time": -1}, "after": {"end_time": 2**64}, "no ids": {"context": None}, "kind": {"kind": "client"},
    "event": {"events": (Event("\udcff", {}, 1),)}, "event time": {"events": (Event("e", {}, "now"),)},
    "status": {"status": Status(StatusCode.ERROR, "\udcff")}, "attributes": {"attributes": Breaks({"a": 1})},
    "trace id": {"context": SpanContext(2**128, 2, is_remote=False)},
}  # fmt: skip


@pytest.mark.parametrize("wrong", POISON.values(), ids=list(POISON))
def test_a_span_that_cannot_be_said_raises_and_leaves_the_encoder_as_it_was(wrong: dict[str, Any]) -> None:
    """The caller drops and counts it; what is encoded next is not affected."""
    using = SpanEncoder(RESOURCE)
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever it is, the pipeline takes it
        using.span(ReadableSpan(**{**good, "instrumentation_scope": SCOPE, "resource": RESOURCE, **wrong}))
    span = ReadableSpan(**good, resource=RESOURCE, instrumentation_scope=SCOPE)
    assert said(ours([span], using)) == said(the_sdks([span]))


@given(st.floats())
@example(math.nan)
@example(-0.0)
def test_a_number_is_said_to_the_bit(number: float) -> None:
    """Infinities, NaN and negative zero arrive as they are."""
    using = SpanEncoder(RESOURCE)
    span = ReadableSpan(**good, resource=RESOURCE, instrumentation_scope=SCOPE, attributes={"x": number})
    (attribute,) = ours([span], using).resource_spans[0].scope_spans[0].spans[0].attributes
    assert struct.pack("<d", attribute.value.double_value) == struct.pack("<d", number)
