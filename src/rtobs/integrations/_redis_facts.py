"""Redis messages: what an entry of a stream, a Pub/Sub message and an item of a list say about themselves.

Pure; must not know commands' calls or hops.
"""

from __future__ import annotations

from typing import Any

from rtobs._journey import envelope
from rtobs._journey.message import Message
from rtobs.integrations._redis_commands import FIELDS, Entry, Reader, moment, text
from rtobs.integrations._twin import Options

SYSTEM = "redis"
PUBLISHED = frozenset({"message", "pmessage", "smessage"})
"""Types of what came over Pub/Sub, other than notices of the client itself."""


def _facts(options: Options, key: object, native: object, headers: dict[str, str], **more: Any) -> Message:
    place = text(key)
    return Message(
        SYSTEM, more.pop("destination", place), headers, address=place, native=native, trust=options.trust,
        carrier=options.carrier, dead_letter=None if options.dead_letter is None else bool(options.dead_letter), **more,
    )  # fmt: skip


def entry_facts(entry: Entry, options: Options, reader: Reader, deliveries: int = 1) -> Message:
    """Return what a stream's entry says; it is known by its fields, which survive unpacking the pair."""
    fields, entry_id = entry.fields, text(entry.id)
    packed = next((fields[name] for name in FIELDS if name in fields), None)
    sent = moment(entry_id)
    return _facts(
        options, entry.key, fields, envelope.unpack(packed), id=entry_id, manual=reader.settles, group=reader.group,
        delivery_count=deliveries, sent_ns=sent[0] * 1_000_000 if sent is not None else 0,
        max_deliveries=options.max_deliveries if reader.settles else 0,
        size=sum(len(value) for value in fields.values() if isinstance(value, str | bytes)),
    )  # fmt: skip


def opened(message: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return the payload of a message that came over Pub/Sub, out of its envelope, and the headers."""
    data = message["data"]
    found = envelope.open(data) if isinstance(data, str | bytes) else None
    return found if found is not None else (data, {})


def published_facts(message: dict[str, Any], options: Options, headers: dict[str, str]) -> Message:
    """Return what a message says that came over Pub/Sub."""
    channel, pattern, data = text(message["channel"]), message["pattern"], message["data"]
    return _facts(
        options, channel, message, headers, destination=channel if pattern is None else text(pattern),
        size=len(data) if isinstance(data, str | bytes) else 0,
    )  # fmt: skip


def item_facts(key: object, payload: str | bytes, headers: dict[str, str], options: Options) -> Message:
    """Return what an item of a list says; it is known by its payload, the object that its user got."""
    return _facts(options, key, payload, headers, size=len(payload))
