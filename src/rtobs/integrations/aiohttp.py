"""aiohttp's client: what a delivery asked whom, and how it was answered.

    session = rtobs.wrap(aiohttp.ClientSession())

As ``httpx``: inside ``@rtobs.deliver`` each call adds method, host, port, status, resends and Retry-After to that hop,
no URL, header or body. It opens no hop and decides nothing. Headers of ours leave only towards
``configure(propagate_to=["host"])``, asked again for each redirect.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import ClientRequest, ClientResponse, ClientSession

from rtobs._hop.http import Exchange
from rtobs.errors import UnsupportedError
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "http"
SUPPORTS = "aiohttp>=3.12,<4"
FACTORIES = ("aiohttp.ClientSession",)
COVERAGE = Coverage(
    client="aiohttp (client)",
    produce="calls inside `@rtobs.deliver`, as its detail",
    consume="none",
    carrier="HTTP headers, to hosts in `propagate_to`",
    attempt="`Retry-After` and resends are told",
    lag="none",
    depth="none",
    missing="calls outside a delivery; its server",
)


def describe(request: ClientRequest) -> tuple[str, str, int | None]:
    """Return method, host and port of one request."""
    return request.method, request.url.raw_host or "", request.url.port


class _Innermost:
    """A middleware of one call: every request passes it right before it leaves, also the second after a redirect."""

    __slots__ = ("_call", "_options")

    def __init__(self, call: Exchange, options: Options) -> None:
        self._call = call
        self._options = options

    async def __call__(
        self, request: ClientRequest, handler: Callable[[ClientRequest], Awaitable[ClientResponse]]
    ) -> ClientResponse:
        callers = request.headers
        guarded(self._leaving, None, request)
        try:
            response = await handler(request)
        finally:
            request.headers = callers  # a middleware of the user's may send it again, elsewhere
        guarded(self._answered, None, response)
        return response

    def _leaving(self, request: ClientRequest) -> None:
        own = self._call.request(*describe(request), request.headers)
        if own and self._options.carrier:
            ours = request.headers.copy()
            ours.update(own)
            request.headers = ours

    def _answered(self, response: ClientResponse) -> None:
        self._call.answered(response.status, response.headers.get("retry-after"))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # subclasses are discouraged; this one has no instances

    @overlay
    class _Session(ClientSession):
        __slots__ = ()

        # The one coroutine behind `get`, `request`, `ws_connect` and all others; what is left out of its many options
        # is the session's own.
        async def _request(self, method: str, str_or_url: Any, **options: Any) -> ClientResponse:
            with Exchange() as call:
                options = guarded(self._with_ours, options, call, options)
                return await super()._request(method, str_or_url, **options)

        def _with_ours(self, call: Exchange, options: dict[str, Any]) -> dict[str, Any]:
            given = options.get("middlewares")
            usual = self._middlewares if given is None else given
            return {**options, "middlewares": (*usual, _Innermost(call, options_of(self)))}


def wrap(client: Any, options: Options) -> Any:
    """Instrument one session.

    Raises:
        UnsupportedError: what is no session, such as an application of aiohttp's server, or aiohttp before 3.12.
    """
    if not isinstance(client, ClientSession):
        raise UnsupportedError(f"rtobs.wrap: of aiohttp only a ClientSession can be wrapped; got {type(client)!r}")
    if "_middlewares" not in ClientSession.ATTRS:
        raise UnsupportedError("rtobs.wrap: this aiohttp has no client middlewares; they came with 3.12")
    return become(client, _Session, options)
