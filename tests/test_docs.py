"""What the documentation says is so: its programs run, its commands work, its links lead somewhere."""

from __future__ import annotations

import pytest

from tests.support import brokers, pages

README = pages.ROOT / "README.md"


def _name(page):
    return str(page.relative_to(pages.ROOT))


def _brokers(page):
    """Return the brokers that a page's program talks to, by fixture: it takes their addresses from the environment."""
    text = page.read_text(encoding="utf-8")
    return {fixture: broker for fixture, broker in brokers.FIXTURES.items() if broker.variable in text}


def _programs():
    for page in pages.pages():
        if pages.program(page):
            yield pytest.param(page, id=_name(page), marks=[pytest.mark.broker] if _brokers(page) else [])


@pytest.mark.parametrize("page", list(_programs()))
def test_the_python_of_a_page_runs(page, request, tmp_path, monkeypatch):
    """All python blocks of a page, read from top to bottom, are one program that runs without a warning."""
    for fixture, broker in _brokers(page).items():
        monkeypatch.setenv(broker.variable, request.getfixturevalue(fixture))
    pages.run_program(page, tmp_path)


@pytest.mark.parametrize("page", pages.pages(), ids=_name)
def test_every_other_block_of_a_page_is_checked(page, tmp_path):
    """Commands of ours run, other commands name what exists, data parses, and nothing else stands in a fence."""
    pages.check_blocks(page, tmp_path)


LINKING = [*pages.pages(), *sorted((pages.ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKING, ids=_name)
def test_links_lead_somewhere(page):
    """Every relative link leads to a file of the repository, and to a heading that it has."""
    assert pages.broken_links(page) == []


def test_readme_is_short():
    """README.md can be read in one go: 200 lines at most."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


# The checks above can fail: each rule, broken once.


def _page(folder, text):
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```\nanything\n```", "without a language"),
        ("```ruby\nputs 1\n```", "no test executes ruby"),
        ("```json\n{1: 2}\n```", "does not parse"),
        ("```toml\na = \n```", "does not parse"),
        ("```yaml\na: [\n```", "does not parse"),
        ("```python\nx = 1\n", "never closed"),
        ("```sh\ncurl http://127.0.0.1:8000/\n```", "no test executes this"),
        ("```sh\nrtobs demo --json | jq .\n```", "pipes"),
        ("```sh\nmake coffee\n```", "no target coffee"),
        ("```sh\nmake \\\n  coffee\n```", "no target coffee"),
        ("```sh\npip install 'rtobs[everything]'\n```", "no extra everything"),
        ("```sh\ncd examples/nowhere\n```", "there is no examples/nowhere"),
        ("```sh\nuvicorn nowhere:app\n```", r"there is no nowhere\.py"),
        ("```sh\npython nowhere.py\n```", r"there is no nowhere\.py"),
        ("```sh\npython -m rtobs_nowhere\n```", "there is no module rtobs_nowhere"),
        ("```sh\npython -c pass\n```", "are checked"),
        ("```sh\ngit push\n```", "only `git clone`"),
        ("```sh\ndocker compose -f nowhere.yaml up\n```", r"there is no nowhere\.yaml"),
        ("```console\n$ rtobs no-such-command\nhello\n```", "exit code"),
    ],
)
def test_a_mistake_in_a_block_is_found(text, why, tmp_path):
    """A block that breaks a rule fails, and the message says which."""
    with pytest.raises(pages.MistakeError, match=why):
        pages.check_blocks(_page(tmp_path, text), tmp_path)


def test_blocks_that_keep_the_rules_pass(tmp_path):
    """What pages usually say is accepted: making, installing, moving about, output, and free text."""
    page = _page(
        tmp_path,
        "```sh\ngit clone URL\ncd rtobs\n# a comment\nmake demo ARGS='--seconds 8'\nexport PORT=1\n"
        "pip install 'rtobs[tools,prometheus]'\npython -m tests.bench.run\n```\n"
        "```console\n$ make test\n12 passed | in 3 s\n```\n```text\n| & ;\n```\n````text\n```\n````\n",
    )
    (tmp_path / "tests" / "bench").mkdir(parents=True)
    (tmp_path / "tests" / "bench" / "run.py").touch()
    pages.check_blocks(page, tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\n```python\nassert y == 1\n```", r"page\.md\", line 3"),
        ("```python\nimport warnings\nwarnings.warn('old', DeprecationWarning)\n```", "DeprecationWarning: old"),
        ("```python\nopen('f', 'w')\n```", "unclosed file"),
        ("```python\nimport asyncio\nawait asyncio.sleep(0)\n1 / 0\n```", r"page\.md\", line 4"),
    ],
)
def test_a_program_that_fails_is_found(text, why, tmp_path):
    """An exception, a warning or a leak in a page's python fails, with the line of the page."""
    with pytest.raises(pages.MistakeError, match=why):
        pages.run_program(_page(tmp_path, text), tmp_path)


def test_the_blocks_of_a_page_are_one_program(tmp_path):
    """A later block sees what an earlier one made, and `await` may stand at the top."""
    page = _page(
        tmp_path,
        "```python\nfrom __future__ import annotations\nfrom pathlib import Path\nx = 20\n```\ntext\n"
        "- in a list:\n\n  ```python\n  import asyncio\n  y = await asyncio.sleep(0, 22)\n"
        "  Path('sum').write_text(str(x + y))\n  ```\n",
    )
    pages.run_program(page, tmp_path)
    assert (tmp_path / "sum").read_text(encoding="utf-8") == "42"


def test_broken_links_are_found(tmp_path):
    """A link to a missing file or heading is found; links elsewhere, and code that looks like one, are left alone."""
    page = _page(
        tmp_path,
        "# One heading, *here*!\n[a](gone.md) [b](#one-heading-here) [c](#two) [d](https://example.org/x) `[e](f)`\n"
        "![f](gone.png)\n[g](page.md#one-heading-here)\n\n[h]: also-gone.md\n\n```text\n[i](j)\n# not a heading\n```\n",
    )
    assert pages.broken_links(page) == ["gone.md", "#two", "gone.png", "also-gone.md"]
