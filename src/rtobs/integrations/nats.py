"""nats-py: core NATS and JetStream, through one wrapped client, also after a reconnect; see ``_nats`` too.

What client and server send one another (inboxes, the JetStream API, acknowledgements, key-value and object stores) is
no message: it is left alone. One send runs through several methods of the client (JetStream's ``publish`` calls
``request``, that calls ``publish``); the engine sees that it is one.
"""

# pyright: reportUnknownMemberType=false
# (the client's own annotations leave out some type arguments)

from __future__ import annotations

from collections.abc import AsyncIterator, Sized
from typing import Any, TypeVar, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, PubAck

from rtobs._hop import confirm, handler, leaf
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs._journey.record import Settlement
from rtobs.errors import UnsupportedError
from rtobs.integrations import _nats
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._nats_depths import depths, strains
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay, restore

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SYSTEM = "nats"
SUPPORTS = "nats-py>=2.16,<3"
FACTORIES = ("nats.aio.client.Client",)
COVERAGE = Coverage(
    client="nats-py (NATS)",
    produce="`publish`, `request`; JetStream's",
    consume="callbacks, `next_msg`, iterators, push, pull",
    carrier="NATS headers",
    attempt="JetStream's delivery count",
    lag="JetStream's timestamp",
    depth="stream and consumer state",
    missing="nats-core and nats-jetstream; key-value and object stores are no messages",
)

Wrapped = TypeVar("Wrapped", bound=Client | JetStreamContext)

_api_prefixes: set[str] = set()  # where an account imports the JetStream API under another name than `$JS.API`


def describe(native: Msg) -> Facts:
    """Return what one message says about itself; what it was subscribed to is in the options of its twin."""
    options, found = options_of(native), _nats.delivery(native.reply or "")
    destination = options.destination or (found.stream if found is not None else _nats.place(native.subject))
    facts = Facts(
        SYSTEM, destination, native.headers, address=native.subject, native=native, trust=options.trust,
        carrier=options.carrier, size=len(native.data),
        dead_cause="decided" if options.dead_letter in (destination, native.subject) else "",
    )  # fmt: skip
    if found is not None:
        facts.id = f"{found.stream}:{found.sequence}"
        facts.manual, facts.max_deliveries = options.manual, options.max_deliveries
        facts.delivery_count, facts.sent_ns = found.number, found.stored_ns
        facts.group, facts.pending = found.consumer, found.pending
    return facts


def _is_message(client: Client, subject: object) -> bool:
    """Tell whether *subject* is one of the user's; of what is no subject at all the client says so."""
    if not isinstance(subject, str) or subject.startswith(_nats.RESERVED):
        return False
    return not subject.startswith((f"{client._inbox_prefix.decode()}.", *_api_prefixes))  # noqa: SLF001  no other way


# Sending -------------------------------------------------------------------------------------------------------------


def _sent(client: Client, subject: str, payload: bytes, options: Options) -> Facts | None:
    """Return what is known of a send; None where it is no message of the user's."""
    if not _is_message(client, subject):
        return None
    server = client._server_info  # noqa: SLF001  one that knows no headers (before 2.2) hangs up when it sees some
    carrier = options.carrier and (not server or bool(server.get("headers")))
    return Facts(SYSTEM, _nats.place(subject), address=subject, carrier=carrier, size=_length(payload))


def _headers(send: leaf.Send, client: Client, payload: bytes, headers: Any) -> Any:
    """Return the headers with ours, or without them where the server would refuse the message as too large."""
    given: Any = {} if headers is None else headers
    if not hasattr(given, "items"):
        return headers  # the client says what is wrong with them
    return send.headers(given, client.max_payload - _length(payload) - _nats.size(given)) or headers


def _length(payload: object) -> int:
    return len(payload) if isinstance(payload, Sized) else 0  # the client says what is wrong with it


@overlay
class _Client(Client):
    __slots__ = ()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Any = None, *args: Any, **options: Any
    ) -> None:
        facts = guarded(_sent, None, self, subject, payload, options_of(self))
        if facts is None:
            await super().publish(subject, payload, reply, headers, *args, **options)
            return
        with leaf.Send(facts) as send:
            headers = guarded(_headers, headers, send, self, payload, headers)
            await super().publish(subject, payload, reply, headers, *args, **options)

    async def request(self, subject: str, payload: bytes = b"", *args: Any, **options: Any) -> Msg:
        facts = guarded(_sent, None, self, subject, payload, options_of(self))
        if facts is None:
            return await super().request(subject, payload, *args, **options)
        with leaf.Send(facts):  # `publish`, which it calls, adds the headers
            return await super().request(subject, payload, *args, **options)

    async def subscribe(self, subject: str, queue: str = "", cb: Any = None, *args: Any, **options: Any) -> Any:
        source = guarded(_subject_source, None, self, subject)
        around = guarded(_apart, None)
        try:
            if source is None:
                return await super().subscribe(subject, queue, cb, *args, **options)
            subscription = await super().subscribe(subject, queue, guarded(_around, cb, cb, source), *args, **options)
            return become(subscription, _Subscription, source)
        finally:
            guarded(_back, None, around)

    def jetstream(self, **opts: Any) -> Any:
        context = super().jetstream(**opts)
        return guarded(_jetstream, context, context, options_of(self))


def _subject_source(client: Client, subject: str) -> Options | None:
    return options_of(client).at(_nats.place(subject)) if _is_message(client, subject) else None


def _apart() -> Context:
    """Keep the task of a subscription, which lives on, out of the hop that it happens to be made in."""
    around = get_current()
    attach(Context())
    return around


def _back(around: Context | None) -> None:
    if around is not None:
        attach(around)


@overlay
class _JetStream(JetStreamContext):
    __slots__ = ()

    async def publish(
        self, subject: str, payload: bytes = b"", timeout: float | None = None, stream: str | None = None,  # noqa: ASYNC109  the client's
        headers: Any = None, *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        facts = guarded(_sent, None, self._nc, subject, payload, options_of(self))
        if facts is None:
            return await super().publish(subject, payload, timeout, stream, headers, *args, **options)
        with leaf.Send(facts) as send:
            headers = guarded(_headers_above, headers, send, self._nc, payload, headers)
            ack = await super().publish(subject, payload, timeout, stream, headers, *args, **options)
            guarded(_stored, None, send, ack)
            return ack

    async def publish_async(
        self, subject: str, payload: bytes = b"", wait_stall: float | None = None, stream: str | None = None,
        headers: Any = None, *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        facts = guarded(_sent, None, self._nc, subject, payload, options_of(self))
        if facts is None:
            return await super().publish_async(subject, payload, wait_stall, stream, headers, *args, **options)
        with confirm.ConfirmedSend(facts) as send:
            headers = guarded(_headers_above, headers, send, self._nc, payload, headers)
            future = await super().publish_async(subject, payload, wait_stall, stream, headers, *args, **options)
            send.until(future, lambda ack: _stored(send, ack))
            return future

    async def subscribe_bind(
        self, stream: str, config: ConsumerConfig, consumer: str, cb: Any = None, *args: Any, **options: Any
    ) -> Any:
        if str(stream).startswith(_nats.STORES):
            return await super().subscribe_bind(stream, config, consumer, cb, *args, **options)
        source = guarded(_source, options_of(self), self, config)
        push = await super().subscribe_bind(stream, config, consumer, _around(cb, source), *args, **options)
        restore(push._sub)  # noqa: SLF001  the one below: it has a twin too where the server delivers to a plain subject
        return become(push, _Subscription, source)

    @staticmethod
    def _auto_ack_callback(callback: Any) -> Any:
        acking: Any = JetStreamContext._auto_ack_callback(callback)  # noqa: SLF001  there is no other hook
        acking.__rtobs__ = True  # the callback in it has its hop already
        return acking

    async def pull_subscribe(
        self, subject: str, durable: str | None = None, stream: str | None = None, config: ConsumerConfig | None = None,
        *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        pull = await super().pull_subscribe(subject, durable, stream, config, *args, **options)
        if not durable:
            config = config or ConsumerConfig(filter_subject=subject)
        else:  # it may have been there before, with another configuration; the client has just asked too
            try:
                config = (await pull.consumer_info()).config
            except Exception:  # noqa: BLE001  then the limit on deliveries is what `wrap` was told
                config = None
        return become(restore(pull), _PullSubscription, guarded(_source, options_of(self), self, config))

    async def pull_subscribe_bind(self, *args: Any, **options: Any) -> Any:
        pull = await super().pull_subscribe_bind(*args, **options)
        restore(pull._sub)  # noqa: SLF001  as above
        return become(pull, _PullSubscription, options_of(self))


def _headers_above(send: leaf.Send, client: Client, payload: bytes, headers: Any) -> Any:
    """Return the headers with ours, unless the client below is wrapped too and adds them."""
    return headers if issubclass(type(client), _Client) else _headers(send, client, payload, headers)


def _stored(send: leaf.Send, ack: PubAck) -> None:
    """Note what the stream calls the message; its consumers see the same."""
    if send.record is not None and send.record.message is not None:
        send.record.message.id = f"{ack.stream}:{ack.seq}"


def _source(context: JetStreamContext, config: ConsumerConfig | None) -> Options:
    """Return the options for what a consumer brings: named by the subject it picks out of its stream, if it does."""
    options = options_of(context)
    if config is None:
        return options
    most = max(config.max_deliver or 0, 0) or options.max_deliveries
    picked = _nats.place(config.filter_subject or "")
    return options.at(picked, manual=config.ack_policy not in _nats.UNSETTLED, max_deliveries=most)


# Receiving and settling ----------------------------------------------------------------------------------------------


def _around(callback: Any, source: Options) -> Any:
    if callback is None:
        return None
    return handler.around(callback, lambda native: describe(become(native, _Msg, source)))


def _received(messages: list[Msg], source: Options, begun_ns: int) -> None:
    leaf.receive([describe(become(message, _Msg, source)) for message in messages], begun_ns)


def _handed_out(message: Msg, source: Options, begun_ns: int) -> Facts:
    facts = describe(become(message, _Msg, source))
    leaf.receive([facts], begun_ns, span=False)
    leaf.handed_out(facts)
    return facts


class _Messages(AsyncIterator[Msg]):
    """The client's iterator, timed."""

    __slots__ = ("_inner", "_last", "_source")

    def __init__(self, inner: AsyncIterator[Msg], source: Options) -> None:
        self._last: Facts | None = None
        self._inner, self._source = inner, source

    async def __anext__(self) -> Msg:
        self._let_go()
        begun = leaf.now_ns()
        message = await self._inner.__anext__()
        self._last = guarded(_handed_out, None, message, self._source, begun)
        return message

    def _let_go(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            guarded(leaf.passed_by, None, last)

    __del__ = _let_go


@overlay
class _Subscription(Subscription):  # JetStream's push subscriptions are a kind of these
    __slots__ = ()

    async def next_msg(self, *args: Any, **options: Any) -> Msg:
        begun = leaf.now_ns()
        message = await super().next_msg(*args, **options)
        guarded(_received, None, [message], options_of(self), begun)
        return message

    @property
    def messages(self) -> AsyncIterator[Msg]:
        return _Messages(super().messages, options_of(self))


@overlay
class _PullSubscription(JetStreamContext.PullSubscription):
    __slots__ = ()

    async def fetch(self, *args: Any, **options: Any) -> list[Msg]:
        begun = leaf.now_ns()
        messages = await super().fetch(*args, **options)
        guarded(_received, None, messages, options_of(self), begun)
        return messages


@overlay
class _Msg(Msg):
    __slots__ = ()

    async def ack(self) -> None:
        with _settle(self, "ack", "acked"):
            await super().ack()

    async def ack_sync(self, *args: Any, **options: Any) -> Msg:
        with _settle(self, "ack", "acked"):
            return await super().ack_sync(*args, **options)

    async def nak(self, *args: Any, **options: Any) -> None:
        with _settle(self, "nack", "requeued"):
            await super().nak(*args, **options)

    async def term(self) -> None:
        with _settle(self, "nack", "terminated"):
            await super().term()

    async def in_progress(self) -> None:
        with _settle(self, "in_progress", ""):
            await super().in_progress()


def _settle(message: Msg, operation: str, how: Settlement) -> leaf.Settle:
    facts = guarded(describe, None, message)
    return leaf.Settle(operation, how, facts if facts and facts.group else None)  # only a stream's are settled


def _jetstream(context: JetStreamContext, options: Options) -> JetStreamContext:
    prefix = context._prefix  # noqa: SLF001  given to `jetstream(prefix=…)`
    if not prefix.startswith(_nats.RESERVED):
        _api_prefixes.add(f"{prefix}.")
    return become(context, _JetStream, options)


def wrap(client: Wrapped, options: Options) -> Wrapped:
    """Instrument one client, or one JetStream context of it, and what it creates from now on."""
    runtime.register(Msg, describe)  # it is looked up by this class
    if isinstance(client, Client):
        return become(client, _Client, options)
    if isinstance(client, JetStreamContext):
        return cast("Wrapped", _jetstream(client, options))
    raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give its client")
