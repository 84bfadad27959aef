"""confluent-kafka: what its messages say, and the arguments of its calls wherever they stand.

Must not know how a client is instrumented.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_NOT_AVAILABLE,
    KafkaError,
    KafkaException,
    Message,
    SerializingProducer,
    TopicPartition,
)

from rtobs._hop.confirm import ConfirmedSend
from rtobs._journey.message import Message as Facts
from rtobs.integrations import _kafka
from rtobs.integrations._twin import Options, guarded

_PRODUCE = ("value", "key", "partition", "callback", "on_delivery", "timestamp", "headers")
_SERIALIZE = ("key", "value", "partition", "on_delivery", "timestamp", "headers")
_REPORTS = ("callback", "on_delivery")


def facts_of(native: Message, options: Options) -> Facts | None:
    """Return what one message says; None for an event of the client's, the end of a partition for instance."""
    topic, partition, offset = native.topic(), native.partition(), native.offset()
    if native.error() is not None or topic is None or partition is None or offset is None:
        return None
    facts = _kafka.received(options, native, topic, partition, offset, native.key(), native.value(), native.headers())
    clock, timestamp_ms = native.timestamp()
    if clock != TIMESTAMP_NOT_AVAILABLE and timestamp_ms > 0:
        facts.sent_ns = timestamp_ms * 1_000_000
        facts.sent_clock = "producer" if clock == TIMESTAMP_CREATE_TIME else "broker"
    return facts


class Produce:
    """The arguments of one ``produce`` after the topic."""

    __slots__ = ("_order", "args", "headers", "options")

    def __init__(self, client: object, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.args, self.options = list(args), dict(options)
        self._order = _SERIALIZE if isinstance(client, SerializingProducer) else _PRODUCE
        self.headers = self["headers"]
        """As the caller gave them."""

    def __getitem__(self, name: str) -> Any:
        place = self._order.index(name)
        return self.args[place] if place < len(self.args) else self.options.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        place = self._order.index(name)
        if place < len(self.args):
            self.args[place] = value
        else:
            self.options[name] = value

    def report_to(self, send: ConfirmedSend) -> None:
        """End the hop with the delivery report, if the caller asks for one.

        Without that the client would not call the one callback that its configuration may name for all messages.
        """
        for name in _REPORTS:
            if name in self._order and callable(self[name]):
                report = self[name] = _Report(self[name])
                send.until(report.done, lambda message: _stored(send, message))
                return


def _stored(send: ConfirmedSend, message: Message | None) -> None:
    if message is not None:
        _kafka.stored(send, message.partition(), message.offset())


class _Report:
    """The caller's delivery callback, and the end of the hop.

    A client that reports only errors lets go of it without a call: then the hop ends as well.
    """

    __slots__ = ("_callback", "done")

    def __init__(self, callback: Callable[..., object]) -> None:
        self._callback = callback
        self.done: Future[Message | None] = Future()

    def __call__(self, error: KafkaError | None, message: Message) -> object:
        guarded(self._end, None, error, message)
        guarded(self._let_go, None)
        return self._callback(error, message)

    def _end(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.done.set_result(message)
        else:
            self.done.set_exception(KafkaException(error))

    def __del__(self) -> None:
        guarded(self._let_go, None)

    def _let_go(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def is_too_large(error: KafkaException) -> bool:
    """Tell whether a client refuses a message for its size."""
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.code() == KafkaError.MSG_SIZE_TOO_LARGE


def covered(args: tuple[Any, ...], options: dict[str, Any]) -> Facts | None:
    """Return the message of the open hop that is settled by a commit, or by storing offsets for the next one."""
    message: Message | None = args[0] if args else options.get("message")
    offsets: list[TopicPartition] | None = args[1] if len(args) > 1 else options.get("offsets")
    if message is not None:
        return _kafka.covered({(message.topic(), message.partition()): (message.offset() or 0) + 1})
    return _kafka.covered(None if offsets is None else {(at.topic, at.partition): at.offset for at in offsets})


def group_of(metadata: object) -> str:
    """Return the group's name out of what a consumer says of its membership, which only librdkafka is to read."""
    raw = metadata if isinstance(metadata, bytes) else b""
    head, _, rest = raw.partition(b":")
    return rest[4:].partition(b"\0")[0].decode("utf-8", "replace") if head == b"CGMDv2" else ""
