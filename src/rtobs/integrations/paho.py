"""paho-mqtt: publish, and callbacks on the client's own thread, MQTT 5 and 3.1.1; see ``_mqtt`` too.

    client = rtobs.wrap(mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5))

One message is one consume hop, round all callbacks that are called for it. The client acknowledges after that, or the
user does with ``manual_ack``.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from paho.mqtt.client import MQTT_LOG_ERR, Client, MQTTMessage, MQTTMessageInfo, MQTTv5
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from rtobs._hop import handler, leaf
from rtobs._hop.confirm import ConfirmedSend
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message
from rtobs._journey.outcome import ErrorCategory
from rtobs.errors import UnsupportedError
from rtobs.integrations import _mqtt
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._mqtt import SYSTEM, TRUST, describe
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "TRUST", "describe", "wrap"]

SUPPORTS = "paho-mqtt>=2.1,<3"
FACTORIES = ("paho.mqtt.client.Client",)
COVERAGE = Coverage(
    client="paho-mqtt (MQTT 5, 3.1.1)",
    produce="`publish`, until the broker has it",
    consume="all callbacks, one hop a message",
    carrier="user properties; in 3.1.1 an opt-in envelope",
    attempt="the DUP flag: 2 at most",
    lag="a retained message: its release",
    depth="none",
    missing="the helpers `paho.mqtt.publish` and `.subscribe`",
)

Wrapped = TypeVar("Wrapped", bound=Client)

_REFUSALS = {
    "Not authorized": ErrorCategory.AUTH,
    "Quota exceeded": ErrorCategory.RATE_LIMITED,
    "Topic name invalid": ErrorCategory.VALIDATION,
    "Payload format invalid": ErrorCategory.VALIDATION,
}


@overlay
class _Client(Client):
    __slots__ = ()

    # Sending ---------------------------------------------------------------------------------------------------------

    def publish(
        self, topic: str, payload: Any = None, qos: int = 0, retain: bool = False, properties: Any = None,  # noqa: FBT001, FBT002  the client's
        *args: Any, **options: Any,
    ) -> MQTTMessageInfo:  # fmt: skip
        facts = guarded(_sent, None, self, topic, payload, properties)
        with ConfirmedSend(facts) as send:
            message = topic, payload, properties
            payload, properties = guarded(_carrying, (payload, properties), self, send, retain, message)
            info = super().publish(topic, payload, qos, retain, properties, *args, **options)
            guarded(_handed_over, None, self, send, qos, info)
            return info

    def _do_on_publish(self, mid: int, reason_code: Any, properties: Any) -> MQTTErrorCode:
        guarded(_confirmed, None, self, mid, reason_code)  # before: whoever waits for it finds the hop ended
        result = super()._do_on_publish(mid, reason_code, properties)
        guarded(_confirmed, None, self, mid, reason_code)  # after: `publish` may not have come to its end yet
        return result

    # Receiving -------------------------------------------------------------------------------------------------------

    def subscribe(self, topic: Any, qos: int = 0, options: Any = None, *args: Any, **named: Any) -> Any:
        guarded(_subscribed, None, self, topic, options)
        return super().subscribe(topic, qos, options, *args, **named)

    def _handle_on_message(self, message: MQTTMessage) -> None:
        arrived = guarded(_arrived, None, self, message, _mqtt.unsealed(message))
        process = leaf.Process(arrived).__enter__()  # by hand: see `_easy_log`
        try:
            super()._handle_on_message(message)
        except BaseException as error:
            process.__exit__(None, error, None)
            raise
        process.__exit__(None, guarded(_swallowed, None, self), None)

    def _easy_log(self, level: Any, fmt: str, *args: Any) -> None:
        super()._easy_log(level, fmt, *args)
        if level == MQTT_LOG_ERR and self.suppress_exceptions:  # what a callback has raised is told here only
            guarded(_told, None, self, *args)

    def ack(self, mid: int, qos: int) -> MQTTErrorCode:
        with leaf.Settle("ack", "acked", guarded(_unacknowledged, None, self, mid)):
            return super().ack(mid, qos)

    def _handle_connack(self) -> MQTTErrorCode:
        guarded(_mqtt.connected, None, self)
        return super()._handle_connack()


# Sending -------------------------------------------------------------------------------------------------------------


def _sent(client: Client, topic: str, payload: Any, properties: Any) -> Message:
    return _mqtt.sent(_mqtt.connection(client), options_of(client), topic, payload, properties)


def _carrying(client: Client, send: leaf.Send, retain: bool, message: tuple[str, Any, Any]) -> tuple[Any, Any]:  # noqa: FBT001  the client's
    return _mqtt.carrying(send, client, options_of(client), retain, message)


def _handed_over(client: Client, send: ConfirmedSend, qos: int, info: MQTTMessageInfo) -> None:
    """Say what came of a send so far: refused, on its way for good, or kept until the broker has confirmed it."""
    if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
        _failed(send, ErrorCategory.OVERLOAD, "queue_full")
    elif qos == 0:
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            _failed(send, ErrorCategory.TRANSPORT, "not_connected")
    else:  # without a connection too: it leaves with the next one
        waiting: Future[Any] = Future()
        send.until(waiting, partial(_answered, send))
        pending = _mqtt.connection(client).pending
        before, pending[info.mid] = pending.get(info.mid), waiting
        if before is not None:
            before.cancel()  # dropped by the client: its id is in use again
        if info._published:  # noqa: SLF001  the method raises where it says no
            _confirmed(client, info.mid)


def _confirmed(client: Client, mid: int, reason: Any = None) -> None:
    waiting = _mqtt.connection(client).pending.pop(mid, None)
    if waiting is not None:
        waiting.set_result(reason)


def _answered(send: ConfirmedSend, reason: Any) -> None:
    """Note where the broker has said no (MQTT 5, 3.4.2.1)."""
    if isinstance(reason, ReasonCode) and reason.is_failure:
        said = reason.getName()
        _failed(send, _REFUSALS.get(said, ErrorCategory.REJECTED_DOWNSTREAM), said.lower().replace(" ", "_"))


def _failed(send: ConfirmedSend, category: ErrorCategory, reason: str) -> None:
    if send.record is not None:
        send.record.category, send.record.reason, send.record.error_type = category, reason, reason


# Receiving -----------------------------------------------------------------------------------------------------------


def _subscribed(client: Client, topic: Any, options: Any) -> None:
    _mqtt.connection(client).subscribe(topic, options)


def _arrived(client: Client, message: MQTTMessage, headers: dict[str, str]) -> Message | None:
    """Return what a message says for which a hop is to be opened; None where its callbacks do, or there are none."""
    filtered: Any = client._on_message_filtered  # noqa: SLF001  no other way
    callbacks: list[Any] = list(filtered.iter_match(message.topic)) or [client.on_message]
    learned = _mqtt.connection(client)
    facts = _mqtt.brought(message, headers, learned, options_of(client)) if callbacks[0] is not None else None
    if facts is None:
        return None
    facts.manual = _comes_back(client, message)
    if client._manual_ack and message.qos:  # noqa: SLF001  as above
        learned.unacknowledged[message.mid] = facts
    return None if all(map(handler.is_decorated, callbacks)) else facts


def _comes_back(client: Client, message: MQTTMessage) -> bool:
    """Tell whether the broker brings a message again that has not been acknowledged, once the client reconnects.

    One of QoS 2 it only asks about; and after a clean session it has forgotten.
    """
    if message.qos != 1 or (client.suppress_exceptions and not client._manual_ack):  # noqa: SLF001  as above
        return False
    if client.protocol == MQTTv5:
        return bool(getattr(client._connect_properties, "SessionExpiryInterval", 0))  # noqa: SLF001  as above
    return not client._clean_session  # noqa: SLF001  as above


def _unacknowledged(client: Client, mid: int) -> Message | None:
    return _mqtt.connection(client).unacknowledged.pop(mid, None)


def _told(client: Client, *args: Any) -> None:
    if args and isinstance(args[-1], BaseException):
        _mqtt.connection(client).swallowed = args[-1]


def _swallowed(client: Client) -> BaseException | None:
    learned = _mqtt.connection(client)
    error, learned.swallowed = learned.swallowed, None
    return error


def wrap(client: Wrapped, options: Options) -> Wrapped:
    """Instrument one client; before it connects, so that it learns the largest packet that the broker takes.

    Raises:
        UnsupportedError: what is no client of paho's.
    """
    if not isinstance(client, Client):
        raise UnsupportedError(f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give its client")
    runtime.register(MQTTMessage, describe)
    _mqtt.trust_at_most(options.trust)
    return become(client, _Client, options)
