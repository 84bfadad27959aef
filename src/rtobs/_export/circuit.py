"""Circuit: after three failures in a row a collector is left alone, but for a try now and then.

Must not know what is sent.
"""

from __future__ import annotations

import random
from typing import Final

_FAILURES: Final = 3
_FIRST_REST: Final = 5.0
_LONGEST_REST: Final = 30.0
"""Seconds between tries, less up to half of them at random, so that processes do not all come back at once."""

_random = random.Random()  # noqa: S311  as above


class Circuit:
    """Says when to try. Times are seconds by ``time.monotonic``."""

    def __init__(self) -> None:
        self.until = 0.0
        """When to try next."""
        self._failures = 0

    @property
    def opened(self) -> bool:
        """Whether it takes a success before everything is as always."""
        return self._failures >= _FAILURES

    def resting(self, now: float) -> bool:
        """Tell whether it is too early to try."""
        return now < self.until

    def worked(self) -> None:
        """Something was taken."""
        self._failures, self.until = 0, 0.0

    def failed(self, now: float) -> None:
        """One export failed, its own further tries included."""
        self._failures += 1
        if self.opened:
            rest = min(_FIRST_REST * 2 ** min(self._failures - _FAILURES, 8), _LONGEST_REST)
            self.until = now + rest * _random.uniform(0.5, 1.0)
