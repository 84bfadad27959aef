"""Every wait of the tests goes through here, so that RTOBS_TIME_SCALE shortens or stretches all of them at once."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SCALE = float(os.environ.get("RTOBS_TIME_SCALE", "1.0"))

_PAUSE = 0.01


def scaled(seconds: float) -> float:
    """Return *seconds* as long as this run wants them: for sleeps, and for the durations a test is set up with."""
    return seconds * SCALE


def _patience(timeout: float) -> float:
    # A scale below 1 shortens what tests wait out, not the time a slow machine may need to get something done.
    return timeout * max(1.0, SCALE)


def _failure(predicate: Callable[[], object], timeout: float, last: object) -> AssertionError:
    name = getattr(predicate, "__qualname__", repr(predicate))
    return AssertionError(f"{name} did not come true within {_patience(timeout):g} s; it last returned {last!r}")


async def eventually(predicate: Callable[[], T | Awaitable[T]], timeout: float = 5.0) -> T:  # noqa: ASYNC109 - asyncio.timeout could not say the last value
    """Return the first true value of *predicate* (plain or async); after *timeout* seconds fail, saying the last."""
    deadline = time.monotonic() + _patience(timeout)
    while True:
        value = predicate()
        found = await value if inspect.isawaitable(value) else value
        if found:
            return found
        if time.monotonic() > deadline:
            raise _failure(predicate, timeout, found)
        await asyncio.sleep(_PAUSE)


def wait_until(predicate: Callable[[], T], timeout: float = 5.0) -> T:
    """Do what ``eventually`` does, outside asyncio."""
    deadline = time.monotonic() + _patience(timeout)
    while True:
        found = predicate()
        if found:
            return found
        if time.monotonic() > deadline:
            raise _failure(predicate, timeout, found)
        time.sleep(_PAUSE)
