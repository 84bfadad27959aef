"""Requests whose caller has something to say, and applications that other tools trace as well."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import propagate
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as StarletteOpenTelemetry
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

import rtobs
from rtobs._hop import engine
from rtobs.integrations import unwrap
from rtobs.integrations.asgi import Middleware
from tests.integrations.web import CALLER, api, forged, get, routes
from tests.support.http import serving
from tests.support.telemetry import user_provider
from tests.support.timing import eventually

# What a caller may say -----------------------------------------------------------------------------------------------


async def answer_of(telemetry, headers: dict[str, Any], **options: Any) -> tuple[dict[str, Any], Any]:
    from opentelemetry import baggage

    app = api()
    app.add_middleware(Middleware, **options)

    @app.get("/")
    def say() -> dict[str, Any]:
        record = engine.current()
        return {
            "cid": rtobs.current().correlation_id,
            "tenant": record.journey.tenant,
            "region": record.journey.region,
            "kept": record.journey.kept,
            "baggage": dict(baggage.get_all()),
        }

    said = (await get(app, headers=headers)).json()
    return said, telemetry.span("accept")


async def test_a_caller_is_only_linked_to(telemetry):
    """By default a request begins a journey of its own: the caller's span is a link, its claims are ignored."""
    said, span = await answer_of(telemetry, forged())
    assert said == {"cid": said["cid"], "tenant": "", "region": "", "kept": "", "baggage": {}}
    assert said["cid"] not in ("f" * 32, CALLER[3:35])
    assert (span.parent, f"{span.context.trace_id:032x}") == (None, said["cid"])
    [link] = span.links
    assert f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" == CALLER
    assert span.attributes["rtobs.client_id"] == "req-4711"
    assert "rtobs.tenant" not in span.attributes


async def test_a_trusted_caller_is_continued(telemetry):
    """With `trust="trusted"` the caller's journey, tenant, baggage and keep flag go on, and its span is the parent."""
    said, span = await answer_of(telemetry, forged(), trust="trusted")
    assert said == {"cid": "f" * 32, "tenant": "victim", "region": "eu", "kept": "forced", "baggage": {"mine": "1"}}
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == CALLER
    assert span.links == ()


async def test_an_ignored_caller_leaves_no_trace(telemetry):
    """With `trust="ignore"` neither a link nor the client's id is kept."""
    said, span = await answer_of(telemetry, forged(), trust="ignore")
    assert (said["tenant"], span.parent, span.links) == ("", None, ())
    assert "rtobs.client_id" not in span.attributes


async def test_wrap_links_too_unless_told_otherwise(telemetry):
    """`rtobs.wrap(app)` trusts no caller by default, and what `trust=` says otherwise."""

    def cid(request: Request) -> PlainTextResponse:
        return PlainTextResponse(rtobs.current().correlation_id)

    plain = rtobs.wrap(Starlette(routes=[Route("/", cid)]))
    trusting = rtobs.wrap(Starlette(routes=[Route("/", cid)]), trust="trusted")
    assert (await get(plain, headers=forged())).text != "f" * 32
    assert (await get(trusting, headers=forged())).text == "f" * 32


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a\tb", "<script>", "ä", "a;b"])
async def test_a_client_id_that_is_not_plain_is_dropped(telemetry, value):
    """Only a short id of letters, digits, dots, dashes and underscores is kept."""
    _, span = await answer_of(telemetry, {"x-request-id": value.encode()})
    assert "rtobs.client_id" not in span.attributes


@pytest.mark.parametrize("trust", ["trusted", "link", "ignore"])
async def test_hostile_headers_do_not_stop_a_request(telemetry, trust):
    """Headers full of rubbish are answered like any others."""
    rubbish = {
        "traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-zz",
        "tracestate": "=" * 4000,
        "rtobs-journey": "1" + "f" * 6000,
        "baggage": "rtobs.tenant=%ff%00,,,=;=," * 50,
    }
    said, span = await answer_of(telemetry, rubbish, trust=trust)
    assert len(said["cid"]) == 32
    assert span.attributes["rtobs.outcome"] == "ok"


# Neighbours ----------------------------------------------------------------------------------------------------------


def answering(app: FastAPI) -> FastAPI:
    @app.get("/x")
    async def x() -> str:
        return rtobs.current().headers["traceparent"]

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("missing")

    @app.get("/refused")
    async def refused() -> JSONResponse:
        return JSONResponse({}, 503)

    return app


async def is_one_span(telemetry, app: Any, path: str, status: int) -> None:
    """Check that a request makes one SERVER span, made by another tool, with the facts of our hop."""
    async with serving(app) as url, httpx.AsyncClient() as caller:
        answer = await caller.get(url + path, headers={"traceparent": CALLER})
        assert answer.status_code == status
        await eventually(lambda: telemetry.spans("accept"))
    [server] = [span for span in telemetry.spans() if span.kind is SpanKind.SERVER]
    assert server.instrumentation_scope.name != "rtobs"
    assert server.attributes["rtobs.hop"] == "accept"
    assert server.attributes["rtobs.route"] == path
    assert server.attributes["rtobs.outcome"] == ("ok" if status == 200 else "failed")
    assert server.attributes.get("rtobs.reason") == {200: None, 500: "KeyError", 503: "503"}[status]
    assert routes(telemetry) == {path: 1}
    if status == 200:
        assert answer.json().split("-")[2] == f"{server.context.span_id:016x}"


PATHS = pytest.mark.parametrize(("path", "status"), [("/x", 200), ("/broken", 500), ("/refused", 503)])


@pytest.mark.parametrize("way", ["middleware", "wrap", "Middleware(app)"])
@PATHS
async def test_fastapis_own_span_is_the_hop(telemetry, way, path, status):
    """FastAPI makes a span of each request where the process has a provider; it gets our facts and we add none."""
    app: Any = answering(FastAPI())
    if way == "middleware":
        app.add_middleware(Middleware)
    elif way == "wrap":
        rtobs.wrap(app)
    else:
        app = Middleware(app)
    await is_one_span(telemetry, app, path, status)


@pytest.mark.parametrize("framework", ["asgi", "fastapi", "starlette"])
@pytest.mark.parametrize("way", ["middleware", "wrap"])
@PATHS
async def test_the_span_of_a_contrib_instrumentation_is_the_hop(telemetry, framework, way, path, status):
    """Where OpenTelemetry's middleware is around the application, its span gets our facts and we add none."""
    app = answering(api())
    if way == "middleware":
        app.add_middleware(Middleware)
    else:
        rtobs.wrap(app)
    tracer = user_provider().get_tracer(f"opentelemetry.instrumentation.{framework}")
    await is_one_span(telemetry, OpenTelemetryMiddleware(app, tracer=tracer), path, status)


@pytest.mark.parametrize("first", ["rtobs", "the other"])
@pytest.mark.parametrize("tool", ["contrib", "starlette"])
async def test_a_tool_that_sits_in_the_application_makes_the_one_span(telemetry, first, tool):
    """A wrapped application whose outermost middleware makes spans has its hop inside of that one."""
    app = Starlette(routes=[Route("/x", lambda request: PlainTextResponse("x"))])
    if first == "rtobs":
        rtobs.wrap(app)
    if tool == "starlette":
        app.add_middleware(StarletteOpenTelemetry, tracer_provider=user_provider())
    else:  # as FastAPIInstrumentor does it
        built = app.build_middleware_stack

        def build() -> Any:
            tracer = user_provider().get_tracer("opentelemetry.instrumentation.fastapi")
            return ServerErrorMiddleware(OpenTelemetryMiddleware(built(), tracer=tracer))

        app.build_middleware_stack = build
    rtobs.wrap(app)
    [server] = await spans_of(telemetry, app, "/x", SpanKind.SERVER)
    assert server.attributes["rtobs.hop"] == "accept"
    unwrap(app)
    [server] = await spans_of(telemetry, app, "/x", SpanKind.SERVER)
    assert "rtobs.hop" not in server.attributes


async def spans_of(telemetry, app: Any, path: str, kind: SpanKind) -> list[Any]:
    telemetry.forget()
    await get(app, path)
    return [span for span in telemetry.spans() if span.kind is kind]


async def test_an_inner_span_of_a_framework_is_not_taken_for_a_request(telemetry):
    """FastAPI's span of an endpoint that calls another application is not that application's accept hop."""
    inner = rtobs.wrap(Starlette(routes=[Route("/inner", lambda request: PlainTextResponse("x"))]))
    app = FastAPI()
    app.add_middleware(Middleware)

    @app.get("/outer")
    async def outer() -> str:
        return (await get(inner, "/inner")).text

    await get(app, "/outer")
    first, second = telemetry.span("accept", "GET /outer"), telemetry.span("accept", "accept /inner")
    assert first.attributes["rtobs.correlation_id"] == second.attributes["rtobs.correlation_id"]
    assert (first.attributes["rtobs.route"], second.attributes["rtobs.route"]) == ("/outer", "/inner")
    [endpoint] = telemetry.spans(name="fastapi.endpoint")
    assert second.parent.span_id == endpoint.context.span_id


async def test_a_hop_is_found_again_behind_a_framework_that_forgets_it(telemetry):
    """FastAPI begins an empty context for a request; an application inside a wrapped one finds the hop all the same."""
    inner = FastAPI()

    @inner.get("/things")
    @rtobs.accept("things")
    async def things() -> str:
        return rtobs.current().correlation_id

    app = rtobs.wrap(Starlette(routes=[Mount("/sub", rtobs.wrap(inner))]))
    cid = (await get(app, "/sub/things")).json()
    assert telemetry.span("accept").attributes["rtobs.correlation_id"] == cid != ""
    assert routes(telemetry) == {"things": 1}


async def test_our_words_in_a_neighbours_baggage_go_no_further(telemetry):
    """What a framework reads from a caller's baggage as our tenant or id is not in the context that clients send on."""
    app = FastAPI()
    app.add_middleware(Middleware)

    @app.get("/")
    def sent() -> dict[str, str]:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    headers = (await get(app, headers=forged())).json()
    assert headers["baggage"] == "mine=1"
    assert set(headers) == {"traceparent", "baggage"}


async def test_a_users_own_span_is_the_parent(telemetry):
    """A span that the user opened around is the parent of the hop, in its trace."""
    app = rtobs.wrap(Starlette(routes=[Route("/", lambda request: PlainTextResponse("x"))]))
    with user_provider().get_tracer("user").start_as_current_span("around") as around:
        await get(app)
    assert telemetry.span("accept").parent.span_id == around.get_span_context().span_id
