"""pika: what is remembered of a channel and its connection, because a settlement only names a number.

Which delivered messages wait to be settled, bounded; what queues were declared with; how large a frame may be. And how
our methods come before those that another tool has put on the channel itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from rtobs._hop.handed import MOST
from rtobs._journey.message import Message

_UNSETTLED = "_rtobs_unsettled"
_DECLARED = "_rtobs_declared"
_MOST_QUEUES = 256
_ARGUMENTS_PLACE = 4
"""Where ``queue_declare`` has the queue's arguments, after its name: the fifth."""


class Unsettled(NamedTuple):
    """A delivered message, and whether it comes back from a waiting room where it is rejected."""

    message: Message
    waits: bool


def keep(channel: Any, message: Message, *, waits: bool) -> None:
    """Remember a message by the number that its settlement will name, without its headers."""
    waiting: dict[int, Unsettled] = channel.__dict__.setdefault(_UNSETTLED, {})
    native: Any = message.native
    light = Message(message.system, message.destination, native=native)
    waiting[native.delivery_tag] = Unsettled(light, waits)
    if len(waiting) > MOST:
        del waiting[next(iter(waiting))]


def waits_for(channel: Any, message: Message) -> bool:
    """Tell whether a message is not settled yet."""
    native: Any = message.native
    return native.delivery_tag in channel.__dict__.get(_UNSETTLED, ())


def take(channel: Any, tag: int, multiple: bool) -> Unsettled | None:  # noqa: FBT001  the client's own
    """Return what *tag* names, once; with *multiple* the last of all up to it, or of all where it is 0."""
    waiting: dict[int, Unsettled] | None = channel.__dict__.get(_UNSETTLED)
    if not waiting:
        return None
    if not multiple:
        return waiting.pop(tag, None)
    found = [waiting.pop(each) for each in list(waiting) if not tag or each <= tag]
    return found[-1] if found else None


def declare(channel: Any, queue: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Remember what a queue was declared with, for all channels of the connection; asking for it says nothing."""
    if args[:1] == (True,) or options.get("passive"):
        return
    declared = _queues(channel)
    if queue in declared or len(declared) < _MOST_QUEUES:
        declared[queue] = args[_ARGUMENTS_PLACE] if len(args) > _ARGUMENTS_PLACE else options.get("arguments")


def declared(channel: Any, queue: str) -> Mapping[str, Any] | None:
    """Return what a queue was declared with; None where that is not known."""
    return _queues(channel).get(queue)


def _queues(channel: Any) -> dict[str, Mapping[str, Any] | None]:
    return channel.connection.__dict__.setdefault(_DECLARED, {})  # type: ignore[no-any-return]


def frame_max(channel: Any) -> int:
    """Return how many bytes a frame may have on this channel, as agreed with the broker."""
    connection = channel.connection
    return int(getattr(connection, "_impl", connection).params.frame_max or 0)


def _class(channel: object) -> Any:
    return type(channel)


@contextlib.contextmanager
def over_neighbours(channel: Any) -> Generator[None]:
    """Let our methods come before those that OpenTelemetry's instrumentation of pika has put on the instance.

    Its ``basic_publish`` would make no span inside ours, so it goes. Its ``basic_consume`` puts a span round each
    callback, which is the hop's then: it stays, and calls ours.
    """
    own: dict[str, Any] = channel.__dict__
    if hasattr(own.get("basic_publish"), "_original_function"):
        del own["basic_publish"]
    theirs = own.pop("basic_consume") if hasattr(own.get("basic_consume"), "__wrapped__") else None

    def ours(*args: Any, **options: Any) -> Any:
        return _class(channel).basic_consume(channel, *args, **options)  # which `unwrap` changes

    yield
    if theirs is not None:
        theirs.__wrapped__, own["basic_consume"] = ours, theirs
