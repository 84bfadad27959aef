"""What every test can count on: brokers that answer, unique names, and skips that cannot go unnoticed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator
from pathlib import Path

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.support")  # before the first import from there: helpers assert too
for part in ("adapter", "conformance_facts", "conformance_hops", "conformance_sends", "conformance_unchanged"):
    pytest.register_assert_rewrite(f"tests.integrations.{part}")  # likewise; other folders import them, too

from tests.support import aws, brokers  # noqa: E402 - see above
from tests.support import nats as own  # noqa: E402 - see above
from tests.support.mosquitto import OwnMosquitto  # noqa: E402 - see above
from tests.support.mosquitto import binary as mosquitto_binary  # noqa: E402 - see above
from tests.support.rabbitmq import OwnRabbitMQ, binary  # noqa: E402 - see above

# Time limits per example fail on a busy machine for no reason of ours; every test has a timeout anyway.
hypothesis.settings.register_profile("rtobs", deadline=None)
hypothesis.settings.load_profile("rtobs")

ALONE = (
    "tests/_export/test_reliability.py",
    "tests/bench/",
    "tests/chain/",
    "tests/demo/",
    "tests/slo/test_live.py",
    "tests/unbreakable/test_memory.py",
)
"""Where tests judge time, rates or memory, or start as many processes as the machine has cores."""

NOTHING_SKIPPED = os.environ.get("RTOBS_TEST_REQUIRE") == "all"


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a live broker, and every one that wants the machine for itself."""
    for item in items:
        if item.nodeid.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        fixtures = getattr(item, "fixturenames", ())
        if not {"own_rabbitmq", "own_nats", "own_mosquitto", *brokers.FIXTURES}.isdisjoint(fixtures):
            item.add_marker(pytest.mark.broker)
        if "own_rabbitmq" in fixtures:
            item.add_marker(pytest.mark.slow)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure (xfail) is reported as a skip too, but says what it expects.
    if NOTHING_SKIPPED and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{reason}\nA skip is a failure in this run (RTOBS_TEST_REQUIRE=all)."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where nothing may be skipped."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for files that skip themselves while they are imported."""
    report = yield
    _fail_if_skipped(report)
    return report


def _url(broker: brokers.Broker) -> str:
    if reason := brokers.reason_to_skip(broker):
        pytest.skip(reason)
    return broker.url


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """The address of a live RabbitMQ."""
    return _url(brokers.AMQP)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The address of a live Redis."""
    return _url(brokers.REDIS)


@pytest.fixture(scope="session")
def nats_url() -> str:
    """The address of a live NATS server with JetStream."""
    return _url(brokers.NATS)


@pytest.fixture(scope="session")
def mqtt_url() -> str:
    """The address of a live Mosquitto."""
    return _url(brokers.MQTT)


@pytest.fixture(scope="session")
def aws_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """The address of a server that is SQS and SNS; clients take an account for it from the environment."""
    with pytest.MonkeyPatch.context() as patched, aws.serving(tmp_path_factory.mktemp("aws")) as url:
        for name, value in aws.ACCOUNT.items():
            patched.setenv(name, value)
        yield url


@pytest.fixture
def own_rabbitmq(tmp_path: Path) -> Generator[OwnRabbitMQ, None, None]:
    """A running RabbitMQ that only this test uses: it may be stopped, started and killed."""
    if binary() is None:
        pytest.skip("RabbitMQ is not installed on this machine; run `make brokers` on Debian or Ubuntu")
    broker = OwnRabbitMQ(tmp_path / "rabbitmq")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def own_nats(tmp_path: Path) -> Generator[own.OwnNats, None, None]:
    """A running NATS server with JetStream that only this test uses: it may be stopped and started."""
    if own.binary() is None:
        pytest.skip("NATS is not installed on this machine; run `make brokers` on Debian or Ubuntu")
    server = own.OwnNats(tmp_path / "nats")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Generator[OwnMosquitto, None, None]:
    """A running Mosquitto that only this test uses: it may be stopped, started and configured."""
    if mosquitto_binary() is None:
        pytest.skip("Mosquitto is not installed on this machine; run `make brokers` on Debian or Ubuntu")
    broker = OwnMosquitto(tmp_path / "mosquitto")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


_RUN = os.urandom(4).hex()
_COUNT = itertools.count(1)


@pytest.fixture(scope="session")
def unique() -> Callable[[str], str]:
    """A function that makes names no other test and no other run uses: ``unique("orders")``."""
    return lambda name="name": f"rtobs-test-{_RUN}-{next(_COUNT)}-{name}"
