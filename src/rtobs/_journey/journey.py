"""Journey: a message's whole way, and the part of it that travels.

Knows names, clocks' values and promises; must not know headers (that is the carrier) or hops.
"""

from __future__ import annotations

import os
import random
from hashlib import blake2b
from typing import Any
from uuid import UUID

from rtobs._journey.rare import Rare

Key = str | bytes | int | UUID

KNOWN_CHANNELS = {
    "push": 1, "sms": 2, "email": 3, "in_app": 4, "webhook": 5, "connector": 6, "voice": 7, "chat": 8, "whatsapp": 9,
    "slack": 10,
}  # fmt: skip
_FIRST_HASHED = 32
MOST_PROMISES = 8
"""Promised channels that travel with a message."""

_DRAWN = 128
"""Ids drawn at once: most of what one costs is the way to the system and back."""
_VERSION = bytes(0x70 | byte & 0x0F for byte in range(256))
_NO_SPAN = "0" * 16
BYTES = tuple(f"{number:02x}" for number in range(256))
"""Two hex digits by their value."""
_spans: list[str] = []
_tails: list[str] = []
"""The last 20 digits of correlation ids."""
_heads: tuple[int, str] = (0, "")
"""The first ten digits of correlation ids, and the milliseconds divided by 256 that they stand for."""


def forget_drawn() -> None:
    """Draw anew: a forked child must not have its parent's ids."""
    _spans.clear()
    _tails.clear()


random_bits = random.SystemRandom().getrandbits


def new_correlation_id(wall_ns: int) -> str:
    """Return 32 hex digits: 48 bits of milliseconds and the version as in a UUIDv7 (RFC 9562 §5.7), 76 random bits.

    The two variant bits are random too. They are the highest of the 64 bits by which OpenTelemetry's ratio samplers
    decide; fixed, every such sampler up to one half would drop all journeys.
    """
    return new_root(wall_ns)[0]


def new_root(wall_ns: int) -> tuple[str, str]:
    """Return a new correlation id, and a span id to go with it."""
    global _heads  # noqa: PLW0603  replaced as a whole, so that threads never see half of it
    milliseconds = wall_ns // 1_000_000
    block, head = _heads
    if milliseconds >> 8 != block:
        block = milliseconds >> 8
        head = f"{block & 0xFFFFFFFFFF:010x}"
        _heads = block, head
    try:
        tail, span = _tails.pop(), _spans.pop()
    except IndexError:
        tail, span = _drawn_tails(), new_span_id()
    return f"{head}{BYTES[milliseconds & 0xFF]}{tail}", span


def _drawn_tails() -> str:
    drawn = bytearray(os.urandom(10 * _DRAWN))
    drawn[::10] = drawn[::10].translate(_VERSION)
    found = drawn.hex(" ", 10).split(" ")
    tail = found.pop()
    _tails.extend(found)
    return tail


def new_trace_id() -> str:
    """Return 32 random hex digits that are not all zero."""
    return new_span_id() + new_span_id()


def new_span_id() -> str:
    """Return 16 random hex digits that are not all zero."""
    try:
        return _spans.pop()
    except IndexError:
        found = os.urandom(8 * _DRAWN).hex(" ", 8).split(" ")
        while _NO_SPAN in found:
            found.remove(_NO_SPAN)
        span = found.pop()
        _spans.extend(found)
        return span


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
        "attempt", "correlation_id", "created_us", "ledger", "named", "rare", "region", "sent_us", "source", "tenant",
    )  # fmt: skip

    def __init__(self, correlation_id: str, created_us: int, sent_us: int = 0, attempt: int = 1) -> None:
        """Begin a journey named by 32 hex digits, *created_us* microseconds after the epoch."""
        self.correlation_id = correlation_id
        self.created_us = created_us
        self.sent_us = sent_us
        """When the message that began this hop was sent; 0 = none was."""
        self.attempt = attempt
        """How often this message has been tried before the broker's own count, this time included."""
        self.tenant = self.region = self.source = self.ledger = ""
        self.named = False
        """Whether the tenant is a label of its own everywhere, or counted under `other`."""
        self.rare: dict[str, Any] | None = None

    channel = Rare("")
    intent = Rare("")
    """The one promise this message stands for."""
    device_type = Rare("")
    kept = Rare("")
    """Why every further hop is kept; empty = not decided."""
    kept_before = Rare(False)  # noqa: FBT003  a default
    """It was kept before it came here: what was before that has been exported or rebuilt."""
    kept_limit = Rare[int | None](None)
    """The sampling threshold at which it was kept in this process step, if it was and that is known."""
    rebuilt = Rare(False)  # noqa: FBT003  as above
    """What its ledger tells has been rebuilt in this process step."""
    promise_named = Rare(False)  # noqa: FBT003  a default
    promise_region = Rare[str | None](None)
    promise_tenant = Rare[str | None](None)
    promised = Rare[frozenset[int]](frozenset())
    """Codes of the channels for which a delivery is promised."""
    replay = Rare(False)  # noqa: FBT003  as above

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
