"""Whatever of rtobs fails, its host goes on: every call on the message path is made to fail, one at a time (R2)."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
from collections.abc import Callable, Iterator

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine, leaf
from rtobs._telemetry import workers
from rtobs.integrations.memory import Broker
from tests.integrations.kafka_support import kafka_address
from tests.support import telemetry as support
from tests.unbreakable import faults
from tests.unbreakable.broker_drives import drives
from tests.unbreakable.drives import Drive
from tests.unbreakable.faults import ERRORS, Survey, Trial
from tests.unbreakable.sites import PASSAGES, Site, is_passage

__all__ = ["kafka_address"]

Makers = dict[str, Callable[[], Drive]]
LEFT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""What a client leaves behind where its own call, a passage, is made to fail."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every confirm counts as slow and every full worker as full for long.

    So no machine decides which messages differ, and what is done about slow ones may fail like the rest.
    """
    monkeypatch.setattr(leaf, "SLOW_CONFIRM_NS", -1)
    monkeypatch.setattr(workers, "FULL_NS", -1)


@pytest.fixture
def makers(  # noqa: PLR0917  pytest gives fixtures by name
    slow: None, unique: Callable[[str], str], amqp_url: str, redis_url: str, nats_url: str, mqtt_url: str,
    kafka_address: str, caplog: pytest.LogCaptureFixture,
) -> Iterator[Makers]:  # fmt: skip
    """The host programs; what they and their clients log of a fault is not kept."""
    with caplog.at_level(logging.CRITICAL + 1):
        yield drives(unique, amqp_url, redis_url, nats_url, mqtt_url, kafka_address)
    support.stop()


async def _surveyed(makers: Makers) -> dict[str, Survey]:
    return {name: await faults.survey(make) for name, make in makers.items()}


def _tell(surveys: dict[str, Survey], tried: int) -> None:
    """Say how many sites there are, where, and which calls cannot be made to fail in our place."""
    sites = {site for survey in surveys.values() for site in (*survey.cold, *survey.warm)}
    guards = {site for survey in surveys.values() for site in survey.guards}
    rooms = collections.Counter(site.path.partition("/")[0] for site in sites)
    passages = sorted(map(str, filter(is_passage, sites)))
    print(f"\n{len(sites)} call sites {dict(rooms)}, all made to fail: {tried} runs; {len(passages)} of them passages")
    print(f"{len(guards - sites)} entries of guards besides; passages:", *passages, sep="\n  ")


def _check(trials: list[Trial]) -> None:
    found = [str(finding) for trial in trials for finding in trial.findings]
    assert found == [], f"{len(found)} faults did harm:\n" + "\n".join(found[:40])


@LEFT
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_call_on_the_message_path_may_fail(makers):
    """Each call site, failing with each of three exceptions, harms no host, is counted, and spoils no later message."""
    surveys = await _surveyed(makers)
    known: set[Site] = set()
    trials = []
    for name, survey in surveys.items():
        work = [(site, True) for site in survey.cold] + [(site, False) for site in survey.warm]
        fresh = [(site, cold) for site, cold in work if site not in known]
        known.update(site for site, _ in fresh)
        trial = Trial(name, makers[name])
        await trial.run((site, error, cold) for site, cold in fresh for error in ERRORS)
        trials.append(trial)
    _tell(surveys, sum(trial.tried for trial in trials))
    _check(trials)
    assert sum(trial.tried for trial in trials) == len(known) * len(ERRORS)
    assert {is_passage(site) for site in known} - {None} == set(PASSAGES), "a passage that does not occur"


@LEFT
@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_every_call_may_fail_in_every_program(makers):
    """Each call site, failing with each of three exceptions in every program that reaches it, does no harm."""
    surveys = await _surveyed(makers)
    trials = []
    for name, survey in surveys.items():
        work = [(site, True) for site in survey.cold] + [(site, False) for site in survey.warm]
        trial = Trial(name, makers[name])
        await trial.run((site, error, cold) for (site, cold), error in itertools.product(work, ERRORS))
        trials.append(trial)
    _tell(surveys, sum(trial.tried for trial in trials))
    _check(trials)


async def test_a_fault_that_nobody_guards_is_found():
    """A program whose own code calls where nothing guards it is told to be harmed: the search can fail."""

    class Unguarded(Drive):
        async def run(self) -> list[object]:
            record = engine.start("job", "crm")  # as a leaf would that forgot the guard
            engine.end(record)
            return [record.kind]

    survey = await faults.survey(Unguarded)
    trial = Trial("unguarded", Unguarded)
    await trial.run((site, ValueError, True) for site in survey.cold[:3])
    support.stop()
    assert len(trial.findings) == 3
    assert "reached the host" in trial.findings[0].harm


# The guard itself ----------------------------------------------------------------------------------------------------


class _Broken:
    """A sink that raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def end(self, record: object) -> None:
        raise self.error


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """A function that puts a sink in front which raises."""

    def put(error: BaseException) -> None:
        assert engine.is_on()
        monkeypatch.setattr(engine.runtime, "sinks", (_Broken(error), *engine.runtime.sinks))

    return put


def test_strict_raises_faults_of_ours(telemetry, broken):
    """With ``strict=True`` a fault of ours is raised, as the same object."""
    error = ValueError("ours")
    broken(error)
    with pytest.raises(ValueError, match="ours") as caught, rtobs.consume("orders", headers={}):
        pass
    assert caught.value is error
    engine.attach(engine.Context())
    support.start(strict=False)  # the fixture would complain of the fault


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_what_is_no_exception_goes_through_and_ends_the_hop_cancelled(telemetry, error):
    """KeyboardInterrupt, SystemExit, CancelledError and GeneratorExit leave a block as they are, its hop cancelled."""
    with pytest.raises(type(error)) as caught, rtobs.accept("/orders"), rtobs.consume("orders", headers={}):
        raise error
    assert caught.value is error
    assert telemetry.span("consume").attributes["rtobs.reason"] == "cancelled"
    assert telemetry.span("accept").attributes["rtobs.outcome"] == "cancelled"
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"cancelled": 1}
    assert engine.current() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()])
async def test_what_is_no_exception_goes_through_decorators_and_leaves(telemetry, error):
    """The same objects leave decorated functions and a client's own call; delivery and send end cancelled."""

    class Failing(Broker):
        async def publish(self, *args: object, **options: object) -> None:
            raise error

    broker = rtobs.wrap(Failing())

    @rtobs.deliver("push", "fcm")
    async def deliver() -> None:
        await broker.publish("orders", b"")

    with pytest.raises(type(error)) as caught:
        await deliver()
    assert caught.value is error
    assert telemetry.by(names.ATTEMPTS, "result") == {"cancelled": 1}
    assert telemetry.span("publish").attributes["rtobs.outcome"] == "cancelled"
    assert engine.current() is None


def test_a_fault_is_told_once_a_minute_and_counted_each_time(caplog, broken):
    """Ten faults at one site are ten in ``rtobs.internal.errors`` and one line in the log."""
    telemetry = support.start(strict=False)
    broken(ValueError("ours"))
    with caplog.at_level(logging.WARNING, "rtobs"):
        for _ in range(10):
            with rtobs.consume("orders", headers={}):
                pass
    counted = telemetry.by(names.INTERNAL_ERRORS, "site")
    support.stop()
    assert counted == {"_Broken": 10}
    assert [record.name for record in caplog.records] == ["rtobs"]
    assert "_Broken" in caplog.text
