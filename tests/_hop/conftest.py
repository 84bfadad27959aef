"""What the tests of hops share."""

from __future__ import annotations

from tests.support.telemetry import clock, telemetry

__all__ = ["clock", "telemetry"]
