"""What is expected later: nothing is lost, nothing comes twice or too early, and what is remembered is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs._telemetry import releases
from rtobs._telemetry.releases import Releases

SECOND = 1_000_000_000
ADDED = st.lists(st.tuples(st.integers(0, 60 * SECOND), st.sampled_from("ab"), st.integers(1, 5)), max_size=30)


@given(ADDED, st.lists(st.integers(0, 70 * SECOND), max_size=6).map(sorted))
def test_everything_comes_once_and_not_before_its_second(added, asked):
    """Asked again and again, all that was added comes out, each at the first question after its release."""
    waiting: Releases[str] = Releases()
    assert all(waiting.add(*one) for one in added)
    found = {"a": 0, "b": 0}
    for now in [*asked, None]:
        for key, count in waiting.due(now):
            found[key] += count
        for key, value in found.items():
            sure = sum(count for at, one, count in added if one == key and (now is None or at <= now - SECOND))
            most = sum(count for at, one, count in added if one == key and (now is None or at <= now))
            assert sure <= value <= most
    assert list(waiting.due()) == []


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch):
    """What does not fit is refused, and fits again once something has come out."""
    monkeypatch.setattr(releases, "MOST", 2)
    waiting: Releases[str] = Releases()
    assert [waiting.add(SECOND, key, 1) for key in "aabc"] == [True, True, True, False]
    assert dict(waiting.due(SECOND)) == {"a": 2, "b": 1}
    assert waiting.add(SECOND, "c", 1)
