"""What the tests of the redis leaf share: clients of both kinds, keys that go away again, and a promised message."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self

import pytest
import redis
import redis.asyncio
from opentelemetry.sdk.trace import ReadableSpan

import rtobs
from rtobs import _conventions as names
from tests.support.telemetry import Telemetry

GROUP = "workers"


async def got(result: Any) -> Any:
    """Return a result of either kind of client."""
    return await result if inspect.isawaitable(result) else result


class Redis:
    """One test's use of the shared server, by sync or by asyncio clients."""

    def __init__(self, url: str, unique: Callable[[str], str], *, sync: bool = False) -> None:
        self.url = url
        self.sync = sync
        self._unique = unique
        self._keys: list[str] = []
        self._open: list[Any] = []
        self.bare: Any = redis.Redis.from_url(url)
        """A sync client that nobody wraps."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in reversed(self._open):
            await got(each.aclose() if hasattr(each, "aclose") else each.close())
        if self._keys:
            self.bare.delete(*self._keys)
        self.bare.close()

    def key(self, label: str = "key") -> str:
        """Return a unique key that is deleted after the test."""
        key = self._unique(label)
        self._keys.append(key)
        return key

    def client(self, *, wrapped: bool = True, of: Any = None, options: dict[str, Any] | None = None, **how: Any) -> Any:
        """Return a client with *options*; if *wrapped*, through `rtobs.wrap(client, **how)`."""
        cls = of or (redis.Redis if self.sync else redis.asyncio.Redis)
        client = cls.from_url(self.url, **(options or {}))
        self._open.append(client)
        return rtobs.wrap(client, **how) if wrapped else client

    def pubsub(self, client: Any, **options: Any) -> Any:
        """Return a PubSub object of *client*, closed after the test."""
        pubsub = client.pubsub(ignore_subscribe_messages=True, **options)
        self._open.append(pubsub)
        return pubsub

    async def subscribed(self, client: Any, *names: Any, how: str = "subscribe", **handlers: Any) -> Any:
        """Return a PubSub object that the server has confirmed: from here on nothing is missed."""
        pubsub = self.pubsub(client)
        await got(getattr(pubsub, how)(*names, **handlers))
        for _ in range(len(names) + len(handlers)):
            assert await got(pubsub.get_message(timeout=5)) is None
        return pubsub

    def group(self, label: str = "orders") -> str:
        """Return the key of a new stream with a consumer group."""
        key = self.key(label)
        self.bare.xgroup_create(key, GROUP, mkstream=True)
        return key


@pytest.fixture(params=["sync", "asyncio"])
async def server(request, redis_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Redis, None]:
    async with Redis(redis_url, unique, sync=request.param == "sync") as server:
        yield server


@pytest.fixture
async def any_server(redis_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Redis, None]:
    """For what is the same code for both kinds of client: asyncio ones."""
    async with Redis(redis_url, unique) as server:
        yield server


async def entries(client: Any, key: str, consumer: str = "first", **options: Any) -> list[Any]:
    """Read new entries of one stream in its group."""
    reply = await got(client.xreadgroup(GROUP, consumer, {key: ">"}, **options))
    return reply[0][1] if reply else []


async def entry(client: Any, key: str, consumer: str = "first") -> Any:
    """Read one new entry."""
    (found,) = await entries(client, key, consumer, count=1)
    return found


async def promised(send: Callable[[], Any]) -> str:
    """Promise one delivery by webhook and send the message that stands for it; return its correlation id."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme", region="eu")
        hop.intend("webhook", "7")
        with rtobs.publish("orders", channel="webhook", key="7"):
            await got(send())
    return hop.correlation_id


def parent_id(span: ReadableSpan) -> int:
    """Return the id of a span's parent; 0 = it has none."""
    return span.parent.span_id if span.parent is not None else 0


def span_id(span: ReadableSpan) -> int:
    """Return a span's id."""
    assert span.context is not None
    return span.context.span_id


def linked(span: ReadableSpan) -> list[int]:
    """Return the ids of the spans that a span is linked to."""
    return [link.context.span_id for link in span.links]


def attempts(telemetry: Telemetry) -> list[Any]:
    """Return the attempts of the consume hops, as they ended."""
    return [span.attributes.get("rtobs.attempt", 1) for span in telemetry.spans("consume")]


def settled(telemetry: Telemetry) -> dict[str, int]:
    """Return how the handlings of messages ended."""
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")


def ends(telemetry: Telemetry) -> dict[str, int]:
    """Return the deliveries' outcomes."""
    return telemetry.by(names.OUTCOMES, "outcome")
