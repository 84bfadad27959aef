"""Redis calls: one command of a wrapped client, or one pipeline, with a hop of the right kind round it.

For all client classes, sync and asyncio: their overlays in ``redis`` only say how a command is run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context, attach, get_current

from rtobs._hop import engine, leaf
from rtobs._hop.batch import Place, Sends
from rtobs._hop.runtime import runtime
from rtobs._journey import envelope
from rtobs._journey.message import Message
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
        count = max(1, len(args) - commands.FIRST_VALUE) if command.shape == "payloads" else 1
        key = text(args[1])
        facts = Message(SYSTEM, key, address=key, carrier=self.options.carrier)
        self._sends = Sends([facts] * count, None if place is None else [place] * count)

    def __enter__(self) -> Self:
        self._sends.__enter__()
        if self.options.carrier:
            self.args = guarded(self._carrying, self.args)
        return self

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
        closed = [envelope.close(value, send.headers()) for value, send in zip(plain, self._sends.each, strict=False)]
        return (*args[:first], *closed)

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
        self._begun = runtime.monotonic_ns()
        self._around = get_current()
        attach(Context({**self._around, **leaf.SUPPRESS}))  # a neighbour's span beside ours would say the same
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        guarded(self._answered, None, text(question[1]), answer or ())

    def _answered(self, key: str, answer: Any) -> None:
        self._counts.update({(key, entry_id): count for entry_id, count in commands.deliveries(answer).items()})

    def result(self, reply: Any) -> Any:
        """Note what came."""
        return guarded(self._result, reply, reply)

    def _result(self, reply: Any) -> Any:
        if not reply:
            return reply
        came: list[Message] = []
        if self.command.shape in ("streams", "claimed"):
            for entry in self._read(reply):
                place = text(entry.key), text(entry.id)
                least = 2 if place[0] in self._reader.again else 1
                came.append(entry_facts(entry, self.options, self._reader, max(least, self._counts.get(place, 1))))
        else:
            reply = commands.each_item(self.command, self.args, reply, lambda key, item: self._item(key, item, came))
        for message in came:
            leaf.handed_out(message)
        leaf.receive(came, self._begun)
        return reply

    def _item(self, key: Any, item: Any, came: list[Message]) -> Any:
        if not isinstance(item, str | bytes):
            return item
        opened = envelope.open(item)
        payload, headers = opened if opened is not None else (item, {})
        if opened is not None and self.command.shape == "moved":
            encode = commands.encoder(self.client).encode
            moved.put(text(self.args[2]), bytes(encode(payload)), item)
        if self.command.shape != "shown":
            came.append(item_facts(key, payload, headers, self.options))
        return payload


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


def _call(client: Any, command: Command, args: tuple[Any, ...], place: Place | None = None) -> Call:
    """Return what has to be round *command*, one of ``COMMANDS``."""
    if command.role == "send":
        return _Sending(client, command, args, place)
    if command.role == "fetch":
        return _Fetching(client, command, args)
    if command.role == "settle":
        return _Settling(client, command, args)
    return Call(client, command, guarded(moved.named_in, args, args, commands.encoder(client)))


def run(client: Any, command: Command, execute: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run one command of a sync client by its own *execute*."""
    with _call(client, command, args) as call:
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
    with _call(client, command, args) as call:
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
    return getattr(command[0], "plain", command)


def queued(client: Any, command: Command, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments to queue."""
    if command.role == "remove":
        return _call(client, command, args).args
    if command.role != "send":
        return args
    name = Queued(text(args[0]))
    name.place = Place()
    return (name, *args[1:])


class Batch:
    """``with Batch(pipeline, queue):`` round the execution of a pipeline; one outcome for all that leaves with it."""

    __slots__ = ("_around", "_calls", "_client", "_errors", "_queue", "_was")

    def __init__(self, client: Any, queue: list[Any]) -> None:
        self._client = client
        self._queue = queue
        self._was: list[Any] = []
        self._calls: dict[int, Call] = {}
        self._errors: dict[int, BaseException] = {}
        self._around: Context | None = None

    def __enter__(self) -> Self:
        self._was = list(self._queue)
        around = self._around = get_current()
        for number, item in enumerate(self._was):
            guarded(self._open, None, number, item)
            attach(around)  # the next one is not inside this one
        if any(each.command.role != "settle" for each in self._calls.values()):
            attach(Context({**around, **leaf.SUPPRESS}))
        return self

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
        if is_a(replies, list) and len(replies) == len(self._was):
            for number, each in self._calls.items():
                if isinstance(replies[number], Exception):
                    self._errors[number] = replies[number]
                else:
                    replies[number] = each.result(replies[number])
        return replies

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue[:] = self._was  # what was not executed can be executed later
        for number, each in self._calls.items():
            each.__exit__(kind, self._errors.get(number, error), trace)
        if self._around is not None:
            attach(self._around)
