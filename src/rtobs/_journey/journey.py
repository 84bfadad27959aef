"""Journey: a message's whole way, and the part of it that travels.

Knows names, clocks' values and promises; must not know headers (that is the carrier) or hops.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from uuid import UUID

Key = str | bytes | int | UUID

KNOWN_CHANNELS = {
    "push": 1, "sms": 2, "email": 3, "in_app": 4, "webhook": 5, "connector": 6, "voice": 7, "chat": 8, "whatsapp": 9,
    "slack": 10,
}  # fmt: skip
_FIRST_HASHED = 32
MOST_PROMISES = 8
"""Promised channels that travel with a message."""

_random = random.Random()  # noqa: S311  identifiers need to be unlikely to repeat, not secret; reseeded after fork


def reseed() -> None:
    """Draw a new seed from the system; a forked child must not repeat its parent's ids."""
    _random.seed()


def new_correlation_id(wall_ns: int) -> int:
    """Return 128 bits: 48 of milliseconds and the version as in a UUIDv7 (RFC 9562 §5.7), then 76 random bits.

    The two variant bits are random too. They are the highest of the 64 bits by which OpenTelemetry's ratio samplers
    decide; fixed, every such sampler up to one half would drop all journeys.
    """
    return ((wall_ns // 1_000_000) & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | _random.getrandbits(76)


def new_trace_id() -> int:
    """Return a random 128-bit trace id that is not zero."""
    return _random.getrandbits(128) or 1


def new_span_id() -> int:
    """Return a random 64-bit span id that is not zero."""
    return _random.getrandbits(64) or 1


def channel_code(channel: str) -> int:
    """Return the byte that stands for *channel* on the wire.

    Well-known channels have a number below 32. Others are hashed into 32..255: two such names share a byte with
    probability 1/224, and a message that promises one of them then also seems to promise the other.
    """
    known = KNOWN_CHANNELS.get(channel)
    if known is not None:
        return known
    hashed = int.from_bytes(blake2b(channel.encode("utf-8", "replace"), digest_size=4).digest(), "big")
    return _FIRST_HASHED + hashed % (256 - _FIRST_HASHED)


def key_bytes(key: Key) -> bytes:
    """Return one spelling for equal keys: integers in decimal, UUIDs as text, text as UTF-8, bytes as they are."""
    if isinstance(key, bytes):
        return key
    return str(key).encode("utf-8", "replace")


def intent_id(correlation_id: str, channel: str, key: Key = "") -> str:
    """Return the 16 hex digits that name one promised delivery; the same in every process."""
    content = b"\0".join((correlation_id.encode(), channel.encode("utf-8", "replace"), key_bytes(key)))
    return blake2b(content, digest_size=8).hexdigest()


class Journey:
    """What is known of a message's whole way. One object is shared by the hops of one process step."""

    __slots__ = (
        "attempt",
        "channel",
        "correlation_id",
        "created_us",
        "device_type",
        "intent",
        "kept",
        "ledger",
        "named",
        "promise_named",
        "promise_region",
        "promise_tenant",
        "promised",
        "region",
        "replay",
        "sent_us",
        "source",
        "tenant",
        "tracestate",
    )

    def __init__(self, correlation_id: str, created_us: int) -> None:
        """Begin a journey named by 32 hex digits, *created_us* microseconds after the epoch."""
        self.correlation_id = correlation_id
        self.created_us = created_us
        self.sent_us = 0
        """When the message that began this hop was sent; 0 = none was."""
        self.attempt = 1
        """How often this message has been tried before the broker's own count, this time included."""
        self.tenant = self.region = self.source = self.device_type = ""
        self.named = False
        """Whether the tenant is a label of its own everywhere, or counted under `other`."""
        self.promise_tenant: str | None = None
        self.promise_region: str | None = None
        self.promise_named = False
        self.promised: frozenset[int] = frozenset()
        """Codes of the channels for which a delivery is promised."""
        self.channel = self.intent = ""
        """The one promise this message stands for."""
        self.kept = ""
        """Why every further hop is kept; empty = not decided."""
        self.replay = False
        self.ledger = ""
        self.tracestate = ""

    def promises(self, channel: str) -> bool:
        """Tell whether somebody before promised a delivery on *channel*."""
        return bool(self.promised) and channel_code(channel) in self.promised

    def promise(self, channel: str) -> None:
        """Remember that a delivery on *channel* is promised; the ninth channel and later do not travel."""
        self.promised |= {channel_code(channel)}

    def freeze_promise(self) -> None:
        """Fix tenant and region of the promises, so that intents and outcomes agree whatever comes later."""
        if self.promise_tenant is None:
            self.promise_tenant, self.promise_region, self.promise_named = self.tenant, self.region, self.named
