"""A Prometheus server of a test's own: a free loopback port, its own data, one target, scraped every second."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.timing import wait_until

_START = 30.0  # seconds; one on an idle machine
_STOP = 10.0

_SETTINGS = """\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: rtobs
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


def binary() -> str | None:
    """Return the server's program, or None where Prometheus is not installed."""
    return shutil.which("prometheus")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class OwnPrometheus:
    """One private server that scrapes one port of this machine; use it as a context manager."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(_SETTINGS.format(port=target), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = binary()
        assert program is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--enable-feature=exemplar-storage",
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches the tests only
            )
        try:
            wait_until(self._ready, _START)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        process.kill()
        process.wait()

    def _ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"Prometheus has ended:\n{(self._folder / 'log').read_text(errors='replace')[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, path: str, **parameters: Any) -> Any:
        """Return the data of one call of its HTTP API."""
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def values(self, query: str, *labels: str) -> dict[Any, float]:
        """Return an instant query's values by one label, or by tuples of several."""
        found = {}
        for series in self.ask("query", query=query)["result"]:
            key = tuple(series["metric"].get(label, "") for label in labels)
            found[key[0] if len(labels) == 1 else key] = float(series["value"][1])
        return found
