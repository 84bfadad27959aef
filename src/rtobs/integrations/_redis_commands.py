"""Redis commands: which of them send, fetch or settle messages, and where in arguments and replies the messages are.

Knows the calls of redis-py and its reply shapes in both protocols; must not know hops. Replies may have any shape, as
callbacks can be replaced: what does not fit is left alone.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from rtobs._hop.handed import MOST, MOST_BYTES
from rtobs._journey.record import Settlement

Role = Literal["send", "fetch", "settle", "remove"]

FIELD = b"rtobs"
"""The stream field that holds the carrier."""
FIELDS = (FIELD, FIELD.decode())
FIRST_VALUE = 2
"""Where payloads begin in PUBLISH and the pushes."""
_FEWEST = 5
"""Arguments that XADD has at least: its name, the key, an id, a field and its value."""
_OPTIONS = 4
"""Where XREADGROUP's options begin."""
_PAIR = 2
_REMOVAL = 4
"""Arguments of LREM: its name, the key, how many, the value."""
MOST_PENDING = 1000
"""Entries of the list of pending ones that are looked at to find how often a message was delivered."""

_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)


class Command(NamedTuple):
    """What one command does with messages."""

    role: Role
    shape: str
    """Where its messages are: in the arguments of a send, in the reply of a fetch."""


_WORDS: dict[tuple[Role, str], str] = {
    ("send", "stream"): "XADD",
    ("send", "payloads"): "PUBLISH SPUBLISH LPUSH RPUSH",
    ("send", "present"): "LPUSHX RPUSHX",  # payloads too, but only for a list that is there
    ("fetch", "streams"): "XREAD XREADGROUP",
    ("fetch", "claimed"): "XCLAIM XAUTOCLAIM",
    ("fetch", "items"): "LPOP RPOP",
    ("fetch", "moved"): "LMOVE BLMOVE RPOPLPUSH BRPOPLPUSH",
    ("fetch", "pair"): "BLPOP BRPOP",
    ("fetch", "several"): "LMPOP BLMPOP",
    ("fetch", "shown"): "LRANGE LINDEX",  # not taken: only read
    ("settle", "ack"): "XACK XACKDEL",
    ("settle", "nack"): "XNACK",
    ("remove", ""): "LREM",
}

COMMANDS: dict[Any, Command] = {
    spelling: Command(role, shape)
    for (role, shape), words in _WORDS.items()
    for word in words.split()
    for spelling in (word, word.lower(), word.encode(), word.lower().encode())
}
"""By the first argument of ``execute_command``; every other command is not ours."""

SETTLEMENTS: dict[str, Settlement] = {"ack": "acked", "nack": "requeued"}


def is_a(value: Any, *kinds: type) -> bool:
    """Tell whether a value of the client's is of one of these kinds; it stays untyped, as the client has it."""
    return isinstance(value, kinds)


def text(value: Any) -> str:
    """Return a key, channel or id as text."""
    if isinstance(value, str):
        return value
    return bytes(value).decode("utf-8", "replace") if is_a(value, bytes, bytearray, memoryview) else str(value)


def moment(entry_id: str) -> tuple[int, int] | None:
    """Return the milliseconds since the epoch and the number in a stream id; None where it is none."""
    match = _ID.fullmatch(entry_id)
    return (int(match[1]), int(match[2])) if match is not None else None


# Streams -------------------------------------------------------------------------------------------------------------


def old_field(args: tuple[Any, ...]) -> int:
    """Return where XADD's arguments have a field of ours, as those of a forwarded entry do; 0 = nowhere."""
    if FIELD not in args and FIELDS[1] not in args:
        return 0
    return next((place for place in range(len(args) - 2, FIRST_VALUE, -2) if args[place] in FIELDS), 0)


def with_field(args: tuple[Any, ...], packed: bytes, old: int) -> tuple[Any, ...]:
    """Return XADD's arguments with our field last, so that its options keep their places, and without the *old* one."""
    if len(args) < _FEWEST:
        return args  # the server refuses it, and would not with a field of ours
    return (*args[:old], *args[old + 2 :], FIELD, packed) if old else (*args, FIELD, packed)


class Reader(NamedTuple):
    """Who reads streams."""

    group: str = ""
    consumer: Any = ""
    settles: bool = False
    """Whether what it reads has to be acknowledged."""
    again: frozenset[str] = frozenset()
    """Streams of which it reads what was delivered before."""


def reader(command: Command, args: tuple[Any, ...]) -> Reader:
    """Return what the arguments of a fetch from streams say."""
    if command.shape == "claimed":
        return Reader(text(args[2]), args[3], settles=True, again=frozenset({text(args[1])}))
    if text(args[0]).upper() == "XREAD":
        return Reader()
    options = [text(value).upper() for value in args[_OPTIONS:]]
    first = _OPTIONS + options.index("STREAMS") + 1
    half = (len(args) - first) // 2
    again = {text(args[first + n]) for n in range(half) if text(args[first + half + n]) != ">"}
    settles = "NOACK" not in options[: first - _OPTIONS]
    return Reader(text(args[2]), args[3], settles=settles, again=frozenset(again))


class Entry(NamedTuple):
    """One entry of a stream."""

    key: Any
    id: Any
    fields: dict[Any, Any]


def entries(command: Command, args: tuple[Any, ...], reply: Any) -> Iterator[Entry]:
    """Yield what a fetch from streams brought. Entries that were deleted meanwhile have no fields and are none."""
    found: list[tuple[Any, Any]]
    if command.shape == "claimed":
        # XAUTOCLAIM says where to go on, and then the entries; asked for ids only, it has just these.
        lists = [reply] if text(args[0]).upper() == "XCLAIM" else reply[1:2]
        found = [(args[1], rows) for rows in lists if is_a(rows, list)]
    else:
        found = list(reply.items() if is_a(reply, dict) else reply)
    for key, rows in found:
        for row in rows:
            # By RESP3, in redis-py's older shape, the entries of a stream are in a list of one.
            for each in row if is_a(row, list) else (row,):
                if is_a(each, tuple) and len(each) >= _PAIR and is_a(each[1], dict) and each[1]:
                    yield Entry(key, each[0], each[1])


def question(key: Any, reader: Reader, ids: Sequence[Any]) -> tuple[Any, ...]:
    """Return the command that tells how often the messages *ids*, all of one stream, have been delivered."""
    ordered = sorted(ids, key=lambda value: moment(text(value)) or (0, 0))
    return "XPENDING", key, reader.group, ordered[0], ordered[-1], MOST_PENDING, reader.consumer


def deliveries(answer: Any) -> dict[str, int]:
    """Return by id how often messages have been delivered."""
    return {text(row["message_id"]): int(row["times_delivered"]) for row in answer}


# Lists ---------------------------------------------------------------------------------------------------------------


def each_item(command: Command, args: tuple[Any, ...], reply: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Return *reply* with ``change(key, item)`` in the place of each item of a list."""
    if command.shape in ("pair", "several"):
        if not is_a(reply, list, tuple) or len(reply) != _PAIR:
            return reply
        key, found = reply
        found = [change(key, item) for item in found] if is_a(found, list) else change(key, found)
        return type(reply)((key, found))
    if is_a(reply, list):
        return [change(args[1], item) for item in reply]
    return change(args[1], reply)


def encoder(client: Any) -> Any:
    """Return what turns a client's values into bytes."""
    client = getattr(client, "cluster_client", client)
    found = getattr(client, "encoder", None)
    return found if found is not None else client.get_encoder()


class Moved:
    """Items in an envelope that LMOVE and its like have put into another list, the oldest go first.

    Who takes such an item off that list names it to LREM by what he got, the payload; the server knows it with its
    envelope. All methods may be called from any thread.
    """

    __slots__ = ("_bytes", "_count", "_items", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._items: OrderedDict[tuple[str, bytes], list[Any]] = OrderedDict()
        self._count = self._bytes = 0

    def put(self, key: str, payload: bytes, item: Any) -> None:
        """Remember that *item*, which is *payload* in an envelope, is in list *key*."""
        with self._lock:
            found = self._items.setdefault((key, payload), [])
            size = len(item)
            found.append(item)
            self._count += 1
            self._bytes += size
            while self._count > MOST or (self._bytes > MOST_BYTES and self._count > 1):
                _, gone = self._items.popitem(last=False)
                self._forget(gone)

    def take(self, key: str, payload: bytes) -> Any:
        """Return the item that is *payload* in list *key*, once, the one that was put there first; None: not known."""
        with self._lock:
            found = self._items.get((key, payload))
            if not found:
                return None
            item = found[0]
            self._forget([item])
            del found[0]
            if not found:
                del self._items[key, payload]
            return item

    def _forget(self, gone: list[Any]) -> None:
        count, size = len(gone), sum(map(len, gone))
        self._count -= count
        self._bytes -= size

    def named_in(self, args: tuple[Any, ...], client: Any) -> tuple[Any, ...]:
        """Return LREM's arguments with the item as the server knows it."""
        if not self._items or len(args) != _REMOVAL:
            return args
        encode = encoder(client).encode
        try:
            encoded = encode(args[-1])
        except Exception:  # noqa: BLE001  not a value for Redis: the client says so itself
            return args
        item = self.take(text(args[1]), bytes(encoded))
        return args if item is None else (*args[:-1], item)
