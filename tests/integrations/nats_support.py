"""What the tests of the nats-py leaf share: clients and streams that go away again, and a promised message."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import nats
from nats.aio.client import Client

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import _twin
from tests.support.telemetry import Telemetry
from tests.support.timing import eventually

BODY = b"\x00 body"


class Nats:
    """One test's use of a server."""

    def __init__(self, url: str, unique: Callable[[str], str]) -> None:
        self.url = url
        self.unique = unique
        self.errors: list[Exception] = []
        """What the clients told their error callback."""
        self._clients: list[Client] = []
        self._streams: list[str] = []

    async def __aenter__(self) -> Self:
        _twin._destinations.clear()  # the process's budget, which tests before this one may have used up
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.close()
        client = await nats.connect(self.url)
        for stream in self._streams:
            await client.jetstream().delete_stream(stream)
        await client.close()

    async def connect(
        self, *, wrapped: bool = True, connection: dict[str, Any] | None = None, **options: Any
    ) -> Client:
        """Return a new client, through `rtobs.wrap` with *options* if *wrapped*; *connection*: options of its own."""

        async def tell(error: Exception) -> None:
            self.errors.append(error)

        client = await nats.connect(self.url, **{"error_cb": tell, **(connection or {})})
        self._clients.append(client)
        return rtobs.wrap(client, **options) if wrapped else client

    async def stream(self, label: str, **config: Any) -> str:
        """Create a stream of messages to its own name and to all subjects below; return the name."""
        name = self.unique(label)
        client = await self.connect(wrapped=False)
        await client.jetstream().add_stream(**{"name": name, "subjects": [name, f"{name}.>"], **config})
        self._streams.append(name)
        return name


async def promised(client: Client, subject: str, body: bytes = BODY) -> str:
    """Promise one delivery by webhook and send to JetStream the message that stands for it; return its journey."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme", region="eu")
        hop.intend("webhook", "7")
        with rtobs.publish("orders", channel="webhook", key="7"):
            await client.jetstream().publish(subject, body)
    return hop.correlation_id


async def processed(telemetry: Telemetry, count: int = 1) -> None:
    """Wait until *count* consume hops have ended."""
    await eventually(lambda: telemetry.count(names.MESSAGE_SETTLED) >= count)


def ends(telemetry: Telemetry) -> dict[str, int]:
    """Return the deliveries' outcomes by name."""
    return telemetry.by(names.OUTCOMES, "outcome")


def settled(telemetry: Telemetry) -> dict[str, int]:
    """Return how the handlings of messages ended."""
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")
