"""Identity: who it was, without saying who: a keyed hash of an e-mail address, a phone number, a device's token.

The same person has the same hash in every process that was given the same ``wire_key``; without one, in this process
and its forks only. Must not know how identifiers are found.
"""

from __future__ import annotations

import os
from hashlib import blake2b

_PERSON = b"rtobs-redaction"
_DIGEST = 6
"""48 bits: among a million people two share a hash with probability 1/600; no row of any other table fits."""
_MOST = 1024

_key = os.urandom(32)


def use_key(wire_key: bytes | None) -> None:
    """Hash with a key derived from *wire_key* from now on; None keeps the one that this process has drawn."""
    global _key  # noqa: PLW0603  one policy per process
    if wire_key is not None:
        _key = blake2b(wire_key, digest_size=32, person=_PERSON).digest()


def of(kind: str, value: str) -> str:
    """Return what stands for *value*: ``[email:0b51f0e93c2a]``."""
    digest = blake2b(value[:_MOST].encode("utf-8", "replace"), digest_size=_DIGEST, key=_key, person=_PERSON)
    return f"[{kind}:{digest.hexdigest()}]"
