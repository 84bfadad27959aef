"""SQS and SNS on this machine: moto's server in a process of its own, so that its objects are not the tests'."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx

from tests.support.http import free_port
from tests.support.timing import wait_until

_START = 30.0  # seconds; two on an idle machine
ACCOUNT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "eu-west-1"}
"""What every client takes from the environment."""


@contextlib.contextmanager
def serving(folder: Path) -> Generator[str, None, None]:
    """Run the server; yield its address."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "moto.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            start_new_session=True,  # so that Ctrl-C reaches the tests only
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(url), _START)
        assert process.poll() is None, f"moto ended: {log.read_text(errors='replace')[-2000:]}"
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/data.json", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
