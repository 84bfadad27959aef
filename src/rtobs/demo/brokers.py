"""What the platform needs of a broker, and which brokers there are."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Protocol

from rtobs.demo.options import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Incoming(Protocol):
    """A message as handlers see it; the clients' own objects have this shape."""

    @property
    def body(self) -> bytes:
        """The payload."""
        ...

    async def ack(self) -> None:
        """Tell the broker that it is done."""
        ...

    async def reject(self) -> None:
        """Give it back, for its dead-letter queue."""
        ...


class Broker(Protocol):
    """A place where messages wait. Queue names are the platform's; the broker makes them unique per run."""

    async def open(self, *, declare: bool) -> None:
        """Connect; one process of the run declares the queues, and deletes them in `close`."""
        ...

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Put *payload* into *queue*, after *delay* seconds (one of `roles.BACKOFF`, or longer)."""
        ...

    async def consume(self, queue: str, handler: Callable[[Any], Awaitable[None]], concurrency: int) -> None:
        """Call *handler* with each message, at most *concurrency* at a time."""
        ...

    async def send_outside(self, queue: str, payload: dict[str, Any]) -> None:
        """Put *payload* into *queue* over a connection that is not instrumented: the outside world's."""
        ...

    async def consume_outside(self, queue: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Call *handler* with each body, over a connection that is not instrumented."""
        ...

    async def stop_consuming(self) -> None:
        """Take no more messages."""
        ...

    async def close(self) -> None:
        """Disconnect; delete the queues if this process declared them."""
        ...


def check_client(address: str) -> None:
    """Refuse a broker whose client library is missing.

    Raises:
        UsageError: says what to install.
    """
    if address != "memory" and importlib.util.find_spec("aio_pika") is None:
        raise UsageError("--broker amqp://… needs aio-pika, which is not installed. Run: pip install aio-pika")


def make(address: str, run: str, queues: Sequence[str], outside: Sequence[str], delays: Sequence[float]) -> Broker:
    """Return the broker that *address* names.

    Args:
        address: ``memory`` or ``amqp://…``.
        run: makes queue names unique.
        queues: instrumented queues, each with a dead-letter queue.
        outside: queues of the world outside.
        delays: seconds that messages may be told to wait.
    """
    if address == "memory":
        from rtobs.demo.memory import MemoryBroker

        return MemoryBroker(queues)
    from rtobs.demo.amqp import AmqpBroker

    return AmqpBroker(address, run, queues, outside, delays)
