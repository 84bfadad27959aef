"""SQS and SNS: one attribute that carries the journey within their limits, and what a received message says of itself.

Pure; must not know any client. What comes out of a message may be forged or copied: nothing here raises for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from rtobs._journey import envelope
from rtobs._journey.message import Message
from rtobs.integrations._twin import Options

SYSTEM, TOPICS = "aws_sqs", "aws.sns"
ATTRIBUTE = "rtobs"
"""Name of the one message attribute that holds all headers, as lines; see ``docs/wire-format.md``."""
NEIGHBOUR = "opentelemetry.instrumentation.boto3sqs"

_MOST_ATTRIBUTES = 10  # also for a topic: what has more is not delivered to a queue without SNS' envelope
_LIMITS = (262_144, 1_048_576)
"""Bytes of one message, or of one batch: what a queue takes that is older than August 2025, or newer."""
AROUND = len(ATTRIBUTE) + len("String") + len("delay=900\n")
"""Most bytes that come on top of the headers' own."""
_PLAIN = ("traceparent", "tracestate", "baggage")
"""Attributes by which OpenTelemetry's instrumentations of other services carry their trace."""
_MESSAGE_ATTRIBUTES = (ATTRIBUTE, *_PLAIN)
_SYSTEM_ATTRIBUTES = ("ApproximateReceiveCount", "SentTimestamp", "DeadLetterQueueSourceArn", "MessageGroupId")
_ASKING = ("MessageAttributeNames", "MessageSystemAttributeNames", "AttributeNames")
_DELAY = re.compile(r"^delay=([0-9]{1,3})$", re.ASCII | re.MULTILINE)
_SNS_ATTRIBUTES = re.compile(r'"MessageAttributes"\s*:\s*(?=\{)')
_MOST_SNS_ATTRIBUTES = 65_536
_decode = json.JSONDecoder().raw_decode


def is_dict(value: object) -> bool:
    """Tell whether *value* is a dictionary, as the client makes them."""
    return type(value) is dict


def place(name: object) -> str:
    """Return the name of a queue by its URL, or of a topic by its ARN."""
    return re.split("[/:]", str(name))[-1]


# Sending -------------------------------------------------------------------------------------------------------------


def size(entry: Mapping[str, Any], body: str) -> int:
    """Return the bytes of one message as AWS counts them: its *body*, and names, types and values of its attributes."""
    return _length(entry.get(body)) + sum(_size(name, each) for name, each in attributes_of(entry).items())


def _size(name: str, attribute: object) -> int:
    parts = cast("dict[str, Any]", attribute).values() if isinstance(attribute, dict) else ()
    return _length(name) + sum(_length(part) for part in parts)


def _length(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(value) if isinstance(value, bytes | bytearray) else 0  # of what else there is the client says so


def attributes_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message attributes of an entry that is sent, or of a message that came."""
    found = entry.get("MessageAttributes")
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def room(entry: Mapping[str, Any], total: int) -> int:
    """Return how many bytes headers may take in *entry*, where *total* bytes leave together."""
    attributes = attributes_of(entry)
    old = attributes.get(ATTRIBUTE)
    if old is None and len(attributes) >= _MOST_ATTRIBUTES:
        return 0
    if not isinstance(entry.get("MessageAttributes", attributes), dict):  # the client says what is wrong with them
        return 0
    if old is not None:  # it will be replaced
        total -= _size(ATTRIBUTE, old)
    return next((each for each in _LIMITS if total <= each), 0) - total - AROUND


def delay_of(entry: Mapping[str, Any]) -> int:
    """Return for how many seconds a message is held back before anybody may receive it."""
    delay = entry.get("DelaySeconds")
    return delay if type(delay) is int and delay > 0 else 0


def carrying(entry: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of *entry* with *headers* in the attribute; a delay goes along, for lag begins after it."""
    packed = envelope.pack(headers).decode()
    if delay := delay_of(entry):
        packed += f"delay={delay}\n"
    ours = {"DataType": "String", "StringValue": packed}
    return {**entry, "MessageAttributes": {**attributes_of(entry), ATTRIBUTE: ours}}


def take_digest(answer: dict[str, Any], entry: Mapping[str, Any], sent: Mapping[str, Any]) -> None:
    """Let the broker's *answer* vouch for the attributes of *entry* alone, if it is right about all that were sent."""
    found = answer.get("MD5OfMessageAttributes")
    if found is None or found != digest(attributes_of(sent)):
        return
    if attributes_of(entry):
        answer["MD5OfMessageAttributes"] = digest(attributes_of(entry))
    else:
        del answer["MD5OfMessageAttributes"]


def packed_in(entry: Mapping[str, Any]) -> object:
    """Return what the attribute of an entry or a message holds; None where there is none."""
    return _value(entry, ATTRIBUTE)


def _value(entry: Mapping[str, Any], name: str) -> object:
    found: Any = attributes_of(entry).get(name)
    return found.get("StringValue", found.get("Value")) if is_dict(found) else None


# Receiving -----------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What one ReceiveMessage is called with, and what of its answer its caller has not asked for."""

    params: dict[str, Any]
    attributes: tuple[str, ...]
    system: tuple[str, ...]


def asking(params: Mapping[str, Any]) -> Asked:
    """Return the caller's *params* so that messages bring what ``describe`` reads, too."""
    for key in _ASKING:
        found: Any = params.get(key, ())
        if not isinstance(found, list | tuple) or any(type(name) is not str for name in cast("list[Any]", found)):
            return Asked(dict(params), (), ())  # the client says what is wrong with it
    wanted = params.get("MessageAttributeNames", ())
    attributes = tuple(name for name in _MESSAGE_ATTRIBUTES if not any(_covers(each, name) for each in wanted))
    key = next((each for each in _ASKING[1:] if params.get(each)), _ASKING[1])
    known = [name for each in _ASKING[1:] for name in params.get(each, ())]
    names = _SYSTEM_ATTRIBUTES if place(params.get("QueueUrl")).endswith(".fifo") else _SYSTEM_ATTRIBUTES[:-1]
    system = tuple(name for name in names if name not in known and "All" not in known)
    extended = {
        **params,
        "MessageAttributeNames": [*wanted, *attributes],
        key: [*params.get(key, ()), *system],
    }
    return Asked(extended, attributes, system)


def _covers(wanted: str, name: str) -> bool:
    return wanted in ("All", ".*", name) or (wanted.endswith(".*") and name.startswith(wanted[:-2]))


def take_out(message: dict[str, Any], asked: Asked) -> None:
    """Let *message* be what its receiver has asked for, as if nobody else had asked for more. Twice is once."""
    system, attributes = message.get("Attributes", {}), attributes_of(message)
    if any(name in system for name in asked.system):
        _put(message, "Attributes", {name: each for name, each in system.items() if name not in asked.system})
    if any(name in attributes for name in asked.attributes):
        left = {name: each for name, each in attributes.items() if name not in asked.attributes}
        _put(message, "MD5OfMessageAttributes", digest(left) if left else None)
        _put(message, "MessageAttributes", left)


def _put(message: dict[str, Any], key: str, value: object) -> None:
    if value:
        message[key] = value
    else:
        message.pop(key, None)


def digest(attributes: Mapping[str, Any]) -> str:
    """Return the MD5 of message attributes, as SQS reckons it over those that it hands out (its Developer Guide)."""
    parts: list[bytes] = []
    for name in sorted(attributes):
        attribute = attributes[name]
        text = attribute.get("StringValue")
        value = attribute["BinaryValue"] if text is None else text
        value = value.encode() if isinstance(value, str) else value
        for part in (name.encode(), attribute["DataType"].encode()):
            parts += (struct.pack("!I", len(part)), part)
        parts += (b"\x02" if text is None else b"\x01", struct.pack("!I", len(value)), value)
    return hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()


def describe(native: dict[str, Any], queue: str, options: Options) -> Message:
    """Return what a message says that came out of *queue*, with all that was asked for still in it."""
    system: Mapping[str, Any] = native.get("Attributes") or {}
    body: str = native.get("Body") or ""
    headers, packed = _headers(native, body)
    sent_ns = _number(system.get("SentTimestamp")) * 1_000_000
    delay = _DELAY.search(packed[: envelope.LIMIT]) if isinstance(packed, str) else None
    dead = "DeadLetterQueueSourceArn" in system or (queue != "" and queue == options.dead_letter)
    decided = options.max_deliveries > 0  # then the consumer of the last delivery has counted it
    return Message(
        SYSTEM, queue, headers, id=str(native.get("MessageId", "")), address=str(system.get("MessageGroupId", "")),
        native=native, trust=options.trust, carrier=options.carrier, manual=True, size=len(body),
        delivery_count=max(1, _number(system.get("ApproximateReceiveCount"))), sent_ns=sent_ns,
        release_ns=sent_ns + int(delay[1]) * 1_000_000_000 if sent_ns and delay else 0,
        dead_letter=None if options.dead_letter is None else bool(options.dead_letter),
        max_deliveries=0 if dead else options.max_deliveries,
        dead_cause=("decided" if decided else "limit") if dead else "",
    )  # fmt: skip


def _headers(native: Mapping[str, Any], body: str) -> tuple[dict[str, Any], object]:
    """Return the headers, and the text they were packed in: from the attribute, SNS' envelope, or plain attributes."""
    packed = packed_in(native)
    if packed is None and body.startswith("{"):
        packed = packed_in({"MessageAttributes": _in_sns_envelope(body)})
    if packed is not None:
        return envelope.unpack(packed), packed
    return {name: value for name in _PLAIN if (value := _value(native, name)) is not None}, None


def _in_sns_envelope(body: str) -> Mapping[str, Any] | None:
    """Return the attributes in the envelope that SNS puts round a message; None where there is none of ours.

    Its other members are strings, where a quotation mark never stands without a backslash: the first match is its own.
    """
    if f'"{ATTRIBUTE}"' not in body or '"TopicArn"' not in body:
        return None
    match = _SNS_ATTRIBUTES.search(body)
    if match is None:
        return None
    try:
        found: Any = _decode(body[match.end() : match.end() + _MOST_SNS_ATTRIBUTES])[0]
    except (ValueError, RecursionError):
        return None
    return found if is_dict(found) else None


def _number(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 16 else 0  # noqa: PLR2004  no time in this millennium has more
