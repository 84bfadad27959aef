"""aio-pika: what goes through one wrapped RabbitMQ connection, also after a reconnect; see ``_rabbitmq`` too."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

from aio_pika import Channel, Connection, Exchange, IncomingMessage, Queue
from aio_pika.abc import AbstractMessage, AbstractQueueIterator
from aio_pika.message import ProcessContext
from aio_pika.queue import QueueIterator
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import PublishError

from rtobs._hop import handler, leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs._journey.outcome import ErrorCategory
from rtobs._journey.record import Settlement
from rtobs.errors import UnsupportedError
from rtobs.integrations import _aio_pika_depths, _rabbitmq
from rtobs.integrations._aio_pika_depths import depths, strains
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SYSTEM = "rabbitmq"
SUPPORTS = "aio-pika>=10.2,<11"
FACTORIES = ("aio_pika.Connection",)
COVERAGE = Coverage(
    client="aio-pika (RabbitMQ)",
    produce="`publish`",
    consume="callbacks, `get`, iterators, `process()`",
    carrier="AMQP headers",
    attempt="`x-delivery-count` or `redelivered`, and deaths",
    lag="a queue with a time to live: when the broker moved it",
    depth="passive declaration",
    missing="the management interface; `Connection.blocked` before a publish",
)

Client = TypeVar("Client", bound=Connection | Channel | Exchange | Queue)

_NEIGHBOUR = "opentelemetry.instrumentation.aio_pika"


def describe(native: IncomingMessage) -> Facts:
    """Return what one message says about itself; where it came from is in the options of its twin."""
    options, headers = options_of(native), native.headers or {}
    past = _rabbitmq.past(headers, options, redelivered=bool(native.redelivered))
    known = options.dead_letter_known
    return Facts(
        SYSTEM, options.destination or native.exchange or _rabbitmq.place(native.routing_key), headers,
        address=native.routing_key or "", id=native.message_id or "", conversation_id=native.correlation_id or "",
        native=native, trust=options.trust, carrier=options.carrier, adopt_correlation=options.correlation,
        manual=options.manual, delivery_count=past.deliveries, release_ns=past.arrived_ns,
        dead_letter=bool(options.dead_letter) if known is None and options.dead_letter is not None else known,
        max_deliveries=options.max_deliveries, replay=past.replay, dead_cause=past.dead_cause, neighbour=_NEIGHBOUR,
        size=len(native.body),
    )  # fmt: skip


@overlay
class _Exchange(Exchange):
    __slots__ = ()

    async def publish(self, message: AbstractMessage, routing_key: str, *args: Any, **options: Any) -> Any:
        with leaf.Send(guarded(_sent, None, self, message, routing_key)) as send:
            carrying = guarded(_carrying, message, send, self, message)
            result = await super().publish(carrying, routing_key, *args, **options)
            guarded(_came_back, None, send, result)
            return result


def _sent(exchange: Exchange, message: AbstractMessage, routing_key: str) -> Facts:
    return Facts(
        SYSTEM, exchange.name or _rabbitmq.place(routing_key, "amq.default"), address=routing_key,
        id=message.message_id or "", conversation_id=message.correlation_id or "",
        carrier=options_of(exchange).carrier, neighbour=_NEIGHBOUR, size=len(message.body),
    )  # fmt: skip


def _carrying(send: leaf.Send, exchange: Exchange, message: AbstractMessage) -> AbstractMessage:
    sent: Any = copy.copy(message)  # the caller may send one message to many places at once
    room = _rabbitmq.room(message.headers, _frame_max(exchange), lambda: len(sent.properties.marshal()))
    sent.headers = send.headers(message.headers, room)
    return cast("AbstractMessage", sent)


def _frame_max(exchange: Exchange) -> int:
    """Return how many bytes a frame may have, as agreed with the broker; 0 between two connections."""
    channel: Any = exchange.channel
    transport = channel._connection.transport  # noqa: SLF001  no other way
    return int(transport.connection.connection_tune.frame_max) if transport is not None else 0


def _came_back(send: leaf.Send, result: object) -> None:
    """Note that no queue was bound."""
    if isinstance(result, DeliveredMessage) and send.record is not None:
        send.record.category, send.record.reason = ErrorCategory.REJECTED_DOWNSTREAM, "unroutable"
        send.record.error_type = PublishError.__qualname__  # as with `on_return_raises=True`


@overlay
class _Queue(Queue):
    __slots__ = ()

    async def consume(self, callback: Any, no_ack: bool = False, *args: Any, **options: Any) -> str:  # noqa: FBT001, FBT002  the client's signature
        callback = guarded(_around, callback, self, callback, no_ack)
        tag = await super().consume(callback, no_ack, *args, **options)
        guarded(_aio_pika_depths.consumes, None, self, tag, callback, no_ack)
        return tag

    async def cancel(self, consumer_tag: str, *args: Any, **options: Any) -> Any:
        guarded(_aio_pika_depths.ends, None, consumer_tag)
        return await cast("Any", super()).cancel(consumer_tag, *args, **options)

    async def get(self, *, no_ack: bool = False, **options: Any) -> Any:
        begun = leaf.now_ns()
        message = await super().get(no_ack=no_ack, **options)
        if message is not None:
            guarded(_received, None, self, message, no_ack, begun)
        return message

    def iterator(self, **options: Any) -> Any:
        iterator = super().iterator(**options)
        return guarded(_timed, iterator, self, iterator, options)


def _source(queue: Queue, *, no_ack: bool) -> Options:
    return _rabbitmq.source(options_of(queue), queue.name, queue.arguments, no_ack=no_ack)


def _around(queue: Queue, callback: Any, no_ack: bool) -> Any:  # noqa: FBT001  as the client has it
    if isinstance(getattr(callback, "__self__", None), AbstractQueueIterator):
        return callback  # that one only buffers
    source = _source(queue, no_ack=no_ack)
    return handler.around(callback, lambda native: describe(become(native, _Message, source)))


def _received(queue: Queue, message: IncomingMessage, no_ack: bool, begun_ns: int) -> None:  # noqa: FBT001  as above
    leaf.receive([describe(become(message, _Message, _source(queue, no_ack=no_ack)))], begun_ns)


def _timed(queue: Queue, iterator: Any, options: dict[str, Any]) -> Any:
    return become(iterator, _Iterator, _source(queue, no_ack=bool(options.get("no_ack"))))


@overlay
class _Iterator(QueueIterator):
    __slots__ = ()

    async def __anext__(self) -> Any:
        guarded(_let_go, None, self)
        begun = leaf.now_ns()
        message: Any = await super().__anext__()
        guarded(_handed_out, None, self, message, begun)
        return message

    async def close(self) -> None:
        guarded(_let_go, None, self)
        await super().close()


def _handed_out(iterator: QueueIterator, message: IncomingMessage, begun_ns: int) -> None:
    facts = vars(iterator)["_rtobs"] = describe(become(message, _Message, options_of(iterator)))
    leaf.receive([facts], begun_ns, span=False)
    leaf.handed_out(facts)


def _let_go(iterator: QueueIterator) -> None:
    if (last := vars(iterator).pop("_rtobs", None)) is not None:
        leaf.passed_by(last)


@overlay
class _Message(IncomingMessage):
    __slots__ = ()

    def process(self, *args: Any, **options: Any) -> Any:
        return become(super().process(*args, **options), _Process, options_of(self))

    async def ack(self, multiple: bool = False) -> None:  # noqa: FBT001, FBT002  the client's signature, as below
        with leaf.Settle("ack", "acked", guarded(describe, None, self)):
            await super().ack(multiple)

    async def nack(self, multiple: bool = False, requeue: bool = True) -> None:  # noqa: FBT001, FBT002
        with leaf.Settle("nack", _fate(self, requeue=requeue), guarded(describe, None, self)):
            await super().nack(multiple, requeue)

    async def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        with leaf.Settle("nack", _fate(self, requeue=requeue), guarded(describe, None, self)):
            await super().reject(requeue)


def _fate(native: IncomingMessage, *, requeue: bool) -> Settlement:
    waits = options_of(native).dead_letter_known is False  # in a waiting room, from which it comes back
    return "requeued" if requeue else "retried" if waits else "rejected"


@overlay
class _Process(ProcessContext):
    __slots__ = ()

    async def __aenter__(self) -> Any:
        message: Any = await super().__aenter__()
        guarded(_begun, None, self, message)
        return message

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:  # noqa: PYI036  passed on as they come
        ended = error
        try:
            await super().__aexit__(kind, error, trace)  # settles, inside the hop
        except BaseException as raised:
            ended = raised if error is None else error
            raise
        finally:
            own: dict[str, Any] = self.__dict__  # pyright: ignore[reportAssignmentType]  an instance's, not a class's
            if "_rtobs" in own:
                own["_rtobs"].__exit__(None, ended, None)
                del own["_rtobs"]


def _begun(context: ProcessContext, message: IncomingMessage) -> None:
    scope = vars(context)["_rtobs"] = leaf.Process(describe(message))
    scope.__enter__()  # joins the message's hop if one is open


@overlay
class _Channel(Channel):
    __slots__ = ()

    async def set_qos(self, prefetch_count: int = 0, *args: Any, **options: Any) -> Any:
        result: Any = await super().set_qos(prefetch_count, *args, **options)
        guarded(_aio_pika_depths.credit, None, self, prefetch_count)
        return result

    async def declare_exchange(self, *args: Any, **options: Any) -> Any:
        return become(await super().declare_exchange(*args, **options), _Exchange, options_of(self))

    async def get_exchange(self, *args: Any, **options: Any) -> Any:
        return become(await super().get_exchange(*args, **options), _Exchange, options_of(self))

    async def declare_queue(self, *args: Any, **options: Any) -> Any:
        return become(await super().declare_queue(*args, **options), _Queue, options_of(self))

    async def get_queue(self, *args: Any, **options: Any) -> Any:
        return become(await super().get_queue(*args, **options), _Queue, options_of(self))

    async def _on_open(self) -> None:
        await super()._on_open()
        become(self.default_exchange, _Exchange, options_of(self))


@overlay
class _Connection(Connection):
    __slots__ = ()

    def channel(self, *args: Any, **options: Any) -> Any:
        return become(super().channel(*args, **options), _Channel, options_of(self))


def wrap(client: Client, options: Options) -> Client:
    """Instrument one connection, channel, exchange or queue, and what it creates from now on; robust ones too."""
    runtime.register(IncomingMessage, describe)  # it is looked up by this class
    overlays: list[type] = [_Connection, _Channel, _Exchange, _Queue]
    for over in overlays:
        if isinstance(client, over.__bases__[0]):
            if isinstance(client, Channel) and client.is_initialized:
                become(client.default_exchange, _Exchange, options)
            return become(client, over, options)
    raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give its connection")
