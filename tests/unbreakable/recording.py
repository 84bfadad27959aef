"""A pytest plugin: what the tests of the table print or report becomes a figure of their row.

    RTOBS_TEST_FIGURES=1 python -m pytest -p tests.unbreakable.recording tests/unbreakable

A test that keeps its figure itself, by ``figures.record``, is left alone. One that passes and says nothing has passed.
"""

from __future__ import annotations

import pytest

from tests.unbreakable import figures, page


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test of the table has said."""
    row = page.row_of(report.nodeid)
    if row is None or report.when != "call" or not report.passed:
        return
    printed = [line.strip() for line in report.capstdout.splitlines() if line.strip()]
    told = [str(text) for name, text in report.user_properties if name == row]
    if row in page.KEPT_BY_THEMSELVES and report.user_properties:
        return
    if not told and any(line.startswith((f"{row}:", f"{row} ")) for line in printed):
        return
    name = report.nodeid.partition("::")[2].removeprefix("test_").removeprefix(f"{row.lower()}_")
    text = " ".join(told or printed[:1])
    figures.record(row, text or "passed", name if text else name.partition("[")[0])
