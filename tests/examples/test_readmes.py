"""What every example's README and programs promise: commands that exist, settings that are read, short programs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.support import FOLDERS, commands
from tests.support import pages

PACKAGES = {"nats": "nats-py", "aio_pika": "aio-pika"}
"""Names of packages that are not those of their modules."""
LINES = 100

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def _programs(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each Python file."""
    found = sorted(folder.glob("*.py"))
    assert found
    for program in found:
        yield program.name, program.read_text(encoding="utf-8")


def test_the_readme_starts_every_program(folder):
    """The README starts each program that can be run, and nothing that is not there."""
    runnable = {name for name, text in _programs(folder) if '__name__ == "__main__"' in text}
    assert {command.program for command in commands(folder / "README.md")} - {""} == runnable


def test_the_readme_installs_from_this_checkout(folder):
    """What else the README says is to make the brokers, to install the example's requirements, and to use curl."""
    others = [command.words for command in commands(folder / "README.md") if not command.program]
    assert others[0] == ["make", "brokers"]
    assert [words[0] for words in others[1:5]] == ["python", ".", "pip", "cd"]
    assert {words[0] for words in others[5:]} == {"curl"}
    assert (pages.ROOT / others[3][-1]) == folder / "requirements.txt"
    assert (pages.ROOT / others[4][-1]) == folder


def test_the_readme_names_every_setting(folder):
    """The table of settings has each variable that a program reads, with the default it has there, and no other."""
    read = [
        found
        for _, text in _programs(folder)
        for found in re.findall(r'os\.environ\.get\(\s*"(\w+)", "([^"]+)"\)', text)
    ]
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name, default in read:
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert default in row
    assert set(re.findall(r"(?m)^\| `([A-Z_]+)`", text)) == {name for name, _ in read}


def test_the_programs_are_short_and_need_no_more_than_they_say(folder):
    """No program has more than 100 lines, and requirements.txt has exactly what they import beside rtobs."""
    imported: set[str] = set()
    for _, text in _programs(folder):
        assert len(text.splitlines()) <= LINES
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    own = {name.removesuffix(".py") for name, _ in _programs(folder)} | {"rtobs", "pydantic"}  # FastAPI brings pydantic
    wanted = {PACKAGES.get(name, name) for name in imported - own - sys.stdlib_module_names}
    listed = re.findall(r"(?m)^([\w-]+)", (folder / "requirements.txt").read_text(encoding="utf-8"))
    assert set(listed) == wanted
