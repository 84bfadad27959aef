"""Redis: how many entries of a stream, or items of a list, wait, and since when.

Entries that were delivered and not acknowledged wait too: whoever had them may be gone. An id is a clock, unless the
one who added the entry chose it. A stream that nobody reads as a group is kept, not waited for.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import redis.asyncio
import redis.asyncio.cluster

from rtobs._hop.runtime import runtime
from rtobs._hop.watching import Answer, Ask, Depth
from rtobs.integrations._redis_commands import moment, text

_FIRST_MS = 1_000_000_000_000  # in 2001; ids below were counted, not timed
_AHEAD_MS = 300_000
_COUNTED = 100
"""Entries that are fetched, at most, to count them where the server cannot."""

_Question = Generator[Any, Any, Answer]


def depths(client: Any) -> Ask:
    """Return how to ask this client for one key."""
    if isinstance(client, redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster):

        async def ask_async(key: str) -> Answer:
            question = _question(client, key)
            try:
                answer = await next(question)
                while True:
                    answer = await question.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

        return ask_async

    def ask(key: str) -> Answer:
        question = _question(client, key)
        try:
            answer = next(question)
            while True:
                answer = question.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    return ask


def strains(_client: Any) -> None:
    """Return nothing: Redis holds no client back in a way that it would tell."""


def _question(client: Any, key: str) -> _Question:
    """Yield one command's result, or what to await for it, after the other; get back the result; return the answer."""
    kind = text((yield client.type(key)))
    if kind == "list":
        return [Depth(key, (yield client.llen(key)))]
    if kind != "stream":  # a list or stream that is empty may not be there at all
        if kind == "none":
            return [Depth(key, 0)]
        raise LookupError(f"{key!r} is a Redis {kind}, neither a stream nor a list")
    found: list[Depth] = []
    for group in (yield client.xinfo_groups(key)):
        found.append((yield from _group(client, key, group)))  # noqa: PERF401  a comprehension cannot yield
    return found or [Depth(key, (yield client.xlen(key)), waiting=False)]


def _group(client: Any, key: str, group: dict[str, Any]) -> Generator[Any, Any, Depth]:
    pending, lag = int(group["pending"]), group.get("lag")
    oldest: list[int] = []
    if pending:
        summary = yield client.xpending(key, group["name"])
        pending = int(summary["pending"])  # some may have been acknowledged since
        if pending:
            oldest.append(_sent_ns(summary["min"]))
    if lag != 0:
        after, most = f"({text(group['last-delivered-id'])}", 1 if lag is not None else _COUNTED
        undelivered = yield client.xrange(key, after, "+", most)
        oldest += [_sent_ns(entry[0]) for entry in undelivered[:1]]
        if not undelivered:  # trimmed away, which the server's count does not tell
            lag = 0
        elif lag is None:  # the group began in the middle, or entries were deleted: the server cannot tell
            lag = len(undelivered) if len(undelivered) < _COUNTED else (yield client.xlen(key))
    return Depth(key, pending + int(lag), min(oldest, default=0))


def _sent_ns(entry_id: Any) -> int:
    """Return when an entry was added by its id, nanoseconds since the epoch; 0 where the id cannot be a time."""
    found = moment(text(entry_id))
    now_ms = runtime.wall_ns() // 1_000_000
    return found[0] * 1_000_000 if found is not None and _FIRST_MS < found[0] <= now_ms + _AHEAD_MS else 0
