"""Celery's leaf over Redis and RabbitMQ: one hop for a send and one for a run, ended by the state of the task."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
import redis
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Reject
from celery.worker import state
from kombu.messaging import Producer
from opentelemetry.instrumentation.celery import CeleryInstrumentor

import rtobs
import rtobs.integrations
from rtobs import _conventions as names
from rtobs._hop.runtime import runtime
from rtobs.integrations import unwrap
from tests.integrations.adapter import NOWHERE, Place, here, place_of
from tests.support.telemetry import Telemetry, user_provider
from tests.support.timing import scaled, wait_until

SCOPE = "opentelemetry.instrumentation.celery"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Shop:
    """An application with tasks of every ending, and one worker in a thread that runs them."""

    def __init__(self, broker: str, queue: str, **options: Any) -> None:
        self.app = app = rtobs.wrap(Celery(f"shop-{queue}", broker=broker, set_as_current=False), **options)
        app.conf.update(
            task_default_queue=queue, worker_hijack_root_logger=False, worker_redirect_stdouts=False,
            task_ignore_result=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True,
        )  # fmt: skip
        self.queue = queue
        self.seen: list[Place] = []
        self.work: Callable[..., object] = lambda *_: None

        @app.task(name="plain", shared=False, bind=True)
        def plain(task: Any, *args: Any) -> None:
            self.seen.append(here())
            self.work(task, *args)

        @app.task(name="late", shared=False, bind=True, acks_late=True)
        def late(task: Any, *args: Any) -> None:
            self.seen.append(here())
            self.work(task, *args)

        @app.task(name="late.rejecting", shared=False, bind=True, acks_late=True, acks_on_failure_or_timeout=False)
        def rejecting(task: Any, *args: Any) -> None:
            self.work(task, *args)

        @app.task(name="named", shared=False)
        @rtobs.consume("tickets")
        def named() -> None:
            self.seen.append(here())

    def close(self) -> None:
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            if hasattr(channel, "client"):
                channel.client.delete(self.queue)
            else:
                channel.queue_delete(self.queue)
        self.app.close()


@contextlib.contextmanager
def worker(app: Celery) -> Generator[None, None, None]:
    """Run a worker that says nothing, and give the root logger the level back that the worker takes from it."""
    root = logging.getLogger()
    level = root.level
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
            yield
    finally:
        root.setLevel(level)


@pytest.fixture(scope="module", params=["redis", "amqp"])
def running(request: pytest.FixtureRequest, unique: Callable[[str], str]) -> Generator[Shop, None, None]:
    shop = Shop(request.getfixturevalue(f"{request.param}_url"), unique("celery"))
    shop.broker = request.param
    with worker(shop.app):
        yield shop
    shop.close()


@pytest.fixture
def shop(running: Shop, telemetry: Telemetry) -> Shop:
    running.seen.clear()
    running.work = lambda *_: None
    return running


def ran(telemetry: Telemetry, number: int = 1) -> list[Any]:
    """Wait for *number* runs to have ended; return their spans."""
    return wait_until(lambda: len(found := telemetry.spans("consume")) >= number and found, timeout=20)


def settled(telemetry: Telemetry) -> dict[str, int]:
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")


# One hop each --------------------------------------------------------------------------------------------------------


def test_a_task_is_sent_once_and_run_once_in_one_trace(shop, telemetry):
    """A task is one publish and one consume hop of its sender's journey, named by the task."""
    with rtobs.accept("/orders") as hop:
        result = shop.app.tasks["plain"].delay(1)
    (consumed,) = ran(telemetry)
    sent = telemetry.span("publish")
    system = "redis" if shop.broker == "redis" else "rabbitmq"
    assert shop.seen == [place_of(consumed)]
    assert shop.seen[0].correlation_id == hop.correlation_id
    assert consumed.parent.span_id == sent.context.span_id
    assert telemetry.by(names.SENT_MESSAGES, "system", "messaging_destination") == {(system, "plain"): 1}
    assert telemetry.by(names.CONSUMED_MESSAGES, "system", "messaging_destination") == {(system, "plain"): 1}
    assert sent.attributes["messaging.message.id"] == consumed.attributes["messaging.message.id"] == result.id
    assert settled(telemetry) == {"ok": 1}
    assert here() == NOWHERE
    assert len(telemetry.spans()) == 3


def test_wrapped_clients_below_kombu_make_no_second_hop(redis_url, unique, telemetry, monkeypatch):
    """Where every Redis client is wrapped, kombu's too, a task is still one publish and one consume hop."""
    make = redis.Redis.__init__

    def wrapped(client: Any, *args: Any, **options: Any) -> None:
        make(client, *args, **options)
        rtobs.wrap(client)

    monkeypatch.setattr(redis.Redis, "__init__", wrapped)
    shop = Shop(redis_url, unique("celery"))
    with worker(shop.app):
        shop.app.tasks["plain"].delay()
        ran(telemetry)
        assert len(telemetry.spans("publish")) == len(telemetry.spans("consume")) == 1
        assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    shop.close()


def test_user_code_names_the_hops(shop, telemetry):
    """`publish` round the send and `@rtobs.consume` on the task are the same two hops."""
    with rtobs.publish("orders"):
        shop.app.tasks["named"].delay()
    ran(telemetry)
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination") == {"orders": 1}
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 1}


def test_what_a_task_sends_is_in_its_hop(shop, telemetry):
    """A task that sends another is its publisher; the chain is one journey and one trace."""
    shop.work = lambda task, *args: args and shop.app.tasks["plain"].delay()
    with rtobs.accept("/orders") as hop:
        shop.app.tasks["plain"].delay(1)
    first, second = ran(telemetry, 2)
    assert [place.correlation_id for place in shop.seen] == [hop.correlation_id] * 2
    assert second.context.trace_id == first.context.trace_id
    assert "rtobs.attempt" not in second.attributes  # the same task, another message


def test_a_chain_is_one_journey(shop, telemetry):
    """What a canvas sends on, after its task has returned, is still of that task's journey."""
    plain = shop.app.tasks["plain"]
    with rtobs.accept("/orders") as hop:
        (plain.si(1) | plain.si(2)).delay()
    ran(telemetry, 2)
    assert [place.correlation_id for place in shop.seen] == [hop.correlation_id] * 2


def test_an_eager_task_is_its_callers_own_work(shop, telemetry):
    """A task that is applied in place has no message, so it opens no hop."""
    with rtobs.accept("/orders"):
        shop.app.tasks["plain"].apply()
        assert shop.seen == [here()]
    assert [span.attributes["rtobs.hop"] for span in telemetry.spans()] == ["accept"]


# Sending -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "nobody.knows"])
def test_a_send_span_covers_the_real_send(shop, telemetry, monkeypatch, name):
    """A publish that takes 300 ms is a span of 300 ms, whether this process has the task or not."""
    send = Producer._publish

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return send(*args, **options)

    monkeypatch.setattr(Producer, "_publish", slow)
    shop.app.send_task(name)
    span = telemetry.span("publish")
    assert 0.3 <= (span.end_time - span.start_time) / 1e9 < 3
    ran(telemetry)


def test_a_send_that_fails_is_a_failed_hop(telemetry):
    """Where no broker answers, the client's own exception goes on, and the hop has failed with its name."""
    app = rtobs.wrap(Celery("nowhere", broker="amqp://guest@127.0.0.1:9//", set_as_current=False))
    app.conf.broker_transport_options = {"max_retries": 1}
    with pytest.raises(Exception) as caught:  # noqa: PT011  kombu's own
        app.send_task("plain", retry=False)
    error = type(caught.value).__qualname__
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination", "error_type") == {("plain", error): 1}
    assert telemetry.span("publish").attributes["rtobs.error_category"] == "transport"
    app.close()


@pytest.mark.parametrize("size", [1000, 129_000])
def test_a_send_never_fails_because_of_our_headers(shop, telemetry, size):
    """A task whose headers nearly fill RabbitMQ's frame is sent without ours rather than not at all."""
    shop.app.send_task("plain", headers={"x-pad": "y" * size})
    ran(telemetry)
    expected = int(size > 100_000 and shop.broker == "amqp")
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason").get("too_long", 0) == expected


def test_the_callers_headers_stay_and_arrive(shop, telemetry):
    """Headers of the caller's are not changed, and a task finds them beside ours."""
    found: list[Any] = []
    shop.work = lambda task: found.append(dict(task.request.headers))
    headers = {"x-shop": "Zürich ✓"}
    shop.app.send_task("plain", headers=headers)
    ran(telemetry)
    assert headers == {"x-shop": "Zürich ✓"}
    assert found[0]["x-shop"] == "Zürich ✓"
    assert names.JOURNEY in found[0]


# How a run ends ------------------------------------------------------------------------------------------------------


def _retry(task: Any) -> None:
    raise task.retry(exc=ConnectionResetError("gone"), countdown=0, max_retries=2)


def _raise(error: BaseException) -> Callable[..., None]:
    def work(*_: Any) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("task", "work", "outcomes", "category"),
    [
        ("plain", _raise(ConnectionResetError("gone")), {"failed": 1}, "transport"),
        ("plain", _raise(UnicodeError("bad")), {"rejected": 1}, "validation"),
        ("plain", _retry, {"retried": 2, "failed": 1}, "transport"),
        ("plain", _raise(Ignore()), {"dropped": 1}, None),
        ("plain", _raise(Reject("no", requeue=False)), {"failed": 1}, "internal"),
        ("late", _raise(ConnectionResetError("gone")), {"failed": 1}, "transport"),
        ("late", _retry, {"retried": 2, "failed": 1}, "transport"),
        ("late", _raise(Reject(ConnectionResetError("gone"), requeue=False)), {"dropped": 1}, "transport"),
        ("late.rejecting", _raise(ConnectionResetError("gone")), {"dropped": 1}, "transport"),
    ],
)
def test_the_state_of_a_task_ends_its_hop(shop, telemetry, task, work, outcomes, category):  # noqa: PLR0917  fixtures and cases
    """Success, failure, retry, ignore and reject end a hop as the message is settled, with the task's own error."""
    shop.work = work
    shop.app.tasks[task].delay()
    spans = ran(telemetry, sum(outcomes.values()))
    assert settled(telemetry) == outcomes
    assert {span.attributes.get("rtobs.error_category") for span in spans} == {category}
    attempts = [span.attributes.get("rtobs.attempt", 1) for span in spans]
    assert attempts == list(range(1, len(spans) + 1))


def test_a_requeued_message_comes_back(shop, telemetry):
    """A task that rejects its message for another worker is retried, and redelivered as its second attempt."""

    def work(task: Any) -> None:
        if not task.request.delivery_info.get("redelivered"):
            raise Reject("later", requeue=True)

    shop.work = work
    shop.app.tasks["late"].delay()
    spans = ran(telemetry, 2)
    assert settled(telemetry) == {"retried": 1, "ok": 1}
    assert [span.attributes.get("rtobs.attempt", 1) for span in spans] == [1, 2]


def test_a_promise_is_kept_by_the_last_try(shop, telemetry):
    """A delivery that fails, is retried and then works is one promise, three attempts and one outcome."""

    def work(task: Any) -> None:
        @rtobs.deliver("webhook", "acme")
        def post() -> None:
            if task.request.retries < 2:
                raise ConnectionResetError("gone")

        try:
            post()
        except ConnectionResetError as error:
            raise task.retry(exc=error, countdown=0) from error

    shop.work = work
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook")
        shop.app.tasks["plain"].delay()
    ran(telemetry, 3)
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 2, "ok": 1}
    assert telemetry.by(names.OUTCOMES, "outcome") == {"ok": 1}


def test_an_eta_is_no_lag(shop, telemetry):
    """A task that was due later waits from then on, not from when it was sent."""
    wait = scaled(1.5)
    shop.app.tasks["plain"].apply_async(countdown=wait)
    (span,) = ran(telemetry)
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"release": 1}
    assert 0 <= span.attributes["rtobs.lag"] < wait


@pytest.mark.parametrize("by", ["countdown", "eta"])
def test_what_is_sent_for_later_is_expected_when_it_is_due(redis_url, unique, promised, monkeypatch, by):
    """A promise that leaves with a task of later is counted at once and expected from its eta on."""
    shop = Shop(redis_url, unique("celery"))
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "a")
        due = 3600 if by == "countdown" else dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        shop.app.tasks["plain"].apply_async(**{by: due})
    assert (promised.count(names.INTENTS), promised.count(names.SLO_EXPECTED)) == (1, 0)
    now = time.time_ns()
    monkeypatch.setattr(runtime, "wall_ns", lambda: now + 3500 * 1_000_000_000)
    assert promised.count(names.SLO_EXPECTED) == 0
    monkeypatch.setattr(runtime, "wall_ns", lambda: now + 3602 * 1_000_000_000)
    assert promised.count(names.SLO_EXPECTED) == 1
    shop.close()


# What never runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_task_that_is_not_run_any_more_ends_its_promise(shop, telemetry, how):
    """A revoked task drops the one promise of its message, an expired one lets it expire; each is consumed once."""
    options: dict[str, Any] = {"task_id": "task-revoked"}
    if how == "revoked":
        state.revoked.add("task-revoked")
    else:  # it expires while another runs
        shop.work = lambda *_: time.sleep(0.5)
        shop.app.tasks["plain"].delay()
        options = {"expires": dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.1)}
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook")
        with rtobs.publish("orders", channel="webhook"):
            shop.app.tasks["named"].apply_async(**options)
    outcome = "dropped" if how == "revoked" else "expired"
    wait_until(lambda: settled(telemetry).get(outcome), timeout=10)
    assert telemetry.by(names.OUTCOMES, "channel", "outcome") == {("webhook", outcome): 1}
    span = next(span for span in telemetry.spans("consume") if span.attributes["rtobs.outcome"] == outcome)
    assert span.attributes["rtobs.reason"] == how
    assert span.attributes["rtobs.correlation_id"] == hop.correlation_id


def test_a_task_that_nobody_knows_is_rejected(shop, telemetry):
    """A message for a task that the worker does not have is one consume hop that was rejected."""
    shop.app.send_task("nobody.knows")
    (span,) = ran(telemetry)
    assert span.name == "consume nobody.knows"
    assert span.attributes["error.type"] == "NotRegistered"
    assert settled(telemetry) == {"dropped": 1}


# Options, and undoing ------------------------------------------------------------------------------------------------


def test_a_task_of_an_unwrapped_application_begins_a_journey(shop, telemetry):
    """What an application sends that nobody wrapped is run in a journey of its own, counted as without one."""
    other = Celery("other", broker=shop.app.conf.broker_url, set_as_current=False)
    other.conf.task_default_queue = shop.queue
    other.send_task("plain")
    ran(telemetry)
    assert len(shop.seen[0].correlation_id) == 32
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"plain": 1}
    other.close()


def test_an_unwrapped_application_sends_and_is_left_alone(shop, telemetry):
    """After `unwrap` an application sends without us, and wrapping again is wrapping once."""
    app = rtobs.wrap(rtobs.wrap(Celery("again", broker=shop.app.conf.broker_url, set_as_current=False)))
    app.conf.task_default_queue = shop.queue
    app.send_task("plain")
    ran(telemetry)
    assert telemetry.count(names.SENT_MESSAGES) == 1
    assert type(unwrap(app)) is Celery
    app.close()


def test_a_queue_is_watched_through_the_broker(shop, telemetry, unique):
    """`watch` of an application tells how many tasks wait, also where the queue is empty."""
    queue = unique("waiting")
    for number in range(2):
        shop.app.send_task("plain", args=[number], queue=queue)
    watch = rtobs.integrations.watch(shop.app, [queue, shop.queue], interval=0.1)
    try:
        wait_until(lambda: telemetry.series(names.QUEUE_DEPTH, destination=queue), timeout=10)
        assert telemetry.series(names.QUEUE_DEPTH, destination=queue)[0][1] == 2
        wait_until(lambda: telemetry.series(names.QUEUE_DEPTH, destination=shop.queue), timeout=10)
        assert telemetry.series(names.QUEUE_DEPTH, destination=shop.queue)[0][1] == 0
    finally:
        watch.stop()
        with shop.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)


# Beside OpenTelemetry's own instrumentation --------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_contribs_spans_are_the_hops(shop, telemetry, fails):
    """Where contrib's instrumentation came later, its two spans carry our facts, and we make none of our own."""
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=user_provider(), skip_dep_check=True)
    try:
        if fails:
            shop.work = _raise(ConnectionResetError("gone"))
        with rtobs.accept("/orders") as hop:
            shop.app.tasks["plain"].delay()
        wait_until(lambda: settled(telemetry), timeout=10)
        theirs = wait_until(
            lambda: len(f := [s for s in telemetry.spans() if s.instrumentation_scope.name == SCOPE]) == 2 and f
        )
    finally:
        instrumentor.uninstrument()
    sent, handled = sorted(theirs, key=lambda span: span.kind.name, reverse=True)
    assert shop.seen == [place_of(handled)]
    for span, kind in ((sent, "publish"), (handled, "consume")):
        expected = {"rtobs.hop": kind, "rtobs.correlation_id": hop.correlation_id}
        assert expected.items() <= span.attributes.items()
    assert handled.parent.span_id == sent.context.span_id
    assert handled.attributes["rtobs.outcome"] == ("failed" if fails else "ok")
    ours = [span for span in telemetry.spans() if span.instrumentation_scope.name != SCOPE]
    assert [span.attributes["rtobs.hop"] for span in ours] == ["accept"]


def test_our_receiver_is_the_first_at_the_end(shop):
    """Whoever listened before or after, a hop ends before others hear that its task has."""
    assert signals.task_postrun.receivers[0][1].__module__ == "rtobs.integrations._celery_worker"
