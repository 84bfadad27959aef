"""R3 and R16: whatever a host or a sender hands over, nothing raises, and its size does not decide what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import SpanContext, Status, StatusCode

import rtobs
from rtobs import _conventions as names
from rtobs import _redaction as redaction
from rtobs import logs
from rtobs._hop import engine
from rtobs._journey import carrier, envelope
from rtobs.errors import ConfigError
from rtobs.integrations.memory import Broker
from tests._journey.test_carrier import CORPUS, headers_of
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry
from tests.unbreakable.carriers import INCOMING, HttpxCarrier, run
from tests.unbreakable.corpus.hostile import OBJECTS, TEXTS, Broken, BrokenClass, HostileError

W3C_TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
SAFE = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")
REFUSED = (ConfigError, TypeError)
"""What wrong arguments raise at once, before anything runs."""


@pytest.fixture
def tolerant() -> Generator[Telemetry]:
    """Telemetry of a process that is configured as in production: faults are counted, not raised."""
    yield support.start(strict=False, wire_key=b"a key of sixteen", propagate_to=["crm.internal"])
    support.stop()
    assert engine.current() is None


hostile = pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)


def assert_safe(telemetry: Telemetry) -> None:
    """Assert that everything that was said is text an exporter takes: valid, bounded, one line."""
    for span in telemetry.spans():
        for one in (span, *span.events):
            assert len(one.name.encode()) <= redaction.NAME_LIMIT
            assert SAFE.fullmatch(one.name)
            _assert_safe(one.attributes or {})
        assert len(span.events) <= redaction.EVENT_LIMIT + 2
        assert len(span.links) <= redaction.LINK_LIMIT
    for event in telemetry.events:
        _assert_safe(event)


def _assert_safe(fields: Any) -> None:
    for name, value in fields.items():
        assert type(name) is str or name in tuple(names.LogKey)
        assert type(value) in (str, int, float, bool) or isinstance(value, str)
        for text in (name, value):
            if isinstance(text, str):
                assert len(str(text).encode()) <= redaction.TEXT_LIMIT, name
                assert SAFE.fullmatch(str(text)), name


# R3: objects through every public call -----------------------------------------------------------------------------


@hostile
def test_r3_whatever_is_said_on_a_hop(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: every method of a hop takes every hostile object; the handler goes on, and the hop ends ok and is shown."""
    done = 0
    with rtobs.accept("/orders") as hop:
        for say in (
            lambda: hop.note(x=make()),
            lambda: hop.note(**{"\ud800\n": make()}),
            lambda: hop.event(make()),
            lambda: hop.event("e", x=make()),
            lambda: hop.segment(tenant=make()),
            lambda: hop.segment(region=make()),
            lambda: hop.segment(source=make()),
            lambda: hop.segment(device_type=make()),
            lambda: hop.intend(make()),
            lambda: hop.intend("push", make()),
            lambda: hop.intend("push", count=make()),
            lambda: hop.outcome(make()),
            lambda: hop.outcome(rtobs.Outcome.OK, make()),
            lambda: hop.keep(make()),
            hop.__repr__,
            lambda: hop.outcome(rtobs.Outcome.OK, category=make()),
            lambda: hop.headers,
            hop.receipt_token,
        ):
            say()
            done += 1
        hop.outcome(rtobs.Outcome.OK)
    assert done == 18
    assert tolerant.count(names.ACCEPT_DURATION) == 1
    assert len(tolerant.spans("accept")) == 1
    assert_safe(tolerant)


@hostile
def test_r3_whatever_another_library_says(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: the current span takes every hostile object from a neighbour, by every method of OpenTelemetry's API."""
    with rtobs.accept("/orders"), rtobs.stage("s"):
        span = trace.get_current_span()
        for say in (
            lambda: span.set_attribute(make(), make()),
            lambda: span.set_attribute("x", make()),
            lambda: span.set_attributes({"a": make()}),
            lambda: span.add_event(make()),
            lambda: span.add_event("e", {"x": make()}),
            lambda: span.add_event("e", make()),
            lambda: span.add_event("e", None, make()),
            lambda: span.set_status(make()),
            lambda: span.update_name(make()),
            lambda: span.set_status(Status(StatusCode.ERROR), make()),
            lambda: span.record_exception(make()),
            lambda: span.set_attributes(make()),
            lambda: span.add_link(make()),
            lambda: span.add_link(SpanContext(1, 2, is_remote=False), make()),
        ):
            say()
    assert len(tolerant.spans("accept")) == 1
    assert_safe(tolerant)


@hostile
def test_r3_whatever_is_handled_and_delivered(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: messages, headers, arguments, keys, judges and results that are hostile change nothing for a host."""
    ran: list[str] = []

    @rtobs.consume("orders")
    def handle(message: Any) -> Any:
        ran.append("handled")
        return message

    @rtobs.deliver("webhook", "crm")
    def deliver(*arguments: Any, **named: Any) -> Any:
        ran.append("delivered")
        return arguments[0]

    one = make()
    assert handle(one) is one
    assert deliver(one, named=one) is one
    with rtobs.consume("orders", headers={}):
        assert deliver(one) is one
        assert deliver(one) is one
    for options in ({"key": lambda *_: make()}, {"judge": lambda _: make()}):
        assert rtobs.deliver("webhook", "crm", **options)(lambda: one)() is one
    for trust in ("trusted", "link", "ignore"):
        with rtobs.consume("orders", headers=make(), trust=trust) as hop:
            assert re.fullmatch("[0-9a-f]{32}", hop.correlation_id)
        with rtobs.accept("/orders", headers=make(), trust=trust):
            ran.append("accepted")
    with rtobs.consume("orders", make()):
        ran.append("consumed")
    with rtobs.receipt("delivered", make()):
        ran.append("received")
    assert len(ran) == 9
    assert_safe(tolerant)


@hostile
def test_r3_what_a_decorator_is_given_is_refused_at_once_or_taken(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: a wrong argument of a decorator or of `wrap` raises what the docs say, and nothing else, before a call."""
    calls: list[Callable[[], Any]] = [
        lambda: rtobs.accept(make()),
        lambda: rtobs.publish(make()),
        lambda: rtobs.consume(make()),
        lambda: rtobs.deliver(make(), "crm"),
        lambda: rtobs.deliver("webhook", make()),
        lambda: rtobs.stage(make()),
        lambda: rtobs.publish("x", channel=make()),
        lambda: rtobs.publish("x", key=make()),
        lambda: rtobs.accept("/x", trust=make()),
        lambda: rtobs.consume("x", trust=make()),
        lambda: rtobs.deliver("webhook", "crm", key=make()),
        lambda: rtobs.deliver("webhook", "crm", judge=make()),
        lambda: rtobs.receipt(make(), "token"),
        lambda: rtobs.job(make(), due=datetime.now(UTC), window=timedelta(1)),
        lambda: rtobs.job("x", due=make(), window=timedelta(1)),
        lambda: rtobs.job("x", due=datetime.now(UTC), window=make()),
    ]
    for call in calls:
        try:
            made = call()
        except ConfigError:
            continue
        with made:
            pass
    assert_safe(tolerant)


@hostile
def test_r3_exceptions_of_the_host_go_on_unchanged(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: an exception that holds a hostile object, or is one, leaves as the same object with cause and context."""
    cause = KeyError("cause")
    for error in (ValueError(make()), Broken(make()), BrokenClass(make())):
        for opened in (
            rtobs.accept("/x"),
            rtobs.consume("x", headers={}),
            rtobs.deliver("webhook", "crm"),
            rtobs.publish("x"),
        ):
            caught: BaseException | None = None
            try:
                with opened, rtobs.stage("s"):
                    raise error from cause  # noqa: TRY301 - a host does
            except Exception as found:  # noqa: BLE001 - whatever it is, it has to be this one
                caught = found
            assert caught is error
            assert caught.__cause__ is cause
    assert len(tolerant.spans("accept")) == 3
    assert_safe(tolerant)


@hostile
def test_r3_the_users_own_log_lines(make: Callable[[], Any], tolerant: Telemetry) -> None:
    """R3: `add_journey` returns the user's own event, whatever is in it and in the journey."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        event = {"event": make(), "x": make()}
        assert logs.add_journey(make(), make(), event) is event
        assert event["tenant_id"] == "acme"


def test_r3_a_client_that_cannot_be_wrapped_is_refused() -> None:
    """R3: `wrap` of an object that is no client says so, whatever the object does."""
    for name, make in OBJECTS.items():
        with pytest.raises((ConfigError, TypeError, HostileError)):
            rtobs.wrap(make())
        assert name


# Limits ------------------------------------------------------------------------------------------------------------


def test_limits_at_their_border(tolerant: Telemetry) -> None:
    """1,024 bytes a value, 256 a name, 64 attributes, 32 events and 32 links; what is beyond is left out."""
    with rtobs.accept("/orders") as hop:
        hop.note(fits="x" * 1024, cut="x" * 1025, wide="é" * 512, wider="é" * 513, **{"n" * 256: 1, "m" * 257: 2})
        hop.note(**{f"more{number}": number for number in range(100)})
        for number in range(40):
            hop.event(f"e{number}", **{f"f{field}": field for field in range(70)})
        span = trace.get_current_span()
        for number in range(1, 41):
            span.add_link(SpanContext(number, number, is_remote=True))
    (span,) = tolerant.spans("accept")
    found = span.attributes
    assert found["fits"] == "x" * 1024
    assert found["cut"] == "x" * 1021 + "…"
    assert found["wide"] == "é" * 512
    assert found["wider"] == "é" * 510 + "…"
    assert len(found["wider"].encode()) <= 1024
    assert "n" * 256 in found
    assert "m" * 253 + "…" in found
    theirs = [name for name in found if not name.startswith(("rtobs.", "error.", "http."))]
    assert len(theirs) == 64
    assert len([event for event in span.events if event.name.startswith("e")]) == 32
    assert all(len(event.attributes) == 64 for event in span.events)
    assert len(span.links) == 32


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_string_is_made_safe_at_every_place(text: str, tolerant: Telemetry) -> None:
    """Names of hops, stages and events, values, reasons, tenants, addresses and errors: valid, bounded, one line."""
    broker = rtobs.wrap(Broker())
    with rtobs.accept(text) as hop:
        hop.note(**{text: text})
        hop.event(text, **{text: text})
        hop.segment(tenant=text, region=text, source=text, device_type=text)
        hop.intend(text, text)
        hop.keep(text)
        with rtobs.stage(text):
            trace.get_current_span().set_attribute(text, text)
        run(broker.publish(text, b"x", {text: text}))
        sent = hop.headers
    assert all(value.isascii() and value.isprintable() for value in sent.values())
    message = asyncio.run(broker.get(text))
    with contextlib.suppress(HostileError), rtobs.consume(text, message) as hop:
        hop.outcome(rtobs.Outcome.FAILED, text)
        with rtobs.deliver(text, text, key=text):
            raise HostileError(text)
    assert len(tolerant.spans("accept")) == len(tolerant.spans("deliver")) == 1
    assert tolerant.count(names.INTERNAL_ERRORS) == 0
    assert_safe(tolerant)
    from rtobs import _config

    for snapshot in _config._bound.registry.collect():
        for point in snapshot.points:
            assert all(SAFE.fullmatch(label) and len(label) <= 256 for label in point.labels), snapshot.instrument.name


def test_nothing_of_the_message_is_shown_by_default(tolerant: Telemetry) -> None:
    """Payload, headers and arguments of a message are in no span, log event or label: nobody asked for them."""
    broker = rtobs.wrap(Broker())
    run(broker.publish("orders", b"the payload", {"x-header": "the header"}))

    @rtobs.deliver("webhook", "crm")
    def deliver(argument: str) -> str:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"), rtobs.consume("orders", asyncio.run(broker.get("orders"))):
        deliver("the argument")
    shown = "".join(span.to_json() for span in tolerant.spans()) + json.dumps([dict(e) for e in tolerant.events])
    assert "broken" in shown
    for secret in ("the payload", "the header", "the argument"):
        assert secret not in shown


# R16: headers through every carrier --------------------------------------------------------------------------------

_OWN = (*names.OWN_HEADERS, "x-request-id")
_PIECES = (
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "ff-",
    "00",
    "-",
    "0" * 32,
    "f" * 16,
    ".",
    "104065bfeda27c240065",
    "%0d%0a",
    "%00",
    "%zz",
    "rtobs.tenant=evil",
    "rtobs.cid=" + "1" * 32,
    "a=b",
    ",",
    ";",
    "=",
    "é",
    "\ud800",
    "\x00",
    "\r\n",
    "~",
    "*",
    "x" * 600,
    " ",
    "\t",
    "th:8",
    "ot=rv:1",
    "__proto__=1",
    "A" * 96,
    "1" * 42,
    "../",
    "'",
    '"',
    "{}",
    "\u2028",
)


def mutated(chance: random.Random, bases: list[Any]) -> Any:  # noqa: C901, PLR0912 - a case for each way
    """Return headers like one of *bases*, with something wrong, in one of the shapes that clients have."""
    base = chance.choice(bases)
    found: dict[Any, Any] = dict(base) if isinstance(base, dict) else {}
    for _ in range(chance.randrange(1, 4)):
        name: Any = chance.choice(_OWN)
        value: Any = found.get(name, "")
        match chance.randrange(8):
            case 0:
                value = "".join(chance.choices(_PIECES, k=chance.randrange(1, 6)))
            case 1 if isinstance(value, str) and value:
                at = chance.randrange(len(value))
                value = value[:at] + chance.choice(_PIECES) + value[at + chance.randrange(3) :]
            case 2 if isinstance(value, str):
                value = value[: chance.randrange(len(value) + 1)]
            case 3:
                value = chance.choice((None, 5, 1.5, True, [], [value], (value, value), {"a": 1}, object(), b"\xff"))
            case 4 if isinstance(value, str):
                value = value.encode("utf-8", "replace")
            case 5 if isinstance(value, str):
                value = value.upper()
            case 6:
                name = chance.choice((name.encode(), name.upper(), name.title(), "x" * 70, b"\xff", 5))
            case _:
                value = value * 3 if isinstance(value, str | bytes) else value
        found[name] = value
    match chance.randrange(6):
        case 0:
            return list(found.items())
        case 1:
            return [
                (str(name).encode("utf-8", "replace"), str(value).encode("utf-8", "replace"))
                for name, value in found.items()
            ]
        case 2:
            return [*found.items(), *found.items(), None, ("a",), 5]
        case _:
            return found


_values = st.one_of(
    st.text(max_size=60), st.binary(max_size=60), st.none(), st.integers(), st.lists(st.text(max_size=9), max_size=3)
)
_headers = st.dictionaries(st.one_of(st.sampled_from(_OWN), st.text(max_size=9)), _values, max_size=5)
_CORPUS = [headers_of(case) for case in CORPUS]
_INPUTS = 40
_EXAMPLES = 510


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_r16_hostile_headers_through_every_carrier(tolerant: Telemetry, record_property: Any) -> None:
    """R16: 20,000 sets of headers and more, each through every carrier: a hop opens, and what leaves it is valid."""
    inputs = 0

    @given(st.lists(_headers, min_size=1, max_size=4), st.integers(0, 2**32))
    @settings(max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    def through(drawn: list[dict[Any, Any]], seed: int) -> None:
        nonlocal inputs
        chance = random.Random(seed)
        bases = [*drawn, *chance.sample(_CORPUS, 3)]
        for number in range(_INPUTS):
            headers = drawn[number] if number < len(drawn) else mutated(chance, bases)
            for one in INCOMING:
                out = one.took(headers, lambda: rtobs.current().headers)
                assert W3C_TRACEPARENT.fullmatch(out["traceparent"]), (one.name, headers)
                assert all(value.isascii() and value.isprintable() for value in out.values()), (one.name, headers)
                assert len(out["rtobs-journey"]) <= carrier.JOURNEY_LIMIT
                assert len(out.get("baggage", "")) <= carrier.BAGGAGE_LIMIT
        inputs += _INPUTS
        tolerant.forget()

    through()
    assert engine.current() is None
    assert inputs >= 20_000
    record_property("R16", f"{inputs} inputs through {len(INCOMING)} carriers")
    print(f"\nR16: {inputs} inputs through {len(INCOMING)} carriers, {inputs * len(INCOMING)} hops, 0 raised")


def test_r16_the_corpus_through_every_carrier(tolerant: Telemetry) -> None:
    """R16: each hostile header and object of the corpus, through every carrier: the handler runs in its own journey."""
    for headers in (*_CORPUS, *(make() for make in OBJECTS.values())):
        for one in INCOMING:
            cid = one.took(headers, lambda: rtobs.current().correlation_id)
            assert re.fullmatch("[0-9a-f]{32}", cid), one.name
    assert_safe(tolerant)


def test_r16_headers_of_a_caller_reach_the_wire_unharmed(tolerant: Telemetry) -> None:
    """R16: what a caller sends himself beside ours goes out by httpx as it is, or httpx itself refuses it."""
    client = HttpxCarrier()
    for case in CORPUS:
        headers = {k: v for k, v in headers_of(case).items() if isinstance(v, str) and v.isascii() and v.isprintable()}
        if any(len(value) > 100_000 for value in headers.values()):
            continue
        found = client.sent({**headers, "x-theirs": "1"})
        assert found["x-theirs"] == "1"
        assert W3C_TRACEPARENT.fullmatch(found["traceparent"])


def _median(call: Callable[[], object], times: int = 20) -> float:
    found = []
    for _ in range(15):
        begun = time.thread_time_ns()
        for _ in range(times):
            call()
        found.append(time.thread_time_ns() - begun)
    return statistics.median(found)


_SMALL, _LARGE = 100_000, 10_000_000


@pytest.mark.parametrize("one", INCOMING, ids=lambda one: one.name)
@pytest.mark.parametrize("kind", ["text", "bytes", "baggage", "members"])
def test_r16_ten_megabytes_cost_what_a_hundred_kilobytes_cost(one: Any, kind: str, tolerant: Telemetry) -> None:
    """R16: CPU time of 10 MB in each header is at most twice that of 100 KB, by medians in the same run."""
    made: dict[str, Callable[[int], Any]] = {
        "text": lambda size: "1" * size,
        "bytes": lambda size: b"1" * size,
        "baggage": lambda size: "a=b," * (size // 4),
        "members": lambda size: "k=%0d%0a;" * (size // 9),
    }
    costs = {}
    for size in (_SMALL, _LARGE):
        headers: Any = dict.fromkeys(_OWN, made[kind](size))
        if not one.headers:  # they are in one field
            headers = made[kind](size)
        if one.name == "asgi":
            value = made[kind](size)
            headers = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name in _OWN]
        costs[size] = _median(lambda headers=headers: one.took(headers, lambda: None))  # type: ignore[misc]
    assert costs[_LARGE] <= 2 * costs[_SMALL] + 200_000


@pytest.mark.parametrize("piece", ["x", "password=y ", "a@b.c ", "1-", "é", "\n", "Bearer abcdefgh "])
def test_r16_ten_megabytes_of_text_cost_what_a_hundred_kilobytes_cost(piece: str, tolerant: Telemetry) -> None:
    """R16: the same for values, names, reasons, tenants and exceptions of the user's."""
    costs = {}
    for size in (_SMALL, _LARGE):
        text = piece * (size // len(piece))
        error = ValueError(text)

        def say(text: str = text, error: Exception = error) -> None:
            try:
                with rtobs.accept("/orders") as hop:
                    hop.note(x=text)
                    hop.event(text, y=text)
                    hop.segment(tenant=text)
                    hop.outcome(rtobs.Outcome.FAILED, text)
                    raise error
            except ValueError:
                error.__traceback__ = None

        costs[size] = _median(say, 2)
    assert costs[_LARGE] <= 2 * costs[_SMALL]


def test_r16_ten_megabytes_in_an_envelope_are_not_read(tolerant: Telemetry) -> None:
    """R16: a payload that only begins like an envelope is told from one by its first bytes."""
    costs = []
    for size in (_SMALL, _LARGE):
        sealed = b"rtobs1 270f\n" + b"a=b\n" * (size // 4)
        costs.append(_median(lambda sealed=sealed: envelope.open(sealed)))  # type: ignore[misc]
    assert costs[1] <= 2 * costs[0] + 20 * 5_000_000  # the payload behind it is copied once: a few milliseconds
