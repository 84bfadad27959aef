"""``required.toml``: what could not be seen in an incident and has to be from then on; ``rtobs check`` enforces it.

Reads and extends the file's text; must not know what the code has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rtobs import _redaction as redaction
from rtobs.incident.signals import SIGNALS, Signal, demanded, missing
from rtobs.incident.summary import Summary
from rtobs.slo import source
from rtobs.slo.grammar import LABEL
from rtobs.slo.mistakes import DeclarationError, Mistakes, Source, listed
from rtobs.slo.model import Declaration
from rtobs.slo.shapes import Field, Listing, Object, Text, choice

NAMES: Final = ("route", "destination", "connector", "stage", "channel", "provider", "event")
"""What may be required by its name in the code, beside signals."""
_SIGNAL: Final = "signal"
_MISSED: Final = "missed"
_MISSED_LONGEST: Final = 200
_KEYS: Final = (_SIGNAL, *NAMES)
_HEAD: Final = (
    "# What could not be seen in an incident. `rtobs check` fails until it can be; add what else was missed.\n"
)

_REQUIRED: Final = Object(
    f"missed, and one of {', '.join(_KEYS)}",
    {
        _SIGNAL: Field(choice(*(signal.name for signal in SIGNALS)), "What a summary of an incident needs to see."),
        **{name: Field(LABEL, f"Name of a {name} that the code has to have.") for name in NAMES},
        _MISSED: Field(Text("one line that says in which incident it was missed"), "Why it is here.", required=True),
    },
)
FILE: Final = Object(
    "tables [[required]]",
    {"required": Field(Listing("a list of tables [[required]]", _REQUIRED), "What has to be seen.", required=True)},
)


class Requirement(NamedTuple):
    """One thing that has to be seen."""

    kind: str
    """"signal" or one of NAMES."""
    name: str
    missed: str
    place: str
    """File and line."""


def read(path: str | Path) -> tuple[Requirement, ...]:
    """Return what the file at *path* requires.

    Raises:
        DeclarationError: with every mistake in it.
    """
    return _read(source.read(path))


def _read(found: Source) -> tuple[Requirement, ...]:
    mistakes = Mistakes(found)
    data: Any = FILE.read(found.data, (), mistakes)
    mistakes.check()
    required: list[Requirement] = []
    for index, one in enumerate(data["required"]):
        path = ("required", index)
        kinds = [key for key in _KEYS if key in one]
        if len(kinds) != 1:
            saw = f"saw {' and '.join(kinds)}" if kinds else "saw nothing that is required"
            mistakes.add(path, saw, f"give one of {listed(_KEYS)} in each")
            continue
        line = found.line((*path, kinds[0]))
        place = f"{found.file}:{line}" if line else found.file
        required.append(Requirement(kinds[0], one[kinds[0]], one[_MISSED], place))
    mistakes.check()
    return tuple(required)


def lacking(summary: Summary, declaration: Declaration) -> list[Signal]:
    """Return the signals that an incident lacked and that its service can be expected to have."""
    wanted = demanded(declaration)
    return [signal for signal in missing(summary) if signal.name in wanted]


def extended(text: str, known: Sequence[Requirement], signals: Iterable[Signal], missed: str) -> str:
    """Return *text* of a file that requires *known* with those of *signals* below it that it does not require yet."""
    there = {one.name for one in known if one.kind == _SIGNAL}
    said = redaction.text(" ".join(missed.split()), _MISSED_LONGEST)
    added = [
        f"\n[[required]]\n{_SIGNAL} = {json.dumps(signal.name)}\n{_MISSED} = {json.dumps(said, ensure_ascii=False)}\n"
        for signal in signals
        if signal.name not in there
    ]
    return "".join((text or _HEAD, *added)) if added else text


def extend(path: Path, signals: Iterable[Signal], missed: str) -> int:
    """Add *signals* to the file at *path*, which is made if need be; return how many are new.

    Raises:
        DeclarationError: the file has mistakes; it is left as it is.
        OSError: it cannot be written.
    """
    there = path.exists()
    known = read(path) if there else ()
    text = path.read_text(encoding="utf-8") if there else ""
    longer = extended(text, known, signals, missed)
    if longer == text:
        return 0
    after = len(_read(source.parse(longer, "TOML", str(path))))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(longer, encoding="utf-8", newline="\n")
    beside.replace(path)
    return after - len(known)


def told(wrong: DeclarationError) -> str:
    """Return what is wrong with the file, one mistake a line."""
    return "\n".join(str(mistake) for mistake in wrong.mistakes)
