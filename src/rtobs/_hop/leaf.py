"""What a leaf calls: one send, one processing, one receive, one settlement of a native message.

Leaves supply facts; this room decides whether they open a hop or join one that is open (DESIGN: one hop per kind and
message). It must not know any client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, create_key

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop import engine
from rtobs._hop.clock import age_us
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.finish import count_promises
from rtobs._hop.handed import Handed
from rtobs._hop.handover import headers_of
from rtobs._hop.runtime import runtime
from rtobs._journey import carrier
from rtobs._journey.message import Message
from rtobs._journey.outcome import Outcome
from rtobs._journey.record import HopRecord, Settlement

LAYER_KEY = create_key("rtobs-send-layer")
SUPPRESS = {_SUPPRESS_INSTRUMENTATION_KEY: True, "suppress_instrumentation": True}
SLOW_CONFIRM_NS = 1_000_000_000
"""A broker that takes longer than this to take one message holds its sender back."""
_count_lock = threading.RLock()


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
    """Start a publish hop, counted at its publisher; from the 33rd on it has a trace of its own."""
    sibling = ambient if ambient is not None and ambient.kind == "publish" else None
    publisher = sibling.parent if sibling is not None else ambient
    if publisher is None:
        return engine.start("publish", name, sibling, message=message, place="beside" if sibling is not None else "in")
    with _count_lock:
        publisher.sends += 1
        number = publisher.sends
    apart = number > engine.FANOUT_LIMIT and publisher.kind != "job"
    place: engine.Place = "apart" if apart else "in"
    return engine.start("publish", name, publisher, message=message, place=place, number=number)


class Send:
    """``with Send(message) as send:`` round the client's own call; ``send.headers(existing)`` goes with it.

    Without a message, where a leaf could not say what it is, the call goes on without us; so do the two below.
    """

    __slots__ = ("_begun_ns", "_message", "_owner", "_previous", "record")

    def __init__(self, message: Message | None) -> None:
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
        message = self._message
        if message is None or (runtime.off and not engine.is_on()):
            return
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
            record = open_publish(message.destination, ambient, message)
            record.auto = self._owner = True
            self._begun_ns = record.start_ns
        self.record = record
        record.layer = own = _Layer(record)
        if self._owner:
            engine.enter(record, {LAYER_KEY: own, **SUPPRESS})
        else:
            note_message(record, message)
            self._previous = context
            attach(Context({**context, LAYER_KEY: own, **SUPPRESS}))

    def headers(self, existing: Any = None, room: int | None = None) -> dict[str, Any]:
        """Return a new dictionary: the caller's headers as they are, ours added or replaced.

        *room*: bytes that ours may take beside the caller's, with four for each line's ``: `` and end; where that is
        not enough they stay out, counted.
        """
        merged: dict[str, Any] = existing or {}
        try:
            merged = dict(existing) if existing else {}
            own = self._own(existing, room)
            if own is None:
                return merged
            if len(merged) > 0:
                for name in names.OWN_HEADERS:
                    merged.pop(name, None)
            merged.update(own)
        except Exception as error:  # noqa: BLE001  the message leaves without a journey rather than not at all
            _guard.fault("leaf.headers", error)
        return merged

    def pairs(
        self, existing: Iterable[tuple[Any, Any]] | None = None, room: int | None = None, *,
        write: Callable[[str], Any] = str,
    ) -> list[tuple[Any, Any]]:  # fmt: skip
        """Return the same for a transport whose headers may repeat, as a new list: the caller's, then ours.

        *write* makes of our text what the transport wants.
        """
        given: list[tuple[Any, Any]] = list(existing or ())
        try:
            own = self._own(
                {name: value for name, value in given if name in names.OWN_HEADERS} if given else None, room
            )
            if own is not None:
                ours = [(name, write(value)) for name, value in own.items()]
                return [*(pair for pair in given if pair[0] not in names.OWN_HEADERS), *ours]
        except Exception as error:  # noqa: BLE001  as above
            _guard.fault("leaf.headers", error)
        return given

    def _own(self, existing: Any, room: int | None) -> dict[str, str] | None:
        """Return our headers, with what is to stay of the caller's *existing* ones; None where there are to be none."""
        record = self.record
        if record is None or self._message is None or not self._message.carrier:
            return None
        own = send_headers(record)
        if existing:
            keep_foreign_baggage(own, existing)
        if room is not None and room < sum(len(f"{n}{v}".encode("utf-8", "replace")) + 4 for n, v in own.items()):
            _guard.tally(names.PROPAGATION_REJECTED, "too_long")
            return None
        return own

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
                engine.close(record, error)
                return
            if error is not None:
                record.layer = None  # the next try binds again
                record.send_error = error
            if self._previous is not None and get_current().get(engine.HOP_KEY) is record:
                attach(self._previous)
        except Exception as fault:  # noqa: BLE001  the host's result or exception goes on unchanged
            self._close_again(record, error)
            _guard.fault("leaf.send", fault)

    def _close_again(self, record: HopRecord, error: BaseException | None) -> None:
        """Do no more than restore the context and end our own hop, where that has failed half-way. Raises nothing."""
        if self._owner:
            engine.close_again(record, error)
            return
        try:
            if self._previous is not None and get_current().get(engine.HOP_KEY) is record:
                attach(self._previous)
        except Exception as fault:  # noqa: BLE001  there is nothing more that could be done
            _guard.fault("leaf.send", fault)


def uncarried() -> None:
    """Count a message whose client has no place for our headers, where it usually has one."""
    _guard.tally(names.PROPAGATION_REJECTED, "unsupported")


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
        again = record.message.again
        if again is None:
            again = consumed.explicit is Outcome.RETRIED or (
                record.message.system == consumed.message.system
                and consumed.message.destination in (record.message.destination, record.message.address)
            )
        if again:
            attempt = consumed.attempt + 1
    return headers_of(record, attempt)


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
    if journey is not None:
        record.attempt = journey.attempt
        if message is not None:
            if message.delivery_count > 1:
                record.attempt += message.delivery_count - 1
            if message.dead_cause or message.replay:
                journey.replay = True
    if message is not None and received.waiting:
        received.take(message.native)
    if record.rare is not None and record.missing_carrier:
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

    def __init__(self, message: Message | None) -> None:
        self._message = message
        self._owner = False
        self.record: HopRecord | None = None

    def __enter__(self) -> Self:
        try:
            message = self._message
            if message is None or (runtime.off and not engine.is_on()):
                return self
            ambient = engine.current()
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
            engine.close(record, error)
        except Exception as fault:  # noqa: BLE001  the host's result or exception goes on unchanged
            engine.close_again(record, error)
            _guard.fault("leaf.process", fault)

    def abandon(self) -> None:
        """Leave the hop without an end, as if the process had been killed: somebody else tells what became of it."""
        record = self.record
        if record is not None and self._owner:
            engine.leave(record)
            runtime.open_hops.discard(record)
            record.ended = True
            if record.held:
                runtime.release(record)


# Receiving and settling ----------------------------------------------------------------------------------------------

received = Handed()
"""Messages that an iterator or a fetch has handed out and no hop has taken yet, and when."""


def now_ns() -> int:
    """Return the monotonic time; 0 where not even that can be had."""
    try:
        return runtime.monotonic_ns()
    except Exception as error:  # noqa: BLE001  the client's call goes on
        _guard.fault("leaf.clock", error)
        return 0


def receive(messages: Sequence[Message], begun_ns: int, *, span: bool = True) -> None:
    """Record one fetch that brought *messages*; *begun_ns* is of ``now_ns``. An empty fetch is nothing.

    With *span* it becomes a span of its own, linked to what it fetched; prefetching iterators pass False.
    """
    try:
        if not messages or (runtime.off and not engine.is_on()):
            return
        first, begun_ns = messages[0], begun_ns or runtime.monotonic_ns()
        if not span:
            duration = (runtime.monotonic_ns() - begun_ns) / 1e9
            runtime.observe(names.CLIENT_DURATION, duration, _operation(first, "receive", ""))
            return
        facts = replace(first, native=None, headers=None)  # its own: the message goes on to a hop that handles it
        if len(messages) > 1:
            facts.position = None
        record = engine.start("receive", facts.destination, engine.current(), message=facts)
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
    try:
        if not runtime.off or engine.is_on():
            received.put(message, runtime.wall_ns())
    except Exception as error:  # noqa: BLE001  the message goes on to the host
        _guard.fault("leaf.receive", error)


def known(native: object) -> Message | None:
    """Return what is known of a native object: it was handed out and waits, or the current hop is about it."""
    try:
        found = received.look(native)
        if found is None:
            record = engine.current()
            if record is not None and record.message is not None and record.message.native is native:
                return record.message
    except Exception as error:  # noqa: BLE001  then nothing is known
        _guard.fault("leaf.known", error)
        return None
    return found


def passed_by(message: Message) -> None:
    """Record the lag of a message that an iterator yielded and that no hop has taken."""
    try:
        taken = received.take(message.native)
        if taken is None:
            return
        found = carrier.extract(message.headers, runtime.wire_key).journey if message.trust == "trusted" else None
        sent_us, source = engine.sent_at(message, found)
        span = age_us(taken[1] // 1000, sent_us)
        if span is not None:
            labels = {names.Label.DESTINATION: message.destination, names.Label.LAG_SOURCE: source}
            runtime.observe(names.MESSAGE_LAG, span / 1e6, labels)
    except Exception as error:  # noqa: BLE001  the message goes on to the host
        _guard.fault("leaf.receive", error)


class Settle:
    """``with Settle("ack", "acked", message):`` round the client's own call that settles one message."""

    __slots__ = ("_begun", "_how", "_message", "_operation")

    def __init__(self, operation: str, how: Settlement, message: Message | None) -> None:
        self._operation = operation
        self._how: Settlement = how
        self._message = message
        self._begun = 0

    def __enter__(self) -> Self:
        self._begun = now_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        message = self._message
        if message is None:
            return
        try:
            if error is None:
                settled(self._how, message)
            now = runtime.monotonic_ns()
            duration = (now - (self._begun or now)) / 1e9
            labels = _operation(message, self._operation, type(error).__qualname__ if error is not None else "")
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
