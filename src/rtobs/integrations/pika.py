"""pika: what goes through one wrapped RabbitMQ connection, blocking or callback-driven; see ``_rabbitmq`` too.

A message of pika's is three things (method, properties, body), and a settlement names it by its number on the channel.
So a message is known by its method, what waits to be settled is kept on its channel, and what queues were declared with
on its connection. A reconnect is a new connection: wrap that.
"""

# pyright: reportUnknownMemberType=false
# (the client's own annotations leave out some type arguments)

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from pika import BasicProperties, spec
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.channel import Channel
from pika.connection import Connection

from rtobs._hop import handler, leaf
from rtobs._hop.context import attach, get_current
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs._journey.record import Settlement
from rtobs.errors import UnsupportedError
from rtobs.integrations import _pika_channel, _rabbitmq
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._pika_depths import depths, strains
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SYSTEM = "rabbitmq"
SUPPORTS = "pika>=1.4,<2"
FACTORIES = ("pika.BlockingConnection", "pika.connection.Connection")
COVERAGE = Coverage(
    client="pika (RabbitMQ)",
    produce="`basic_publish`, with confirms",
    consume="callbacks, `basic_get`, the generator",
    carrier="AMQP headers",
    attempt="as aio-pika",
    lag="as aio-pika",
    depth="passive declaration",
    missing="confirms and returns of callback-driven channels; coroutines as callbacks",
)

Client = TypeVar("Client", bound=BlockingConnection | BlockingChannel | Connection | Channel)

_NONE: Any = cast("Any", BasicProperties)()
_NEIGHBOUR = "opentelemetry.instrumentation.pika.pika_instrumentor"


def describe(native: tuple[Any, ...], source: Options) -> Facts:
    """Return what one message, its method, properties and body, says about itself; it came from *source*."""
    method, properties, body = native
    headers: dict[str, Any] = properties.headers or {}
    past = _rabbitmq.past(headers, source, redelivered=bool(method.redelivered))
    known = source.dead_letter_known
    return Facts(
        SYSTEM, source.destination or method.exchange or _rabbitmq.place(method.routing_key), headers,
        address=method.routing_key or "", id=properties.message_id or "",
        conversation_id=properties.correlation_id or "", native=method, trust=source.trust, carrier=source.carrier,
        adopt_correlation=source.correlation, manual=source.manual, delivery_count=past.deliveries,
        release_ns=past.arrived_ns,
        dead_letter=bool(source.dead_letter) if known is None and source.dead_letter is not None else known,
        max_deliveries=source.max_deliveries, replay=past.replay, dead_cause=past.dead_cause, neighbour=_NEIGHBOUR,
        size=len(body),
    )  # fmt: skip


def _known(native: Any) -> Facts | None:
    """Return what is known of the three things that ``basic_get`` and ``consume`` bring."""
    return leaf.known(native[0]) if native and isinstance(native[0], spec.Basic.Deliver | spec.Basic.GetOk) else None


# Sending -------------------------------------------------------------------------------------------------------------


def _sent(channel: Any, exchange: str, routing_key: str, body: Any, properties: BasicProperties | None) -> Facts:
    facts = Facts(
        SYSTEM, exchange or _rabbitmq.place(routing_key, "amq.default"), address=routing_key,
        carrier=options_of(channel).carrier, neighbour=_NEIGHBOUR, size=len(body),
    )  # fmt: skip
    if properties is not None:
        facts.id, facts.conversation_id = properties.message_id or "", properties.correlation_id or ""
    return facts


def _carrying(send: leaf.Send, channel: Any, properties: BasicProperties | None) -> BasicProperties | None:
    """Return a copy of the properties with our headers, or without them where the frame has no room."""
    sent: Any = copy.copy(_NONE if properties is None else properties)
    room = _rabbitmq.room(sent.headers, _pika_channel.frame_max(channel), lambda: sum(map(len, sent.encode())))
    sent.headers = send.headers(sent.headers, room)
    return sent if sent.headers else properties


# Receiving and settling ----------------------------------------------------------------------------------------------


def _source(channel: Any, queue: str, auto_ack: bool) -> Options:  # noqa: FBT001  it comes so
    arguments = _pika_channel.declared(channel, queue)
    return _rabbitmq.source(options_of(channel), queue, arguments, no_ack=auto_ack)


def _arrived(channel: Any, native: tuple[Any, ...], source: Options) -> Facts:
    facts = describe(native, source)
    leaf.handed_out(facts)
    if source.manual:
        _pika_channel.keep(channel, facts, waits=source.dead_letter_known is False)
    return facts


def _around(channel: Any, queue: str, callback: Any, auto_ack: bool) -> Any:  # noqa: FBT001  as above
    if not callable(callback):
        return callback  # the client says what is wrong with it
    source = _source(channel, queue, auto_ack)

    def told(_: Any, *native: Any) -> Facts:
        return _arrived(channel, native, source)

    return handler.around(callback, told, awaits=False)


def _received(channel: Any, queue: str, native: tuple[Any, ...], auto_ack: bool, begun_ns: int) -> None:  # noqa: FBT001
    leaf.receive([_arrived(channel, native, _source(channel, queue, auto_ack))], begun_ns)


def _handed_out(channel: Any, native: tuple[Any, ...], source: Options, begun_ns: int) -> Facts:
    facts = _arrived(channel, native, source)
    leaf.receive([facts], begun_ns, span=False)
    return facts


def _let_go(channel: Any, facts: Facts) -> None:
    if not _pika_channel.waits_for(channel, facts):  # else it may be handled later: `next(channel.consume(queue))`
        leaf.passed_by(facts)


def _each(channel: Any, messages: Any, source: Options) -> Iterator[Any]:
    """Yield what the client's generator brings, timed, and let nothing of its neighbours stay current."""
    try:
        while True:
            around, begun = guarded(get_current, None), leaf.now_ns()
            native: Any = next(messages, None)
            if around is not None:
                guarded(attach, None, around)
            if native is None:
                return
            facts = None if native[0] is None else guarded(_handed_out, None, channel, native, source, begun)
            try:
                yield native
            finally:
                if facts is not None:
                    guarded(_let_go, None, channel, facts)
    finally:
        messages.close()


def _settle(channel: Any, how: Settlement, tag: int, multiple: bool = False) -> leaf.Settle:  # noqa: FBT001, FBT002  the client's
    found = guarded(_pika_channel.take, None, channel, tag, multiple)
    if found is not None and found.waits and how == "rejected":
        how = "retried"  # in a waiting room, from which it comes back
    return leaf.Settle("ack" if how == "acked" else "nack", how, found and found.message)


@overlay
class _BlockingChannel(BlockingChannel):
    __slots__ = ()

    def basic_publish(
        self, exchange: str, routing_key: str, body: Any, properties: BasicProperties | None = None, *args: Any,
        **options: Any,
    ) -> None:  # fmt: skip
        with leaf.Send(guarded(_sent, None, self, exchange, routing_key, body, properties)) as send:
            properties = guarded(_carrying, properties, send, self, properties)
            cast("Any", super()).basic_publish(exchange, routing_key, body, properties, *args, **options)

    def queue_declare(self, queue: str, *args: Any, **options: Any) -> Any:
        result = cast("Any", super()).queue_declare(queue, *args, **options)
        guarded(_pika_channel.declare, None, self, result.method.queue, args, options)
        return result

    def basic_consume(
        self, queue: str, on_message_callback: Any, auto_ack: bool = False, *args: Any, **options: Any  # noqa: FBT001, FBT002  the client's signature, as below
    ) -> Any:  # fmt: skip
        callback = guarded(_around, on_message_callback, self, queue, on_message_callback, auto_ack)
        return cast("Any", super()).basic_consume(queue, callback, auto_ack, *args, **options)

    def basic_get(self, queue: str, auto_ack: bool = False, *args: Any, **options: Any) -> Any:  # noqa: FBT001, FBT002
        begun = leaf.now_ns()
        native: Any = cast("Any", super()).basic_get(queue, auto_ack, *args, **options)
        if native[0] is not None:
            guarded(_received, None, self, queue, native, auto_ack, begun)
        return native

    def consume(self, queue: str, auto_ack: bool = False, *args: Any, **options: Any) -> Any:  # noqa: FBT001, FBT002
        messages = cast("Any", super()).consume(queue, auto_ack, *args, **options)
        source = guarded(_source, None, self, queue, auto_ack)
        return messages if source is None else _each(self, messages, source)

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "acked", delivery_tag, multiple):
            cast("Any", super()).basic_ack(delivery_tag, multiple)

    def basic_nack(self, delivery_tag: int = 0, multiple: bool = False, requeue: bool = True) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "requeued" if requeue else "rejected", delivery_tag, multiple):
            cast("Any", super()).basic_nack(delivery_tag, multiple, requeue)

    def basic_reject(self, delivery_tag: int = 0, requeue: bool = True) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "requeued" if requeue else "rejected", delivery_tag):
            cast("Any", super()).basic_reject(delivery_tag, requeue)


@overlay
class _Channel(Channel):
    """A channel of SelectConnection and its like: nothing waits for the broker, what it says comes to callbacks."""

    __slots__ = ()

    def basic_publish(
        self, exchange: str, routing_key: str, body: Any, properties: BasicProperties | None = None, *args: Any,
        **options: Any,
    ) -> None:  # fmt: skip
        with leaf.Send(guarded(_sent, None, self, exchange, routing_key, body, properties)) as send:
            properties = guarded(_carrying, properties, send, self, properties)
            cast("Any", super()).basic_publish(exchange, routing_key, body, properties, *args, **options)

    def queue_declare(self, queue: str, *args: Any, **options: Any) -> Any:
        result = cast("Any", super()).queue_declare(queue, *args, **options)
        guarded(_pika_channel.declare, None, self, queue, args, options)
        return result

    def basic_consume(
        self, queue: str, on_message_callback: Any, auto_ack: bool = False, *args: Any, **options: Any  # noqa: FBT001, FBT002
    ) -> Any:  # fmt: skip
        callback = guarded(_around, on_message_callback, self, queue, on_message_callback, auto_ack)
        return cast("Any", super()).basic_consume(queue, callback, auto_ack, *args, **options)

    def basic_get(self, queue: str, callback: Any, auto_ack: bool = False, *args: Any, **options: Any) -> None:  # noqa: FBT001, FBT002
        callback = guarded(_around, callback, self, queue, callback, auto_ack)
        cast("Any", super()).basic_get(queue, callback, auto_ack, *args, **options)

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "acked", delivery_tag, multiple):
            cast("Any", super()).basic_ack(delivery_tag, multiple)

    def basic_nack(self, delivery_tag: int = 0, multiple: bool = False, requeue: bool = True) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "requeued" if requeue else "rejected", delivery_tag, multiple):
            cast("Any", super()).basic_nack(delivery_tag, multiple, requeue)

    def basic_reject(self, delivery_tag: int = 0, requeue: bool = True) -> None:  # noqa: FBT001, FBT002
        with _settle(self, "requeued" if requeue else "rejected", delivery_tag):
            cast("Any", super()).basic_reject(delivery_tag, requeue)


@overlay
class _BlockingConnection(BlockingConnection):
    __slots__ = ()

    def channel(self, *args: Any, **options: Any) -> Any:
        channel = cast("Any", super()).channel(*args, **options)
        return guarded(_instrument, channel, channel, options_of(self))


@overlay
class _Connection(Connection):
    __slots__ = ()

    def _create_channel(self, *args: Any, **options: Any) -> Any:
        channel = cast("Any", super())._create_channel(*args, **options)  # noqa: SLF001  our own base's
        return guarded(_instrument, channel, channel, options_of(self))


def _instrument(channel: Any, options: Options) -> Any:
    over = _BlockingChannel if isinstance(channel, BlockingChannel) else _Channel
    with _pika_channel.over_neighbours(channel):
        return become(channel, over, options)


def wrap(client: Client, options: Options) -> Client:
    """Instrument one connection or channel, and what it creates from now on."""
    runtime.register(spec.Basic.Deliver, leaf.known)
    runtime.register(spec.Basic.GetOk, leaf.known)
    runtime.share(tuple, _known)
    if isinstance(client, BlockingConnection):
        return become(client, _BlockingConnection, options)
    if isinstance(client, Connection):
        return become(client, _Connection, options)
    if isinstance(client, BlockingChannel | Channel):
        wrapped: Client = _instrument(client, options)
        return wrapped
    raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give its connection")
