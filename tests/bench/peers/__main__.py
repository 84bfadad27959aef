"""Make each peer's environment and measure in it: ``python -m tests.bench.peers [environment …]``.

Environments are in ``.venv/peers`` and made once for what they hold. The result is kept in ``results/peers.json`` if
all were measured, and ``docs/benchmarks.md`` is written again from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import page, tables
from tests.bench.peers import common
from tests.bench.process import ROOT, NotMeasuredError, result
from tests.bench.run import machine

ENVIRONMENTS = {
    "aio_pika": (
        "aio-pika==10.2.1", "opentelemetry-instrumentation-aio-pika==0.66b1", "opentelemetry-sdk==1.45.1",
        "--editable", str(ROOT),
    ),
    "faststream": ("faststream[rabbit,otel,prometheus]==0.7.8", "opentelemetry-sdk==1.45.1"),
    "ddtrace": ("ddtrace==4.16.0", "opentelemetry-sdk==1.45.1"),
    "sentry": ("sentry-sdk==2.75.0", "opentelemetry-sdk==1.45.1"),
    "logfire": ("logfire==5.2.0",),
}  # fmt: skip
"""What each environment holds: the newest versions when they were last measured."""

FEWER_HOPS = {"faststream": 250}
"""Its test broker alone takes a millisecond and more for a hop."""

SETTINGS = {"DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_DATA_STREAMS_ENABLED": "true"}


def prepare(name: str) -> str:
    """Return the Python of an environment, made where it is missing or holds something else."""
    folder = Path(sys.prefix) / "peers" / name
    wanted, made, python = json.dumps(ENVIRONMENTS[name]), folder / "made", str(folder / "bin" / "python")
    if made.exists() and made.read_text() == wanted:
        return python
    print(f"making the environment of {name} …", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    uv = Path(sys.prefix) / "bin" / "uv"
    install = [str(uv), "pip", "install", "--python", python] if uv.exists() else [python, "-m", "pip", "install"]
    done = subprocess.run([*install, "--quiet", *ENVIRONMENTS[name]], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotMeasuredError(f"{name}: {' '.join(ENVIRONMENTS[name])} cannot be installed\n{done.stderr}")
    made.write_text(wanted)
    return python


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Measure the peers of one environment."""
    often = ("2", "100") if quick else (str(common.ROUNDS), str(FEWER_HOPS.get(name, common.HOPS)))
    python = prepare(name)
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    return {"environment": name, **result(f"peers.{name}", *often, environment=SETTINGS, python=python)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environments", nargs="*", choices=[*ENVIRONMENTS, []], metavar="environment")
    parser.add_argument("--quick", action="store_true", help="a smoke run, whose numbers mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    try:
        found = [measure(name, quick=asked.quick) for name in asked.environments or ENVIRONMENTS]
    except NotMeasuredError as error:
        sys.exit(str(error))
    told = {
        "date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(), "machine": machine(),
        "environments": found,
    }  # fmt: skip
    if not asked.environments and not asked.quick:
        page.PEERS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        if page.BENCH.exists():
            page.write()
    print(json.dumps(told, indent=1, ensure_ascii=False) if asked.json else "\n".join(tables.peers(told)))


if __name__ == "__main__":
    main()
