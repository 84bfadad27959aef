"""Redis calls: one command of a wrapped client, or one pipeline, with a hop of the right kind round it.

For all client classes, sync and asyncio: their overlays in ``redis`` only say how a command is run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rtobs._hop import engine, leaf
from rtobs._hop.batch import Place, Sends
from rtobs._hop.context import Context, attach, get_current
from rtobs._journey import envelope
from rtobs._journey.message import Message
from rtobs._journey.outcome import ErrorCategory
from rtobs.integrations import _redis_commands as commands
from rtobs.integrations._redis_commands import COMMANDS, Command, Entry, Reader, is_a, text
from rtobs.integrations._redis_facts import SYSTEM, entry_facts, item_facts
from rtobs.integrations._twin import guarded, options_of

# One command ---------------------------------------------------------------------------------------------------------


class Call:
    """``with call:`` round running ``call.args``; what ``call.result(reply)`` returns is what the caller gets."""

    __slots__ = ("args", "client", "command", "options")

    def __init__(self, client: Any, command: Command, args: tuple[Any, ...]) -> None:
        self.client = client
        self.options = options_of(client)
        self.command = command
        self.args = args

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was opened."""

    def questions(self, reply: Any) -> Sequence[tuple[Any, ...]]:
        """Return further commands to run now; ``answered`` takes each reply, or None where there was none."""
        del reply
        return ()

    def answered(self, question: tuple[Any, ...], answer: Any) -> None:
        """Take the reply to one question."""

    def result(self, reply: Any) -> Any:
        """Return what the caller gets."""
        return reply


class _Sending(Call):
    """One message, or one for each value of a push."""

    __slots__ = ("_sends",)

    def __init__(self, client: Any, command: Command, args: tuple[Any, ...], place: Place | None = None) -> None:
        super().__init__(client, command, args)
        count = 1 if command.shape == "stream" else max(1, len(args) - commands.FIRST_VALUE)
        key = text(args[1])
        facts = Message(SYSTEM, key, address=key, carrier=self.options.carrier)
        self._sends = Sends([facts] * count, None if place is None else [place] * count)

    def __enter__(self) -> Self:
        self._sends.__enter__()
        if self.options.carrier:
            self.args = guarded(self._carrying, self.args)
        return self

    def _unroutable(self) -> None:
        for send in self._sends.each:
            if send.record is not None:
                send.record.category, send.record.reason = ErrorCategory.REJECTED_DOWNSTREAM, "unroutable"
                send.record.error_type = "unroutable"

    def _carrying(self) -> tuple[Any, ...]:
        args = self.args
        if self.command.shape == "stream":
            old = commands.old_field(args)
            packed = envelope.pack(self._sends.each[0].headers(envelope.unpack(args[old + 1]) if old else None))
            return commands.with_field(args, packed, old) if packed else args
        if not self.options.envelope:
            return args
        first = commands.FIRST_VALUE
        encode = commands.encoder(self.client).encode
        try:
            plain = [encode(value) for value in args[first:]]
        except Exception:  # noqa: BLE001  not a value for Redis: the client says so itself
            return args
        sends = self._sends.each
        if len(sends) != len(plain):  # some of them leave without us
            return args
        closed = [envelope.close(value, send.headers()) for value, send in zip(plain, sends, strict=True)]
        return (*args[:first], *closed)

    def result(self, reply: Any) -> Any:
        """Note where there was no key to add to, and the command was not to make one: nothing has been sent."""
        if not reply and self.command.shape in ("stream", "present"):
            guarded(self._unroutable, None)
        return reply

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sends.__exit__(kind, error, trace)


class _Fetching(Call):
    """What brings messages: the caller gets them without envelopes, and they are known until a hop takes them."""

    __slots__ = ("_around", "_begun", "_counts", "_entries", "_reader")

    def __init__(self, client: Any, command: Command, args: tuple[Any, ...]) -> None:
        super().__init__(client, command, args)
        self._around: Context | None = None
        self._begun = 0
        self._reader = Reader()
        self._entries: list[Entry] | None = None
        self._counts: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        self._begun = leaf.now_ns()
        guarded(self._alone, None)
        return self

    def _alone(self) -> None:
        self._around = get_current()
        attach(Context({**self._around, **leaf.SUPPRESS}))  # a neighbour's span beside ours would say the same

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guarded(self._back, None)

    def _back(self) -> None:
        if self._around is not None:
            attach(self._around)

    def _read(self, reply: Any) -> list[Entry]:
        if self._entries is None and self.command.shape in ("streams", "claimed"):
            self._reader = commands.reader(self.command, self.args)
            self._entries = list(commands.entries(self.command, self.args, reply))
        return self._entries or []

    def questions(self, reply: Any) -> Sequence[tuple[Any, ...]]:
        """Ask how often each message was delivered, where it was before."""
        return guarded(self._questions, (), reply)

    def _questions(self, reply: Any) -> Sequence[tuple[Any, ...]]:
        again: dict[str, list[Entry]] = {}
        for entry in self._read(reply):
            if text(entry.key) in self._reader.again:
                again.setdefault(text(entry.key), []).append(entry)
        return [
            commands.question(found[0].key, self._reader, [entry.id for entry in found]) for found in again.values()
        ]

    def answered(self, question: tuple[Any, ...], answer: Any) -> None:
        """Keep the counts."""
        guarded(self._answered, None, question[1], answer or ())

    def _answered(self, stream: Any, answer: Any) -> None:
        key = text(stream)
        self._counts.update({(key, entry_id): count for entry_id, count in commands.deliveries(answer).items()})

    def result(self, reply: Any) -> Any:
        """Note what came, and take envelopes off."""
        if not reply:
            return reply
        if self.command.shape in ("streams", "claimed"):
            guarded(self._entries_came, None, reply)
            return reply
        # Twice, for an envelope that is not taken off reaches the host.
        found = guarded(self._opened, None, reply) or guarded(self._opened, None, reply)
        if found is None:
            return reply
        guarded(self._items_came, None, found[1])
        return found[0]

    def _opened(self, reply: Any) -> tuple[Any, list[tuple[Any, Any, Any, dict[str, str]]]]:
        items: list[tuple[Any, Any, Any, dict[str, str]]] = []

        def opened(key: Any, item: Any) -> Any:
            if not isinstance(item, str | bytes):
                return item
            payload, headers = envelope.open(item) or (item, {})
            items.append((key, item, payload, headers))
            return payload

        return commands.each_item(self.command, self.args, reply, opened), items

    def _items_came(self, items: list[tuple[Any, Any, Any, dict[str, str]]]) -> None:
        if self.command.shape == "shown":
            return
        if self.command.shape == "moved":
            for _, item, payload, _ in items:
                if payload is not item:
                    _ = guarded(self._moved, False, payload, item) or guarded(self._moved, False, payload, item)  # noqa: FBT003  "not done"
        self._came([item_facts(key, payload, headers, self.options) for key, _, payload, headers in items])

    def _moved(self, payload: Any, item: Any) -> bool:
        """Remember what the server calls an item: who could not name it would never get it off the list again."""
        moved.put(text(self.args[2]), bytes(commands.encoder(self.client).encode(payload)), item)
        return True

    def _entries_came(self, reply: Any) -> None:
        came: list[Message] = []
        for entry in self._read(reply):
            place = text(entry.key), text(entry.id)
            least = 2 if place[0] in self._reader.again else 1
            came.append(entry_facts(entry, self.options, self._reader, max(least, self._counts.get(place, 1))))
        self._came(came)

    def _came(self, messages: list[Message]) -> None:
        for message in messages:
            leaf.handed_out(message)
        leaf.receive(messages, self._begun)


class _Settling(Call):
    """XACK and its like: in the hop of one of the messages they name they settle it."""

    __slots__ = ("_settle",)

    def __init__(self, client: Any, command: Command, args: tuple[Any, ...]) -> None:
        super().__init__(client, command, args)
        message = guarded(_message_of, None, args) or Message(SYSTEM, text(args[1]))
        self._settle = leaf.Settle(command.shape, commands.SETTLEMENTS[command.shape], message)

    def __enter__(self) -> Self:
        self._settle.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle.__exit__(kind, error, trace)


def _message_of(args: tuple[Any, ...]) -> Message | None:
    """Return the message of the hop that is open here, if its id is among those that are settled."""
    key, ids = text(args[1]), {text(value) for value in args[3:]}
    record = engine.current()
    while record is not None:
        message = record.message
        if message is not None and message.system == SYSTEM and message.address in (key, "") and message.id in ids:
            return message
        record = record.parent
    return None


moved = commands.Moved()


def named(args: tuple[Any, ...], client: Any) -> tuple[Any, ...]:
    """Return LREM's arguments with the item as the server knows it."""
    found = guarded(moved.named_in, None, args, client) or guarded(moved.named_in, None, args, client)
    return found or args


def _call(client: Any, command: Command, args: tuple[Any, ...], place: Place | None = None) -> Call:
    """Return what has to be round *command*, one of ``COMMANDS``."""
    if command.role == "send":
        return _Sending(client, command, args, place)
    if command.role == "fetch":
        return _Fetching(client, command, args)
    if command.role == "settle":
        return _Settling(client, command, args)
    return Call(client, command, named(args, client))


def run(client: Any, command: Command, execute: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run one command of a sync client by its own *execute*."""
    # Twice, for messages that are not looked at reach the host with their envelopes.
    found = guarded(_call, None, client, command, args) or guarded(_call, None, client, command, args)
    if found is None:
        return execute(*args, **options)
    with found as call:
        reply = execute(*call.args, **options)
        for question in call.questions(reply):
            try:
                answer = execute(*question, parse_detail=True)
            except Exception:  # noqa: BLE001  forbidden, or the connection is gone: then nobody knows
                answer = None
            call.answered(question, answer)
        return call.result(reply)


async def run_async(client: Any, command: Command, execute: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run one command of an asyncio client by its own *execute*."""
    found = guarded(_call, None, client, command, args) or guarded(_call, None, client, command, args)
    if found is None:
        return await execute(*args, **options)
    with found as call:
        reply = await execute(*call.args, **options)
        for question in call.questions(reply):
            try:
                answer = await execute(*question, parse_detail=True)
            except Exception:  # noqa: BLE001  as above
                answer = None
            call.answered(question, answer)
        return call.result(reply)


# Pipelines -----------------------------------------------------------------------------------------------------------


class Queued(str):
    """A command's name in a pipeline's queue, which remembers where it was queued, and then the command without us."""

    __slots__ = ("place", "plain")
    place: Place
    plain: tuple[Any, ...]


def plain(command: Any) -> Any:
    """Return a queued command as the caller gave it, for the client's error messages."""
    return guarded(_plain, command, command)


def _plain(command: Any) -> Any:
    return getattr(command[0], "plain", command)


def queued(client: Any, command: Command, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments to queue."""
    if command.role == "remove":
        return named(args, client)
    return guarded(_placed, args, args) if command.role == "send" else args


def _placed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    name = Queued(text(args[0]))
    name.place = Place()
    return (name, *args[1:])


class Batch:
    """``with Batch(pipeline, queue):`` round the execution of a pipeline; one outcome for all that leaves with it."""

    __slots__ = ("_around", "_calls", "_client", "_errors", "_find", "_queue", "_seen", "_was")

    def __init__(self, client: Any, find: Callable[[Any], list[Any]]) -> None:
        """Say where a pipeline keeps its queue."""
        self._client = client
        self._find = find
        self._queue: list[Any] = []
        self._was: list[Any] = []
        self._calls: dict[int, Call] = {}
        self._errors: dict[int, BaseException] = {}
        self._seen: dict[int, None] = {}
        self._around: Context | None = None

    def __enter__(self) -> Self:
        guarded(self._open_all, None)
        return self

    def _open_all(self) -> None:
        self._queue = self._find(self._client)
        self._was = list(self._queue)
        around = self._around = get_current()
        for number, item in enumerate(self._was):
            guarded(self._open, None, number, item)
        if any(each.command.role != "settle" for each in self._calls.values()):
            attach(Context({**around, **leaf.SUPPRESS}))

    def _open(self, number: int, item: Any) -> None:
        args = item[0] if is_a(item, tuple) else item.args  # of a cluster's pipeline, each is an object
        command = COMMANDS.get(args[0])
        if command is None or command.role == "remove":
            return
        each = self._calls[number] = _call(self._client, command, args, getattr(args[0], "place", None))
        each.__enter__()
        if isinstance(args[0], Queued):
            args[0].plain = args
        if is_a(item, tuple):
            self._queue[number] = each.args, item[1]
        else:
            self._queue[number] = again = copy.copy(item)
            again.args = each.args

    def results(self, replies: Any) -> Any:
        """Return what the caller gets for *replies*, one for each command."""
        # Twice, as above; what has been looked at the first time is not looked at again.
        if not guarded(self._results, False, replies):  # noqa: FBT003  "not done"
            guarded(self._results, False, replies)  # noqa: FBT003  as above
        return replies

    def _results(self, replies: Any) -> bool:
        if is_a(replies, list) and len(replies) == len(self._was):
            for number, each in self._calls.items():
                if number in self._seen:
                    continue
                if isinstance(replies[number], Exception):
                    self._errors[number] = replies[number]
                else:
                    replies[number] = each.result(replies[number])
                self._seen[number] = None
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue[:] = self._was  # what was not executed can be executed later
        guarded(self._close_all, None, error)
        guarded(self._back, None)

    def _close_all(self, error: BaseException | None) -> None:
        for number, each in self._calls.items():
            each.__exit__(None, self._errors.get(number, error), None)

    def _back(self) -> None:
        if self._around is not None:
            attach(self._around)
