"""Spans of time as people write them: ``300ms``, ``5s``, ``1h30m``; Prometheus reads the same spelling.

Knows text and seconds only.
"""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
PATTERN: Final = r"([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?"
"""What a span looks like: whole numbers with units, the largest unit first."""
_SPAN = re.compile(PATTERN)
_PART = re.compile(r"([0-9]+)([a-z]+)")


def seconds(text: str) -> float:
    """Return the seconds that *text* stands for; raise ValueError if it is no span of time."""
    if not text or not _SPAN.fullmatch(text):
        raise ValueError(text)
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text)) / 1000


def span(value: float) -> str:
    """Return *value*, in seconds, as Prometheus writes it, to the millisecond; at least one."""
    rest = max(round(value * 1000), 1)
    parts: list[str] = []
    for unit, size in _UNITS.items():
        number, rest = divmod(rest, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts)
