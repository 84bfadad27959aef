"""docs/integrations/index.md is what the leaves say."""

from __future__ import annotations

import pytest

from tests.integrations import index


def test_the_page_is_what_the_leaves_say():
    """The page and what its script writes are the same; `python -m tests.integrations.index` brings it up to date."""
    assert index.PAGE.read_text(encoding="utf-8") == index.page()


@pytest.mark.parametrize("name", index.leaves())
def test_a_leaf_says_all_of_it(name):
    """No field is empty, or would break the table."""
    said = index.leaves()[name].COVERAGE
    assert all(text and "|" not in text for text in said)
