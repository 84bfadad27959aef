"""Hears Alertmanager: one incident of one service at a time, from its first alert to the end of its last one.

``Inbox`` keeps what is open; ``serve`` is the web server that Alertmanager posts to. Must not know Prometheus or files.
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from rtobs.errors import ConfigError
from rtobs.incident.facts import Alert, from_webhook
from rtobs.incident.gather import of_service
from rtobs.slo.model import Declaration

MOST_ALERTS: Final = 1000
"""Alerts of one incident that are kept; an incident with more is told by these."""
_MOST_BYTES: Final = 4 * 1024 * 1024
_PATIENCE: Final = 10.0
"""Seconds in which a post has to arrive."""


@dataclass(slots=True)
class Incident:
    """What was heard of one incident."""

    name: str
    alerts: dict[tuple[tuple[tuple[str, str], ...], float], Alert] = field(
        default_factory=dict[tuple[tuple[tuple[str, str], ...], float], Alert]
    )

    @property
    def over(self) -> bool:
        """Whether all of its alerts have ended."""
        return all(alert.until is not None for alert in self.alerts.values())


class Inbox:
    """Puts alerts that are heard one after the other together to incidents of one service."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._open: Incident | None = None

    def hear(self, alerts: Iterable[Alert]) -> Incident | None:
        """Return the incident that *alerts* belong to; None where they are about another service.

        An incident that is over is forgotten here: the next alert begins another.
        """
        ours = of_service(alerts, self._declaration)
        if not ours:
            return None
        incident = self._open or Incident(name_of(self._declaration.service, min(alert.since for alert in ours)))
        for alert in ours:
            key = tuple(sorted(alert.labels.items())), alert.since
            if key in incident.alerts or len(incident.alerts) < MOST_ALERTS:
                incident.alerts[key] = alert
        self._open = None if incident.over else incident
        return incident

    def again(self, incident: Incident) -> None:
        """Open *incident* again: what was heard could not be written down, and will be heard once more."""
        self._open = incident


def name_of(service: str, begin: float) -> str:
    """Return the name of an incident's files."""
    moment = datetime.fromtimestamp(begin, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{moment}-{re.sub(r'[^A-Za-z0-9_-]+', '-', service)[:60]}"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever hung up in the middle will post again."""


def serve(
    host: str, port: int, hear: Callable[[tuple[Alert, ...]], None], refused: Callable[[str], None]
) -> http.server.ThreadingHTTPServer:
    """Return a bound web server that calls *hear* with the alerts of each post, one at a time, and answers 200.

    What is no post of Alertmanager's is answered with 400, 405, 411 or 413, and *refused* is told why. Where *hear*
    raises OSError the answer is 500, so that Alertmanager posts again.

    Raises:
        OSError: the address cannot be bound.
    """
    one_at_a_time = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version, sys_version = "rtobs", ""

        def do_POST(self) -> None:
            status, why = self._heard()
            if why:
                refused(why)
            body = f"{why}\n".encode() if why else b""
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _heard(self) -> tuple[HTTPStatus, str]:
            self.close_connection = True
            length = self.headers.get("Content-Length", "")
            if not re.fullmatch("[0-9]{1,18}", length):
                return HTTPStatus.LENGTH_REQUIRED, "A post without its length; give Content-Length."
            if int(length) > _MOST_BYTES:
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A post of {length} bytes; {_MOST_BYTES} are the most."
            try:
                alerts = from_webhook(json.loads(self.rfile.read(int(length))))
            except (ValueError, RecursionError) as wrong:
                why = str(wrong) if isinstance(wrong, ConfigError) else "This is not JSON; Alertmanager sends JSON."
                return HTTPStatus.BAD_REQUEST, why
            with one_at_a_time:
                try:
                    hear(alerts)
                except OSError as error:
                    return HTTPStatus.INTERNAL_SERVER_ERROR, f"It could not be written ({error.strerror or error})."
            return HTTPStatus.OK, ""

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
            """Say nothing: what is written and what is refused is told."""

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server((host, port), Handler)
