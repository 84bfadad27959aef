"""RabbitMQ: what the broker writes into a message about its past, and what that means; for every client of it.

``x-death`` lists how the message left queues by force, the latest first: rejected, expired, pushed out of a full queue,
or delivered too often. Must not know any client. Headers may be forged or copied: nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast

from rtobs.integrations._twin import Options

Cause = Literal["", "decided", "expired", "limit"]

_CAUSES: Mapping[object, Cause] = {
    "rejected": "decided", "expired": "expired", "maxlen": "limit", "delivery_limit": "limit",
}  # fmt: skip
_MOST_DEATHS = 32
_HEX_DIGITS = 32
_MOST_OURS = 16_384
"""Bytes that our headers never need, other properties of a message included."""
_FRAME = 36
"""Bytes of a header frame beside the properties, of a table, and what six for each entry of ours are beyond four."""
_WIDEST = 4
"""Bytes of a character, at most."""


class Past(NamedTuple):
    """What became of a message before this delivery."""

    deliveries: int
    """How often it has been delivered from this queue, this time included."""
    dead_cause: Cause
    """Why it is a dead letter; empty if it is none."""
    replay: bool
    """Its end was counted before, and it was put back or came back."""
    arrived_ns: int
    """When its latest death brought it into this queue, nanoseconds since the epoch, to the second; 0 = otherwise."""


def past(headers: Mapping[str, Any], options: Options, *, redelivered: bool) -> Past:
    """Read a message's past from its *headers*; *options* say which queue delivered it, and what `wrap` was told.

    - What was rejected, or ran into a limit, in another queue is a dead letter wherever it is read. What expired there
      is one only in the declared dead-letter queue; elsewhere it has been in a waiting room.
    - Back from a waiting room, its deaths in this queue were deliveries: their counts are added. They were counted as
      its end too, so it is a replay, unless a dead-letter queue is declared and is not that waiting room.
    - If its latest death was in this very queue, somebody has put it back: a replay.
    - ``x-delivery-count`` (quorum queues) counts earlier deliveries; without *redelivered* it is a copy from another
      message. Other queues only say that there was one before: it counts as the second.
    - A message dead by its delivery limit was counted by its last consumer, if that was told the limit.
    """
    here, dead_letter = options.destination, options.dead_letter
    count = 1 + (max(1, _number(headers.get("x-delivery-count"))) if redelivered else 0)
    deaths = _deaths(headers.get("x-death"))
    if not deaths:
        return Past(count, "", replay=False, arrived_ns=0)
    died_in, reason, moment = (deaths[0].get(name) for name in ("queue", "reason", "time"))
    cause = _CAUSES.get(reason, "") if isinstance(reason, str) else ""
    if not cause or died_in == here:
        return Past(count, "", replay=bool(cause), arrived_ns=0)
    arrived_ns = int(moment.timestamp() * 1e9) if isinstance(moment, datetime) else 0
    if cause != "expired" or (dead_letter and here == dead_letter):
        counted = options.max_deliveries and reason == "delivery_limit"
        return Past(count, "decided" if counted else cause, replay=False, arrived_ns=arrived_ns)
    count += sum(_number(death.get("count")) for death in deaths if death.get("queue") == here)
    ended = not dead_letter and any(death.get("reason") != "expired" for death in deaths)
    return Past(count, "", replay=ended or died_in == dead_letter, arrived_ns=arrived_ns)


def room(headers: Mapping[str, Any] | None, frame_max: int, measure: Callable[[], int]) -> int | None:
    """Return how many bytes are left for headers of ours; None where there are plenty.

    All properties and headers of a message have to fit into one frame of *frame_max* bytes (0 = no limit): a larger
    one ends the connection. *measure* tells the size of the properties as the client would write them; it is asked
    only where a guess at the *headers* does not do.
    """
    if not frame_max or _MOST_OURS + _guess(headers, frame_max) <= frame_max:
        return None
    return max(0, frame_max - _FRAME - measure())


def _guess(headers: Mapping[str, Any] | None, limit: int) -> int:
    size = 0
    for name, value in (headers or {}).items():
        if isinstance(value, str | bytes):
            size += _WIDEST * (len(name) + len(value))
        elif isinstance(value, dict | list | tuple):
            return limit
        else:
            size += _WIDEST * len(name)
    return size


def _deaths(found: object) -> list[dict[str, Any]]:
    entries = cast("list[object]", found)[:_MOST_DEATHS] if isinstance(found, list) else []
    return [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]


def _number(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0


def source(options: Options, queue: str | None, arguments: Mapping[str, Any] | None, *, no_ack: bool) -> Options:
    """Return the options for what comes from *queue*, which was declared with *arguments*.

    ``dead_letter_known`` is None where they do not say whether what is rejected becomes a dead letter (a policy of the
    broker's may), and False where it goes through the default exchange to a queue that is not the declared dead-letter
    queue: that is a waiting room, from which it comes back.
    """
    found = arguments or {}
    exchange, key = found.get("x-dead-letter-exchange"), found.get("x-dead-letter-routing-key")
    known = None
    if exchange is not None:
        waits = exchange == "" and key and options.dead_letter and key != options.dead_letter
        known = not waits
    return options.at(place(queue), manual=not no_ack, dead_letter_known=known)


def place(queue: str | None, unnamed: str = "(anonymous)") -> str:
    """Return a queue's name as a low-cardinality destination: *unnamed* where broker or client made the name up."""
    name = queue or ""
    made_up = name.startswith("amq.") or (name.startswith("amq_") and len(name) == len("amq_") + _HEX_DIGITS)
    return unnamed if made_up else name
