"""examples/fastapi_rabbitmq: its processes on the live broker, started, broken and read as its README says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import pytest

from rtobs._journey.journey import intent_id
from tests.examples.support import PATIENCE, Example
from tests.support.http import free_port, is_up
from tests.support.timing import scaled, wait_until

TRIES = 4
SERVICES = ("api.py", "router.py", "connector.py")

pytestmark = pytest.mark.slow


class Platform(Example):
    """The example's processes, and what they print."""

    def __init__(self, logs: Path, amqp_url: str, prefix: str) -> None:
        self.port, self.webhooks = free_port(), free_port()
        self.queues = [prefix + name for name in ("notifications", "webhooks", "dead")]
        super().__init__(
            "fastapi_rabbitmq", logs, AMQP_URL=amqp_url, QUEUE_PREFIX=prefix, RETRY_PAUSE=str(scaled(0.05)),
            WEBHOOK_URL=f"http://127.0.0.1:{self.webhooks}", PORT=str(self.port),
        )  # fmt: skip

    def events(self, correlation_id: str) -> list[dict[str, Any]]:
        """All log events of one journey, oldest first."""
        return [event for event in self.told(*SERVICES) if event["correlation_id"] == correlation_id]

    def events_until(self, correlation_id: str, name: str, count: int) -> list[dict[str, Any]]:
        self.told_until(SERVICES, count, correlation_id=correlation_id, event=name)
        return self.events(correlation_id)

    def named(self, correlation_id: str, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events(correlation_id) if event["event"] == name]

    def post(self, **changes: str) -> str:
        """Send the notification that the README sends; return the correlation id that it prints."""
        [(_, _, body, url)] = [command.words for command in self.commands if command.words[:2] == ["curl", "--json"]]
        here = httpx.URL(url).copy_with(port=self.port)
        answer = httpx.post(here, json=json.loads(body) | changes, timeout=PATIENCE)
        assert answer.status_code == 202, answer.text
        correlation_id = answer.json()["correlation_id"]
        self.told_until(SERVICES, 1, correlation_id=correlation_id, event="notification_accepted")
        return correlation_id

    @contextmanager
    def subscriber(self, *arguments: str) -> Generator[None, None, None]:
        """Run the subscriber as the README does."""
        command = self.written("python", "subscriber.py", *arguments)
        process = self.start(*command.words[1:], PORT=str(self.webhooks))
        try:
            wait_until(lambda: is_up(self.webhooks), PATIENCE)
            yield
        finally:
            self.end(process)


async def waiting(url: str, queue: str) -> int:
    """Return how many messages are in *queue*."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0


async def delete(url: str, queues: list[str]) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in queues:
            await channel.queue_delete(queue)


@pytest.fixture(scope="module")
def example(
    amqp_url: str, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Platform, None, None]:
    """The API, the router and the connector, each a process; the subscriber is up to each test."""
    found = Platform(tmp_path_factory.mktemp("example"), amqp_url, unique("example") + ".")
    try:
        for program in ("connector.py", "router.py", "api.py"):
            found.start(program)
        wait_until(lambda: is_up(found.port), PATIENCE)
        yield found
    finally:
        found.stop()
        asyncio.run(delete(amqp_url, found.queues))


def test_one_correlation_id_goes_all_the_way(example):
    """What the API answers with is the id, the trace and the tenant of both deliveries, each of which was promised."""
    with example.subscriber():
        cid = example.post()
        found = example.events_until(cid, "webhook_delivered", 2)
    assert sorted((event["service"], event["event"]) for event in found) == [
        ("api", "notification_accepted"), *[("connector", "webhook_delivered")] * 2,
    ]  # fmt: skip
    assert {event["tenant_id"] for event in found} == {"acme"}
    assert {event["trace_id"] for event in found} == {cid}
    assert {(event["subscriber"], event["event_id"]) for event in found if event["service"] == "connector"} == {
        (subscriber, intent_id(cid, "webhook", subscriber)) for subscriber in ("billing", "crm")
    }
    assert example.printed("subscriber.py").count("Invoice 7 is due") == 2


def test_a_subscriber_in_trouble_is_tried_again_and_then_given_up(example, amqp_url):
    """With a subscriber that answers 503 the log explains each try, the dead letter and why, under the one id."""
    with example.subscriber("503"):
        cid = example.post()
        found = example.events_until(cid, "consume.dead_lettered", 2)
    for subscriber in ("billing", "crm"):
        promise = intent_id(cid, "webhook", subscriber)
        story = [event for event in found if event.get("event_id") == promise]
        assert [event["event"] for event in story] == [
            *["deliver.failed", "consume.retried"] * (TRIES - 1), "deliver.failed", "consume.dead_lettered",
        ]  # fmt: skip
        tries = [event for event in story if event["event"] == "deliver.failed"]
        assert [event["retry_count"] for event in tries] == [*range(TRIES)]
        assert {(event["error_category"], event["reason"], event["subscriber"]) for event in tries} == {
            ("unavailable", "503", subscriber)
        }
        assert {event["server.port"] for event in tries} == {example.webhooks}
        assert story[-1]["reason"] == "tries_used_up"
    assert {event["tenant_id"] for event in found} == {"acme"}
    wait_until(lambda: asyncio.run(waiting(amqp_url, example.queues[2])) >= 2, PATIENCE)


def test_a_subscriber_that_is_gone_is_not_tried_again(example):
    """With a subscriber that answers 410 there is one failed try for each, with the category that says why."""
    with example.subscriber("410"):
        cid = example.post()
        example.events_until(cid, "deliver.failed", 2)
        later = example.post(tenant="globex")
        example.events_until(later, "deliver.failed", 1)  # whatever was still to come for the first has come by now
    tries = example.named(cid, "deliver.failed")
    assert len(tries) == 2
    assert {(event["error_category"], event["reason"]) for event in tries} == {("recipient", "410")}
    assert example.named(cid, "consume.retried") == []


def test_nobody_listening_is_a_failure_of_the_transport(example):
    """Without a subscriber each try fails in the transport, until the messages are dead letters."""
    cid = example.post()
    example.events_until(cid, "consume.dead_lettered", 2)
    tries = example.named(cid, "deliver.failed")
    assert len(tries) == 2 * TRIES
    assert {(event["error_category"], event["reason"]) for event in tries} == {("transport", "ConnectError")}


def test_a_tenant_without_subscribers_is_told_of(example):
    """Where nobody is to be told the router says so, under the id that the API gave out."""
    cid = example.post(tenant="initech")
    found = example.events_until(cid, "nobody_subscribed", 1)
    assert {(event["service"], event["event"]) for event in found} == {
        ("api", "notification_accepted"),
        ("router", "nobody_subscribed"),
    }


def test_what_is_no_notification_is_refused(example):
    """A body that FastAPI refuses is a failed accept with the category and the route."""
    answer = httpx.post(f"http://127.0.0.1:{example.port}/notifications", json={"tenant": 1}, timeout=PATIENCE)
    assert answer.status_code == 422

    def refused() -> list[Any]:
        found = [json.loads(line) for line in example.printed("api.py").rpartition("\n")[0].splitlines()]
        return [event for event in found if event["event"] == "accept.failed"]

    [event] = wait_until(refused, PATIENCE)
    assert (event["destination"], event["error_category"], event["reason"]) == ("/notifications", "validation", "422")
