"""What the tests of rtobs's promises to its host share."""

from __future__ import annotations

import pytest

for part in ("faults", "telling"):
    pytest.register_assert_rewrite(f"tests.unbreakable.{part}")  # before the first import: they assert

from tests.support.telemetry import clock, telemetry  # noqa: E402 - see above

__all__ = ["clock", "telemetry"]
