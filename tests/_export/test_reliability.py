"""The rows of the reliability table that are the export pipeline's, with their numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests._export import load
from tests._export.matrix import AT_EXIT, MOMENTS, STATES
from tests._export.scripted import Collector
from tests.support import scripts
from tests.support.timing import SCALE, scaled

SLACK = 0.5 * max(1.0, SCALE)
"""Seconds that a shutdown may take beyond its timeout."""
LOST = ("refused", "dns", "blackhole", "drip", "reset", "429 long", "500", "garbage", "tls expired", "proxy 407")
"""States of a collector that takes nothing."""

Measured = Callable[..., None]


def cells(asked: list[dict[str, Any]], folder: Path, seconds: float, parallel: int = 8) -> list[dict[str, Any]]:
    """Run cells of the matrix, several at a time."""
    command = [sys.executable, "-m", "tests._export.matrix", str(folder), str(parallel)]
    done = subprocess.run(
        command, input="".join(f"{json.dumps(cell)}\n" for cell in asked), capture_output=True, text=True,
        cwd=scripts.ROOT, env=scripts.environment(), timeout=seconds, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(asked)
    return found


def wrong(cell: dict[str, Any]) -> list[str]:
    """Return what a cell shows against the promises."""
    found, reports = [], cell["reports"]
    if cell["late"] or len(reports) != (2 if cell["moment"] == "fork" else 1):
        found.append(f"{len(reports)} reports" + (", killed by the watchdog" if cell["late"] else ""))
    for what in ("spans", "logs"):
        emitted = sum(report["emitted"][what] for report in reports)
        dropped = sum(
            number for report in reports for key, number in report["dropped"].items() if key.startswith(f"{what}/")
        )
        queued = sum(report["queued"].get(what, 0) for report in reports)
        over = cell[what] + dropped + queued - emitted
        if not 0 <= over <= unanswered(cell, what):
            found.append(f"{emitted} {what} emitted, {cell[what]} exported, {dropped} dropped, {queued} queued")
        if queued:
            found.append(f"{queued} {what} queued after the end")
    if cell["twice"]:
        found.append(f"{cell['twice']} spans taken twice")
    for report in reports:
        if report["took"] > report["timeout"] + SLACK:
            found.append(f"a shutdown of {report['timeout']} s took {report['took']:.2f} s")
        found += [f"the host saw {error}" for error in report["errors"]]
        causes = Counter(cause(line) for line in report["lines"])
        found += [f"{number} lines about {line}" for line, number in causes.items() if number > 1]
        found += [f"said {number} times: {line}" for line, number in report["lines"].items() if number > 1]
        found += [f"somebody else said {line}" for line in report["lines"] if not line.startswith("rtobs: ")]
    return [f"{cell['state']}, {cell['moment']}: {one}" for one in found]


def unanswered(cell: dict[str, Any], what: str) -> int:
    """Return how much was sent without an answer before the end: the one thing that nobody can know about."""
    return sum(report["dropped"].get(f"{what}/unanswered", 0) for report in cell["reports"])


def cause(line: str) -> str:
    """Return what a log line is about."""
    if "could not be exported" in line:
        return line.partition("/v1/")[2].partition(": ")[2].partition(" (")[0] or line
    return "".join(letter for letter in line if not letter.isdigit())


def judge(found: list[dict[str, Any]], row: str, measured: Measured) -> None:
    """Print what a run of cells shows, and fail with all that is wrong."""
    faults = [fault for cell in found for fault in wrong(cell)]
    reports = [report for cell in found for report in cell["reports"]]
    emitted = sum(report["emitted"]["spans"] + report["emitted"]["logs"] for report in reports)
    over = max(report["took"] - report["timeout"] for report in reports)
    measured(
        row,
        f"{len(found)} cells, {emitted} spans and log events emitted, 0 unexplained but in {len(faults)} cells; "
        f"longest shutdown {over:+.2f} s beyond its timeout",
    )
    assert faults == []


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("minute")  # it begins here, and is judged further down
def test_r7_nothing_is_lost_unexplained(tmp_path: Path, measured: Measured) -> None:
    """R7: by the collector's own count, emitted = exported + dropped{reason} + queued, for spans and for log events."""
    # Every state with three of the nine moments, every moment with seven or eight of the 22 states.
    asked = [
        {"state": state, "moment": moment, "timeout": 0.7}
        for row, state in enumerate(STATES)
        for column, moment in enumerate(MOMENTS)
        if (row + column) % 3 == 0
    ]
    assert len({cell["state"] for cell in asked}) == len(STATES) == 22
    assert len({cell["moment"] for cell in asked}) == len(MOMENTS) == 9
    found = cells(asked, tmp_path, 280)
    judge(found, "R7", measured)
    for cell in found:  # the matrix tells states apart: what has to arrive does, what cannot does not
        if cell["state"] in LOST or cell["state"] in ("401", "503", "no thread", "exporter raises"):
            assert cell["spans"] == 0
        elif cell["moment"] in ("idle", "steady"):
            assert cell["spans"] > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_r7_nothing_is_lost_unexplained_in_any_cell(tmp_path: Path, measured: Measured) -> None:
    """R7, long form: all 198 cells."""
    asked = [{"state": state, "moment": moment, "timeout": 0.7} for state in STATES for moment in MOMENTS]
    judge(cells(asked, tmp_path, 1700), "R7 soak", measured)


@pytest.mark.timeout(200)
def test_r9_shutdown_keeps_its_time_in_every_state_with_a_full_queue(tmp_path: Path, measured: Measured) -> None:
    """R9: with a queue that is full and a collector that takes nothing, shutdown ends within its timeout and 0.5 s."""
    asked = [
        {"state": state, "moment": "queue full", "timeout": timeout}
        for timeout in (0, scaled(AT_EXIT))
        for state in LOST
    ]
    judge(cells(asked, tmp_path, 180, parallel=5), "R9", measured)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_r9_shutdown_keeps_a_long_time_too(tmp_path: Path, measured: Measured) -> None:
    """R9, long form: thirty seconds."""
    asked = [{"state": state, "moment": "queue full", "timeout": 30} for state in LOST]
    judge(cells(asked, tmp_path, 500, parallel=10), "R9 soak", measured)


# R8: outages ---------------------------------------------------------------------------------------------------------

OUTAGES = ("refused", "blackhole", "drip", "500", "429 long", "garbage", "reset")


class Outage:
    """One application and its collector, which goes away and comes back."""

    def __init__(self, state: str, rate: float, pace: float, timeout: float) -> None:
        self.state = state
        self.collector = Collector()
        self.collector.keep = False
        self.collector.start()
        environment = scripts.environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=self.collector.endpoint, OTEL_EXPORTER_OTLP_TIMEOUT=str(timeout),
            OTEL_BSP_SCHEDULE_DELAY=str(5000 * pace), OTEL_METRICS_EXPORTER="none", OTEL_SERVICE_NAME="outage",
            PYTHONPATH=str(scripts.ROOT),
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests._export.outage", str(rate), str(pace)], env=environment, cwd=scripts.ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.recovered = 0.0

    def hear(self) -> dict[str, Any]:
        """Return what it says next."""
        return json.loads(self._process.stdout.readline())

    def tell(self) -> None:
        """Let it go on."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def begin(self) -> None:
        """Wait until it has warmed up; take the collector away."""
        assert self.hear() == {"warm": True}
        if self.state == "refused":
            self.collector.pause()
        self.collector.state = self.state if self.state != "refused" else "reset"
        self.tell()
        assert self.hear() == {"outage": True}

    def end(self, patience: float) -> None:
        """Bring the collector back; wait for the first spans."""
        self.tell()
        assert self.hear() == {"back": True}
        before, begun = self.collector.spans.total(), time.monotonic()
        self.collector.resume()
        self.collector.state = "healthy"
        while self.collector.spans.total() == before and time.monotonic() - begun < patience:
            time.sleep(0.02)
        self.recovered = time.monotonic() - begun
        time.sleep(1.0)
        self.tell()

    def close(self) -> dict[str, Any]:
        """Return what it has found."""
        found = self.hear()
        self._process.communicate("\n", timeout=20)
        self.collector.stop()
        return found

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()


class Minute:
    """An outage in real time, beside the other tests: it takes long and little of the machine."""

    def __init__(self) -> None:
        self.outage = Outage("blackhole", 2000, 1.0, 10.0)
        self.found: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.outage.begin()
        time.sleep(60)
        self.outage.end(patience=90)
        self.found = self.outage.close()

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join(200)


@pytest.fixture(scope="module")
def minute() -> Generator[Minute]:
    """The outage in real time, which begins when the first test asks for it."""
    found = Minute()
    yield found
    found.outage.kill()
    found.wait()


def shown(one: Outage, name: str, found: dict[str, Any], back: float, measured: Measured) -> list[str]:
    """Print what an outage has shown, and return what is wrong with it."""
    dropped = sum(number for key, number in found["dropped"].items() if key.startswith("spans/"))
    arrived = one.collector.spans
    measured(
        f"R8 {name}",
        f"{found['made']} hops, {arrived.total()} arrived, {dropped} dropped; memory {found['growth'] / 2**20:+.1f} "
        f"MiB; in our calls p50 {found['p50'] * 1e6:.0f} us, p99 {found['p99'] * 1e6:.0f} us of {found['calls']}; "
        f"back after {one.recovered:.1f} s; {len(found['lines'])} different lines",
    )
    faults = [f"{name}: {number} times a minute: {text}" for text, _, number in found["lines"] if number > 1]
    over = arrived.total() + dropped - found["made"]
    if not 0 <= over <= found["dropped"].get("spans/unanswered", 0) or len(arrived) != arrived.total():
        faults.append(f"{name}: {found['made']} made, {arrived.total()} arrived, {dropped} dropped")
    if found["growth"] > 32 << 20:
        faults.append(f"{name}: {found['growth']} bytes more memory")
    if found["p99"] > 0.001:
        faults.append(f"{name}: p99 of {found['p99']} s inside our calls")
    if one.recovered > back + 2 * SLACK:
        faults.append(f"{name}: came back after {one.recovered} s")
    return faults


@pytest.mark.timeout(200)
def test_r8_an_outage_costs_neither_memory_nor_time_and_ends(measured: Measured) -> None:
    """R8: whatever a lost collector does, memory stays bounded, our calls quick, lines few, and it is found again."""
    # Each state in a process of its own, whose waits are a tenth as long as they are as a rule.
    outages = [Outage(state, 200, 0.1, 1.0) for state in OUTAGES]
    for one in outages:
        one.begin()
    time.sleep(scaled(12))
    for one in outages:
        one.end(patience=30)
    faults = [fault for one in outages for fault in shown(one, one.state, one.close(), 3.5 + 1.0, measured)]
    assert faults == []


@pytest.mark.timeout(300)
def test_r8_an_outage_of_a_minute(minute: Minute, measured: Measured) -> None:
    """R8 in real time: a collector that does not answer for a minute, at 2,000 hops a second."""
    minute.wait()
    assert shown(minute.outage, "blackhole for a minute", minute.found, 35.0 + 10.0, measured) == []


# R6: load ------------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_r6_a_steady_load_is_exported_whole(measured: Measured) -> None:
    """R6: at 70 % of its rate without drops, which is 2.5 times the SDK's or more, nothing is dropped or sent twice."""
    # Rates are compared by processor time, for two sides do not find the machine equally busy with other things; the
    # sides take turns, and of each the best turn counts, for being disturbed only ever makes one worse.
    found: dict[str, list[dict[str, Any]]] = {"sdk": [], "through": [], "ours": []}
    for _ in range(3):
        for side, rates in found.items():
            rates.append(load.measured("rate", side, scaled(3)))
    sdk, through, ours = (max(one["spans_per_cpu_second"] for one in found[side]) for side in found)
    rate = min(one["spans_per_second"] for one in found["ours"])
    steady = load.measured("steady", "ours", 0.7 * rate, scaled(60))
    arrived = steady["received"]
    measured(
        "R6",
        f"{ours} spans of full hops for a second of processor time; the SDK makes and exports {sdk} bare ones: "
        f"{ours / sdk:.1f} times; the same hops through the SDK's exporter {through}: {ours / through:.1f} times; "
        f"{0.7 * rate:.0f} spans/s for {steady['took']:.0f} s: {steady['made']} made, {arrived['spans']} arrived, "
        f"{steady['dropped']} dropped, {arrived['spans'] - arrived['different']} twice; processor "
        f"{steady['cpu_average']:.0%} on average, {steady['cpu_peak']:.0%} at most; {steady['peak_rss_mib']} MiB",
    )
    assert all(one["dropped"] == 0 for one in found["ours"])
    assert steady["dropped"] == 0
    assert arrived["different"] == arrived["spans"] == steady["made"] + 2  # and the first hop, which starts everything
    assert ours >= 2.5 * sdk


# R11: forks ----------------------------------------------------------------------------------------------------------

FORKING = r"""
import json, os, random, signal, sys, threading, time
import rtobs
from rtobs import _config, _guard

forks = int(sys.argv[1])
made = [0] * 8
going, counted = threading.Event(), threading.Lock()
going.set()

def emit(number):
    while going.is_set():
        with rtobs.accept("/orders"):
            with rtobs.stage("x"):
                pass
        made[number] += 2
        time.sleep(0.002)

def hold():
    while going.is_set():
        bound = _config._bound
        for lock in (bound.pipeline._wake, bound.registry.lock, _guard._lock):
            with lock:
                time.sleep(0.001)

with rtobs.accept("/first"):
    pass
threads = [threading.Thread(target=emit, args=(number,)) for number in range(8)] + [threading.Thread(target=hold)]
for thread in threads:
    thread.start()

def dropped():
    return sum(n for (name, (signal, _)), n in _guard.tallies().items() if name == "rtobs.telemetry.dropped"
               and signal == "spans")

hear, tell = os.pipe()
children, bad = [], 0
for number in range(forks):
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        with rtobs.accept("/child"):
            pass
        rtobs.shutdown(5)
        os.write(tell, b"%d\n" % dropped())
        os._exit(0)
    children.append(pid)
    if len(children) >= 6:
        bad += os.waitpid(children.pop(0), 0)[1] != 0
for pid in children:
    bad += os.waitpid(pid, 0)[1] != 0
going.clear()
for thread in threads:
    thread.join()
rtobs.shutdown(10)
os.close(tell)
with os.fdopen(hear) as told:
    lost = [int(line) for line in told]
print(json.dumps({"bad": bad, "made": sum(made) + 1, "children": len(lost), "dropped": dropped() + sum(lost)}))
"""


def forked(forks: int, seconds: float, measured: Measured) -> None:
    """Fork so often while threads emit and locks are held; judge what arrived."""
    with Collector() as collector:
        done = subprocess.run(
            [sys.executable, "-c", FORKING, str(forks)], capture_output=True, text=True, timeout=seconds, check=False,
            cwd=scripts.ROOT,
            env=scripts.environment(
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_METRICS_EXPORTER="none",
                OTEL_BSP_SCHEDULE_DELAY="50", PYTHONWARNINGS="ignore::DeprecationWarning",
            ),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        arrived = collector.spans
    made = found["made"] + forks
    measured(
        "R11",
        f"{forks} forks under load: {found['bad']} children hung or failed; {made} spans made, {arrived.total()} "
        f"arrived, {found['dropped']} dropped, {arrived.total() - len(arrived)} twice",
    )
    assert found["bad"] == 0
    assert found["children"] == forks
    assert arrived.total() == len(arrived)
    assert arrived.total() + found["dropped"] == made


@pytest.mark.timeout(120)
def test_r11_forks_neither_hang_nor_send_twice(measured: Measured) -> None:
    """R11: 200 forks while eight threads emit and locks are held: no child hangs, every span arrives once."""
    forked(200, 110, measured)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_r11_a_thousand_forks(measured: Measured) -> None:
    """R11, long form."""
    forked(1000, 590, measured)
