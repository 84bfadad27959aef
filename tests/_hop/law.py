"""A second, plain book-keeper of promises: what each step of a program must do to them, by the design's words.

It knows what user code did and what the broker holds, never what rtobs counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from rtobs._journey.outcome import Outcome

Result = Literal["ok", "retryable", "permanent", "drop", "cancel"]
"""How one try to deliver goes; ``drop``: user code says that it chose not to."""
Ending = Literal[
    "ack", "nack", "reject", "quiet", "raise", "raise_permanent", "raise_then_ack", "ack_raise", "cancel", "ack_cancel"
]  # fmt: skip
"""How the handling of a message ends. ``quiet``: acked after the hop; ``raise…`` and ``cancel``: nacked after it, but
``raise_then_ack`` acked, which the hop cannot know; ``ack_…``: acked inside, then an exception."""

STEP = {"sms": "accepted", "webhook": "delivered", "push": "accepted", "email": "accepted"}
PROMISE_STEP = {**STEP, "push": "displayed"}
"""What a program configures: a push is kept once it is displayed, which a ``deliver`` cannot prove."""


@dataclass(eq=False)
class Promise:
    """One delivery that was counted as promised."""

    channel: str
    letter: Letter | None = None
    ends: int = 0
    """Outcomes at its promise step: one, or more where a success came back and was repeated."""
    reached: bool = False
    """It was delivered, but its promise step is a later one that only a receipt proves."""


@dataclass(eq=False)
class Letter:
    """One message: it stands for one key, or for several and then names no promise."""

    number: int
    channel: str
    keys: tuple[str, ...]
    one: bool
    promised: bool
    """Whether its journey said so before it left."""
    promises: dict[str, Promise] = field(default_factory=dict)
    replay: bool = False


@dataclass
class Book:
    """All promises of one program, and what must have been counted."""

    dead_letter: bool | None
    """Whether the queue has a dead-letter target; None: nobody has said."""
    max_deliveries: int
    promises: list[Promise] = field(default_factory=list)
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By channel, step and outcome."""
    recovered: int = 0

    def promise(self, channel: str, letter: Letter | None = None) -> Promise:
        """Count one promise."""
        found = Promise(channel, letter)
        self.promises.append(found)
        return found

    def end(self, promise: Promise, outcome: Outcome) -> None:
        """Count one outcome."""
        channel = promise.channel
        step = STEP[channel] if outcome is Outcome.OK else PROMISE_STEP[channel]
        self.outcomes[channel, step, outcome.value] += 1
        if step == PROMISE_STEP[channel]:
            promise.ends += 1
        else:
            promise.reached = True

    # The table -------------------------------------------------------------------------------------------------------

    def settled(self, ending: Ending, said: Outcome | None, *, last: bool) -> Outcome:
        """Return how a message ends."""
        used_up = Outcome.FAILED if self.dead_letter is False else Outcome.DEAD_LETTERED
        if said is not None:
            return said
        if ending in ("ack", "quiet"):
            return Outcome.OK
        if ending in ("ack_raise", "ack_cancel"):
            return Outcome.FAILED
        if ending == "reject":
            if self.dead_letter or (self.dead_letter is None and last):
                return Outcome.DEAD_LETTERED
            return Outcome.FAILED if self.dead_letter is False else Outcome.DROPPED
        return used_up if last and ending != "cancel" else Outcome.RETRIED

    @staticmethod
    def delivered(result: Result, settled: Outcome, said: Outcome | None) -> Outcome | None:
        """Return the outcome of a delivery whose last try had *result*, None while it is owed."""
        if result == "ok":
            return Outcome.OK
        if result == "drop":
            return Outcome.DROPPED
        if result == "cancel" or settled is Outcome.RETRIED:
            return None
        if settled in (Outcome.DEAD_LETTERED, Outcome.DROPPED, Outcome.EXPIRED):
            return settled
        if said is not None:
            return said
        return Outcome.REJECTED if result == "permanent" else Outcome.FAILED

    # What happens to messages ----------------------------------------------------------------------------------------

    def handled(
        self, letter: Letter, tries: dict[tuple[str, str], Result], ending: Ending, said: Outcome | None, *, last: bool
    ) -> None:
        """Book one handling of *letter*; *tries* has the last result for each channel and key that was tried."""
        settled = self.settled(ending, said, last=last)
        for (channel, key), result in tries.items():
            outcome = self.delivered(result, settled, said)
            if outcome is not None:
                self._concluded(letter, channel, key, outcome)
        gone = settled is not Outcome.RETRIED and ending not in ("cancel", "ack_cancel")
        if gone and letter.one and letter.promised and not tries:  # handled for good, and nobody tried
            self._concluded(letter, letter.channel, letter.keys[0], settled)

    def _concluded(self, letter: Letter, channel: str, key: str, outcome: Outcome) -> None:
        if letter.replay:
            self.recovered += outcome is Outcome.OK
        elif letter.promised and channel == letter.channel:
            self.end(letter.promises[key], outcome)
        else:
            self.end(self.promise(channel), outcome)  # nobody had promised it: the delivery does so itself

    # The law ---------------------------------------------------------------------------------------------------------

    def open(self, alive: set[int]) -> int:
        """Return how many promises are still owed: their message is in the queue, or a receipt may come."""
        return sum(
            not one.ends and (one.reached or (one.letter is not None and one.letter.number in alive))
            for one in self.promises
        )

    def unaccounted(self, alive: set[int]) -> int:
        """Return how many promises nobody will end: no message stands for them any more."""
        return sum(not one.ends for one in self.promises) - self.open(alive)

    @property
    def repeats(self) -> int:
        """Return how many outcomes were counted again because a message came back after its delivery had worked."""
        return sum(max(0, one.ends - 1) for one in self.promises)
