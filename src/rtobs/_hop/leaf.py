"""What a leaf calls: one send, one processing, one receive, one settlement of a native message.

Leaves supply facts; this room decides whether they open a hop or join one that is open (DESIGN: one hop per kind and
message). It must not know any client.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, create_key, get_current

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop import engine
from rtobs._hop.clock import age_us
from rtobs._hop.finish import count_promises
from rtobs._hop.handed import Handed
from rtobs._hop.runtime import runtime
from rtobs._journey import carrier
from rtobs._journey.message import Message
from rtobs._journey.outcome import Outcome
from rtobs._journey.record import HopRecord, Settlement

LAYER_KEY = create_key("rtobs-send-layer")
SUPPRESS = {_SUPPRESS_INSTRUMENTATION_KEY: True, "suppress_instrumentation": True}
SLOW_CONFIRM_NS = 1_000_000_000
"""A broker that takes longer than this to take one message holds its sender back."""
_count_lock = threading.Lock()


def note_message(record: HopRecord, message: Message) -> None:
    """Add what a leaf knows of the message to an open hop; the layer nearest the broker knows best."""
    record.message = message
    if not record.named:
        record.name = message.destination


# Sending -------------------------------------------------------------------------------------------------------------


class _Layer:
    """One wrapped send that is under way; a send inside it is the same message, once."""

    __slots__ = ("record", "used")

    def __init__(self, record: HopRecord) -> None:
        self.record = record
        self.used = False


def open_publish(name: str, ambient: HopRecord | None, message: Message | None = None) -> HopRecord:
    """Start a publish hop, counted at its publisher; from the 33rd on it has a trace of its own.

    Not where an SDK span stands for it: that one's ids are fixed when it starts.
    """
    sibling = ambient if ambient is not None and ambient.kind == "publish" else None
    publisher = sibling.parent if sibling is not None else ambient
    record = engine.start("publish", name, publisher or sibling, message=message)
    if sibling is not None and publisher is None:
        record.parent, record.scope = None, None
        record.parent_span_id, record.parent_trace_id = sibling.parent_span_id, sibling.parent_trace_id
    if publisher is not None:
        with _count_lock:
            publisher.sends += 1
            number = publisher.sends
        if number > engine.FANOUT_LIMIT and publisher.kind != "job" and record.adopted is None:
            engine.restart_trace(record, publisher)
    return record


class Send:
    """``with Send(message) as send:`` round the client's own call; ``send.headers(existing)`` goes with it."""

    __slots__ = ("_begun_ns", "_message", "_owner", "_previous", "record")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._owner = False
        self._begun_ns = 0
        self._previous: Context | None = None
        self.record: HopRecord | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  the send goes on without us
            _guard.fault("leaf.send", error)
            self.record = None
        return self

    def _open(self) -> None:
        context = get_current()
        ambient = engine.current()
        layer = context.get(LAYER_KEY)
        if isinstance(layer, _Layer) and layer.record is ambient and not layer.record.ended and not layer.used:
            layer.used = True
            record = layer.record  # the send around times the broker
        elif ambient is not None and ambient.kind == "publish" and not ambient.ended and ambient.layer is None:
            record = ambient
            self._begun_ns = runtime.monotonic_ns()
        else:
            record = open_publish(self._message.destination, ambient, self._message)
            record.auto = self._owner = True
            self._begun_ns = record.start_ns
        self.record = record
        record.layer = own = _Layer(record)
        if self._owner:
            engine.enter(record, {LAYER_KEY: own, **SUPPRESS})
        else:
            note_message(record, self._message)
            self._previous = context
            attach(Context({**context, LAYER_KEY: own, **SUPPRESS}))

    def headers(self, existing: Any = None, room: int | None = None) -> dict[str, Any]:
        """Return a new dictionary: the caller's headers as they are, ours added or replaced.

        *room*: bytes that ours may take beside the caller's, with four for each line's ``: `` and end; where that is
        not enough they stay out, counted.
        """
        merged: dict[str, Any] = dict(existing) if existing else {}
        record = self.record
        if record is None or not self._message.carrier:
            return merged
        try:
            own = send_headers(record)
            if len(merged) > 0:
                for name in names.OWN_HEADERS:
                    merged.pop(name, None)
                keep_foreign_baggage(own, existing)
            if room is not None and room < sum(len(f"{n}{v}".encode("utf-8", "replace")) + 4 for n, v in own.items()):
                _guard.tally(names.PROPAGATION_REJECTED, "too_long")
                return dict(existing) if existing else {}
            merged.update(own)
        except Exception as error:  # noqa: BLE001  the message leaves without a journey rather than not at all
            _guard.fault("leaf.headers", error)
        return merged

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self.record
        if record is None:
            return
        try:
            if self._begun_ns and runtime.monotonic_ns() - self._begun_ns > SLOW_CONFIRM_NS:
                runtime.observe(names.BACKPRESSURE, 1, {names.Label.REASON: "slow_confirm"})
            if error is None:
                record.send_error = None
                count_promises(record)
            if self._owner:
                engine.leave(record)
                engine.end(record, error)
                return
            if error is not None:
                record.layer = None  # the next try binds again
                record.send_error = error
            if self._previous is not None and get_current().get(engine.HOP_KEY) is record:
                attach(self._previous)
        except Exception as fault:  # noqa: BLE001  the host's result or exception goes on unchanged
            _guard.fault("leaf.send", fault)


def send_headers(record: HopRecord) -> dict[str, str]:
    """Return the headers of a message that *record* sends, numbered as a retry where it is one."""
    consumed = record.parent
    attempt = 1
    if (
        consumed is not None
        and consumed.kind == "consume"
        and consumed.message is not None
        and record.message is not None
    ):
        again = consumed.explicit is Outcome.RETRIED or (
            record.message.system == consumed.message.system
            and consumed.message.destination in (record.message.destination, record.message.address)
        )
        if again:
            attempt = consumed.attempt + 1
    return engine.headers_of(record, attempt)


def keep_foreign_baggage(own: dict[str, str], existing: Any) -> None:
    """Keep members of a baggage header that the caller set himself, and that the hop does not carry on anyway."""
    found = carrier.read(existing, names.BAGGAGE, carrier.BAGGAGE_LIMIT)
    if found:
        written = own[names.BAGGAGE].split(",")
        foreign = [member for member in carrier.split_baggage(found)[0].split(",") if member and member not in written]
        own[names.BAGGAGE] = ",".join((*written, *foreign))


# Consuming -----------------------------------------------------------------------------------------------------------


def open_consume(
    name: str, ambient: HopRecord | None, message: Message | None, headers: object, trust: Any
) -> HopRecord:
    """Start a consume hop from what the message carries."""
    record = engine.start("consume", name, ambient, message=message, headers=headers, trust=trust)
    journey = record.journey
    if message is not None:
        if journey is not None:
            record.attempt = journey.attempt + max(message.delivery_count, 1) - 1
            if message.dead_cause or message.replay:
                journey.replay = True
        received.take(message.native)
    elif journey is not None:
        record.attempt = journey.attempt
    if record.missing_carrier:
        _guard.tally(names.PROPAGATION_MISSING, name)
    engine.measure_lag(record)
    return record


def joins_consume(ambient: HopRecord | None, message: Message | None) -> bool:
    """Tell whether a leaf's message is the one that the current consume hop is about."""
    return (
        ambient is not None
        and ambient.kind == "consume"
        and not ambient.ended
        and message is not None
        and ambient.message is not None
        and message.is_same(ambient.message)
    )


class Process:
    """``with Process(message):`` round the user's handler of one message, where no user code has opened a hop."""

    __slots__ = ("_message", "_owner", "record")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._owner = False
        self.record: HopRecord | None = None

    def __enter__(self) -> Self:
        try:
            ambient = engine.current()
            message = self._message
            if joins_consume(ambient, message):
                self.record = ambient
            else:
                record = open_consume(message.destination, ambient, message, message.headers, message.trust)
                record.auto = self._owner = True
                self.record = record
                engine.enter(record)
        except Exception as error:  # noqa: BLE001  the handler runs without a hop
            _guard.fault("leaf.process", error)
            self.record = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self.record
        if record is None or not self._owner:
            return
        try:
            engine.leave(record)
            engine.end(record, error)
        except Exception as fault:  # noqa: BLE001  the host's result or exception goes on unchanged
            _guard.fault("leaf.process", fault)


# Receiving and settling ----------------------------------------------------------------------------------------------

received = Handed()
"""Messages that an iterator or a fetch has handed out and no hop has taken yet, and when."""


def receive(messages: Sequence[Message], begun_ns: int, *, span: bool = True) -> None:
    """Record one fetch that brought *messages*; *begun_ns* is monotonic. An empty fetch is nothing.

    With *span* it becomes a span of its own, linked to what it fetched; prefetching iterators pass False.
    """
    if not messages:
        return
    try:
        first = messages[0]
        if not span:
            duration = (runtime.monotonic_ns() - begun_ns) / 1e9
            runtime.observe(names.CLIENT_DURATION, duration, _operation(first, "receive", ""))
            return
        record = engine.start("receive", first.destination, engine.current(), message=first)
        record.wall_ns -= record.start_ns - begun_ns
        record.start_ns = begun_ns
        record.note(names.Attribute.BATCH_COUNT, len(messages))
        for parent in _parents(messages):
            record.link(parent.trace_id, parent.span_id, parent.flags)
        engine.end(record)
    except Exception as error:  # noqa: BLE001  the messages go on to the host
        _guard.fault("leaf.receive", error)


def _parents(messages: Iterable[Message]) -> Iterable[carrier.Parent]:
    for message in messages:
        found = carrier.parse_traceparent(carrier.read(message.headers, names.TRACEPARENT, carrier.TRACEPARENT_LIMIT))
        if found is not None:
            yield found


def handed_out(message: Message) -> None:
    """Remember a message that an iterator yields or a fetch brings, until a hop takes it or ``passed_by`` asks."""
    received.put(message, runtime.wall_ns())


def known(native: object) -> Message | None:
    """Return what is known of a native object: it was handed out and waits, or the current hop is about it."""
    found = received.look(native)
    if found is None:
        record = engine.current()
        if record is not None and record.message is not None and record.message.native is native:
            return record.message
    return found


def passed_by(message: Message) -> None:
    """Record the lag of a message that an iterator yielded and that no hop has taken."""
    taken = received.take(message.native)
    if taken is None:
        return
    found = carrier.extract(message.headers, runtime.wire_key).journey if message.trust == "trusted" else None
    sent_us, source = engine.sent_at(message, found)
    span = age_us(taken[1] // 1000, sent_us)
    if span is not None:
        labels = {names.Label.DESTINATION: message.destination, names.Label.LAG_SOURCE: source}
        runtime.observe(names.MESSAGE_LAG, span / 1e6, labels)


class Settle:
    """``with Settle("ack", "acked", message):`` round the client's own call that settles one message."""

    __slots__ = ("_begun", "_how", "_message", "_operation")

    def __init__(self, operation: str, how: Settlement, message: Message) -> None:
        self._operation = operation
        self._how: Settlement = how
        self._message = message
        self._begun = 0

    def __enter__(self) -> Self:
        self._begun = runtime.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                settled(self._how, self._message)
            duration = (runtime.monotonic_ns() - self._begun) / 1e9
            labels = _operation(self._message, self._operation, type(error).__qualname__ if error is not None else "")
            runtime.observe(names.CLIENT_DURATION, duration, labels)
        except Exception as fault:  # noqa: BLE001  the settlement itself has been made
            _guard.fault("leaf.settle", fault)


def settled(how: Settlement, message: Message) -> None:
    """Note on the consume hop of *message*, if it is open in this context, what the broker was told."""
    record = engine.current()
    while record is not None:
        if record.kind == "consume" and record.message is not None and message.is_same(record.message):
            if not record.ended and not record.settlement:
                record.settlement = how
            return
        record = record.parent


def _operation(message: Message, operation: str, error_type: str) -> dict[names.Label, str]:
    return {
        names.Label.SYSTEM: message.system,
        names.Label.OPERATION: operation,
        names.Label.MESSAGING_DESTINATION: message.destination,
        names.Label.ERROR_TYPE: error_type,
    }
