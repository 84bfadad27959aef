"""What code has: its hops, stages, channels and connectors, and where. Plain data; must not know how it was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

KINDS: Final = ("accept", "publish", "consume", "deliver", "receipt", "job", "stage")
"""Operations of rtobs, by the names of their functions; the first argument of each names it."""
INTEND: Final = "intend"
EVENT: Final = "event"
"""Methods of a hop whose first argument is a name too."""


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    last: int
    """The line on which the call ends."""

    def __str__(self) -> str:
        """Return the place as people and editors write it."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that the code opens.

    Attributes:
        kind: one of KINDS, or INTEND or EVENT.
        name: its first argument; empty = computed, or given by a framework.
        place: where.
        channel: of a publish; empty = none, or computed.
        provider: of a deliver.
        inside: of a stage: kind and name of the hop round it; None = it cannot be told from the source.
    """

    kind: str
    name: str
    place: Place
    channel: str = ""
    provider: str = ""
    inside: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that was found in some files."""

    files: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    uses: frozenset[str] = field(default_factory=frozenset[str])
    """Of what else is called: ``configure(slos)``, ``segment(tenant)`` and ``watch``."""

    def of(self, *kinds: str) -> Iterator[Operation]:
        """Yield the operations of some kinds."""
        return (operation for operation in self.operations if operation.kind in kinds)

    def names(self, *kinds: str) -> set[str]:
        """Return the names of operations of some kinds, as far as they are known."""
        return {operation.name for operation in self.of(*kinds) if operation.name}

    @property
    def channels(self) -> set[str]:
        """The channels that something is promised, sent or delivered on, as far as they are known."""
        named = self.names("deliver", INTEND)
        return named | {operation.channel for operation in self.of("publish") if operation.channel}


def merged(read: Code, made: Iterable[Operation]) -> Code:
    """Return what was *read* from source with what was *made* while it was imported, each operation once.

    What was made knows names that the source computes; what was read knows what surrounds it.
    """
    operations = list(read.operations)
    for one in made:
        same = [
            other
            for other in operations
            if other.kind == one.kind
            and other.place.file == one.place.file
            and other.place.line <= one.place.line <= other.place.last
        ]
        if not any(other.name == one.name for other in same):
            operations.append(one)
    named = {(one.kind, one.place.file, one.place.line) for one in operations if one.name}
    known = [
        one
        for one in operations
        if one.name
        or not any((one.kind, one.place.file, line) in named for line in range(one.place.line, one.place.last + 1))
    ]
    ordered = sorted(dict.fromkeys(known), key=lambda one: (one.place, one.kind, one.name, one.channel))
    return Code(read.files, tuple(ordered), read.uses)
