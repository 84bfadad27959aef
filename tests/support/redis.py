"""A Redis cluster of a test's own: one node that has all slots."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import redis

from tests.support import brokers
from tests.support.timing import wait_until

PLACES = ("/usr/bin/redis-server", "/usr/local/bin/redis-server", "/opt/homebrew/bin/redis-server")

_START = 15.0  # seconds; a tenth of one on an idle machine
_STOP = 10.0
_SLOTS = 16384
_BUS = 10_000
"""A node talks to other nodes on its port plus this one, so the port must be small."""


def binary() -> str | None:
    """Return the server's program, or None where Redis is not installed."""
    return shutil.which("redis-server") or next((place for place in PLACES if os.access(place, os.X_OK)), None)


def _free_port() -> int:
    for port in range(20_000 + os.getpid() % 10_000, 50_000):
        here = ("127.0.0.1", port), ("127.0.0.1", port + _BUS)
        with contextlib.suppress(OSError), socket.create_server(here[0]), socket.create_server(here[1]):
            return port
    message = "no two free ports on 127.0.0.1"
    raise OSError(message)


class OwnCluster:
    """One private node in cluster mode; it keeps nothing on disk that outlives it."""

    def __init__(self, folder: Path) -> None:
        program = binary()
        if program is None:
            message = f"Redis is not installed: no redis-server on the path, none of {', '.join(PLACES)}"
            raise FileNotFoundError(message)
        self._program = program
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the node and return when the cluster is complete; else show its log."""
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        log = self._folder / "log"
        self._process = subprocess.Popen(
            [self._program, *settings, "--cluster-enabled", "yes", "--logfile", str(log)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches the tests only
        )
        try:
            wait_until(lambda: not brokers.silence(self.url, self.port, brokers.REDIS.hello), _START)
            with redis.Redis(port=self.port) as node:
                node.execute_command("CLUSTER ADDSLOTSRANGE", 0, _SLOTS - 1)
                wait_until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok", _START)
        except AssertionError as error:
            self.stop()
            message = f"Redis did not start: {error}\n{log.read_text(errors='replace')[-3000:]}"
            raise AssertionError(message) from error
        except BaseException:  # Ctrl-C, a test's timeout
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the node down as its operator would."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        process.kill()
        process.wait()
