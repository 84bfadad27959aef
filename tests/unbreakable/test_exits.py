"""R10: however a process ends, what had finished arrives or is known to be lost, and the end is as it would have been.

Real processes, real signals, real OTLP: the collector is in this process, what ends is in others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest

from rtobs._export.pipeline import QUEUE_LIMIT
from tests._export.scripted import Collector
from tests.support import scripts
from tests.support.timing import SCALE, scaled
from tests.unbreakable import figures

FINISHED = 700
"""More than wakes the export thread, less than it takes at once."""
SLACK = 0.5 * max(1.0, SCALE)
"""Seconds that the end of a process may take beyond the timeout."""

BEGIN = """
import asyncio, atexit, json, multiprocessing, os, signal, sys, threading, time
def work(count={finished}):
    pass
"""
OURS = """
import rtobs
rtobs.configure(sigterm={sigterm})
def work(count={finished}):
    for _ in range(count):
        with rtobs.accept("/orders"):
            pass
"""


def program(ours: bool, code: str, *, sigterm: bool = False) -> str:
    """Return a program with or without rtobs."""
    return (BEGIN + (OURS if ours else "")).format(finished=FINISHED, sigterm=sigterm) + code


def run(ours: bool, code: str, *, sigterm: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it; a fork under threads warns on newer versions of Python, which is the host's business."""
    variables = {"PYTHONWARNINGS": "error,ignore::DeprecationWarning", **variables}
    return scripts.run(program(ours, code, sigterm=sigterm), **variables)


# Every way to end ----------------------------------------------------------------------------------------------------

ENDS = {
    "end": "work()",
    "sys.exit": "work(); sys.exit(3)",
    "exception": "work(); raise RuntimeError('the host')",
    "sigint": "work(); os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
    "sigint in asyncio": "async def main():\n work(); os.kill(os.getpid(), signal.SIGINT); await asyncio.sleep(10)\n"
                         "asyncio.run(main())",
    "sys.exit in a thread": "t = threading.Thread(target=lambda: (work(), sys.exit(3))); t.start(); t.join()",
    "a thread that goes on after the main one": "threading.Thread(target=lambda: (time.sleep(.3), work())).start()",
    "in the host's own atexit": "atexit.register(work)",
    "os._exit after shutdown": "work()\nif 'rtobs' in sys.modules: rtobs.shutdown()\nos._exit(5)",
    "execv after shutdown": "work()\nif 'rtobs' in sys.modules: rtobs.shutdown()\n"
                            "os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(4)'])",
    "a forked child that ends": "pid = os.fork()\nif pid == 0: work(); sys.exit(6)\n"
                                "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    "a grandchild": "if os.fork() == 0:\n if os.fork() == 0: work(); sys.exit(0)\n os.wait(); sys.exit(0)\n"
                                 "os.wait()",
    "a multiprocessing child": "p = multiprocessing.get_context('fork').Process(target=work); p.start(); p.join()\n"
                                    "sys.exit(p.exitcode)",
    "a pool of multiprocessing": "with multiprocessing.get_context('fork').Pool(1) as pool:\n pool.apply(work)\n"
                                 " pool.close(); pool.join()",
}  # fmt: skip


@pytest.mark.parametrize("way", ENDS)
def test_r10_an_end_that_is_no_accident_loses_nothing(way: str) -> None:
    """R10: what had finished arrives once; exit code and output are what they would have been without rtobs."""
    with Collector() as collector:
        done = run(True, ENDS[way], OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        assert (collector.spans.total(), len(collector.spans)) == (FINISHED, FINISHED), done.stderr
    plain = run(False, ENDS[way])
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    assert done.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]
    figures.record("R10", f"{FINISHED} of {FINISHED} finished hops arrived, exit code unchanged", way)


# SIGTERM -------------------------------------------------------------------------------------------------------------

HANDLED = """
def handler(number, frame):
    work(10)
    print("handled", number, frame is not None)
    sys.exit(7)
signal.signal(signal.SIGTERM, handler)
"""
LOOP = """
async def main():
    stop = asyncio.Event()
    {before}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    {after}
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    work(10)
    print("stopped by the loop")
asyncio.run(main())
"""
KILL = "work(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(.2)"
AGAIN = "'rtobs' in sys.modules and rtobs.configure(sigterm=True)"
TERMS = {
    "nobody": ("", KILL, 0),
    "a handler": (HANDLED, KILL, 10),
    "ignored": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", f"{KILL}; work(10); print('on')", 10),
    "a loop, before": ("", f"work()\n{LOOP.format(before=AGAIN, after='')}", 10),
    "a loop, after": ("", f"work()\n{LOOP.format(before='', after=AGAIN)}", 10),
    "twice configured": ("", f"{AGAIN}\n{KILL}", 0),
}


@pytest.mark.parametrize("who", TERMS)
def test_r10_sigterm_does_what_it_did_before(who: str) -> None:
    """R10: with ``sigterm=True`` everything finished arrives, and the process ends exactly as it did without us."""
    before, after, more = TERMS[who]
    with Collector() as collector:
        # What the host has set up is there before `configure` is called.
        code = BEGIN.format(finished=0) + before + OURS.format(finished=FINISHED, sigterm=True) + after
        done = scripts.run(code, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        plain = scripts.run(BEGIN.format(finished=0) + before + after)
        found = collector.spans
        assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)
        assert found.total() == len(found) == FINISHED + more
    figures.record("R10", "every finished hop arrived, wait status and output unchanged", f"SIGTERM {who}")


def test_r10_signals_are_left_alone_unless_asked() -> None:
    """R10: without ``sigterm=True`` no signal's handler changes, and with it only that of SIGTERM."""
    code = """
    import json, signal
    def handlers():
        return {number.name: repr(signal.getsignal(number)) for number in signal.valid_signals()
                if isinstance(number, signal.Signals)}
    before = handlers()
    import rtobs
    rtobs.configure()
    with rtobs.accept("/orders"):
        pass
    same = handlers()
    rtobs.configure(sigterm=True)
    after = handlers()
    print(json.dumps([before == same, [name for name in before if before[name] != after[name]]]))
    """
    assert scripts.found(code) == [True, ["SIGTERM"]]


# shutdown, from everywhere at once -----------------------------------------------------------------------------------


def test_r10_shutdown_is_the_same_from_everywhere() -> None:
    """R10: called from eight threads, a coroutine and a signal handler at once, nothing hangs or is sent twice."""
    code = """
took, results = [], []
def stop(timeout=5.0):
    begun = time.monotonic()
    results.append(rtobs.shutdown(timeout))
    took.append(time.monotonic() - begun)
work()
signal.signal(signal.SIGALRM, lambda *_: stop())
threads = [threading.Thread(target=stop) for _ in range(8)]
async def main():
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    stop()
    await asyncio.to_thread(stop)
    await asyncio.sleep(0.01)
asyncio.run(main())
for thread in threads:
    thread.join()
stop(0)
work(5)  # nothing is measured after the end, and nothing breaks
print(json.dumps([len(took), max(took), results[-1]]))
"""
    with Collector() as collector:
        done = run(True, code, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        assert done.returncode == 0, done.stderr
        calls, longest, last = json.loads(done.stdout)
        assert (collector.spans.total(), len(collector.spans)) == (FINISHED, FINISHED)
    assert (calls, last) == (12, True)
    assert longest < 5.0 + SLACK


STORM = """
made = 0
def stop(*_):
    rtobs.shutdown(5)
    sys.exit(0)
def child(number):
    global made
    pid = os.fork()
    if pid:
        return pid
    atexit.register(lambda: os.write(tell, b"%d\\n" % made))
    signal.signal(signal.SIGALRM, stop)
    while True:
        with rtobs.accept("/orders") as hop:
            hop.event("order.paid")
        made += 1
        if made == 50:
            signal.setitimer(signal.ITIMER_REAL, 0.001 + number * 0.00013)
hear, tell = os.pipe()
begun = time.monotonic()
waiting = []
work(1)  # so that children need not begin with everything
ends = []
for number in range({children}):
    waiting.append(child(number))
    if len(waiting) == 4:
        ends.append(os.waitpid(waiting.pop(0), 0)[1])
ends += [os.waitpid(pid, 0)[1] for pid in waiting]
os.close(tell)
with os.fdopen(hear) as told:
    made = [int(line) for line in told]
print(json.dumps({{"ends": sorted(set(ends)), "made": made, "took": time.monotonic() - begun}}))
"""


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_r10_a_signal_handler_may_shut_down_in_the_middle_of_a_hop() -> None:
    """R10: whatever line of ours a signal interrupts, a host's handler calling ``shutdown`` neither hangs nor loses."""
    children = 30
    with Collector() as collector:
        done = run(
            True, STORM.format(children=children), OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_METRICS_EXPORTER="none",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        arrived = collector.spans
    assert found["ends"] == [0]
    assert len(found["made"]) == children
    assert min(found["made"]) >= 49
    # The hop that the signal fell into ends with the handler's SystemExit and counts too, if it had begun.
    assert arrived.total() == len(arrived)
    assert 0 <= arrived.total() - sum(found["made"]) - 1 <= children
    assert found["took"] / children < 5.0
    figures.record("R10", f"{children} interrupted in the middle of work: 0 hung, {sum(found['made'])} hops finished, "
                          f"0 of them lost", "shutdown in a signal handler")  # fmt: skip


# A collector that is not there ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_r10_a_dead_collector_delays_the_end_by_no_more_than_the_timeout() -> None:
    """R10: with a collector that takes nothing, a process ends within 5 s and a half, or within its own timeout."""
    ways = {
        "end": ("begun = time.monotonic()", 5.0),
        "shutdown(1)": ("begun = time.monotonic(); rtobs.shutdown(1)", 1.0),
        "shutdown(0)": ("begun = time.monotonic(); rtobs.shutdown(0)", 0.0),
    }  # fmt: skip
    begin = "import atexit, time\natexit.register(lambda: print(time.monotonic() - begun, flush=True))\n"
    over: dict[tuple[str, str], float] = {}
    for way, (end, timeout) in ways.items():
        with ExitStack() as opened:
            running: dict[str, subprocess.Popen[str]] = {}
            for state in ("blackhole", "500", "drip"):
                collector = opened.enter_context(Collector(state))
                running[state] = subprocess.Popen(
                    [sys.executable, "-c", begin + program(True, f"work()\ntime.sleep(.3)\n{end}")],
                    env=scripts.environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint), cwd=scripts.ROOT,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                opened.callback(running[state].__exit__, None, None, None)
                opened.callback(running[state].kill)
            for state, process in running.items():
                out, err = process.communicate(timeout=100)
                assert (process.returncode, err) == (0, ""), (state, way)
                over[state, way] = float(out) - timeout
    assert {key: by for key, by in over.items() if by > SLACK} == {}
    figures.record("R10", f"{len(over)} ends, the longest {max(over.values()):+.2f} s beyond its timeout",
                   "dead collector")  # fmt: skip


# Ends that leave no time ---------------------------------------------------------------------------------------------

SUDDEN = """
made = 0
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    work(10)
    made += 10
    time.sleep(0.005)
print(made, flush=True)
{end}
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["os._exit", "SIGKILL"])
def test_r10_what_no_library_can_save_is_bounded(end: str, request: pytest.FixtureRequest) -> None:
    """R10: ``os._exit`` and SIGKILL lose what waits in the queue, never more; what was taken before is there, once."""
    with Collector() as collector:
        code = SUDDEN.format(seconds=scaled(3), end=end)
        done = run(True, code, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        made, arrived = int(done.stdout), collector.spans
        assert done.returncode == run(False, SUDDEN.format(seconds=0, end=end)).returncode
    assert arrived.total() == len(arrived) > 0
    lost = made - arrived.total()
    assert 0 <= lost <= QUEUE_LIMIT
    figures.record("R10", f"{lost} of {made} hops lost, {QUEUE_LIMIT} would be the most", request.node.callspec.id)
