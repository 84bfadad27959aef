"""MQTT: what topics, subscriptions and packets say, for every client of it that is built on paho.

    MQTT 5       the journey is in user properties, beside those of the sender
    MQTT 3.1.1   has no place for it: in an envelope round the payload where ``wrap(client, envelope=True)`` asks for it

Must not know a client's calls. Topics, properties and payloads may be forged.
"""

from __future__ import annotations

import copy
from concurrent.futures import Future
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.matcher import MQTTMatcher
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey import envelope
from rtobs._journey.message import Message, Trust
from rtobs.integrations._places import template
from rtobs.integrations._twin import Options, guarded

SYSTEM = "mqtt"
TRUST: Trust = "link"
"""What to believe of a publisher unless told otherwise: devices of anybody's may be among them."""
STATEMENTS = "$SYS/"
"""What the topics begin with on which a broker speaks of itself."""

_SHARED = ("$share/", "$queue/")
_MOST_PAYLOAD = 268_435_455
_PROPERTY = 5  # bytes of a user property beside its name and value; the engine counts four
_FRAME = 16  # the most that a packet's own lengths and its message id take
_Matcher: Any = MQTTMatcher
_Properties: Any = Properties  # neither has annotations
_TRUSTS: tuple[Trust, ...] = ("trusted", "link", "ignore")
_LEARNED = "_rtobs_mqtt"
_elsewhere = Options()
"""For messages that no wrapped client has handed out."""


def place(topic: str) -> str:
    """Return a topic or filter as a low-cardinality destination: levels that are identifiers become ``+``."""
    return template(topic, "/", "+")


class Subscription(NamedTuple):
    """One topic filter that a client has asked for."""

    destination: str
    """The filter, without what varies from device to device."""
    group: str
    """The consumers that share the messages, of a shared subscription."""
    since_ns: int
    """When it was asked for: what had been retained by then was released to this client now."""
    as_published: bool
    """Messages keep their publisher's retain flag, so that it does not tell an old one."""


class Connection:
    """What one wrapped client has learned of itself and its broker."""

    def __init__(self) -> None:
        self._filters: Any = _Matcher()
        self._aliases: dict[int, str] = {}
        self.largest = 0
        """Bytes of the largest packet that the broker takes; 0 = not known to be limited."""
        self.pending: dict[int, Future[Any]] = {}
        """What the broker has not confirmed yet, by message id."""
        self.unacknowledged: dict[int, Message] = {}
        """What the user has not acknowledged yet, by message id."""
        self.swallowed: BaseException | None = None
        """What a callback has raised and the client has kept to itself."""

    def subscribe(self, topic: Any, how: Any) -> None:
        """Note a subscription as clients are asked for it: a filter, ``(filter, how)``, or a list of such pairs."""
        several: list[Any] = topic if topic.__class__ is list else [topic]
        for each in several:
            name, asked = each if each.__class__ is tuple else (each, how)
            group = ""
            if name.startswith(_SHARED):
                group, _, name = name.removeprefix("$share/").partition("/")
            as_published = bool(getattr(asked, "retainAsPublished", False))
            self._filters[name] = Subscription(place(name), group, runtime.wall_ns(), as_published)

    def subscription(self, topic: str) -> Subscription | None:
        """Return the subscription that a message came by, the most specific one of those that match."""
        return next(self._filters.iter_match(topic), None)

    def topic(self, topic: str, properties: Any) -> str:
        """Return the topic of a message to be sent, which an alias may stand for."""
        alias = getattr(properties, "TopicAlias", None)
        if not alias:
            return topic
        if topic:
            self._aliases[alias] = topic
        return topic or self._aliases.get(alias, "")


def connection(client: Client) -> Connection:
    """Return what paho's *client* has learned."""
    own = vars(client)
    if _LEARNED not in own:
        own[_LEARNED] = Connection()
    return own[_LEARNED]  # type: ignore[no-any-return]


def connected(client: Client) -> None:
    """Learn from the packet that paho's *client* is about to handle what the broker takes (MQTT 5, 3.2.2.3.6)."""
    largest = 0
    if client.protocol == MQTTv5:
        properties = _Properties(PacketTypes.CONNACK)
        properties.unpack(bytes(client._in_packet["packet"][2:]))  # noqa: SLF001  callbacks of the user's get it, we do not
        largest = getattr(properties, "MaximumPacketSize", 0)
    connection(client).largest = largest


# Sending -------------------------------------------------------------------------------------------------------------


def sent(connection: Connection, options: Options, topic: str, payload: Any, properties: Any) -> Message:
    """Return what is known of a message that is about to be sent."""
    topic = connection.topic(topic, properties)
    return Message(
        SYSTEM, place(topic), address=topic, conversation_id=_conversation(properties), carrier=options.carrier,
        size=len(payload) if isinstance(payload, bytes | bytearray | str) else 0,
    )  # fmt: skip


def carrying(
    send: leaf.Send, client: Client, options: Options, retain: object, message: tuple[str, Any, Any]
) -> tuple[Any, Any]:
    """Return payload and properties with the journey, of *message*: topic, payload and properties as given."""
    topic, payload, properties = message
    plain = _encoded(payload)
    if plain is None or (retain and not plain):  # not for MQTT, as the client says itself; or what clears a topic
        return payload, properties
    if client.protocol == MQTTv5:
        return payload, _with_properties(send, connection(client).largest, topic, plain, properties)
    if not options.envelope:
        return payload, properties
    closed = envelope.close(plain, send.headers())
    return (closed if len(closed) <= _MOST_PAYLOAD else payload), properties


def _with_properties(send: leaf.Send, largest: int, topic: str, payload: bytes | bytearray, given: Any) -> Any:
    """Return a copy of *given*, the properties of a message or None, with ours among the user's; or *given*."""
    if given is not None and not isinstance(given, _Properties):
        return given
    pairs: list[Any] = list(getattr(given, "UserProperty", ()))
    room = None
    if largest:
        taken = len(topic.encode()) + len(payload) + len((given or _Properties(PacketTypes.PUBLISH)).pack())
        room = largest - taken - _FRAME - (_PROPERTY - 4) * 4
    stale: dict[Any, Any] = dict(pairs)
    merged = send.headers(stale, room)
    if merged == stale:
        return given
    own = {name: value for name, value in merged.items() if stale.get(name) != value}
    properties = _Properties(PacketTypes.PUBLISH) if given is None else copy.copy(given)
    kept = [pair for pair in pairs if pair[0] in merged and pair[0] not in own]
    vars(properties)["UserProperty"] = kept + list(own.items())
    return properties


def _encoded(payload: Any) -> bytes | bytearray | None:
    """Return a payload as the clients encode it; None for what they refuse."""
    if payload is None:
        return b""
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, int | float):
        return str(payload).encode()
    return payload if isinstance(payload, bytes | bytearray) else None


# Receiving -----------------------------------------------------------------------------------------------------------


def unsealed(native: Any) -> dict[str, str]:
    """Take the envelope off a message that has just come; return the headers in it."""
    headers = guarded(_unseal, None, native)
    # Twice, for an envelope that is not taken off reaches the host.
    return headers if headers is not None else guarded(_unseal, dict[str, str](), native)


def _unseal(native: Any) -> dict[str, str]:
    found = envelope.open(native.payload) if isinstance(native.payload, bytes) else None
    if found is None:
        return {}
    native.payload, headers = found
    return headers


def brought(native: Any, headers: dict[str, str], connection: Connection, options: Options) -> Message | None:
    """Return what a message says that has just come, handed out; None for what a broker says of itself."""
    topic = _topic(native)
    if topic.startswith(STATEMENTS):
        return None
    facts = received(native, topic, headers, connection.subscription(topic), options)
    leaf.handed_out(facts)
    return facts


def _topic(native: Any) -> str:
    return str(native.topic)


def received(native: Any, topic: str, headers: dict[str, str], found: Subscription | None, options: Options) -> Message:
    """Return what a message says; *headers* are those of its envelope, *found* is what it came by."""
    properties = native.properties
    facts = Message(
        SYSTEM, found.destination if found is not None else place(topic),
        headers or getattr(properties, "UserProperty", None), address=topic,
        conversation_id=_conversation(properties), native=native, trust=options.trust, carrier=options.carrier,
        adopt_correlation=options.correlation, group=found.group if found is not None else "",
        size=len(native.payload) if isinstance(native.payload, bytes | bytearray) else 0,
        delivery_count=2 if getattr(native, "dup", False) else 1,
    )  # fmt: skip
    if native.retain and not (found is not None and found.as_published):
        facts.replay = True
        facts.release_ns = found.since_ns if found is not None else runtime.wall_ns()
    return facts


def trust_at_most(trust: Trust) -> None:
    """Believe messages from elsewhere no more than the least that a client is wrapped with."""
    global _elsewhere  # noqa: PLW0603  it holds for the process
    if _TRUSTS.index(trust) > _TRUSTS.index(_elsewhere.trust):
        _elsewhere = Options(trust=trust)


def describe(native: Any) -> Message | None:
    """Return what is known of a message: as it was brought, or as one from elsewhere that was handled before."""
    return leaf.known(native) or received(native, _topic(native), {}, None, _elsewhere)


def _conversation(properties: Any) -> str:
    """Return the correlation data of a request or its response: as text where it is some, else in hex digits."""
    data: Any = getattr(properties, "CorrelationData", b"")
    if not isinstance(data, bytes | bytearray):
        return ""
    text = data.decode("latin-1")
    return text if text.isascii() and text.isprintable() else data.hex()
