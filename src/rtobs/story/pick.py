"""Which of many journeys is meant: by its correlation id, the beginning of one, or the id of one of its traces.

Two passes over the same spans, so that only the journey that is meant is held. Must not know where they are from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from rtobs._conventions import Attribute
from rtobs.errors import ConfigError
from rtobs.story.spans import Span

FEWEST: Final = 4
"""Digits of an id that are enough to look for."""
_MOST_SHOWN: Final = 5
_MOST_CANDIDATES: Final = 1000
_ID: Final = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


class NotFoundError(LookupError):
    """No journey has this id."""


class Pick:
    """First ``see`` all spans, then ask for the ``journey``, then take its spans ``of`` all."""

    def __init__(self, wanted: str) -> None:
        """Look for an id, or the first digits of one.

        Raises:
            ConfigError: it is none.
        """
        self.wanted = wanted.strip().lower().replace("-", "")
        if not _ID.fullmatch(self.wanted) or len(self.wanted) < FEWEST:
            raise ConfigError(
                f"{wanted!r} is no correlation id; give its 32 hexadecimal digits, or at least the first {FEWEST}."
            )
        self._traces: dict[str, set[str]] = {}

    def see(self, spans: Iterable[Span]) -> None:
        """Note journeys and traces that begin as is wanted."""
        for span in spans:
            name = span.text(Attribute.CORRELATION_ID)
            meant = name.startswith(self.wanted) or span.trace_id.startswith(self.wanted)
            if name and meant and (name in self._traces or len(self._traces) < _MOST_CANDIDATES):
                self._traces.setdefault(name, set()).add(span.trace_id)

    def journey(self) -> str:
        """Return the one correlation id that is meant.

        Raises:
            NotFoundError: there is none.
            ConfigError: there are several.
        """
        found = [self.wanted] if self.wanted in self._traces else sorted(self._traces)
        if not found:
            what = "begins with" if len(self.wanted) < 32 else "has"  # noqa: PLR2004  digits of a whole id
            raise NotFoundError(f"no span of a journey whose id {what} {self.wanted}")
        if len(found) > 1:
            more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
            raise ConfigError(
                f"{self.wanted} is the beginning of {len(found)} journeys; give more digits of one of "
                f"{', '.join(found[:_MOST_SHOWN])}{more}."
            )
        return found[0]

    def of(self, spans: Iterable[Span]) -> Iterator[Span]:
        """Yield those of *spans* that are part of the journey, other libraries' in its traces included."""
        journey = self.journey()
        traces = self._traces[journey]
        for span in spans:
            name = span.text(Attribute.CORRELATION_ID)
            if name == journey or (not name and span.trace_id in traces):
                yield span
