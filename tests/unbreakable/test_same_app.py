"""The same application with and without rtobs: it sees the same, and leaves the same on its broker (R1).

The application is drawn from a seed: every message takes one of the ways that messages take, well or badly. Without
rtobs it uses the bare client and decorators that do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple, Self

import httpx
import pytest
from confluent_kafka import Consumer, Producer

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs.integrations import asgi
from tests.integrations.kafka_support import kafka_address
from tests.integrations.mqtt_support import V3, V5, AiomqttAdapter, PahoAdapter
from tests.integrations.pika_support import PikaAdapter
from tests.integrations.redis_modes import ListsAdapter, PubSubAdapter, StreamsAdapter
from tests.integrations.sqs_modes import AiobotocoreAdapter, Boto3Adapter
from tests.integrations.test_conformance_aio_pika import AioPikaAdapter
from tests.integrations.test_conformance_aiokafka import AiokafkaAdapter
from tests.integrations.test_conformance_confluent_kafka import ConfluentAdapter
from tests.integrations.test_conformance_kafka import KafkaPythonAdapter
from tests.integrations.test_conformance_memory import MemoryAdapter
from tests.integrations.test_conformance_nats import CoreAdapter, JetStreamAdapter
from tests.integrations.websocket_support import WebSocketAdapter
from tests.support import telemetry as support
from tests.support.timing import eventually
from tests.unbreakable.client_drives import AioHttp, Requests
from tests.unbreakable.drives import Asgi, Drive, Http
from tests.unbreakable.web_drives import Wsgi
from tests.unbreakable.worker_drives import CeleryDrive, FastStreamDrive

__all__ = ["kafka_address"]

IN_SOAK = 10_000
TRIES = 3
AT_ONCE = 20
"""Messages that are under way at a time."""


class HostError(Exception):
    """What the application's own code raises."""


class Way(NamedTuple):
    """How one kind of broker is driven, and what it has."""

    adapter: Callable[[str], Any]
    url: str
    settles: bool = True
    """Whether messages can be given back and rejected."""
    carries: bool = True
    """Whether messages have headers."""
    subscribes: bool = False
    """Whether a message reaches only those who listen already."""
    rejects: bool = True
    """Whether a message that is rejected is gone without a queue for dead letters."""
    replies: bool = True
    """Whether a client can take from one of its queues and not from the others."""
    in_ci: int = 1_430
    """Messages in CI: 10,010 through the ways that take a millisecond, fewer through those that take their time."""


WAYS = {
    "memory": Way(lambda _: MemoryAdapter(), "redis_url"),
    "aio_pika": Way(AioPikaAdapter, "amqp_url"),
    "redis streams": Way(StreamsAdapter, "redis_url", settles=False),
    "redis lists": Way(ListsAdapter, "redis_url", settles=False, carries=False),
    "redis pubsub": Way(PubSubAdapter, "redis_url", settles=False, carries=False, subscribes=True),
    "nats": Way(CoreAdapter, "nats_url", settles=False, subscribes=True),
    "jetstream": Way(JetStreamAdapter, "nats_url"),
    "pika": Way(lambda url: PikaAdapter(url, str), "amqp_url", in_ci=200),
    "aiokafka": Way(AiokafkaAdapter, "kafka_address", in_ci=200),
    "kafka": Way(KafkaPythonAdapter, "kafka_address", in_ci=100),
    "confluent_kafka": Way(lambda url: ConfluentAdapter(url, Producer, Consumer), "kafka_address", in_ci=100),
    "sqs": Way(Boto3Adapter, "aws_url", rejects=False, in_ci=50),
    "sqs, asyncio": Way(AiobotocoreAdapter, "aws_url", rejects=False, in_ci=50),
    "paho": Way(lambda url: PahoAdapter(url, V5), "mqtt_url", settles=False, subscribes=True, replies=False, in_ci=60),
    "aiomqtt": Way(
        lambda url: AiomqttAdapter(url, V5), "mqtt_url", settles=False, subscribes=True, replies=False, in_ci=200
    ),
    "websockets": Way(
        lambda _: WebSocketAdapter(),
        "redis_url",
        settles=False,
        carries=False,
        subscribes=True,
        replies=False,
        in_ci=200,
    ),
    "aiomqtt 3.1.1": Way(
        lambda url: AiomqttAdapter(url, V3),
        "mqtt_url",
        settles=False,
        carries=False,
        subscribes=True,
        replies=False,
        in_ci=200,
    ),
}


class Tools:
    """What the application takes from rtobs, or stand-ins that do nothing."""

    def __init__(self, *, real: bool) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(rtobs, name) if self._real else lambda *_args, **_options: _Nothing()

    def current(self) -> Any:
        return rtobs.current() if self._real else _Nothing()


class _Nothing(contextlib.ContextDecorator):
    """A block, a decorator and a hop that do nothing."""

    def __call__(self, function: Any) -> Any:
        return function

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def segment(self, *_: object, **_facts: object) -> None:
        """Say nothing."""

    intend = segment


class App:
    """A service that publishes orders, handles them, tells a CRM by HTTP, and answers."""

    def __init__(self, tools: Tools, way: Way, adapter: Any, seed: int, messages: int) -> None:
        self._way, self._adapter, self._tools = way, adapter, tools
        chance = random.Random(seed)
        self.endings = ["ok", "ok", "ok", "crm fails", "crm refuses", "raises", "swallows"]
        self.endings += ["reply"] if way.replies else []
        self.endings += ["nack once", "raises, then ok"] if way.settles else []
        self.endings += ["reject"] if way.settles and way.rejects else []
        self.plans = [(chance.choice(self.endings), chance.randbytes(chance.randrange(4, 40))) for _ in range(messages)]
        self.saw: dict[int, list[object]] = {number: [] for number in range(messages)}
        self.replies: Counter[bytes] = Counter()
        self.asked: Counter[tuple[str, str]] = Counter()
        self._made(tools)

    def _made(self, tools: Tools) -> None:
        """Decorate what the application does."""

        @tools.deliver("connector", "crm")
        async def tell(number: int, ending: str) -> httpx.Response:
            return await self._http.post("https://crm.test/tickets", content=f"{number} {ending}")

        @tools.stage("parse")
        def parse(body: bytes) -> tuple[int, bytes]:
            number, _, rest = body.partition(b" ")
            return int(number), rest

        @tools.accept("/orders")
        async def submit(number: int) -> None:
            tools.current().segment(tenant=f"tenant-{number % 5}")
            tools.current().intend("connector")
            body = b"%d " % number + self.plans[number][1]
            result = await self._adapter.send(self._client, self._queue, body, {"x-order": str(number)})
            self.saw[number].append(("sent", type(result).__name__))

        self._tell, self._parse, self._submit = tell, parse, submit

    async def open(self, name: Callable[[str], str], *, wrapped: bool) -> None:
        """Connect."""
        self._queue, self._answers = name("orders"), name("answers")
        for queue in (self._queue, self._answers):
            await self._adapter.declare(queue)
        self._client = await self._adapter.client(wrapped=wrapped)

        async def crm(scope: Any, receive: Any, send: Any) -> None:
            number, ending = (await receive())["body"].decode().split(" ", 1)
            self.asked[ending, scope["path"]] += 1
            self.saw[int(number)].append(("crm", sorted(name.decode() for name, _ in scope["headers"])))
            status = {"crm fails": 503, "crm refuses": 422}.get(ending, 201)
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": ending.encode()})

        app = asgi.Middleware(crm) if wrapped else crm
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
        self._http = rtobs.wrap(client) if wrapped else client

    async def run(self) -> None:
        """Send all, a few at a time, and handle all."""
        for first in range(0, len(self.plans), AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, len(self.plans)))
            for number in numbers:
                await self._submit(number)
            waiting = len(numbers)
            while waiting:
                native = await eventually(lambda: self._adapter.fetch(self._client, self._queue), timeout=20)
                waiting -= await self._taken(native)

    async def _taken(self, native: Any) -> bool:
        """Handle one delivery; return whether the message has come to its end."""
        body = self._adapter.body(native)
        number = int(body.partition(b" ")[0])
        try:
            with self._tools.consume("orders", native):
                return await self._handle(native, number)
        except HostError as error:
            self.saw[number].append(("raised", str(error), repr(error.__cause__), repr(error.__context__)))
            again = self._way.settles and self._tries(number) < TRIES and "then ok" in self.plans[number][0]
            await self._adapter.settle(native, "nack" if again else "ack")
            return not again

    def _tries(self, number: int) -> int:
        return sum(isinstance(each, tuple) and each[0] == "handled" for each in self.saw[number])

    async def _handle(self, native: Any, number: int) -> bool:
        ending, saw = self.plans[number][0], self.saw[number]
        parsed = self._parse(self._adapter.body(native))
        shop = self._adapter.headers(native).get("x-order") if self._way.carries else None
        saw.append(("handled", parsed, shop))
        tries = self._tries(number)
        if ending == "raises" or (ending == "raises, then ok" and tries < TRIES):
            raise HostError(f"order {number}") from ValueError("below")
        if ending == "swallows":
            with contextlib.suppress(HostError), self._tools.deliver("sms", "twilio"):
                raise HostError("sms")
            saw.append("swallowed")
        if ending == "nack once" and tries == 1:
            await self._adapter.settle(native, "nack")
            return False
        if ending == "reject":
            await self._adapter.settle(native, "reject")
            return True
        response = await self._tell(number, ending)
        saw.append(("told", response.status_code, response.text))
        if ending == "reply":
            with self._tools.publish("answers"):
                await self._adapter.send(self._client, self._answers, parsed[1])
            answer = await eventually(lambda: self._adapter.fetch(self._client, self._answers), timeout=20)
            self.replies[self._adapter.body(answer)] += 1
            await self._adapter.settle(answer, "ack")
        await self._adapter.settle(native, "ack")
        return True

    async def left(self) -> int:
        """Return how many messages are still there."""
        found = 0
        for queue in (self._queue, self._answers):
            while await self._adapter.fetch(self._client, queue) is not None:
                found += 1
        return found

    async def close(self) -> None:
        """Disconnect."""
        await self._http.aclose()
        await self._adapter.close()


@pytest.fixture
async def run(request: pytest.FixtureRequest, unique: Callable[[str], str]) -> AsyncGenerator[Any, None]:
    """Run the application through one kind of broker; return it, and how many messages it left there."""

    async def one(name: str, messages: int, *, real: bool) -> tuple[App, int]:
        way = WAYS[name]
        app = App(Tools(real=real), way, way.adapter(request.getfixturevalue(way.url)), 7, messages)
        await app.open(unique, wrapped=real)
        try:
            await app.run()
            return app, await app.left()
        finally:
            await app.close()

    yield one
    support.stop()


async def _check(run: Any, name: str, messages: int) -> None:
    bare, left_bare = await run(name, messages, real=False)
    telemetry = support.start(strict=False)  # as hosts run it: what fails would be hidden, and is asked for below
    seen, left = await run(name, messages, real=True)
    differ = {
        number: (bare.saw[number], seen.saw[number]) for number in bare.saw if bare.saw[number] != seen.saw[number]
    }
    assert list(differ.items())[:3] == []
    assert (seen.replies, seen.asked, left) == (bare.replies, bare.asked, left_bare)
    assert left == 0
    assert telemetry.by(names.INTERNAL_ERRORS, "site") == {}
    assert engine.current() is None
    assert runtime.open_hops == set()
    handled = sum(1 for each in seen.saw.values() for fact in each if fact[0] == "handled")
    answered = sum(seen.replies.values())
    assert telemetry.count(names.SENT_MESSAGES) == messages + answered
    assert telemetry.count(names.PROCESS_DURATION) == handled
    kinds = Counter(ending for ending, _ in seen.plans)
    assert kinds.keys() == set(seen.endings)
    print(f"\n{name}: {messages} messages, {handled} deliveries, {answered} answers: {dict(kinds)}")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", WAYS)
async def test_an_application_sees_the_same_with_and_without_rtobs(run, name):
    """Results, exceptions, what was asked by HTTP, answers and what is left on the broker are the same; no faults."""
    await _check(run, name, WAYS[name].in_ci)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WAYS)
async def test_ten_thousand_messages_through_each_broker(run, name):
    """The same for 10,000 messages through each broker."""
    await _check(run, name, IN_SOAK)


# Programs of another shape -------------------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[[str, Callable[[str], str]], Drive]] = {
    "httpx": lambda *_: Http(), "requests": lambda *_: Requests(), "aiohttp": lambda *_: AioHttp(),
    "asgi": lambda *_: Asgi(), "wsgi": lambda *_: Wsgi(), "celery": lambda *_: CeleryDrive(),
    "faststream": FastStreamDrive,
}  # fmt: skip
RUNS = {"in CI": 30, "in soak": 5_000}


async def _check_program(name: str, amqp_url: str, unique: Callable[[str], str], runs: int) -> None:
    saw: dict[bool, list[object]] = {}
    for wrapped in (False, True):
        telemetry = support.start(strict=False)
        program = PROGRAMS[name](amqp_url, unique)
        program.wrapped = wrapped
        await program.open()
        saw[wrapped] = [await program.run() for _ in range(runs)]
        await program.close()
        assert telemetry.by(names.INTERNAL_ERRORS, "site") == {}
        assert engine.current() is None
    support.stop()
    differ = [pair for pair in zip(saw[False], saw[True], strict=True) if pair[0] != pair[1]]
    assert differ[:1] == []
    print(f"\n{name}: {runs} runs of {len(saw[True][0])} results and exceptions each")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_sees_the_same_with_and_without_its_client_wrapped(name, amqp_url, unique, caplog):
    """HTTP clients, web servers, Celery and FastStream return, raise and answer the same, wrapped or not."""
    with caplog.at_level(logging.CRITICAL + 1):
        await _check_program(name, amqp_url, unique, RUNS["in CI"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROGRAMS)
async def test_ten_thousand_messages_through_each_program(name, amqp_url, unique, caplog):
    """The same for 5,000 runs, each of several requests or messages."""
    with caplog.at_level(logging.CRITICAL + 1):
        await _check_program(name, amqp_url, unique, RUNS["in soak"])


async def test_a_difference_is_seen(run, monkeypatch):
    """An rtobs that changed what a function returns would be noticed: the comparison can fail."""
    honest = rtobs.stage

    def changing(name: str) -> Callable[[Any], Any]:
        return lambda function: honest(name)(lambda body: (function(body)[0], b"changed"))

    monkeypatch.setattr(rtobs, "stage", changing)
    with pytest.raises(AssertionError):
        await _check(run, "memory", 40)
    await asyncio.sleep(0)
