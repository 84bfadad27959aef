"""A Prometheus server, and an Alertmanager, of a test's own: free loopback ports, their own data, this machine only."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.timing import wait_until

_START = 30.0  # seconds; one on an idle machine
_STOP = 10.0


def binary() -> str | None:
    """Return the server's program, or None where Prometheus is not installed."""
    return shutil.which("prometheus")


def alertmanager_binary() -> str | None:
    """Return Alertmanager's program, or None where it is not installed."""
    return shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class _Server:
    """One program with a web address and a folder of its own; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
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
            raise AssertionError(
                f"{type(self).__name__} has ended:\n{(self._folder / 'log').read_text(errors='replace')[-3000:]}"
            )
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class OwnPrometheus(_Server):
    """One private Prometheus that scrapes ports of this machine.

    Args:
        folder: where it keeps its data.
        targets: ports that it scrapes as the job "rtobs".
        interval: how often it scrapes.
        jobs: ports by further jobs.
        rules: files with its rules.
        alertmanager: port of the Alertmanager that hears of alerts; 0 = none does.
    """

    def __init__(
        self, folder: Path, *targets: int, interval: str = "1s", jobs: Mapping[str, Iterable[int]] | None = None,
        rules: Iterable[Path] = (), alertmanager: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(folder)
        scraped = {**({"rtobs": targets} if targets else {}), **(jobs or {})}
        settings = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "rule_files": [str(file) for file in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
                for job, ports in scraped.items()
            ],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
                if alertmanager
                else []
            },
        }
        (folder / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML

    def _command(self) -> list[str]:
        program = binary()
        assert program is not None
        return [
            program,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ]

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


class OwnAlertmanager(_Server):
    """One private Alertmanager with a configuration of the test's, as plain data."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder)
        (folder / "alertmanager.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML

    def _command(self) -> list[str]:
        program = alertmanager_binary()
        assert program is not None
        return [
            program,
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]
