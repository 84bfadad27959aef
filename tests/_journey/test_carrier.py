"""The carrier: a journey goes into headers and comes out the same; whatever else comes in does no harm."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
import uuid
from base64 import b64decode, urlsafe_b64encode
from collections import ChainMap, Counter, OrderedDict, UserDict
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, context, propagate
from opentelemetry.trace import TraceState

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import OTHER
from rtobs._hop import engine
from rtobs._journey import carrier
from rtobs._journey.carrier import Parent
from rtobs._journey.headers import ours_as_text
from rtobs._journey.journey import Journey
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry, telemetry

__all__ = ["telemetry"]

CORPUS = json.loads((Path(__file__).parent.parent / "data" / "hostile_headers.json").read_text())
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CID = "0199a1b2c3d47e5f8a6b7c8d9e0f1a2b"
JOURNEY = f"104065bfeda27c240065bfeda27c62801.{CID}........"
KEY = b"a key of sixteen"
W3C_TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
W3C_BAGGAGE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z\-]+=[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


class Text(str):
    """A str of the host's own kind."""

    __slots__ = ()


OBJECTS: dict[str, Any] = {
    "bytearray": bytearray(TRACEPARENT.encode()), "memoryview": memoryview(TRACEPARENT.encode()),
    "wide memoryview": memoryview(bytes(1600)).cast("Q"), "int": 5, "float": 1.5,
    "nan": float("nan"), "infinity": float("inf"), "true": True, "decimal": Decimal(1),
    "datetime": datetime(2026, 1, 1, tzinfo=UTC), "dict": {"a": 1}, "object": object(), "uuid": uuid.UUID(int=1),
    "function": print, "str subclass": Text(TRACEPARENT),
}  # fmt: skip


def value_of(written: Any) -> Any:
    """Turn a value of the corpus file into what a client would hand over."""
    if not isinstance(written, dict):
        return written
    if "repeat" in written:
        return written["repeat"] * written["times"]
    if "hex" in written:
        return bytes.fromhex(written["hex"])
    if "list" in written:
        return [value_of(one) for one in written["list"]]
    return OBJECTS[written["object"]]


def headers_of(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value_of(value) for name, value in case["headers"].items()}


def rejected() -> dict[str, int]:
    """Return what was counted as not valid so far, by reason."""
    return {values[0]: n for (name, values), n in _guard.tallies().items() if name == names.PROPAGATION_REJECTED.name}


@pytest.fixture(autouse=True)
def _no_counts() -> Generator[None]:
    with _guard._lock:
        _guard._tallies.clear()
    yield
    rtobs.configure()


@pytest.fixture
def tolerant() -> Generator[Telemetry]:
    """Telemetry of a process that is configured as in production: faults are counted, not raised."""
    yield support.start(strict=False)
    support.stop()


by_name = pytest.mark.parametrize("case", CORPUS, ids=[f"{c['class']}: {c['name']}" for c in CORPUS])


# Hostile headers -----------------------------------------------------------------------------------------------------


@by_name
def test_a_hostile_header_is_counted_and_ignored(case: dict[str, Any]) -> None:
    """Each header of the corpus is read without an exception, counted as the corpus says, and nothing else is."""
    found = carrier.extract(headers_of(case))
    assert sorted(rejected()) == sorted(case["counted"])
    assert (names.INTERNAL_ERRORS.name, ("carrier.extract",)) not in _guard.tallies()
    if case["class"] == "traceparent":
        assert (found.parent is None) == bool(case["counted"] or not case["headers"]["traceparent"])
    if case["class"] == "journey" and case["counted"]:
        assert found.journey is None
    if case["class"] == "tracestate":
        assert bool(found.tracestate) == (not case["counted"])
    if found.journey is not None:
        assert redaction.text(found.journey.tenant) == found.journey.tenant


@by_name
def test_what_a_hostile_header_leaves_behind_is_written_as_valid_headers(case: dict[str, Any]) -> None:
    """Whatever came in, what goes out is valid W3C, within its limits, and is read again without a complaint."""
    found = carrier.extract(headers_of(case))
    journey = found.journey or Journey(CID, 1)
    written = carrier.write(
        journey,
        f"{1:032x}",
        f"{2:016x}",
        1,
        1_790_000_000_000_000,
        tracestate=found.tracestate,
        foreign_baggage=found.foreign_baggage,
    )
    assert W3C_TRACEPARENT.fullmatch(written["traceparent"])
    assert len(written["rtobs-journey"]) <= carrier.JOURNEY_LIMIT
    assert all(value.isascii() and value.isprintable() for value in written.values())
    with _guard._lock:
        _guard._tallies.clear()
    again = carrier.extract(written)
    assert not [reason for reason in rejected() if reason != "too_many"]
    assert again.journey is not None
    assert again.journey.tenant == journey.tenant
    if found.tracestate:
        assert len(TraceState.from_header([again.tracestate])) > 0


@by_name
def test_an_untrusted_hostile_header_gives_a_link_at_most(case: dict[str, Any]) -> None:
    """From an untrusted source no journey, state, baggage or tenant is taken, and nothing raises."""
    found = carrier.extract_link({**headers_of(case), "X-Request-Id": "../../etc"})
    assert (found.journey, found.tracestate, found.foreign_baggage, found.client_id) == (None, "", "", "")


@pytest.mark.parametrize("trust", [None, "trusted", "link", "ignore"])
def test_hops_open_whatever_the_headers(tolerant: Telemetry, trust: Any) -> None:
    """A consume hop and an accept hop open on each header of the corpus, and the handler has a journey of its own."""
    for case in CORPUS:
        headers = headers_of(case)
        with rtobs.consume("orders", headers=headers, trust=trust) as hop:
            assert re.fullmatch("[0-9a-f]{32}", hop.correlation_id)
            assert W3C_TRACEPARENT.fullmatch(hop.headers["traceparent"])
            assert (hop.correlation_id == CID) <= (trust == "trusted")
        with rtobs.accept("/orders", headers=headers, trust=trust or "link") as hop:
            assert re.fullmatch("[0-9a-f]{32}", hop.correlation_id)
    assert tolerant.count(names.CONSUMED_MESSAGES) == len(CORPUS)
    assert tolerant.by(names.INTERNAL_ERRORS, "site") == {}
    assert (tolerant.count(names.PROPAGATION_REJECTED) > 70) == (trust != "ignore")


class Broken(dict[str, str]):
    """A mapping that cannot be read."""

    def get(self, *_: object) -> str:
        raise RuntimeError("broken")


class BrokenLength(Mapping[str, str]):
    """A mapping that raises as late as it can."""

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("broken")

    def __len__(self) -> int:
        return 1


class BrokenText(str):
    """Text that raises when it is looked at."""

    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("broken")


def endless() -> Iterator[tuple[str, str]]:
    while True:
        yield ("x", "y")


@pytest.mark.parametrize(
    ("headers", "fault"),
    [(Broken(), True), (BrokenLength(), True), ({"traceparent": BrokenText()}, True), (5, False), ("text", False),
     (b"bytes", False), (object(), False), (endless(), False), ([None, 5, (), ("a",), ("a", "b", "c")], False),
     ([[["traceparent"], 1]], False)],
    ids=["get raises", "iterating raises", "text raises", "a number", "text", "bytes", "an object", "endless pairs",
         "no pairs", "a list as a name"],
)  # fmt: skip
def test_a_broken_container_of_headers_does_no_harm(tolerant: Telemetry, headers: Any, fault: bool) -> None:
    """Headers that raise, never end or are none are counted; the handler runs in a journey of its own."""
    for trust in ("trusted", "link"):
        with rtobs.consume("orders", headers=headers, trust=trust) as hop:
            assert hop.correlation_id
    assert tolerant.by(names.INTERNAL_ERRORS, "site") == ({"carrier.extract": 2} if fault else {})
    assert rejected().get("type", 0) == (2 if isinstance(headers, int | str | bytes) or type(headers) is object else 0)
    assert tolerant.count(names.PROPAGATION_MISSING) == 2


GOOD = {"traceparent": TRACEPARENT, "rtobs-journey": JOURNEY}


@pytest.mark.parametrize(
    "headers",
    [
        GOOD, MappingProxyType(GOOD), OrderedDict(GOOD), UserDict(GOOD), ChainMap({}, GOOD), list(GOOD.items()),
        tuple(GOOD.items()), iter(GOOD.items()), {k.title(): v for k, v in GOOD.items()},
        {k.encode(): v.encode() for k, v in GOOD.items()}, [(k.encode(), v.encode()) for k, v in GOOD.items()],
        {k: [v] for k, v in GOOD.items()}, {k: memoryview(v.encode()) for k, v in GOOD.items()},
        [[k.upper(), bytearray(v.encode())] for k, v in GOOD.items()],
        [("x", None), *GOOD.items(), ("traceparent", None)],
    ],
    ids=["dict", "read-only", "ordered", "user dict", "chain", "list", "tuple", "iterator", "other case", "bytes",
         "bytes pairs", "lists of values", "memoryviews", "lists as pairs", "missing values"],
)  # fmt: skip
def test_headers_are_read_in_every_shape_clients_have(headers: Any) -> None:
    """Mappings and pairs, text and bytes, any spelling: the same journey comes out."""
    found = carrier.extract(headers)
    assert found.parent == Parent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 1)
    assert found.journey is not None
    assert found.journey.correlation_id == CID
    assert rejected() == {}


def test_only_the_first_256_pairs_are_looked_at() -> None:
    """A message with more pairs than that is read as far as they go, and counted."""
    noise = [("x", "y")] * 256
    assert carrier.extract([*GOOD.items(), *noise]).journey is not None
    assert carrier.extract([*noise, *GOOD.items()]) == carrier.NOTHING
    assert rejected() == {"too_many": 2}


def test_lines_of_a_list_header_are_joined() -> None:
    """Baggage and tracestate in several lines, or as several values of one name, are one list; others come once."""
    several = {"tracestate": ["a=1", "b=2"], "baggage": ["x=1", "y=2"]}
    for headers in ({**GOOD, **several}, [*GOOD.items(), *several.items()], [*GOOD.items(), *_lines(several)]):
        found = carrier.extract(headers)
        assert (found.tracestate, found.foreign_baggage) == ("a=1,b=2", "x=1,y=2")
    assert carrier.extract({**GOOD, "traceparent": [TRACEPARENT] * 2}).parent is None


def _lines(headers: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in headers.items() for value in values]


def test_at_most_180_members_of_baggage_are_taken() -> None:
    """A header full of tiny members does not become thousands of baggage entries."""
    found = carrier.extract({"baggage": ",".join(f"k{i}=v" for i in range(1000))})
    assert len(found.foreign_baggage.split(",")) == 180


values = st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.floats(), st.lists(st.text(), max_size=3))
wanted = st.sampled_from([*names.OWN_HEADERS, "X-Request-ID"])
near_misses = st.from_regex(re.compile(r"[01]{1,2}[-.]?[0-9a-f]{14,33}[.\-~*%=,;a-z]{0,40}"), fullmatch=True)


@given(st.dictionaries(st.one_of(wanted, st.text(), st.binary()), st.one_of(values, near_misses), max_size=6))
@settings(max_examples=150)
def test_no_mapping_raises(headers: dict[Any, Any]) -> None:
    """Any mapping can be read, trusted or not, and what it leaves can be written."""
    found = carrier.extract(headers)
    carrier.extract(headers, KEY)
    carrier.extract_link(headers)
    assert (names.INTERNAL_ERRORS.name, ("carrier.extract",)) not in _guard.tallies()
    if found.journey is not None:
        assert len(carrier.pack(found.journey, "0" * 32, 1, attempt=1, wire_key=KEY)) <= carrier.JOURNEY_LIMIT


@given(st.lists(st.one_of(st.tuples(st.one_of(wanted, st.binary()), values), values), max_size=6))
@settings(max_examples=100)
def test_no_list_of_pairs_raises(headers: list[Any]) -> None:
    """Any list can be read, trusted or not."""
    carrier.extract(headers)
    carrier.extract_link(headers)
    assert (names.INTERNAL_ERRORS.name, ("carrier.extract",)) not in _guard.tallies()


def _said(found: carrier.Incoming) -> dict[str, Any]:
    journey = found.journey
    told = {name: getattr(found, name) for name in carrier.Incoming.__slots__ if name != "journey"}
    return told | {"journey": {name: getattr(journey, name) for name in Journey.__slots__} if journey else None}


@given(
    st.dictionaries(
        st.sampled_from(names.OWN_HEADERS),
        st.one_of(st.sampled_from((TRACEPARENT, JOURNEY, "a=1", f"rtobs.cid={CID}", "é")), st.text()).map(str.encode)
        | st.binary()
        | values,
    )
)
@settings(max_examples=300)
def test_bytes_turned_into_text_say_what_they_said(headers: dict[str, Any]) -> None:
    """Our headers read the same whether a leaf has turned bytes into text or not, whatever is in them."""
    start = Counter(rejected())
    before, between = _said(carrier.extract(headers)), Counter(rejected())
    turned = dict(headers)
    ours_as_text(turned)
    assert _said(carrier.extract(turned)) == before
    assert Counter(rejected()) - between == between - start


def test_ascii_bytes_become_text_and_nothing_else_does() -> None:
    """Only then is a message of a transport of bytes read in the plain way."""
    huge, foreign = b"x" * 8193, "é".encode()
    headers = {names.TRACEPARENT: TRACEPARENT.encode(), names.JOURNEY: huge, names.BAGGAGE: foreign, "own": b"1"}
    ours_as_text(headers)
    assert headers == {names.TRACEPARENT: TRACEPARENT, names.JOURNEY: huge, names.BAGGAGE: foreign, "own": b"1"}


def _fastest(headers: Any, read: Any) -> float:
    best = 1.0
    for _ in range(30):
        begun = time.perf_counter()
        read(headers)
        best = min(best, time.perf_counter() - begun)
    return best


@pytest.mark.parametrize("read", [carrier.extract, carrier.extract_link])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_header_of_10_mb_costs_what_a_header_of_10_kb_costs(read: Any, kind: type) -> None:
    """Neither time nor memory grows with the size of a header."""

    def hostile(size: int) -> dict[str, Any]:
        return dict.fromkeys(names.OWN_HEADERS, "1" * size if kind is str else b"1" * size)

    small, large = hostile(10_000), hostile(10_000_000)
    assert _fastest(large, read) < 5 * _fastest(small, read) + 50e-6
    long_name = "traceparent" * 1_000_000
    names_too = [(long_name if kind is str else long_name.encode(), value) for value in large.values()]
    assert _fastest(names_too, read) < 5 * _fastest(small, read) + 50e-6
    tracemalloc.start()
    try:
        read(large)
        read(names_too)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_the_slowest_headers_within_their_limits_take_milliseconds() -> None:
    """No pattern runs away on text that fits into the limits."""
    worst = [
        {"traceparent": "00-" + "0" * 253},
        {"traceparent": TRACEPARENT, "tracestate": ",".join(["a=" + " " * 14] * 30)},
        {"traceparent": TRACEPARENT, "tracestate": "a=" + " " * 255 + "," + "b=" + " " * 250},
        {"rtobs-journey": JOURNEY[:33] + "." + "%" * 477},
        {"rtobs-journey": JOURNEY[:33] + ".." + "00" * 8 + "." + "*" * 460},
        {"baggage": "," * 8192}, {"baggage": "%" * 8192}, {"baggage": "a=b," * 2048},
    ]  # fmt: skip
    for headers in worst:
        assert _fastest(headers, carrier.extract) < 0.005, headers


# Round trips ---------------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Cn"]), max_size=24)
identifiers = st.integers(1, 2**128 - 1).map(lambda n: f"{n:032x}")
moments = st.integers(1, 2**51)


@st.composite
def journeys(draw: st.DrawFn) -> Journey:
    journey = Journey(draw(identifiers), draw(moments))
    journey.tenant, journey.region, journey.source = draw(words), draw(words), draw(words)
    journey.named, journey.replay = draw(st.booleans()), draw(st.booleans())
    journey.kept = draw(st.sampled_from(["", "failed", "slow", "a" * 16]))
    journey.ledger = draw(st.text("AZaz09_-", max_size=60))
    for channel in draw(st.lists(st.sampled_from(["push", "sms", "email", "fax", "pager", "é"]), max_size=8)):
        journey.promise(channel)
    if journey.promised:
        journey.freeze_promise()
        journey.promise_tenant, journey.promise_region = draw(words), draw(words)
        journey.promise_named = draw(st.booleans())
    return journey


FACTS = ("correlation_id", "created_us", "tenant", "region", "source", "named", "replay", "kept", "promised",
         "promise_tenant", "promise_region", "promise_named")  # fmt: skip


def fits(journey: Journey) -> bool:
    return all(
        carrier.travels(word or "", limit)
        for word, limit in (
            (journey.tenant, carrier.TENANT_LIMIT), (journey.promise_tenant, carrier.TENANT_LIMIT),
            (journey.region, carrier.WORD_LIMIT), (journey.promise_region, carrier.WORD_LIMIT),
            (journey.source, carrier.WORD_LIMIT),
        )
    )  # fmt: skip


@given(journeys(), st.integers(1, 2**128 - 1), moments, st.integers(1, 1000), st.one_of(st.none(), st.just(KEY)))
@settings(max_examples=250)
def test_a_journey_comes_out_as_it_went_in(
    journey: Journey, trace_id: int, sent_us: int, attempt: int, key: bytes | None
) -> None:
    """Packing and unpacking is the identity for every journey whose words fit: flags, promises, attempts up to 255."""
    headers = carrier.write(
        journey,
        f"{trace_id:032x}",
        f"{7:016x}",
        3,
        sent_us,
        attempt=attempt,
        channel="push",
        intent="00112233aabbccdd",
        ledger=journey.ledger,
        wire_key=key,
    )
    assert len(headers["rtobs-journey"]) <= 512
    found = carrier.extract(headers, key).journey
    assert found is not None
    assert (found.sent_us, found.attempt) == (sent_us, min(attempt, 255))
    assert (found.channel, found.intent) == ("push", "00112233aabbccdd")
    if fits(journey):
        for fact in FACTS:
            assert getattr(found, fact) == getattr(journey, fact), fact
        assert found.ledger == journey.ledger
    assert found.named == journey.named


@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=60), st.integers(0, 600), st.booleans())
@settings(max_examples=150)
def test_the_packed_header_never_exceeds_512_bytes(
    tenant: str, other: str, channel: str, ledger: int, signed: bool
) -> None:
    """Whatever it holds, it stays within its limit and can be read by the next process."""
    journey = Journey("f" * 32, 1)
    journey.tenant, journey.region, journey.source, journey.ledger = tenant, channel, channel, "A" * ledger
    journey.kept = "a" * 16
    for code in range(12):
        journey.promise(f"channel {code}")
    journey.promise_tenant, journey.promise_region = other, other
    key = KEY if signed else None
    packed = carrier.pack(
        journey, "0" * 32, 2**55, attempt=300, channel=channel, intent="0" * 16, ledger=journey.ledger, wire_key=key
    )
    assert len(packed) <= 512
    assert carrier.unpack(packed, None, key) is not None


def test_a_ledger_that_does_not_fit_is_left_out_and_counted() -> None:
    """The record of past hops gives way before the journey does."""
    journey = Journey(CID, 1)
    found = carrier.unpack(carrier.pack(journey, CID, 1, attempt=1, ledger="A" * 500), Parent(int(CID, 16), 1, 1))
    assert found is not None
    assert found.ledger == ""
    assert rejected() == {"ledger_full": 1}


@pytest.mark.parametrize(
    ("tenant", "written"),
    [("acme", "acme"), ("acme-eu_1", "acme-eu_1"), ("José", "Jos%C3%A9"), ("a.b", "a%2Eb"), ("~a", "%7Ea"),
     ("株" * 10, "%E6%A0%AA" * 10), ("株" * 11, "~" + urlsafe_b64encode(("株" * 11).encode()).decode().rstrip("=")),
     ("x" * 96, "x" * 96), ("x" * 97, OTHER), ("株" * 24, OTHER), ("\ud800", "%3F")],
)  # fmt: skip
def test_how_a_word_is_written(tenant: str, written: str) -> None:
    """Percent-encoded; in base64 where that would be too long; `other` where nothing helps."""
    assert carrier.encode(tenant, carrier.TENANT_LIMIT) == written
    assert carrier.travels(tenant, carrier.TENANT_LIMIT) == (written != OTHER)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=120))
@settings(max_examples=150)
def test_travels_tells_exactly_what_encode_can_write(word: str) -> None:
    """The label guard and the header agree on which names travel."""
    for limit in (carrier.TENANT_LIMIT, carrier.WORD_LIMIT):
        assert carrier.travels(word, limit) == (carrier.encode(word, limit) != OTHER or word == OTHER)


@given(words.filter(lambda w: len(w.encode()) <= 71), words.filter(lambda w: len(w.encode()) <= 23))
@settings(max_examples=60)
def test_any_utf_8_tenant_and_region_reach_the_next_process(tenant: str, region: str) -> None:
    """What `segment` was told is what the consumer of the message knows, character by character."""
    telemetry = support.start()
    try:
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant=tenant, region=region)
            headers = hop.headers
        with rtobs.consume("orders", headers=headers, trust="trusted"):
            journey = engine.current().journey
        assert (journey.tenant, journey.region) == (tenant, region)
        assert telemetry.by(names.INTERNAL_ERRORS, "site") == {}
    finally:
        support.stop()


# Trust ---------------------------------------------------------------------------------------------------------------


def signed(journey: Journey, key: bytes = KEY) -> dict[str, str]:
    return carrier.write(journey, f"{0xABC:032x}", f"{7:016x}", 1, 5, wire_key=key)


def test_a_signed_journey_is_believed() -> None:
    """With a wire key, a header that this key signed is read."""
    journey = Journey(CID, 5)
    journey.tenant = "acme"
    found = carrier.extract(signed(journey), KEY).journey
    assert found is not None
    assert (found.correlation_id, found.tenant) == (CID, "acme")
    assert rejected() == {}


@pytest.mark.parametrize(
    "forgery", ["unsigned", "other key", "cut signature", "no signature", "tenant", "flags", "sent"]
)
def test_a_forged_journey_is_ignored_and_counted(forgery: str) -> None:
    """With a wire key set, a header that this key did not sign gives no journey, nor does its baggage."""
    journey = Journey(CID, 5)
    journey.tenant = "acme"
    headers = signed(journey)
    packed = headers["rtobs-journey"]
    headers["rtobs-journey"] = {
        "unsigned": carrier.pack(journey, f"{0xABC:032x}", 5, attempt=1),
        "other key": signed(journey, b"another key of 20 ch")["rtobs-journey"],
        "cut signature": packed[:-16],
        "no signature": packed[:-17],
        "tenant": packed.replace("acme", "evil"),
        "flags": packed[0] + "05" + packed[3:],
        "sent": packed[:30] + "6" + packed[31:],
    }[forgery]
    found = carrier.extract(headers, KEY)
    assert found.journey is None
    assert found.parent is not None
    assert rejected() == {"journey" if forgery == "cut signature" else "signature": 1}


@given(st.integers(0, 200), st.sampled_from("0123456789abcdefAZ_-~%.*"))
@settings(max_examples=200)
def test_no_changed_character_survives_the_signature(position: int, character: str) -> None:
    """Changing any one character of a signed header makes it worthless."""
    journey = Journey(CID, 5)
    journey.tenant = "acme"
    packed = signed(journey)["rtobs-journey"]
    position %= len(packed)
    changed = packed[:position] + character + packed[position + 1 :]
    found = carrier.unpack(changed, None, KEY)
    assert (found is not None) == (changed == packed)


def test_a_consumer_with_a_wire_key_starts_a_new_journey_on_a_forged_header(tolerant: Telemetry) -> None:
    """A forged header costs its sender the tenant and the correlation id; the message is handled all the same."""
    rtobs.configure(wire_key=KEY, logs=tolerant.events.append)
    with rtobs.consume("orders", headers=GOOD, trust="trusted") as hop:
        assert hop.correlation_id != CID
    assert tolerant.count(names.PROPAGATION_REJECTED, reason="signature") == 1
    assert tolerant.count(names.PROPAGATION_MISSING) == 1
    with rtobs.accept("/orders") as hop:
        headers = hop.headers
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        assert hop.correlation_id in headers["baggage"]


# Other people's state and baggage ------------------------------------------------------------------------------------


def test_foreign_tracestate_and_baggage_survive_a_hop(telemetry: Telemetry) -> None:
    """What other vendors put on a message leaves again with the messages that its handler sends."""
    headers = {**GOOD, "tracestate": "vendor=1, other@sys=2", "baggage": f"user.plan=gold,rtobs.cid={CID},q=a%20b%2Cc"}
    with rtobs.consume("orders", headers=headers, trust="trusted"), rtobs.publish("invoices") as sending:
        written = sending.headers
    assert written["tracestate"] == "vendor=1, other@sys=2"
    assert written["traceparent"].startswith(TRACEPARENT[:35])
    foreign, cid, _ = carrier.split_baggage(written["baggage"])
    assert foreign == "user.plan=gold,q=a%20b%2Cc"
    assert cid == CID


def test_a_handler_finds_foreign_baggage_in_its_context_and_never_ours(telemetry: Telemetry) -> None:
    """Baggage of a message is OpenTelemetry baggage for its handler; correlation id and tenant are not in it."""
    before = baggage.get_all()
    headers = {**GOOD, "baggage": f"user.plan=gold,rtobs.cid={CID},rtobs.tenant=acme"}
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        hop.segment(tenant="acme")
        assert dict(baggage.get_all()) == {"user.plan": "gold"}
        with rtobs.deliver("webhook", "crm"), rtobs.stage("invoke"):
            assert dict(baggage.get_all()) == {"user.plan": "gold"}
    assert baggage.get_all() == before


def test_a_users_own_baggage_is_carried_on(telemetry: Telemetry) -> None:
    """Baggage that user code set goes with its messages, whatever characters are in it."""
    token = context.attach(baggage.set_baggage("kind", "ä,;=\n \ud800"))
    try:
        with rtobs.publish("orders") as hop:
            written = hop.headers["baggage"]
    finally:
        context.detach(token)
    with rtobs.consume("orders", headers={**GOOD, "baggage": written}, trust="trusted"):
        assert baggage.get_baggage("kind") == "ä,;=\n ?"


def test_a_name_in_baggage_that_cannot_be_written_does_not_cost_the_journey(telemetry: Telemetry) -> None:
    """Baggage with a name that is no text still leaves a message with its journey."""
    token = context.attach(baggage.set_baggage("\udcff", "x"))
    try:
        with rtobs.publish("orders") as hop:
            assert "rtobs-journey" in hop.headers
    finally:
        context.detach(token)


def test_more_baggage_than_fits_is_counted(telemetry: Telemetry) -> None:
    """Baggage beyond half the header's limit stays behind, counted; ours leaves."""
    token = context.attach(baggage.set_baggage("large", "x" * 5000))
    try:
        with rtobs.publish("orders") as hop:
            written = hop.headers["baggage"]
            assert written == f"rtobs.cid={hop.correlation_id}"
    finally:
        context.detach(token)
    assert rejected() == {"baggage": 1}


def test_the_default_propagator_does_not_send_our_tenant_to_anybody(telemetry: Telemetry) -> None:
    """A third party called with OpenTelemetry's own propagation learns ids of spans and nothing of ours."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        with rtobs.deliver("webhook", "slack"):
            sent: dict[str, str] = {}
            propagate.inject(sent)
    assert set(sent) == {"traceparent"}


def test_a_journey_is_found_in_baggage_where_our_header_was_lost(telemetry: Telemetry) -> None:
    """A service in another language that only carries baggage on does not break the correlation id."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="Jöhn & Söhne")
        cid, headers = hop.correlation_id, {**hop.headers}
    del headers["rtobs-journey"]
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        assert hop.correlation_id == cid
        assert engine.current().journey.tenant == "Jöhn & Söhne"
    assert telemetry.count(names.PROPAGATION_MISSING) == 0


def test_what_baggage_gives_a_neighbour_is_valid(telemetry: Telemetry) -> None:
    """Our own baggage header follows the grammar of W3C Baggage, whatever the tenant is called."""
    for tenant in ("acme", 'a"b,c;d=e\\f', "日本", "x" * 96):
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant=tenant)
            members = hop.headers["baggage"].split(",")
        assert len(members) == 2
        assert all(W3C_BAGGAGE.fullmatch(member) for member in members)


def test_base64_in_a_word_has_no_padding_and_survives(telemetry: Telemetry) -> None:
    """A tenant written in base64 is the tenant again."""
    name = "Ὅμηρος-Ἰλιάς-Ὀδύσσεια-Θ"
    written = carrier.encode(name, carrier.TENANT_LIMIT)
    assert written[0] == "~"
    assert b64decode(written[1:] + "==", altchars=b"-_").decode() == name


@given(
    created=st.integers(0, 2**56 - 1), sent=st.integers(0, 2**56 - 1), attempt=st.integers(0, 255),
    trace_id=st.integers(1, 2**128 - 1), tenant=st.sampled_from(["", "acme", "a-b_9", "x" * 96]), named=st.booleans(),
)  # fmt: skip
def test_the_plain_form_reads_as_the_full_form_does(  # noqa: PLR0917  what a header says
    created: int, sent: int, attempt: int, trace_id: int, tenant: str, named: bool
) -> None:
    """A journey without words, which has a way of its own, reads the same as with a name that changes nothing."""
    head, cid = f"{created:014x}{sent:014x}{attempt:02x}", f"{trace_id:032x}"
    common = {"traceparent": f"00-{cid}-{1:016x}-01", "baggage": f"rtobs.cid={cid}"}
    if tenant:
        common["baggage"] += f",rtobs.tenant={tenant}"
    plain = carrier.extract({**common, "rtobs-journey": f"10{2 * named}{head}...{tenant}......"})
    full = carrier.extract({**common, "rtobs-journey": f"10{4 + 2 * named}{head}.{cid}..{tenant}......"})
    assert plain.parent == full.parent == Parent(trace_id, 1, 1)
    assert plain.journey is not None
    assert full.journey is not None
    for name in ("correlation_id", "created_us", "sent_us", "attempt", "tenant", "region", "source", "named", "rare"):
        assert getattr(plain.journey, name) == getattr(full.journey, name)


@given(
    created=st.integers(0, 2**56 - 1), sent=st.integers(0, 2**56 - 1), attempt=st.integers(1, 300),
    trace_id=st.integers(1, 2**128 - 1), sampled=st.booleans(), named=st.booleans(),
    tenant=st.sampled_from(["", "acme", "a-b_9", "x" * 96]),
)  # fmt: skip
def test_the_plain_form_is_written_as_the_full_form_is(  # noqa: PLR0917  what a header says
    created: int, sent: int, attempt: int, trace_id: int, sampled: bool, tenant: str, named: bool
) -> None:
    """Whoever asks whether a journey is plain and writes it the short way sends the same headers."""
    cid, span = f"{trace_id:032x}", f"{7:016x}"
    journey = Journey(cid, created)
    journey.tenant, journey.named = tenant, named
    assert carrier.is_plain(journey, cid)
    assert carrier.write_plain(journey, span, sampled, sent, attempt) == carrier.write(
        journey, cid, span, 3 if sampled else 2, sent, attempt=attempt
    )


@pytest.mark.parametrize(
    "told",
    [
        {"tenant": "t.t"},
        {"tenant": "~t"},
        {"tenant": "x" * 97},
        {"region": "eu"},
        {"source": "api"},
        {"kept": "failed"},
        {"channel": "sms"},
    ],
)
def test_a_journey_with_anything_to_say_is_not_plain(told: dict[str, Any]) -> None:
    """What the short way has no room for goes the long way."""
    journey = Journey(CID, 1)
    for name, value in told.items():
        setattr(journey, name, value)
    assert not carrier.is_plain(journey, CID)
    assert not carrier.is_plain(Journey(CID, 1), "1" * 32)
