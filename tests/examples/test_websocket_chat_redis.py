"""examples/websocket_chat_redis: two servers and their clients on the live Redis, run and broken as in the README."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from websockets.sync.client import connect

from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Span, Telemetry
from tests.examples.support import PATIENCE, Example, alike, metrics, tree
from tests.support.http import free_port, is_up
from tests.support.timing import scaled, wait_until

SERVERS = ("server-a", "server-b")

pytestmark = pytest.mark.slow


class Chat(Example):
    """Two servers, as the README starts them, and whoever talks."""

    def __init__(self, logs: Path, redis_url: str, prefix: str, otlp: str, store: Telemetry) -> None:
        self.store = store
        self.ports = {"8000": free_port(), "8001": free_port(), "9464": free_port()}
        super().__init__(
            "websocket_chat_redis", logs, REDIS_URL=redis_url, CHANNEL_PREFIX=prefix, PORT=str(self.ports["8000"]),
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp, OTEL_BSP_SCHEDULE_DELAY="100", OTEL_METRIC_EXPORT_INTERVAL="200",
        )  # fmt: skip

    def here(self, text: str) -> str:
        """Replace the ports of the README by those of this run."""
        for port, mine in self.ports.items():
            text = text.replace(port, str(mine))
        return text

    def serve(self) -> None:
        """Start the servers; one is quick to lose patience with a socket, the other one slow."""
        first, second = [command for command in self.commands if command.program == "chat.py"]
        settings = {name: self.here(value) for name, value in first.environment.items()}
        settings["OTEL_METRICS_EXPORTER"] += ",otlp"
        self.start("chat.py", log=SERVERS[0], SEND_TIMEOUT=str(scaled(1.0)), **settings)
        settings = {name: self.here(value) for name, value in second.environment.items()}
        self.start("chat.py", log=SERVERS[1], SEND_TIMEOUT="50", **settings)
        wait_until(lambda: is_up(self.ports["8000"]) and is_up(self.ports["8001"]), PATIENCE)

    def url(self, port: str, room: str, name: str = "") -> str:
        return f"ws://127.0.0.1:{self.ports[port]}/rooms/{room}" + (f"?name={name}" if name else "")

    def join(self, name: str, url: str = "") -> subprocess.Popen[bytes]:
        """Start a client: where *url* says, else as the README does."""
        if not url:
            url = self.written("python", "client.py", name).environment.get(
                "CHAT_URL", "ws://127.0.0.1:8000/rooms/lobby"
            )
        return self.start("client.py", name, log=name, CHAT_URL=self.here(url))

    def say(self, who: subprocess.Popen[bytes], text: str) -> None:
        who.stdin.write(text.encode() + b"\n")
        who.stdin.flush()

    def until_printed(self, name: str, text: str) -> list[str]:
        """Return what *name*'s client has printed that ends with *text*, once it has."""
        return wait_until(
            lambda: [line for line in self.printed(name).splitlines() if line.rstrip().endswith(text)], PATIENCE
        )

    def shown_to(self, name: str, text: str) -> str:
        """Return the correlation id under which *name* has been shown *text*, once it has, once."""
        [line] = self.until_printed(name, text)
        return line.split()[0]

    def spans(self, correlation_id: str, count: int) -> list[Span]:
        """Return the spans of a journey once there are *count*; Redis keeps nothing, so more cannot come."""
        wait_until(lambda: len(self.store.journey(correlation_id)) >= count, PATIENCE)
        return self.store.journey(correlation_id)


@pytest.fixture(scope="module")
def chat(
    redis_url: str, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Chat, None, None]:
    """Both servers; the lobby is the README's, everything else happens in the office."""
    with Receiver(store := Telemetry()) as receiver:
        found = Chat(tmp_path_factory.mktemp("chat"), redis_url, unique("rooms") + ".", receiver.endpoint, store)
        try:
            found.serve()
            yield found
        finally:
            found.stop()


class Story(NamedTuple):
    """What the README tells, as it went."""

    hello: str
    """The correlation id of what everybody was shown."""
    missed: str
    """And of what bob was not."""
    waited: float
    """Seconds from saying the latter until the others were shown it."""
    scraped: str
    after: str
    """What was said when bob had been given up."""


@pytest.fixture(scope="module")
def story(chat: Chat) -> Story:
    """Three people talk in the lobby, one of them stops listening."""
    alice, bob, _ = (chat.join(name) for name in ("alice", "bob", "carol"))
    for name in ("alice", "bob", "carol"):
        chat.until_printed(name, "connected")
    chat.say(alice, "hello")
    [hello] = {chat.shown_to(name, "alice: hello") for name in ("alice", "bob", "carol")}
    bob.send_signal(signal.SIGSTOP)
    chat.say(alice, "/paste")
    for name in ("alice", "carol"):
        chat.shown_to(name, "x" * 80)
    begun = time.monotonic()
    chat.say(alice, "are you there")
    [missed] = {chat.shown_to(name, "alice: are you there") for name in ("alice", "carol")}
    waited = time.monotonic() - begun
    chat.told_until(SERVERS, 1, event="deliver.failed", correlation_id=missed)
    chat.spans(missed, 9)  # its receipts have come back
    scraped = httpx.get(f"http://127.0.0.1:{chat.ports['9464']}/metrics", timeout=PATIENCE).text
    chat.say(alice, "never mind")
    [after] = {chat.shown_to(name, "alice: never mind") for name in ("alice", "carol")}
    bob.send_signal(signal.SIGCONT)
    chat.until_printed("bob", "closed: 1013")
    return Story(hello, missed, waited, scraped, after)


def test_what_is_said_reaches_every_screen_of_every_server_under_one_id(chat, story):
    """A frame's correlation id is on all screens, in the log with tenant and servers, and in all spans and receipts."""
    [taken] = chat.told_until(SERVERS, 1, event="message_taken", correlation_id=story.hello)
    assert (taken["tenant_id"], taken["member"], taken["servers"]) == ("acme", "alice", 2)
    spans = chat.spans(story.hello, 10)
    assert Counter(span.hop for span in spans) == {"accept": 1, "publish": 1, "consume": 2, "deliver": 3, "receipt": 3}
    assert {span.trace_id for span in spans if span.hop != "receipt"} == {story.hello}
    assert story.hello != story.missed


def test_the_trace_is_the_one_that_the_readme_shows(chat, story):
    """Each server's fan-out hangs from the one publish, each socket's delivery from its server's fan-out."""
    assert tree(chat.spans(story.missed, 9), "member") == chat.shown("text", "deliver in_app")


def test_a_socket_that_does_not_read_is_a_failed_delivery(chat, story):
    """Who stopped reading is named with the category timeout, and is not written to again."""
    [event] = chat.told_until(SERVERS, 1, event="deliver.failed", tenant_id="acme")
    assert alike(json.loads(chat.shown("json", "deliver.failed")), event)
    assert event["correlation_id"] == story.missed
    spans = chat.spans(story.after, 8)
    assert Counter(span.text("member") for span in spans if span.hop == "deliver") == {"alice": 1, "carol": 1}


def test_promises_are_counted_by_socket(chat, story):
    """Intents are what was said times who was there, on both servers, and each has one outcome."""
    series = chat.store.total
    wait_until(lambda: series("rtobs.delivery.outcomes", tenant="acme", step="accepted") == 11, PATIENCE)
    assert series("rtobs.delivery.intents", channel="in_app", tenant="acme") == 11
    assert series("rtobs.delivery.outcomes", tenant="acme", outcome="ok") == 10
    assert series("rtobs.delivery.outcomes", tenant="acme", outcome="failed", error_category="timeout") == 1
    assert series("rtobs.delivery.outcomes", step="displayed", outcome="ok") >= 9


def test_the_readme_shows_what_a_scrape_shows(chat, story):
    """The series in the README are those of the first server, letter by letter."""
    shown = metrics(chat.shown("text", "rtobs_delivery_outcomes_total"))
    assert len(shown) >= 4
    assert set(shown) <= set(story.scraped.splitlines())


def test_lag_is_what_a_message_waited_for_each_server(chat, story):
    """Each server's lag is more than nothing and less than the time in which the others were shown the message."""
    lags = [span.number("rtobs.lag") for span in chat.spans(story.missed, 9) if span.hop == "consume"]
    assert len(lags) == 2
    assert all(0 <= lag <= story.waited for lag in lags)


def test_a_socket_that_goes_while_it_is_written_to_is_a_failed_delivery(chat):
    """Whoever is killed before the message is out is named with the category transport; others have it at once."""
    dave = chat.join("dave", chat.url("8001", "office"))
    with connect(chat.url("8000", "office", "erin"), max_size=None) as erin:
        chat.until_printed("dave", "connected")
        dave.send_signal(signal.SIGSTOP)
        for text in ("x" * 5_000_000, "are you there"):
            erin.send(json.dumps({"text": text}))
            said = json.loads(erin.recv(PATIENCE))
            assert said["text"] == text
        consumed = time.monotonic()
        time.sleep(scaled(0.3))
        dave.kill()
        [event] = chat.told_until(SERVERS, 1, event="deliver.failed", tenant_id="globex")
    assert (event["member"], event["error_category"], event["reason"]) == ("dave", "transport", "WebSocketDisconnect")
    assert event["correlation_id"] == said["id"]
    assert scaled(0.2) < event["duration_s"] < time.monotonic() - consumed + 1


def test_a_frame_that_is_no_message_is_refused_and_the_next_one_is_not(chat):
    """What is no JSON object with a text is a failed accept of the category validation; the connection lives on."""
    wrong = ["no json", "[]", "null", '{"text": 5}', '{"headers": {}}']
    with connect(chat.url("8000", "office", "mallory")) as mallory:
        for frame in wrong:
            mallory.send(frame)
        mallory.send(json.dumps({"text": "sorry", "headers": 5, "self": 1}))
        assert json.loads(mallory.recv(PATIENCE))["text"] == "sorry"
    refused = chat.told_until(SERVERS, len(wrong), event="accept.failed", destination="/rooms/{room}")
    assert {(event["error_category"], event["reason"], event["tenant_id"]) for event in refused} == {
        ("validation", "ValidationError", "globex")
    }
    assert len(refused) == len(wrong)


def test_a_receipt_that_nobody_was_given_counts_for_nothing(chat):
    """Forged receipts are counted as rejected, and reach no step."""
    with connect(chat.url("8000", "office", "mallory")) as mallory:
        for token in ("A" * 76, "", 5, ["x"]):
            mallory.send(json.dumps({"seen": token}))
        mallory.send(json.dumps({"text": "still here"}))
        shown = json.loads(mallory.recv(PATIENCE))
    wait_until(lambda: chat.store.total("rtobs.propagation.rejected", reason="token") >= 4, PATIENCE)
    assert [span for span in chat.spans(shown["id"], 4) if span.hop == "receipt"] == []


def test_the_client_s_own_trace_is_linked_and_not_continued(chat):
    """A frame's headers become a link: its journey has a trace of its own, also long after the connection began."""
    trace_id, span_id = "ab" * 16, "cd" * 8
    with connect(chat.url("8000", "office", "frank")) as frank:
        frank.send(json.dumps({"text": "hello", "headers": {"traceparent": f"00-{trace_id}-{span_id}-01"}}))
        said = json.loads(frank.recv(PATIENCE))
    [accept] = [span for span in chat.spans(said["id"], 4) if span.hop == "accept"]
    assert (accept.trace_id, accept.parent_id) == (said["id"], span_id)
