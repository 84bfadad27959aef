"""ASGI applications (Starlette, FastAPI, any other): one accept hop for each HTTP request.

    app.add_middleware(rtobs.integrations.asgi.Middleware)     # as Starlette and FastAPI users know it
    app = rtobs.integrations.asgi.Middleware(app)              # any ASGI application
    app = rtobs.wrap(app)                                      # the same; a Starlette or FastAPI instance stays itself

The hop is named by the route template, or by ``@rtobs.accept`` on the endpoint. Lifespan passes through untouched, and
so does a WebSocket: a connection is no message; for each frame open ``with rtobs.accept(route, headers=its_headers)``.
A caller's headers are only linked to unless ``trust="trusted"``. Works on scopes alone and imports no framework.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any, get_args

from rtobs._hop.http import Request
from rtobs._journey.message import Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "http"
SUPPORTS = "ASGI 3; starlette 1.10, fastapi 0.165, uvicorn 0.54"
FACTORIES = ("starlette.applications.Starlette", "fastapi.FastAPI")
COVERAGE = Coverage(
    client="ASGI: Starlette, FastAPI, any",
    produce="none",
    consume="HTTP requests, as accept hops",
    carrier="HTTP headers",
    attempt="none",
    lag="none",
    depth="none",
    missing="frames of a WebSocket, until you scope them",
)
TRUST: Trust = "link"
"""What to believe of a caller's headers unless told otherwise: the internet is no broker of one's own."""
NEIGHBOURS = (
    "fastapi",  # both frameworks have OpenTelemetry of their own
    "starlette",
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.instrumentation.starlette",
)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OUTER = ("starlette.middleware.errors", "starlette.middleware.opentelemetry", "opentelemetry.instrumentation.asgi")
_MARK = "rtobs.request"
_PARAMETER = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)")


def describe(scope: Scope, root: str = "") -> str:
    """Return the route template that a request has matched so far, mounts included; empty where there is none.

    *root* is the ``root_path`` the request came with; what is longer now are mounts, with their parameters filled in.
    """
    route: Any = scope.get("route")
    of_fastapi: Any = scope.get("fastapi")
    if of_fastapi:  # the route with the prefixes of the routers that include it
        included = of_fastapi.get("effective_route_context")
        if included is not None and included.original_route is route:
            route = included
    # A mount has no endpoint, and its own path is in root_path already.
    path: Any = getattr(route, "path", "") if hasattr(route, "endpoint") else ""
    mounts = str(scope.get("root_path") or "").removeprefix(root)
    if mounts:
        own = _PARAMETER.findall(path)
        params: dict[str, Any] = scope.get("path_params") or {}
        mounts = _unfilled(mounts, {name: str(value) for name, value in params.items() if name not in own})
    return mounts + str(path)


def _unfilled(mounts: str, filled: dict[str, str]) -> str:
    """Put the names of parameters back where their values stand."""
    names = {value: name for name, value in filled.items()}
    segments = mounts.split("/")
    if not names.keys() <= set(segments):  # part of a segment, or several: the value cannot be taken out
        return "/*"
    return "/".join(f"{{{names[segment]}}}" if segment in names else segment for segment in segments)


_NOTHING: tuple[object, str, str] = (None, "", "")


def _of_request(scope: Scope) -> tuple[object, str, str]:
    return scope.get("headers"), str(scope.get("method", "")), str(scope.get("root_path") or "")


class _Request(Request):
    """One HTTP request: passes its events on and learns from them how it went."""

    __slots__ = ("_receive", "_root", "_send", "_trailers", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send, trust: Trust) -> None:
        self.scope = scope
        """The innermost scope of this request: routers write what they matched into it."""
        headers, method, self._root = guarded(_of_request, _NOTHING, scope)
        Request.__init__(self, headers, trust, method, NEIGHBOURS)
        self._receive = receive
        self._send = send
        self._trailers = False

    def route(self) -> str:
        return describe(self.scope, self._root)

    async def receive(self) -> Event:
        event = await self._receive()
        guarded(self._received, None, event)
        return event

    def _received(self, event: Event) -> None:
        if event.get("type") == "http.disconnect" and self.is_open:
            self.gone = True

    async def send(self, event: Event) -> None:
        last = self.is_open and guarded(self._is_last, False, event)  # noqa: FBT003  "not that we know"
        if last and self.is_adopted:  # the span ends where this event goes
            self.answered()
        try:
            await self._send(event)
        except OSError:  # how servers say that nobody listens any more (ASGI, HTTP 2.4)
            self.gone = True
            raise
        if last:
            self.answered()

    def _is_last(self, event: Event) -> bool:
        match event.get("type"):
            case "http.response.start":
                self._trailers = bool(event.get("trailers"))
                self.begun(event.get("status"))
                return False
            case "http.response.body" | "http.response.zerocopysend":
                return not event.get("more_body") and not self._trailers
            case "http.response.pathsend":
                return not self._trailers
            case "http.response.trailers":
                return not event.get("more_trailers")
            case _:
                return False

    def failed(self, error: BaseException) -> None:
        guarded(self._blame, None, error)
        self.end(error)

    def _blame(self, error: BaseException) -> None:
        if type(error).__name__ == "ClientDisconnect":  # Starlette's, from reading a body whose sender has gone
            self.gone = True
        elif isinstance(error, Exception) and not isinstance(error, OSError):
            self.gone = False  # whoever listens: it failed by itself


def _outer(scope: Scope) -> _Request | None:
    """Return the same request, if this is further in."""
    found = scope.get(_MARK)
    if not isinstance(found, _Request) or not found.is_open:
        return None
    found.scope = scope
    return found


async def _serve(app: App, scope: Scope, receive: Receive, send: Send, trust: Trust) -> None:
    if scope["type"] != "http":
        await app(scope, receive, send)
        return
    outer = guarded(_outer, None, scope)
    if outer is not None:
        with outer.resumed():
            await app(scope, receive, send)
        return
    request = _Request(scope, receive, send, trust)
    scope[_MARK] = request
    try:
        await app(scope, request.receive, request.send)
    except BaseException as error:
        request.failed(error)
        raise
    finally:
        request.end()
        request.leave()


class Middleware:
    """An ASGI middleware that opens one accept hop for each HTTP request.

    The hop ends when the response is complete or the application returns: ok below status 400, else failed with the
    category of the status or of the exception, which goes on unchanged; cancelled where the client has hung up. Twice
    on one request is once.
    """

    def __init__(self, app: App, *, trust: Trust = TRUST) -> None:
        """Serve *app*.

        Args:
            app: an ASGI 3 application.
            trust: what of the caller's headers to believe: ``link`` begins a journey linked to the caller's span and
                keeps a valid ``x-request-id`` as attribute, ``trusted`` continues the caller's journey, ``ignore``
                reads nothing.

        Raises:
            ConfigError: *trust* is none of these.
            UnsupportedError: *app* cannot be called.
        """
        if trust not in get_args(Trust):
            raise ConfigError(f"rtobs asgi: trust must be one of 'trusted', 'link', 'ignore'; got {trust!r}")
        if not callable(app):
            raise UnsupportedError(f"rtobs asgi: an ASGI application can be called; got {app!r}")
        self.app = app
        self._trust: Trust = trust
        self._is_inside = _instrument(app, Options(trust=trust))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if self._is_inside:
            await self.app(scope, receive, send)
        else:
            await _serve(self.app, scope, receive, send, self._trust)


def is_application(client: object) -> bool:
    """Tell whether *client* is called as ASGI 3 applications are: a coroutine of scope, receive and send."""
    if not callable(client) or inspect.isclass(client):
        return False
    target: Any = client if inspect.isroutine(client) else client.__call__
    try:
        inspect.signature(target).bind({}, None, None)
    except (TypeError, ValueError):
        return False
    return inspect.iscoroutinefunction(target)


class _Inside:
    """Our place among the middlewares of a wrapped application; once that is unwrapped, it only passes on."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trust: Trust | None = guarded(_trust, None, scope)
        if trust is not None:
            await _serve(self.app, scope, receive, send, trust)
        else:
            await self.app(scope, receive, send)


def _trust(scope: Scope) -> Trust | None:
    """Return what the application that is called was wrapped with; None where it is not wrapped any more."""
    owner = scope.get("app")
    return options_of(owner).trust if issubclass(type(owner), _application()) else None


def _placed(stack: Any) -> Any:
    """Return an application's middlewares with ours just inside of those that make spans or answer for exceptions."""
    if type(stack).__module__ not in _OUTER:
        return _Inside(stack)
    node = stack
    while type(node.app).__module__ in _OUTER:
        node = node.app
    if not isinstance(node.app, _Inside):
        node.app = _Inside(node.app)
    return stack


@cache
def _application() -> Any:
    from starlette.applications import Starlette

    @overlay
    class _Application(Starlette):
        __slots__ = ()

        # Not __call__: FastAPI makes a span of its own there, in a context without our hop. And not the method that
        # builds the stack: it may have been called already, and other tools replace it on the instance.
        @property
        def middleware_stack(self) -> Any:
            own = self.__dict__
            stack = own["middleware_stack"] if "middleware_stack" in own else None  # noqa: SIM401  no call that can fail
            return guarded(_placed, stack, stack) if stack is not None else None

        @middleware_stack.setter
        def middleware_stack(self, stack: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
            self.__dict__["middleware_stack"] = stack

    return _Application


def _instrument(app: Any, options: Options) -> bool:
    """Instrument a Starlette or FastAPI instance from within; False where *app* is none."""
    module = sys.modules.get("starlette.applications")
    if module is None or not isinstance(app, module.Starlette):
        return False
    become(app, _application(), options)
    return True


def wrap(client: Any, options: Options) -> Any:
    """Instrument one application: a Starlette or FastAPI instance stays itself.

    Any other application comes back inside a ``Middleware``, so use what is returned.

    Raises:
        UnsupportedError: *client* is no ASGI application.
    """
    if isinstance(client, Middleware) or _instrument(client, options):
        return client
    if not is_application(client):
        raise UnsupportedError(f"rtobs.wrap: {client!r} is no ASGI application; wrap the application")
    return Middleware(client, trust=options.trust)
