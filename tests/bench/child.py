"""Rows measured in forked processes of one that has imported everything; started by ``instructions`` under callgrind.

A line of JSON on stdin names a row: it runs in a fork, for a process has one tracer provider and one configuration.
``os.getppid`` is called where the measured part begins and ends; callgrind writes down what was spent in between.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

import rtobs
from tests.bench.cases import seen
from tests.bench.variants import ROWS


def _run(name: str, hops: int, environment: Mapping[str, str]) -> None:
    """Warm up, then run the row between two marks; where there is a bare form of it, that too."""
    os.environ.update(environment)
    row = ROWS[name]
    case = row.prepare()
    for run in filter(None, (case.run, case.bare)):
        run(row.block)
        case.flush()
        before = seen()
        gc.collect()
        gc.freeze()  # one look of the collector at a whole process costs as much as fifty hops, or does not happen
        os.getppid()
        for _ in range(0, hops, row.block):
            run(row.block)
            case.flush()
        os.getppid()
        if run is case.run and case.spans is not None and seen() - before != case.spans * hops:
            raise AssertionError(f"{seen() - before} spans exported in {hops} hops, not {case.spans} each")


def _import_all() -> None:
    """Import what is otherwise imported at a first hop; under callgrind that takes ten times as long as the hops."""
    for absent in ("rich", "better_exceptions", "prometheus_client"):  # big, and nothing measured here uses them
        sys.modules[absent] = None  # type: ignore[assignment]
    for room in ("_telemetry", "_export"):
        for module in iter_modules([f"{rtobs.__path__[0]}/{room}"], f"rtobs.{room}."):
            if not module.name.endswith(".prometheus"):
                import_module(module.name)


def main() -> None:
    """Fork for each line; say which process it was and what became of it."""
    _import_all()
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _run(**asked)
                code = 0
            except BaseException:  # noqa: BLE001  the driver tells it
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"pid": pid, "status": status}), flush=True)


if __name__ == "__main__":
    main()
