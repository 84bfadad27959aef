"""What the platform needs of a broker, and which brokers there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from rtobs.demo.options import BROKERS, RABBITMQ, REDIS, Kind, UsageError

AGAIN_AFTER: Final = 5.0
"""Seconds after which a message whose worker has fallen silent is given to another one, where a broker counts them."""
FORGOTTEN_AFTER: Final = 600.0
"""Seconds after which a broker forgets what a run that could not tidy up has left, where it can."""
DEAD: Final = "dead"
"""The queue of dead letters."""
WATCH_SECONDS: Final = 0.5
"""Pause between two questions about a queue."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of one message, whatever the broker."""

    native: Any
    """What the client handed out: what `rtobs.consume` is to be told."""
    body: bytes
    ack: Callable[[], Awaitable[object]]
    """Tell the broker that it is done."""
    reject: Callable[[], Awaitable[object]]
    """Give it up: it becomes a dead letter."""
    later: Callable[[float], Awaitable[object]] | None = None
    """Have the same message delivered again after so many seconds; None where only a copy can be sent."""
    count: int = 1
    """How often it has been delivered, where `later` is what makes it come again."""


Handler = Callable[[Delivery], Awaitable[None]]


class Broker(Protocol):
    """A place where messages wait. Queue names are the platform's; the broker makes them unique per run.

    Depth and age of what is consumed are measured, by whichever process it is done best in.
    """

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What it raises where it does not answer, or is no such broker."""
        ...

    async def open(self, *, declare: bool) -> None:
        """Connect; one process of the run declares the queues, and deletes them in `close`."""
        ...

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Put *payload* into *queue*, after *delay* seconds (one of `roles.BACKOFF`, or longer)."""
        ...

    async def consume(self, queue: str, handler: Handler, concurrency: int) -> None:
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
    if address == "memory":
        return
    client = kind(address).client
    if importlib.util.find_spec(kind(address).module) is None:
        shown = f"{urlsplit(address).scheme}://…"
        raise UsageError(f"--broker {shown} needs {client}, which is not installed. Run: pip install {client}")


def kind(address: str) -> Kind:
    """Return what kind of broker *address* names; it is not ``memory``."""
    return BROKERS[urlsplit(address).scheme]


def prefix(run: str) -> str:
    """Return what the names of all queues of one run begin with, on every broker that outlives the run."""
    return f"rtobs-demo-{run}."


def make(address: str, run: str, queues: Sequence[str], outside: Sequence[str], delays: Sequence[float]) -> Broker:
    """Return the broker that *address* names.

    Args:
        address: ``memory``, or an address with one of the schemes in ``BROKERS``.
        run: makes queue names unique.
        queues: instrumented queues, each with a dead-letter queue.
        outside: queues of the world outside.
        delays: seconds that messages may be told to wait.
    """
    if address == "memory":
        from rtobs.demo.memory import MemoryBroker

        return MemoryBroker(queues)
    if kind(address) is RABBITMQ:
        from rtobs.demo.amqp import AmqpBroker

        return AmqpBroker(address, prefix(run), queues, outside, delays)
    if kind(address) is REDIS:
        from rtobs.demo.redis_streams import RedisBroker

        return RedisBroker(address, prefix(run), queues, outside)
    from rtobs.demo.jetstream import JetStreamBroker

    return JetStreamBroker(address, prefix(run), queues)
