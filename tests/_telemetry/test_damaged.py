"""Ledgers that went wrong on their way, through the real carriers: none raises, and none tells what was not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._journey import ledger
from rtobs._journey.journey import Journey
from rtobs._telemetry.completion import complete
from tests.support.telemetry import Telemetry
from tests.unbreakable.carriers import INCOMING

AT_ONCE = 4
"""Headers in each example: what hypothesis does around one costs as much as several of them."""
EACH = 850
"""Examples for each carrier: 20,400 headers."""


def _honest() -> tuple[dict[str, str], frozenset[tuple[int, str]]]:
    """Return the headers of a message three steps on its way, and the spans that these steps and their sends were."""
    trace, spans = f"{0xABC:032x}", [0xA1B2C3D4E5F60718, 0x1122334455667788, 0x99AABBCCDDEEFF01]
    text, received, told = "", "", []
    for index, span in enumerate(spans):
        sent = ledger.sent_span(f"{span:016x}", 1)
        kind, name = ("consume", f"q{index}") if index else ("accept", "/notify")
        text = ledger.append(
            text, received, f"{trace}-{sent}", ledger.CODES[kind], f"{span:016x}", 1_790_000_000_000_000_000,
            1_790_000_000_100_000_000, 1_790_000_000_100_000_000, 1, ledger.label("svc", name, f"q{index + 1}"),
        )  # fmt: skip
        received = f"{trace}-{sent}"
        told += [(span, f"{kind} {name}"), (int(sent, 16), f"publish q{index + 1}")]
    moment = f"{1_790_000_000_000_000:014x}"
    packed = f"100{moment}{moment}01.........{text}"
    headers = {"traceparent": f"00-{received}-02", "rtobs-journey": packed, "baggage": f"rtobs.cid={trace}"}
    return headers, frozenset(told)


HEADERS, TRUTH = _honest()
PACKED = HEADERS["rtobs-journey"]


def damaged(packed: str, way: str, at: int, by: int) -> str:
    """Return a header that went wrong on its way."""
    start = packed.rindex(".") + 1
    text = packed[start:]
    place = at % len(text)
    if way == "flip":
        text = text[:place] + chr(ord(text[place]) ^ 1 << by % 7) + text[place + 1 :]
    elif way == "cut":
        text = text[:place]
    elif way == "swap":
        text = text[place:] + text[:place]
    elif way == "long":
        text += text[place:] * (by % 4 + 1)
    elif way == "noise":
        text = "".join(chr(33 + (ord(letter) * by + at) % 94) for letter in text)
    return packed[:start] + text


def told_by(carrier: Any, headers: dict[str, str]) -> set[tuple[int, str]]:
    """Return ids and names of what a hop that fails, of a message that came by *carrier*, would rebuild."""
    records: list[Any] = []

    def failing() -> None:
        records.append(engine.current())
        raise TimeoutError

    native: Any = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]
    with suppress(TimeoutError):
        carrier.took(native if carrier.name == "asgi" else headers, failing)
    (record,) = records
    assert isinstance(record.journey, Journey)
    spans, _ = complete(record, record.journey)
    return {(span.context.span_id, span.name) for span in spans if span.context is not None}


CARRIERS = pytest.mark.parametrize("carrier", INCOMING, ids=lambda carrier: carrier.name)
WAYS = ("flip", "cut", "swap", "long", "noise", "other trace")
DAMAGE = st.lists(
    st.tuples(st.sampled_from(WAYS), st.integers(0, 400), st.integers(1, 255)), min_size=AT_ONCE, max_size=AT_ONCE
)


@CARRIERS
@pytest.mark.timeout(240)
@settings(max_examples=EACH, suppress_health_check=list(HealthCheck))
@given(damage=DAMAGE)
@example(damage=[("flip", at, 1) for at in range(256)])
@example(damage=[("cut", at, 1) for at in range(256)])
def test_a_damaged_ledger_never_tells_a_wrong_span(carrier: Any, tolerant: Telemetry, damage: Any) -> None:
    """20,000 damaged headers through real hops: nothing raises, and what is rebuilt is what was true, or nothing."""
    for way, at, by in damage:
        headers = {**HEADERS, "rtobs-journey": damaged(PACKED, way, at, by)}
        if way == "other trace":
            headers["traceparent"] = f"00-{at + 1:032x}-{at + 1:016x}-02"
        assert told_by(carrier, headers) <= TRUTH
    assert tolerant.count(names.INTERNAL_ERRORS) == 0


@CARRIERS
def test_damage_is_counted(carrier: Any, tolerant: Telemetry) -> None:
    """Every message with a flipped bit counts as rejected, and nothing is told."""
    counted = 0
    for at in range(0, 80, 8):
        assert told_by(carrier, {**HEADERS, "rtobs-journey": damaged(PACKED, "flip", at, 1)}) == set()
        counted, before = tolerant.count(names.PROPAGATION_REJECTED), counted
        assert counted > before


@CARRIERS
def test_the_honest_one_tells_all(carrier: Any, tolerant: Telemetry) -> None:
    """Undamaged, the same header brings back three steps and their sends, whatever carried it."""
    assert told_by(carrier, HEADERS) == TRUTH
    assert tolerant.count(names.PROPAGATION_REJECTED) == 0
