"""What the tests of all leaves share."""

from __future__ import annotations

import pytest

for part in ("adapter", "conformance_facts", "conformance_hops", "conformance_sends", "conformance_unchanged"):
    pytest.register_assert_rewrite(f"tests.integrations.{part}")  # before the first import: they assert

from tests.support.telemetry import clock, telemetry  # noqa: E402 - see above

__all__ = ["clock", "telemetry"]
