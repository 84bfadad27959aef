"""Where it began: the first place whose failures or times left what is usual there. Knows lines of values only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final, NamedTuple

from rtobs.incident.facts import Line
from rtobs.incident.questions import FAILURES, PLACE_LABELS, PLACES, SLOWNESS

_TIMES: Final = 3.0
"""How many times the usual is not usual any more."""
_FLOORS: Final = {FAILURES: 0.05, SLOWNESS: 0.2}
"""What nobody minds on top of the usual: a share of failures, seconds."""
_LASTS: Final = 2
"""Points in a row; one alone is noise."""
_WATCHED: Final = 8
"""Points after which it is known whether it was more than a single event, which stays in a rate's window for some."""
_MOSTLY: Final = 0.75
"""Share of them that have to be unusual."""
_SELDOM: Final = 0.95
"""What is exceeded no more often than in the rest of the time is usual too."""
_TOGETHER: Final = 2.0
"""Steps within which two places begin at once, so that the one that causes the other goes first."""


class Onset(NamedTuple):
    """When and where something left what is usual."""

    at: float
    """Seconds since 1970."""
    place: str
    """One of PLACES."""
    who: str
    """Route, destination, stage or provider."""
    measure: str
    """"failures", a share, or "seconds"."""
    usual: float
    value: float


def onsets(lines: Mapping[str, tuple[Line, ...]], begin: float) -> list[Onset]:
    """Return where values left what they were before *begin*, the first first, causes first of those together."""
    found: list[Onset] = []
    for name, answered in lines.items():
        kind = next((kind for kind in _FLOORS if name.startswith(kind)), "")
        place = name.removeprefix(kind)
        if kind and place in PLACES:
            every = (_onset(line, kind, place, begin) for line in answered)
            found += [one for one in every if one is not None]
    together = _TOGETHER * _step(line for answered in lines.values() for line in answered)
    found.sort(key=lambda onset: (onset.at, PLACES.index(onset.place), onset.who, onset.measure))
    if found:
        first = [onset for onset in found if onset.at - found[0].at <= together]
        rest = found[len(first) :]
        first.sort(key=lambda onset: (PLACES.index(onset.place), onset.at, onset.who, onset.measure))
        found = first + rest
    return found


def _onset(line: Line, kind: str, place: str, begin: float) -> Onset | None:
    points = [(at, value) for at, value in line.points if math.isfinite(value)]
    before = [value for at, value in points if at < begin]
    usual = median(before) if before else 0.0
    peaks = sorted(before)[int(_SELDOM * (len(before) - 1))] if before else 0.0
    limit = max(_TIMES * usual, usual + _FLOORS[kind], peaks)
    for index in range(len(points)):
        lasting = points[index : index + _LASTS]
        watched = points[index : index + _WATCHED]
        mostly = sum(value > limit for _, value in watched) >= _MOSTLY * len(watched)
        if mostly and len(lasting) == _LASTS and all(value > limit for _, value in lasting) and lasting[0][0] >= begin:
            who = line.labels.get(PLACE_LABELS.get(place, ""), "")
            return Onset(lasting[0][0], place, who, kind.rstrip(":"), usual, max(value for _, value in points[index:]))
    return None


def _step(lines: Iterable[Line]) -> float:
    gaps = [
        later[0] - earlier[0] for line in lines for earlier, later in zip(line.points, line.points[1:], strict=False)
    ]
    return min((gap for gap in gaps if gap > 0), default=0.0)
