"""WSGI applications (Flask, any other): one accept hop for each HTTP request.

    rtobs.wrap(app)                                            # a Flask instance stays itself
    app = rtobs.integrations.wsgi.Middleware(app)              # any WSGI application

The hop is named by Flask's URL rule, or by ``@rtobs.accept`` on the view; of other applications nobody knows the route.
A caller's headers are only linked to unless ``trust="trusted"``. Works on the environ alone and imports no framework
that is not there already. Django has a middleware of its own: ``rtobs.integrations.django``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import cache
from typing import Any, Self, get_args

from rtobs._hop.http import Request
from rtobs._journey.message import Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import _environ
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "http"
SUPPORTS = "WSGI (PEP 3333); flask>=3.1,<4"
FACTORIES = ("flask.Flask",)
COVERAGE = Coverage(
    client="WSGI: Flask, any",
    produce="none",
    consume="HTTP requests, as accept hops",
    carrier="HTTP headers",
    attempt="none",
    lag="none",
    depth="none",
    missing="the route of applications other than Flask, unless named",
)
TRUST: Trust = "link"
"""What to believe of a caller's headers unless told otherwise: the internet is no broker of one's own."""

_CONTRIB_FLASK = "opentelemetry.instrumentation.flask"
NEIGHBOURS = (_CONTRIB_FLASK, "opentelemetry.instrumentation.wsgi")

Environ = MutableMapping[str, Any]
App = Callable[[Any, Any], Iterable[bytes]]

_MARK = "rtobs.request"
_SERVER_ERRORS_FROM = 500
_WITHOUT_BODY = (204, 304)
_END: Any = object()


def describe(environ: Environ) -> str:
    """Return the URL rule that a request to Flask has matched; empty where there is none."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return "" if rule is None else str(rule.rule)


class _Request(Request):
    """One HTTP request: passes the start of its response on and learns from it how it went."""

    __slots__ = ("_environ", "_start", "_trust", "error")

    def __init__(self, environ: Environ, start: Any, trust: Trust) -> None:
        self.record, self.status, self.gone = None, 0, False
        self.error: BaseException | None = None
        """What a framework has turned into a response."""
        self._environ, self._start = environ, start
        self._trust: Trust = trust

    def open(self) -> None:
        """Open the hop, unless it is open."""
        guarded(self._open, None)

    def _open(self) -> None:
        if self.record is None:
            method = str(self._environ.get("REQUEST_METHOD", ""))
            Request.__init__(self, guarded(_environ.headers, None, self._environ), self._trust, method, NEIGHBOURS)

    def route(self) -> str:
        return describe(self._environ)

    def start(self, status: Any, *rest: Any, **named: Any) -> Any:
        """Stand for the server's ``start_response``."""
        guarded(self._started, None, status)
        return self._start(status, *rest, **named)

    def _started(self, status: Any) -> None:
        self.begun(int(str(status)[:3]))
        if self.is_adopted:  # its span ends before the application returns
            self.finish()

    def finish(self) -> None:
        """End the hop as its response says; where that is a server error, the exception behind it is the reason."""
        self.end(self.error if self.status >= _SERVER_ERRORS_FROM else None)

    def failed(self, error: BaseException) -> None:
        """End the hop by what left the application."""
        self.end(error)

    def closed(self) -> None:
        """End the hop of a response that was not asked for all of its parts."""
        # Twice, for a hop that is not ended waits for ever.
        _ = guarded(self._closed, False) or guarded(self._closed, False)  # noqa: FBT003  it is not

    def _closed(self) -> bool:
        if self.is_open:
            self.gone = self._environ.get("REQUEST_METHOD") != "HEAD" and self.status not in _WITHOUT_BODY
            self.finish()
        return True


class _Body:
    """The parts of a response: each is made while the hop is current, which ends with the last one."""

    __slots__ = ("_body", "_parts", "_request")

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        self._body = body
        self._parts: Iterator[bytes] = iter(body)
        self._request = request

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        request = self._request
        try:
            with request.resumed():
                part = next(self._parts, _END)
        except BaseException as error:
            request.failed(error)
            raise
        if part is _END:
            request.finish()
            raise StopIteration
        return part

    def close(self) -> None:
        """Close what the application returned, as servers do in the end (PEP 3333 §Buffering and Streaming)."""
        body: Any = self._body
        try:
            close = body.close
        except AttributeError:
            close = None
        try:
            if close is not None:
                with self._request.resumed():
                    close()
        finally:
            self._request.closed()


def _outer(environ: Environ) -> _Request | None:
    """Return the same request, if this is further in."""
    found = environ.get(_MARK)
    return found if isinstance(found, _Request) and not (found.record is not None and found.record.ended) else None


def _at_once(body: object, environ: Environ) -> bool:
    """Tell whether a body is all there, or goes to the server as it is: a file that it sends by itself."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(body, list | tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper))


def _serve(app: App, environ: Environ, start: Any, trust: Trust, *, later: bool = False) -> Iterable[bytes]:
    """Serve one request in its hop; with *later* the framework opens it, inside of another tool's span."""
    if guarded(_outer, None, environ) is not None:
        return app(environ, start)
    request = _Request(environ, start, trust)
    environ[_MARK] = request
    if not later:
        request.open()
    try:
        body = app(environ, request.start)
    except BaseException as error:
        request.failed(error)
        raise
    finally:
        request.leave()
    if guarded(_at_once, True, body, environ):  # noqa: FBT003  "take it as it is"
        request.finish()
        return body
    return _Body(body, request)


class Middleware:
    """A WSGI middleware that opens one accept hop for each HTTP request.

    The hop ends with the last part of the response: ok below status 400, else failed with the category of the status or
    of the exception, which goes on unchanged; cancelled where the client has hung up. Twice on one request is once.
    """

    def __init__(self, app: App, *, trust: Trust = TRUST) -> None:
        """Serve *app*.

        Args:
            app: a WSGI application (PEP 3333).
            trust: what of the caller's headers to believe: ``link`` begins a journey linked to the caller's span and
                keeps a valid ``x-request-id`` as attribute, ``trusted`` continues the caller's journey, ``ignore``
                reads nothing.

        Raises:
            ConfigError: *trust* is none of these.
            UnsupportedError: *app* cannot be called.
        """
        if trust not in get_args(Trust):
            raise ConfigError(f"rtobs wsgi: trust must be one of 'trusted', 'link', 'ignore'; got {trust!r}")
        if not callable(app):
            raise UnsupportedError(f"rtobs wsgi: a WSGI application can be called; got {app!r}")
        self.app = app
        self._trust: Trust = trust

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        return _serve(self.app, environ, start_response, self._trust)


# Flask ---------------------------------------------------------------------------------------------------------------


def _open_later() -> None:
    """Open the hop of the request that Flask has begun; runs among its ``before_request`` functions."""
    guarded(_open_now, None)


def _open_now() -> None:
    request = _outer(sys.modules["flask"].request.environ)
    if request is not None:
        request.open()


def _follows_contrib(app: Any) -> bool:
    """Tell whether contrib's instrumentation makes a span for each request of *app*; see that ours comes right after.

    It makes its span in a function of ``before_request``, so the hop that this span is has to begin there, too.
    """
    functions = app.before_request_funcs.get(None, ())
    at = next((i for i, function in enumerate(functions) if function.__module__ == _CONTRIB_FLASK), None)
    if at is None:
        return False
    if _open_later not in functions:
        functions.insert(at + 1, _open_later)
    return True


def _blame(error: Exception) -> None:
    request = _outer(sys.modules["flask"].request.environ)
    if request is not None:
        request.error = error
        request.begun(0)  # Flask is about to forget what the request has matched


@cache
def _flask() -> Any:
    from flask import Flask

    @overlay
    class _Flask(Flask):
        __slots__ = ()

        # Not wsgi_app: users replace it on the instance, with middlewares of their own.
        def __call__(self, environ: Any, start_response: Any) -> Any:
            later = guarded(_follows_contrib, False, self)  # noqa: FBT003  "not that we know"
            return _serve(super().__call__, environ, start_response, options_of(self).trust, later=later)

        def handle_exception(self, e: Exception) -> Any:
            guarded(_blame, None, e)
            return super().handle_exception(e)

    return _Flask


def wrap(client: Any, options: Options) -> Any:
    """Instrument one Flask application, which stays itself.

    Raises:
        UnsupportedError: *client* is no Flask application.
    """
    module = sys.modules.get("flask")
    if module is None or not isinstance(client, module.Flask):
        raise UnsupportedError(f"rtobs.wrap: {client!r} is no Flask instance; use rtobs.integrations.wsgi.Middleware")
    return become(client, _flask(), options)
