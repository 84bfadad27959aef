"""Fixtures of the tests of the SLO room."""

from __future__ import annotations

import pytest

from tests.slo import support
from tests.support.telemetry import clock

__all__ = ["clock"]


@pytest.fixture(scope="session")
def built():
    """The files that are made of the example, by path."""
    return support.built()
