"""Django: one accept hop for each HTTP request, under WSGI and ASGI, by one line in the settings.

    MIDDLEWARE = ["rtobs.integrations.django.Middleware", ...]

The hop is named by the URL pattern, or by ``@rtobs.accept`` on the view. A caller's headers are only linked to; a
subclass with ``trust = "trusted"`` continues the caller's journey.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, get_args

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings  # pyright: ignore[reportMissingTypeStubs]  # it has none

from rtobs._hop.http import Request
from rtobs._journey.message import Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import _environ
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, guarded

SYSTEM = "http"
SUPPORTS = "django>=5.2,<7"
TRUST: Trust = "link"
FACTORIES = ("django.core.handlers.wsgi.WSGIHandler", "django.core.handlers.asgi.ASGIHandler")
COVERAGE = Coverage(
    client="Django",
    produce="none",
    consume="HTTP requests, as accept hops",
    carrier="HTTP headers",
    attempt="none",
    lag="none",
    depth="none",
    missing="channels' WebSockets",
)
NEIGHBOURS = (
    "opentelemetry.instrumentation.django",
    "opentelemetry.instrumentation.django.middleware.otel_middleware",
    "opentelemetry.instrumentation.wsgi",
    "opentelemetry.instrumentation.asgi",
)

_MARK = "_rtobs_request"
_SERVER_ERRORS_FROM = 500
_END = object()


def describe(request: Any) -> str:
    """Return the URL pattern that a request has matched, beginning with ``/``; empty where there is none."""
    match = getattr(request, "resolver_match", None)
    return "" if match is None else f"/{match.route}"


class _Request(Request):
    """One HTTP request and how it is answered."""

    __slots__ = ("_request", "error")

    def __init__(self, request: Any, trust: Trust) -> None:
        self._request = request
        self.error: BaseException | None = None
        """What Django has turned into a response."""
        Request.__init__(self, guarded(_environ.headers, None, request.META), trust, str(request.method), NEIGHBOURS)

    def route(self) -> str:
        return describe(self._request)

    def responds(self, response: Any) -> None:
        """Take the response; one that streams goes on until its last part."""
        if not guarded(self._responds, False, response):  # noqa: FBT003  it has failed
            self.end()

    def _responds(self, response: Any) -> bool:
        self.begun(response.status_code)
        if not getattr(response, "streaming", False):
            self.finish()
        elif response.is_async:
            response.streaming_content = self._each_async(response.streaming_content)
        else:
            response.streaming_content = self._each(response.streaming_content)
        return True

    def _each(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        try:
            while True:
                with self.resumed():
                    part: Any = next(parts, _END)
                if part is _END:
                    break
                yield part
        except GeneratorExit:
            self.gone = True
            self.finish()
            raise
        except BaseException as error:
            self.end(error)
            raise
        self.finish()

    async def _each_async(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            while True:
                with self.resumed():
                    part: Any = await anext(parts, _END)
                if part is _END:
                    break
                yield part
        except GeneratorExit:
            self.gone = True
            self.finish()
            raise
        except BaseException as error:
            self.end(error)
            raise
        self.finish()

    def finish(self) -> None:
        """End the hop as its response says; where that is a server error, the exception behind it is the reason."""
        self.end(self.error if self.status >= _SERVER_ERRORS_FROM else None)


def _outer(request: Any) -> bool:
    """Tell whether the request has a hop already."""
    found = getattr(request, _MARK, None)
    return isinstance(found, _Request) and found.is_open


class Middleware:
    """A Django middleware that opens one accept hop for each HTTP request; sync and async, streams included.

    The hop ends with the response: ok below status 400, else failed with the category of the status or of the exception
    that the view raised, which Django handles as ever. Twice in ``MIDDLEWARE`` is once.
    """

    sync_capable = True
    async_capable = True
    trust: ClassVar[Trust] = TRUST
    """What of the caller's headers to believe: ``link``, ``trusted`` or ``ignore``; set it in a subclass."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        """Stand round *get_response*, as Django asks of every middleware.

        Raises:
            ConfigError: ``trust`` of a subclass is none of the three.
        """
        if self.trust not in get_args(Trust):
            raise ConfigError(f"rtobs django: trust must be one of 'trusted', 'link', 'ignore'; got {self.trust!r}")
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated]  it knows 3.11's marks
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """Serve one request; a coroutine under ASGI."""
        if guarded(_outer, False, request):  # noqa: FBT003  "not that we know"
            return self.get_response(request)
        return self._serve_async(request) if self._is_async else self._serve(request)

    def _serve(self, request: Any) -> Any:
        hop = guarded(_begin, None, request, self.trust)
        if hop is None:
            return self.get_response(request)
        try:
            response = self.get_response(request)
        except BaseException as error:
            hop.end(error)
            raise
        else:
            hop.responds(response)
            return response
        finally:
            hop.leave()

    async def _serve_async(self, request: Any) -> Any:
        hop = guarded(_begin, None, request, self.trust)
        answer: Awaitable[Any] = self.get_response(request)
        if hop is None:
            return await answer
        try:
            response = await answer
        except BaseException as error:
            hop.end(error)
            raise
        else:
            hop.responds(response)
            return response
        finally:
            hop.leave()

    def process_exception(self, request: Any, exception: Exception) -> None:
        """Remember what a view has raised; Django makes a response of it."""
        guarded(_blame, None, request, exception)


def _begin(request: Any, trust: Trust) -> _Request:
    hop = _Request(request, trust)
    guarded(setattr, None, request, _MARK, hop)
    return hop


def _blame(request: Any, error: Exception) -> None:
    found = getattr(request, _MARK, None)
    if isinstance(found, _Request):
        found.error = error


def prepare() -> None:
    """Put the middleware first, where the settings do not name it: for applications that nobody wants to change."""
    path = f"{__name__}.{Middleware.__name__}"
    if path not in settings.MIDDLEWARE:
        settings.MIDDLEWARE = [path, *settings.MIDDLEWARE]


def wrap(client: Any, _options: Options) -> Any:
    """Refuse: Django makes its middlewares itself, from its settings.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; name rtobs.integrations.django.Middleware in "
        "MIDDLEWARE of Django's settings"
    )
