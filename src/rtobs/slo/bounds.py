"""Bounds of a histogram round what is promised about it. Knows numbers only."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 16
_STEP = 2**0.5


def bounds(thresholds: Iterable[float]) -> tuple[float, ...]:
    """Return at most 16 upper bounds, half an octave apart, that contain every one of *thresholds* (seconds).

    They reach from a sixteenth of the smallest threshold upwards, so that a percentile that doubles is seen to double.
    With more than one threshold the steps between are kept, and the bounds farthest from all of them give way.
    """
    wanted = sorted(set(thresholds))
    steps = {round(one * _STEP**power, 6) for one in wanted for power in range(-8, 8)}
    if not wanted:
        return ()

    def distance(bound: float) -> float:
        return min(max(bound / one, one / bound) for one in wanted)

    near: list[float] = list(wanted)
    for bound in sorted(steps, key=lambda bound: (distance(bound), bound)):
        if len(near) < _MOST and all(max(bound / one, one / bound) > 1.2 for one in near):  # noqa: PLR2004  half a step
            near.append(bound)
    return tuple(sorted(near)[:_MOST])
