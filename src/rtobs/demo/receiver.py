"""An OTLP/HTTP receiver on a local port: the only way in which the demo's view learns anything.

Bodies are bounded, before and after decompression, and are parsed with the protocol's own messages. With a forwarding
address each body is also passed on as it came, by a thread of its own that drops rather than waits.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
import threading
import urllib.error
import urllib.request
import zlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from rtobs.demo.telemetry import Telemetry

BODY_LIMIT: Final = 16 * 1024 * 1024
"""Largest body that is read, in bytes, both as sent and after decompression."""

FORWARD_QUEUE: Final = 256
"""Bodies that may wait for the forwarding address before new ones are dropped."""

PROTOBUF: Final = "application/x-protobuf"


class BodyTooLargeError(Exception):
    """A body is larger than the receiver reads."""


class Forwarder:
    """Passes bodies on to another OTLP/HTTP endpoint without ever making the receiver wait.

    Args:
        endpoint: base address, such as ``http://localhost:4318``; the signal's path is added.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._waiting: queue.Queue[tuple[str, bytes, dict[str, str]] | None] = queue.Queue(maxsize=FORWARD_QUEUE)
        self._thread = threading.Thread(target=self._run, name="otlp-forward", daemon=True)
        self.sent = 0
        self.dropped = 0
        self.failed = 0
        self.last_error = ""
        self._thread.start()

    def offer(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        """Queue *body*, or count it as dropped where too many are waiting."""
        try:
            self._waiting.put_nowait((path, body, headers))
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float = 5.0) -> None:
        """Give what is queued up to *timeout* seconds to leave."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        self._thread.join(timeout)

    def problem(self) -> str:
        """Return what went wrong in one sentence, or an empty string."""
        if not self.failed and not self.dropped:
            return ""
        return (
            f"{self.failed} of {self.sent + self.failed + self.dropped} OTLP requests could not be passed on to "
            f"{self._endpoint} and {self.dropped} were dropped because it was too slow "
            f"({self.last_error or 'no error'})."
        )

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            path, body, headers = item
            request = urllib.request.Request(self._endpoint + path, data=body, headers=headers, method="POST")  # noqa: S310 - the scheme was checked when the options were read
            try:
                with urllib.request.urlopen(request, timeout=5.0) as answer:  # noqa: S310 - as above
                    answer.read()
                self.sent += 1
            except (urllib.error.URLError, OSError) as error:
                self.failed += 1
                self.last_error = str(error)


class Receiver:
    """Listens on ``127.0.0.1`` and feeds what it parses to a `Telemetry` store.

    Args:
        telemetry: where parsed requests go.
        forwarder: gets every accepted body as it came, if given.

    Example:
        ``with Receiver(telemetry) as receiver: print(receiver.endpoint)``
    """

    def __init__(self, telemetry: Telemetry, forwarder: Forwarder | None = None) -> None:
        self.forwarder = forwarder
        self.refused = 0
        self._absorb: dict[str, Callable[[bytes], None]] = {
            "/v1/traces": lambda body: telemetry.absorb_traces(ExportTraceServiceRequest.FromString(body)),
            "/v1/metrics": lambda body: telemetry.absorb_metrics(ExportMetricsServiceRequest.FromString(body)),
            "/v1/logs": lambda body: telemetry.absorb_logs(ExportLogsServiceRequest.FromString(body)),
        }
        self._server = _Server(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="otlp-receiver", daemon=True
        )

    @property
    def endpoint(self) -> str:
        """Base address for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; pass on what is still queued."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
        if self.forwarder is not None:
            self.forwarder.close()

    def take(self, path: str, body: bytes, encoding: str, headers: dict[str, str]) -> HTTPStatus:
        """Parse one request body and hand it to the store; return the status that answers it."""
        absorb = self._absorb.get(path)
        if absorb is None:
            return HTTPStatus.NOT_FOUND
        try:
            absorb(decompress(body, encoding))
        except BodyTooLargeError:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        except (DecodeError, zlib.error, ValueError):
            return HTTPStatus.BAD_REQUEST
        if self.forwarder is not None:
            self.forwarder.offer(path, body, headers)
        return HTTPStatus.OK


def decompress(body: bytes, encoding: str) -> bytes:
    """Return *body* unpacked by its ``Content-Encoding``.

    Raises:
        BodyTooLargeError: it would grow beyond `BODY_LIMIT`.
        ValueError: the encoding is not one that OTLP exporters use, or the body is cut off.
    """
    if encoding in ("", "identity"):
        return body
    windows = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    if encoding not in windows:
        raise ValueError(f"content encoding {encoding!r} is not gzip, deflate or identity")
    unpacker = zlib.decompressobj(windows[encoding])
    plain = unpacker.decompress(body, BODY_LIMIT)
    if unpacker.unconsumed_tail:
        raise BodyTooLargeError
    if not unpacker.eof:
        raise ValueError("the compressed body is cut off")
    return plain


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    # a thread of a connection that an exporter keeps open must not hold up the end of the demo
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a process that was killed while it was connected; the observer tells what became of it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def __init__(self, receiver: Receiver, *arguments: Any) -> None:
        self._receiver = receiver
        super().__init__(*arguments)  # handles the connection, too

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._answer(HTTPStatus.LENGTH_REQUIRED, close=True)
            return
        if int(length) > BODY_LIMIT:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, close=True)
            return
        body = self.rfile.read(int(length))
        kind = self.headers.get_content_type()
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        if kind != PROTOBUF:
            self._answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
            return
        headers = {"Content-Type": PROTOBUF} | ({"Content-Encoding": encoding} if encoding else {})
        self._answer(self._receiver.take(self.path, body, encoding, headers))

    def _answer(self, status: HTTPStatus, *, close: bool = False) -> None:
        if status is not HTTPStatus.OK:
            self._receiver.refused += 1
        # an empty body is a valid, empty Export…ServiceResponse
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", "0")
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        """Keep the terminal for the view."""
