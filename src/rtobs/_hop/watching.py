"""Watching: asks brokers for depth and age of queues, and an event loop for its lag, beside the message path.

A leaf says how to ask; when to ask, how long to wait, and what an answer means over time is decided here. Ages grow by
the clock between two answers. Nothing here raises into the host. Must not know any client, nor how metrics leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import Context as EmptyContext
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import Label
from rtobs._hop.context import Context, attach
from rtobs._hop.leaf import SUPPRESS
from rtobs._hop.runtime import Reading, runtime
from rtobs._hop.slots import slots

Role = Literal["main", "retry", "dead"]

TIMEOUT = 5.0
"""Seconds that a broker has for one answer."""
LONGEST_PAUSE = 300.0
"""Seconds between two questions that are not answered, at most."""
_JITTER = 0.2
_PROBE = (0.020, 0.120)  # seconds; without jitter a probe in step with the load sees a thirtieth of the lag


class Depth(NamedTuple):
    """What a broker says of one queue."""

    destination: str
    """The low-cardinality name that hops over its messages have."""
    messages: int
    """How many wait; where the broker tells, those that were delivered and not acknowledged too."""
    oldest_ns: int = 0
    """When the oldest of them was sent, nanoseconds since the epoch; 0 = it does not say."""
    waiting: bool = True
    """False: the messages are kept, not waiting for anybody; such a queue has no age."""


Answer = Sequence[Depth]
Ask = Callable[[str], "Answer | Awaitable[Answer]"]
"""Ask the broker for one destination; a plain function is called in a thread of its own."""


class Strains(NamedTuple):
    """How to hear that a client is held back."""

    connection: object
    """What is held back; watches of one connection do not all tell of it."""
    begin: Callable[[Callable[[str], None]], Callable[[], None]]
    """Begin to report, by reason, whenever it is; return what ends that."""


class _Queue:
    """What is known of one destination of one watch."""

    def __init__(self, asked: str, role: Role) -> None:
        self.asked = asked
        self.role: Role = role
        self.failures = 0
        self._depths: tuple[Depth, ...] = ()
        self._emptied_ns: dict[str, int] = {}
        """When its depth was last 0 or fell, by the destination's name; monotonic."""

    def take(self, answer: Answer) -> None:
        """Take the broker's answer; of several that have one name, such as a stream's groups, the worst counts."""
        now_ns = runtime.monotonic_ns()
        before = {depth.destination: depth.messages for depth in self._depths}
        found: dict[str, Depth] = {}
        for depth in answer:
            other = found.get(depth.destination, depth)
            known = [each.oldest_ns for each in (depth, other) if each.messages and each.oldest_ns]
            found[depth.destination] = Depth(
                depth.destination, max(depth.messages, other.messages), min(known, default=0), depth.waiting
            )
        for name, depth in found.items():
            if depth.messages == 0 or name not in self._emptied_ns or depth.messages < before.get(name, 0):
                self._emptied_ns[name] = now_ns
        self._depths = tuple(found.values())

    def read(self) -> Iterator[Reading]:
        """Return depth and age as of now."""
        for depth in self._depths:
            labels = {Label.DESTINATION: depth.destination, Label.ROLE: self.role}
            yield Reading(names.QUEUE_DEPTH, labels, depth.messages)
            if not depth.waiting:
                continue
            age_ns = 0
            known = depth.messages == 0 or depth.oldest_ns > 0
            if depth.messages:
                estimate = runtime.monotonic_ns() - self._emptied_ns[depth.destination]
                age_ns = runtime.wall_ns() - depth.oldest_ns if known else estimate
            labels = {**labels, Label.ESTIMATED: "false" if known else "true"}
            yield Reading(names.QUEUE_AGE, labels, max(age_ns, 0) / 1e9)

    def destinations(self) -> list[str]:
        """Return the names under which it is shown."""
        return [depth.destination for depth in self._depths]


class Watch:
    """A watch that is on; ``stop`` ends it, and so does ``rtobs.shutdown``."""

    def __init__(
        self, ask: Ask, queues: Mapping[str, Role], interval: float, declared: int | None, strains: Strains | None
    ) -> None:
        self._ask = ask
        self._queues = [_Queue(asked, role) for asked, role in queues.items()]
        self._interval = interval
        self._declared = declared
        self._strains = strains
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the running event loop if asking is asynchronous, else on a thread."""
        if inspect.iscoroutinefunction(self._ask):
            self._loop = asyncio.get_running_loop()
        if not runtime.ready:
            runtime.prepare()
        with _lock:
            _watches.append(self)
        runtime.at_collection[_TOPIC] = _read
        runtime.on_shutdown.append(self.stop)
        if self._loop is not None:
            # in a context of its own: no hop of whoever starts it may go on in it
            self._task = self._loop.create_task(self._run(probe=True), name="rtobs-watch", context=EmptyContext())
        else:
            self._thread = threading.Thread(target=self._run_in_thread, name="rtobs-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask no more, and show no more of it. May be called twice, and from any thread."""
        with _lock:
            if self not in _watches:
                return
            _watches.remove(self)
        with contextlib.suppress(ValueError):
            runtime.on_shutdown.remove(self.stop)
        slots.drop(self)
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(task.cancel)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run_in_thread(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        with _lock:
            if self not in _watches:  # stopped before it began
                return
        await self._run(probe=False)

    async def _run(self, *, probe: bool) -> None:
        attach(Context(SUPPRESS))  # whoever instruments the client has no interest in our questions
        try:
            async with asyncio.TaskGroup() as group:
                if self._strains is not None:
                    group.create_task(_listen(self._strains))
                for queue in self._queues:
                    group.create_task(self._follow(queue))
                if probe:
                    group.create_task(_measure_lag())
        except Exception as error:  # noqa: BLE001  the host goes on without its watch
            _guard.tally(names.INTERNAL_ERRORS, "watch")
            _guard.tell("watch", "rtobs.integrations.watch has ended: %s", redaction.error_text(error))
        finally:
            self.stop()

    async def _follow(self, queue: _Queue) -> None:
        """Ask for one queue again and again; the less it answers, the more seldom."""
        pause = min(self._interval, 1.0) * random.random()  # noqa: S311  processes that start together do not ask together
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(TIMEOUT):
                    answer = await self._answer(queue.asked)
                if not runtime.ready:  # configured again since, or for the first time; there may never be a hop
                    runtime.prepare()
                queue.take(answer)
                self._declare(queue)
                queue.failures = 0
            except Exception as error:  # noqa: BLE001  a broker that is away is no concern of the host's here
                queue.failures += 1
                self._failed(queue, error)
            pause = self._interval * 2.0 ** min(queue.failures, 30)
            pause = max(self._interval, min(pause, LONGEST_PAUSE)) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    async def _answer(self, asked: str) -> Answer:
        if self._thread is None:
            found = self._ask(asked)
            return await found if inspect.isawaitable(found) else found
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Any, error: Exception | None) -> None:
            if future.done():  # it came too late
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        def ask() -> None:
            attach(Context(SUPPRESS))
            answer, failed = None, None
            try:
                answer = self._ask(asked)
            except Exception as error:  # noqa: BLE001  it is raised where the answer is awaited
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(settle, answer, failed)

        # A thread for each question: one that hangs can be left behind, and is not waited for when the process ends.
        threading.Thread(target=ask, name="rtobs-watch-ask", daemon=True).start()
        return await future

    def _declare(self, queue: _Queue) -> None:
        if self._declared is not None and queue.role == "main":
            with _lock:
                if self in _watches:
                    for destination in queue.destinations():
                        slots.put(self, destination, self._declared)

    @staticmethod
    def _failed(queue: _Queue, error: Exception) -> None:
        _guard.tally(names.INTERNAL_ERRORS, "watch.ask")
        if queue.failures == 1:  # once for each time that it begins to fail
            _guard.log.warning(
                "rtobs.integrations.watch: no answer about %s (%s: %s); asking more and more seldom",
                queue.asked, type(error).__name__, redaction.error_text(error),
            )  # fmt: skip

    def read(self) -> Iterator[Reading]:
        """Return depth and age of all its queues as of now."""
        for queue in self._queues:
            yield from queue.read()


_TOPIC = "queues"
_lock = threading.RLock()
_watches: list[Watch] = []


def _read() -> Iterator[Reading]:
    with _lock:
        found = tuple(_watches)
    for watch in found:
        yield from watch.read()


_heard: set[int] = set()
"""Connections of which somebody tells when they are held back."""


async def _listen(strains: Strains) -> None:
    """Count whenever a connection is held back; of several watches of one connection, one does it at a time."""
    connection = id(strains.connection)
    while connection in _heard:  # noqa: ASYNC110  another watch's; this one takes over once that has ended
        await asyncio.sleep(1.0)
    _heard.add(connection)
    end = strains.begin(_held_back)
    try:
        await asyncio.Event().wait()
    finally:
        end()
        _heard.discard(connection)


def _held_back(reason: str) -> None:
    runtime.observe(names.BACKPRESSURE, 1, {Label.REASON: reason})


def after_fork() -> None:
    """Forget everything in a forked child: its parent goes on watching, and has the connections."""
    global _lock  # noqa: PLW0603  a lock that another thread held at the fork is never released in the child
    _lock = threading.RLock()
    _watches.clear()
    _probed.clear()
    _heard.clear()
    runtime.on_shutdown.clear()


# The event loop ------------------------------------------------------------------------------------------------------

_probed: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
"""Event loops that a probe looks after."""


async def _measure_lag() -> None:
    """Measure the lag of this event loop; of several watches on one loop, one does it at a time."""
    loop = asyncio.get_running_loop()
    while loop in _probed:  # noqa: ASYNC110  another watch's; this one takes over once that has ended
        await asyncio.sleep(1.0)
    _probed.add(loop)
    try:
        while True:
            pause = random.uniform(*_PROBE)  # noqa: S311  only to be out of step
            begun_ns = runtime.monotonic_ns()
            await asyncio.sleep(pause)
            lag = (runtime.monotonic_ns() - begun_ns) / 1e9 - pause
            runtime.observe(names.EVENTLOOP_LAG, max(lag, 0.0), {})
    finally:
        _probed.discard(loop)
