"""Receipt tokens: 57 bytes that tie one report to one delivery, without any store.

41 bytes of facts and the first 16 of an HMAC-SHA-256; 57 is divisible by 3, so base64url has one spelling only.
Signed, not encrypted: no address, tenant or body is inside. Must not know how tokens travel.

    at  bytes  what
     0   1     version
     1   1     key number
     2   1     steps it may report, a bit each
     3   3     expires, minutes since 2025-01-01
     6   5     created, milliseconds since 2025-01-01
    11   3     sent minus created, milliseconds
    14  16     correlation id
    30   8     span id of the deliver hop
    38   1     channel
    39   1     provider
    40   1     weight: binary logarithm of the rate it was minted at
    41  16     message authentication code
"""

from __future__ import annotations

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop.runtime import Redeemed, runtime
from rtobs._journey.journey import KNOWN_CHANNELS, Journey, channel_code
from rtobs._journey.outcome import STEPS, Step, proven_step

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord

VERSION = 1
CHARACTERS = 76
_EPOCH_S = 1_735_689_600
"""2025-01-01T00:00:00Z."""
_FACTS = struct.Struct(">BBB3s5s3s16s8sBBB")
_MAC = 16
_DAY_MINUTES = 24 * 60
_LIFE_MINUTES = 7 * _DAY_MINUTES


class Tokens:
    """Mints and verifies with one key; remembers which names the bytes for channel and provider stand for."""

    def __init__(self, wire_key: bytes) -> None:
        """Derive the receipts' own key from the wire key."""
        self._key = hmac.new(wire_key, b"rtobs receipt token", sha256).digest()
        self._channels = {code: channel for channel, code in KNOWN_CHANNELS.items()}
        self._providers: dict[int, str] = {}

    def learn(self, channels: Iterable[str] = (), providers: Iterable[str] = ()) -> None:
        """Let this process know names it has not delivered to itself."""
        self._channels.update((channel_code(channel), channel) for channel in channels)
        self._providers.update((_provider_code(provider), provider) for provider in providers)

    def mint(self, record: HopRecord) -> str:
        """Return a token for one deliver hop."""
        journey = record.journey
        if journey is None:
            return ""
        self.learn((record.channel,), (record.provider,))
        now_ms = runtime.wall_ns() // 1_000_000 - _EPOCH_S * 1000
        created_ms = max(journey.created_us // 1000 - _EPOCH_S * 1000, 0)
        expires = now_ms // 60_000 + _LIFE_MINUTES
        facts = _FACTS.pack(
            VERSION, 0, _later_steps(record.channel), expires.to_bytes(3, "big"), created_ms.to_bytes(5, "big"),
            min(max(now_ms - created_ms, 0), 0xFFFFFF).to_bytes(3, "big"), bytes.fromhex(journey.correlation_id),
            record.span_id.to_bytes(8, "big"), channel_code(record.channel), _provider_code(record.provider), 0,
        )  # fmt: skip
        return urlsafe_b64encode(facts + self._mac(facts)).decode()

    def redeem(self, token: object, step: Step) -> Redeemed | None:
        """Return what a token says, or None, counted, where it is not ours, expired or not for *step*."""
        raw = self._verified(token)
        if raw is None:
            _refused("token")
            return None
        _, _, steps, expires, created, _, cid, span, channel, provider, _ = _FACTS.unpack(raw)
        if int.from_bytes(expires, "big") < (runtime.wall_ns() // 1_000_000_000 - _EPOCH_S) // 60:
            _refused("token_expired")
            return None
        if not steps >> STEPS.index(step) & 1:
            _refused("token_step")
            return None
        journey = Journey(cid.hex(), (int.from_bytes(created, "big") + _EPOCH_S * 1000) * 1000)
        return Redeemed(
            journey, int.from_bytes(cid, "big"), int.from_bytes(span, "big"),
            self._channels.get(channel, names.OTHER), self._providers.get(provider, names.OTHER),
        )  # fmt: skip

    def _verified(self, token: object) -> bytes | None:
        """Return the facts of a token that this key signed, in the one spelling that it was given out in."""
        if not isinstance(token, str) or len(token) != CHARACTERS:
            return None
        try:
            raw = urlsafe_b64decode(token)
        except ValueError:
            return None
        if len(raw) != _FACTS.size + _MAC or urlsafe_b64encode(raw).decode() != token:
            return None  # the decoder skips what is no base64, and takes + for -
        facts, mac = raw[: _FACTS.size], raw[_FACTS.size :]
        return facts if hmac.compare_digest(mac, self._mac(facts)) and facts[0] == VERSION else None

    def _mac(self, facts: bytes) -> bytes:
        return hmac.new(self._key, facts, sha256).digest()[:_MAC]


def _provider_code(provider: str) -> int:
    return blake2b(provider.encode("utf-8", "replace"), digest_size=1).digest()[0]


def _later_steps(channel: str) -> int:
    """Return the steps that a receipt may report: those that the delivery itself has not counted."""
    return sum(1 << at for at in range(STEPS.index(proven_step(channel)) + 1, len(STEPS)))


def _refused(reason: str) -> None:
    _guard.tally(names.PROPAGATION_REJECTED, reason)
