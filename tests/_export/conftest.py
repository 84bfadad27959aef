"""Rows of the reliability table: what a test has measured is printed, and kept where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unbreakable import figures


@pytest.fixture
def measured(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """A function that tells what was measured for a row: ``measured("R7", "198 cells, 0 unexplained")``."""

    def tell(row: str, text: str) -> None:
        record_property(row, text)
        name, _, part = row.partition(" ")
        with capsys.disabled():
            figures.record(name, text, part)

    return tell
