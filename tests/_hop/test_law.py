"""The law: intents = outcomes at the promise step + open + unaccounted, whatever a program does."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import get_args

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import rtobs
from rtobs import ErrorCategory, Outcome
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs.integrations.memory import Broker, Message
from tests._hop.law import PROMISE_STEP, Book, Ending, Letter, Result
from tests.support import telemetry as support


class RetryableError(Exception):
    """Another try may help."""


class PermanentError(Exception):
    """No other try helps."""


SWALLOWED = contextlib.suppress(RetryableError, PermanentError, asyncio.CancelledError)
ERRORS = {RetryableError: ErrorCategory.UNAVAILABLE, PermanentError: ErrorCategory.RECIPIENT}

channels = st.sampled_from(["sms", "webhook", "push"])
results = st.sampled_from(get_args(Result))
tries = st.lists(results, min_size=1, max_size=3)
endings = st.sampled_from(get_args(Ending))
sayings = st.sampled_from([None, None, None, Outcome.DROPPED, Outcome.EXPIRED, Outcome.REJECTED, Outcome.FAILED])


class FlakyBroker(Broker):
    """A broker whose next sends fail, one for each True in ``fails``."""

    fails: list[bool]

    async def publish(self, *args: object, **options: object) -> None:
        if self.fails and self.fails.pop(0):
            raise ConnectionError("gone")
        await super().publish(*args, **options)  # type: ignore[arg-type]


@rtobs.deliver("sms", "by_function")
def deliver_sms(key: str, result: Result) -> None:
    """Try once, as a decorated function: its arguments tell deliveries apart."""
    _act(result)


def _act(result: Result) -> None:
    if result == "retryable":
        raise RetryableError
    if result == "permanent":
        raise PermanentError
    if result == "cancel":
        raise asyncio.CancelledError
    if result == "drop":
        rtobs.current().outcome(Outcome.DROPPED)


def attempt(channel: str, key: str, result: Result) -> None:
    """Try once to deliver; user code keeps the failure to itself."""
    with SWALLOWED, rtobs.deliver(channel, "provider", key=key):
        _act(result)


class Law(RuleBasedStateMachine):
    """Random programs over the in-memory broker, and after each step the law."""

    def __init__(self) -> None:
        super().__init__()
        self.telemetry = support.start(promises={"push": "displayed"}, errors=ERRORS)
        self.runner = asyncio.Runner()
        self.letters: list[Letter] = []

    @initialize(where=st.sampled_from(["dead", "none known", "unknown"]), max_deliveries=st.sampled_from([0, 1, 2]))
    def begin(self, where: str, max_deliveries: int) -> None:
        known = {"dead": True, "none known": False, "unknown": None}[where]
        self.book = Book(known, max_deliveries)
        self.broker = FlakyBroker()
        self.broker.fails = []
        self.broker.declare("main", dead_letter="dead" if known else None, max_deliveries=max_deliveries)
        rtobs.wrap(self.broker, dead_letter="" if known is False else None)

    def teardown(self) -> None:
        self.runner.run(self.broker.close())
        self.runner.close()
        support.stop()

    # What the broker holds, by its own word --------------------------------------------------------------------------

    def alive(self, queue: str = "main") -> set[int]:
        """Return the numbers of the letters that wait in *queue*."""
        return {int(message.body) for message in self.broker._queue(queue).ready._queue}

    def letter(self, channel: str, keys: tuple[str, ...], *, one: bool, promised: bool) -> Letter:
        letter = Letter(len(self.letters), channel, keys, one, promised)
        self.letters.append(letter)
        return letter

    async def send(self, letter: Letter) -> bool:
        """Send one letter, naming the promise that it stands for, if it is one; tell whether the broker took it."""
        named = rtobs.publish("main", channel=letter.channel, key=letter.keys[0])
        with named if letter.one else contextlib.nullcontext():
            try:
                await self.broker.publish("main", b"%d" % letter.number)
            except ConnectionError:
                return False
        return True

    # Producing -------------------------------------------------------------------------------------------------------

    @rule(
        channel=channels, fails=st.lists(st.booleans(), min_size=1, max_size=3), one=st.booleans(),
        intend=st.sampled_from(["before", "before", "after", "never"]), raises=st.booleans(),
    )  # fmt: skip
    def produce(self, channel: str, fails: list[bool], one: bool, intend: str, raises: bool) -> None:
        """Accept something, promise deliveries, send messages; sends may fail, and the hop may fail in the end."""
        keys = tuple(f"k{number}" for number in range(len(fails)))
        shares = [(key,) for key in keys] if one else [keys]
        letters = [self.letter(channel, share, one=one, promised=intend == "before") for share in shares]
        self.broker.fails = fails[: len(letters)]

        async def accept() -> list[bool]:
            sent = []
            with contextlib.suppress(RetryableError), rtobs.accept("/orders") as hop:
                if intend == "before":
                    hop.intend(channel, *keys)
                sent += [await self.send(letter) for letter in letters]
                if intend == "after":
                    hop.intend(channel, count=len(keys))
                if raises:
                    raise RetryableError
            return sent

        sent = self.runner.run(accept())
        counted = intend != "never" and (not raises or (intend == "before" and any(sent)))
        for letter in letters if counted else []:
            for key in letter.keys:
                letter.promises[key] = self.book.promise(channel, letter if intend == "before" else None)

    # Consuming -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.alive())
    @rule(
        ending=endings, said=sayings, tried=st.lists(tries, max_size=3), by_function=st.booleans(),
        other=st.none() | results,
    )  # fmt: skip
    def consume(
        self, ending: Ending, said: Outcome | None, tried: list[list[Result]], by_function: bool, other: Result | None
    ) -> None:
        """Handle the next message: tries for its keys, perhaps one for a channel that nobody promised, any ending."""
        self.handle(ending, said, tried, other, by_function=by_function)

    @precondition(lambda self: self.alive())
    @rule(ending=endings, said=sayings)
    def consume_without_a_try(self, ending: Ending, said: Outcome | None) -> None:
        """Handle the next message and deliver nothing."""
        self.handle(ending, said, [], None)

    def handle(
        self, ending: Ending, said: Outcome | None, tried: list[list[Result]], other: Result | None, *,
        by_function: bool = False,
    ) -> None:  # fmt: skip
        if ending not in ("ack", "quiet"):
            said = None
        last: dict[tuple[str, str], Result] = {}

        def act(letter: Letter) -> None:
            for key, tries_of_key in zip(letter.keys, tried, strict=False):
                for result in tries_of_key:
                    if by_function and letter.channel == "sms" and len(tries_of_key) == 1:
                        with SWALLOWED:
                            deliver_sms(key, result)
                    else:
                        attempt(letter.channel, key, result)
                    last[letter.channel, key] = result
            if other is not None:
                attempt("email", "", other)
                last["email", ""] = other

        async def work() -> tuple[Letter, bool]:
            message = await self.take("main")
            letter = self.letters[int(message.body)]
            with SWALLOWED, rtobs.consume("main", message) as hop:
                act(letter)
                if said is not None:
                    hop.outcome(said)
                await self.finish(message, ending)
            if not message.settled:
                await (message.ack() if ending in ("quiet", "raise_then_ack") else message.nack())
            return letter, 0 < self.book.max_deliveries <= message.delivery_count

        letter, is_last = self.runner.run(work())
        self.book.handled(letter, last, ending, said, last=is_last)

    async def take(self, queue: str) -> Message:
        message = await self.broker.get(queue)
        assert message is not None
        return message

    @staticmethod
    async def finish(message: Message, ending: Ending) -> None:
        """End the handling of a message while its hop is open."""
        if ending.startswith("ack"):
            await message.ack()
        elif ending in ("nack", "reject"):
            await getattr(message, ending)()
        if ending in ("raise", "ack_raise", "raise_then_ack"):
            raise RetryableError
        if ending == "raise_permanent":
            raise PermanentError
        if ending.endswith("cancel"):
            raise asyncio.CancelledError

    @precondition(lambda self: self.alive())
    @rule(names_promise=st.booleans())
    def forward(self, names_promise: bool) -> None:
        """Pass the next message on: the promise goes with it, whether the new message names it or not."""

        async def handle() -> None:
            message = await self.take("main")
            old = self.letters[int(message.body)]
            with rtobs.consume("main", message):
                await self.pass_on(old, one=old.one and names_promise)
                await message.ack()

        self.runner.run(handle())

    async def pass_on(self, old: Letter, *, one: bool, replay: bool = False) -> None:
        new = self.letter(old.channel, old.keys, one=one, promised=old.promised)
        new.promises, new.replay = old.promises, old.replay or replay
        for promise in new.promises.values():
            promise.letter = new if promise.letter is old else promise.letter
        self.broker.fails = []
        assert await self.send(new)

    @precondition(lambda self: self.alive("dead"))
    @rule(what=st.sampled_from(["ack", "deliver", "replay"]), result=results)
    def work_on_a_dead_letter(self, what: str, result: Result) -> None:
        """Read the dead-letter queue: put a message away, try again in place, or send it back."""

        async def handle() -> None:
            message = await self.take("dead")
            letter = self.letters[int(message.body)]
            with rtobs.consume("dead", message):
                if what == "deliver":
                    attempt(letter.channel, letter.keys[0], result)
                    self.book.recovered += result == "ok"
                elif what == "replay":
                    await self.pass_on(letter, one=letter.one, replay=True)
                await message.ack()

        self.runner.run(handle())

    # Without a broker ------------------------------------------------------------------------------------------------

    @rule(channel=channels, tried=tries, around=st.sampled_from(["accept", "promise", "nothing"]), raises=st.booleans())
    def deliver_at_once(self, channel: str, tried: list[Result], around: str, raises: bool) -> None:
        """Deliver where nothing is consumed: each try alone is final, or the last one of an accept hop is."""

        async def accept() -> None:
            with contextlib.suppress(RetryableError), rtobs.accept("/now") as hop:
                if around == "promise":
                    hop.intend(channel, "k0")
                for result in tried:
                    attempt(channel, "k0", result)
                if raises:
                    raise RetryableError

        async def bare() -> None:
            for result in tried:
                attempt(channel, "k0", result)

        self.runner.run(bare() if around == "nothing" else accept())
        for result in tried if around == "nothing" else tried[-1:]:
            outcome = self.book.delivered(result, Outcome.OK, None)
            if outcome is not None:
                self.book.end(self.book.promise(channel), outcome)
            elif around == "promise" and not raises:
                self.book.promise(channel)

    # What must hold --------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_stays_current(self) -> None:
        assert engine.current() is None

    @invariant()
    def the_books_agree(self) -> None:
        """Compare what was counted with the test's own book, and both with the law."""
        telemetry, book = self.telemetry, self.book
        intents = telemetry.by(names.INTENTS, "channel")
        outcomes = telemetry.by(names.OUTCOMES, "channel", "step", "outcome")
        assert intents == Counter(promise.channel for promise in book.promises)
        assert outcomes == book.outcomes
        assert telemetry.count(names.RECOVERED) == book.recovered
        alive = self.alive()
        ended = sum(n for (channel, step, _), n in outcomes.items() if step == PROMISE_STEP[channel])
        assert sum(intents.values()) == ended - book.repeats + book.open(alive) + book.unaccounted(alive)


TestLaw = pytest.mark.timeout(300)(Law.TestCase)  # seconds, but making a failing program small may take minutes
TestLaw.settings = settings(
    max_examples=100, stateful_step_count=30, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
)


# Programs that broke the law once ------------------------------------------------------------------------------------


async def test_a_message_dead_by_its_limit_ends_its_promise_once(telemetry):
    """A promise ends with the last delivery that the broker allows, and not again where the dead letter is read."""
    broker = rtobs.wrap(Broker())
    broker.declare("main", dead_letter="dead", max_deliveries=2)
    with rtobs.accept("/orders") as hop:
        hop.intend("sms", "k0")
        with rtobs.publish("main", channel="sms", key="k0"):
            await broker.publish("main", b"")
    for queue in ("main", "main", "dead"):
        message = await broker.get(queue)
        with rtobs.consume(queue, message):
            await (message.nack() if queue == "main" else message.ack())
    assert telemetry.by(names.OUTCOMES, "outcome") == {"dead_lettered": 1}
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 1, "dead_lettered": 1, "ok": 1}


async def test_a_message_that_names_a_promise_nobody_made_ends_none(telemetry):
    """`publish(channel=…)` only names a promise: where none was made, handling the message ends none."""
    broker = rtobs.wrap(Broker())
    with rtobs.publish("main", channel="sms", key="k0"):
        await broker.publish("main", b"")
    message = await broker.get("main")
    with rtobs.consume("main", message):
        await message.ack()
    assert telemetry.count(names.INTENTS) == 0
    assert telemetry.count(names.OUTCOMES) == 0
