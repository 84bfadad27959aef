"""examples/jetstream_connector: its processes on the live NATS, run, broken and mended as in the README."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import nats
import pytest

from rtobs._journey.journey import intent_id
from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Labels, Span, Telemetry
from tests.examples.support import PATIENCE, Example, alike, metrics, tree
from tests.support.http import free_port, is_up
from tests.support.timing import scaled, wait_until

TRIES = 4
PAUSE = scaled(0.1)
CONNECTOR = ("connector.py",)

pytestmark = pytest.mark.slow


class Shop(Example):
    """The connector, its vendor and whoever submits tickets."""

    def __init__(self, logs: Path, nats_url: str, prefix: str, otlp: str, store: Telemetry) -> None:
        self.store, self.url, self.prefix = store, nats_url, prefix
        self.vendor_port, self.metrics_port = free_port(), free_port()
        super().__init__(
            "jetstream_connector", logs, NATS_URL=nats_url, SUBJECT_PREFIX=prefix, RETRY_PAUSE=str(PAUSE),
            PORT=str(self.vendor_port), VENDOR_URL=f"http://127.0.0.1:{self.vendor_port}",
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp, OTEL_BSP_SCHEDULE_DELAY="100", OTEL_METRIC_EXPORT_INTERVAL="200",
        )  # fmt: skip

    def connect(self) -> subprocess.Popen[bytes]:
        """Start the connector as the README does, and let it export too."""
        settings = self.written("python", "connector.py").environment
        exporters = settings["OTEL_METRICS_EXPORTER"] + ",otlp"
        port = str(self.metrics_port)
        return self.start("connector.py", OTEL_METRICS_EXPORTER=exporters, OTEL_EXPORTER_PROMETHEUS_PORT=port)

    @contextmanager
    def vendor(self, *statuses: str) -> Generator[None, None, None]:
        """Run the vendor as the README does."""
        process = self.start(*self.written("python", "vendor.py", *statuses).words[1:])
        try:
            wait_until(lambda: is_up(self.vendor_port), PATIENCE)
            yield
        finally:
            self.end(process)

    def submit(self, title: str) -> str:
        """Submit a ticket as the README does; return its correlation id."""
        self.run(*self.written("python", "submit.py", title).words[1:])
        [event] = [event for event in self.told("submit.py") if event["title"] == title]
        return event["correlation_id"]

    def events(self, correlation_id: str) -> list[dict[str, Any]]:
        """Return what the connector has told of one journey."""
        return [event for event in self.told(*CONNECTOR) if event["correlation_id"] == correlation_id]

    def scraped(self, series: str) -> list[str]:
        """Return the lines of the connector's metrics once *series* is one of them."""

        def scrape() -> list[str]:
            lines = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=PATIENCE).text.splitlines()
            return lines if series in lines else []

        return wait_until(scrape, PATIENCE)

    def shown_here(self, containing: str) -> str:
        """Return a text block of the README, with the names of this run."""
        return self.shown("text", containing).replace("example", self.prefix)

    def hops(self, correlation_id: str, count: int) -> list[Span]:
        """Return the spans of a journey once it has *count* hops."""
        found = wait_until(
            lambda: self._hops(correlation_id)[count - 1 :] and self.store.journey(correlation_id), PATIENCE
        )
        assert len(self._hops(correlation_id)) == count
        return found

    def _hops(self, correlation_id: str) -> list[Span]:
        return [span for span in self.store.journey(correlation_id) if span.hop]


async def delete(url: str, streams: list[str]) -> None:
    async with await nats.connect(url) as client:
        for stream in streams:
            await client.jetstream().delete_stream(stream)


@pytest.fixture(scope="module")
def shop(
    nats_url: str, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Shop, None, None]:
    """The connector; the vendor is up to each test."""
    with Receiver(store := Telemetry()) as receiver:
        found = Shop(tmp_path_factory.mktemp("shop"), nats_url, unique("shop"), receiver.endpoint, store)
        try:
            found.connect()
            yield found
        finally:
            found.stop()
            asyncio.run(delete(nats_url, [f"{found.prefix}-tickets", f"{found.prefix}-dead"]))


class Story(NamedTuple):
    """What the README tells, as it went: the correlation ids of its tickets, and the metrics it looks at."""

    printer: str
    mouse: str
    screen: str
    broken: list[str]
    mended: list[str]
    totals: dict[str, dict[Labels, float]]
    """What all processes had counted then, by instrument."""


@pytest.fixture(scope="module")
def story(shop: Shop) -> Story:
    """A vendor that hesitates, one that refuses, none at all; then one that is well, and the dead letters once more."""
    with shop.vendor("503", "429", "201"):
        printer = shop.submit("printer")
        shop.told_until(CONNECTOR, 1, event="consume.ok", correlation_id=printer)
    with shop.vendor("422"):
        mouse = shop.submit("mouse")
        shop.told_until(CONNECTOR, 1, event="consume.dead_lettered", correlation_id=mouse)
    screen = shop.submit("screen")
    shop.told_until(CONNECTOR, 1, event="consume.dead_lettered", correlation_id=screen)
    broken = shop.scraped(*metrics(shop.shown_here("rtobs_queue_depth"))[-1:])
    with shop.vendor():
        shop.run(*shop.written("python", "replay.py").words[1:])
        mended = shop.scraped(*metrics(shop.shown_here("rtobs_delivery_recovered_total")))
    wait_until(lambda: shop.store.total("rtobs.delivery.recovered", channel="connector") == 2, PATIENCE)
    totals = {name: shop.store.series(f"rtobs.delivery.{name}") for name in ("intents", "attempts", "outcomes")}
    return Story(printer, mouse, screen, broken, mended, totals)


def test_a_vendor_that_hesitates_is_asked_again(shop, story):
    """Each refused try says why and that the ticket comes back, the last one that it has recovered, under one id."""
    found = [(event["event"], event["retry_count"], event["error_category"]) for event in shop.events(story.printer)]
    assert found == [
        ("deliver.failed", 0, "unavailable"), ("consume.retried", 0, ""),
        ("deliver.failed", 1, "rate_limited"), ("consume.retried", 1, ""),
        ("consume.ok", 2, ""),
    ]  # fmt: skip
    promise = intent_id(story.printer, "connector", "printer")
    assert {(event["event_id"], event["tenant_id"], event["trace_id"]) for event in shop.events(story.printer)} == {
        (promise, "acme", story.printer)
    }
    assert alike(json.loads(shop.shown("json", "deliver.failed")), shop.events(story.printer)[0])


def test_the_pause_is_what_the_connector_or_the_vendor_asks_for(shop, story):
    """Pauses double from try to try, and a Retry-After of the vendor goes before them."""
    assert _pauses(shop.events(story.printer))[0] >= PAUSE
    refused = shop.events(story.printer)[2]
    assert refused["rtobs.retry_after"] == 1
    assert _pauses(shop.events(story.printer))[1] >= 1
    assert all(pause >= PAUSE * 2**number for number, pause in enumerate(_pauses(shop.events(story.screen))))


def _pauses(events: list[dict[str, Any]]) -> list[float]:
    """Return the seconds between handling a ticket and handling it again."""
    handled = [event for event in events if event["event"].startswith("consume.")]
    ended = [datetime.fromisoformat(event["timestamp"]).timestamp() for event in handled]
    begun = [end - event["duration_s"] for end, event in zip(ended, handled, strict=True)]
    return [after - before + 0.002 for before, after in zip(ended, begun[1:], strict=False)]  # timestamps are rounded


def test_what_the_vendor_refuses_for_good_is_a_dead_letter_at_once(shop, story):
    """A ticket that another try would not mend has one attempt, and one dead letter that says what it died of."""
    failed, dead = shop.events(story.mouse)[:2]
    assert (failed["event"], failed["error_category"], failed["reason"]) == ("deliver.failed", "validation", "422")
    assert (dead["event"], dead["reason"], dead["died_of"]) == ("consume.dead_lettered", "terminated", "422")


def test_a_dead_letter_and_its_replay_are_one_trace(shop, story):
    """From submission over dead letter and replay to the vendor at last: the parents that the README shows."""
    spans = shop.hops(story.mouse, 9)
    assert {span.trace_id for span in spans} == {story.mouse}
    promise = intent_id(story.mouse, "connector", "mouse")
    delivered = [span for span in spans if span.name in (f"consume {shop.prefix}.tickets", "deliver connector vendor")]
    assert [span.text("rtobs.intent_id") for span in delivered] == [promise] * 4
    assert tree(spans, "died_of") == shop.shown_here("consume example.dead")


def test_a_vendor_that_does_not_answer_is_tried_until_the_tries_are_used_up(shop, story):
    """Nobody listening is the category transport, attempt by attempt as the broker counts them, then a dead letter."""
    tries = [event for event in shop.events(story.screen) if event["event"] == "deliver.failed"]
    assert [(event["retry_count"], event["error_category"], event["reason"]) for event in tries] == [
        (number, "transport", "ConnectError") for number in range(TRIES)
    ]
    [dead] = [event for event in shop.events(story.screen) if event["event"] == "consume.dead_lettered"]
    assert (dead["retry_count"], dead["died_of"]) == (TRIES - 1, "ConnectError")


def test_every_promise_has_one_outcome_and_a_replay_adds_none(shop, story):
    """Promises, attempts and outcomes of the channel add up by category, dead letters that came through included."""

    def counted(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        found = {tuple(dict(each).get(label, "") for label in labels): n for each, n in story.totals[name].items()}
        assert {dict(each)["channel"] for each in story.totals[name]} == {"connector"}
        return found

    assert counted("intents", "tenant") == {("acme",): 3}
    assert counted("outcomes", "outcome", "error_category", "tenant") == {
        ("ok", "", "acme"): 1, ("dead_lettered", "validation", "acme"): 1, ("dead_lettered", "transport", "acme"): 1,
    }  # fmt: skip
    assert counted("attempts", "result", "error_category") == {
        ("ok", ""): 3, ("failed", "unavailable"): 1, ("failed", "rate_limited"): 1, ("failed", "validation"): 1,
        ("failed", "transport"): TRIES,
    }  # fmt: skip


@pytest.mark.parametrize(("moment", "containing"), [("broken", "rtobs_queue_depth"), ("mended", "recovered")])
def test_the_readme_shows_what_a_scrape_shows(shop, story, moment, containing):
    """The series in the README, dead letters that wait among them, are the connector's, letter by letter."""
    shown = metrics(shop.shown_here(containing))
    assert shown
    assert set(shown) <= set(getattr(story, moment))


@pytest.fixture
def stopped(shop: Shop, story: Story) -> Generator[None, None, None]:
    """The connector is down until the test starts it again."""
    [running] = [process for process in shop.running if "connector.py" in process.args and process.poll() is None]
    shop.end(running)
    with shop.vendor():
        yield


def test_a_connector_that_was_down_knows_how_old_and_how_often_tried_a_ticket_is(shop, stopped):
    """What waits is promised, as old as the broker's clock says where it has no headers, and given up by its count."""
    promised = shop.store.total("rtobs.delivery.intents", tenant="acme")
    missing = shop.store.total("rtobs.propagation.missing")
    shop.run("submit.py", "cable")
    wait_until(lambda: shop.store.total("rtobs.delivery.intents", tenant="acme") == promised + 1, PATIENCE)
    asyncio.run(take_and_be_killed(shop.url, f"{shop.prefix}-tickets", TRIES))
    before = time.time()
    shop.run(*shop.written("python", "legacy.py", "keyboard").words[1:])
    after = time.time()
    started = time.time() + scaled(0.3)
    time.sleep(scaled(0.3))
    shop.connect()
    [waited] = wait_until(lambda: _unknown(shop), PATIENCE)
    ended = time.time()
    assert waited.text("rtobs.lag_source") == "broker"
    assert started - after <= waited.number("rtobs.lag") <= ended - before
    wait_until(lambda: shop.store.total("rtobs.propagation.missing") == missing + 1, PATIENCE)
    [dead] = shop.told_until(CONNECTOR, 1, event="consume.dead_lettered", died_of="tries_used_up")
    assert dead["retry_count"] == TRIES
    outcomes = {"provider": "none", "outcome": "dead_lettered", "tenant": "acme"}
    wait_until(lambda: shop.store.total("rtobs.delivery.outcomes", **outcomes) == 1, PATIENCE)
    assert shop.store.total("rtobs.delivery.intents", tenant="acme") == promised + 1


async def take_and_be_killed(url: str, stream: str, times: int) -> None:
    """Use up a ticket's deliveries: what becomes of a connector that is killed each time, without the wait for it."""
    async with await nats.connect(url) as client:
        tickets = await client.jetstream().pull_subscribe_bind("connector", stream)
        for _ in range(times):
            [message] = await tickets.fetch(1, timeout=PATIENCE)
            await message.nak()


def _unknown(shop: Shop) -> list[Span]:
    """Return the consume spans of tickets that nobody's journey brought."""
    return [
        span for spans in shop.store.journeys.values() for span in spans if span.hop == "consume" and not span.parent_id
    ]


def test_a_ticket_that_cannot_be_read_is_a_dead_letter_at_once(shop):
    """What is no ticket is kept as it is with the reason, and the connector goes on."""

    async def exchange() -> tuple[bytes, str, str]:
        async with await nats.connect(shop.url) as client:
            streams = client.jetstream()
            await streams.publish(f"{shop.prefix}.tickets", b"no ticket", headers={"Priority": "high"})
            wait_until(
                lambda: [event for event in shop.told(*CONNECTOR) if event.get("died_of") == "unreadable"], PATIENCE
            )
            letter = await streams.get_last_msg(f"{shop.prefix}-dead", f"{shop.prefix}.dead")
            return letter.data, letter.headers["Priority"], letter.headers["Died-Of"]

    assert asyncio.run(exchange()) == (b"no ticket", "high", "unreadable")
    [event] = [event for event in shop.told(*CONNECTOR) if event.get("died_of") == "unreadable"]
    assert (event["event"], event["stage"], event["retry_count"]) == ("consume.dead_lettered", "normalize", 0)
