"""The plain case, in one piece: a message published, or handled, with no other hop or span around it.

Most messages of most systems are plain, and what a hop costs is mostly calls, so what ``engine``, ``leaf`` and
``carrier`` do for every message in a dozen of them stands here once more as one. Whatever is not plain is left to
them: nothing is done then, and None is returned. ``tests/_hop/test_plain.py`` holds both ways to the same.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.trace.propagation import _SPAN_KEY as SPAN_KEY

from rtobs._hop.clock import PAST_LIMIT_US
from rtobs._hop.context import Context, attach
from rtobs._hop.engine import HOP_KEY, MOST_OPEN
from rtobs._hop.leaf import received
from rtobs._hop.runtime import runtime
from rtobs._hop.slots import slots
from rtobs._journey.carrier import read_plain
from rtobs._journey.journey import Journey, new_root
from rtobs._journey.message import Message
from rtobs._journey.record import HopRecord, Kind

_new: Any = object.__new__


def publish(name: str, context: Context) -> HopRecord | None:
    """Open a publish hop that begins a journey, and make it current; *context* is empty."""
    if runtime.id_generator is not None or len(runtime.open_hops) >= MOST_OPEN:
        return None
    wall_ns, start_ns = runtime.wall_ns(), runtime.monotonic_ns()
    identity, span = new_root(wall_ns)  # the span's id is about to be asked for
    journey: Journey = _new(Journey)  # as its constructor does it, without the call
    journey.correlation_id = identity
    journey.created_us = wall_ns // 1000
    journey.sent_us = 0
    journey.attempt = 1
    journey.tenant = journey.region = journey.source = journey.ledger = ""
    journey.named = False
    journey.rare = None
    return _open("publish", name, None, journey, identity, "", span, False, None, 1, wall_ns, start_ns, context)  # noqa: FBT003  see there


def consume(name: str, message: Message, context: Context) -> HopRecord | None:
    """Open the hop that handles *message*, and make it current; *context* is empty."""
    headers: Any = message.headers
    if (
        type(headers) is not dict
        or message.trust != "trusted"
        or message.release_ns
        or message.dead_cause
        or message.replay
        or slots.workers
        or runtime.wire_key is not None
        or len(runtime.open_hops) >= MOST_OPEN
        or (found := read_plain(headers)) is None  # pyright: ignore[reportUnknownArgumentType]  a dict of the host's
    ):
        return None
    trace, parent, flags, journey = found
    wall_ns, start_ns = runtime.wall_ns(), runtime.monotonic_ns()
    lag_us = wall_ns // 1000 - journey.sent_us
    if not (journey.created_us and 0 <= lag_us <= PAST_LIMIT_US):
        return None
    attempt = journey.attempt
    if message.delivery_count > 1:
        attempt += message.delivery_count - 1
    if received.waiting:
        received.take(message.native)
    return _open(
        "consume", name, message, journey, trace, parent, "", flags in "13", lag_us / 1e6, attempt, wall_ns, start_ns,
        context,
    )  # fmt: skip


def _open(  # noqa: PLR0917  all by position: names would cost as much as the work
    kind: Kind, name: str, message: Message | None, journey: Journey, trace: str, parent: str, span: str,
    sampled: bool, lag: float | None, attempt: int, wall_ns: int, start_ns: int, context: Context,  # noqa: FBT001  as above
) -> HopRecord:  # fmt: skip
    """Make the record, every field of it once, let its sampling be decided, and make it current."""
    record: HopRecord = _new(HopRecord)
    record.kind = kind
    record.name = name
    record.message = message
    record.journey = journey
    record.trace_hex = trace
    record.parent_hex = parent
    record.drawn_hex = span
    record.sampled = sampled
    record.lag = lag
    record.lag_source = "producer" if lag is not None else ""
    record.attempt = attempt
    record.wall_ns = wall_ns
    record.start_ns = start_ns
    record.previous = context
    record.named = True
    record.duration_ns = record.sends = record.number = record.handed_ns = 0
    record.tracestate = record.settlement = ""
    record.span_context = record.attributes = record.events = record.links = record.rare = record.parent = None
    record.scope = record.adopted = record.told = record.opener = record.layer = None
    record.outcome = record.settled = record.stages = None
    record.ended = record.auto = record.held = record.healthy = False
    record.sampled = runtime.begin(record)
    runtime.open_hops.add(record)
    try:
        attach({HOP_KEY: record, SPAN_KEY: record.adopted or record})  # type: ignore[arg-type]  # a Context can do no more but refuse to be changed
    except Exception:
        runtime.open_hops.discard(record)
        raise
    return record
