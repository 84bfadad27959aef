"""How a request ends, and where its hop is meanwhile: responses, exceptions, streams, threads, background tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, HTTPException
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware import Middleware as Entry
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Route

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs.integrations import memory
from rtobs.integrations.asgi import Middleware
from tests.integrations.web import api, client, get, routes
from tests.support.http import serving
from tests.support.timing import eventually, scaled

# Outcomes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome", "category"),
    [
        (200, "ok", ""),
        (204, "ok", ""),
        (302, "ok", ""),
        (400, "failed", "validation"),
        (401, "failed", "auth"),
        (404, "failed", "recipient"),
        (408, "failed", "timeout"),
        (418, "failed", "rejected_downstream"),
        (429, "failed", "rate_limited"),
        (500, "failed", "unavailable"),
        (503, "failed", "unavailable"),
    ],
)
@pytest.mark.parametrize("way", ["middleware", "wrap"])
async def test_the_status_decides(telemetry, status, outcome, category, way):
    """Below 400 a request is ok; from 400 on it failed, in the category that the status stands for."""

    async def answer(request: Request) -> Any:
        return RedirectResponse("/") if status == 302 else PlainTextResponse("", status)

    app = Starlette(routes=[Route("/x", answer)], middleware=[Entry(Middleware)] if way == "middleware" else [])
    if way == "wrap":
        rtobs.wrap(app)
    assert (await get(app, "/x")).status_code in (status, 307)
    assert telemetry.by(names.ACCEPT_DURATION, "route", "outcome", "error_category") == {("/x", outcome, category): 1}
    found = telemetry.span("accept")
    assert found.kind is SpanKind.SERVER
    assert found.attributes.get("rtobs.reason") == (str(status) if status >= 400 else None)


async def test_http_exceptions_count_by_their_status(telemetry):
    """An `HTTPException` that the framework turns into a response is that status, not a bug of ours."""
    app = api()
    app.add_middleware(Middleware)

    @app.get("/x")
    def x() -> None:
        raise HTTPException(404)

    await get(app, "/x")
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {("failed", "recipient"): 1}


@pytest.mark.parametrize("way", ["middleware", "wrap", "bare"])
async def test_an_exception_goes_on_unchanged_and_is_the_reason(telemetry, way):
    """What the endpoint raised reaches the caller as the same object, and the hop says what it was."""
    error = KeyError("missing")

    async def broken(request: Request) -> PlainTextResponse:
        raise error

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        raise error

    app: Any = Starlette(routes=[Route("/x", broken)])
    if way == "middleware":
        app.add_middleware(Middleware)
    elif way == "wrap":
        app = rtobs.wrap(app)
    else:
        app = rtobs.wrap(bare)
    async with client(app) as caller:
        with pytest.raises(KeyError) as caught:
            await caller.get("/x")
    assert caught.value is error
    assert error.__cause__ is None
    found = telemetry.span("accept")
    assert found.attributes["rtobs.error_category"] == "internal"
    assert found.attributes["error.type"] == found.attributes["rtobs.reason"] == "KeyError"
    [event] = telemetry.events
    assert (event["event"], event["error"]) == ("accept.failed", "KeyError: 'missing'")


@pytest.mark.parametrize("status", [500, 200])
async def test_an_exception_behind_a_response_is_the_reason_if_that_said_error(telemetry, status):
    """A framework that answers 500 and then raises has failed by the exception; what follows a good answer is late."""

    async def framework(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("", status)(scope, receive, send)
        raise KeyError("missing")

    await get(rtobs.wrap(framework))
    found = telemetry.span("accept").attributes
    assert found["rtobs.outcome"] == ("failed" if status == 500 else "ok")
    assert found.get("error.type") == ("KeyError" if status == 500 else None)


async def test_the_user_decides_over_the_status(telemetry):
    """`hop.outcome` goes before what the response says."""
    app = api()
    app.add_middleware(Middleware)

    @app.get("/gone")
    def gone() -> JSONResponse:
        rtobs.current().outcome(rtobs.Outcome.OK)
        return JSONResponse({}, 410)

    await get(app, "/gone")
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"ok": 1}


async def test_no_response_is_a_failure(telemetry):
    """An application that returns without a response has failed, although nothing was raised."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    with pytest.raises(AssertionError):  # the transport's own complaint
        await get(rtobs.wrap(silent))
    assert telemetry.span("accept").attributes["rtobs.reason"] == "no_response"
    assert routes(telemetry) == {"unmatched": 1}


async def test_a_stream_is_one_hop_until_its_last_byte(telemetry):
    """A streamed response is timed until it is complete, and code that runs while it streams is in the hop."""
    open_while_streaming = []

    async def chunks() -> Any:
        for _ in range(3):
            await asyncio.sleep(scaled(0.05))
            open_while_streaming.append(telemetry.spans("accept") == [])
            rtobs.current().note(streamed=True)
            yield b"x"

    app = Starlette(routes=[Route("/s", lambda request: StreamingResponse(chunks()))], middleware=[Entry(Middleware)])
    async with serving(app) as url, httpx.AsyncClient() as caller:
        assert (await caller.get(url + "/s")).content == b"xxx"
        await eventually(lambda: telemetry.spans("accept"))
    assert open_while_streaming == [True] * 3
    assert telemetry.seconds(names.ACCEPT_DURATION, route="/s", outcome="ok") >= scaled(0.15)
    assert telemetry.span("accept").attributes["streamed"] is True


async def test_an_exception_in_the_middle_of_a_stream_is_a_failure(telemetry):
    """A response that began well and broke off is failed, whatever its status said."""

    async def chunks() -> Any:
        yield b"x"
        raise RuntimeError("broke off")

    app = Starlette(routes=[Route("/s", lambda request: StreamingResponse(chunks()))], middleware=[Entry(Middleware)])
    async with client(app) as caller:
        with pytest.raises(RuntimeError):
            await caller.get("/s")
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {("failed", "internal"): 1}


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "http.response.body", "body": b"a", "more_body": True}, {"type": "http.response.body"}],
        [{"type": "http.response.pathsend", "path": "/x"}],
        [{"type": "http.response.zerocopysend", "file": 3}],
        [{"type": "http.response.body"}, {"type": "http.response.trailers", "headers": []}],
    ],
    ids=["body", "pathsend", "zerocopysend", "trailers"],
)
async def test_the_last_event_of_a_response_ends_the_hop(telemetry, events):
    """However a server is told that the response is complete, the hop ends there, before the application returns."""
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        has_trailers = events[-1]["type"] == "http.response.trailers"
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": has_trailers})
        for event in events:
            ended.append(engine.current().ended)
            await send(event)
        ended.append(engine.current().ended)

    async def send(event: Any) -> None:
        pass

    await rtobs.wrap(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)
    assert ended == [False] * len(events) + [True]
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"ok": 1}


@pytest.mark.parametrize("way", ["middleware", "wrap"])
async def test_a_client_that_hangs_up_is_a_cancelled_request(telemetry, way):
    """Over a real socket, a client that goes away in the middle of a stream makes it cancelled, not failed."""
    hung_up = asyncio.Event()

    async def endless() -> Any:
        while not hung_up.is_set() or not telemetry.spans("accept"):
            yield b"x" * 1024
            await asyncio.sleep(0.01)

    app = Starlette(routes=[Route("/s", lambda request: StreamingResponse(endless()))])
    if way == "wrap":
        rtobs.wrap(app)
    else:
        app.add_middleware(Middleware)
    async with serving(app) as url:
        async with httpx.AsyncClient() as caller, caller.stream("GET", url + "/s") as response:
            await anext(response.aiter_raw())
        hung_up.set()
        await eventually(lambda: telemetry.spans("accept"))
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {("cancelled", ""): 1}
    assert telemetry.span("accept").attributes["rtobs.reason"] == "client_disconnected"


async def test_a_body_that_breaks_off_is_a_cancelled_request(telemetry):
    """Over a real socket, a client that goes away before its body is complete makes the request cancelled."""

    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = rtobs.wrap(Starlette(routes=[Route("/b", read, methods=["POST"])]))
    async with serving(app) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        await eventually(lambda: telemetry.count(names.HOPS_ACTIVE, kind="accept"))
        writer.close()
        await eventually(lambda: telemetry.spans("accept"))
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"cancelled": 1}


async def test_a_server_that_cannot_send_is_a_cancelled_request(telemetry):
    """A server that raises OSError where nobody listens any more is told apart from one of the application's own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/own":
            raise ConnectionRefusedError("the database")
        await PlainTextResponse("x")(scope, receive, send)

    async def send(event: Any) -> None:
        raise BrokenPipeError

    for path, error in (("/", BrokenPipeError), ("/own", ConnectionRefusedError)):
        with pytest.raises(error):
            await rtobs.wrap(app)({"type": "http", "method": "GET", "path": path, "headers": []}, None, send)
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {
        ("cancelled", ""): 1,
        ("failed", "transport"): 1,
    }


async def test_a_failure_after_the_client_hung_up_is_still_a_failure(telemetry):
    """An application that breaks by itself has failed, whether or not somebody still listened."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"
        raise KeyError("missing")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(KeyError):
        await rtobs.wrap(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, None)
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {("failed", "internal"): 1}


async def test_a_cancelled_task_is_a_cancelled_request(telemetry):
    """A request whose task is cancelled ends cancelled, and the cancellation goes on."""

    async def slow(request: Request) -> PlainTextResponse:
        await asyncio.sleep(60)
        return PlainTextResponse("")

    app = rtobs.wrap(Starlette(routes=[Route("/slow", slow)]))
    task = asyncio.create_task(get(app, "/slow"))
    await eventually(lambda: telemetry.count(names.HOPS_ACTIVE, kind="accept"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert telemetry.by(names.ACCEPT_DURATION, "route", "outcome") == {("/slow", "cancelled"): 1}


@pytest.mark.parametrize(("status", "counted"), [(200, 3), (400, 0), (500, 0)])
async def test_promises_count_only_if_the_request_was_ok(telemetry, status, counted):
    """What an endpoint intends is counted when it answers below 400, and forgotten otherwise."""
    app = api()
    app.add_middleware(Middleware)

    @app.get("/notify")
    def notify() -> JSONResponse:
        rtobs.current().segment(tenant="acme")
        rtobs.current().intend("push", "a", "b", "c")
        return JSONResponse({}, status)

    await get(app, "/notify")
    assert telemetry.count(names.INTENTS, channel="push", tenant="acme") == counted
    assert telemetry.count(names.INTENTS) == counted


# The hop is where the code is ----------------------------------------------------------------------------------------


async def test_200_requests_at_a_time_each_see_their_own_hop(telemetry):
    """Under a real server every concurrent request, sync or async, keeps its own correlation id to the end."""
    app = api()
    app.add_middleware(Middleware)
    together = asyncio.Semaphore(0)

    @app.get("/wait/{n}")
    async def wait(n: int) -> list[str]:
        first = rtobs.current().correlation_id
        if n == 99:
            for _ in range(99):
                together.release()
        else:
            await together.acquire()
        with rtobs.stage("after"):
            return [first, rtobs.current().correlation_id]

    @app.get("/thread/{n}")
    def thread(n: int) -> list[str]:
        first = rtobs.current().correlation_id
        return [first, rtobs.current().correlation_id]

    limits = httpx.Limits(max_connections=200)
    async with serving(app) as url, httpx.AsyncClient(limits=limits, timeout=scaled(30) + 30) as caller:
        paths = [f"/wait/{n}" for n in range(100)] + [f"/thread/{n}" for n in range(100)]
        answers = await asyncio.gather(*(caller.get(url + path) for path in paths))
        await eventually(lambda: sum(routes(telemetry).values()) == 200)
    seen = [answer.json() for answer in answers]
    assert all(first == second != "" for first, second in seen)
    assert len({first for first, _ in seen}) == 200
    assert routes(telemetry) == {"/wait/{n}": 100, "/thread/{n}": 100}
    assert {s.attributes["rtobs.correlation_id"] for s in telemetry.spans("accept")} == {first for first, _ in seen}
    assert telemetry.count(names.HOPS_ACTIVE, kind="accept") == 0


@pytest.mark.parametrize("position", ["outside", "inside", "both"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_base_http_middleware_does_not_break_the_context(telemetry, position, kind):
    """With `BaseHTTPMiddleware` around or inside, endpoint and `dispatch` see the hop of their request."""
    seen: list[str] = []

    async def dispatch(request: Request, call_next: Any) -> Any:
        seen.append(rtobs.current().correlation_id)
        return await call_next(request)

    app = api()
    if position in ("inside", "both"):
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(Middleware)
    if position in ("outside", "both"):
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    async def asynchronous() -> str:
        return rtobs.current().correlation_id

    def synchronous() -> str:
        return rtobs.current().correlation_id

    app.get("/x")(synchronous if kind == "sync" else asynchronous)
    async with serving(app) as url, httpx.AsyncClient() as caller:
        cid = (await caller.get(url + "/x")).json()
        await eventually(lambda: telemetry.spans("accept"))
    assert len(cid) == 32
    expected = {"outside": [""], "inside": [cid], "both": ["", cid]}[position]
    assert seen == expected
    assert telemetry.span("accept").attributes["rtobs.correlation_id"] == cid
    assert telemetry.by(names.ACCEPT_DURATION, "route", "outcome") == {("/x", "ok"): 1}


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_background_task_still_belongs_to_the_journey(telemetry, kind):
    """What runs after the response is outside the hop, which has ended, and its messages carry the same journey."""
    broker = rtobs.wrap(memory.Broker())
    ended: list[bool] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def publish() -> None:
        ended.append(engine.current().ended)
        await broker.publish("later", b"x")
        done.set()

    def publish_from_a_thread() -> None:
        asyncio.run_coroutine_threadsafe(rtobs_context(), loop).result()

    async def rtobs_context() -> None:
        await publish()

    app = api()
    app.add_middleware(Middleware)

    @app.get("/x")
    async def x(tasks: BackgroundTasks) -> str:
        tasks.add_task(publish if kind == "async" else publish_from_a_thread)
        return rtobs.current().correlation_id

    async with serving(app) as url, httpx.AsyncClient() as caller:
        cid = (await caller.get(url + "/x")).json()
        await done.wait()
    message = await broker.get("later", timeout=1)
    assert ended == [True]
    with rtobs.consume("later", message) as hop:
        assert hop.correlation_id == cid
    published, accepted = telemetry.span("publish"), telemetry.span("accept")
    assert published.parent.span_id == accepted.context.span_id


async def test_publishing_in_an_endpoint_is_a_child_of_the_request(telemetry):
    """A message that an endpoint publishes, sync or async, has the request's hop as parent and its journey."""
    broker = rtobs.wrap(memory.Broker())
    app = api()
    app.add_middleware(Middleware)

    @app.post("/x")
    async def x() -> str:
        await broker.publish("orders", b"x")
        return rtobs.current().correlation_id

    async with client(app) as caller:
        cid = (await caller.post("/x")).json()
    message = await broker.get("orders", timeout=1)
    with rtobs.consume("orders", message) as hop:
        assert hop.correlation_id == cid
    assert telemetry.span("publish").parent.span_id == telemetry.span("accept").context.span_id


async def test_nothing_stays_current_after_a_request(telemetry):
    """The caller's context is what it was, also after a failure."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/bad":
            raise ValueError
        await PlainTextResponse("x")(scope, receive, send)

    async def send(event: Any) -> None:
        pass

    for path in ("/", "/bad"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        try:
            await rtobs.wrap(app)(scope, None, send)
        except ValueError:
            assert path == "/bad"
        assert engine.current() is None
