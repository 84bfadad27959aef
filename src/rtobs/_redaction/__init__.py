"""One policy for every string that leaves: valid UTF-8, one line, bounded, and nothing in it that is nobody's business.

``text`` makes safe what rtobs itself made; ``redact``, ``field`` and ``error_text`` also search what came from outside:
users' fields, exceptions, URLs, brokers' ids. They are called where telemetry is made of a hop, not while it runs.
``docs/privacy.md`` says what they find. Knows plain values only; must not know which signal they are for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rtobs import _guard
from rtobs._redaction import identity, names, patterns
from rtobs._redaction.names import Kind

TEXT_LIMIT = 1024
"""Longest attribute value, bytes of UTF-8."""
NAME_LIMIT = 256
"""Longest span, event or attribute name, bytes of UTF-8."""
FOREIGN_LIMIT = 8192
"""Longest text of another library's span: stacks and statements are longer than what people say of messages."""
ATTRIBUTE_LIMIT = 64
EVENT_LIMIT = 32
LINK_LIMIT = 32

Scalar = str | int | float | bool | None

FAILED = "[redacted]"
"""Stands where the policy itself could not be applied."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_ELLIPSIS = "…"
_ELLIPSIS_BYTES = 3
_INT_MAX = 2**63
_SHORTEST = 6
"""Nothing shorter holds a secret that could be recognised."""
_PLAIN_ID = re.compile(r"[0-9a-f]{32}|\d{1,11}|1\d{12}-\d{1,4}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
"""What ids of messages mostly are."""
_BEYOND = 1024
"""Characters behind the cut that are searched too: what begins before it may be recognised only by what follows."""
_UNSURE = 640
"""Characters at the end of what is searched that are not shown."""
_MOST_CLEAN = 1024
_LONGEST_CLEAN = 64
_MOST_DEPTH = 4
_NUMBERS = (int, float, bool)
_clean: set[str] = set()
"""Short texts in which nothing was found: destinations and the like come again with every message."""

use_key = identity.use_key


def text(value: str, limit: int = TEXT_LIMIT) -> str:
    """Return *value* cut to *limit* bytes, with control, bidi and surrogate characters replaced by U+FFFD."""
    if type(value) is not str:
        value = str.__str__(value)
    if len(value) > limit:
        value = value[: limit - _ELLIPSIS_BYTES] + _ELLIPSIS
    if value.isascii() and value.isprintable():
        return value
    value = _UNSAFE.sub("\ufffd", value)
    if len(value) * 4 > limit and len(raw := value.encode()) > limit:
        value = raw[: limit - _ELLIPSIS_BYTES].decode(errors="ignore") + _ELLIPSIS
    return value


def scalar(value: object) -> str | int | float | bool:
    """Return *value* as something every exporter can encode; objects are named by their type, never rendered."""
    kind = type(value)
    if kind is str:
        return text(value)  # type: ignore[arg-type]
    if kind is bool or kind is float:
        return value  # type: ignore[return-value]
    if kind is int:
        number: int = value  # type: ignore[assignment]
        return number if -_INT_MAX <= number < _INT_MAX else "<large integer>"
    if value is None:
        return ""
    if issubclass(kind, str):  # what an object says of its class may be a lie
        return text(value)  # type: ignore[arg-type]
    return f"<{text(kind.__name__, NAME_LIMIT)}>"


def redact(value: str, limit: int = TEXT_LIMIT) -> str:
    """Return *value* as ``text`` does, with secrets gone and personal identifiers replaced by their keyed hash."""
    if type(value) is not str:
        value = str.__str__(value)
    if len(value) < _SHORTEST or value in _clean:
        return text(value, limit)
    if _PLAIN_ID.fullmatch(value) is not None:
        return value
    try:
        return text(_searched(value, limit), limit)
    except Exception as error:  # noqa: BLE001  what cannot be searched does not leave
        _guard.fault("redaction", error)
        return FAILED


def _searched(value: str, limit: int) -> str:
    if len(value) <= limit:
        found = patterns.search(value)
        if found is value and len(value) <= _LONGEST_CLEAN:
            if len(_clean) >= _MOST_CLEAN:
                _clean.clear()
            _clean.add(value)
        return found
    window = value[: limit + _BEYOND]
    found = patterns.search(window)
    if len(window) < len(value):  # its end may be the beginning of something that cannot be recognised yet
        found = found[:-_UNSURE]
        if len(found) <= limit - _ELLIPSIS_BYTES:
            return found + _ELLIPSIS
    return found


def field(name: str, value: Any, limit: int = TEXT_LIMIT, depth: int = 0) -> Any:
    """Return the value of a field called *name*: searched, or replaced as a whole where the name says what it is.

    Numbers and truth values are what they are, except under the name of a secret.
    """
    try:
        kind = names.kind(name)
        if kind is None or value is None or isinstance(value, bool) or value == "":
            return _value(value, limit, depth)
        if kind is Kind.SECRET or (kind is Kind.CONTENT and isinstance(value, str)):
            return FAILED
        found = _value(value, limit, depth)
        return found if not isinstance(value, str) or found != text(value, limit) else identity.of("id", value)
    except Exception as error:  # noqa: BLE001  as above
        _guard.fault("redaction", error)
        return FAILED


def _value(value: Any, limit: int, depth: int) -> Any:
    if isinstance(value, str):
        return redact(value, limit)
    if isinstance(value, bytes):
        return value if len(value) <= limit and is_clean(value.decode("utf-8", "replace"), limit) else FAILED
    return _inside(value, limit, depth) if isinstance(value, tuple | list | Mapping) else value


def _inside(value: Any, limit: int, depth: int) -> Any:
    """Return a container of another library's: ours are scalars."""
    if depth >= _MOST_DEPTH:
        return FAILED
    if isinstance(value, Mapping):
        pairs: Any = value.items()  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]  anything
        return {str(name): field(str(name), one, limit, depth + 1) for name, one in pairs}
    if all(type(one) in _NUMBERS for one in value):
        return value
    return tuple(_value(one, limit, depth + 1) for one in value[:ATTRIBUTE_LIMIT])


def fields(found: Mapping[str, Any], limit: int = TEXT_LIMIT) -> dict[str, Any]:
    """Return all fields with their values as ``field`` has them; a name that holds something is redacted too."""
    return {redact(name, NAME_LIMIT): field(name, value, limit) for name, value in found.items()}


def is_clean(value: str, limit: int = NAME_LIMIT) -> bool:
    """Tell whether there is nothing to redact in *value*."""
    return redact(value, limit) == text(value, limit)


def error_text(error: BaseException) -> str:
    """Return the exception's message, redacted, if that is safe to ask for; its class name otherwise."""
    try:
        return redact(str(error))
    except Exception:  # noqa: BLE001  a broken __str__ of the host's exception must not replace that exception
        return f"<{text(type(error).__name__, NAME_LIMIT)}>"
