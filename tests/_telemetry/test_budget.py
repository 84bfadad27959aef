"""What the two counters of an SLO count: the mission's four promises, each with its odd cases."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import invariant
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import rtobs
from rtobs import ErrorCategory, Outcome, _config
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message
from rtobs.integrations.asgi import Middleware
from rtobs.integrations.memory import Broker
from rtobs.slo import SLO, Deadline, Declaration, Latency, Ratio, Standing, status
from tests._hop.test_law import ERRORS, Law
from tests.integrations.web import get
from tests.support import telemetry as support
from tests.support.telemetry import SECOND, Clock, Telemetry

Promised = Callable[..., Telemetry]


def slo(sli: Any, name: str = "promise", **options: Any) -> SLO:
    return SLO(name, 99, sli, "A promise.", "what-to-do", "the-owner", **options)


ACK = slo(Latency("300ms", hop="accept"))
ARRIVES = slo(Deadline("promise", "5s"))
JOBS = slo(Ratio("job", ("late", "missed", "failed")))
DEAD = slo(Ratio("consume", ("dead_lettered",)))


@pytest.fixture
def promised() -> Generator[Promised]:
    """A function that declares SLOs for this test, with no other tenant than those of ``tenants``."""

    def declare(*slos: SLO, tenants: tuple[str, ...] = (), **options: Any) -> Telemetry:
        return support.start(slos=Declaration("test", slos, tenants=tenants), **options)

    yield declare
    support.stop()


def counted(telemetry: Telemetry, **labels: str) -> tuple[int, int]:
    """Return how much was expected, and how much was good."""
    return telemetry.count(names.SLO_EXPECTED, **labels), telemetry.count(names.SLO_GOOD, **labels)


# api-ack -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected", "good"),
    [
        (200, 1, 1), (202, 1, 1), (302, 1, 1), (400, 0, 0), (401, 0, 0), (403, 0, 0), (404, 0, 0), (408, 1, 0),
        (409, 0, 0), (422, 0, 0), (425, 0, 0), (429, 1, 0), (499, 0, 0), (500, 1, 0), (503, 1, 0), (504, 1, 0),
    ],
)  # fmt: skip
async def test_a_request_counts_by_its_status(promised, code, expected, good):
    """4xx count neither way, except 408 and 429, which are bad as 5xx are."""
    telemetry = promised(ACK)

    async def answer(_: Request) -> Any:
        return PlainTextResponse("", code)

    await get(Middleware(Starlette(routes=[Route("/x", answer)])), "/x")
    assert counted(telemetry) == (expected, good)


@pytest.mark.parametrize(("seconds", "good"), [(0.0, 1), (0.3, 1), (0.3001, 0), (10.0, 0)])
def test_a_request_that_took_too_long_is_bad(promised, clock: Clock, seconds, good):
    """A request is good up to the very threshold, and bad from there on."""
    telemetry = promised(ACK)
    with rtobs.accept("/x"):
        clock.now += round(seconds * SECOND)
    assert counted(telemetry) == (1, good)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError, 1),
        (ConnectionError, 1),
        (PermissionError, 1),
        (TimeoutError, 1),
    ],
)
def test_a_request_whose_handler_raises_is_bad(promised, raised, expected):
    """Where there is no HTTP status an exception is bad, one about credentials too: they may be ours."""
    telemetry = promised(ACK)
    with contextlib.suppress(raised), rtobs.accept("/x"):
        raise raised
    assert counted(telemetry) == (expected, 0)


class _StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__()
        self.status_code = status_code


@pytest.mark.parametrize(("code", "expected"), [(404, 0), (429, 1), (503, 1)])
def test_an_exception_with_a_status_counts_as_that_status(promised, code, expected):
    """An endpoint without a web framework that raises an HTTP error is judged by its status."""
    telemetry = promised(ACK)
    with contextlib.suppress(_StatusError), rtobs.accept("/x"):
        raise _StatusError(code)
    assert counted(telemetry) == (expected, 0)


@pytest.mark.parametrize(
    ("outcome", "category", "expected", "good"),
    [
        (Outcome.OK, None, 1, 1),
        (Outcome.FAILED, None, 1, 0),
        (Outcome.REJECTED, None, 0, 0),
        (Outcome.DROPPED, None, 0, 0),
        (Outcome.FAILED, ErrorCategory.VALIDATION, 0, 0),
        (Outcome.EXPIRED, None, 1, 0),
    ],
)
def test_what_the_endpoint_says_of_a_request_counts(promised, outcome, category, expected, good):
    """An endpoint that turns a request down counts neither way; one that fails is bad."""
    telemetry = promised(ACK)
    with rtobs.accept("/x") as hop:
        hop.outcome(outcome, category=category)
    assert counted(telemetry) == (expected, good)


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 0), (0.5, 1)])
def test_a_caller_who_leaves_counts_only_where_he_had_waited_too_long(promised, clock: Clock, seconds, expected):
    """Who hangs up in time counts neither way; who hung up after the threshold was not acknowledged in time."""
    telemetry = promised(ACK)
    with contextlib.suppress(asyncio.CancelledError), rtobs.accept("/x"):
        clock.now += round(seconds * SECOND)
        raise asyncio.CancelledError
    assert counted(telemetry) == (expected, 0)


def test_only_the_routes_that_were_promised_count(promised):
    """``where`` picks routes by name."""
    telemetry = promised(slo(ACK.sli, where={"route": ("/a",)}))
    for route in ("/a", "/b", "/a"):
        with rtobs.accept(route):
            pass
    for route in ("/a", "/b"):
        with contextlib.suppress(ConnectionError), rtobs.accept(route):
            raise ConnectionError
    assert counted(telemetry) == (3, 2)


def test_a_ratio_of_requests_has_no_threshold(promised, clock: Clock):
    """A request that works is good for a ratio, however long it takes."""
    telemetry = promised(slo(Ratio("accept", ("failed",))))
    with rtobs.accept("/x"):
        clock.now += 900 * SECOND
    with contextlib.suppress(ConnectionError), rtobs.accept("/x"):
        raise ConnectionError
    assert counted(telemetry) == (2, 1)


# delivery-5s ---------------------------------------------------------------------------------------------------------


def deliver(channel: str = "webhook", **said: Any) -> None:
    with rtobs.deliver(channel, "provider") as hop:
        if said:
            hop.outcome(said["outcome"], category=said.get("category"))


@pytest.mark.parametrize(("seconds", "good"), [(0, 1), (5, 1), (5.001, 0), (3600, 0)])
def test_a_delivery_is_good_within_the_threshold_of_its_creation(promised, clock: Clock, seconds, good):
    """A promised delivery is expected at once, and good if it arrives no later than the threshold."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        headers = hop.headers
    assert counted(telemetry) == (1, 0)
    clock.now += round(seconds * SECOND)
    with rtobs.consume("orders", headers=headers, trust="trusted"):
        deliver()
    assert counted(telemetry) == (1, good)


@pytest.mark.parametrize(
    ("outcome", "category", "good"),
    [
        (Outcome.CANCELLED, None, 1),
        (Outcome.DROPPED, ErrorCategory.SUPPRESSED, 1),
        (Outcome.REJECTED, ErrorCategory.SUPPRESSED, 1),
        (Outcome.REJECTED, ErrorCategory.RECIPIENT, 1),
        (Outcome.REJECTED, ErrorCategory.AUTH, 0),
        (Outcome.REJECTED, ErrorCategory.VALIDATION, 0),
        (Outcome.DROPPED, None, 0),
        (Outcome.EXPIRED, None, 0),
        (Outcome.DEAD_LETTERED, ErrorCategory.UNAVAILABLE, 0),
        (Outcome.FAILED, ErrorCategory.INTERNAL, 0),
    ],
)
def test_where_nothing_is_owed_any_more_it_is_good(promised, clock: Clock, outcome, category, good):
    """Called off, opted out or nobody there: good, however late; every other end is bad."""
    telemetry = promised(ARRIVES)
    with rtobs.consume("orders"):
        clock.now += 60 * SECOND
        deliver(outcome=outcome, category=category)
    assert counted(telemetry) == (1, good)


def test_a_lost_delivery_is_bad(promised):
    """What was promised and never heard of again is expected and not good."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("sms", count=3)
    assert counted(telemetry) == (3, 0)


def test_the_promise_step_counts_and_no_other(promised):
    """Where a channel's promise is a later step than ``deliver`` proves, only the receipt of that step is good."""
    telemetry = promised(ARRIVES, promises={"in_app": "displayed"}, wire_key=b"0123456789abcdef")
    with rtobs.deliver("in_app", "socket") as hop:
        token = hop.receipt_token()
    assert counted(telemetry) == (1, 0)
    with rtobs.receipt("displayed", token):
        pass
    with rtobs.receipt("opened", token):
        pass
    assert counted(telemetry) == (1, 1)


@pytest.mark.parametrize(("step", "channel"), [("accepted", "webhook"), ("delivered", "webhook"), ("accepted", "sms")])
def test_a_step_that_the_delivery_proves_is_good_once(promised, step, channel):
    """An SLO about a step no later than what ``deliver`` proves is kept by the ``deliver``."""
    telemetry = promised(slo(Deadline(step, "5s")))
    deliver(channel)
    assert counted(telemetry) == (1, 1)


def test_a_named_step_is_kept_by_its_receipt_only(promised):
    """An SLO may name a later step than the channel promises; earlier and later receipts do not count."""
    telemetry = promised(slo(Deadline("displayed", "5s")), wire_key=b"0123456789abcdef")
    with rtobs.deliver("push", "fcm") as hop:
        token = hop.receipt_token()
    for step in ("delivered", "displayed", "opened"):
        with rtobs.receipt(step, token):
            pass
    assert counted(telemetry) == (1, 1)


def test_expected_and_good_have_the_same_labels(promised):
    """A delivery is good under the tenant and channel under which it was promised, whoever it turns out to be for."""
    telemetry = promised(slo(ARRIVES.sli, group_by="channel"), tenants=("acme", "globex"))
    with rtobs.accept("/x") as hop:
        hop.segment(tenant="acme")
        hop.intend("webhook", "k")
        headers = hop.headers
    with rtobs.consume("orders", headers=headers, trust="trusted") as hop:
        hop.segment(tenant="globex")
        deliver()
    assert counted(telemetry, tenant="acme", channel="webhook") == (1, 1)
    assert counted(telemetry) == (1, 1)


async def test_a_redelivered_handler_promises_and_delivers_once(promised):
    """A handler that fails and gets its message again is expected once for what it promises and delivers."""
    telemetry = promised(ARRIVES)
    broker = rtobs.wrap(Broker())
    await broker.publish("orders", b"")
    for attempt in range(3):
        message = await broker.get("orders")
        assert message is not None
        with contextlib.suppress(ConnectionError), rtobs.consume("orders", message) as hop:
            hop.intend("webhook", "k")
            with rtobs.deliver("webhook", "provider", key="k"):
                if attempt < 2:
                    raise ConnectionError
            await message.ack()
        if attempt < 2:
            await message.nack()
    assert counted(telemetry) == (1, 1)


async def test_a_repeated_success_is_good_once(promised):
    """Of two deliveries in one message the first worked; when the message comes again its success is no second one."""
    telemetry = promised(ARRIVES)
    broker = rtobs.wrap(Broker())
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "a", "b")
        await broker.publish("orders", b"")
    for attempt in range(2):
        message = await broker.get("orders")
        assert message is not None
        with contextlib.suppress(ConnectionError), rtobs.consume("orders", message):
            deliver_as("a")
            deliver_as("b", ConnectionError if attempt == 0 else None)
        await (message.nack() if attempt == 0 else message.ack())
    assert telemetry.count(names.REPEATED) == 2
    assert counted(telemetry) == (2, 1)


def deliver_as(key: str, raises: type[Exception] | None = None) -> None:
    with rtobs.deliver("webhook", "provider", key=key):
        if raises is not None:
            raise raises


async def test_a_replay_counts_in_no_slo(promised):
    """What is put back from a dead-letter queue was counted when it died: nothing is expected or good again."""
    telemetry = promised(slo(ARRIVES.sli, "arrives"), slo(DEAD.sli, "dead"), slo(Latency("1s", hop="consume"), "fast"))
    broker = rtobs.wrap(Broker())
    broker.declare("orders", dead_letter="dead")
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        await broker.publish("orders", b"")
    message = await broker.get("orders")
    assert message is not None
    with rtobs.consume("orders", message):
        await message.reject()
    before = {name: counted(telemetry, slo=name) for name in ("arrives", "dead", "fast")}
    dead = await broker.get("dead")
    assert dead is not None
    with rtobs.consume("dead", dead):
        await broker.publish("orders", b"")
        await dead.ack()
    again = await broker.get("orders")
    assert again is not None
    with rtobs.consume("orders", again) as hop:
        hop.intend("webhook", "other")
        deliver()
        await again.ack()
    assert before == {"arrives": (1, 0), "dead": (1, 0), "fast": (1, 0)}
    assert {name: counted(telemetry, slo=name) for name in before} == before
    assert telemetry.count(names.RECOVERED) == 1


def delayed(clock: Clock, headers: dict[str, str], **facts: Any) -> Message:
    return Message("memory", "orders", headers=headers, native=object(), release_ns=clock.now, **facts)


@pytest.mark.parametrize(("handled_after", "good"), [(4.9, 1), (5.1, 0)])
def test_a_delayed_message_is_judged_from_its_release(promised, clock: Clock, handled_after, good):
    """The time for which a message was held back on purpose does not count."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        headers = hop.headers
    clock.now += 3600 * SECOND
    message = delayed(clock, headers)
    clock.now += round(handled_after * SECOND)
    with leaf.Process(message):
        deliver()
    assert counted(telemetry) == (1, good)


def held_back(clock: Clock, seconds: float) -> Message:
    return Message("memory", "orders", release_ns=clock.now + round(seconds * SECOND))


def test_a_delayed_message_is_expected_at_its_release(promised, clock: Clock):
    """What a message promises that is sent for later is expected when it is released, and bad only if lost then."""
    telemetry = promised(slo(ARRIVES.sli, group_by="channel"), tenants=("acme",))
    with rtobs.accept("/x") as hop:
        hop.segment(tenant="acme")
        hop.intend("webhook", "a", "b")
        with leaf.Send(held_back(clock, 3600)):
            pass
        hop.intend("webhook", "c")
    assert telemetry.count(names.INTENTS) == 3
    assert counted(telemetry) == (1, 0)
    clock.now += 3599 * SECOND
    assert counted(telemetry) == (1, 0)
    clock.now += SECOND
    (standing,) = status()
    assert (standing.expected, standing.bad) == (3, 1)
    assert counted(telemetry, tenant="acme", channel="webhook") == (3, 0)
    clock.now += 6 * SECOND
    assert status()[0].bad == 3


def test_only_what_the_delayed_message_stands_for_is_put_off(promised, clock: Clock):
    """Where a message names its promise, others of the same hop are expected at once."""
    telemetry = promised(slo(ARRIVES.sli, group_by="channel"))
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        hop.intend("sms", "k")
        with rtobs.publish("orders", channel="sms", key="k"), leaf.Send(held_back(clock, 60)):
            pass
    assert counted(telemetry, channel="webhook") == (1, 0)
    assert counted(telemetry, channel="sms") == (0, 0)
    clock.now += 60 * SECOND
    assert counted(telemetry, channel="sms") == (1, 0)


async def test_a_delayed_message_of_a_broker_is_good_in_time(promised):
    """A message that the broker holds back is expected and good once it is out, and never bad before."""
    telemetry = promised(slo(Deadline("promise", "100ms")))
    broker = rtobs.wrap(Broker())
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        await broker.publish("orders", b"", delay=1.2)
    assert counted(telemetry) == (0, 0)
    message = await broker.get("orders", 30)
    assert message is not None
    with rtobs.consume("orders", message):
        deliver()
        await message.ack()
    for _ in range(100):  # to the second
        if counted(telemetry)[0]:
            break
        await asyncio.sleep(0.05)
    assert counted(telemetry) == (1, 1)
    assert status()[0].bad == 0


def test_what_is_held_back_is_expected_at_the_end_of_the_process(promised, clock: Clock):
    """A process that ends does not take with it what it has promised for later."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        with leaf.Send(held_back(clock, 3600)):
            pass
    bound = _config._bound
    assert bound is not None
    assert counted(telemetry) == (0, 0)
    bound.shutdown(1.0)
    assert counted(telemetry) == (1, 0)


def test_the_pause_before_another_try_counts(promised, clock: Clock):
    """A message that was delayed because a try had failed is judged from its creation."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        headers = hop.headers
    clock.now += 30 * SECOND
    with leaf.Process(delayed(clock, headers, delivery_count=2)):
        deliver()
    assert counted(telemetry) == (1, 0)


def test_a_clock_that_makes_no_sense_makes_nobody_late(promised, clock: Clock):
    """A delivery before its own creation, by another host's clock, was made: nobody can say that it was late."""
    telemetry = promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", "k")
        headers = hop.headers
    clock.now -= SECOND
    with rtobs.consume("orders", headers=headers, trust="trusted"):
        deliver()
    assert counted(telemetry) == (1, 1)


def test_only_the_channels_that_were_promised_count(promised):
    """``where`` picks channels, for promises made before and with the delivery."""
    telemetry = promised(slo(ARRIVES.sli, where={"channel": ("sms",)}))
    with rtobs.accept("/x") as hop:
        hop.intend("sms", "k")
        hop.intend("push", "k")
    deliver("sms")
    deliver("push")
    assert counted(telemetry) == (2, 1)


class SloLaw(Law):
    """The law's random programs, with a deadline that nobody can miss."""

    def __init__(self) -> None:
        super().__init__()
        declared = Declaration("test", (slo(Deadline("promise", "15m")),))
        self.telemetry = support.start(promises={"push": "displayed"}, errors=ERRORS, slos=declared)

    @invariant()
    def good_and_expected_follow_the_outcomes(self) -> None:
        """Expected = promised outside of replays; good never exceeds what ended well or is not owed."""
        expected, good = counted(self.telemetry)
        assert expected <= self.telemetry.count(names.INTENTS)
        at_promise = [
            (labels, value)
            for labels, value, _ in self.telemetry.series(names.OUTCOMES)
            if labels["step"] == {"push": "displayed"}.get(labels["channel"], labels["step"])
        ]
        well = sum(value for labels, value in at_promise if labels["outcome"] == "ok")
        not_owed = sum(
            value
            for labels, value in at_promise
            if labels["outcome"] == "cancelled"
            or (labels["outcome"] != "ok" and labels["error_category"] == "recipient")
        )
        assert well + not_owed - self.telemetry.count(names.REPEATED) <= good <= well + not_owed


TestSloLaw = pytest.mark.timeout(300)(SloLaw.TestCase)
TestSloLaw.settings = settings(
    max_examples=25, stateful_step_count=25, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
)


# connector-window ----------------------------------------------------------------------------------------------------

DUE = datetime.fromtimestamp(1_800_000_000, UTC)
WINDOW = timedelta(minutes=10)


def run(
    clock: Clock, begins: float, ends: float, connector: str = "crm", *, due: Any = DUE, fails: bool = False
) -> None:
    """Run a connector; it begins and ends so many minutes after it was due."""
    moment = int(DUE.timestamp()) * SECOND
    clock.now = moment + round(begins * 60) * SECOND
    with contextlib.suppress(ConnectionError), rtobs.job(connector, due=due, window=WINDOW):
        clock.now = moment + round(ends * 60) * SECOND
        if fails:
            raise ConnectionError


@pytest.mark.parametrize(
    ("begins", "ends", "fails", "state", "good"),
    [
        (0, 5, False, "completed", 1),
        (0, 10, False, "completed", 1),
        (9, 11, False, "late", 0),
        (11, 12, False, "missed", 0),
        (0, 5, True, "failed", 0),
        (11, 12, True, "failed", 0),
    ],
)
def test_a_run_is_good_if_it_completes_in_its_window(  # noqa: PLR0917  what is given and what comes of it
    promised, clock: Clock, begins, ends, fails, state, good
):
    """Completed by due plus window is good; late, missed and failed are not."""
    telemetry = promised(JOBS)
    run(clock, begins, ends, fails=fails)
    assert telemetry.by(names.JOBS, "state") == {state: 1}
    assert counted(telemetry) == (1, good)


def test_a_run_that_is_tried_again_is_expected_once(promised, clock: Clock):
    """Once per connector and due time: a failed run that is done again in its window is one good run."""
    telemetry = promised(JOBS)
    run(clock, 0, 1, fails=True)
    assert counted(telemetry) == (1, 0)
    run(clock, 2, 5)
    assert counted(telemetry) == (1, 1)
    run(clock, 6, 7)
    run(clock, 20, 21)
    assert counted(telemetry) == (1, 1)
    run(clock, 0, 1, due=DUE + timedelta(hours=1))
    run(clock, 0, 1, "erp")
    assert counted(telemetry) == (3, 3)


def test_late_runs_are_good_where_only_missed_ones_are_bad(promised, clock: Clock):
    """``bad`` says which ends of a run break the promise."""
    telemetry = promised(slo(Ratio("job", ("missed",)), group_by="connector"))
    run(clock, 9, 11)
    run(clock, 11, 12, "erp")
    assert counted(telemetry, connector="crm") == (1, 1)
    assert counted(telemetry, connector="erp") == (1, 0)


def test_the_runs_that_are_remembered_are_bounded(promised, clock: Clock):
    """Very many runs do not pile up in memory."""
    telemetry = promised(JOBS)
    for number in range(1500):
        with rtobs.job("crm", due=DUE + timedelta(minutes=number), window=WINDOW):
            pass
    sink = _config._bound
    assert sink is not None
    assert sink.slo_sink is not None
    assert len(sink.slo_sink._jobs) == 1024
    assert counted(telemetry)[0] == 1500


# dead-letter ---------------------------------------------------------------------------------------------------------


def handled(outcome: Outcome | None, **facts: Any) -> None:
    message = Message("memory", facts.pop("queue", "orders"), native=object(), manual=True, **facts)
    with leaf.Process(message):
        if outcome is not None:
            rtobs.current().outcome(outcome)


@pytest.mark.parametrize(
    ("outcome", "expected", "good"),
    [
        (None, 1, 1),
        (Outcome.OK, 1, 1),
        (Outcome.RETRIED, 0, 0),
        (Outcome.DEAD_LETTERED, 1, 0),
        (Outcome.FAILED, 1, 1),
        (Outcome.REJECTED, 1, 1),
        (Outcome.DROPPED, 1, 1),
        (Outcome.EXPIRED, 1, 1),
        (Outcome.CANCELLED, 1, 1),
    ],
)
def test_a_message_counts_once_it_is_settled_for_good(promised, outcome, expected, good):
    """A final settlement is expected, and good unless the message is dead-lettered; what comes back does not count."""
    telemetry = promised(DEAD)
    handled(outcome)
    assert counted(telemetry) == (expected, good)


@pytest.mark.parametrize(("cause", "expected"), [("decided", 0), ("expired", 1), ("limit", 1)])
def test_who_reads_dead_letters_counts_what_the_broker_did(promised, cause, expected):
    """A message that died by the broker's doing is expected, and bad, where its dead letter is read; others were."""
    telemetry = promised(DEAD)
    handled(None, queue="dead", dead_cause=cause)
    assert counted(telemetry) == (expected, 0)


def test_dead_letters_do_not_count_where_they_are_not_bad(promised):
    """An SLO that is about other endings has nothing to do with dead letters."""
    telemetry = promised(slo(Ratio("consume", ("failed",))))
    handled(None, queue="dead", dead_cause="limit")
    assert counted(telemetry) == (0, 0)


def test_a_dead_letter_that_is_tried_again_is_no_event(promised):
    """A dead letter that its reader puts back into the dead-letter queue has not been settled for good."""
    telemetry = promised(DEAD)
    handled(Outcome.RETRIED, queue="dead", dead_cause="limit")
    handled(Outcome.OK, queue="dead", dead_cause="limit")
    assert counted(telemetry) == (1, 0)


@pytest.mark.parametrize(
    ("outcome", "seconds", "good"), [(None, 0.5, 1), (None, 2, 0), (Outcome.RETRIED, 0.5, 0), (Outcome.FAILED, 0.5, 0)]
)
def test_a_handling_in_time_is_good(promised, clock: Clock, outcome, seconds, good):
    """A latency of consume hops counts each handling: good if it worked in time."""
    telemetry = promised(slo(Latency("1s", hop="consume")))
    with leaf.Process(Message("memory", "orders", native=object())):
        clock.now += round(seconds * SECOND)
        if outcome is not None:
            rtobs.current().outcome(outcome)
    assert counted(telemetry) == (1, good)


def test_a_stage_is_timed_by_itself(promised, clock: Clock):
    """A latency of a stage counts that stage wherever it runs; one that fails is bad."""
    telemetry = promised(slo(Latency("1s", stage="enrich")))
    with rtobs.consume("orders"):
        for seconds in (0.5, 1, 1.5):
            with rtobs.stage("enrich"):
                clock.now += round(seconds * SECOND)
        with rtobs.stage("route"):
            pass
        with contextlib.suppress(ConnectionError), rtobs.stage("enrich"):
            raise ConnectionError
        with contextlib.suppress(asyncio.CancelledError), rtobs.stage("enrich"):
            raise asyncio.CancelledError
    assert counted(telemetry) == (4, 2)


# Series --------------------------------------------------------------------------------------------------------------


def test_tenants_that_are_not_declared_share_one_series(promised):
    """Only declared tenants are labels, with an objective of their own or without; nobody and all others are other."""
    telemetry = promised(slo(ACK.sli, tenants={"acme": 99.9}), tenants=("globex",))
    for tenant in ("acme", "globex", "initech", "umbrella", ""):
        with rtobs.accept("/x") as hop:
            hop.segment(tenant=tenant)
    assert telemetry.by(names.SLO_EXPECTED, "tenant") == {"acme": 1, "globex": 1, "other": 3}


def test_declared_series_begin_at_zero(promised):
    """Before anything has happened every declared tenant, channel and connector has its two series, at zero."""
    telemetry = promised(
        slo(ACK.sli, "ack"),
        slo(ARRIVES.sli, "arrives", group_by="channel", channels={"sms": 98}),
        slo(JOBS.sli, "jobs", group_by="connector", where={"connector": ("crm", "erp")}),
        tenants=("acme",),
    )
    status()
    wanted = {
        (name, tenant, channel, connector): 0.0
        for name, channel, connector in (
            ("ack", "", ""),
            ("arrives", "sms", ""),
            ("jobs", "", "crm"),
            ("jobs", "", "erp"),
        )
        for tenant in ("acme", "other")
    }
    for instrument in (names.SLO_EXPECTED, names.SLO_GOOD):
        assert {tuple(labels.values()): value for labels, value, _ in telemetry.series(instrument)} == wanted


def test_a_changed_threshold_keeps_its_series(promised):
    """What changes with the declaration is the revision in the info series, not the labels of what is counted."""
    found = []
    for threshold in ("300ms", "500ms"):
        telemetry = promised(slo(Latency(threshold, hop="accept")))
        with rtobs.accept("/x"):
            pass
        info = telemetry.by(names.SLO_INFO, "slo", "revision")
        found.append((info, [labels for labels, *_ in telemetry.series(names.SLO_EXPECTED)]))
    assert found[0][1] == found[1][1]
    revisions = [revision for info, _ in found for _, revision in info]
    assert len(set(revisions)) == 2
    assert [set(info.values()) for info, _ in found] == [{1}, {1}]


def test_thresholds_are_among_the_bounds(promised):
    """The histogram that an SLO is about has its threshold as a bound, and no more than 16; others are as they were."""
    telemetry = promised(
        slo(ACK.sli, "ack"), slo(ARRIVES.sli, "arrives"), slo(Latency("70ms", stage="enrich"), "enrich")
    )
    with rtobs.accept("/x"):
        with rtobs.stage("enrich"):
            pass
        deliver()
    assert telemetry.count(names.END_TO_END) == 1
    assert _config._bound is not None
    bounds = {one.instrument.name: one.bounds for one in _config._bound.registry.collect() if one.bounds}
    for instrument, threshold in (
        (names.ACCEPT_DURATION, 0.3), (names.END_TO_END, 5.0), (names.STAGE_DURATION, 0.07),
    ):  # fmt: skip
        assert threshold in bounds[instrument.name]
        assert len(bounds[instrument.name]) <= 16
    assert bounds[names.DELIVERY_DURATION.name] == names.DELIVERY_DURATION.bounds


def test_nobody_is_counted_twice_by_threads(promised):
    """Hops that end in many threads at once are counted exactly."""
    acknowledged, arrives = Latency("10m", hop="accept"), Deadline("promise", "15m")  # however slow the machine is
    telemetry = promised(slo(acknowledged, "ack"), slo(arrives, "arrives", group_by="channel"))

    def work() -> None:
        for _ in range(200):
            with rtobs.accept("/x"):
                deliver()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(telemetry, slo="ack") == (1600, 1600)
    assert counted(telemetry, slo="arrives") == (1600, 1600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_counts_its_own(promised):
    """A child begins at zero, with every declared series, and counts what it does itself."""
    telemetry = promised(ACK, tenants=("acme",))
    with rtobs.accept("/x"):
        pass
    child = os.fork()
    if not child:
        code = 1
        try:
            empty = [count[3:] for one in status() for count in one.counts]
            with rtobs.accept("/x"):
                pass
            code = 0 if (empty, status()[0].expected) == ([(0, 0), (0, 0)], 1) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counted(telemetry) == (1, 1)


# In the process ------------------------------------------------------------------------------------------------------


def stood(name: str = "promise") -> Standing:
    return next(one for one in status() if one.slo == name)


def test_the_budget_is_what_the_counters_hold(promised):
    """``status()`` has exactly the numbers that are exported, by series and in sum."""
    telemetry = promised(slo(ARRIVES.sli, group_by="channel"), tenants=("acme", "globex"))
    for number in range(40):
        with rtobs.consume("orders") as hop:
            hop.segment(tenant=("acme", "globex", "initech")[number % 3])
            if number % 7:
                deliver(("sms", "push")[number % 2])
            else:
                deliver("sms", outcome=Outcome.FAILED)
    for instrument, part in ((names.SLO_EXPECTED, "expected"), (names.SLO_GOOD, "good")):
        exported = {
            (labels["tenant"], labels["channel"], labels["connector"]): value
            for labels, value, _ in telemetry.series(instrument)
        }
        shown = {(one.tenant, one.channel, one.connector): getattr(one, part) for one in stood().counts}
        assert shown == exported
        assert getattr(stood(), part) == sum(exported.values())


def test_how_much_is_left(promised, clock: Clock):
    """Two bad of 100 where one may be bad: the budget is overdrawn by as much again."""
    promised(ACK)
    assert stood().left is None
    for number in range(100):
        with rtobs.accept("/x"):
            clock.now += SECOND if number in (3, 5) else 0
    assert stood().left == pytest.approx(-1)
    assert (stood().expected, stood().good, stood().bad) == (100, 98, 2)


def test_what_is_not_due_yet_is_not_bad(promised, clock: Clock):
    """A promised delivery is bad only when its deadline is over, give or take a sixteenth."""
    promised(ARRIVES)
    deliver()
    clock.now += 60 * SECOND
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", count=3)
    assert (stood().expected, stood().bad, stood().left) == (4, 0, 1.0)
    clock.now += 4 * SECOND
    assert stood().bad == 0
    clock.now += round(1.4 * SECOND)
    assert stood().bad == 3
    assert stood().left == pytest.approx(1 - 3 / 4 / 0.01)


def test_a_process_that_only_promises_does_not_judge(promised, clock: Clock):
    """Where deliveries end in other processes, nobody here knows what is left."""
    promised(ARRIVES)
    with rtobs.accept("/x") as hop:
        hop.intend("webhook", count=3)
    clock.now += 60 * SECOND
    assert (stood().expected, stood().left) == (3, None)


def test_without_slos_nothing_is_counted(telemetry):
    """Who declares nothing has no series and no budgets, and pays for no sink."""
    with rtobs.accept("/x"):
        pass
    assert status() == ()
    assert counted(telemetry) == (0, 0)
    assert not telemetry.series(names.SLO_INFO)
    assert len(runtime.sinks) == 3
    assert math.isfinite(telemetry.seconds(names.ACCEPT_DURATION))
