"""Each way that headers come in and go out, by the leaf's own code on its client's own objects, without a broker.

``took(headers)`` hands a message with these headers to the leaf and opens its hop, ``sent(headers)`` sends one with the
caller's headers and returns what the message carries. It must not know what is in the headers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
from aio_pika import Message as AmqpMessage
from aio_pika.message import IncomingMessage
from aiormq.abc import DeliveredMessage
from nats.aio.client import Client
from nats.aio.msg import Msg
from pamqp import commands as spec
from pamqp.header import ContentHeader

import rtobs
from rtobs._hop import leaf
from rtobs._journey import envelope
from rtobs._journey.message import Message as Facts
from rtobs.integrations import _redis_facts, aio_pika, asgi, memory, nats
from rtobs.integrations._redis_commands import FIELD, Entry, Reader
from rtobs.integrations._twin import Options
from tests.unbreakable.worker_carriers import CARRIERS

Inside = Callable[[], Any]


def is_exactly(value: object, *classes: type) -> bool:
    """Tell whether *value* is exactly of one of *classes*, without asking it or its class anything."""
    return any(type(value) is cls for cls in classes)


def _process(facts: Facts, inside: Inside) -> Any:
    with leaf.Process(facts):
        return inside()


def _sending(system: str, headers: Any) -> dict[str, Any]:
    with leaf.Send(Facts(system, "orders", neighbour="")) as send:
        return send.headers(headers)


class AmqpCarrier:
    """aio-pika."""

    name = "amqp"
    headers = True
    _exchange: Any = SimpleNamespace(channel=SimpleNamespace(_connection=SimpleNamespace(transport=None)))
    """One between two connections: nobody says how large a frame may be."""

    def took(self, headers: Any, inside: Inside) -> Any:
        native = self._native(AmqpMessage(b"x", headers={}))
        table = headers if type(headers) is dict else _table(headers)  # AMQP knows nothing else
        object.__setattr__(native, "headers", table)  # it is locked against its users
        return _process(aio_pika.describe(native), inside)

    def sent(self, headers: Any) -> Any:
        message = AmqpMessage(b"x", headers=headers)
        with leaf.Send(Facts("rabbitmq", "orders")) as send:
            return self._native(aio_pika._carrying(send, self._exchange, message)).headers

    @staticmethod
    def _native(message: AmqpMessage) -> IncomingMessage:
        delivery = spec.Basic.Deliver("tag", 1, redelivered=False, exchange="orders", routing_key="orders")
        header = ContentHeader()
        header.unmarshal(ContentHeader(0, 1, message.properties).marshal())  # over the wire and back
        return IncomingMessage(DeliveredMessage(delivery, header, b"x", None), no_ack=True)


def _table(headers: Any) -> dict[Any, Any]:
    if type(headers) is list:
        return {one[0]: one[1] for one in headers if type(one) is tuple and len(one) > 1}
    return {"traceparent": headers, "rtobs-journey": headers}


class NatsCarrier:
    """nats-py."""

    name = "nats"
    headers = True

    def __init__(self) -> None:
        self._client = Client()

    def took(self, headers: Any, inside: Inside) -> Any:
        return _process(nats.describe(Msg(self._client, subject="orders", data=b"x", headers=headers)), inside)

    def sent(self, headers: Any) -> Any:
        client: Any = _Room()
        with leaf.Send(Facts("nats", "orders")) as send:
            return nats._headers(send, client, b"x", headers)


class _Room:
    max_payload = 1 << 20


class StreamCarrier:
    """Entries of Redis streams: the headers are one field."""

    name = "redis stream"
    headers = False

    def took(self, headers: Any, inside: Inside) -> Any:
        value = headers if is_exactly(headers, bytes, str) else _packed(headers)
        native = (b"1763845862123-0", {FIELD: value, b"a": b"b"})
        entry = Entry("orders", *native)  # as a wrapped client hands it out, whatever others were wrapped with
        return _process(_redis_facts.entry_facts(entry, Options(), Reader()), inside)

    def sent(self, headers: Any) -> Any:
        return envelope.unpack(envelope.pack(_sending("redis", headers)))


class PubSubCarrier:
    """Redis Pub/Sub: the headers are an envelope round the payload."""

    name = "redis pub/sub"
    headers = False

    def took(self, headers: Any, inside: Inside) -> Any:
        packed = _packed(headers)
        data = headers if is_exactly(headers, bytes, str) else b"rtobs1 %04x\n%bx" % (len(packed), packed)
        message = {"type": "message", "pattern": None, "channel": b"orders", "data": data}
        _, found = _redis_facts.opened(message)
        return _process(_redis_facts.published_facts(message, Options(), found), inside)

    def sent(self, headers: Any) -> Any:
        sealed = envelope.close(b"payload", _sending("redis", headers))
        payload, found = envelope.open(sealed) or (sealed, {})
        assert payload == b"payload"
        return found


def _packed(headers: Any) -> bytes:
    """Write headers as a hostile sender would: whatever they are."""
    if not is_exactly(headers, dict, list):
        return b"\xff"
    pairs = (
        headers.items() if type(headers) is dict else (one for one in headers if type(one) is tuple and len(one) > 1)
    )
    return b"".join(b"%b=%b\n" % (_raw(pair[0]), _raw(pair[1])) for pair in pairs)[:9999]


def _raw(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else str(value).encode("utf-8", "replace")


class MemoryCarrier:
    """The in-memory broker."""

    name = "memory"
    headers = True

    def __init__(self) -> None:
        self._broker = memory.Broker()

    def took(self, headers: Any, inside: Inside) -> Any:
        return _process(memory.describe(memory.Message(self._broker, "orders", b"x", headers, 1, 1)), inside)

    def sent(self, headers: Any) -> Any:
        return _sending("memory", headers)


class AsgiCarrier:
    """The ASGI middleware, for a caller that is trusted."""

    name = "asgi"
    headers = True
    trust: Any = "trusted"

    def took(self, headers: Any, inside: Inside) -> Any:
        found: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append(inside())

        async def nothing(*_: Any) -> Any:
            return {"type": "http.request"}

        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
        run(asgi.Middleware(app, trust=self.trust)(scope, nothing, nothing))
        return found[0]


class HttpxCarrier:
    """httpx, to a host that may have our headers."""

    name = "httpx"
    headers = True

    def __init__(self) -> None:
        self._seen: list[Any] = []

        def answer(request: httpx.Request) -> httpx.Response:
            self._seen.append(dict(request.headers))  # afterwards they are the caller's again
            return httpx.Response(200)

        self._client = rtobs.wrap(httpx.Client(transport=httpx.MockTransport(answer)))

    def sent(self, headers: Any) -> Any:
        with rtobs.deliver("webhook", "crm"):
            self._client.get("http://crm.internal/x", headers=headers)
        return self._seen.pop()


def run(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, without an event loop: 20,000 of them take a second, not a minute."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


INCOMING: tuple[Any, ...] = (
    AmqpCarrier(), NatsCarrier(), StreamCarrier(), PubSubCarrier(), MemoryCarrier(), AsgiCarrier(),
    *CARRIERS,
)  # fmt: skip
