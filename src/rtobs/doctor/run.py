"""Run: starts an application with the probe inside and returns what was seen.

Knows processes, files and one socket; what follows from what was seen is ``advice``'s.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rtobs.doctor import advice, probe

_START = Path(__file__).parent / "start"
_TIMEOUT = 3.0


class Report(NamedTuple):
    """What was seen of one run, and what is to be done."""

    command: tuple[str, ...]
    app_exit: int
    processes: tuple[dict[str, Any], ...]
    findings: tuple[advice.Finding, ...]
    notes: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """Return it as what ``doctor.schema.json`` describes."""
        return {
            "version": "rtobs/doctor/v1",
            "command": list(self.command),
            "app_exit": self.app_exit,
            "healthy": not self.findings,
            "clients": [client for process in self.processes for client in process["clients"]],
            "findings": [finding._asdict() for finding in self.findings],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return it as text."""
        told = [f"rtobs doctor: {' '.join(self.command)} ended with exit code {self.app_exit}"]
        for client in self.data()["clients"]:
            wrapped = "wrapped" if client["wrapped"] else "not wrapped"
            told.append(f"  client   {client['class']} x{client['number']}: {wrapped}")
        told += [f"  note     {note}" for note in self.notes]
        for finding in self.findings:
            told += [f"  {finding.about:<8} {finding.saw}", f"           fix: {finding.do}"]
        told.append("nothing to do" if not self.findings else f"{len(self.findings)} to do")
        return told


def run(command: Sequence[str], *, quiet: bool) -> Report:
    """Run *command* to its end; with *quiet* what it prints goes to standard error, as does what it complains of.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="rtobs-doctor-") as folder:
        path = os.pathsep.join(filter(None, (str(_START), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, probe.FOLDER: folder}
        with subprocess.Popen(command, env=environment, stdout=sys.stderr if quiet else None) as process:  # noqa: S603  the user's own
            status = _wait(process)
        seen = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))]
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    found = advice.findings(seen, _silence(endpoint), endpoint)
    if not seen:
        do = "give a command that runs Python, and let it end by itself or by SIGINT: a killed process tells nothing"
        found.append(advice.Finding("probe", "no process of the application told anything", do))
    return Report(tuple(command), status, tuple(seen), tuple(found), tuple(advice.notes(seen)))


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the application too; its end is worth waiting for
            process.send_signal(signal.SIGINT)


def _silence(endpoint: str) -> str:
    """Return why nobody listens at *endpoint*; empty where somebody does, or where there is none."""
    if not endpoint:
        return ""
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "localhost", port), _TIMEOUT):
            return ""
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
