"""Kafka: what the leaves of its clients share: headers in and out, what a record says of itself, what a commit covers.

Must not know any client. A commit is not the acknowledgement of one message: it says that everything before an offset
is done with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from rtobs._hop import engine, leaf
from rtobs._journey.headers import MOST_PAIRS, ours_as_text
from rtobs._journey.message import Message, Position
from rtobs.integrations._twin import Options, guarded

SYSTEM = "kafka"

_LONGEST_KEY = 64
_CONTRIB = "opentelemetry.instrumentation."


# What messages say ---------------------------------------------------------------------------------------------------


def sent(options: Options, topic: object, value: object, key: object, partition: object = None) -> Message | None:
    """Return what is known of a message before it is sent; None where that is no message."""
    if not isinstance(topic, str):
        return None  # the client says what is wrong with it
    position = Position(
        partition if isinstance(partition, int) and partition >= 0 else None, None, _text(key),
        tombstone=value is None and key is not None,
    )  # fmt: skip
    return Message(SYSTEM, topic, address=topic, carrier=options.carrier, size=_size(value), position=position)


def stored(send: leaf.Send, partition: int | None, offset: int | None) -> None:
    """Note where the broker has put a message that was sent."""
    message = send.record.message if send.record is not None else None
    if message is not None and message.position is not None and partition is not None and offset is not None:
        message.id = f"{message.address}:{partition}:{offset}"
        message.position = message.position._replace(partition=partition, offset=offset)


def received(  # noqa: PLR0917  a fact each
    options: Options, native: object, topic: str, partition: int, offset: int, key: object, value: object, headers: Any,
) -> Message:  # fmt: skip
    """Return what a record says that a consumer with *options* has got; its leaf adds the record's time."""
    return Message(
        SYSTEM, topic, _last_of_each(headers), address=topic, id=f"{topic}:{partition}:{offset}", native=native,
        trust=options.trust, carrier=options.carrier, manual=options.manual and options.group != "",
        max_deliveries=options.max_deliveries, dead_cause="decided" if options.dead_letter == topic else "",
        dead_letter=None if options.dead_letter is None else bool(options.dead_letter), size=_size(value),
        group=options.group, position=Position(partition, offset, _text(key), tombstone=value is None),
    )  # fmt: skip


def _last_of_each(headers: Any) -> dict[str, Any]:
    """Return the headers by name; of several with one name the last counts, as everywhere in Kafka."""
    if not headers:
        return {}
    pairs = headers if len(headers) <= MOST_PAIRS else islice(reversed(headers), MOST_PAIRS)
    found: dict[str, Any] = dict(pairs) if pairs is headers else dict(reversed(list(pairs)))
    ours_as_text(found)  # a sixth of a hop: only text is read in the plain way
    return found


def _text(key: object) -> str:
    """Return a key as text; empty where it is none, or not short."""
    if key is None or isinstance(key, bool):
        return ""
    if isinstance(key, bytes) and len(key) <= _LONGEST_KEY:
        try:
            key = key.decode()
        except UnicodeDecodeError:
            return ""
    found = str(key) if isinstance(key, str | int) else ""
    return found if len(found) <= _LONGEST_KEY and found.isprintable() else ""


def _size(value: object) -> int:
    return len(value) if isinstance(value, bytes | bytearray | str) else 0


# Headers of what is sent ---------------------------------------------------------------------------------------------


def carrying(send: leaf.Send, headers: Any, room: int | None = None) -> Any:
    """Return new headers, the caller's and ours after them; the caller's own where there is nothing to add."""
    if headers.__class__ is dict:
        return send.headers(headers, room)
    if headers is None or (headers.__class__ is list and all(map(_is_pair, headers))):
        return send.pairs(headers, room, write=str.encode) or headers
    return headers  # the client says what is wrong with them


def _is_pair(value: Any) -> bool:
    return value.__class__ is tuple and len(value) == 2 and isinstance(value[0], str)  # noqa: PLR2004  a pair is two things


# Commits -------------------------------------------------------------------------------------------------------------


def committed(covers: Callable[[str, int, int], bool]) -> Message | None:
    """Return the message of the consume hop that is open here, if a commit covers its topic, partition and offset."""
    record = engine.current()
    while record is not None:
        message = record.message
        if record.kind == "consume" and message is not None and message.system == SYSTEM and message.position:
            partition, offset = message.position[:2]
            if partition is not None and offset is not None and covers(message.address, partition, offset):
                return message
            return None
        record = record.parent
    return None


def covered(offsets: Mapping[Any, Any] | None) -> Message | None:
    """Return the same for a commit of offsets by topic and partition; without any, of all that was consumed."""
    if offsets is None:
        return committed(lambda _topic, _partition, _offset: True)

    def covers(topic: str, partition: int, offset: int) -> bool:
        for place, upto in offsets.items():
            if tuple(place) == (topic, partition):
                return (upto if isinstance(upto, int) else upto[0]) > offset
        return False

    return committed(covers)


def sought(place: Any, offset: int) -> None:
    """Note on the consume hop that is open here that its record is to be read again."""
    message = committed(lambda topic, partition, at: tuple(place) == (topic, partition) and offset <= at)
    if message is not None:
        leaf.settled("requeued", message)


def settling(message: Message | None, destination: str = "") -> leaf.Settle:
    """Return what times a commit; *message*: what it settles."""
    return leaf.Settle("ack", "acked", message or Message(SYSTEM, destination))


# Neighbours and iterators --------------------------------------------------------------------------------------------


def own(method: Any) -> Any:
    """Return a client's method from under OpenTelemetry's instrumentation of it, which makes its span in any case."""
    return guarded(_under, method, method)


def _under(method: Any) -> Any:
    wrapper = getattr(method, "_self_wrapper", None)
    while wrapper is not None and getattr(wrapper, "__module__", "").startswith(_CONTRIB):
        method = method.__wrapped__
        wrapper = getattr(method, "_self_wrapper", None)
    return method


class Yielded:
    """What an iterator has yielded last: if no hop takes it, its wait is counted when the next is asked for."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: Message | None = None

    def let_go(self) -> None:
        """The next record is asked for, or the iterator ends."""
        last, self._last = self._last, None
        if last is not None:
            guarded(leaf.passed_by, None, last)

    __del__ = let_go

    def hand_out(self, message: Message, begun_ns: int) -> None:
        """Count *message* as received and keep it."""
        self._last = message
        leaf.receive([message], begun_ns, span=False)
        leaf.handed_out(message)
