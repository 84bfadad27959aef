"""The judge of exceptions and responses against clients that fail, and answer, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import socketserver
import struct
import threading
import time
import urllib.error
import urllib.request

import aiohttp
import httpx
import pytest
import requests
import urllib3

from rtobs._journey.classify import by_status, classify, judge_value
from rtobs._journey.outcome import ErrorCategory, Verdict
from tests.support.timing import scaled

TRANSPORT = ErrorCategory.TRANSPORT
TIMEOUT = ErrorCategory.TIMEOUT
UNAVAILABLE = ErrorCategory.UNAVAILABLE
VALIDATION = ErrorCategory.VALIDATION
OVERLOAD = ErrorCategory.OVERLOAD
INTERNAL = ErrorCategory.INTERNAL

SOON = scaled(0.05)
PATIENT = max(10.0, scaled(10))  # patience with a slow machine: no scale shortens it


@contextlib.contextmanager
def _serving(behave):
    over = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):  # the client may be gone first
                self.request.recv(65536)
                behave(self.request, over)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            over.set()
            server.shutdown()
            thread.join()


def _says(text):
    def behave(connection, over):
        connection.sendall(text.encode())

    return behave


def _answers(status, headers="", body=""):
    return _says(
        f"HTTP/1.1 {status} Whatever\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}"
    )


def _resets(connection, over):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _hangs_up(connection, over):
    connection.shutdown(socket.SHUT_RDWR)


def _is_silent(connection, over):
    over.wait(PATIENT)


_stops_in_the_body = _says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
_stops_in_a_chunk = _says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf")
_talks_nonsense = _says("this is not HTTP\r\n\r\n")


def _by_httpx(url, read=PATIENT):
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(PATIENT, read=read)) as client:
        client.post(url, content=b"x").raise_for_status()


def _by_requests(url, read=PATIENT):
    with requests.Session() as session:
        session.trust_env = False
        session.post(url, data=b"x", timeout=(PATIENT, read)).raise_for_status()


def _by_aiohttp(url, read=PATIENT):
    async def call():
        timeout = aiohttp.ClientTimeout(total=PATIENT, sock_read=read)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url, data=b"x") as response:
            await response.read()
            response.raise_for_status()

    asyncio.run(call())


def _by_urllib(url, read=PATIENT):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, data=b"x", timeout=read) as response:
        response.read()


def _by_urllib3(url, read=PATIENT):
    with urllib3.PoolManager() as pool:
        pool.request("POST", url, body=b"x", retries=False, timeout=urllib3.Timeout(connect=PATIENT, read=read))


CLIENTS = [_by_httpx, _by_requests, _by_aiohttp, _by_urllib, _by_urllib3]


def _failure_of(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:  # noqa: BLE001 - whatever the client raises is what we want to see
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return error
    pytest.fail("the call was meant to fail")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refused_connection_is_transport_and_surely_not_sent(client):
    """A port where nobody listens is a transport failure, and the request has not arrived for sure."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    verdict = classify(_failure_of(client, f"http://127.0.0.1:{port}/"))
    assert (verdict.category, verdict.ambiguous) == (TRANSPORT, False)


@pytest.mark.parametrize(
    "behave",
    [_resets, _hangs_up, _stops_in_the_body, _stops_in_a_chunk, _talks_nonsense],
    ids=lambda behave: behave.__name__,
)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_that_breaks_after_the_request_is_transport_and_maybe_sent(client, behave):
    """A server that resets, hangs up, stops midway or talks nonsense may have taken the request all the same."""
    with _serving(behave) as port:
        verdict = classify(_failure_of(client, f"http://127.0.0.1:{port}/"))
    assert (verdict.category, verdict.ambiguous) == (TRANSPORT, True)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_read_timeout_is_timeout_and_maybe_sent(client):
    """A server that does not answer in time may have taken the request."""
    with _serving(_is_silent) as port:
        verdict = classify(_failure_of(client, f"http://127.0.0.1:{port}/", read=SOON))
    assert (verdict.category, verdict.ambiguous) == (TIMEOUT, True)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_failed_tls_handshake_is_transport_and_surely_not_sent(client):
    """A server that does not speak TLS is a transport failure before the request."""
    with _serving(_talks_nonsense) as port:
        verdict = classify(_failure_of(client, f"https://127.0.0.1:{port}/"))
    assert (verdict.category, verdict.ambiguous) == (TRANSPORT, False)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503])
@pytest.mark.parametrize("client", [_by_httpx, _by_requests, _by_aiohttp, _by_urllib])
def test_a_real_error_answer_is_judged_by_its_status(client, status):
    """What ``raise_for_status`` and its like raise on a real answer is judged by the status of that answer."""
    with _serving(_answers(status)) as port:
        assert classify(_failure_of(client, f"http://127.0.0.1:{port}/")) == by_status(status)


@pytest.fixture
def full_port():
    """A port whose queue of connections is full: another connection attempt gets no answer at all."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        time.sleep(SOON)
        yield server.getsockname()[1]


def _connect_by_httpx(url):
    httpx.get(url, trust_env=False, timeout=httpx.Timeout(PATIENT, connect=SOON))


def _connect_by_requests(url):
    with requests.Session() as session:
        session.trust_env = False
        session.get(url, timeout=(SOON, PATIENT))


def _connect_by_aiohttp(url):
    async def call():
        timeout = aiohttp.ClientTimeout(total=PATIENT, sock_connect=SOON)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await session.get(url)

    asyncio.run(call())


def _connect_by_urllib3(url):
    with urllib3.PoolManager() as pool:
        pool.request("GET", url, retries=0, timeout=urllib3.Timeout(connect=SOON, read=PATIENT))


@pytest.mark.parametrize("client", [_connect_by_httpx, _connect_by_requests, _connect_by_aiohttp, _connect_by_urllib3])
def test_a_connect_timeout_is_timeout_and_surely_not_sent(client, full_port):
    """A host that does not even take the connection cannot have taken the request."""
    verdict = classify(_failure_of(client, f"http://127.0.0.1:{full_port}/"))
    assert (verdict.category, verdict.ambiguous) == (TIMEOUT, False)


def test_waiting_for_our_own_connection_pool_is_overload():
    """No free connection in httpx's pool is our overload, not the provider's timeout."""

    async def call(url):
        limits = httpx.Limits(max_connections=1)
        timeout = httpx.Timeout(PATIENT, pool=SOON)
        async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=timeout) as client:
            first = asyncio.create_task(client.get(url))
            await asyncio.sleep(SOON)
            try:
                await client.get(url)
            finally:
                first.cancel()
                await asyncio.wait([first])

    with _serving(_is_silent) as port:
        error = _failure_of(lambda: asyncio.run(call(f"http://127.0.0.1:{port}/")))
    assert classify(error) == Verdict(OVERLOAD, "PoolTimeout")


def _goes_round(connection, over):
    _answers(302, headers="Location: /again\r\n")(connection, over)


def _follow_by_httpx(url):
    httpx.get(url, trust_env=False, follow_redirects=True)


def _follow_by_requests(url):
    with requests.Session() as session:
        session.trust_env = False
        session.get(url)


def _follow_by_aiohttp(url):
    async def call():
        async with aiohttp.ClientSession() as session:
            await session.get(url)

    asyncio.run(call())


@pytest.mark.parametrize("client", [_follow_by_httpx, _follow_by_requests, _follow_by_aiohttp])
def test_endless_redirects_are_validation(client):
    """A redirect without end is an address that we have to correct."""
    with _serving(_goes_round) as port:
        error = _failure_of(client, f"http://127.0.0.1:{port}/")
    assert classify(error) == Verdict(VALIDATION, "TooManyRedirects")


_not_gzip = _answers(200, headers="Content-Encoding: gzip\r\n", body="this is not gzip")


@pytest.mark.parametrize("client", [_by_httpx, _by_requests, _by_urllib3])
def test_an_answer_that_cannot_be_decoded_is_validation(client):
    """An answer that arrived but cannot be decoded is wrong content, not a broken connection."""
    with _serving(_not_gzip) as port:
        verdict = classify(_failure_of(client, f"http://127.0.0.1:{port}/"))
    assert (verdict.category, verdict.ambiguous) == (VALIDATION, False)


async def _html_as_json_by_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        await response.json()


@pytest.mark.parametrize(("status", "expected"), [(200, (VALIDATION, "ContentTypeError")), (503, (UNAVAILABLE, "503"))])
def test_html_in_place_of_json_is_judged_by_its_status_first(status, expected):
    """An HTML page where aiohttp expects JSON says validation, unless its status already says why."""
    with _serving(_answers(status, headers="Content-Type: text/html\r\n", body="<p>")) as port:
        error = _failure_of(lambda: asyncio.run(_html_as_json_by_aiohttp(f"http://127.0.0.1:{port}/")))
    assert classify(error) == Verdict(*expected)


async def _websocket_by_aiohttp(url):
    async with aiohttp.ClientSession() as session:
        await session.ws_connect(url)


def test_an_endpoint_that_speaks_no_websocket_is_validation():
    """A WebSocket handshake answered with 200 is our address that is wrong."""
    with _serving(_answers(200)) as port:
        error = _failure_of(lambda: asyncio.run(_websocket_by_aiohttp(f"http://127.0.0.1:{port}/")))
    assert classify(error) == Verdict(VALIDATION, "WSServerHandshakeError")


@pytest.mark.parametrize(
    "call",
    [
        lambda: httpx.get("http://x:bad", trust_env=False),
        lambda: httpx.get("ftp://x/", trust_env=False),
        lambda: requests.get("x", timeout=1),
        lambda: requests.get("ftp://x", timeout=1),
        lambda: requests.get("http://", timeout=1),
        lambda: requests.get("http://x", headers={"a": "b\nc"}, timeout=1),
        lambda: _follow_by_aiohttp("http://"),
        lambda: _follow_by_aiohttp("ftp://x"),
        lambda: http.client.HTTPConnection("x").putrequest("GET", "a b"),
        lambda: urllib3.PoolManager().request("GET", "http://[bad"),
    ],
)
def test_an_address_or_header_that_no_client_accepts_is_validation(call):
    """What the client itself refuses to send is ours to correct."""
    assert classify(_failure_of(call)).category is VALIDATION


def test_a_header_that_httpx_refuses_after_connecting_is_validation():
    """A header that would break the protocol is ours to correct, although the connection was made for it."""
    with _serving(_hangs_up) as port:
        error = _failure_of(httpx.get, f"http://127.0.0.1:{port}/", headers={"a": "b\nc"}, trust_env=False)
    assert classify(error) == Verdict(VALIDATION, "LocalProtocolError")


def test_requests_json_that_is_none_is_validation():
    """A body that is not JSON is validation, although requests' class is also an OSError."""
    response = requests.Response()
    response._content = b"<html>"
    assert classify(_failure_of(response.json)) == Verdict(VALIDATION, "JSONDecodeError")


def test_a_plain_socket_fails_like_a_client(tmp_path):
    """Failures of _bare sockets are told apart as well as those of HTTP clients."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.settimeout(SOON)
        assert classify(_failure_of(client.recv, 1)) == Verdict(TIMEOUT, "TimeoutError", ambiguous=True)
        server.accept()[0].close()
        client.settimeout(PATIENT)
        client.recv(1)

        def write_on():
            for _ in range(100):
                client.sendall(b"x" * 65536)

        assert classify(_failure_of(write_on)).category is TRANSPORT
        assert classify(_failure_of(write_on)) == Verdict(TRANSPORT, "BrokenPipeError", ambiguous=True)
    unknown_service = _failure_of(socket.getaddrinfo, "127.0.0.1", "no-such-service")
    assert classify(unknown_service) == Verdict(TRANSPORT, "gaierror")
    assert classify(_failure_of(open, tmp_path / "missing")) == Verdict(INTERNAL, "FileNotFoundError")


def _response_of_aiohttp(status):
    async def call(port):
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
            return response

    with _serving(_answers(status)) as port:
        return asyncio.run(call(port))


def _response_of_http_client(status):
    with (
        _serving(_answers(status)) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection,
    ):
        connection.request("GET", "/")
        with connection.getresponse() as response:
            return response


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("call", [_response_of_aiohttp, _response_of_http_client])
def test_a_real_answer_that_is_returned_is_judged_by_its_status(call, status):
    """The response objects whose status is called ``status`` are known by the package that made them."""
    assert judge_value(call(status)) == by_status(status)
