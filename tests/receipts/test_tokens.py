"""Receipt tokens: what a client may report, about one delivery only, for a week."""

from __future__ import annotations

import hmac
import re
import string
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import OTHER
from rtobs._hop.runtime import runtime
from rtobs._journey.journey import Journey
from rtobs._journey.outcome import STEPS, proven_step
from rtobs._journey.record import HopRecord
from rtobs.receipts.tokens import CHARACTERS, Tokens
from tests.support import telemetry as support
from tests.support.telemetry import SECOND, Clock, Telemetry, clock

__all__ = ["clock"]

KEY = b"a key of sixteen"
DAY = 86_400 * SECOND
ALPHABET = string.ascii_letters + string.digits + "-_"


@pytest.fixture(autouse=True)
def _no_counts() -> Generator[None]:
    with _guard._lock:
        _guard._tallies.clear()
    yield
    with _guard._lock:
        _guard._tallies.clear()


@pytest.fixture
def telemetry() -> Generator[Telemetry]:
    """Telemetry of a process that has a key, and that knows an in-app message is done when it was displayed."""
    yield support.start(wire_key=KEY, promises={"in_app": "displayed"})
    support.stop()


def refused() -> dict[str, int]:
    return {values[0]: n for (name, values), n in _guard.tallies().items() if name == names.PROPAGATION_REJECTED.name}


def attempt(channel: str = "in_app", provider: str = "chat", cid: int = 7, created_us: int = 0) -> HopRecord:
    record = HopRecord("deliver", channel, None)
    record.channel, record.provider, record.span_id = channel, provider, 0xABCDEF
    record.journey = Journey(f"{cid:032x}", created_us or runtime.wall_ns() // 1000)
    return record


# One token -----------------------------------------------------------------------------------------------------------


@given(
    cid=st.integers(1, 2**128 - 1), span=st.integers(1, 2**64 - 1), age=st.integers(0, 30 * 86_400),
    channel=st.sampled_from(["push", "sms", "email", "in_app", "webhook", "fax", "é"]), provider=st.text(max_size=20),
)  # fmt: skip
@settings(max_examples=150)
def test_a_token_says_what_it_was_minted_for(cid: int, span: int, age: int, channel: str, provider: str) -> None:
    """Journey, age to the millisecond, span, channel and provider come back, from 76 characters for a URL."""
    created_us = runtime.wall_ns() // 1000 - age * 1_000_000
    record = attempt(channel, provider, cid, created_us)
    record.span_id = span
    tokens = Tokens(KEY)
    token = tokens.mint(record)
    assert len(token) == CHARACTERS == 76
    assert set(token) <= set(ALPHABET)
    found = tokens.redeem(token, "opened")
    assert found is not None
    assert found.journey.correlation_id == f"{cid:032x}"
    assert found.journey.created_us == created_us // 1000 * 1000
    assert (found.trace_id, found.span_id) == (cid, span)
    assert (found.channel, found.provider) == (channel, provider)


def test_a_process_that_did_not_deliver_knows_the_channels_and_what_it_was_told() -> None:
    """Well-known channels and declared names are read anywhere; another process's provider is `other` until learnt."""
    token = Tokens(KEY).mint(attempt("in_app", "chat"))
    fax = Tokens(KEY).mint(attempt("fax", "chat"))
    elsewhere = Tokens(KEY)
    found = elsewhere.redeem(token, "displayed")
    assert found is not None
    assert (found.channel, found.provider) == ("in_app", OTHER)
    unknown = elsewhere.redeem(fax, "displayed")
    assert unknown is not None
    assert unknown.channel == OTHER
    elsewhere.learn(("fax",), ("chat",))
    known = elsewhere.redeem(fax, "displayed")
    assert known is not None
    assert (known.channel, known.provider) == ("fax", "chat")


@given(st.integers(0, CHARACTERS - 1), st.sampled_from(ALPHABET))
@settings(max_examples=200)
def test_no_changed_character_survives(position: int, character: str) -> None:
    """Whatever character is changed, the token is worth nothing."""
    token = Tokens(KEY).mint(attempt())
    changed = token[:position] + character + token[position + 1 :]
    assert (Tokens(KEY).redeem(changed, "displayed") is not None) == (changed == token)


def test_a_token_has_one_spelling() -> None:
    """The standard alphabet, padding, line breaks and other digits that decode to the same bytes are refused."""
    for number in range(200):
        token = Tokens(KEY).mint(attempt(cid=number + 1))
        if "-" in token and "_" in token:
            break
    spellings = [
        token.replace("-", "+"), token.replace("_", "/"), token + "=", token + "\n", f" {token}", token.swapcase(),
        token[:-1], token.encode(), token.translate({ord(c): 0xFEE0 + ord(c) for c in string.digits}), "", None, 5,
    ]  # fmt: skip
    for spelling in spellings:
        assert Tokens(KEY).redeem(spelling, "displayed") is None, spelling
    assert refused() == {"token": len(spellings)}
    assert Tokens(KEY).redeem(token, "displayed") is not None


@given(st.one_of(st.text(max_size=100), st.text(ALPHABET, min_size=76, max_size=76), st.binary(max_size=100)))
@settings(max_examples=200)
def test_nothing_made_up_is_a_token(token: object) -> None:
    """Any other text is refused without an exception."""
    assert Tokens(KEY).redeem(token, "displayed") is None


def test_another_key_signs_other_tokens() -> None:
    """A token of another key is refused, and the wire key itself does not sign tokens."""
    token = Tokens(KEY).mint(attempt())
    assert Tokens(b"another key of 20 ch").redeem(token, "displayed") is None
    assert refused() == {"token": 1}


def signed(facts: bytes, key: bytes) -> str:
    return urlsafe_b64encode(facts + hmac.new(key, facts, "sha256").digest()[:16]).decode()


def test_tokens_are_signed_with_a_key_of_their_own() -> None:
    """What somebody gets signed by the wire key elsewhere is no token; a token of a later version is not read."""
    facts = urlsafe_b64decode(Tokens(KEY).mint(attempt()))[:41]
    own = hmac.new(KEY, b"rtobs receipt token", "sha256").digest()
    assert Tokens(KEY).redeem(signed(facts, own), "displayed") is not None
    assert Tokens(KEY).redeem(signed(facts, KEY), "displayed") is None
    assert Tokens(KEY).redeem(signed(b"\x02" + facts[1:], own), "displayed") is None


def test_a_huge_token_costs_nothing() -> None:
    """Ten megabytes are refused without being decoded."""
    huge, tokens = "A" * 10_000_000, Tokens(KEY)
    begun = time.perf_counter()
    for _ in range(20):
        assert tokens.redeem(huge, "displayed") is None
    assert time.perf_counter() - begun < 0.1


def test_a_token_expires_after_a_week(clock: Clock) -> None:
    """Seven days after it was minted it can still be used; a minute later it is refused as expired."""
    token = Tokens(KEY).mint(attempt())
    clock.now += 7 * DAY
    assert Tokens(KEY).redeem(token, "displayed") is not None
    clock.now += 60 * SECOND
    assert Tokens(KEY).redeem(token, "displayed") is None
    assert refused() == {"token_expired": 1}


@pytest.mark.parametrize("channel", ["push", "webhook"])
def test_a_step_that_the_delivery_has_counted_itself_is_refused(channel: str) -> None:
    """A report proves later steps only, or one delivery would be counted twice at its promise."""
    token = Tokens(KEY).mint(attempt(channel))
    proven = STEPS.index(proven_step(channel))
    for index, step in enumerate(STEPS):
        assert (Tokens(KEY).redeem(token, step) is not None) == (index > proven), step
    assert refused() == {"token_step": proven + 1}


# From the delivery to the report -------------------------------------------------------------------------------------


def test_a_report_is_counted_at_its_step_with_the_journeys_age(telemetry: Telemetry, clock: Clock) -> None:
    """deliver, token, report: the outcome counts at `displayed`, the age runs from the journey's creation."""
    with rtobs.accept("/messages") as hop:
        hop.segment(tenant="acme")
        with rtobs.deliver("in_app", "chat") as attempt:
            cid, token = hop.correlation_id, attempt.receipt_token()
            clock.now += SECOND
    assert re.fullmatch(r"[A-Za-z0-9_-]{76}", token)
    clock.now += 41 * SECOND
    with rtobs.receipt("displayed", token) as hop:
        assert hop.correlation_id == cid
    assert telemetry.by(names.OUTCOMES, "channel", "provider", "step", "outcome") == {
        ("in_app", "chat", "accepted", "ok"): 1, ("in_app", "chat", "displayed", "ok"): 1,
    }  # fmt: skip
    assert telemetry.count(names.END_TO_END, step="displayed") == 1
    assert telemetry.seconds(names.END_TO_END, step="displayed") == 42.0
    assert telemetry.seconds(names.END_TO_END, step="accepted") == 1.0
    assert telemetry.count(names.INTENTS) == 1


def test_a_report_is_linked_to_the_delivery_and_to_the_request_that_brought_it(telemetry: Telemetry) -> None:
    """The report has a trace of its own; links lead to the attempt it is about and to the hop around it."""
    with rtobs.accept("/messages"), rtobs.deliver("in_app", "chat") as attempt:
        token = attempt.receipt_token()
    with rtobs.accept("/receipts"), rtobs.receipt("opened", token):
        pass
    delivery, report = telemetry.span("deliver"), telemetry.span("receipt")
    around = telemetry.span(name="accept /receipts")
    assert report.context.trace_id not in (delivery.context.trace_id, around.context.trace_id)
    assert {link.context.span_id for link in report.links} == {delivery.context.span_id, around.context.span_id}
    assert report.attributes["rtobs.step"] == "opened"


def test_the_tenant_of_a_report_is_said_by_the_application(telemetry: Telemetry) -> None:
    """A token holds no tenant; the outcome's tenant is what the report's own request is about."""
    with rtobs.deliver("in_app", "chat") as attempt:
        token = attempt.receipt_token()
    with rtobs.receipt("displayed", token) as hop:
        hop.segment(tenant="acme", region="eu")
    assert telemetry.count(names.OUTCOMES, step="displayed", tenant="acme", region="eu") == 1


@pytest.mark.parametrize("token", ["", "x" * 76, None])
def test_a_report_with_no_valid_token_counts_nothing_else(telemetry: Telemetry, token: object) -> None:
    """It runs the handler, without a hop, and is counted as refused."""
    with rtobs.receipt("displayed", token) as hop:  # type: ignore[arg-type]
        assert hop.correlation_id == ""
    assert telemetry.count(names.OUTCOMES) == 0
    assert telemetry.spans() == []
    with rtobs.accept("/x"):
        pass
    assert telemetry.count(names.PROPAGATION_REJECTED, reason="token") == 1


def test_a_report_whose_handler_fails_is_not_counted_as_reached(telemetry: Telemetry) -> None:
    """Where the application refuses the report, the step was not reached."""
    with rtobs.deliver("in_app", "chat") as attempt:
        token = attempt.receipt_token()
    with pytest.raises(PermissionError), rtobs.receipt("displayed", token):
        raise PermissionError
    assert telemetry.count(names.OUTCOMES, step="displayed") == 0


def test_without_a_key_there_are_no_tokens_and_reports_are_counted() -> None:
    """No wire key: the token is empty, a report is refused and says what is missing."""
    telemetry = support.start()
    with rtobs.deliver("in_app", "chat") as attempt:
        assert attempt.receipt_token() == ""
    with rtobs.receipt("displayed", "x" * 76):
        pass
    assert telemetry.count(names.PROPAGATION_REJECTED, reason="no_wire_key") == 1
    support.stop()


def test_a_token_is_for_deliveries_only(telemetry: Telemetry) -> None:
    """In any other hop there is none."""
    with rtobs.accept("/messages") as hop:
        assert hop.receipt_token() == ""


def test_a_later_promise_moves_where_failures_count(telemetry: Telemetry) -> None:
    """With `promises={"in_app": "displayed"}` a failure there counts at `displayed`; another channel's does not."""
    for channel in ("in_app", "push"):
        with rtobs.deliver(channel, "chat") as hop:
            hop.outcome(rtobs.Outcome.REJECTED)
    assert telemetry.by(names.OUTCOMES, "channel", "step", "outcome") == {
        ("in_app", "displayed", "rejected"): 1, ("push", "accepted", "rejected"): 1,
    }  # fmt: skip
