"""House rules that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def _tests(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function for function in functions if function.name.startswith("test_")]


def _is_one_sentence(docstring: str | None) -> bool:
    # A full stop that another sentence follows: "… . A". An ellipsis, 1.5, e.g. and the like do not count.
    text = " ".join((docstring or "").split())
    return text.endswith(".") and not re.search(r"[^.\s]{3,}[.!?] [A-Z]", text)


def test_every_test_says_in_one_sentence_what_happens():
    """Each test's docstring is one sentence, which a report can print as a fact about rtobs."""
    files = sorted(TESTS.rglob("test_*.py"))
    found = [(file, test) for file in files for test in _tests(file)]
    assert len(found) > 30
    wrong = [
        f"{file.relative_to(TESTS)}:{test.lineno} {test.name}"
        for file, test in found
        if not _is_one_sentence(ast.get_docstring(test))
    ]
    assert wrong == []


def test_what_counts_as_one_sentence():
    """The rule above refuses none, two, and one without its full stop, and is not fooled by dots inside."""
    assert _is_one_sentence("A wait of 1.5 s, e.g. A's, ends\n    when `x.y` is true.")
    assert not _is_one_sentence(None)
    assert not _is_one_sentence("A wait ends")
    assert not _is_one_sentence("A wait ends. Another begins.")
