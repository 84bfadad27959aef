"""The kinds of values a declaration is made of: each reads a value and says what is wrong with it.

Knows plain data; must not know what an SLO is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rtobs.slo.durations import seconds, span
from rtobs.slo.mistakes import Mistakes, Path, items, listed, shown, table

MISSING: Any = object()
"""What is read where a value is wrong; that has been noted."""

_INK: Final = r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]"
"""What a line begins and ends with; no control characters, and no halves of characters, which no file can hold."""
LINE: Final = rf"{_INK}([^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*{_INK})?"
ADDRESS: Final = r"https?://([^\s/?#\[\]]+|\[[0-9a-fA-F:.]+\](:[0-9]+)?)(/[^\s?#]*)?"
"""The beginning of an address: a path may follow, so it has no query and no fragment."""


@dataclass(frozen=True)
class Shape:
    """One kind of value."""

    wanted: str
    """What to give, as the end of a sentence."""

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return *value* in its plain form, or MISSING after noting what is wrong with it."""
        fault = self._fault(value)
        return value if fault is None else self._wrong(value, path, mistakes, fault)

    def _fault(self, value: object) -> str | None:
        """Return None for a value that is right, else what to say about it beside what it is."""
        raise NotImplementedError

    def _wrong(self, value: object, path: Path, mistakes: Mistakes, fault: str = "") -> Any:
        mistakes.add(path, f"saw {shown(value)}{fault}", f"give {self.wanted}")
        return MISSING


@dataclass(frozen=True)
class Text(Shape):
    """One line of text of a certain form."""

    pattern: str = LINE
    longest: int = 200

    def _fault(self, value: object) -> str | None:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            return ""
        return f", which has {len(value)} characters of at most {self.longest}" if len(value) > self.longest else None


@dataclass(frozen=True)
class Address(Shape):
    """The beginning of a web address."""

    def _fault(self, value: object) -> str | None:
        return None if isinstance(value, str) and re.fullmatch(ADDRESS, value) else ""


@dataclass(frozen=True)
class Number(Shape):
    """A number from *least* to *most*; *near*: how near to a limit that is not included it may come."""

    least: float
    most: float
    near: float = 0
    whole: bool = False

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return *value*, as an integer if it has to be whole."""
        found = super().read(value, path, mistakes)
        return int(found) if self.whole and found is not MISSING else found

    def _fault(self, value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.least <= value <= self.most:
            return ""
        if self.whole and value != int(value):
            return ""
        if self.near and not self.least + self.near <= value <= self.most - self.near:
            return "" if value in (self.least, self.most) else f", which is too near to {_nearer(self, value):g}"
        return None


@dataclass(frozen=True)
class Duration(Shape):
    """A span of time with its unit, between bounds in seconds."""

    least: float
    most: float

    def _fault(self, value: object) -> str | None:
        try:
            return None if isinstance(value, str) and self.least <= seconds(value) <= self.most else ""
        except ValueError:
            return ""


def _nearer(shape: Number, value: float) -> float:
    return min(shape.least, shape.most, key=lambda limit: abs(value - limit))


def duration(example: str, least: float, most: float) -> Duration:
    """Return the shape of a time between *least* and *most* seconds."""
    return Duration(f"a time of {span(least)} to {span(most)} with its unit, such as {example}", least, most)


@dataclass(frozen=True)
class Choice(Shape):
    """One of a few words."""

    words: tuple[str, ...]

    def _fault(self, value: object) -> str | None:
        return None if isinstance(value, str) and value in self.words else ""


def choice(*words: str) -> Choice:
    """Return the shape of one of *words*."""
    return Choice(listed(words), words)


@dataclass(frozen=True)
class Listing(Shape):
    """A list of different values of one shape, with at least one entry where *filled*."""

    item: Shape
    filled: bool = True

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return the entries as a list."""
        entries = items(value)
        if entries is None:
            return self._wrong(value, path, mistakes)
        if self.filled and not entries:
            return self._wrong(value, path, mistakes, " without entries")
        found: list[Any] = []
        for index, one in enumerate(entries):
            item = self.item.read(one, (*path, index), mistakes)
            if item is not MISSING and item in found:
                mistakes.add((*path, index), f"saw {shown(one)} a second time", "name each once")
            found.append(item)
        return [item for item in found if item is not MISSING]


@dataclass(frozen=True)
class Table(Shape):
    """Any number of names, each with a value of one shape."""

    key: Text
    item: Shape

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return the pairs that are right."""
        pairs = table(value)
        if not pairs:
            return self._wrong(value, path, mistakes)
        found: dict[str, Any] = {}
        for key, one in pairs.items():
            name = self.key.read(key, (*path, str(key)), mistakes)
            item = self.item.read(one, (*path, str(key)), mistakes)
            if name is not MISSING and item is not MISSING:
                found[name] = item
        return found


@dataclass(frozen=True)
class Field:
    """One key of an object."""

    shape: Shape
    says: str
    """What it means, for the JSON Schema and the editors that show it."""
    required: bool = False


@dataclass(frozen=True)
class Object(Shape):
    """A table with known keys."""

    fields: Mapping[str, Field]

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return the fields that are right; MISSING only if this is no table at all."""
        pairs = table(value)
        if pairs is None:
            return self._wrong(value, path, mistakes)
        for key in pairs:
            if key not in self.fields:
                close = difflib.get_close_matches(key, self.fields, 1) if isinstance(key, str) else []
                advice = f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(self.fields)}"
                mistakes.add((*path, str(key)), f"saw the key {shown(key)}, which means nothing here", advice)
        found: dict[str, Any] = {}
        for key, field in self.fields.items():
            if key not in pairs:
                if field.required:
                    mistakes.add(path, f"saw no {key}", f"give it {field.shape.wanted}")
                continue
            item = field.shape.read(pairs[key], (*path, key), mistakes)
            if item is not MISSING:
                found[key] = item
        return found


@dataclass(frozen=True)
class Variant(Shape):
    """A table whose keys depend on the word under *key*."""

    key: str
    shapes: Mapping[str, Object]

    def read(self, value: object, path: Path, mistakes: Mistakes) -> Any:
        """Return the fields of the kind that is named."""
        pairs = table(value)
        if pairs is None:
            return self._wrong(value, path, mistakes)
        words = choice(*self.shapes)
        if self.key not in pairs:
            mistakes.add(path, f"saw no {self.key}", f"give it {words.wanted}")
            return MISSING
        kind = words.read(pairs[self.key], (*path, self.key), mistakes)
        return MISSING if kind is MISSING else self.shapes[kind].read(pairs, path, mistakes)
