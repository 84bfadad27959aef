"""R21: what third parties get to see of us: nothing, unless their host was named."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest
import requests
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._journey import carrier
from rtobs._journey.journey import Journey
from tests.support.http import Answer, Received, Server
from tests.support.telemetry import Telemetry, telemetry

__all__ = ["telemetry"]

THEIRS = ("fcm", "apns", "twilio", "sendgrid", "slack", "a webhook")
CALLERS = {"accept", "accept-encoding", "connection", "host", "user-agent", "content-length", "content-type", "x-key"}
"""Headers that the client itself sends, and the host's own."""


@pytest.fixture
def third_party() -> Generator[Server]:
    """A server on loopback that keeps what it got; it answers to 127.0.0.1 and to localhost, two hosts for a client."""
    server = Server()
    server.start()
    yield server
    server._server.shutdown()
    server._server.server_close()


def ours_in(request: Received) -> dict[str, str]:
    """Return what a request has of ours: our headers, our baggage, and anything that names the journey."""
    found = {name: request.headers[name] for name in names.OWN_HEADERS if name in request.headers}
    found.update({name: value for name, value in request.headers.items() if "rtobs" in f"{name}{value}".lower()})
    return found


async def _by_httpx(url: str, wrap: Callable[[Any], Any]) -> None:
    with wrap(httpx.Client()) as client:
        client.post(url, headers={"x-key": "1"}, json={})


async def _by_httpx_async(url: str, wrap: Callable[[Any], Any]) -> None:
    async with wrap(httpx.AsyncClient()) as client:
        await client.post(url, headers={"x-key": "1"}, json={})


async def _by_requests(url: str, _wrap: Callable[[Any], Any]) -> None:
    requests.post(  # noqa: ASYNC210 - on purpose: a client that nobody wraps
        url, headers={"x-key": "1"}, json={}, timeout=10
    )


def _wrapped(client: Any) -> Any:
    return rtobs.wrap(client)


def _instrumented(client: Any) -> Any:
    HTTPXClientInstrumentor.instrument_client(client)
    return client


def _both(client: Any) -> Any:
    return rtobs.wrap(_instrumented(client))


def _neither(client: Any) -> Any:
    return client


def consuming() -> Any:
    """Open a hop of a message that carries everything of ours, as our own broker brings it."""
    journey = Journey("0199a1b2c3d47e5f8a6b7c8d9e0f1a2b", 1_790_000_000_000_000)
    journey.tenant, journey.kept = "acme", "vip"
    headers = carrier.write(journey, f"{1:032x}", f"{2:016x}", 1, 1_790_000_000_000_000, tracestate="ot=th:8")
    return rtobs.consume("orders", headers=headers, trust="trusted")


WRAPS = {"wrapped": _wrapped, "plain": _neither}
CALLS = {"httpx": _by_httpx, "async httpx": _by_httpx_async, "requests": _by_requests}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_r21_a_third_party_gets_nothing_of_ours(
    call: Any, wrap: Any, third_party: Server, telemetry: Telemetry
) -> None:
    """R21: in every request to six third parties there are the headers of the client and of the host, and no others."""
    rtobs.configure(propagate_to=["localhost"], logs=telemetry.events.append)
    for name in THEIRS:
        with consuming(), rtobs.deliver("webhook", name, key=name):
            await call(third_party.url(f"/{name}"), wrap)
    assert len(third_party.received) == len(THEIRS)
    for request in third_party.received:
        assert ours_in(request) == {}
        assert set(request.headers) <= CALLERS
        assert b"rtobs" not in request.body


@pytest.mark.parametrize("wrap", [_instrumented, _both], ids=["instrumented", "wrapped and instrumented"])
@pytest.mark.parametrize("call", [_by_httpx, _by_httpx_async], ids=["httpx", "async httpx"])
async def test_r21_a_neighbours_instrumentation_gives_nothing_of_ours_away(
    call: Any, wrap: Any, third_party: Server, telemetry: Telemetry
) -> None:
    """R21: another tool's instrumentation sends its own span's id, and no baggage, header or tracestate of ours."""
    rtobs.configure(propagate_to=["localhost"], logs=telemetry.events.append)
    for name in THEIRS:
        with consuming(), rtobs.deliver("webhook", name, key=name):
            await call(third_party.url(f"/{name}"), wrap)
    assert len(third_party.received) == len(THEIRS)
    hops = {f"{span.context.span_id:016x}" for span in telemetry.spans() if "rtobs.hop" in (span.attributes or {})}
    neighbours = {f"{s.context.span_id:016x}" for s in telemetry.spans() if "rtobs.hop" not in (s.attributes or {})}
    for request in third_party.received:
        found = ours_in(request)
        sent = found.pop("traceparent", "").split("-")
        found.pop("tracestate", None)  # of the trace it is in; see docs/privacy.md
        assert found == {}
        assert len(sent) == 4, "the neighbour is there, or this test shows nothing"
        assert sent[2] in neighbours
        assert sent[2] not in hops


@pytest.mark.parametrize("call", [_by_httpx, _by_httpx_async], ids=["httpx", "async httpx"])
async def test_r21_a_host_that_is_named_gets_the_journey(call: Any, third_party: Server, telemetry: Telemetry) -> None:
    """R21, the other way round: to a host in `propagate_to` the journey goes on, and only to that spelling of it."""
    rtobs.configure(propagate_to=["localhost"], logs=telemetry.events.append)
    with consuming(), rtobs.deliver("webhook", "ours"):
        await call(third_party.url("/ours", host="localhost"), _wrapped)
        await call(third_party.url("/theirs", host="127.0.0.1"), _wrapped)
    ours, theirs = third_party.received
    assert set(names.OWN_HEADERS) <= set(ours.headers) | {"tracestate"}
    found = carrier.extract(ours.headers)
    assert found.journey is not None
    assert (found.journey.correlation_id, found.journey.tenant) == ("0199a1b2c3d47e5f8a6b7c8d9e0f1a2b", "acme")
    assert ours_in(theirs) == {}


async def test_r21_a_redirect_to_a_stranger_takes_nothing_along(third_party: Server, telemetry: Telemetry) -> None:
    """R21: a host that may have our headers and sends the client on elsewhere does not pass them on."""
    rtobs.configure(propagate_to=["localhost"], logs=telemetry.events.append)
    third_party.answers["/ours"] = Answer(307, {"location": third_party.url("/theirs", host="127.0.0.1")})
    with consuming(), rtobs.deliver("webhook", "ours"):
        async with rtobs.wrap(httpx.AsyncClient(follow_redirects=True)) as client:
            await client.post(third_party.url("/ours", host="localhost"), json={})
    first, second = third_party.received
    assert ours_in(first) != {}
    assert second.path == "/theirs"
    assert ours_in(second) == {}


@pytest.mark.parametrize("host", ["evil-localhost", "localhost.evil.example", "xlocalhost", "127.0.0.1"])
def test_r21_a_host_does_not_stand_for_others(host: str, telemetry: Telemetry) -> None:
    """R21: neither subdomains nor names that only contain the named host get anything."""
    rtobs.configure(propagate_to=["localhost"], logs=telemetry.events.append)
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(dict(request.headers))
        return httpx.Response(200)

    with consuming(), rtobs.deliver("webhook", "x"):
        rtobs.wrap(httpx.Client(transport=httpx.MockTransport(answer))).get(f"http://{host}/")
        rtobs.wrap(httpx.Client(transport=httpx.MockTransport(answer))).get(f"http://localhost@{host}/")
    assert len(seen) == 2
    assert not [name for headers in seen for name in headers if name in names.OWN_HEADERS]


async def test_r21_our_baggage_that_a_neighbour_has_read_goes_no_further(
    third_party: Server, telemetry: Telemetry
) -> None:
    """R21: baggage that another tool took from a message of ours is out of the context inside a hop; theirs stays."""
    rtobs.configure(logs=telemetry.events.append)
    token = context.attach(
        baggage.set_baggage(names.BAGGAGE_TENANT, "acme", baggage.set_baggage(names.BAGGAGE_CID, "1" * 32))
    )
    try:
        with baggage_of("theirs", "1"), consuming(), rtobs.deliver("webhook", "x"):
            await _by_httpx_async(third_party.url("/x"), _instrumented)
    finally:
        context.detach(token)
    (request,) = third_party.received
    assert request.headers["baggage"] == "theirs=1"
    assert engine.current() is None
    assert trace.get_current_span().get_span_context().is_valid is False


class baggage_of:  # noqa: N801 - read as a statement
    """``with baggage_of(name, value):`` puts an entry of the host's own into the context."""

    def __init__(self, name: str, value: str) -> None:
        self._entry = (name, value)

    def __enter__(self) -> None:
        self._token = context.attach(baggage.set_baggage(*self._entry))

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)


async def test_r21_a_provider_gets_a_token_and_nothing_else(third_party: Server, telemetry: Telemetry) -> None:
    """R21: what a provider has to send back is a signed token: no tenant, recipient or trace of ours is in it."""
    rtobs.configure(wire_key=b"a key of sixteen", logs=telemetry.events.append)
    with consuming(), rtobs.deliver("push", "fcm", key="ann@example.org") as hop:
        async with rtobs.wrap(httpx.AsyncClient()) as client:
            await client.post(third_party.url("/fcm"), json={"token": hop.receipt_token()})
    (request,) = third_party.received
    assert ours_in(request) == {}
    assert len(request.body) > 76
    for word in (b"acme", b"ann", b"example", b"0199a1b2"):
        assert word not in request.body
