"""Instructions per hop, counted by callgrind: the same on a busy machine, so they can be a gate.

``python -m tests.bench.instructions [row …]`` prints each row as a ratio to FLOOR. A row runs in a process of its own:
a warm-up, a mark, 500 hops, a mark; callgrind says what all threads together spent between the marks. What an export
thread does with the spans (ours and the SDK's) is inside: everything queued is flushed after every 100 hops.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench import tables
from tests.bench.process import NEVER, ROOT, NotMeasuredError, plain
from tests.bench.sink import Sink
from tests.bench.variants import ROWS

HOPS = 500
TIMEOUT = 300.0
"""Seconds for one row; it takes 5 on an idle machine."""
_ROWS_WORTH_A_PROCESS = 6
"""To start one takes as long as to measure three rows."""
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


class _Counter:
    """A process under callgrind that has imported everything and forks for each row."""

    def __init__(self, folder: str) -> None:
        valgrind = shutil.which("valgrind")
        if valgrind is None:
            raise NotMeasuredError("valgrind is not installed; run: apt-get install valgrind")
        self._folder = Path(folder)
        self._errors = (self._folder / "errors").open("w+")
        self._process = subprocess.Popen(
            [
                valgrind, "--quiet", "--tool=callgrind", "--dump-before=getppid",
                f"--callgrind-out-file={folder}/out.%p", sys.executable, "-m", "tests.bench.child",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env=plain({"PYTHONHASHSEED": "0", **NEVER}), start_new_session=True,
        )  # fmt: skip

    def count(self, name: str, hops: int) -> float:
        """Return instructions per hop of one row (per call site where the row is about one)."""
        row = ROWS[name]
        hops = -(-hops // row.block) * row.block
        if not row.sink:
            return self._count(name, hops, {})
        with Sink() as sink:
            found = self._count(name, hops, sink.environment)
            arrived, made = sink.take(), 2 * (hops + row.block)
            if arrived != made:
                raise NotMeasuredError(f"{name}: of {made} spans {arrived} arrived")
            return found

    def _count(self, name: str, hops: int, environment: Mapping[str, str]) -> float:
        row = ROWS[name]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"name": name, "hops": hops, "environment": {**row.environment, **environment}}
        watchdog = threading.Timer(TIMEOUT, self._kill)
        watchdog.start()
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        watchdog.cancel()
        told = json.loads(answer) if answer else {"pid": self._process.pid, "status": "ended, or took too long"}
        spent, bare = (_total(self._folder / f"out.{told['pid']}.{part}") for part in (2, 4))
        if told["status"] != 0 or spent is None:
            self._errors.seek(0)
            raise NotMeasuredError(f"{name}: status {told['status']}\n{self._errors.read()}")
        return (spent - (bare or 0)) / hops / row.calls

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the process, and the row it was at."""
        self._kill()
        self._process.communicate()
        self._errors.close()


def _total(part: Path) -> int | None:
    """Return the instructions of one part; None where there is no such part."""
    found = _TOTAL.search(part.read_text()) if part.exists() else None
    return int(found[1]) if found else None


def measure(names: Iterable[str], hops: int = HOPS) -> dict[str, float]:
    """Return instructions per hop of rows and of those that they are compared with."""
    wanted = {each: 0.0 for name in names for each in _with_references(name)}
    left = iter(tuple(wanted))  # shared: each thread takes the next one

    def work(folder: str) -> None:
        counter = _Counter(folder)
        try:
            for name in left:
                wanted[name] = counter.count(name, hops)
        finally:
            tuple(left)  # after a failure the others need not go on
            counter.stop()

    with contextlib.ExitStack() as stack:
        jobs = min(os.cpu_count() or 1, 1 + len(wanted) // _ROWS_WORTH_A_PROCESS)
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(jobs)]
        with ThreadPoolExecutor(len(folders)) as pool:
            list(pool.map(work, folders))
    return wanted


def _with_references(name: str) -> list[str]:
    found = [name]
    for each in found:
        found += [other for other in (ROWS[each].base, ROWS[each].over, "floor") if other and other not in found]
    return found[::-1]


def ratio(name: str, counted: Mapping[str, float]) -> float:
    """Return a row as a ratio to what it is measured against."""
    return counted[name] / counted[ROWS[name].base]


def rows(counted: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return what was counted, with all ratios."""
    found = []
    for name, instructions in counted.items():
        row = ROWS[name]
        told: dict[str, Any] = {
            "row": name, "what": row.what, "instructions": round(instructions), "base": row.base,
            "ratio": round(ratio(name, counted), 4), "of_floor": round(instructions / counted["floor"], 4),
        }  # fmt: skip
        if row.over:
            told |= {"over": row.over, "adds": round((instructions - counted[row.over]) / counted["floor"], 4)}
        found.append(told)
    return found


def main() -> None:
    """Print the rows asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"any of: {', '.join(ROWS)}")
    parser.add_argument("--hops", type=int, default=HOPS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    unknown = set(asked.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are: {', '.join(ROWS)}")
    found = rows(measure(asked.rows or list(ROWS), asked.hops))
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print("\n".join(tables.instructions(found)))


if __name__ == "__main__":
    main()
