"""Envelope: a journey's headers as one text, for transports that have one field for them, or only the payload.

``docs/wire-format.md`` says the same to the byte. Every input is hostile until it has matched: nothing here raises, and
what is not ours is left as it came. Must not know brokers, nor what the headers mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rtobs import _conventions as names
from rtobs import _guard

LIMIT = 10_000
"""Most bytes of the headers' text; those within their own limits take less."""
_FIRST = re.compile(r"rtobs1 ([0-9a-f]{4})\n", re.ASCII)
_MAGIC, _MAGIC_BYTES = "rtobs1 ", b"rtobs1 "
FRAME = len(_MAGIC) + 5
"""Bytes of an envelope beside the lines of its headers."""
_LINES = re.compile(r"(?:[a-z][a-z0-9-]*=[\x20-\x7e]*\n)+", re.ASCII)


def pack(headers: Mapping[str, str]) -> bytes:
    """Return headers as lines ``name=value``, each with a line feed; a value that is not printable ASCII stays out."""
    lines = [f"{name}={value}\n" for name, value in headers.items() if value.isascii() and value.isprintable()]
    return "".join(lines).encode()


def unpack(packed: object) -> dict[str, str]:
    """Return the headers of a field that ``pack`` has written; from one that is not valid none, counted."""
    if packed is None:
        return {}
    if not isinstance(packed, str | bytes):
        reason = "type"
    elif len(packed) > LIMIT:
        reason = "too_long"
    else:
        text = packed if isinstance(packed, str) else packed.decode("latin-1")
        if _LINES.fullmatch(text):
            return _headers(text)
        reason = "field"
    _guard.tally(names.PROPAGATION_REJECTED, reason)
    return {}


def _headers(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines())
    return {name: value for name, value in pairs if name in names.OWN_HEADERS}


def close(payload: bytes | bytearray | memoryview, headers: Mapping[str, str]) -> bytes:
    """Return *payload* in an envelope with *headers*; without any, and with too many, as it is."""
    text = pack(headers)
    if not 0 < len(text) <= LIMIT:
        return bytes(payload)
    return b"".join((b"%s%04x\n" % (_MAGIC_BYTES, len(text)), text, payload))


def open(sealed: str | bytes) -> tuple[Any, dict[str, str]] | None:  # noqa: A001  read as envelope.open
    """Return the payload, of the same type and byte for byte, and the headers; None where this is no envelope.

    Text is what a client made of the bytes, by an encoding that contains ASCII; the payload is then what that client
    would have made of the payload alone.
    """
    if not (sealed.startswith(_MAGIC) if isinstance(sealed, str) else sealed.startswith(_MAGIC_BYTES)):
        return None
    first = sealed[:FRAME]
    match = _FIRST.fullmatch(first if isinstance(first, str) else first.decode("latin-1"))
    if match is None:
        return None
    end = FRAME + int(match[1], 16)
    lines = sealed[FRAME:end]
    text = lines if isinstance(lines, str) else lines.decode("latin-1")
    if end > min(len(sealed), FRAME + LIMIT) or not _LINES.fullmatch(text):
        return None
    return sealed[end:], _headers(text)
