"""The leaves of aiohttp's client and of requests: detail of a delivery, our headers only to hosts that are named."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import aiohttp
import pytest
import requests
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.trace import SpanKind

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop import engine
from rtobs.errors import UnsupportedError
from rtobs.integrations import unwrap
from tests.support import telemetry as support
from tests.support.http import Answer, Received, Server, free_port, listening
from tests.support.telemetry import user_provider
from tests.support.timing import eventually, scaled

OWN = ("traceparent", "tracestate", "baggage", "rtobs-journey")


@pytest.fixture
def server() -> Generator[Server, None, None]:
    """A provider on this machine, by two names: 127.0.0.1 and localhost."""
    with listening() as found:
        yield found


@pytest.fixture
def start() -> Generator[Callable[..., support.Telemetry], None, None]:
    """Configures rtobs for one test, as `configure` takes it; see `telemetry` for the usual."""
    yield support.start
    support.stop()


class Client:
    """A session of either library, asked the same way: ``await call(method, url, **options)``."""

    def __init__(self, library: str, **wrapping: Any) -> None:
        self.sync = library == "requests"
        self.session: Any = requests.Session() if self.sync else aiohttp.ClientSession()
        rtobs.wrap(self.session, **wrapping)

    async def __call__(self, method: str, url: str, **options: Any) -> Any:
        if self.sync:
            return self.session.request(method, url, **options)
        if isinstance(options.get("timeout"), float):
            options["timeout"] = aiohttp.ClientTimeout(total=options["timeout"])
        response = await self.session.request(method, url, **options)
        await response.read()
        return response

    async def close(self) -> None:
        if self.sync:
            self.session.close()
        else:
            await self.session.close()


@pytest.fixture(params=["aiohttp", "requests"])
async def connect(request) -> AsyncGenerator[Callable[..., Client], None]:
    made: list[Client] = []

    def make(**wrapping: Any) -> Client:
        made.append(Client(request.param, **wrapping))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
async def call(connect) -> Client:
    return connect()


async def deliver(call: Client, method: str, url: str, **options: Any) -> Any:
    @rtobs.deliver("webhook", "acme")
    async def attempt() -> Any:
        return await call(method, url, **options)

    return await attempt()


def sent(request: Received) -> dict[str, str]:
    return {name: request.headers[name] for name in OWN if name in request.headers}


def status(response: Any) -> int:
    return response.status if isinstance(response, aiohttp.ClientResponse) else response.status_code


# Detail --------------------------------------------------------------------------------------------------------------


async def test_a_delivery_says_whom_it_asked_and_how_it_was_answered(telemetry, server, call):
    """Method, host, port and status are attributes of the delivery, and there is no hop or span but its own."""
    response = await deliver(call, "POST", server.url("/hook"), json={"secret": 1})
    assert status(response) == 200
    [span] = telemetry.spans()
    found = {name: value for name, value in span.attributes.items() if not name.startswith("rtobs.")}
    assert found == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.response.status_code": 200,
    }
    assert telemetry.by(names.ATTEMPTS, "channel", "provider", "result") == {("webhook", "acme", "ok"): 1}


async def test_nothing_secret_is_noted(telemetry, server, call):
    """Neither path, query, user, password, headers nor body of a call reach a span or a log event."""
    server.answers["/hook-s3cret"] = Answer(500, {"x-s3cret": "s3cret"}, b"s3cret")
    url = f"http://s3cret:s3cret@127.0.0.1:{server.port}/hook-s3cret?token=s3cret#s3cret"
    await deliver(call, "POST", url, data=b"s3cret", headers={"x-key": "s3cret"})
    assert "s3cret" not in str([(span.name, dict(span.attributes), span.events) for span in telemetry.spans()])
    assert len(telemetry.events) == 1
    assert "s3cret" not in str(telemetry.events)


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (200, ("ok", "", "ok")),
        (404, ("failed", "recipient", "rejected")),
        (429, ("failed", "rate_limited", "failed")),
        (500, ("failed", "unavailable", "failed")),
    ],
)
async def test_a_returned_response_decides(telemetry, server, call, code, ended):
    """The response that a delivery returns says by its status how the attempt and the delivery ended."""
    result, category, outcome = ended
    server.answers["/hook"] = Answer(code, {"retry-after": "7"})
    await deliver(call, "POST", server.url("/hook"))
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {(result, category): 1}
    assert telemetry.by(names.OUTCOMES, "outcome", "error_category") == {(outcome, category): 1}
    found = telemetry.span("deliver").attributes
    assert (found["http.response.status_code"], found["rtobs.retry_after"]) == (code, 7)


async def test_a_failed_look_up_on_the_way_decides_nothing(telemetry, server, call):
    """A 404 that a delivery only looked at is no failure; the response it returns decides."""
    server.answers["/users/7"] = Answer(404)

    @rtobs.deliver("webhook", "acme")
    async def attempt() -> Any:
        assert status(await call("GET", server.url("/users/7"))) == 404
        return await call("POST", server.url("/hook"))

    await attempt()
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {("ok", ""): 1}
    assert telemetry.span("deliver").attributes["http.response.status_code"] == 200
    assert "http.request.resend_count" not in telemetry.span("deliver").attributes


ERRORS = (requests.RequestException, aiohttp.ClientError, TimeoutError)


@pytest.mark.parametrize("how", ["refused", "timeout", "hung-up", "in-circles"])
async def test_exceptions_go_on_and_decide(telemetry, server, call, how):
    """The client's own exception reaches the caller and says why the attempt failed; whom it asked is still noted."""
    server.answers |= {
        "/timeout": Answer(delay=30), "/hung-up": Answer(hang_up=True),
        "/in-circles": Answer(302, {"location": "/in-circles"}),
    }  # fmt: skip
    url = f"http://127.0.0.1:{free_port()}/" if how == "refused" else server.url(f"/{how}")
    options = {"timeout": scaled(0.2)} if how == "timeout" else {}
    with pytest.raises(ERRORS):
        await deliver(call, "POST", url, **options)
    category = {"timeout": "timeout", "in-circles": "validation"}.get(how, "transport")
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {("failed", category): 1}
    found = telemetry.span("deliver").attributes
    assert found["server.address"] == "127.0.0.1"
    assert ("http.response.status_code" in found) is (how == "in-circles" and not call.sync)
    assert engine.current() is None


async def test_a_cancelled_call_is_a_cancelled_attempt(telemetry, server):
    """A task that is cancelled in the middle of a call leaves the attempt cancelled, with the host it asked."""
    server.answers["/slow"] = Answer(delay=30)
    call = Client("aiohttp")
    task = asyncio.create_task(deliver(call, "POST", server.url("/slow")))
    await eventually(lambda: server.received)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await call.close()
    assert telemetry.by(names.ATTEMPTS, "result") == {"cancelled": 1}
    assert telemetry.span("deliver").attributes["server.port"] == server.port


async def test_an_error_that_the_session_raises_itself_is_described(telemetry, server):
    """Where aiohttp raises for a status, the status and how long to wait are noted all the same."""
    server.answers["/hook"] = Answer(429, {"retry-after": "7"})
    call = Client("aiohttp")
    with pytest.raises(aiohttp.ClientResponseError):
        await deliver(call, "POST", server.url("/hook"), raise_for_status=True)
    await call.close()
    found = telemetry.span("deliver").attributes
    assert (found["http.response.status_code"], found["rtobs.retry_after"]) == (429, 7)
    assert telemetry.by(names.ATTEMPTS, "error_category") == {"rate_limited": 1}


async def test_redirects_are_one_delivery(telemetry, server, call):
    """A call that is redirected twice is one attempt with two resends, and its last request is the one described."""
    server.answers |= {"/a": Answer(307, {"location": "/b"}), "/b": Answer(303, {"location": "/c"})}
    response = await deliver(call, "POST", server.url("/a"))
    assert [status(one) for one in response.history] == [307, 303]
    assert telemetry.count(names.ATTEMPTS) == 1
    found = telemetry.span("deliver").attributes
    assert found["http.request.resend_count"] == 2
    assert (found["http.request.method"], found["http.response.status_code"]) == ("GET", 200)


async def test_a_redirect_that_is_not_followed_is_none(telemetry, server, call):
    """Where the caller does not follow redirects, nothing was sent again, and the redirect is the answer."""
    server.answers["/a"] = Answer(307, {"location": "/b"})
    await deliver(call, "POST", server.url("/a"), allow_redirects=False)
    await deliver(call, "GET", server.url("/c"))
    first, second = telemetry.spans("deliver")
    assert first.attributes["http.response.status_code"] == 307
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.response.status_code"] == 200


async def test_a_renewed_login_is_a_resend(start, server, call):
    """A request that an authentication sends again is counted as resend of the same call, and has the headers too."""
    telemetry = start(propagate_to=["127.0.0.1"])
    challenge = {"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'}
    server.decide = lambda request: Answer(200) if "authorization" in request.headers else Answer(401, challenge)
    if call.sync:
        from requests.auth import HTTPDigestAuth

        await deliver(call, "POST", server.url("/hook"), auth=HTTPDigestAuth("me", "x"))
    else:
        await deliver(call, "POST", server.url("/hook"), middlewares=[aiohttp.DigestAuthMiddleware("me", "x")])
    found = telemetry.span("deliver").attributes
    assert (found["http.request.resend_count"], found["http.response.status_code"]) == (1, 200)
    assert telemetry.by(names.ATTEMPTS, "result") == {"ok": 1}
    assert ["rtobs-journey" in request.headers for request in server.received] == [True, True]


def test_a_call_inside_a_call_is_not_mixed_up_with_it(telemetry, server):
    """A call that a response hook makes, with the same session too, leaves the outer call's facts as they are."""
    server.answers |= {"/a": Answer(307, {"location": "/b"}), "/b": Answer(307, {"location": "/c"})}
    with rtobs.wrap(requests.Session()) as session, rtobs.deliver("webhook", "acme"):
        session.post(
            server.url("/a"), hooks={"response": lambda *_, **__: session.put(server.url("/audit"), hooks={}) and None}
        )
    found = telemetry.span("deliver").attributes
    assert (found["http.request.method"], found["http.request.resend_count"]) == ("POST", 2)


async def test_outside_a_delivery_nothing_happens(start, server, call):
    """Calls outside of `deliver`, also in other hops and with the host named, are neither noted nor given headers."""
    telemetry = start(propagate_to=["127.0.0.1"])
    await call("GET", server.url("/"))
    with rtobs.accept("/orders"):
        await call("GET", server.url("/"))
    assert [sent(request) for request in server.received] == [{}, {}]
    assert telemetry.count(names.ATTEMPTS) == 0


async def test_many_calls_at_a_time_do_not_mix(telemetry, server, call):
    """Concurrent deliveries through one session each note their own answer."""
    server.decide = lambda request: Answer(210 + int(request.path[1:]))

    async def one(number: int) -> None:
        with rtobs.deliver("webhook", "acme") as hop:
            hop.note(number=number)
            if call.sync:
                await asyncio.to_thread(call.session.get, server.url(f"/{number}"))
            else:
                await call("GET", server.url(f"/{number}"))

    await asyncio.gather(*(one(number) for number in range(10)))
    for span in telemetry.spans("deliver"):
        assert span.attributes["http.response.status_code"] == 210 + span.attributes["number"]


# Headers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def contrib() -> Generator[None, None, None]:
    """OpenTelemetry's own instrumentations of both clients; sessions made after this are instrumented."""
    both = AioHttpClientInstrumentor(), RequestsInstrumentor()
    for each in both:
        each.instrument(tracer_provider=user_provider(), skip_dep_check=True)
    yield
    for each in both:
        each.uninstrument()


async def acme(call: Client, url: str, **options: Any) -> Any:
    """Deliver for a tenant; return the hop's record."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme-tenant")
        with rtobs.deliver("webhook", "acme"):
            await call("POST", url, **options)
            return engine.current()


@pytest.mark.parametrize("instrumented", [False, True], ids=["alone", "with contrib"])
async def test_a_stranger_gets_nothing_of_ours(start, request, server, connect, instrumented):
    """A host that nobody named gets no header, id or tenant of ours, whoever instruments the client besides."""
    if instrumented:
        request.getfixturevalue("contrib")
    start(propagate_to=["localhost"])
    await acme(connect(), server.url("/hook"))
    [received] = server.received
    assert sent(received).keys() <= ({"traceparent"} if instrumented else set())
    assert "acme" not in str(received.headers)
    assert "rtobs" not in str(received.headers)


async def test_a_neighbours_span_is_a_child_of_the_delivery(telemetry, contrib, server, connect):
    """OpenTelemetry's span of the call is in the delivery's trace, below it, and we add none."""
    await deliver(connect(), "GET", server.url("/hook"))
    client, delivery = sorted(telemetry.spans(), key=lambda span: span.instrumentation_scope.name)
    assert client.kind is delivery.kind is SpanKind.CLIENT
    assert client.parent.span_id == delivery.context.span_id
    assert client.context.trace_id == delivery.context.trace_id


@pytest.mark.parametrize("named", ["127.0.0.1", "LOCALHOST", "localhost with contrib"])
async def test_a_named_host_gets_the_journey(start, request, server, connect, named):
    """A host in `propagate_to`, in any case of its letters, gets headers that a trusting service continues."""
    named, _, contrib = named.partition(" with ")
    if contrib:
        request.getfixturevalue(contrib)
    telemetry = start(propagate_to=[named])
    record = await acme(connect(), server.url("/hook", host=named.lower()), headers={"baggage": "theirs=1"})
    [received] = server.received
    with rtobs.accept("/hook", headers=received.headers, trust="trusted") as hop:
        assert hop.correlation_id == record.journey.correlation_id
        assert engine.current().journey.tenant == "acme-tenant"
        assert engine.current().parent_span_id == record.span_id
    assert "theirs=1" in received.headers["baggage"]
    assert telemetry.count(names.INTERNAL_ERRORS) == 0


@pytest.mark.parametrize("instrumented", [False, True], ids=["alone", "with contrib"])
async def test_a_redirect_takes_nothing_of_ours_to_another_host(start, request, server, connect, instrumented):
    """Where a named host redirects to one that is not, the second request carries nothing of ours."""
    if instrumented:
        request.getfixturevalue("contrib")
    start(propagate_to=["localhost"])
    server.answers["/a"] = Answer(307, {"location": server.url("/b", host="127.0.0.1")})
    await acme(connect(), server.url("/a", host="localhost"))
    first, second = server.received
    assert "rtobs-journey" in first.headers
    assert "rtobs-journey" not in second.headers
    assert "acme" not in str(second.headers)
    assert sent(second).keys() <= ({"traceparent"} if instrumented else set())


async def test_a_redirect_to_a_named_host_has_the_headers_once(start, server, call):
    """A stranger's redirect to a named host, and that host's own, carry each of our headers once."""
    start(propagate_to=["127.0.0.1"])
    server.answers |= {
        "/a": Answer(307, {"location": server.url("/b", host="127.0.0.1")}), "/b": Answer(307, {"location": "/c"}),
    }  # fmt: skip
    record = await acme(call, server.url("/a", host="localhost"))
    named = {"traceparent", "baggage", "rtobs-journey"}
    assert [set(sent(one)) for one in server.received] == [set(), named, named]
    assert {one.headers["traceparent"].split("-")[2] for one in server.received[1:]} == {f"{record.span_id:016x}"}


async def test_the_callers_headers_stay_as_they_were(start, server, call):
    """What the caller gave is not changed, and arrives but for what ours replaces; the session's own headers stay."""
    start(propagate_to=["127.0.0.1"])
    given = {"X-Mine": "a", "TraceParent": "mine"}
    before = dict(call.session.headers)
    await acme(call, server.url("/hook"), headers=given)
    assert given == {"X-Mine": "a", "TraceParent": "mine"}
    assert dict(call.session.headers) == before
    [received] = server.received
    assert received.headers["x-mine"] == "a"
    assert received.headers["traceparent"].startswith("00-")


def test_a_prepared_request_stays_as_it_was(start, server):
    """A request that the caller made has its own headers after it was sent, and is the response's request."""
    start(propagate_to=["127.0.0.1"])
    with rtobs.wrap(requests.Session()) as session:
        request = session.prepare_request(requests.Request("POST", server.url("/hook"), data=b"body"))
        headers, before = request.headers, dict(request.headers)
        with rtobs.deliver("webhook", "acme"):
            response = session.send(request)
    assert response.request is request
    assert request.headers is headers
    assert dict(headers) == before
    assert "rtobs-journey" in server.received[0].headers


async def test_a_request_that_a_middleware_sends_elsewhere_takes_nothing_along(start, server):
    """A middleware that sends the same request again, to another host, finds the caller's headers on it."""
    start(propagate_to=["localhost"])
    call = Client("aiohttp")
    seen: list[set[str]] = []

    async def twice(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        response = await handler(request)
        seen.append({name.lower() for name in request.headers} & set(OWN))
        return response

    await acme(call, server.url("/hook", host="localhost"), middlewares=[twice])
    await call.close()
    assert seen == [set()]
    assert "rtobs-journey" in server.received[0].headers


async def test_no_carrier_means_no_headers(start, server, connect):
    """`wrap(client, carrier=False)` writes nothing, also where the host is named."""
    start(propagate_to=["127.0.0.1"])
    await acme(connect(carrier=False), server.url("/hook"))
    assert sent(server.received[0]) == {}


# Wrapping ------------------------------------------------------------------------------------------------------------


async def test_a_wrapped_session_stays_itself(telemetry, server, connect):
    """`wrap` returns the same object of the same class, twice is once, others are untouched, `unwrap` undoes it."""
    call, other = connect(), connect()
    unwrap(other.session)
    cls = requests.Session if call.sync else aiohttp.ClientSession
    assert rtobs.wrap(call.session) is call.session
    assert call.session.__class__ is cls
    assert type(other.session) is cls
    for each in (call, other):
        await deliver(each, "GET", server.url("/"))
    unwrap(call.session)
    await deliver(call, "GET", server.url("/"))
    assert [len(span.attributes.keys() & {"server.port"}) for span in telemetry.spans("deliver")] == [1, 0, 0]


def test_an_adapter_that_is_mounted_later_is_seen(start, server):
    """Requests through an adapter that was mounted after the wrap are noted; the adapter stays itself."""
    telemetry = start(propagate_to=["127.0.0.1"])

    class Mine(requests.adapters.HTTPAdapter):
        pass

    with rtobs.wrap(requests.Session()) as session:
        adapter = Mine(max_retries=1)
        session.mount("http://127.0.0.1", adapter)
        assert session.get_adapter(server.url("/")) is adapter
        assert adapter.__class__ is Mine
        with rtobs.deliver("webhook", "acme"):
            session.get(server.url("/"))
    assert telemetry.span("deliver").attributes["server.port"] == server.port
    assert "rtobs-journey" in server.received[0].headers


async def test_a_wrapped_session_is_freed(telemetry, server, request):
    """Nothing of ours keeps a session alive once nobody uses it."""
    for library in ("aiohttp", "requests"):
        call = Client(library)
        await deliver(call, "GET", server.url("/"))
        await call.close()
        gone = weakref.ref(call.session)
        del call
        await eventually(lambda gone=gone: gc.collect() >= 0 and gone() is None)


async def test_what_is_no_session_is_refused(telemetry):
    """An application of aiohttp's server is not taken for a client."""
    import aiohttp.web

    with pytest.raises(UnsupportedError, match="only a ClientSession"):
        rtobs.wrap(aiohttp.web.Application())


@pytest.mark.parametrize("broken", ["_method", "_seconds"])
async def test_a_fault_of_ours_does_not_reach_the_caller(start, monkeypatch, server, call, broken):
    """Where our own code breaks, the call is made and answered all the same, and the fault is counted."""
    from rtobs._hop import http

    def fail(*_: Any) -> None:
        raise RuntimeError("ours")

    start(strict=False)
    monkeypatch.setattr(http, broken, fail)
    server.answers["/"] = Answer(429, {"retry-after": "1"})
    assert status(await deliver(call, "GET", server.url("/"))) == 429
    found = dict(_guard.tallies())
    assert found[names.INTERNAL_ERRORS.name, ("http.exchange",)] == 1
