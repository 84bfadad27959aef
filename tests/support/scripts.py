"""Programs that tests run in a process of their own: what they print as their last line is what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without any OpenTelemetry variable, and with *variables*."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTEST_"))}
    return {**plain, "PYTHONWARNINGS": "error", **variables}


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )


def found(code: str, **variables: str) -> Any:
    """Run a program that must succeed; return its last line of output, which is JSON."""
    done = run(code, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
