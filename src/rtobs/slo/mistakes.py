"""What is wrong with a declaration: file, line, what was seen, what to do; all of it at once.

Knows places in a file and sentences; must not know what a declaration may say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rtobs.errors import ConfigError

Path = tuple[str | int, ...]
"""The way to a value: keys of tables and positions in lists, from the outside in."""

_LONGEST: Final = 60


class Mistake(NamedTuple):
    """One thing to put right."""

    place: str
    """File and line, or the Python object, then the way to the value."""
    saw: str
    do: str

    def __str__(self) -> str:
        """Return the mistake as one line."""
        return f"{self.place}: {self.saw}; {self.do}"


class DeclarationError(ConfigError):
    """A declaration is wrong; *mistakes* lists everything that is, in the order of the file."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join((f"The SLO declaration has {count}:", *(f"  {mistake}" for mistake in mistakes))))
        self.mistakes = mistakes


@dataclass(slots=True)
class Source:
    """A declaration as it was read: plain data, and the line on which each value stands."""

    file: str
    data: Any
    lines: Mapping[Path, int] = field(default_factory=dict[Path, int])
    repeated: tuple[Path, ...] = ()
    """Keys that a table has twice; *data* holds the last value of each."""

    def line(self, path: Path) -> int:
        """Return the line of the value at *path*, or of what is closest around it; 0 = not known."""
        return next((self.lines[path[:size]] for size in range(len(path), -1, -1) if path[:size] in self.lines), 0)


class Mistakes:
    """Collects what is wrong with one source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: list[tuple[int, int, Mistake]] = []

    def add(self, path: Path, saw: str, do: str) -> None:
        """Note that the value at *path* is wrong."""
        line = self.source.line(path)
        file = f"{self.source.file}:{line}" if line else self.source.file
        way = self._way(path)
        mistake = Mistake(f"{file}: {way}" if way else file, saw, do)
        self._found.append((line, len(self._found), mistake))

    def check(self) -> None:
        """Raise what was found, if anything was."""
        if self._found:
            raise DeclarationError(tuple(mistake for _, _, mistake in sorted(self._found)))

    def _way(self, path: Path) -> str:
        """Return *path* as people say it; an SLO in the list goes by its name where it has one."""
        words: list[str] = []
        here = self.source.data
        for part in path:
            here = _inside(here, part)
            if isinstance(part, str):
                words.append(part)
                continue
            name = (table(here) or {}).get("name") if words == ["slos"] else None
            if isinstance(name, str):
                words[:] = [f"SLO {shown(name)}"]
            else:
                words[-1] = f"{words[-1]}[{part}]"
        if words and words[0].startswith("SLO "):
            return ", ".join((words[0], ".".join(words[1:]))) if words[1:] else words[0]
        return ".".join(words)


def _inside(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def table(value: object) -> dict[Any, Any] | None:
    """Return *value* if it is a table, else None."""
    found: Any = value
    return found if isinstance(value, dict) else None


def items(value: object) -> list[Any] | None:
    """Return *value* as a list if it is one, else None."""
    found: Any = value
    return list(found) if isinstance(value, list | tuple) else None


def shown(value: object) -> str:
    """Return *value* as it may stand in a message: short, one line, strings in quotes."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a table"
        case list() | tuple():
            return "a list"
        case bool() | int() | float():
            return _short(json.dumps(value))
        case str():
            text = _short(value)
            return json.dumps(text, ensure_ascii=not text.isprintable())
        case _:
            return f"a {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def listed(words: Iterable[str]) -> str:
    """Return several words as a list that ends in "or"."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
