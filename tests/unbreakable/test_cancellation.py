"""Cancellation at every point where a program can be suspended: hops end once, and the cancellation goes on (R12)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any

import pytest
from opentelemetry.context import get_current

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs.integrations.memory import Broker
from tests.integrations.kafka_support import kafka_address
from tests.support import telemetry as support
from tests.support.timing import eventually, scaled
from tests.unbreakable.broker_drives import drives
from tests.unbreakable.drives import Drive
from tests.unbreakable.telling import EachOnce

__all__ = ["kafka_address"]

PROGRAMS = (
    "functions", "memory", "aio_pika", "redis streams", "redis lists", "redis pubsub", "nats", "jetstream", "httpx",
    "asgi", "aiokafka", "aiomqtt", "aiomqtt 3.1.1", "websockets", "aiohttp", "sqs", "faststream",
    pytest.param("django", marks=pytest.mark.filterwarnings(  # it leaves the body of a cancelled request unclosed
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")),
)  # fmt: skip
CALLBACKS = ("memory", "aio_pika", "redis streams", "jetstream")
"""Programs whose client goes on after a cancelled callback, or is closed without it."""


class Stepped:
    """Awaits a coroutine, and cancels it where it is suspended for the *at*-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.suspensions = 0
        self.over = False
        self.error = asyncio.CancelledError(f"at suspension {at}")

    @property
    def cancelled(self) -> bool:
        """Whether it came that far."""
        return self.suspensions >= self._at

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            return (yield from self._steps())
        finally:
            self.over = True

    def _steps(self) -> Generator[Any, Any, Any]:
        step, argument = self._work.send, None
        while True:
            try:
                waits_for = step(argument)
            except StopIteration as done:
                return done.value
            self.suspensions += 1
            if self.suspensions == self._at:
                if waits_for is not None:
                    waits_for.cancel()
                step, argument = self._work.throw, self.error
                continue
            step, argument = self._work.send, None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  a real cancellation: of the test's own timeout
                step, argument = self._work.throw, error


@pytest.fixture
def makers(  # noqa: PLR0917  pytest gives fixtures by name
    unique, amqp_url, redis_url, nats_url, mqtt_url, kafka_address
) -> dict[str, Callable[[], Drive]]:
    """The host programs by name."""
    return drives(unique, amqp_url, redis_url, nats_url, mqtt_url, kafka_address)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Generator[None, None, None]:
    """OpenTelemetry says nothing of a context that could not be detached."""
    yield
    told = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in told if record.name.startswith("opentelemetry")] == []


async def _cancelled_at(make: Callable[[], Drive], at: int, *, callback: bool, wrapped: bool = True) -> str:
    """Run a program, or its callback, until its *at*-th suspension and cancel it there.

    Return what came of it: ``ended`` (before), ``cancelled``, or ``kept`` where the cancellation did not come out.
    """
    telemetry = support.start()
    program = make()
    program.wrapped = wrapped
    steps: list[Stepped] = []
    with EachOnce() as once:
        await program.open()
        before = get_current()
        raised: BaseException | None = None
        try:
            async with asyncio.timeout(scaled(20)):
                if callback:
                    program.around = lambda work: steps.append(Stepped(work, at)) or steps[-1]
                    running = asyncio.create_task(program.run())
                    await eventually(lambda: running.done() or any(step.over and step.cancelled for step in steps), 20)
                    running.cancel()  # it would wait for what its callback had to do
                    with contextlib.suppress(asyncio.CancelledError):
                        await running
                else:
                    steps.append(Stepped(program.run(), at))
                    await steps[-1]
        except asyncio.CancelledError as error:
            raised = error
        assert get_current() == before
        assert engine.current() is None
        with contextlib.suppress(asyncio.CancelledError):  # a client may keep one that its callback has raised
            await program.close()
        gc.collect()
        await asyncio.sleep(0.01)
    cancelled = any(step.cancelled for step in steps)
    assert once.check() > 0 or not steps
    assert engine.current() is None
    assert telemetry.by(names.INTERNAL_ERRORS, "site") == {}
    support.stop()
    if not cancelled:
        return "ended"
    return "cancelled" if callback or raised is not None else "kept"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("quiet")
async def test_a_program_may_be_cancelled_wherever_it_waits(makers, name):
    """Cancelled at each suspension in turn, a program raises CancelledError as without us; each hop ends once."""
    at = 1
    while (found := await _cancelled_at(makers[name], at, callback=False)) != "ended":
        if found == "kept":  # some clients do so themselves; how often they wait before, the network decides
            beside = [await _cancelled_at(makers[name], max(at + more, 1), callback=False, wrapped=False)
                      for more in (0, -1, 1)]  # fmt: skip
            assert "kept" in beside
        at += 1
    print(f"\n{name}: {at - 1} suspensions")
    assert at > 1 or name in ("functions", "httpx", "asgi")  # nothing there has to wait


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.usefixtures("quiet")
async def test_a_callback_may_be_cancelled_wherever_it_waits(makers, name, caplog):
    """Cancelled at each of its suspensions in turn, a client's callback ends its hop, once."""
    at = 1
    while await _cancelled_at(makers[name], at, callback=True) != "ended":
        at += 1
    print(f"\n{name}: {at - 1} suspensions of a callback")
    assert at > 1


# Generators ----------------------------------------------------------------------------------------------------------


@rtobs.deliver("in_app", "socket")
async def _parts(number: int) -> AsyncGenerator[int, None]:
    for part in range(number):
        await asyncio.sleep(0)
        yield part


@rtobs.stage("page")
async def _pages(number: int) -> AsyncGenerator[int, None]:
    for page in range(number):
        await asyncio.sleep(0)
        yield page


@pytest.mark.parametrize("left_after", [0, 1, 3])
@pytest.mark.usefixtures("quiet")
async def test_an_abandoned_generator_ends_its_delivery_once(telemetry, left_after):
    """A generator that is left and forgotten ends its hop when Python closes it, and its caller's context stays."""
    with EachOnce() as once, rtobs.consume("orders", headers={}):
        inside = get_current()
        stream = _parts(10)
        for _ in range(left_after):
            await anext(stream)
            assert get_current() == inside
        del stream
        gc.collect()
        await asyncio.sleep(0.01)
        assert get_current() == inside
    assert once.check() == (2 if left_after else 1)
    assert engine.current() is None
    assert telemetry.by(names.ATTEMPTS, "result") == ({"cancelled": 1} if left_after else {})


@pytest.mark.usefixtures("quiet")
async def test_a_broken_loop_over_a_stage_leaves_nothing_behind(telemetry):
    """After a bare ``break`` the hop around is the current one, and ends once."""
    with EachOnce() as once, rtobs.consume("orders", headers={}) as hop:
        async for _ in _pages(5):
            break
        gc.collect()
        await asyncio.sleep(0.01)
        assert rtobs.current().correlation_id == hop.correlation_id
    assert once.check() == 1
    assert engine.current() is None
    assert telemetry.count(names.STAGE_DURATION, stage="page") == 1


@pytest.mark.usefixtures("quiet")
async def test_a_generator_closed_in_another_task_ends_once(telemetry):
    """A generator that one task began and another closes ends its hop once; neither task's context changes."""
    stream = _parts(10)
    with EachOnce() as once:

        async def begin() -> None:
            await anext(stream)
            assert engine.current() is None

        async def close() -> None:
            before = get_current()
            await stream.aclose()
            assert get_current() == before

        once_begun = asyncio.create_task(begin())
        await once_begun
        await asyncio.create_task(close())
    assert len(once.ended) <= 1
    assert engine.current() is None


@pytest.mark.usefixtures("quiet")
async def test_wrong_arguments_of_a_generator_leave_no_hop(telemetry):
    """A decorated generator that is called wrongly raises its TypeError; its hop has ended."""
    with EachOnce() as once, pytest.raises(TypeError, match="argument"):
        await anext(_parts(1, 2))
    assert once.check() == 1
    assert engine.current() is None


@pytest.mark.usefixtures("quiet")
async def test_a_left_iterator_of_a_client_leaves_no_hop(telemetry):
    """After a bare ``break`` out of a client's iterator nothing of ours is current."""
    broker = rtobs.wrap(Broker())
    with EachOnce() as once:
        for number in range(3):
            await broker.publish("orders", str(number).encode())
        async for message in broker.messages("orders"):
            await message.ack()
            break
        assert engine.current() is None
        gc.collect()
        await asyncio.sleep(0.01)
        await broker.close()
    assert once.check() == 3
    assert engine.current() is None


# Groups --------------------------------------------------------------------------------------------------------------


class HostError(Exception):
    pass


@pytest.mark.parametrize("fails_after", range(4))
@pytest.mark.usefixtures("quiet")
async def test_a_failing_task_group_ends_every_delivery_once(telemetry, fails_after):
    """One task of a group fails: its siblings are cancelled, each hop ends once, and the group's exception goes on."""

    @rtobs.deliver("push", "fcm", key=str)
    async def deliver(number: int) -> None:
        for step in range(10):
            await asyncio.sleep(0)
            if number == 2 and step == fails_after:
                raise HostError("two")

    @rtobs.consume("orders", headers={})
    async def handle() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(deliver(number))

    with EachOnce() as once:
        with pytest.raises(ExceptionGroup) as caught:
            await handle()
        await eventually(lambda: len(once.ended) == 6)
    assert once.check() == 6
    assert [str(error) for error in caught.value.exceptions] == ["two"]
    assert telemetry.by(names.ATTEMPTS, "result") == {"failed": 1, "cancelled": 4}
    assert engine.current() is None


@pytest.mark.usefixtures("quiet")
async def test_a_deadline_cancels_and_is_told_as_the_hosts(telemetry):
    """``asyncio.timeout`` round a delivery raises TimeoutError in its caller; the attempt was cancelled, once."""

    @rtobs.deliver("push", "fcm")
    async def deliver() -> None:
        await asyncio.Event().wait()

    with EachOnce() as once, pytest.raises(TimeoutError):
        async with asyncio.timeout(scaled(0.02)):
            await deliver()
    assert once.check() == 1
    assert telemetry.by(names.ATTEMPTS, "result") == {"cancelled": 1}


async def test_a_hop_that_does_not_end_is_seen(telemetry):
    """A hop that is opened and left open is noticed: the checks above can fail."""
    with EachOnce() as once:
        rtobs.accept("/left").__enter__()
    with pytest.raises(AssertionError):
        once.check()
    engine.close(engine.current())
    assert logging.getLogger("opentelemetry.context").isEnabledFor(logging.ERROR)
