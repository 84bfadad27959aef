"""The helpers themselves: waits end, absent brokers are named, skips cannot hide."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import brokers, timing

ROOT = Path(__file__).parents[2]


async def test_eventually_returns_the_first_true_value():
    """A wait ends as soon as its condition holds and hands on the value."""
    values = iter([None, 0, "there"])
    assert await timing.eventually(lambda: next(values)) == "there"


async def test_eventually_awaits_an_async_condition():
    """A condition may be async: its result counts, not the coroutine, which is always true."""
    values = iter([False, True])

    async def condition() -> bool:
        return next(values)

    assert await timing.eventually(condition) is True
    assert list(values) == []


async def test_a_wait_that_fails_says_what_it_saw_last():
    """A wait gives up after its timeout and shows the last value, inside asyncio and outside."""
    with pytest.raises(AssertionError, match=r"within .* s; it last returned \[\]"):
        await timing.eventually(list, timeout=0.05)
    with pytest.raises(AssertionError, match=r"within .* s; it last returned 0"):
        timing.wait_until(lambda: 0, timeout=0.05)


def test_time_scale_shortens_waits_but_no_deadlines(monkeypatch):
    """A scale below one shortens what is slept, and leaves a slow machine its time."""
    monkeypatch.setattr(timing, "SCALE", 0.01)
    assert timing.scaled(2.0) == pytest.approx(0.02)
    start = time.monotonic()
    with pytest.raises(AssertionError):
        timing.wait_until(lambda: False, timeout=0.2)
    assert time.monotonic() - start >= 0.2


def test_unique_names_differ(unique):
    """Two calls with the same word give two names that both contain it."""
    first, second = unique("orders"), unique("orders")
    assert first != second
    assert first.endswith("-orders")
    assert second.endswith("-orders")


def test_a_port_where_nobody_listens_is_named():
    """An absent broker is told apart at once, with its address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        why = brokers.silence(f"amqp://127.0.0.1:{port}/", 5672, b"AMQP")
    assert f"127.0.0.1:{port}" in why
    assert "refused" in why


def test_a_port_that_says_nothing_does_not_hang():
    """A listener that never answers is no broker, and finding that out takes two seconds at most."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        why = brokers.silence(f"redis://127.0.0.1:{mute.getsockname()[1]}", 6379, b"PING\r\n")
    assert "says nothing" in why
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("broker", [brokers.AMQP, brokers.REDIS, brokers.NATS], ids=lambda broker: broker.name)
@pytest.mark.broker
def test_a_live_broker_answers_its_greeting(broker):
    """The greeting used to find out whether a broker is there is one that it answers."""
    if reason := brokers.reason_to_skip(broker):
        pytest.skip(reason)
    assert brokers.silence(broker.url, broker.port, broker.hello) == ""


SKIPPING = """
    import pytest

    def test_that_skips():
        pytest.skip("the moon is down")

    @pytest.mark.xfail(reason="known")
    def test_that_is_expected_to_fail():
        assert False

    def test_with_a_broker(amqp_url):
        pass
"""

SKIPPING_WHOLE = """
    import pytest

    pytest.importorskip("a_module_that_is_not_there")
"""


def _run_tests(folder: Path, source: str, *options: str, require: str) -> str:
    lines = source.splitlines()
    (folder / "test_inner.py").write_text("\n".join(line.removeprefix("    ") for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", *options, str(folder)]
    environment = {**os.environ, "RTOBS_TEST_REQUIRE": require, "RTOBS_TEST_AMQP": "amqp://127.0.0.1:1/"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False)
    return done.stdout + done.stderr


def _counts(output: str) -> dict[str, int]:
    last = output.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last.split(" in ")[0])}


def test_a_skip_is_a_skip_by_default(tmp_path):
    """Without a broker a newcomer's run skips with a reason that says what to do, and stays green."""
    output = _run_tests(tmp_path, SKIPPING, require="")
    assert _counts(output) == {"skipped": 2, "xfailed": 1}
    assert "RabbitMQ does not answer (127.0.0.1:1: Connection refused); run `make brokers`" in output


def test_a_skip_is_a_failure_where_nothing_may_be_skipped(tmp_path):
    """RTOBS_TEST_REQUIRE=all fails every skipped test with its reason; an expected failure stays one."""
    output = _run_tests(tmp_path, SKIPPING, require="all")
    assert _counts(output) == {"failed": 1, "error": 1, "xfailed": 1}
    assert "the moon is down" in output
    assert "RabbitMQ does not answer" in output


def test_a_file_that_skips_itself_is_a_failure_too(tmp_path):
    """A whole file that is skipped while it is imported does not pass unseen either."""
    assert _counts(_run_tests(tmp_path, SKIPPING_WHOLE, require="")) == {"skipped": 1}
    output = _run_tests(tmp_path, SKIPPING_WHOLE, require="all")
    assert "a_module_that_is_not_there" in output
    assert "skipped" not in _counts(output)


def test_asking_for_a_broker_marks_the_test(tmp_path):
    """A test that uses a broker's fixture is left out by `-m "not broker"` though nobody marked it."""
    output = _run_tests(tmp_path, SKIPPING, "-m", "not broker", require="")
    assert _counts(output) == {"skipped": 1, "xfailed": 1, "deselected": 1}
