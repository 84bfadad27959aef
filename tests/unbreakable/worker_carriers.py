"""The ways of ``carriers`` for the clients that came later: Kafka, MQTT, pika, SQS, and requests under WSGI.

As there, each hands headers to the leaf's own code on its client's own objects, in the shape that the client makes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pika import BasicProperties, spec

from rtobs._hop import leaf
from rtobs._journey import envelope
from rtobs._journey.message import Message as Facts
from rtobs.integrations import _kafka, _mqtt, _sqs, pika, wsgi
from rtobs.integrations._twin import Options

Inside = Callable[[], Any]
_OPTIONS = Options(trust="trusted")


_turned: dict[int, tuple[Any, Any]] = {}


def _once(turn: Callable[[Any], Any], value: Any) -> Any:
    """Return ``turn(value)``; ten megabytes are turned once, not each time that their cost is measured."""
    if len(value) < _LARGE:
        return turn(value)
    known = _turned.get(id(value))
    if known is None or known[0] is not value:
        _turned.clear()
        known = _turned[id(value)] = value, turn(value)
    return known[1]


_LARGE = 50_000


def _encoded(text: str) -> bytes:
    return _once(lambda value: value.encode("utf-8", "replace"), text)


def _decoded(raw: bytes) -> str:
    return _once(lambda value: value.decode("latin-1"), raw)


def _raw(value: Any) -> bytes:
    return value if type(value) is bytes else _encoded(value) if type(value) is str else b"?"


def _text(value: Any) -> str:
    return value if type(value) is str else _decoded(_raw(value))


def _pairs(headers: Any) -> list[tuple[Any, Any]]:
    """Return whatever it is as pairs: a client makes nothing else of what comes over its wire."""
    if type(headers) is dict:
        return list(headers.items())
    if type(headers) is list:
        return [(one[0], one[1]) for one in headers if type(one) is tuple and len(one) > 1]
    return [("traceparent", headers), ("rtobs-journey", headers)]


def process(facts: Facts | None, inside: Inside) -> Any:
    with leaf.Process(facts):
        return inside()


class KafkaCarrier:
    """Records of every Kafka client: pairs of text and bytes."""

    name = "kafka"
    headers = True

    def took(self, headers: Any, inside: Inside) -> Any:
        pairs = [(_text(name), _raw(value)) for name, value in _pairs(headers)]
        return process(_kafka.received(_OPTIONS, object(), "orders", 0, 1, None, b"x", pairs), inside)

    def sent(self, headers: Any) -> Any:
        with leaf.Send(Facts("kafka", "orders")) as send:
            pairs = _kafka.carrying(send, [(name, value.encode()) for name, value in headers.items()])
        return {name: value.decode() for name, value in pairs}


class MqttCarrier:
    """MQTT 5: user properties, pairs of texts."""

    name = "mqtt"
    headers = True

    def took(self, headers: Any, inside: Inside) -> Any:
        native = MQTTMessage(topic=b"orders")
        native.payload = b"x"
        native.properties = Properties(PacketTypes.PUBLISH)
        pairs = [(_text(name), _text(value)) for name, value in _pairs(headers)]
        vars(native.properties)["UserProperty"] = pairs  # as `unpack` leaves them
        return process(_mqtt.received(native, "orders", {}, None, _OPTIONS), inside)

    def sent(self, headers: Any) -> Any:
        given = Properties(PacketTypes.PUBLISH)
        vars(given)["UserProperty"] = list(headers.items())
        with leaf.Send(Facts("mqtt", "orders")) as send:
            return dict(_mqtt._with_properties(send, 0, "orders", b"x", given).UserProperty)


class PikaCarrier:
    """pika: a table."""

    name = "pika"
    headers = True
    _channel: Any = SimpleNamespace(connection=SimpleNamespace(params=SimpleNamespace(frame_max=0)))

    def took(self, headers: Any, inside: Inside) -> Any:
        method = spec.Basic.Deliver("tag", 1, redelivered=False, exchange="orders", routing_key="orders")
        table = headers if type(headers) is dict else {_text(name): value for name, value in _pairs(headers)}
        return process(pika.describe((method, BasicProperties(headers=table), b"x"), _OPTIONS), inside)

    def sent(self, headers: Any) -> Any:
        properties = BasicProperties(headers=dict(headers))
        with leaf.Send(Facts("rabbitmq", "orders")) as send:
            return pika._carrying(send, self._channel, properties).headers


class SqsCarrier:
    """SQS: all in one attribute, a text of lines."""

    name = "sqs"
    headers = False

    def took(self, headers: Any, inside: Inside) -> Any:
        text = _text(headers) if type(headers) is str or type(headers) is bytes else _lines(_pairs(headers))
        attributes = {"rtobs": {"DataType": "String", "StringValue": text}}
        native = {"MessageId": "m", "ReceiptHandle": "1", "Body": "x", "MessageAttributes": attributes}
        return process(_sqs.describe(native, "orders", _OPTIONS), inside)

    def sent(self, headers: Any) -> Any:
        with leaf.Send(Facts("aws_sqs", "orders")) as send:
            entry = _sqs.carrying({"MessageBody": "x"}, send.headers())
        return envelope.unpack(entry["MessageAttributes"]["rtobs"]["StringValue"])


def _lines(pairs: list[tuple[Any, Any]]) -> str:
    return "".join(f"{_text(name)}={_text(value)[:9999]}\n" for name, value in pairs)


class WsgiCarrier:
    """The WSGI middleware, for a caller that is trusted; a header's name is a key of the environ."""

    name = "wsgi"
    headers = True
    trust: Any = "trusted"

    def took(self, headers: Any, inside: Inside) -> Any:
        found: list[Any] = []

        def app(environ: Any, start: Any) -> list[bytes]:
            found.append(inside())
            start("200 OK", [])
            return []

        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        for name, value in _pairs(headers):
            environ["HTTP_" + _text(name).upper().replace("-", "_")] = _text(value)
        wsgi.Middleware(app, trust=self.trust)(environ, lambda *_: None)
        return found[0]


CARRIERS: tuple[Any, ...] = (KafkaCarrier(), MqttCarrier(), PikaCarrier(), SqsCarrier(), WsgiCarrier())
