"""The httpx leaf: detail of a delivery, and headers of ours only to hosts that are named."""

from __future__ import annotations

import asyncio
import gc
import inspect
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from opentelemetry import baggage, context
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import SpanKind

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop import engine
from rtobs.integrations import unwrap
from tests.support import telemetry as support
from tests.support.http import Answer, Received, Server, free_port, listening
from tests.support.telemetry import user_provider
from tests.support.timing import eventually, scaled

OWN = ("traceparent", "tracestate", "baggage", "rtobs-journey")


@pytest.fixture
def server() -> Generator[Server, None, None]:
    """A provider on this machine."""
    with listening() as found:
        yield found


@pytest.fixture
def start() -> Generator[Callable[..., support.Telemetry], None, None]:
    """Configures rtobs for one test, as `configure` takes it; see `telemetry` for the usual."""
    yield support.start
    support.stop()


Call = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request) -> Callable[..., AbstractAsyncContextManager[Call]]:
    """Makes a wrapped client, sync or async, as one coroutine function: ``await call(method, url, **options)``."""

    @asynccontextmanager
    async def make(**options: Any) -> AsyncGenerator[Call, None]:
        wrapping = options.pop("wrapping", {})
        cls = httpx.Client if request.param == "sync" else httpx.AsyncClient
        client = rtobs.wrap(cls(**options), **wrapping)

        async def call(method: str, url: str, **more: Any) -> httpx.Response:
            response = client.request(method, url, **more)
            return await response if inspect.isawaitable(response) else response

        call.client = client  # type: ignore[attr-defined]
        try:
            yield call
        finally:
            closed = client.close() if isinstance(client, httpx.Client) else client.aclose()
            if inspect.isawaitable(closed):
                await closed

    return make


async def deliver(call: Call, method: str, url: str, **options: Any) -> httpx.Response:
    @rtobs.deliver("webhook", "acme")
    async def attempt() -> httpx.Response:
        return await call(method, url, **options)

    return await attempt()


# Detail --------------------------------------------------------------------------------------------------------------


async def test_a_delivery_says_whom_it_asked_and_how_it_was_answered(telemetry, server, connect):
    """Method, host, port and status are attributes of the delivery, and there is no hop or span but its own."""
    async with connect() as call:
        response = await deliver(call, "POST", server.url("/hook"), json={"secret": 1})
    assert response.status_code == 200
    [span] = telemetry.spans()
    found = {name: value for name, value in span.attributes.items() if not name.startswith("rtobs.")}
    assert found == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.response.status_code": 200,
    }
    assert telemetry.by(names.ATTEMPTS, "channel", "provider", "result") == {("webhook", "acme", "ok"): 1}


async def test_the_port_of_the_scheme_is_said_where_the_url_has_none(telemetry, connect):
    """Without a port in the URL the one that the scheme stands for is noted."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    async with connect(transport=httpx.MockTransport(answer)) as call:
        await deliver(call, "GET", "https://hooks.example/x")
        await deliver(call, "GET", "http://hooks.example/x")
    assert [span.attributes["server.port"] for span in telemetry.spans("deliver")] == [443, 80]


async def test_nothing_secret_is_noted(telemetry, server, connect):
    """Neither path, query, user, password, headers nor body of a call reach a span or a log event."""
    server.answers["/hook-s3cret"] = Answer(500, {"x-s3cret": "s3cret"}, b"s3cret")
    async with connect() as call:
        url = f"http://s3cret:s3cret@127.0.0.1:{server.port}/hook-s3cret?token=s3cret#s3cret"
        await deliver(call, "POST", url, content=b"s3cret", headers={"authorization": "s3cret"})
    assert "s3cret" not in str([(span.name, dict(span.attributes), span.events) for span in telemetry.spans()])
    assert len(telemetry.events) == 1
    assert "s3cret" not in str(telemetry.events)


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        (200, ("ok", "", "ok")),
        (404, ("failed", "recipient", "rejected")),
        (429, ("failed", "rate_limited", "failed")),
        (500, ("failed", "unavailable", "failed")),
    ],
)
async def test_a_returned_response_decides(telemetry, server, connect, status, ended):
    """The response that a delivery returns says by its status how the attempt and the delivery ended."""
    result, category, outcome = ended
    server.answers["/hook"] = Answer(status)
    async with connect() as call:
        response = await deliver(call, "POST", server.url("/hook"))
    assert response.status_code == status
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {(result, category): 1}
    assert telemetry.by(names.OUTCOMES, "outcome", "error_category") == {(outcome, category): 1}
    assert telemetry.span("deliver").attributes["http.response.status_code"] == status


async def test_a_failed_look_up_on_the_way_decides_nothing(telemetry, server, connect):
    """A 404 that a delivery only looked at is no failure; the response it returns decides."""
    server.answers["/users/7"] = Answer(404)
    async with connect() as call:

        @rtobs.deliver("webhook", "acme")
        async def attempt() -> httpx.Response:
            assert (await call("GET", server.url("/users/7"))).status_code == 404
            return await call("POST", server.url("/hook"))

        await attempt()
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {("ok", ""): 1}
    assert telemetry.span("deliver").attributes["http.response.status_code"] == 200
    assert "http.request.resend_count" not in telemetry.span("deliver").attributes


async def test_without_a_returned_response_nothing_is_decided(telemetry, server, connect):
    """A delivery in a `with` block, or one that returns something else, is ok unless an exception says otherwise."""
    server.answers["/hook"] = Answer(500)
    async with connect() as call:
        with rtobs.deliver("webhook", "acme"):
            await call("POST", server.url("/hook"))
        with pytest.raises(httpx.HTTPStatusError), rtobs.deliver("webhook", "acme"):
            (await call("POST", server.url("/hook"))).raise_for_status()
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {
        ("ok", ""): 1,
        ("failed", "unavailable"): 1,
    }


async def test_judge_goes_before_the_status(telemetry, server, connect):
    """What `judge=` makes of the returned response counts, whatever its status."""
    async with connect() as call:

        @rtobs.deliver("webhook", "acme", judge=lambda _: rtobs.ErrorCategory.REJECTED_DOWNSTREAM)
        async def attempt() -> httpx.Response:
            return await call("POST", server.url("/hook"))

        await attempt()
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {("failed", "rejected_downstream"): 1}


async def refused(server: Server, call: Call) -> tuple[str, str]:
    with pytest.raises(httpx.ConnectError):
        await deliver(call, "POST", f"http://127.0.0.1:{free_port()}/")
    return "failed", "transport"


async def read_timeout(server: Server, call: Call) -> tuple[str, str]:
    server.answers["/slow"] = Answer(delay=30)
    with pytest.raises(httpx.ReadTimeout):
        await deliver(call, "POST", server.url("/slow"), timeout=scaled(0.1))
    return "failed", "timeout"


async def hung_up(server: Server, call: Call) -> tuple[str, str]:
    server.answers["/gone"] = Answer(hang_up=True)
    with pytest.raises(httpx.RemoteProtocolError):
        await deliver(call, "POST", server.url("/gone"))
    return "failed", "transport"


async def no_tls(server: Server, call: Call) -> tuple[str, str]:
    with pytest.raises(httpx.ConnectError) as caught:
        await deliver(call, "POST", server.url("/").replace("http", "https"))
    assert isinstance(caught.value.__context__.__context__, ssl.SSLError) or "SSL" in str(caught.value)
    return "failed", "transport"


async def round_in_circles(server: Server, call: Call) -> tuple[str, str]:
    server.answers["/round"] = Answer(302, {"location": "/round"})
    with pytest.raises(httpx.TooManyRedirects):
        await deliver(call, "POST", server.url("/round"), follow_redirects=True)
    return "failed", "validation"


@pytest.mark.parametrize("how", [refused, read_timeout, hung_up, no_tls, round_in_circles])
async def test_exceptions_go_on_and_decide(telemetry, server, connect, how):
    """The client's own exception reaches the caller and says why the attempt failed; whom it asked is still noted."""
    async with connect() as call:
        result = await how(server, call)
    assert telemetry.by(names.ATTEMPTS, "result", "error_category") == {result: 1}
    found = telemetry.span("deliver").attributes
    assert found["server.address"] == "127.0.0.1"
    assert ("http.response.status_code" in found) is False
    assert found.get("http.request.resend_count") == (20 if how is round_in_circles else None)
    assert engine.current() is None


async def test_a_cancelled_call_is_a_cancelled_attempt(telemetry, server):
    """A task that is cancelled in the middle of a call leaves the attempt cancelled, with the host it asked."""
    server.answers["/slow"] = Answer(delay=30)
    async with rtobs.wrap(httpx.AsyncClient(timeout=60)) as client:
        task = asyncio.create_task(deliver(client.request, "POST", server.url("/slow")))
        await eventually(lambda: server.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert telemetry.by(names.ATTEMPTS, "result") == {"cancelled": 1}
    assert telemetry.span("deliver").attributes["server.port"] == server.port


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("120", 120), (" 7 ", 7), ("9" * 400, 10_000_000), ("-1", None), ("soon", None), ("", None), ("1.5", None)],
)
async def test_retry_after_is_noted_in_seconds(telemetry, server, connect, said, seconds):
    """How long a provider asks to be left alone is an attribute in seconds; what makes no sense is left out."""
    server.answers["/hook"] = Answer(429, {"retry-after": said})
    async with connect() as call:
        await deliver(call, "POST", server.url("/hook"))
    assert telemetry.span("deliver").attributes.get("rtobs.retry_after") == seconds


@pytest.mark.parametrize("minutes", [10, -10])
async def test_retry_after_may_be_a_date(telemetry, clock, server, connect, minutes):
    """A date becomes the seconds until then, and one that has passed becomes 0."""
    now = datetime.fromtimestamp(clock() // 10**9, UTC)
    server.answers["/hook"] = Answer(
        503, {"retry-after": format_datetime(now + timedelta(minutes=minutes), usegmt=True)}
    )
    async with connect() as call:
        await deliver(call, "POST", server.url("/hook"))
    assert telemetry.span("deliver").attributes["rtobs.retry_after"] == pytest.approx(max(minutes * 60, 0), abs=1)


async def test_redirects_are_one_delivery(telemetry, server, connect):
    """A call that is redirected twice is one attempt with two resends, and its last request is the one described."""
    server.answers |= {"/a": Answer(307, {"location": "/b"}), "/b": Answer(303, {"location": "/c"})}
    async with connect(follow_redirects=True) as call:
        response = await deliver(call, "POST", server.url("/a"))
    assert [one.status_code for one in response.history] == [307, 303]
    assert telemetry.count(names.ATTEMPTS) == 1
    found = telemetry.span("deliver").attributes
    assert found["http.request.resend_count"] == 2
    assert (found["http.request.method"], found["http.response.status_code"]) == ("GET", 200)


def test_a_call_inside_a_call_is_not_mixed_up_with_it(telemetry, server):
    """A call that an event hook makes with another wrapped client leaves the outer call's facts as they are."""
    server.answers |= {"/a": Answer(307, {"location": "/b"}), "/b": Answer(307, {"location": "/c"})}
    with rtobs.wrap(httpx.Client(follow_redirects=True)) as client, rtobs.wrap(httpx.Client()) as other:
        client.event_hooks = {"response": [lambda _: other.put(server.url("/audit"))]}
        with rtobs.deliver("webhook", "acme"):
            client.post(server.url("/a"))
    found = telemetry.span("deliver").attributes
    assert (found["http.request.method"], found["http.request.resend_count"]) == ("POST", 2)


async def test_a_renewed_login_is_a_resend(telemetry, server, connect):
    """A request that an authentication flow sends again is counted as resend of the same call."""

    class Token(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            response = yield request
            if response.status_code == 401:
                request.headers["authorization"] = "new"
                yield request

    server.decide = lambda request: Answer(200 if request.headers.get("authorization") == "new" else 401)
    async with connect(auth=Token()) as call:
        await deliver(call, "POST", server.url("/hook"))
    found = telemetry.span("deliver").attributes
    assert (found["http.request.resend_count"], found["http.response.status_code"]) == (1, 200)
    assert telemetry.by(names.ATTEMPTS, "result") == {"ok": 1}


async def test_streamed_responses_are_noted_before_their_body(telemetry, server):
    """`stream()` is described when its headers are there, its body is read by the caller, and an unread one is left."""
    server.answers["/big"] = Answer(200, body=b"x" * 100_000)
    url = server.url("/big")
    with rtobs.wrap(httpx.Client()) as client, rtobs.deliver("webhook", "acme"), client.stream("GET", url) as response:
        assert not response.is_stream_consumed
        assert len(response.read()) == 100_000
    async with rtobs.wrap(httpx.AsyncClient()) as client:
        with rtobs.deliver("webhook", "acme"):
            async with client.stream("GET", url) as response:
                assert not response.is_stream_consumed
    assert [span.attributes["http.response.status_code"] for span in telemetry.spans("deliver")] == [200, 200]


async def test_outside_a_delivery_nothing_happens(start, server, connect):
    """Calls outside of `deliver`, also in other hops and with the host named, are neither noted nor given headers."""
    telemetry = start(propagate_to=["127.0.0.1"])
    async with connect() as call:
        await call("GET", server.url("/"))
        with rtobs.accept("/orders"):
            await call("GET", server.url("/"))
    assert [set(OWN) & request.headers.keys() for request in server.received] == [set(), set()]
    assert telemetry.count(names.ATTEMPTS) == 0


async def test_many_calls_at_a_time_do_not_mix(telemetry, server):
    """Concurrent deliveries through one client, in tasks and in threads, each note their own answer."""
    server.decide = lambda request: Answer(210 + int(request.path[1:]), {"retry-after": request.path[1:]})

    async with rtobs.wrap(httpx.AsyncClient()) as client:
        await asyncio.gather(*(deliver(client.request, "GET", server.url(f"/{n}")) for n in range(30)))
    with rtobs.wrap(httpx.Client()) as client:

        def work(n: int) -> None:
            rtobs.deliver("webhook", "thread")(lambda: client.get(server.url(f"/{n}")))()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [span.attributes for span in telemetry.spans("deliver")]
    assert sorted(one["http.response.status_code"] for one in found) == sorted([*range(210, 240)] * 2)
    assert all(one["http.response.status_code"] == 210 + one["rtobs.retry_after"] for one in found)


# What goes out -------------------------------------------------------------------------------------------------------


@pytest.fixture
def contrib() -> Generator[None, None, None]:
    """OpenTelemetry's own instrumentation of httpx, switched on for every client."""
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=user_provider())
    try:
        yield
    finally:
        instrumentor.uninstrument()


async def acme(call: Call, url: str, **options: Any) -> Any:
    """Deliver for the tenant acme, with somebody else's baggage around; return the hop's record."""
    token = context.attach(baggage.set_baggage("theirs", "1"))
    try:
        with rtobs.deliver("webhook", "acme") as hop:
            hop.segment(tenant="acme-tenant")
            await call("POST", url, **options)
            return engine.current()
    finally:
        context.detach(token)


def sent(request: Received) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name in OWN}


@pytest.mark.parametrize("instrumented", [False, True], ids=["alone", "with contrib"])
async def test_the_default_propagator_never_sends_our_tenant_to_a_third_party(
    telemetry, request, server, connect, instrumented
):
    """A host that nobody named gets no journey, tenant or correlation id, whatever OpenTelemetry's own client sends."""
    if instrumented:
        request.getfixturevalue("contrib")
    async with connect() as call:
        record = await acme(call, server.url("/hook"))
    [received] = server.received
    if instrumented:
        assert set(sent(received)) == {"traceparent", "baggage"}
        assert received.headers["baggage"] == "theirs=1"
        neighbours = [span for span in telemetry.spans() if "httpx" in span.instrumentation_scope.name]
        assert [span.parent.span_id for span in neighbours] == [record.span_id]
        assert received.headers["traceparent"].split("-")[2] == f"{neighbours[0].context.span_id:016x}"
    else:
        assert sent(received) == {}
    everything = str(received).lower()
    assert "rtobs" not in everything
    assert "acme" not in everything
    if not instrumented:  # else the trace id that it sends is the journey's name
        assert record.journey.correlation_id not in everything


async def test_a_neighbours_span_is_a_child_of_the_delivery(telemetry, contrib, server, connect):
    """OpenTelemetry's span of the call is in the delivery's trace, below it, and we add none."""
    async with connect() as call:
        await deliver(call, "GET", server.url("/hook"))
    client, delivery = sorted(telemetry.spans(), key=lambda span: span.instrumentation_scope.name)
    assert client.kind is delivery.kind is SpanKind.CLIENT
    assert client.parent.span_id == delivery.context.span_id
    assert client.context.trace_id == delivery.context.trace_id


NAMED = pytest.mark.parametrize("named", ["127.0.0.1", "LOCALHOST"])


@NAMED
async def test_a_named_host_gets_the_journey(start, server, connect, named):
    """A host in `propagate_to`, in any case of its letters, gets headers that a trusting service continues."""
    telemetry = start(propagate_to=[named])
    async with connect() as call:
        record = await acme(call, server.url("/hook", host=named.lower()))
    [received] = server.received
    with rtobs.accept("/hook", headers=received.headers, trust="trusted") as hop:
        assert hop.correlation_id == record.journey.correlation_id
        assert engine.current().journey.tenant == "acme-tenant"
        assert engine.current().parent_span_id == record.span_id
    assert "theirs=1" in received.headers["baggage"]
    assert telemetry.count(names.INTERNAL_ERRORS) == 0


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("example.org", "api.example.org"),
        ("api.example.org", "example.org"),
        ("example.org", "example.org.evil.example"),
        ("example.org", "notexample.org"),
        ("*.example.org", "api.example.org"),
        ("example.org", "example.org."),
    ],
)
async def test_only_exactly_that_host_gets_the_journey(start, connect, named, asked):
    """A host does not stand for its subdomains, its parents or its look-alikes, and a pattern is no host."""
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200)

    start(propagate_to=[named])
    async with connect(transport=httpx.MockTransport(answer)) as call:
        await acme(call, f"https://{asked}/hook?host={named}")
        await acme(call, f"https://{named.replace('*', 'x')}@{asked}/hook")
    assert [set(OWN) & headers.keys() for headers in seen] == [set(), set()]


async def test_a_host_is_compared_as_it_is_asked(start, connect):
    """A host with letters beyond ASCII is named in the form that goes over the wire."""
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200)

    start(propagate_to=["xn--bcher-kva.example"])
    async with connect(transport=httpx.MockTransport(answer)) as call:
        await acme(call, "https://bücher.example/")
    assert "rtobs-journey" in seen[0]


@pytest.mark.parametrize("instrumented", [False, True], ids=["alone", "with contrib"])
async def test_a_redirect_takes_nothing_of_ours_to_another_host(start, request, server, connect, instrumented):
    """Where a named host redirects to one that is not, the second request carries nothing of ours."""
    if instrumented:
        request.getfixturevalue("contrib")
    start(propagate_to=["localhost"])
    server.answers["/a"] = Answer(307, {"location": server.url("/b", host="127.0.0.1")})
    async with connect(follow_redirects=True) as call:
        await acme(call, server.url("/a", host="localhost"))
    first, second = server.received
    assert "rtobs-journey" in first.headers
    assert "rtobs-journey" not in second.headers
    assert "acme" not in str(second.headers)
    assert sent(second).keys() == ({"traceparent", "baggage"} if instrumented else set())


async def test_a_redirect_back_to_a_named_host_has_the_headers_once(start, server, connect):
    """Every request to a named host has exactly one of each of our headers."""
    start(propagate_to=["127.0.0.1"])
    server.answers["/a"] = Answer(307, {"location": "/b"})
    async with connect(follow_redirects=True) as call:
        record = await acme(call, server.url("/a"))
    assert [set(sent(one)) for one in server.received] == [{"traceparent", "baggage", "rtobs-journey"}] * 2
    assert {one.headers["traceparent"].split("-")[2] for one in server.received} == {f"{record.span_id:016x}"}


async def test_headers_of_ours_replace_and_the_rest_stays(start, connect):
    """Headers that the caller set under our names are replaced, never doubled, and all others go as they were."""
    seen: list[list[tuple[bytes, bytes]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.raw)
        return httpx.Response(200)

    mine = [("X-Mine", "a"), ("x-mine", "b"), ("TraceParent", "mine"), ("traceparent", "mine"), ("baggage", "k=v")]
    start(propagate_to=["hooks.example"])
    async with connect(transport=httpx.MockTransport(answer), headers={"User-Agent": "me"}) as call:
        await acme(call, "https://hooks.example/", headers=mine)
        await acme(call, "https://other.example/", headers=mine)
    named, other = seen
    own = (b"traceparent", b"baggage", b"rtobs-journey")
    foreign = [[pair for pair in one if pair[0].lower() not in (*own, b"host")] for one in seen]
    assert foreign[0] == foreign[1]
    assert [pair for pair in other if pair[0].lower() in own] == [
        (b"TraceParent", b"mine"), (b"traceparent", b"mine"), (b"baggage", b"k=v"),
    ]  # fmt: skip
    assert sorted(name.lower() for name, _ in named if name.lower() in own) == sorted(own)
    assert b"k=v" in dict(named)[b"baggage"]


@pytest.mark.parametrize("named", [True, False])
async def test_the_callers_request_stays_as_it_was(start, server, named):
    """A request object that the caller made has the same headers after it was sent, and is the response's request."""
    start(propagate_to=["127.0.0.1"] if named else [])
    async with rtobs.wrap(httpx.AsyncClient()) as client:
        request = client.build_request("POST", server.url("/hook"), content=b"body")
        headers, before = request.headers, list(request.headers.raw)
        with rtobs.deliver("webhook", "acme"):
            response = await client.send(request)
    assert response.request is request
    assert request.headers is headers
    assert headers.raw == before
    assert ("rtobs-journey" in server.received[0].headers) is named
    assert server.received[0].body == b"body"


async def test_no_carrier_means_no_headers(start, server, connect):
    """`wrap(client, carrier=False)` writes nothing, also where the host is named."""
    start(propagate_to=["127.0.0.1"])
    async with connect(wrapping={"carrier": False}) as call:
        await acme(call, server.url("/hook"))
    assert sent(server.received[0]) == {}


# Wrapping ------------------------------------------------------------------------------------------------------------


async def test_a_wrapped_client_stays_itself(telemetry, server):
    """`wrap` returns the same object of the same class, twice is once, others are untouched, `unwrap` undoes it."""

    class Mine(httpx.Client):
        calls = 0

        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            Mine.calls += 1
            return super().send(request, **options)

    with Mine() as client, httpx.Client() as other:
        assert rtobs.wrap(rtobs.wrap(client)) is client
        assert isinstance(client, Mine)
        assert client.__class__ is Mine
        assert type(other) is httpx.Client
        for one in (client, other):
            with rtobs.deliver("webhook", "acme"):
                one.get(server.url("/"))
        assert unwrap(client) is client
        assert type(client) is Mine
        with rtobs.deliver("webhook", "acme"):
            client.get(server.url("/"))
    assert Mine.calls == 2
    assert [len(span.attributes.keys() & {"server.port"}) for span in telemetry.spans("deliver")] == [1, 0, 0]


async def test_a_wrapped_client_is_freed(telemetry, server):
    """Nothing of ours keeps a client alive once nobody uses it."""
    client = rtobs.wrap(httpx.Client())
    with rtobs.deliver("webhook", "acme"):
        client.get(server.url("/"))
    client.close()
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("broken", ["_method", "_seconds"])
async def test_a_fault_of_ours_does_not_reach_the_caller(start, monkeypatch, server, connect, broken):
    """Where our own code breaks, the call is made and answered all the same, and the fault is counted."""
    from rtobs._hop import http

    def fail(*_: Any) -> None:
        raise RuntimeError("ours")

    start(strict=False)
    monkeypatch.setattr(http, broken, fail)
    server.answers["/"] = Answer(429, {"retry-after": "1"})
    async with connect() as call:
        assert (await deliver(call, "GET", server.url("/"))).status_code == 429
    found = dict(_guard.tallies())
    assert found[names.INTERNAL_ERRORS.name, ("http.exchange",)] == 1
