"""A loopback OTLP/HTTP collector in a process of its own: takes spans, counts them, forgets them.

``with Sink() as sink: …`` starts one; ``python -m tests.bench.sink`` is the process.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent


class Sink:
    """The process, seen from the bench."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.bench.sink"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self._address = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a process's spans here."""
        return {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self._address}/v1/traces"}

    def take(self) -> int:
        """Return how many spans have come since the last time."""
        with urllib.request.urlopen(self._address, timeout=60) as answer:
            return int(answer.read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Serve until killed."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self._answer(b"")

        def do_GET(self) -> None:
            # Counted only now, so that the machine's cores are the sender's while it sends.
            taken = bodies[:]
            del bodies[: len(taken)]
            self._answer(str(sum(map(spans_in, taken))).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    def spans_in(body: bytes) -> int:
        request = ExportTraceServiceRequest.FromString(body)
        return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
