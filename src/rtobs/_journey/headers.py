"""Headers as clients have them: mappings, lists of pairs, text or bytes, any spelling; bounded whatever comes.

Finds values and turns them into text; must not know what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any, cast

from rtobs import _conventions as names
from rtobs import _guard

MOST_PAIRS = 256
"""Pairs of one message that are looked at."""
_LONGEST_NAME = 16
_LONGEST_TEXT = 8192
"""Bytes of a header that may be turned into text before anybody knows how long it may be."""
_LISTS = (names.TRACESTATE, names.BAGGAGE)
"""Headers that may come in several lines."""


def read(headers: object, name: str, limit: int) -> str:
    """Return one header as text, from any native shape; empty where it is missing, too long or not text."""
    return text(collect(headers, (name,)).get(name), limit, several=name in _LISTS)


def collect(headers: object, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return the *wanted* headers that are there, by name: one look-up each, or one pass over the first 256 pairs."""
    native: Any = headers
    if headers is None:
        return {}
    if isinstance(headers, Mapping):
        found = {name: value for name in wanted if (value := native.get(name)) is not None}
        # Nothing under its own name: perhaps in another spelling, Traceparent or b"traceparent".
        return found if found or not native else _scan(native.items(), wanted)
    if isinstance(headers, str | bytes | bytearray) or not isinstance(headers, Iterable):
        _guard.tally(names.PROPAGATION_REJECTED, "type")
        return {}
    return _scan(native, wanted)


def _scan(pairs: Iterable[Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, pair in enumerate(pairs):
        if index >= MOST_PAIRS:
            _guard.tally(names.PROPAGATION_REJECTED, "too_many")
            break
        if _is_pair(pair):
            name, value = _spelling(pair[0]), pair[1]
            if name in wanted and value is not None:
                found[name] = [*found[name], value] if name in found else [value]
    return found


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(cast("Sized", value)) == 2  # noqa: PLR2004  a pair is two things


def _spelling(name: object) -> str:
    """Return a header's name in lower case; one that cannot be ours is not looked at."""
    if isinstance(name, bytes) and len(name) <= _LONGEST_NAME:
        return name.decode("latin-1").lower()
    return name.lower() if isinstance(name, str) and len(name) <= _LONGEST_NAME else ""


def ours_as_text(headers: dict[str, Any]) -> None:
    """Turn our headers into text where they are ASCII bytes; anything else is left to whoever reads it."""
    for name in names.OWN_HEADERS:
        value = headers.get(name)
        if type(value) is bytes and len(value) <= _LONGEST_TEXT and value.isascii():
            headers[name] = value.decode("ascii")


def text(value: Any, limit: int, *, several: bool = False) -> str:
    """Return a header's value as text, empty and counted where it is too long or not text.

    With *several* repeated lines are joined (RFC 9110 §5.3); otherwise a header that comes twice is not valid.
    """
    if isinstance(value, list | tuple):
        values = cast("tuple[Any, ...]", value)
        if len(values) == 1:
            return text(values[0], limit, several=several)
        if several and len(values) <= MOST_PAIRS:
            return _joined(values, limit)
        _guard.tally(names.PROPAGATION_REJECTED, "duplicate" if values else "type")
        return ""
    if isinstance(value, str | bytes | bytearray):
        size = len(value)
    elif isinstance(value, memoryview):
        size = value.nbytes
    else:
        if value is not None:
            _guard.tally(names.PROPAGATION_REJECTED, "type")
        return ""
    if size > limit:
        _guard.tally(names.PROPAGATION_REJECTED, "too_long")
        return ""
    return value if isinstance(value, str) else bytes(cast("bytes", value)).decode("utf-8", "replace")


def _joined(values: tuple[Any, ...], limit: int) -> str:
    parts: list[str] = []
    left = limit
    for value in values:  # the sum is what counts, or a thousand lines of 8 KB would each pass
        part = text(value, max(left, 0))
        left -= len(part) + 1
        if part:
            parts.append(part)
    return ",".join(parts)
