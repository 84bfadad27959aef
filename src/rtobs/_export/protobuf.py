"""Protobuf by hand, as far as OTLP attributes need it: varints, lengths, AnyValue and KeyValue.

Pure. Field numbers are those of ``opentelemetry/proto/common/v1/common.proto``. Must not know spans or queues.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

_TABLE: Final = 2048
_WORD: Final = 1 << 64
_INT_MAX: Final = 1 << 63
_MOST_DEPTH: Final = 32
"""Receivers made with Google's libraries refuse a whole request that nests deeper than about 47 values."""
_MOST_NODES: Final = 65_536
"""Values inside one attribute; beyond it the attribute is given up, so that a cyclic one ends."""

double = struct.Struct("<d").pack


class NotEncodableError(ValueError):
    """A value has no form in OTLP."""


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits of each byte
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_VARINTS: Final = tuple(_varint(number) for number in range(_TABLE))


def varint(number: int) -> bytes:
    """Return an unsigned number of at most 64 bits, seven bits to the byte, lowest first."""
    return _VARINTS[number] if number < _TABLE else _varint(number)


def field(tag: bytes, content: bytes) -> bytes:
    """Return a length-delimited field: *tag* is its number and wire type 2."""
    return b"%b%b%b" % (tag, varint(len(content)), content)


def utf8(text: object) -> bytes:
    """Return a string's bytes as protobuf takes them: text, or bytes that are valid UTF-8.

    Raises:
        NotEncodableError: neither; a UnicodeError where the text has lone surrogates.
    """
    if isinstance(text, str):
        return str.encode(text)
    if isinstance(text, bytes):
        text.decode()
        return text
    raise NotEncodableError(f"{type(text).__name__} is no text")


def key_value(name: object, value: object) -> bytes:
    """Return the content of a KeyValue; raises what ``utf8`` and ``any_value`` raise."""
    return field(b"\x0a", utf8(name)) + field(b"\x12", any_value(value))


def any_value(value: object) -> bytes:
    """Return the content of an AnyValue.

    Raises:
        NotEncodableError: the value or something inside it has no form in OTLP, or it nests too deep or is too large.
            Whatever a caller's own class raises when it is read comes through too.
    """
    return _any(value, [_MOST_NODES], 0)


def _scalar(value: object) -> bytes | None:  # noqa: PLR0911  one line for each type
    """Return the content of an AnyValue of one value; None for what holds others."""
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, str):
        return field(b"\x0a", str.encode(value))
    if isinstance(value, int):
        number = int.__index__(value)
        if not -_INT_MAX <= number < _INT_MAX:
            raise NotEncodableError("an integer needs more than 64 bits")
        return b"\x18" + varint(number % _WORD)
    if isinstance(value, float):
        return b"\x21" + double(value)
    if isinstance(value, bytes):
        return field(b"\x3a", value)
    return None


def _any(value: Any, left: list[int], depth: int) -> bytes:
    found = _scalar(value)
    if found is not None:
        return found
    if depth >= _MOST_DEPTH:
        raise NotEncodableError("values are nested too deep")
    parts: list[bytes] = []
    if isinstance(value, Sequence):
        for one in value:  # pyright: ignore[reportUnknownVariableType]  anything may be in it
            _spend(left)
            parts.append(field(b"\x0a", _any(one, left, depth + 1)))
        return field(b"\x2a", b"".join(parts))
    if isinstance(value, Mapping):
        for name, one in value.items():  # pyright: ignore[reportUnknownVariableType]  as above
            _spend(left)
            inside = _any(one, left, depth + 1)
            parts.append(field(b"\x0a", field(b"\x0a", utf8(str(name))) + field(b"\x12", inside)))  # pyright: ignore[reportUnknownArgumentType]  as above
        return field(b"\x32", b"".join(parts))
    raise NotEncodableError(f"{type(value).__name__} has no form in OTLP")


def _spend(left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise NotEncodableError("too many values")
