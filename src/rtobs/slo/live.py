"""What this process itself has counted of the SLOs it declares, and the web route that shows it.

``configure(slos=…)`` says who is asked. Must not know how anything is counted.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from rtobs.slo.model import SLO, Deadline

VERSION: Final = "rtobs/slo-status/v1"
_Ask = Callable[[], "tuple[Standing, ...]"]


class Count(NamedTuple):
    """What one series holds: exactly what is exported as ``rtobs.slo.expected`` and ``rtobs.slo.good``."""

    tenant: str
    channel: str
    """Empty where the SLO is not grouped by it."""
    connector: str
    """As above."""
    expected: int
    good: int


@dataclass(frozen=True, slots=True)
class Standing:
    """One SLO as this process sees it, since it was configured.

    Attributes:
        slo: its name.
        revision: of its declaration.
        objective: promised share of good events, percent.
        expected, good: events counted.
        bad: expected events that are due and were not good.
        left: share of the error budget of these events that is left, below 0 where it is overdrawn; None where nothing
            was due, or where deliveries are promised in this process and end in others, or the other way round.
        counts: the same by series.
    """

    slo: str
    revision: str
    objective: float
    expected: int
    good: int
    bad: int
    left: float | None
    counts: tuple[Count, ...]


def standing(slo: SLO, counts: tuple[Count, ...], waiting: int, *, ended: bool) -> Standing:
    """Return how *slo* stands by its *counts*.

    Args:
        slo: the promise.
        counts: what its series hold.
        waiting: expected deliveries that are not due yet.
        ended: whether any delivery that it is about has ended in this process.
    """
    expected, good = sum(count.expected for count in counts), sum(count.good for count in counts)
    due = expected - waiting
    bad = max(due - good, 0)  # what was good before it was due comes off again, as in the rules
    elsewhere = isinstance(slo.sli, Deadline) and not ended
    left = None if due <= 0 or elsewhere else 1 - bad / (due * slo.budget)
    return Standing(slo.name, slo.revision, slo.objective, expected, good, bad, left, counts)


def _nobody() -> tuple[Standing, ...]:
    return ()


_ask: _Ask = _nobody


def use(ask: _Ask | None) -> None:
    """Let *ask* answer from now on; None = no SLO is declared here."""
    global _ask  # noqa: PLW0603  one configuration per process
    _ask = ask or _nobody


def status() -> tuple[Standing, ...]:
    """Return how the SLOs of ``rtobs.configure(slos=…)`` stand in this process; none were declared = empty."""
    return _ask()


def to_json() -> str:
    """Return ``status()`` as one JSON object."""
    found = [{**asdict(one), "counts": [count._asdict() for count in one.counts]} for one in status()]
    return json.dumps({"version": VERSION, "slos": found}, ensure_ascii=False)


# As a web route ------------------------------------------------------------------------------------------------------

_Event = MutableMapping[str, Any]


async def endpoint(
    scope: _Event, receive: Callable[[], Awaitable[_Event]], send: Callable[[_Event], Awaitable[None]]
) -> None:
    """Answer GET and HEAD with ``status()`` as JSON: an ASGI application, to be mounted where only you can see it.

    Raises:
        RuntimeError: it was asked for anything but HTTP.
    """
    del receive
    if scope["type"] != "http":
        raise RuntimeError(f"rtobs.slo.endpoint serves HTTP only; saw {scope['type']!r}; mount it inside of your app")
    method = scope["method"]
    known = method in {"GET", "HEAD"}
    body = to_json().encode() if known else b""
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ] if known else [(b"allow", b"GET, HEAD"), (b"content-length", b"0")]  # fmt: skip
    await send({"type": "http.response.start", "status": 200 if known else 405, "headers": headers})
    await send({"type": "http.response.body", "body": body if method == "GET" else b""})
