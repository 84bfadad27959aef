"""``docs/reliability.md`` says what was measured, and names tests that are there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.unbreakable import figures, page
from tests.unbreakable.promises import ROWS


@cache
def functions(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("test", page.tests())
def test_every_test_that_the_page_names_is_there(test: str) -> None:
    """A promise is held by tests that exist."""
    file, _, name = test.partition("::")
    assert name in functions(ROOT / file)


def test_the_page_is_what_the_script_writes() -> None:
    """The page is written from the promises and the figures; after a change: ``python -m tests.unbreakable.page``."""
    assert page.PAGE.read_text(encoding="utf-8") == page.text()


def test_every_figure_belongs_to_a_promise() -> None:
    """No figure is kept that the page does not show."""
    assert set(figures.recorded()) <= set(ROWS)


def test_a_row_is_found_by_its_test() -> None:
    """A test with parameters belongs to the row that names it; another test belongs to none."""
    assert page.row_of("tests/_export/test_reliability.py::test_r11_a_thousand_forks") == "R11"
    assert page.row_of("tests/unbreakable/test_exits.py::test_r10_sigterm_does_what_it_did_before[a handler]") == "R10"
    assert page.row_of("tests/unbreakable/test_page.py::test_a_row_is_found_by_its_test") is None
