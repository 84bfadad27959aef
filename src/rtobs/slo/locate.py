"""On which line each value of a TOML or JSON file stands; the standard library's readers do not say.

Each file has been read by its own reader before, so the text is known to be valid. Must not know what it means.
"""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from typing import Final, NamedTuple

from rtobs.slo.mistakes import Path

_TOKEN: Final = re.compile(
    r"""
      \"{3} (?: \\. | [^\\] )*? \"{3} \"{0,2}
    | '{3} .*? '{3} '{0,2}
    | " (?: \\. | [^"\\] )* "
    | ' [^']* '
    | \# [^\n]*
    | \n
    | [\[\]{}=:,.]
    | [^\s\[\]{}=:,.\"'\#]+
    """,
    re.DOTALL | re.VERBOSE,
)
_ENDS: Final = frozenset({",", "]", "}", "\n", ""})


class Places(NamedTuple):
    """Where values stand, and which keys a table has twice."""

    lines: dict[Path, int]
    repeated: tuple[Path, ...] = ()


class _Token(NamedTuple):
    text: str
    line: int


class _Walk:
    """Goes through the tokens of one file and notes where each value begins."""

    def __init__(self, text: str, separator: str) -> None:
        breaks = [match.start() for match in re.finditer("\n", text)]
        self._tokens = [
            _Token(match[0], bisect.bisect_left(breaks, match.start()) + 1)
            for match in _TOKEN.finditer(text)
            if not match[0].startswith("#")
        ]
        self._tokens.append(_Token("", len(breaks) + 1))
        self._separator = separator
        self._at = 0
        self.lines: dict[Path, int] = {(): 1}
        self.repeated: list[Path] = []

    @property
    def token(self) -> _Token:
        """The token that is to be read next."""
        return self._tokens[self._at]

    def take(self, *texts: str) -> None:
        """Go past one token, or past all that follow with these *texts*."""
        if not texts:
            self._at += 1
        while self.token.text in texts:
            self._at += 1

    def value(self, path: Path) -> None:
        """Go past one value."""
        self.take("\n")
        opening = self.token.text
        if opening not in {"[", "{"}:
            while self.token.text not in _ENDS:
                self.take()
            return
        self.take()
        index = 0
        while True:
            self.take("\n", ",")
            if self.token.text in {"]", "}"}:
                self.take()
                return
            if opening == "{":
                self.pair(path)
            else:
                self.lines[*path, index] = self.token.line
                self.value((*path, index))
                index += 1

    def pair(self, path: Path) -> None:
        """Go past one key and its value."""
        line = self.token.line
        keys = self.keys(self._separator)
        for size in range(1, len(keys)):
            self.lines.setdefault((*path, *keys[:size]), line)
        whole = (*path, *keys)
        if whole in self.lines:
            self.repeated.append(whole)
        self.lines[whole] = line
        self.value(whole)

    def keys(self, end: str) -> list[str]:
        """Return the parts of a key, dotted in TOML, and go past the token that ends it."""
        keys: list[str] = []
        while (text := self.token.text) != end:
            if text[0] == '"' and self._separator == ":":
                keys.append(json.loads(text))
            elif text[0] in "\"'":
                keys.append(tomllib.loads(f"key = {text}")["key"])
            elif text != ".":
                keys.append(text)
            self.take()
        self.take()
        return keys


def in_json(text: str) -> Places:
    """Return the lines of the values in a JSON text."""
    walk = _Walk(text, ":")
    walk.value(())
    return Places(walk.lines, tuple(walk.repeated))


def in_toml(text: str) -> Places:
    """Return the lines of the values in a TOML text; its reader refuses repeated keys itself."""
    walk = _Walk(text, "=")
    entries: dict[Path, int] = {}
    table: Path = ()
    while True:
        walk.take("\n")
        line = walk.token.line
        if not walk.token.text:
            return Places(walk.lines)
        if walk.token.text != "[":
            walk.pair(table)
            continue
        walk.take()
        repeats = walk.token.text == "["
        if repeats:
            walk.take()
        keys = walk.keys("]")
        table = ()
        for position, key in enumerate(keys, 1):
            table = (*table, key)
            walk.lines.setdefault(table, line)
            if repeats and position == len(keys):
                entries[table] = entries.get(table, -1) + 1
            if table in entries:
                table = (*table, entries[table])
        walk.lines[table] = line
        if repeats:
            walk.take()
