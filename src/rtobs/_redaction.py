"""One policy for every string that leaves: valid UTF-8, one line, bounded.

Knows plain values only; must not know which signal they are for.
"""

from __future__ import annotations

import re

TEXT_LIMIT = 1024
"""Longest attribute value, characters."""
NAME_LIMIT = 256
"""Longest span, event or attribute name, characters."""
ATTRIBUTE_LIMIT = 64
EVENT_LIMIT = 32
LINK_LIMIT = 32

Scalar = str | int | float | bool | None

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_INT_MAX = 2**63


def text(value: str, limit: int = TEXT_LIMIT) -> str:
    """Return *value* cut to *limit* characters, with control, bidi and surrogate characters replaced by U+FFFD."""
    if len(value) > limit:
        value = value[: limit - 1] + "…"
    if value.isascii() and value.isprintable():
        return str(value)
    return _UNSAFE.sub("\ufffd", value)


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
    if isinstance(value, str):
        return text(str.__str__(value))
    return f"<{kind.__name__[:NAME_LIMIT]}>"


def error_text(error: BaseException) -> str:
    """Return the exception's message if that is safe to ask for, bounded; its class name otherwise."""
    try:
        return text(str(error))
    except Exception:  # noqa: BLE001  a broken __str__ of the host's exception must not replace that exception
        return f"<{type(error).__name__}>"
