"""An OTLP collector in a process of its own: keeps what it was sent in a file, for the test to parse.

As a program: ``collector.py http|grpc FILE [refuse:SIGNAL:N …]`` prints its port, answers until its input is closed,
and refuses the first N exports of a signal for good. ``collector.py hang FILE`` accepts and never answers.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SIGNALS = ("traces", "metrics", "logs")


# The test's side -----------------------------------------------------------------------------------------------------


class Collected:
    """What a collector process has received so far, parsed by opentelemetry-proto."""

    def __init__(self, endpoint: str, path: Path) -> None:
        self.endpoint = endpoint
        self._path = path

    def requests(self, signal: str) -> list[Any]:
        """Return all export requests of a signal, oldest first."""
        data, found = self._path.read_bytes(), []
        while data:
            kind, size = struct.unpack(">BI", data[:5])
            if SIGNALS[kind] == signal:
                found.append(_request_class(signal).FromString(data[5 : 5 + size]))
            data = data[5 + size :]
        return found

    def resources(self) -> list[dict[str, Any]]:
        """Return the distinct resources of everything that arrived."""
        found = []
        for signal in SIGNALS:
            for request in self.requests(signal):
                for group in getattr(request, f"resource_{'spans' if signal == 'traces' else signal}"):
                    attributes = plain(group.resource.attributes)
                    if attributes not in found:
                        found.append(attributes)
        return found

    def spans(self) -> list[Any]:
        """Return all spans."""
        return [
            span
            for request in self.requests("traces")
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def logs(self) -> list[Any]:
        """Return all log records."""
        return [
            record
            for request in self.requests("logs")
            for group in request.resource_logs
            for scope in group.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> list[dict[str, Any]]:
        """Return for each export its metrics by name."""
        return [
            {m.name: m for group in request.resource_metrics for scope in group.scope_metrics for m in scope.metrics}
            for request in self.requests("metrics")
        ]


def plain(attributes: Any) -> dict[str, Any]:
    """Return OTLP attributes as a dictionary."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collector(kind: str, path: Path, *refused: str) -> Iterator[Collected]:
    """Run a collector process; *kind* is http, grpc or hang."""
    path.touch()
    command = [sys.executable, __file__, kind, str(path), *refused]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        try:
            yield Collected(f"http://127.0.0.1:{port}", path)
        finally:
            process.stdin.close()
            process.wait(10)


# The process ---------------------------------------------------------------------------------------------------------


def _request_class(signal: str) -> Any:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return {
        "traces": ExportTraceServiceRequest,
        "metrics": ExportMetricsServiceRequest,
        "logs": ExportLogsServiceRequest,
    }[signal]


class _Store:
    """Appends to the file, and knows whom to refuse."""

    def __init__(self, path: Path, refused: list[str]) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._refuse = {words[1]: int(words[2]) for words in (one.split(":") for one in refused)}

    def take(self, signal: str, data: bytes) -> bool:
        with self._lock:
            if self._refuse.get(signal, 0) > 0:
                self._refuse[signal] -= 1
                return False
            self._file.write(struct.pack(">BI", SIGNALS.index(signal), len(data)) + data)
            return True


def _serve_http(store: _Store) -> int:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if store.take(self.path.rpartition("/")[2], data) else 400)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def _serve_grpc(store: _Store) -> int:
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc

    def servicer(base: type, signal: str, answer: Any) -> Any:
        def export(_self: Any, request: Any, context: Any) -> Any:
            if not store.take(signal, request.SerializeToString()):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
            return answer()

        return type("Servicer", (base,), {"Export": export})()

    server = grpc.server(ThreadPoolExecutor(4))
    traces_grpc.add_TraceServiceServicer_to_server(
        servicer(traces_grpc.TraceServiceServicer, "traces", traces.ExportTraceServiceResponse), server
    )
    metrics_grpc.add_MetricsServiceServicer_to_server(
        servicer(metrics_grpc.MetricsServiceServicer, "metrics", metrics.ExportMetricsServiceResponse), server
    )
    logs_grpc.add_LogsServiceServicer_to_server(
        servicer(logs_grpc.LogsServiceServicer, "logs", logs.ExportLogsServiceResponse), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _kept.append(server)
    return port


def _serve_nothing() -> int:
    import socket

    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    _kept.append(listening)
    return listening.getsockname()[1]


_kept: list[Any] = []
"""A server or socket that nobody holds is closed."""


def main() -> None:
    kind, path, *refused = sys.argv[1:]
    store = _Store(Path(path), refused)
    port = {"http": _serve_http, "grpc": _serve_grpc}[kind](store) if kind != "hang" else _serve_nothing()
    print(port, flush=True)
    sys.stdin.read()  # until the test closes it, or is gone


if __name__ == "__main__":
    main()
