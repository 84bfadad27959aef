"""Parts of the bench in processes of their own, with an environment in which nothing of OpenTelemetry is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 600
NEVER = {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
"""Milliseconds; for parts that flush by hand."""


class NotMeasuredError(Exception):
    """Something could not be measured; says why."""


def plain(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would configure OpenTelemetry or rtobs, and with *added*."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RTOBS_", "DD_"))}
    brokers = {key: value for key, value in os.environ.items() if key.startswith("RTOBS_TEST_")}
    return {**kept, **brokers, **(added or {})}


def result(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, python: str = sys.executable
) -> Any:
    """Run ``tests.bench.<module>`` and return what its last line of JSON says.

    Raises:
        NotMeasuredError: it failed or took longer than ten minutes.
    """
    command = [python, "-m", f"tests.bench.{module}", *arguments]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, env=plain(environment), timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasuredError(f"{' '.join(command)}: not done after {TIMEOUT} s") from error
    if done.returncode:
        raise NotMeasuredError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
