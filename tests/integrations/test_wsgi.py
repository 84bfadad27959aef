"""The WSGI leaf: one accept hop for each HTTP request, Flask and bare applications behind a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import flask
import httpx
import pytest
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.trace import SpanKind

import rtobs
from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import unwrap, wsgi
from rtobs.integrations.wsgi import Middleware
from tests.integrations.web import CALLER, forged, routes
from tests.support.http import serving_wsgi
from tests.support.timing import wait_until

ERROR = KeyError("missing")


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/orders/<int:number>")
    def order(number: int) -> str:
        rtobs.current().note(number=number)
        return rtobs.current().correlation_id

    @app.get("/named")
    @rtobs.accept("by hand")
    def named() -> str:
        return rtobs.current().correlation_id

    @app.get("/status/<int:code>")
    def status(code: int) -> tuple[str, int]:
        return "", code

    @app.get("/broken")
    def broken() -> str:
        raise ERROR

    @app.get("/stream")
    def stream() -> flask.Response:
        def parts() -> Iterator[str]:
            for _ in range(3):
                yield f"{rtobs.current().correlation_id}\n"

        return flask.Response(parts())

    return app


def bare(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [rtobs.current().correlation_id.encode()]


def fetch(app: Any, path: str = "/", **options: Any) -> httpx.Response:
    with serving_wsgi(app) as url, httpx.Client() as client:
        return client.request(options.pop("method", "GET"), url + path, **options)


@pytest.mark.parametrize("way", ["wrap", "middleware"])
def test_a_request_is_one_hop_named_by_its_rule(telemetry, way):
    """A Flask request is one accept hop with the rule as its name, whoever brought rtobs in."""
    app = flask_app()
    if way == "wrap":
        assert rtobs.wrap(app) is app
        assert rtobs.wrap(app) is app  # twice is once
        assert type(app) is not flask.Flask
        assert isinstance(app, flask.Flask)
    else:
        app.wsgi_app = Middleware(app.wsgi_app)
    answer = fetch(app, "/orders/7")
    assert (answer.status_code, answer.text) == (200, telemetry.span("accept").attributes["rtobs.correlation_id"])
    assert routes(telemetry) == {"/orders/<int:number>": 1}
    found = telemetry.span("accept")
    assert found.name == "accept /orders/<int:number>"
    assert found.kind is SpanKind.SERVER
    assert found.attributes["http.request.method"] == "GET"
    assert found.attributes["http.response.status_code"] == 200
    assert found.attributes["number"] == 7


def test_accept_on_the_view_names_the_same_hop(telemetry):
    """`@rtobs.accept` under a wrapped application opens no second hop and gives it its name."""
    fetch(rtobs.wrap(flask_app()), "/named")
    assert routes(telemetry) == {"by hand": 1}


@pytest.mark.parametrize(
    ("path", "route", "outcome", "category"),
    [
        ("/status/204", "/status/<int:code>", "ok", ""),
        ("/status/401", "/status/<int:code>", "failed", "auth"),
        ("/status/429", "/status/<int:code>", "failed", "rate_limited"),
        ("/status/503", "/status/<int:code>", "failed", "unavailable"),
        ("/nobody/knows/4711", "unmatched", "failed", "recipient"),
    ],
)
def test_the_status_decides(telemetry, path, route, outcome, category):
    """Below 400 a request is ok, from 400 on it failed in its status's category; a raw path never is a name."""
    fetch(rtobs.wrap(flask_app()), path)
    assert telemetry.by(names.ACCEPT_DURATION, "route", "outcome", "error_category") == {(route, outcome, category): 1}


@pytest.mark.parametrize("propagates", [True, False])
def test_an_exception_of_a_view_is_the_reason(telemetry, propagates):
    """What a view raised is the hop's error, whether Flask answers 500 or lets it through to the server."""
    app = rtobs.wrap(flask_app())
    app.config["PROPAGATE_EXCEPTIONS"] = propagates
    if propagates:
        with pytest.raises(KeyError) as caught:
            app.test_client().get("/broken")
        assert caught.value is ERROR
    else:
        with app.test_client().get("/broken") as answer:
            assert answer.status_code == 500
            assert answer.data
    found = telemetry.span("accept").attributes
    assert (found["error.type"], found["rtobs.error_category"]) == ("KeyError", "internal")
    [event] = telemetry.events
    assert (event["event"], event["destination"]) == ("accept.failed", "/broken")


def test_a_stream_is_made_in_its_hop(telemetry):
    """The parts of a streamed response are made while the hop is current, and it ends with the last of them."""
    answer = fetch(rtobs.wrap(flask_app()), "/stream")
    assert set(answer.text.split()) == {telemetry.span("accept").attributes["rtobs.correlation_id"]}
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"ok": 1}
    assert not runtime.open_hops


def test_a_client_that_hangs_up_cancels(telemetry):
    """Where nobody listens any more the hop is cancelled, and nothing of it stays open."""
    more = threading.Event()

    def endless(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"x" * 65_536
        more.wait(10)
        for _ in range(1_000):
            yield b"x" * 65_536

    with serving_wsgi(Middleware(endless)) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port)) as caller:
            caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert caller.recv(100)
        more.set()
        wait_until(lambda: telemetry.count(names.ACCEPT_DURATION) == 1)
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"cancelled": 1}
    assert telemetry.span("accept").attributes["rtobs.reason"] == "client_disconnected"
    assert not runtime.open_hops


@pytest.mark.parametrize("trust", ["link", "trusted", "ignore"])
def test_callers_are_believed_as_far_as_they_are_trusted(telemetry, trust):
    """By default a caller is linked to and names no tenant; `trusted` continues its journey, `ignore` reads nothing."""
    headers = {"traceparent": CALLER} | forged()
    answer = fetch(Middleware(bare, trust=trust), headers=headers)
    found = telemetry.span("accept")
    caller = int(CALLER[3:35], 16)
    assert (answer.text == "f" * 32) == (trust == "trusted")
    assert (found.context.trace_id == caller) == (trust == "trusted")
    assert ([link.context.trace_id for link in found.links] == [caller]) == (trust == "link")
    assert found.attributes.get("rtobs.client_id") == ("req-4711" if trust == "link" else None)
    assert found.attributes.get("rtobs.tenant") == ("victim" if trust == "trusted" else None)


def test_bare_applications_and_nested_middlewares(telemetry):
    """Any application works behind the middleware, twice is once, and the list it returned comes back as it was."""
    body = [b"as it was"]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return body

    started = []
    served = Middleware(Middleware(app))({"REQUEST_METHOD": "GET"}, lambda *args: started.append(args))
    assert served is body
    assert started == [("200 OK", [])]
    assert routes(telemetry) == {"unmatched": 1}
    assert engine.current() is None


def test_an_application_that_raises(telemetry):
    """The exception of a bare application goes on as the same object, before and in the middle of its response."""

    def first(environ: Any, start_response: Any) -> list[bytes]:
        raise ERROR

    def later(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        raise ERROR

    with pytest.raises(KeyError) as caught:
        Middleware(first)({}, lambda *_: None)
    assert caught.value is ERROR
    parts = Middleware(later)({}, lambda *_: None)
    with pytest.raises(KeyError) as caught:
        list(parts)
    assert caught.value is ERROR
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {("failed", "internal"): 2}
    assert engine.current() is None


@pytest.mark.parametrize("first", ["contrib", "rtobs"])
def test_contribs_span_is_the_hop(telemetry, first):
    """With contrib's Flask instrumentation there is one span for a request, with its ids and our attributes."""
    app, contrib = flask_app(), FlaskInstrumentor()
    if first == "rtobs":
        rtobs.wrap(app)
    contrib.instrument_app(app)
    try:
        rtobs.wrap(app)
        answer = fetch(app, "/orders/7")
        [found] = telemetry.spans()
        assert found.instrumentation_scope.name == "opentelemetry.instrumentation.flask"
        assert found.attributes["rtobs.correlation_id"] == answer.text
        assert routes(telemetry) == {"/orders/<int:number>": 1}
    finally:
        contrib.uninstrument_app(app)


def test_unwrapped_it_is_as_it_was(telemetry):
    """After `unwrap` the application has its own class again and opens no hop."""
    app = flask_app()
    unwrap(rtobs.wrap(app))
    assert type(app) is flask.Flask
    assert fetch(app, "/status/204").status_code == 204
    assert telemetry.count(names.ACCEPT_DURATION) == 0


def test_wrong_arguments_raise_at_once():
    """A trust that does not exist, and what is no application, are told with what was seen."""
    with pytest.raises(ConfigError, match="got 'yes'"):
        Middleware(bare, trust="yes")
    with pytest.raises(UnsupportedError, match="got 7"):
        Middleware(7)
    with pytest.raises(UnsupportedError, match="no Flask instance"):
        wsgi.wrap(bare, wsgi.options_of(bare))
