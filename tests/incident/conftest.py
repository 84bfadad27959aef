"""Fixtures of the tests of incident summaries."""

from __future__ import annotations

import pytest

from tests.slo import support


@pytest.fixture(scope="session")
def built():
    """The files that are made of the example, by path."""
    return support.built()
