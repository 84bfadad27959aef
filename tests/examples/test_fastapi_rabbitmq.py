"""examples/fastapi_rabbitmq: its processes on the live broker, started, broken and read as its README says."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import pytest

from rtobs._journey.journey import intent_id
from tests.support import pages
from tests.support.http import free_port, is_up
from tests.support.timing import scaled, wait_until

FOLDER = pages.ROOT / "examples" / "fastapi_rabbitmq"
README = FOLDER / "README.md"
PATIENCE = 30
TRIES = 4

pytestmark = pytest.mark.slow


def commands() -> list[list[str]]:
    """Every command of the README, as its words."""
    lines = [line for block in pages.blocks(README) if block.language == "sh" for line in block.text.splitlines()]
    return [shlex.split(line) for line in lines]


class Example:
    """The example's processes, and what they print."""

    def __init__(self, folder: Path, amqp_url: str, prefix: str) -> None:
        self.folder = folder
        self.port, self.webhooks = free_port(), free_port()
        self.queues = [prefix + name for name in ("notifications", "webhooks", "dead")]
        settings = {
            "AMQP_URL": amqp_url, "QUEUE_PREFIX": prefix, "RETRY_PAUSE": str(scaled(0.05)),
            "WEBHOOK_URL": f"http://127.0.0.1:{self.webhooks}",
        }  # fmt: skip
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self._environment = {**plain, **settings}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        port = self.webhooks if program == "subscriber.py" else self.port
        with (self.folder / f"{program}.log").open("ab") as output:
            started = subprocess.Popen(
                [sys.executable, "-W", "error::ResourceWarning", program, *arguments], cwd=FOLDER, stdout=output,
                stderr=subprocess.STDOUT, env={**self._environment, "PORT": str(port)},
            )  # fmt: skip
        self._running.append(started)
        return started

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(PATIENCE)

    def printed(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text(encoding="utf-8")

    def events(self, correlation_id: str) -> list[dict[str, Any]]:
        """All log events of one journey, oldest first; any other line that a program of ours printed is an error."""
        lines = [line for name in ("api", "router", "connector") for line in self.printed(f"{name}.py").splitlines()]
        found = [json.loads(line) for line in lines]
        return sorted((e for e in found if e["correlation_id"] == correlation_id), key=lambda e: e["timestamp"])

    def events_until(self, correlation_id: str, name: str, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: self.named(correlation_id, name)[count - 1 :], PATIENCE)
        return self.events(correlation_id)

    def named(self, correlation_id: str, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events(correlation_id) if event["event"] == name]

    def post(self, **changes: str) -> str:
        """Send the notification that the README sends; return the correlation id that it prints."""
        [(_, _, body, url)] = [words for words in commands() if words[:2] == ["curl", "--json"]]
        here = httpx.URL(url).copy_with(port=self.port)
        answer = httpx.post(here, json=json.loads(body) | changes, timeout=PATIENCE)
        assert answer.status_code == 202, answer.text
        return answer.json()["correlation_id"]

    @contextmanager
    def subscriber(self, *arguments: str) -> Generator[None, None, None]:
        process = self.start("subscriber.py", *arguments)
        try:
            wait_until(lambda: is_up(self.webhooks), PATIENCE)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


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
) -> Generator[Example, None, None]:
    """The API, the router and the connector, each a process; the subscriber is up to each test."""
    found = Example(tmp_path_factory.mktemp("example"), amqp_url, unique("example") + ".")
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
    assert [event["event"] for event in found] == ["notification_accepted", "webhook_delivered", "webhook_delivered"]
    assert [event["service"] for event in found] == ["api", "connector", "connector"]
    assert {event["tenant_id"] for event in found} == {"acme"}
    assert {event["trace_id"] for event in found} == {cid}
    assert {(event["subscriber"], event["event_id"]) for event in found[1:]} == {
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
        found = example.events_until(cid, "deliver.failed", 2)
        later = example.post(tenant="globex")
        example.events_until(later, "deliver.failed", 1)  # whatever was still to come for the first has come by now
    assert [event["event"] for event in found[1:]] == ["deliver.failed"] * 2
    assert {(event["error_category"], event["reason"]) for event in found[1:]} == {("recipient", "410")}
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
    assert [(event["service"], event["event"]) for event in found] == [
        ("api", "notification_accepted"),
        ("router", "nobody_subscribed"),
    ]


def test_what_is_no_notification_is_refused(example):
    """A body that FastAPI refuses is a failed accept with the category and the route."""
    answer = httpx.post(f"http://127.0.0.1:{example.port}/notifications", json={"tenant": 1}, timeout=PATIENCE)
    assert answer.status_code == 422

    def refused() -> list[Any]:
        found = [json.loads(line) for line in example.printed("api.py").splitlines()]
        return [event for event in found if event["event"] == "accept.failed"]

    [event] = wait_until(refused, PATIENCE)
    assert (event["destination"], event["error_category"], event["reason"]) == ("/notifications", "validation", "422")


# What the README and the programs promise ----------------------------------------------------------------------------


def test_the_readme_starts_and_breaks_what_is_there():
    """The README starts this folder's programs, installs from a file that is there, and needs make, pip and curl."""
    started = [" ".join(words[1:]) for words in commands() if words[0] == "python" and words[1] != "-m"]
    broken = ["subscriber.py 503", "subscriber.py 410"]
    assert started == ["subscriber.py", "connector.py", "router.py", "api.py", *broken]
    others = [words for words in commands() if words[0] != "python" or words[1] == "-m"]
    assert [words[0] for words in others] == ["make", "python", ".", "pip", "cd", "curl"]
    assert (pages.ROOT / others[3][-1]).is_file()
    assert (pages.ROOT / others[4][-1]) == FOLDER


def test_the_readme_names_every_setting():
    """The table of settings has each variable that a program reads, with the default it has there."""
    text = README.read_text(encoding="utf-8")
    for program in FOLDER.glob("*.py"):
        for name, default in re.findall(r'os\.environ\.get\("(\w+)", "([^"]+)"\)', program.read_text(encoding="utf-8")):
            [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
            assert default in row


def test_the_programs_are_short_and_need_no_more_than_they_say():
    """No program has more than 100 lines, and requirements.txt has exactly what they import beside rtobs."""
    imported: set[str] = set()
    for program in FOLDER.glob("*.py"):
        text = program.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 100
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    own = {program.stem for program in FOLDER.glob("*.py")} | {"rtobs", "pydantic"}  # FastAPI brings pydantic
    wanted = {name.replace("_", "-") for name in imported - own - sys.stdlib_module_names}
    listed = re.findall(r"(?m)^([\w-]+)", (FOLDER / "requirements.txt").read_text(encoding="utf-8"))
    assert set(listed) == wanted
