"""In-memory broker: queues with acknowledgements, redelivery, delays and dead letters, for tests and demos.

A real broker in one process: nothing is lost until it is acknowledged, what is nacked comes back counted, and what is
rejected goes to the queue's dead-letter queue with the reason. Use it in your own tests:

    broker = rtobs.wrap(Broker())
    await broker.publish("orders", b"...")
    message = await broker.get("orders")

Not measured: nothing; it has no network, so a send takes microseconds.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rtobs._hop import handler as handlers
from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._hop.watching import Answer, Ask, Depth
from rtobs._journey.message import Message as Facts
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "memory"
SUPPORTS = "rtobs.integrations.memory of this version"
COVERAGE = Coverage(
    client="in-memory broker",
    produce="`publish`",
    consume="callbacks, `get`, iterators",
    carrier="message headers",
    attempt="its delivery count",
    lag="its own clock",
    depth="its queues",
    missing="anything but tests and the demo",
)

Handler = Callable[["Message"], Awaitable[object] | object]


# The broker ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Queue:
    name: str
    dead_letter: str | None
    max_deliveries: int
    ready: asyncio.Queue[Message] = field(
        default_factory=lambda: asyncio.Queue[Message]()  # noqa: PLW0108  Message is defined below
    )
    unacked: set[int] = field(default_factory=set[int])
    arrived_ns: dict[int, int] = field(default_factory=dict[int, int])
    """When each message that is not settled came into it, the oldest first; nanoseconds since the epoch."""


class Message:
    """One delivery of one message; settle it with ``ack``, ``nack`` or ``reject``."""

    __slots__ = ("_broker", "body", "dead_reason", "delivery_count", "headers", "id", "queue", "release_ns", "settled")

    def __init__(  # noqa: PLR0917  made by the broker only
        self, broker: Broker, queue: str, body: bytes, headers: dict[str, Any], number: int, count: int
    ) -> None:
        self._broker = broker
        self.queue = queue
        self.body = body
        self.headers = headers
        self.id = number
        self.delivery_count = count
        """How often it has been delivered, this time included."""
        self.dead_reason = ""
        """Why it is in a dead-letter queue: rejected, expired or limit."""
        self.release_ns = 0
        """When its delay was over, nanoseconds since the epoch; 0 = it had none."""
        self.settled = ""

    async def ack(self) -> None:
        """Done: the broker forgets it."""
        self._broker._settle(self, "acked")  # noqa: SLF001  the broker and its message are one mechanism

    async def nack(self, delay: float = 0.0) -> None:
        """Not now: it is delivered again, after *delay* seconds."""
        self._broker._settle(self, "requeued", delay)  # noqa: SLF001

    async def reject(self) -> None:
        """Never: it goes to the dead-letter queue, or away where there is none."""
        self._broker._settle(self, "rejected")  # noqa: SLF001


class Broker:
    """Queues by name; made on first use. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def declare(self, queue: str, *, dead_letter: str | None = None, max_deliveries: int = 0) -> None:
        """Create a queue, or say where its dead letters go and after how many deliveries."""
        found = self._queues.setdefault(queue, _Queue(queue, dead_letter, max_deliveries))
        found.dead_letter, found.max_deliveries = dead_letter, max_deliveries

    def _queue(self, name: str) -> _Queue:
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = _Queue(name, None, 0)
        return found

    def depth(self, queue: str) -> int:
        """Return how many messages wait."""
        return self._queue(queue).ready.qsize()

    def pending(self, queue: str) -> int:
        """Return how many messages were delivered and are not settled."""
        return len(self._queue(queue).unacked)

    async def publish(
        self, queue: str, body: bytes, headers: dict[str, Any] | None = None, *, delay: float = 0.0
    ) -> None:
        """Put one message into *queue*, to be delivered after *delay* seconds."""
        message = Message(self, queue, body, dict(headers or {}), next(self._numbers), 1)
        self._later(delay, message)

    def _later(self, delay: float, message: Message) -> None:
        if delay <= 0:
            self._arrive(message)
            return

        def arrive() -> None:
            self._timers.discard(timer)
            message.release_ns = runtime.wall_ns()
            self._arrive(message)

        timer = asyncio.get_running_loop().call_later(delay, arrive)
        self._timers.add(timer)

    def _arrive(self, message: Message) -> None:
        queue = self._queue(message.queue)
        queue.arrived_ns[message.id] = runtime.wall_ns()
        queue.ready.put_nowait(message)

    async def get(self, queue: str, timeout: float | None = None) -> Message | None:  # noqa: ASYNC109  as clients have it
        """Take the next message, waiting up to *timeout* seconds; None where none came."""
        return await self._take(queue, timeout)

    async def _take(self, queue: str, timeout: float | None = None) -> Message | None:  # noqa: ASYNC109  as above
        found = self._queue(queue)
        try:
            message = await asyncio.wait_for(found.ready.get(), timeout)
        except TimeoutError:
            return None
        found.unacked.add(message.id)
        return message

    async def messages(self, queue: str) -> AsyncIterator[Message]:
        """Yield messages as they come."""
        while True:
            message = await self._take(queue)
            if message is not None:
                yield message

    def consume(  # noqa: C901  a consumer's loop is one piece
        self, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], None]:
        """Call *handler* for every message, *prefetch* at a time; return a function that stops it.

        A message that the handler leaves unsettled is acknowledged if it returned and comes back if it raised.
        """
        slots = asyncio.Semaphore(prefetch)

        async def one(message: Message) -> None:
            try:
                result = handler(message)
                if inspect.isawaitable(result):
                    await result
            except Exception:  # noqa: BLE001  a handler that raises is the broker's daily bread
                if not message.settled:
                    await message.nack()
            else:
                if not message.settled:
                    await message.ack()
            finally:
                slots.release()

        async def loop() -> None:
            while True:
                await slots.acquire()
                message = await self._take(queue)
                if message is not None:
                    self._spawn(one(message))

        task = self._spawn(loop())

        def stop() -> None:
            task.cancel()

        return stop

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _settle(self, message: Message, how: str, delay: float = 0.0) -> None:
        if message.settled:
            raise ValueError(f"message {message.id} of {message.queue!r} is already {message.settled}; settle it once")
        message.settled = how
        queue = self._queue(message.queue)
        queue.unacked.discard(message.id)
        queue.arrived_ns.pop(message.id, None)
        if how == "acked":
            return
        again = Message(self, message.queue, message.body, message.headers, message.id, message.delivery_count + 1)
        spent = 0 < queue.max_deliveries <= message.delivery_count
        if how == "requeued" and not spent:
            self._later(delay, again)
        elif queue.dead_letter:
            again.queue, again.delivery_count = queue.dead_letter, 1
            again.dead_reason = "limit" if how == "requeued" else "rejected"
            self._later(0, again)

    async def close(self) -> None:
        """Stop consumers and timers."""
        for timer in list(self._timers):
            timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# The leaf ------------------------------------------------------------------------------------------------------------


def describe(native: Message) -> Facts:
    """Return what one delivery says about itself."""
    options, name = options_of(native), native.queue
    facts = Facts(SYSTEM, name, native.headers, name, str(native.id))
    facts.native, facts.size, facts.release_ns = native, len(native.body), native.release_ns
    facts.trust, facts.carrier, facts.manual = options.trust, options.carrier, options.manual
    facts.delivery_count, facts.max_deliveries = native.delivery_count, options.max_deliveries
    target = options.dead_letter
    queue = native._broker._queues.get(name)  # noqa: SLF001
    if queue is not None:
        target = queue.dead_letter or target
        facts.max_deliveries = queue.max_deliveries or options.max_deliveries
    if target is not None:
        facts.dead_letter = target != ""
    if native.dead_reason:  # the consumer knows the limit, so it is a consumer that decided, at the limit too
        facts.dead_cause = "decided"
    return facts


@overlay
class _Message(Message):
    __slots__ = ()

    async def ack(self) -> None:
        with leaf.Settle("ack", "acked", guarded(describe, None, self)):
            await super().ack()

    async def nack(self, delay: float = 0.0) -> None:
        with leaf.Settle("nack", "requeued", guarded(describe, None, self)):
            await super().nack(delay)

    async def reject(self) -> None:
        with leaf.Settle("nack", "rejected", guarded(describe, None, self)):
            await super().reject()


def _sent(broker: Broker, queue: str, body: bytes, delay: float) -> Facts:
    release_ns = runtime.wall_ns() + int(delay * 1e9) if delay > 0 else 0
    return Facts(
        SYSTEM, queue, address=queue, carrier=options_of(broker).carrier, size=len(body), release_ns=release_ns
    )


def _received(message: Message, options: Options, begun_ns: int) -> None:
    leaf.receive([describe(become(message, _Message, options))], begun_ns)


def _handed_out(message: Message, options: Options, begun_ns: int) -> Facts:
    facts = describe(become(message, _Message, options))
    leaf.receive([facts], begun_ns, span=False)
    leaf.handed_out(facts)
    return facts


@overlay
class _Broker(Broker):
    __slots__ = ()

    async def publish(
        self, queue: str, body: bytes, headers: dict[str, Any] | None = None, *, delay: float = 0.0
    ) -> None:
        with leaf.Send(guarded(_sent, None, self, queue, body, delay)) as send:
            await super().publish(queue, body, send.headers(headers), delay=delay)

    async def get(self, queue: str, timeout: float | None = None) -> Message | None:  # noqa: ASYNC109  as clients have it
        begun = leaf.now_ns()
        message = await super().get(queue, timeout)
        if message is not None:
            guarded(_received, None, message, options_of(self), begun)
        return message

    async def messages(self, queue: str) -> AsyncIterator[Message]:
        while True:
            begun = leaf.now_ns()
            message = await self._take(queue)
            if message is None:
                continue
            facts = guarded(_handed_out, None, message, options_of(self), begun)
            try:
                yield message
            finally:
                if facts is not None:
                    leaf.passed_by(facts)

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 16) -> Callable[[], None]:
        options = options_of(self)
        # the broker settles what the handler leaves open, so nothing is settled by hand
        around = handlers.around(handler, lambda native: describe(become(native, _Message, options)))
        return super().consume(queue, around, prefetch=prefetch)


def depths(client: Broker) -> Ask:
    """Return how to ask for one queue: what is ready, and what was delivered and is not settled."""

    async def ask(queue: str) -> Answer:
        waiting = client._queue(queue).arrived_ns  # noqa: SLF001
        return [Depth(queue, len(waiting), next(iter(waiting.values()), 0))]

    return ask


def strains(_client: Broker) -> None:
    """Return nothing: it takes whatever it is given."""


def wrap(client: Broker, options: Options) -> Broker:
    """Instrument one broker: every publish, consume and settlement."""
    runtime.register(Message, describe)
    return become(client, _Broker, options)
