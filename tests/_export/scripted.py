"""A collector in threads of this process that behaves as its script says, and knows what it has taken.

What counts as taken is what it answered for, completely: nothing else may be believed to have arrived.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_CLASSES = {
    "traces": ExportTraceServiceRequest, "logs": ExportLogsServiceRequest, "metrics": ExportMetricsServiceRequest,
}  # fmt: skip
_UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": lambda data: data}
POISON = b"poison"
"""A request that contains it is refused in state ``400``."""
MOST_BYTES = 20_000
"""A larger request is refused in state ``413``."""
RARELY = 3
"""Items of each request that are rejected in state ``partial``."""


class Request(NamedTuple):
    """What a request was."""

    path: str
    headers: dict[str, str]
    body: bytes
    client: dict[str, Any] | None
    """The client's certificate."""


class Collector:
    """Behaves as *state* says, which may change while it runs: a status code, or a word of those below."""

    def __init__(self, state: str = "healthy", tls: ssl.SSLContext | None = None) -> None:
        self.state = state
        self.requests: list[Request] = []
        self._spans: Counter[bytes] = Counter()
        self._logs = self._seen = 0
        self.metrics: list[Any] = []
        self.rejected = 0
        self.keep = True
        """Whether requests are remembered."""
        self._tls = tls
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listening.getsockname()[1]
        self.endpoint = f"{'https' if tls else 'http'}://localhost:{self.port}"

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Accept no more."""
        self._stopped.set()
        with contextlib.suppress(OSError):  # it may be closed already
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who waits for somebody to come
        self._listening.close()

    def pause(self) -> None:
        """Close the port; who has a connection may keep it."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def resume(self) -> None:
        """Open it again, if it was closed."""
        if self._listening.fileno() == -1:
            self._listening = socket.create_server(("127.0.0.1", self.port), backlog=512)
            self.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # whatever the client does is its own business
            if self.state == "blackhole":
                self._stopped.wait()
            elif self._tls is None:
                self._listen(connection)
            else:
                with self._tls.wrap_socket(connection, server_side=True) as secure:
                    self._listen(secure)

    def _listen(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while line := stream.readline():
            if self.state == "blackhole":
                self._stopped.wait()
                return
            headers = {}
            while (header := stream.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            size = int(headers.get("content-length", 0))
            if self.state == "reset":
                stream.read(size // 2)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            body = stream.read(size)
            if len(body) < size:
                return
            data = _UNPACK[headers.get("content-encoding", "")](body)
            client = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
            request = Request(line.split()[1].decode(), headers, data, client)
            if self.keep:
                self.requests.append(request)
            self._seen += 1
            if self.state == "drip":
                for byte in _answer(200, b"x" * 100_000):
                    connection.sendall(bytes((byte,)))
                    if self._stopped.wait(0.02):
                        return
            self._speak(connection, request)

    # What it says ----------------------------------------------------------------------------------------------------

    def _speak(self, connection: socket.socket, request: Request) -> None:
        state = self.state
        takes = {
            "healthy": True, "slow": True, "partial": True, "400": POISON not in request.body,
            "413": len(request.body) <= MOST_BYTES, "429 short": self._seen % 2 == 0,
        }  # fmt: skip
        if takes.get(state):
            if state == "slow":
                time.sleep(0.2)
            self._take(connection, request, RARELY if state == "partial" else 0)
        elif state == "partial of too many":
            answer = ExportTraceServiceResponse()
            answer.partial_success.rejected_spans = 2**63 - 1
            connection.sendall(_answer(200, answer.SerializeToString(), "content-type: application/x-protobuf"))
        elif state in _SPEECHES:
            connection.sendall(_answer(*_SPEECHES[state]))
        else:
            connection.sendall(_answer(int(state)))

    def _take(self, connection: socket.socket, request: Request, reject: int) -> None:
        """Answer that all but *reject* items are taken, and count them if the answer went out."""
        signal = request.path.rpartition("/")[2]
        found = _CLASSES[signal].FromString(request.body)
        ids: list[bytes] = []
        if signal == "traces":
            ids = [s.span_id for group in found.resource_spans for scope in group.scope_spans for s in scope.spans]
        number = len(ids)
        if signal == "logs":
            number = sum(len(scope.log_records) for group in found.resource_logs for scope in group.scope_logs)
        reject = min(reject, number)
        answer = ExportTraceServiceResponse()
        if reject:
            answer.partial_success.rejected_spans = reject
            answer.partial_success.error_message = "too old"
        with self._lock:
            connection.sendall(_answer(200, answer.SerializeToString(), "content-type: application/x-protobuf"))
            self.rejected += reject
            self._spans.update(ids[reject:])
            self._logs += (number - reject) * (signal == "logs")
            if signal == "metrics" and self.keep:
                self.metrics.append(found)

    @property
    def spans(self) -> Counter[bytes]:
        """Ids of taken spans; more than one of an id means that it was taken more than once."""
        with self._lock:
            return Counter(self._spans)

    @property
    def logs(self) -> int:
        """How many log records it has taken."""
        with self._lock:
            return self._logs


def _answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


_SPEECHES: dict[str, tuple[Any, ...]] = {
    "garbage": (200, b"\xff" + os.urandom(64), "content-type: application/x-protobuf"),
    "page": (200, b"<html>log in</html>", "content-type: text/html"),
    "429 short": (429, b"", "retry-after: 1"),
    "429 now": (429, b"", "retry-after: 0"),
    "429 long": (429, b"", "retry-after: 3600"),
}
