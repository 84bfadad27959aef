"""What is written in README.md and docs/, as a reader would try it: fenced blocks, links, commands.

The rules, so that nobody adds a snippet that no test executes:

* ``python``: all blocks of a page, in order, are one program (``await`` may stand at the top);
* ``sh``: every line is a command; ``console``: every line that begins with ``$ ``, the rest is what it prints;
  `rtobs …` is run, a few others are checked for naming something that exists, any other command is a mistake;
* ``json``, ``toml``, ``yaml``: must parse;
* ``text``: free. Any other language, and a fence without one, is a mistake.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = ROOT / "Makefile"
PYPROJECT = ROOT / "pyproject.toml"
TIMEOUT = 55  # seconds for one program; a test's own limit is 60

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})(?P<language>[^\s`]*)")


class MistakeError(AssertionError):
    """A page says something that is not so."""


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    line: int
    """Number of the block's first line in its page."""
    text: str


def pages() -> list[Path]:
    """Return README.md and every page under docs/."""
    return [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.exists()]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of *page* in order."""
    found: list[Block] = []
    fence = None
    content: list[str] = []
    start = 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if fence is None:
            if match:
                fence, content, start = match, [], number + 1
        elif match and match["ticks"].startswith(fence["ticks"]) and not line.strip(" \t`~"):
            found.append(Block(fence["language"], start, textwrap.dedent("\n".join(content))))
            fence = None
        else:
            content.append(line)
    if fence is not None:
        message = f"{page}:{start - 1}: this fence is never closed"
        raise MistakeError(message)
    return found


# ------------------------------------------------------------------------------------------------------- python

# Runs in a process of its own: the page's program, with the page's own line numbers in every traceback.
_RUNNER = """
import ast, asyncio, inspect, sys
source, page = sys.stdin.read(), sys.argv[1]
code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
if code.co_flags & inspect.CO_COROUTINE:
    async def main():
        await eval(code, globals())
    asyncio.run(main())
else:
    exec(code, globals())
"""


def program(page: Path) -> str:
    """Return all python blocks of *page* as one program, each line at the number it has in the page."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python":
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.text.splitlines()
    return "\n".join(lines)


def run_program(page: Path, folder: Path) -> None:
    """Run the program of *page* in *folder*, in a fresh process where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", _RUNNER, str(page)]
    source = program(page)
    done = subprocess.run(
        command, input=source, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    # What goes wrong in a destructor (an unclosed socket, say) is printed and does not change the exit code.
    if done.returncode or "Exception ignored" in done.stderr:
        message = f"the python of {page} failed:\n{done.stdout}{done.stderr}"
        raise MistakeError(message)


# ------------------------------------------------------------------------------------------------------- shell

_SHELL_SYNTAX = set("|&;<>`$")


def commands(block: Block) -> list[tuple[int, str]]:
    """Return the commands of a sh or console block, each with its line number in the page."""
    found: list[tuple[int, str]] = []
    continued = False
    for number, raw in enumerate(block.text.splitlines(), block.line):
        line = raw.strip()
        if continued:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.removesuffix(chr(92)).strip()}")
        elif line.startswith("$ ") or (block.language == "sh" and line and not line.startswith("#")):
            found.append((number, line.removeprefix("$ ").removesuffix("\\").strip()))
        else:
            continue
        continued = line.endswith("\\")
    return found


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE))


def _extras() -> set[str]:
    return set(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"])


class Shell:
    """Checks the commands of one page in order, and runs those that are ours."""

    def __init__(self, page: Path, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._where = [ROOT, page.parent]
        """Folders that a path in a command may be relative to: the clone, the page's own, and each `cd`."""

    def check(self, line: str) -> None:
        """Raise MistakeError if *line* fails, names what is not there, or is no command that can be checked."""
        words = shlex.split(line, comments=True)
        check = getattr(self, f"_check_{words[0]}", None) if words else None
        if check is None:
            self._complain(line, f"no test executes this; see the rules in {Path(__file__).name}")
        elif words[0] != "export" and _SHELL_SYNTAX & set("".join(words)):
            self._complain(line, "pipes, redirections and variables are not executed by any test")
        else:
            check(line, words[1:])

    def _complain(self, line: str, why: str) -> None:
        message = f"{self._page}: `{line}`: {why}"
        raise MistakeError(message)

    def _exists(self, line: str, path: str) -> None:
        if not any((folder / path).exists() for folder in self._where):
            self._complain(line, f"there is no {path}")

    def _check_rtobs(self, line: str, words: list[str]) -> None:
        binary = Path(sys.executable).with_name("rtobs")
        done = subprocess.run(
            [binary, *words],
            cwd=self._folder,
            env={**os.environ, "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode:
            self._complain(line, f"exit code {done.returncode}\n{done.stdout}{done.stderr}")

    def _check_make(self, line: str, words: list[str]) -> None:
        for word in words:
            if "=" not in word and word not in _make_targets():
                self._complain(line, f"the Makefile has no target {word}")

    def _check_pip(self, line: str, words: list[str]) -> None:
        if words[:1] != ["install"]:
            self._complain(line, "only `pip install` is checked")
        for word in words[1:]:
            for extra in re.findall(r"^rtobs\[(.*)\]", word):
                if unknown := set(extra.split(",")) - _extras():
                    self._complain(line, f"rtobs has no extra {', '.join(sorted(unknown))}")

    def _check_git(self, line: str, words: list[str]) -> None:
        if words[:1] != ["clone"]:
            self._complain(line, "only `git clone` is checked")

    def _check_docker(self, line: str, words: list[str]) -> None:
        if words[:2] != ["compose", "-f"]:
            self._complain(line, "only `docker compose -f FILE …` is checked")
        self._exists(line, words[2])

    def _check_cd(self, line: str, words: list[str]) -> None:
        if words != ["rtobs"]:  # the clone itself
            self._exists(line, words[0])
            self._where += [folder / words[0] for folder in self._where if (folder / words[0]).is_dir()]

    def _check_export(self, line: str, words: list[str]) -> None:
        if not all(re.match(r"[A-Z_]+=", word) for word in words):
            self._complain(line, "an export is NAME=value")

    def _check_uvicorn(self, line: str, words: list[str]) -> None:
        self._exists(line, words[0].split(":")[0].replace(".", "/") + ".py")

    def _check_python(self, line: str, words: list[str]) -> None:
        if words[:1] == ["-m"] and len(words) > 1:
            module = words[1].replace(".", "/")
            if not any(
                (folder / f"{module}{end}").exists() for folder in self._where for end in (".py", "/__main__.py")
            ):
                self._complain(line, f"there is no module {words[1]}")
        elif words and not words[0].startswith("-"):
            self._exists(line, words[0])
        else:
            self._complain(line, "only `python FILE` and `python -m MODULE` are checked")


# ------------------------------------------------------------------------------------------------------- the rest


def check_blocks(page: Path, folder: Path) -> None:
    """Check every block of *page* but the python ones; commands run in *folder*."""
    shell = Shell(page, folder)
    for block in blocks(page):
        where = f"{page}:{block.line}"
        try:
            match block.language:
                case "python" | "text":
                    pass
                case "sh" | "console":
                    for _, command in commands(block):
                        shell.check(command)
                case "json":
                    json.loads(block.text)
                case "toml":
                    tomllib.loads(block.text)
                case "yaml":
                    list(yaml.safe_load_all(block.text))
                case other:
                    message = f"{where}: no test executes {other or 'a block without a language'}"
                    raise MistakeError(message)
        except (ValueError, yaml.YAMLError) as error:
            message = f"{where}: this {block.language} does not parse: {error}"
            raise MistakeError(message) from error


_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)")


def _prose(page: Path) -> str:
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        for number in range(block.line, block.line + block.text.count("\n") + 1):
            lines[number - 1] = ""
    return re.sub(r"`[^`\n]*`", "", "\n".join(lines))


def _anchors(page: Path) -> set[str]:
    # As GitHub makes them: lower case, punctuation gone, spaces to hyphens, -1, -2 … for the same heading again.
    found: set[str] = set()
    text = page.read_text(encoding="utf-8")
    fenced = {number for block in blocks(page) for number in range(block.line, block.line + block.text.count("\n") + 1)}
    for number, line in enumerate(text.splitlines(), 1):
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading and number not in fenced:
            slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            again = next(name for n in range(1000) if (name := slug if n == 0 else f"{slug}-{n}") not in found)
            found.add(again)
    return found


def broken_links(page: Path) -> list[str]:
    """Return the links of *page* to files of the repository, or to headings in them, that lead nowhere."""
    broken = []
    for match in _LINK.finditer(_prose(page)):
        target = match[1] or match[2]
        if _ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        inside = file.is_relative_to(ROOT) or file.is_relative_to(page.parent)
        lost = anchor and file.suffix == ".md" and file.exists() and anchor not in _anchors(file)
        if not file.exists() or not inside or lost:
            broken.append(target)
    return broken
