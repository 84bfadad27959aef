"""FastStream: a middleware that makes each message it publishes or handles one hop, on whichever broker.

Where a wrapped client under FastStream has opened the hop already, or FastStream's own telemetry a span, the middleware
adds what only FastStream knows: the handler's error, and what its acknowledgement policy will tell the broker.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (FastStream's types leave out what a broker's messages are)

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, TypeVar

from faststream import AckPolicy, BaseMiddleware
from faststream._internal.broker import BrokerUsecase
from faststream.exceptions import AckMessage, NackMessage, RejectMessage
from faststream.message import AckStatus, SourceType, StreamMessage, encode_message

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.classify import classify
from rtobs._journey.message import Message as Facts
from rtobs._journey.record import Settlement
from rtobs.errors import UnsupportedError
from rtobs.integrations import _rabbitmq
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, guarded

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "Middleware", "describe", "wrap"]

SYSTEM = "faststream"
SUPPORTS = "faststream>=0.7.8,<0.8"
FACTORIES = ("faststream._internal.broker.BrokerUsecase",)
COVERAGE = Coverage(
    client="FastStream",
    produce="`publish`",
    consume="subscribers, by their acknowledgement policy",
    carrier="headers of its broker",
    attempt="its client's, if that is wrapped",
    lag="its client's, if that is wrapped",
    depth="its client's, if that is wrapped",
    missing="batch subscribers and publishing; messages that cannot be parsed",
)

Broker = TypeVar("Broker", bound=BrokerUsecase[Any, Any])

_NEIGHBOUR = "opentelemetry.instrumentation.faststream"
_FRAME_MAX = 131_072  # what RabbitMQ and its clients agree on if nobody says otherwise
_MAX_PAYLOAD = 1_048_576  # NATS, as above
_OWN = 300  # bytes of headers that FastStream adds to each NATS message, and more
_SYSTEMS = {"rabbit": "rabbitmq", "confluent": "kafka"}
_PLACES = {"rabbit": "queue", "kafka": "topic", "confluent": "topic", "mqtt": "topic", "nats": "subject"}
"""What names the place that a subscriber reads, among the words of its log lines; ``channel`` for Redis."""
_SETTLED: dict[AckStatus, Settlement] = {
    AckStatus.ACKED: "acked", AckStatus.NACKED: "requeued", AckStatus.REJECTED: "rejected",
}  # fmt: skip


def _family(thing: object) -> str:
    """Return which of FastStream's brokers a command or subscriber belongs to, as it calls it."""
    for cls in type(thing).__mro__:
        parts = cls.__module__.split(".")
        if parts[0] == "faststream" and len(parts) > 1 and not parts[1].startswith("_"):
            return parts[1]
    return ""


def describe(native: StreamMessage[Any], handler: Any, options: Options) -> Facts:
    """Return what one message says about itself to the subscriber that handles it."""
    family, raw = _family(handler), native.raw_message
    words: dict[str, str] = handler.get_log_context(native)
    return Facts(
        _SYSTEMS.get(family, family) or SYSTEM, _rabbitmq.place(words.get(_PLACES.get(family, "channel"))),
        native.headers, address=str(getattr(raw, "routing_key", None) or getattr(raw, "subject", None) or ""),
        id=native.message_id, conversation_id=native.correlation_id or "", native=raw, trust=options.trust,
        carrier=options.carrier, adopt_correlation=options.correlation, manual=handler.ack_policy is AckPolicy.MANUAL,
        delivery_count=2 if getattr(raw, "redelivered", False) else 1,
        dead_letter=None if options.dead_letter is None else bool(options.dead_letter),
        max_deliveries=options.max_deliveries, neighbour=_NEIGHBOUR,
    )  # fmt: skip


def _sent(command: Any, options: Options) -> Facts:
    family = _family(command)
    exchange = getattr(getattr(command, "exchange", None), "name", "")
    return Facts(
        _SYSTEMS.get(family, family) or SYSTEM, exchange or _rabbitmq.place(command.destination, "(anonymous)"),
        address=command.destination, conversation_id=command.correlation_id or "", carrier=options.carrier,
        neighbour=_NEIGHBOUR,
    )  # fmt: skip


def _carrying(send: leaf.Send, command: Any, broker: Any) -> dict[str, Any]:
    """Return headers with ours; not where the broker would refuse them, or hang up."""
    room, family = None, _family(command)
    if family == "rabbit":
        room = _rabbitmq.room(command.headers, _FRAME_MAX, lambda: _FRAME_MAX)  # when in doubt none
    elif family == "nats":
        client = getattr(getattr(broker, "config", None), "connection_state", None)
        most = client.connection.max_payload if client else _MAX_PAYLOAD
        size = len(encode_message(command.body, None)[0]) + len(str(command.headers))
        room = max(0, most - size - _OWN)
    return send.headers(command.headers, room)


class Middleware:
    """``Broker(middlewares=[Middleware()])``: what `rtobs.wrap` of a broker adds, as FastStream's users know it."""

    __slots__ = ("_broker", "_options")

    def __init__(self, options: Options = Options(), broker: object = None) -> None:  # noqa: B008  it is frozen
        self._options = options
        self._broker = broker
        runtime.register(StreamMessage, lambda native: leaf.known(native.raw_message))

    def __call__(self, msg: Any, /, *, context: Any) -> BaseMiddleware[Any, Any]:
        """Make the middleware of one message; FastStream calls it."""
        found: BaseMiddleware[Any, Any] | None = guarded(_Scope, None, msg, context, self._options, self._broker)
        return found if found is not None else BaseMiddleware(msg, context=context)


class _Scope(BaseMiddleware[Any, Any]):
    """One message that is handled, or one call of a publisher."""

    def __init__(self, msg: Any, context: Any, options: Options, broker: object) -> None:
        super().__init__(msg, context=context)
        self._options = options
        self._broker = broker
        self._process: leaf.Process | None = None
        self._message: StreamMessage[Any] | None = None

    async def consume_scope(self, call_next: Any, msg: StreamMessage[Any]) -> Any:
        guarded(self._begin, None, msg)
        return await call_next(msg)

    def _begin(self, message: StreamMessage[Any]) -> None:
        if message.source_type is SourceType.RESPONSE or isinstance(message.raw_message, list | tuple):
            return
        facts = describe(message, self.context.get_local("handler_"), self._options)
        self._message, self._process = message, leaf.Process(facts)
        self._process.__enter__()  # joins the hop of a wrapped client, if one is open for this message

    async def after_processed(
        self, exc_type: type[BaseException] | None = None, exc_val: BaseException | None = None,  # noqa: ARG002  FastStream's
        exc_tb: TracebackType | None = None,  # noqa: ARG002  as above
    ) -> bool | None:  # fmt: skip
        if self._process is not None:
            guarded(self._end, None, exc_val)
            self._process.__exit__(None, guarded(_failure, exc_val, exc_val), None)
        return False

    def _end(self, error: BaseException | None) -> None:
        """Note what only FastStream knows; it swallows the error, and settles when everything here is over."""
        record = self._process.record if self._process is not None else None
        message = self._message
        if record is None or message is None:
            return
        if not record.settlement:
            policy = self.context.get_local("handler_").ack_policy
            record.settlement = _SETTLED[message.committed] if message.committed else _will_be(policy, error)
        if isinstance(error, Exception) and not _is_settlement(error) and record.category is None:
            verdict = classify(error)
            record.category, record.reason = verdict.category, record.reason or verdict.reason
            record.ambiguous, record.error_type = verdict.ambiguous, type(error).__qualname__

    async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
        with leaf.Send(guarded(_sent, None, cmd, self._options)) as send:
            cmd.headers = guarded(_carrying, cmd.headers, send, cmd, self._broker)
            return await call_next(cmd)


def _failure(error: BaseException | None) -> BaseException | None:
    return None if _is_settlement(error) else error


def _is_settlement(error: BaseException | None) -> bool:
    return isinstance(error, AckMessage | NackMessage | RejectMessage)


def _will_be(policy: AckPolicy, error: BaseException | None) -> Settlement:
    """Return what FastStream tells the broker once the handler is left with *error*; empty = nothing."""
    if policy is AckPolicy.MANUAL:
        return ""
    if error is None or policy is AckPolicy.ACK_FIRST or isinstance(error, AckMessage):
        return "acked"
    if isinstance(error, NackMessage):
        return "requeued"
    if isinstance(error, RejectMessage):
        return "rejected"
    if isinstance(error, asyncio.CancelledError):
        return "requeued"  # when its channel is closed
    return (
        "rejected"
        if policy is AckPolicy.REJECT_ON_ERROR
        else "requeued"
        if policy is AckPolicy.NACK_ON_ERROR
        else "acked"
    )


def wrap(client: Broker, options: Options) -> Broker:
    """Instrument one broker: what it publishes and what its subscribers handle."""
    if not isinstance(client, BrokerUsecase):
        raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give the broker")
    if not any(isinstance(each, Middleware) for each in client.config.broker_middlewares):
        client.add_middleware(Middleware(options, client))
    return client
