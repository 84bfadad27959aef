"""What is known of messages that a client handed out is kept until a hop takes them, within bounds."""

from __future__ import annotations

import pytest

from rtobs._hop import handed
from rtobs._hop.handed import Handed
from rtobs._hop.runtime import Runtime
from rtobs._journey.message import Message


def message(native: object, size: int = 0) -> Message:
    return Message("test", "orders", native=native, size=size)


@pytest.fixture
def waiting() -> Handed:
    return Handed()


def test_a_message_is_known_by_identity_and_taken_once(waiting):
    """The object that was handed out is known, an equal one is not, and once taken it is not known any more."""
    native = {"a": 1}
    facts = message(native)
    waiting.put(facts, 7)
    assert waiting.look(native) is facts
    assert waiting.look({"a": 1}) is None
    assert waiting.take({"a": 1}) is None
    assert waiting.take(native) == (facts, 7)
    assert waiting.take(native) is waiting.look(native) is None
    assert len(waiting) == 0


def test_an_object_handed_out_twice_is_known_by_the_second_message(waiting):
    """The same object handed out again replaces what was known of it."""
    waiting.put(message(b"", 5), 1)
    second = message(b"", 6)
    waiting.put(second, 2)
    assert waiting.take(b"") == (second, 2)
    assert (len(waiting), waiting._bytes) == (0, 0)


def test_the_oldest_go_when_there_are_too_many(waiting, monkeypatch):
    """Beyond the limit of messages the oldest are forgotten, and the objects they kept alive are let go."""
    monkeypatch.setattr(handed, "MOST", 100)
    natives = [[number] for number in range(150)]
    for native in natives:
        waiting.put(message(native, 10), 0)
    assert len(waiting) == 100
    assert waiting.look(natives[49]) is None
    assert waiting.look(natives[50]) is not None
    assert waiting._bytes == 1000


def test_the_oldest_go_when_they_are_too_big(waiting, monkeypatch):
    """Beyond the limit of bytes the oldest are forgotten; one that is too big by itself is kept until the next."""
    monkeypatch.setattr(handed, "MOST_BYTES", 100)
    natives = [[number] for number in range(4)]
    for native, size in zip(natives, (60, 30, 50, 500), strict=True):
        waiting.put(message(native, size), 0)
        assert waiting.look(native) is not None
    assert [waiting.look(native) is not None for native in natives] == [False, False, False, True]
    waiting.clear()
    assert (len(waiting), waiting._bytes) == (0, 0)


def test_several_leaves_may_describe_one_class():
    """Each leaf that has messages of a class is asked, in order, and one that registered twice is asked once."""
    runtime = Runtime()
    asked: list[str] = []

    def first(native: object) -> Message | None:
        asked.append("first")
        return None

    def second(native: object) -> Message | None:
        asked.append("second")
        return message(native)

    for describe in (first, second, first):
        runtime.share(tuple, describe)
    native = (1, 2)
    assert runtime.describe(native).native is native
    assert asked == ["first", "second"]
    assert runtime.describe([1]) is None
