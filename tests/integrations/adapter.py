"""What a leaf's tests say about their client, so that the conformance suite can drive it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

import rtobs
from rtobs import _conventions as names
from tests.support.telemetry import Telemetry
from tests.support.timing import eventually

BODY = bytes(range(256))
FOREIGN = {"x-shop": "Zürich ✓ \U0001f600", "x-empty": "", "x-trace-me": "00-abc"}

Handler = Callable[[Any], Awaitable[object] | object]
How = Literal["ack", "nack", "reject"]


class Adapter(Protocol):
    """One client library, driven the same way as every other. Make one per test; it cleans up what it made."""

    system: str
    """``messaging.system`` of its leaf."""
    sync_callbacks: bool
    """Whether the client calls plain functions too."""
    raising_brings_back: bool
    """Whether a message comes back because its callback raised; otherwise it stays unsettled."""
    counts_deliveries: bool
    """Whether the broker says how often it has delivered a message, not only that it did so before."""

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        """Return a new client of the broker; if *wrapped*, through ``rtobs.wrap(client, **options)``."""

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        """Create a queue, its dead letters going to *dead_letter*, where that is given."""

    async def send(self, client: Any, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        """Send one message so that it arrives in *queue*; return what the client returns."""

    async def callback(
        self, client: Any, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Let the client call *handler* for every message, up to *prefetch* at a time; return a function to stop it."""

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        """Return the client's iterator over the messages of *queue*."""

    async def fetch(self, client: Any, queue: str) -> Any:
        """Take one message if there is one."""

    async def settle(self, native: Any, how: How) -> Any:
        """Settle by the client's own call; ``nack`` brings the message back at once."""

    def body(self, native: Any) -> bytes:
        """Return the payload."""

    def headers(self, native: Any) -> dict[str, Any]:
        """Return all headers, those of rtobs included."""

    def destination(self, queue: str) -> str:
        """Return what the leaf calls the place that messages of *queue* are consumed from."""

    def target(self, queue: str) -> str:
        """Return what the leaf calls the place that messages for *queue* are sent to."""

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        """Await *hook* in every send of this client, below the wrapping; what it raises, the client raises."""


class Place(NamedTuple):
    """Where code runs: in which journey and in which span."""

    correlation_id: str
    trace_id: int
    span_id: int


NOWHERE = Place("", 0, 0)


def here() -> Place:
    """Return where the caller runs, as users and other libraries see it."""
    context = trace.get_current_span().get_span_context()
    return Place(rtobs.current().correlation_id, context.trace_id, context.span_id)


def place_of(span: ReadableSpan) -> Place:
    """Return the place that code saw while this span was current."""
    assert span.context is not None
    return Place(str((span.attributes or {})["rtobs.correlation_id"]), span.context.trace_id, span.context.span_id)


class Suite:
    """What the parts of the suite share; each test works on a queue of its own."""

    at_once = 1000
    """Handlers that are open at the same time where a test needs many; fewer where a broker takes its time."""

    @pytest.fixture
    async def queue(self, adapter: Adapter, unique: Callable[[str], str]) -> str:
        name = unique("queue")
        await adapter.declare(name)
        return name

    async def _send(self, adapter: Adapter, client: Any, queue: str, body: bytes = BODY, **segment: str) -> str:
        """Send one message from an accept hop; return its correlation id."""
        with rtobs.accept("/messages") as hop:
            hop.segment(**segment)
            await adapter.send(client, queue, body)
        return hop.correlation_id

    async def _fetched(self, adapter: Adapter, client: Any, queue: str) -> Any:
        return await eventually(lambda: adapter.fetch(client, queue))


def assert_one_of_each(telemetry: Telemetry) -> None:
    """Assert that one message was sent, consumed, processed and settled, and nothing twice."""
    counts = {
        instrument.name: telemetry.count(instrument)
        for instrument in (names.SENT_MESSAGES, names.CONSUMED_MESSAGES, names.PROCESS_DURATION, names.MESSAGE_SETTLED)
    }
    assert set(counts.values()) == {1}, counts
    assert telemetry.count(names.CLIENT_DURATION, operation="send") == 1
    assert len(telemetry.spans("publish")) == len(telemetry.spans("consume")) == 1
