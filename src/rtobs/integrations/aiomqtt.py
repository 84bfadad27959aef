"""aiomqtt: publish and the iterator over messages, MQTT 5 and 3.1.1; see ``_mqtt`` too.

    client = rtobs.wrap(aiomqtt.Client("broker", protocol=aiomqtt.ProtocolVersion.V5))

A message has been acknowledged when it is yielded: nothing is settled here, and nothing comes back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import paho.mqtt.client as paho
from aiomqtt import Client, Message
from aiomqtt.client import MessagesIterator

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs.errors import UnsupportedError
from rtobs.integrations import _mqtt
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._mqtt import SYSTEM, TRUST
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "TRUST", "describe", "wrap"]

SUPPORTS = "aiomqtt>=2.5,<3"
FACTORIES = ("aiomqtt.Client",)
COVERAGE = Coverage(
    client="aiomqtt (MQTT 5, 3.1.1)",
    produce="`publish`, until the broker has it",
    consume="the iterator over messages",
    carrier="user properties; in 3.1.1 an opt-in envelope",
    attempt="the DUP flag: 2 at most",
    lag="a retained message: its release",
    depth="none",
    missing="a hop for an iterated message: it is yours to scope",
)

Wrapped = TypeVar("Wrapped", bound=Client)

_LAST = "_rtobs_last"
_brought: WeakKeyDictionary[Message, Facts] = WeakKeyDictionary()
"""What the messages say that are alive, for as long as they are."""


@overlay
class _Client(Client):
    __slots__ = ()

    async def publish(
        self, topic: str, payload: Any = None, qos: int = 0, retain: bool = False, properties: Any = None,  # noqa: FBT001, FBT002  the client's
        *args: Any, **options: Any,
    ) -> None:  # fmt: skip
        facts = guarded(_sent, None, self, topic, payload, properties)
        with leaf.Send(facts) as send:
            payload, properties = guarded(
                _carrying, (payload, properties), self, send, retain, (topic, payload, properties)
            )
            await super().publish(topic, payload, qos, retain, properties, *args, **options)

    async def subscribe(self, topic: Any, qos: int = 0, options: Any = None, *args: Any, **named: Any) -> Any:
        guarded(_subscribed, None, self, topic, options)
        return await super().subscribe(topic, qos, options, *args, **named)

    @property
    def messages(self) -> MessagesIterator:
        return become(super().messages, _Messages, options_of(self))


def _paho(client: Client) -> paho.Client:
    return client._client  # noqa: SLF001  it tells the protocol, and nobody else does


def _sent(client: Client, topic: str, payload: Any, properties: Any) -> Facts:
    return _mqtt.sent(_mqtt.connection(_paho(client)), options_of(client), topic, payload, properties)


def _carrying(client: Client, send: leaf.Send, retain: bool, message: tuple[str, Any, Any]) -> tuple[Any, Any]:  # noqa: FBT001  the client's
    return _mqtt.carrying(send, _paho(client), options_of(client), retain, message)


def _subscribed(client: Client, topic: Any, options: Any) -> None:
    _mqtt.connection(_paho(client)).subscribe(topic, options)


@overlay
class _Paho(paho.Client):  # what the client above learns nothing of
    __slots__ = ()

    def _handle_connack(self) -> Any:
        guarded(_mqtt.connected, None, self)
        return super()._handle_connack()


@overlay
class _Messages(MessagesIterator):
    __slots__ = ()

    async def __anext__(self) -> Message:
        begun = leaf.now_ns()
        message = await super().__anext__()
        guarded(_passed, None, self)  # not earlier: a task that handles the one before has begun meanwhile
        guarded(_yielded, None, self, message, _mqtt.unsealed(message), begun)
        return message

    def __del__(self) -> None:
        guarded(_left, None, self)


def _yielded(messages: MessagesIterator, message: Message, headers: dict[str, str], begun_ns: int) -> None:
    """Remember what a message says that is the caller's now."""
    connection = _mqtt.connection(_paho(messages._client))  # noqa: SLF001  as above
    facts = _mqtt.brought(message, headers, connection, options_of(messages))
    if facts is not None:
        leaf.receive([facts], begun_ns, span=False)
        _brought[message] = replace(facts, native=None)  # it would keep the message alive
        vars(messages)[_LAST] = facts


def _passed(messages: MessagesIterator) -> None:
    """Let go of the message before."""
    _let_go(vars(messages).pop(_LAST, None))


def _left(messages: MessagesIterator) -> None:
    """Let go of the last message, but not before whoever has asked for one message only has it."""
    last = vars(messages).pop(_LAST, None)
    if last is None:
        return
    try:
        messages._client._loop.call_soon_threadsafe(_let_go, last)  # noqa: SLF001  as above
    except RuntimeError:  # the loop is closed
        _let_go(last)


def _let_go(last: Facts | None) -> None:
    """Record the lag of a message, unless a hop has taken it."""
    if last is not None:
        leaf.passed_by(last)


def describe(native: Message) -> Facts | None:
    """Return what a message says, however late its handler begins, and however often."""
    brought = _brought.get(native)
    return leaf.known(native) or (replace(brought, native=native) if brought is not None else _mqtt.describe(native))


def wrap(client: Wrapped, options: Options) -> Wrapped:
    """Instrument one client, connected or not; before, it learns the largest packet that the broker takes."""
    if not isinstance(client, Client):
        raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give its client")
    runtime.register(Message, describe)
    _mqtt.trust_at_most(options.trust)
    become(_paho(client), _Paho, options)
    return become(client, _Client, options)
