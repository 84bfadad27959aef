"""Host programs that are served: Flask and a bare WSGI application, Django under WSGI and under ASGI.

As those of ``drives``; each is called as a server calls it, in the thread that runs the program.
"""

from __future__ import annotations

import asyncio
from typing import Any

import flask
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from werkzeug.test import EnvironBuilder

import rtobs
from rtobs.integrations import wsgi
from tests.integrations import django_app
from tests.unbreakable.drives import TRACEPARENT, Drive, HostError, Saw

HEADERS = {"traceparent": TRACEPARENT, "x-request-id": "abc"}


def ask(app: Any, path: str, *, all_of_it: bool = True) -> Saw:
    """Ask a WSGI application as a server does; close the response early unless *all_of_it* is wanted."""
    saw: Saw = []

    def start(status: str, headers: Any, *_: Any) -> Any:
        saw.append((status, sorted(name for name, _ in headers)))

    environ = EnvironBuilder(path, "http://shop.test", headers=HEADERS).get_environ()
    try:
        body = app(environ, start)
        for part in body:
            saw.append(part)
            if not all_of_it:
                break
        if hasattr(body, "close"):
            body.close()
    except HostError as error:
        saw.append(("raised", str(error)))
    return saw


class Wsgi(Drive):
    """Flask and a bare application: answers, errors, streams, one of which is not read to its end."""

    name = "wsgi"

    async def open(self) -> None:
        app = flask.Flask("drive")

        @app.get("/orders/<int:number>")
        def order(number: int) -> tuple[str, int]:
            return str(number), 404 if number == 4 else 200

        @app.get("/named")
        @rtobs.accept("by hand")
        def named() -> str:
            return "named"

        @app.get("/broken")
        def broken() -> str:
            raise HostError("broken")

        @app.get("/stream")
        def stream() -> flask.Response:
            return flask.Response(str(part) for part in range(3))

        def bare(environ: Any, start: Any) -> Any:
            if environ["PATH_INFO"] == "/broken":
                raise HostError("bare")
            start("200 OK", [("x-shop", "7")])
            return [b"a"] if environ["PATH_INFO"] == "/list" else iter([b"a", b"b"])

        self._app: Any = rtobs.wrap(app) if self.wrapped else app
        self._bare: Any = wsgi.Middleware(bare) if self.wrapped else bare

    async def run(self) -> Saw:
        saw: Saw = []
        for path in ("/orders/1", "/orders/4", "/named", "/broken", "/nowhere", "/stream"):
            saw += ask(self._app, path)
        saw += ask(self._app, "/stream", all_of_it=False)
        for path in ("/list", "/parts", "/broken"):
            saw += ask(self._bare, path)
        return saw


class Django(Drive):
    """Django's middleware under WSGI and ASGI: answers, errors, streams."""

    name = "django"

    async def open(self) -> None:
        django_app.ready()
        self._wsgi, self._asgi = WSGIHandler(), ASGIHandler()

    async def run(self) -> Saw:
        saw: Saw = []
        for path in ("/status/200", "/status/404", "/missing", "/broken"):
            saw += [part if isinstance(part, tuple) else len(part) > 0 for part in ask(self._wsgi, path)]
        for all_of_it in (True, False):
            saw += [type(part) for part in ask(self._wsgi, "/stream", all_of_it=all_of_it)]
        for path in ("/later", "/astream"):
            saw += await self._ask(path)
        return saw

    async def _ask(self, path: str) -> Saw:
        sent: Saw = []
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            return next(asked, None) or await asyncio.Event().wait()

        async def send(message: dict[str, Any]) -> None:
            sent.append((message["type"], message.get("status")))

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in {"host": "shop.test", **HEADERS}.items()],
            "server": ("shop.test", 443), "client": ("192.0.2.1", 5),
        }  # fmt: skip
        await self._asgi(scope, receive, send)
        return sent
