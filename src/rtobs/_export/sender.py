"""One try to post OTLP bytes to a collector, within a deadline, and what its answer means.

The HTTP library of the SDK's own exporter, with its ways about certificates, proxies and ``.netrc``, and what no HTTP
library has: a deadline for the whole try. Theirs is for each read, so that a byte a second lasts for ever.
For one thread. Must not know what is in the bytes, queues or when to try again.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # pyright: ignore[reportUnusedImport]  a first connection would import it: see `pipeline._SetUp`
import gzip
import io
import socket
import time
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from rtobs import _redaction as redaction
from rtobs._export.transport import Answer

_PIECE: Final = 1 << 18
"""Bytes sent between two looks at the clock."""
_MOST_ANSWER: Final = 1 << 16
"""Bytes of an answer that are read."""
_LAST_LOOK: Final = 0.2
_NEXT_TO_NOTHING: Final = 0.001
"""An answer that is there is read for a moment after the deadline, too; a busy machine had no time before."""
_SOON: Final = frozenset({429, 502, 503, 504})
"""What the OTLP specification says to try again after a while."""
_REFUSED: Final = frozenset({400, 413, 422})
"""What says that something is wrong with what was sent."""


Compression = Literal["none", "gzip", "deflate"]


class Target(NamedTuple):
    """Where one signal goes, as the environment says it."""

    url: str
    headers: Mapping[str, str]
    compression: Compression
    timeout: float
    """Seconds for one export, all tries and waits between them included."""
    verify: bool | str
    """A file or folder of certificates to trust instead of the usual ones."""
    cert: str | tuple[str, str] | None
    """The client's certificate, or it and its key."""


# A deadline for the whole try ----------------------------------------------------------------------------------------


class _Try:
    """One try: its deadline, and the connection it uses."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.connection: _Timed | None = None

    def left(self, last_look: float = 0.0) -> float:
        """Return how many seconds there are until the deadline; with *last_look*, next to none for so long after it."""
        left = self.deadline - time.monotonic()
        if left <= -last_look:
            raise TimeoutError("the time of this export is over")
        return max(left, _NEXT_TO_NOTHING)


_try: ContextVar[_Try] = ContextVar("rtobs-export-try")


class _Reading(io.RawIOBase):
    """What a connection receives, read within the deadline."""

    def __init__(self, raw: Any, sock: Any) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._sock.settimeout(_try.get().left(_LAST_LOOK))
        found: int | None = self._raw.readinto(buffer)
        return found

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """An answer whose first line, headers and body are all read within the deadline."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reading(self.fp.detach(), sock))


class _Timed(HTTPConnection):
    """A connection that sends within the deadline, too."""

    response_class = _Response

    def send(self, data: Any) -> None:
        if not isinstance(data, bytes):
            super().send(data)
            return
        view, this = memoryview(data), _try.get()
        for start in range(0, len(data), _PIECE):
            left = this.left()
            if self.sock is not None:
                self.sock.settimeout(left)
            this.connection = self
            super().send(view[start : start + _PIECE])  # connects, the first time


class _TimedSecure(_Timed, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Timed  # pyright: ignore[reportAssignmentType]  urllib3's own classes do not fit its protocol either


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _TimedSecure  # pyright: ignore[reportAssignmentType]  as above


_POOLS: Final = {"http": _Pool, "https": _SecurePool}


class _Adapter(HTTPAdapter):
    """Makes such connections."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager


# One try -------------------------------------------------------------------------------------------------------------


class Sender:
    """Posts to one address and keeps its connection open."""

    def __init__(self, target: Target) -> None:
        """Make everything that stays the same from one request to the next; opens no connection.

        Raises:
            requests.RequestException, ValueError: the address, a header or a certificate's path cannot be used.
        """
        parts = urlsplit(target.url)
        if parts.scheme not in _POOLS:
            raise ValueError(f"an OTLP address begins with http:// or https://, this one with {parts.scheme!r}")
        self.where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._compression = target.compression
        self._try = _Try()
        self._adapter = _Adapter()
        session = requests.Session()
        session.verify, session.cert = target.verify, target.cert
        headers = {**target.headers, "accept-encoding": "identity"}
        if target.compression != "none":
            headers.setdefault("content-encoding", target.compression)
        self._request: Any = session.prepare_request(requests.Request("POST", target.url, headers=headers))
        # What the environment says of proxies and certificates, read once.
        self._settings: Any = session.merge_environment_settings(self._request.url, {}, True, None, None)  # noqa: FBT003  requests' own signature

    def post(self, data: bytes, deadline: float) -> Answer:
        """Post *data*, until *deadline* by ``time.monotonic``; never raises what the network can cause."""
        if self._compression == "gzip":
            data = gzip.compress(data, 6)
        elif self._compression == "deflate":
            data = zlib.compress(data)
        request, this = self._request, self._try
        request.prepare_body(data, None)
        this.deadline = deadline
        _try.set(this)
        try:
            left = this.left()
            response: Any = self._adapter.send(request, timeout=(left, left), **self._settings)
            try:
                return _meaning(response, response.raw.read(_MOST_ANSWER, decode_content=False))
            finally:
                response.close()
        except Exception as error:  # noqa: BLE001  whatever it is, nothing was taken as far as we know
            cause = _cause(error)
            detail = redaction.error_text(error) if cause == "certificate" else type(error).__name__
            return Answer("failed", cause, detail, soon=True, unanswered=cause in _UNANSWERED)
        finally:
            request.body = None

    def close(self) -> None:
        """Close the connection; a try that is under way in another thread fails."""
        connection = self._try.connection
        with contextlib.suppress(Exception):  # the other thread may be closing it too
            if connection is not None and connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
            if connection is not None:
                connection.close()  # at the end of the interpreter urllib3 has done that already, and does it once only
        self._adapter.close()


# What an answer means ------------------------------------------------------------------------------------------------

_WORKED: Final = range(200, 300)
_MOST_CAUSES: Final = 8
_NOT_OTLP: Final = "not an OTLP answer"


def _meaning(response: Any, body: bytes) -> Answer:
    status = int(response.status_code)
    if status in _WORKED:
        return _taken(str(response.headers.get("content-type", "")), body)
    cause, detail = f"http {status}", _told(body) or redaction.redact(str(response.reason or ""), 200)
    if status in _REFUSED:
        return Answer("refused", cause, detail)
    return Answer("failed", cause, detail, soon=status in _SOON, wait=_wait(response.headers.get("retry-after")))


def _taken(kind: str, body: bytes) -> Answer:
    """Read how much of it was taken. The three signals' answers have the same fields."""
    if not body:
        return Answer("taken")
    if "html" in kind:  # a proxy's log-in page has status 200, too
        return Answer("failed", _NOT_OTLP, redaction.redact(kind, 200))
    try:
        part = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Answer("failed", _NOT_OTLP, redaction.redact(kind, 200)) if "protobuf" in kind else Answer("taken")
    return Answer("taken", "partial success", redaction.redact(part.error_message, 200), max(part.rejected_spans, 0))


def _told(body: bytes) -> str:
    """Return the message of a collector that refuses; OTLP puts it into a ``google.rpc.Status``."""
    try:
        return redaction.redact(Status.FromString(body).message, 200)
    except DecodeError:
        return ""


def _wait(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110 section 10.2.3): a number or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


_UNANSWERED: Final = frozenset({"timeout", "connection lost"})
_CAUSES: Final = (
    ("dns", urllib3.exceptions.NameResolutionError),
    ("connect", urllib3.exceptions.NewConnectionError),
    ("timeout", (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)),
    ("proxy", requests.exceptions.ProxyError),
    ("tls", requests.exceptions.SSLError),
    ("address", requests.exceptions.InvalidURL),
)


def _cause(error: Exception) -> str:
    """Return why there was no answer; what requests raises was raised because of what urllib3 and the system raised."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__context__) is not None and len(chain) < _MOST_CAUSES:
        chain.append(before)
    for cause, kinds in _CAUSES:
        if any(isinstance(one, kinds) for one in chain):
            return cause
    return (
        "certificate" if type(error) is OSError else "connection lost"
    )  # requests says so of a path that is not there
