"""The ASGI leaf: one accept hop for each HTTP request, in process and behind a real server."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Generator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, WebSocket
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware as Entry
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._hop import engine
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import asgi, unwrap
from rtobs.integrations.asgi import Middleware
from tests.integrations.web import CALLER, api, client, get, routes
from tests.support import telemetry as support
from tests.support.http import serving


@pytest.fixture
def start() -> Generator[Callable[..., support.Telemetry], None, None]:
    """Configures rtobs for one test, as `configure` takes it; see `telemetry` for the usual."""
    yield support.start
    support.stop()


# Names ---------------------------------------------------------------------------------------------------------------


def fastapi_app() -> FastAPI:
    app = api()
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/v1/{tenant}")

    @inner.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    outer.include_router(inner, prefix="/more")
    app.include_router(outer)

    @app.get("/files/{path:path}")
    def file(path: str) -> str:
        return path

    async def leaf(request: Request) -> PlainTextResponse:
        return PlainTextResponse("leaf")

    app.mount("/subs/{org}", Starlette(routes=[Route("/leaf/{n:int}", leaf)]))
    app.mount("/v{version}/odd", Starlette(routes=[Route("/leaf", leaf)]))
    return app


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/acme/more/inner/items/7", "/v1/{tenant}/more/inner/items/{item_id}"),
        ("/files/a/b.txt", "/files/{path:path}"),
        ("/subs/acme/leaf/3", "/subs/{org}/leaf/{n:int}"),
        ("/subs/acme/nothing/3", "/subs/{org}"),
        ("/v2/odd/leaf", "/*/leaf"),
        ("/nobody/knows/4711", "unmatched"),
    ],
)
async def test_a_request_is_named_by_its_route_template(telemetry, path, route):
    """Routers, mounts and parameters become one template, and values from the path never reach a name."""
    app = fastapi_app()
    app.add_middleware(Middleware)
    async with serving(app, root_path="") as url, httpx.AsyncClient() as caller:
        await caller.get(url + path)
    assert routes(telemetry) == {route: 1}
    assert telemetry.span("accept").name == f"accept {route}"


async def test_a_prefix_that_the_proxy_strips_is_no_part_of_the_name(telemetry):
    """A `root_path` that the server was started with is left out of the route, as it is left out of the code."""
    app = fastapi_app()
    app.add_middleware(Middleware)
    async with serving(app, root_path="/prefix") as url, httpx.AsyncClient() as caller:
        await caller.get(url + "/subs/acme/leaf/3")
    assert routes(telemetry) == {"/subs/{org}/leaf/{n:int}": 1}


async def test_starlette_mounts_are_part_of_the_name(telemetry):
    """Mounts inside mounts of plain Starlette are put together, and a method that is not allowed has its route."""

    async def leaf(request: Request) -> PlainTextResponse:
        return PlainTextResponse("leaf")

    app = Starlette(
        routes=[Mount("/a", routes=[Mount("/b", routes=[Route("/c/{n}", leaf)])])], middleware=[Entry(Middleware)]
    )
    assert (await get(app, "/a/b/c/1")).text == "leaf"
    async with client(app) as caller:
        assert (await caller.post("/a/b/c/1")).status_code == 405
    assert routes(telemetry) == {"/a/b/c/{n}": 2}


@pytest.mark.parametrize("method", ["POST", "MADE-UP"])
async def test_the_method_is_an_attribute(telemetry, method):
    """The span says the method, and a method that HTTP does not know is `_OTHER`."""
    app = fastapi_app()
    app.add_middleware(Middleware)
    async with client(app) as caller:
        await caller.request(method, "/files/x")
    found = telemetry.span("accept").attributes
    assert found["http.request.method"] == ("POST" if method == "POST" else "_OTHER")
    assert found["http.response.status_code"] == 405


class Order(BaseModel):
    number: int


async def test_accept_on_the_endpoint_names_the_same_hop(telemetry):
    """`@rtobs.accept` under the middleware opens no second hop, gives it its name, and FastAPI still sees the types."""
    app = api()
    app.add_middleware(Middleware)
    before = []

    def dependency() -> None:
        before.append(rtobs.current().correlation_id)

    @app.post("/orders/{shop}", dependencies=[Depends(dependency)])
    @rtobs.accept("orders")
    async def take(shop: str, order: Order, note: Annotated[str, Body()]) -> dict[str, Any]:
        return {"shop": shop, "number": order.number, "note": note, "id": rtobs.current().correlation_id}

    async with client(app) as caller:
        answer = await caller.post("/orders/s1", json={"order": {"number": 3}, "note": "n"})
        refused = await caller.post("/orders/s1", json={"order": {"number": "x"}, "note": "n"})
    body = answer.json()
    assert body == {"shop": "s1", "number": 3, "note": "n", "id": body["id"]}
    assert body["id"] == before[0] != ""
    assert refused.status_code == 422  # FastAPI refused it before the function ran, so the route names it
    assert telemetry.by(names.ACCEPT_DURATION, "route", "outcome", "error_category") == {
        ("orders", "ok", ""): 1,
        ("/orders/{shop}", "failed", "validation"): 1,
    }


# One request, one hop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["twice added", "wrapped and added", "wrapped twice", "mounted", "copied scope"])
async def test_one_request_is_one_hop(telemetry, how):
    """Two middlewares, a wrapped application, or a wrapped application mounted in another make one hop of a request."""
    inner = api()

    @inner.get("/things/{n}")
    @rtobs.accept("things")
    def thing(n: int) -> str:
        return rtobs.current().correlation_id

    app: Any = inner
    path = "/things/1"
    if how == "twice added":
        inner.add_middleware(Middleware)
        inner.add_middleware(Middleware, trust="trusted")
    elif how == "wrapped and added":
        inner.add_middleware(Middleware)
        assert rtobs.wrap(inner) is inner
    elif how == "wrapped twice":
        rtobs.wrap(rtobs.wrap(inner))
    elif how == "mounted":
        app, path = api(), "/sub/things/1"
        app.mount("/sub", rtobs.wrap(inner))
        rtobs.wrap(app)
    else:

        async def dispatcher(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, "path": "/things/1"}, receive, send)

        app, path = rtobs.wrap(dispatcher), "/anything"
        rtobs.wrap(inner)
    assert (await get(app, path)).json() == telemetry.span("accept").attributes["rtobs.correlation_id"]
    assert routes(telemetry) == {"things": 1}


async def test_the_innermost_scope_names_a_request(telemetry):
    """Where an outer application hands on a copy of the scope, the route that the inner one matched is the name."""
    inner = Starlette(routes=[Route("/deep/{n}", lambda request: PlainTextResponse("x"))])

    async def dispatcher(scope: Any, receive: Any, send: Any) -> None:
        await inner(dict(scope), receive, send)

    rtobs.wrap(inner)
    await get(rtobs.wrap(dispatcher), "/deep/1")
    assert routes(telemetry) == {"/deep/{n}": 1}


async def test_an_app_that_calls_another_in_process_keeps_two_hops(telemetry):
    """A request that one application makes of another in the same process is a hop of its own in the same journey."""
    inner = Starlette(routes=[Route("/inner", lambda request: PlainTextResponse(rtobs.current().correlation_id))])
    rtobs.wrap(inner)

    async def call(request: Request) -> PlainTextResponse:
        answer = await get(inner, "/inner")
        assert rtobs.current().correlation_id == answer.text
        return PlainTextResponse(answer.text)

    outer = rtobs.wrap(Starlette(routes=[Route("/outer", call)]))
    cid = (await get(outer, "/outer")).text
    assert routes(telemetry) == {"/inner": 1, "/outer": 1}
    first, second = telemetry.span(name="accept /outer"), telemetry.span(name="accept /inner")
    assert second.parent.span_id == first.context.span_id
    assert {s.attributes["rtobs.correlation_id"] for s in (first, second)} == {cid}


async def test_a_request_that_is_tried_again_is_two_hops(telemetry):
    """A middleware outside that calls the application again after a failure makes a second hop of it."""
    tries = []

    async def flaky(scope: Any, receive: Any, send: Any) -> None:
        tries.append(rtobs.current().correlation_id)
        if len(tries) == 1:
            raise ValueError("first")
        await PlainTextResponse("ok")(scope, receive, send)

    wrapped = rtobs.wrap(flaky)

    async def again(scope: Any, receive: Any, send: Any) -> None:
        try:
            await wrapped(scope, receive, send)
        except ValueError:
            await wrapped(scope, receive, send)

    assert (await get(again)).text == "ok"
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"failed": 1, "ok": 1}
    assert len(set(tries)) == 2


# What is no request --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["middleware", "wrap", "bare"])
async def test_lifespan_passes_through(telemetry, way):
    """Start-up and shut-down run as ever, share their state, and are no hops."""
    from contextlib import asynccontextmanager

    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        seen.append("up")
        yield {"shared": 42}
        seen.append("down")

    async def state(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.state.shared))

    app: Any = Starlette(routes=[Route("/", state)], lifespan=lifespan)
    if way == "middleware":
        app.add_middleware(Middleware)
    elif way == "wrap":
        rtobs.wrap(app)
    else:
        app = Middleware(app)
    async with serving(app) as url, httpx.AsyncClient() as caller:
        assert (await caller.get(url)).text == "42"
    assert seen == ["up", "down"]
    assert routes(telemetry) == {"/": 1}


async def test_a_websocket_is_no_hop_and_each_frame_may_be(telemetry):
    """A connection opens nothing; frames that user code scopes are journeys of their own, linked to their senders."""
    app = api()
    app.add_middleware(Middleware)

    @app.websocket("/rooms/{room}")
    async def room(socket: WebSocket, room: str) -> None:
        await socket.accept()
        assert engine.current() is None
        async for frame in socket.iter_json():
            with rtobs.accept("/rooms/{room}", headers=frame["headers"]) as hop:
                await socket.send_text(hop.correlation_id)

    async with serving(app) as url, connect(url.replace("http", "ws") + "/rooms/1") as socket:
        ids = []
        for _ in range(2):
            await socket.send(json.dumps({"headers": {"traceparent": CALLER}}))
            ids.append(await socket.recv())
    assert len(set(ids)) == 2
    assert routes(telemetry) == {"/rooms/{room}": 2}
    assert [f"{span.links[0].context.span_id:016x}" for span in telemetry.spans("accept")] == [CALLER[36:52]] * 2


# Wrapping ------------------------------------------------------------------------------------------------------------


async def test_a_wrapped_fastapi_stays_itself(telemetry):
    """`wrap` returns the same object of the same class, other instances are untouched, and `unwrap` undoes it."""
    app, other = FastAPI(), FastAPI()
    for one in (app, other):
        one.get("/")(lambda: rtobs.current().correlation_id)
    assert rtobs.wrap(app) is app
    assert isinstance(app, FastAPI)
    assert app.__class__ is FastAPI
    assert len((await get(app)).json()) == 32
    assert (await get(other)).json() == ""
    assert unwrap(app) is app
    assert type(app) is FastAPI
    assert (await get(app)).json() == ""


async def test_any_other_application_comes_back_inside_a_middleware(telemetry):
    """A bare ASGI callable is returned in a stand-in; wrapping that changes nothing, and `unwrap` takes it out."""

    async def function(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(rtobs.current().correlation_id)(scope, receive, send)

    class Framework:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await function(scope, receive, send)

    for app in (function, Framework()):
        wrapped = rtobs.wrap(app)
        assert isinstance(wrapped, Middleware)
        assert rtobs.wrap(wrapped) is wrapped
        assert unwrap(wrapped) is app
        assert len((await get(wrapped)).text) == 32
    assert routes(telemetry) == {"unmatched": 2}


class NotAnApplication:
    async def __call__(self, one: Any) -> None:
        pass


@pytest.mark.parametrize("thing", [42, "app", FastAPI, lambda: None, NotAnApplication(), Headers()])
def test_what_is_no_application_is_refused(thing):
    """`wrap` says at once that a thing is no application, also where its library has some."""
    with pytest.raises(UnsupportedError, match=r"rtobs\.wrap"):
        rtobs.wrap(thing)


def test_wrong_arguments_are_refused():
    """The middleware says at once what is wrong with its application or its trust."""
    with pytest.raises(UnsupportedError, match="can be called; got 42"):
        Middleware(42)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trust must be one of 'trusted', 'link', 'ignore'; got 'blind'"):
        Middleware(FastAPI(), trust="blind")  # type: ignore[arg-type]


def test_the_middleware_is_reached_without_loading_a_framework():
    """`rtobs.integrations.asgi.Middleware` is there after `import rtobs` alone, and neither loads Starlette."""
    code = "import sys, rtobs; print(rtobs.integrations.asgi.Middleware.__name__, 'starlette' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "Middleware False\n"


async def test_a_wrapped_application_is_freed(telemetry):
    """Nothing of ours keeps an application alive once nobody uses it."""
    app = rtobs.wrap(FastAPI())
    app.get("/")(lambda: "x")
    await get(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("broken", ["start", "enter", "end"])
async def test_a_fault_of_ours_does_not_reach_the_caller(start, monkeypatch, broken):
    """Where the engine breaks, the request is answered as if rtobs were not there, and the fault is counted."""
    start(strict=False)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    app = rtobs.wrap(Starlette(routes=[Route("/", lambda request: PlainTextResponse("x"))]))
    monkeypatch.setattr(engine, broken, fail)
    assert (await get(app)).text == "x"
    found = dict(_guard.tallies())
    assert found[names.INTERNAL_ERRORS.name, ("http.request",)] >= 1


async def test_a_route_that_breaks_does_not_reach_the_caller(
    start,
):
    """A framework's route that cannot be read leaves the request unmatched, and the fault is counted."""
    telemetry = start(strict=False)

    class Hostile:
        endpoint = None

        @property
        def path(self) -> str:
            raise RuntimeError("theirs")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Hostile()
        await PlainTextResponse("x")(scope, receive, send)

    assert (await get(rtobs.wrap(app))).text == "x"
    assert routes(telemetry) == {"unmatched": 1}
    assert telemetry.count(names.INTERNAL_ERRORS, site="http.route") >= 1


def test_described_routes_are_pure():
    """`describe` only reads the scope: it changes nothing and answers nothing for an empty one."""
    assert asgi.describe({}) == ""
    scope = {"root_path": "/a", "path_params": {}}
    assert asgi.describe(scope) == "/a"
    assert scope == {"root_path": "/a", "path_params": {}}
