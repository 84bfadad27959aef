"""Our playbooks are drilled: each failure fires the alert that leads there, and Verify says no, then yes."""

from __future__ import annotations

import datetime as dt

import pytest

from rtobs.slo import playbooks
from tests.incident import drills
from tests.slo.support import PLAYBOOKS, needs_promtool

pytestmark = [needs_promtool, pytest.mark.slow]


@pytest.fixture(scope="module")
def rules():
    """The rule files of the example, by path."""
    return drills.rules()


@pytest.mark.parametrize("name", [file.stem for file in sorted(PLAYBOOKS.glob("*.md"))])
def test_a_playbook_stands_its_drill(name, rules, tmp_path):
    """While a failure lasts its alert leads to its playbook and nothing is verified; when it is over everything is."""
    assert drills.run(name, tmp_path, rules) == ""


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("broker-saturation", " or vector(0)) == 0", " or vector(0))"),
        ("connector-backlog", "[30m]", "[1h]"),
    ],
)
def test_a_question_that_cannot_tell_fails_its_drill(name, good, bad, rules, tmp_path):
    """A question that says yes while it is broken does not pass."""
    page = (PLAYBOOKS / f"{name}.md").read_text()
    head, verify, rest = page.partition("\n## Verify\n")
    assert good in rest
    assert "FAILED" in drills.run(name, tmp_path, rules, head + verify + rest.replace(good, bad, 1))


@pytest.mark.parametrize("file", sorted(PLAYBOOKS.glob("*.md")), ids=lambda file: file.stem)
def test_the_day_of_a_drill_stands_in_its_playbook(file):
    """Each of ours has the day on which its drill passed; writing another day changes nothing else."""
    page = file.read_text()
    drilled = playbooks.parse(page, str(file), file.stem).last_drilled
    assert drilled is not None
    assert drills.dated(page, drilled) == page
    later = drills.dated(page, dt.date(2030, 1, 2))
    assert later == page.replace(f"last_drilled: {drilled}", "last_drilled: 2030-01-02")
