"""The platform on Redis Streams, through redis-py's asyncio client wrapped in one line.

A queue is a stream with one consumer group. A retry is a copy that waits in a stream of its own until the process that
declared the queues brings it back. What a killed worker held is claimed by another one. The outside world uses lists.
"""

# pyright: reportUnknownMemberType=false
# (the client's own annotations leave out some type arguments)

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

import rtobs
from rtobs.demo.brokers import AGAIN_AFTER, DEAD, FORGOTTEN_AFTER, WATCH_SECONDS, Delivery
from rtobs.demo.puller import Puller, again_and_again, end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rtobs.demo.brokers import Handler

GROUP: Final = "workers"
TAKE_MILLISECONDS: Final = 500
"""Longest wait for messages in one question."""
CLAIM_SECONDS: Final = 1.0
"""Pause between two looks for messages of workers that have fallen silent."""
TIDY_SECONDS: Final = 10.0
"""Pause between two times that handled entries are removed and the keys' lives are prolonged."""

BODY: Final = b"body"
QUEUE: Final = b"queue"
DELAY: Final = b"delay"
"""Fields of a stream's entry; the latter two only while it waits to be brought back."""


class RedisBroker:
    """See `brokers.Broker`."""

    errors = (RedisError, OSError)

    def __init__(self, address: str, prefix: str, queues: Sequence[str], outside: Sequence[str]) -> None:
        # An acknowledgement that finds no free connection has to wait for one; the usual pool would refuse it.
        self._client: Any = rtobs.wrap(Redis.from_pool(BlockingConnectionPool.from_url(address)))
        self._outside: Any = Redis.from_pool(BlockingConnectionPool.from_url(address))
        self._streams = [prefix + queue for queue in queues]
        self._waiting, self._dead = prefix + "waiting", prefix + DEAD
        self._keys = [*self._streams, self._waiting, self._dead, *(prefix + queue for queue in outside)]
        self._prefix = prefix
        self._name = f"process-{os.getpid()}"
        self._declares = False
        self._pullers: list[Puller] = []
        self._watches: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, *, declare: bool) -> None:
        """Find out whether a Redis answers; the process that declares looks after the streams from now on."""
        await self._outside.ping()
        self._declares = declare
        if declare:
            for stream in self._streams:
                await self._client.xgroup_create(stream, GROUP, mkstream=True)
            self._start(again_and_again(partial(self._bring_back, [b"0"]), self.errors))
            self._start(again_and_again(self._tidy, self.errors))

    async def send(self, queue: str, payload: dict[str, Any], *, delay: float = 0.0) -> None:
        """Add an entry to the queue's stream, or to the one of those that wait."""
        entry: dict[Any, Any] = {BODY: json.dumps(payload)}
        if delay:
            await self._client.xadd(self._waiting, entry | {QUEUE: self._prefix + queue, DELAY: delay})
        else:
            await self._client.xadd(self._prefix + queue, entry)

    async def consume(self, queue: str, handler: Handler, concurrency: int) -> None:
        """Read as a member of the group, as much as can be handled at once."""
        stream = self._prefix + queue
        keep = partial(self._keep, stream)
        self._pullers.append(Puller(self._taker(stream), keep, handler, concurrency, self.errors))
        watch = rtobs.integrations.watch(self._client, [stream], interval=WATCH_SECONDS, slots=concurrency)
        self._watches.append(watch)

    async def send_outside(self, queue: str, payload: dict[str, Any]) -> None:
        """Push onto a list without a trace of ours."""
        await self._outside.rpush(self._prefix + queue, json.dumps(payload))

    async def consume_outside(self, queue: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Pop from a list without a trace of ours."""

        async def step() -> bool:
            found = await self._outside.blpop([self._prefix + queue], timeout=TAKE_MILLISECONDS / 1000)
            if found:
                await handler(found[1])
            return True

        self._start(again_and_again(step, self.errors))

    async def stop_consuming(self) -> None:
        """Take no more messages; what is being handled goes on."""
        await asyncio.gather(*(puller.stop() for puller in self._pullers))

    async def close(self) -> None:
        """Delete what this process declared, and disconnect."""
        for watch in self._watches:
            watch.stop()
        await end(self._tasks)
        if self._declares:
            await self._outside.delete(*self._keys)
        await self._client.aclose()
        await self._outside.aclose()

    # one message

    def _taker(self, stream: str) -> Callable[[int], Awaitable[list[Delivery]]]:
        claim_at = 0.0

        async def take(count: int) -> list[Delivery]:
            nonlocal claim_at
            entries: list[Any] = []
            if (now := asyncio.get_running_loop().time()) >= claim_at:
                silent = int(AGAIN_AFTER * 1000)
                _, entries, *_ = await self._client.xautoclaim(stream, GROUP, self._name, silent, count=count)
                claim_at = now + CLAIM_SECONDS
            if not entries:
                found = await self._client.xreadgroup(
                    GROUP, self._name, {stream: ">"}, count=count, block=TAKE_MILLISECONDS
                )
                entries = [entry for _, read in found for entry in read]
            return [self._delivery(stream, entry) for entry in entries]

        return take

    def _delivery(self, stream: str, entry: tuple[bytes, dict[bytes, bytes]]) -> Delivery:
        entry_id, fields = entry
        return Delivery(
            entry,
            fields[BODY],
            ack=partial(self._client.xack, stream, GROUP, entry_id),
            reject=partial(self._reject, stream, entry_id, fields[BODY]),
        )

    async def _reject(self, stream: str, entry_id: bytes, body: bytes) -> None:
        """Put it with the dead letters and acknowledge it, both or neither."""
        async with self._client.pipeline() as both:
            with rtobs.publish(DEAD):
                both.xadd(self._dead, {BODY: body})
            both.xack(stream, GROUP, entry_id)
            await both.execute()

    async def _keep(self, stream: str, deliveries: Sequence[Delivery]) -> None:
        """Claim once more what this process has already: that makes it look young, and counts no delivery."""
        ids = [delivery.native[0] for delivery in deliveries]
        await self._client.xclaim(stream, GROUP, self._name, 0, ids, justid=True)

    # what the process that declares does for all: nothing of it is instrumented

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring_back(self, last: list[bytes]) -> bool:
        """Read what is to wait; *last* holds the id up to which that was done."""
        found = await self._outside.xread({self._waiting: last[0]}, block=TAKE_MILLISECONDS)
        for _, entries in found:
            for entry_id, fields in entries:
                last[0] = entry_id
                self._start(self._wait(entry_id, fields))
        return True

    async def _wait(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        await asyncio.sleep(float(fields.pop(DELAY)))
        stream = fields.pop(QUEUE)

        async def move() -> bool:
            async with self._outside.pipeline() as both:
                both.xadd(stream, fields)
                both.xdel(self._waiting, entry_id)
                await both.execute()
            return False

        await again_and_again(move, self.errors)

    async def _tidy(self) -> bool:
        """Remove entries that everybody is done with, and let the keys live on for a while."""
        for stream in self._streams:
            [group] = await self._outside.xinfo_groups(stream)
            pending = await self._outside.xpending(stream, GROUP)
            done = pending["min"] or group["last-delivered-id"]
            await self._outside.xtrim(stream, minid=done, approximate=False)
        for key in self._keys:
            await self._outside.expire(key, int(FORGOTTEN_AFTER))
        await asyncio.sleep(TIDY_SECONDS)
        return True
