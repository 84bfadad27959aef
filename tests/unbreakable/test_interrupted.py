"""Interrupted: a signal handler of the host's measures hops in the middle of others; a host has no stack left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from tests.support import scripts
from tests.support import telemetry as support
from tests.support.timing import scaled

PROGRAM = """
import json, logging, signal, sys, time

import rtobs
from rtobs import _guard

rtobs.configure(service="interrupted")
made = [0, 0]
within = False


def journey(who):
    number = made[who] = made[who] + 1
    with rtobs.accept(f"/orders/{number % 500}") as hop:
        hop.segment(tenant=f"tenant-{number}", region=f"region-{number % 50}")
        hop.intend("push")
        hop.note(number=number)
        hop.event(f"ordered-{number % 100}")
        with rtobs.publish(f"queue-{number % 100}") as out:
            headers = out.headers
    with rtobs.consume("orders", headers=headers, trust="trusted"), rtobs.stage(f"stage-{number % 100}"):
        try:
            with rtobs.deliver("push", f"provider-{number % 50}"):
                if number % 7 == 0:
                    raise ConnectionError
        except ConnectionError:
            pass
    with rtobs.consume("orders", headers={"traceparent": "bad"}):
        pass


def handler(number, frame):
    journey(1)
    signal.setitimer(signal.ITIMER_REAL, 0.002)


signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0001)  # while the rooms are bound, too
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until or made[0] < 200 or made[1] < 100:
    journey(0)
signal.setitimer(signal.ITIMER_REAL, 0)
faults = {values[0]: n for (name, values), n in _guard.tallies().items() if name == "rtobs.internal.errors"}
print(json.dumps({"made": made, "faults": faults}))
"""


@pytest.mark.slow
def test_a_signal_handler_may_measure_in_the_middle_of_anything() -> None:
    """A handler that interrupts rtobs anywhere, hundreds of times, and measures hops itself waits for no lock."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(scaled(2))], capture_output=True, text=True, timeout=50, check=False,
        cwd=scripts.ROOT, env=scripts.environment(OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["faults"] == {}
    assert found["made"][1] >= 100


def _at_depth(left: int, work: object) -> None:
    """Call *work* with so many frames left until Python's limit."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1

    def deeper(more: int) -> None:
        if more:
            deeper(more - 1)
        else:
            work()

    deeper(sys.getrecursionlimit() - depth - left - 1)


@pytest.mark.parametrize("what", ["note", "stage", "consume", "deliver", "decorated"])
def test_a_host_at_the_limit_of_recursion_goes_on(what: str) -> None:
    """With sixteen frames left and more no RecursionError of ours comes out; what could not be measured is counted."""
    telemetry = support.start(strict=False)
    ran: list[int] = []

    @rtobs.deliver("push", "fcm")
    def decorated() -> None:
        ran.append(1)

    def opened(operation: object) -> None:
        with operation:
            ran.append(1)

    works = {
        "note": lambda: (rtobs.current().note(a=1), ran.append(1)),
        "stage": lambda: opened(rtobs.stage("x")), "consume": lambda: opened(rtobs.consume("x", headers={})),
        "deliver": lambda: opened(rtobs.deliver("push", "fcm")), "decorated": decorated,
    }  # fmt: skip
    tried = range(16, 66)
    with rtobs.accept("/deep"):
        for left in tried:
            _at_depth(left, works[what])
        assert len(ran) == len(tried)
    assert telemetry.count(names.INTERNAL_ERRORS) > 0 or what in ("note", "stage")  # these need less than there is
    assert engine.current() is None
    support.stop()
