"""httpx: what a delivery asked whom, and how it was answered.

    client = rtobs.wrap(httpx.AsyncClient())

Inside ``@rtobs.deliver`` each call adds method, host, port, status, resends and Retry-After to that hop: no URL, no
header, no body. It opens no hop and decides nothing: the returned response, the exception or ``judge=`` does. Outside a
``deliver`` it does nothing. Headers of ours leave only towards ``configure(propagate_to=["host"])``: a host means
exactly that host, not its subdomains, on any port, and is asked again for each redirect.
"""

from __future__ import annotations

from typing import Any

import httpx

from rtobs._hop.http import Exchange, exchange
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "http"
SUPPORTS = "httpx>=0.28,<0.29"
FACTORIES = ("httpx.Client", "httpx.AsyncClient")
COVERAGE = Coverage(
    client="httpx",
    produce="calls inside `@rtobs.deliver`, as its detail",
    consume="none",
    carrier="HTTP headers, to hosts in `propagate_to`",
    attempt="`Retry-After` and resends are told",
    lag="none",
    depth="none",
    missing="calls outside a delivery",
)

_PORTS = {"https": 443, "http": 80}


def describe(request: httpx.Request) -> tuple[str, str, int | None]:
    """Return method, host and port of one request."""
    url = request.url
    return request.method, url.raw_host.decode("ascii"), url.port or _PORTS.get(url.scheme)


def _leaving(request: httpx.Request, options: Options) -> httpx.Headers | None:
    """Let our headers go with *request*, if its host may have them; return the caller's own then.

    Once it has gone it has to be the caller's again, as it was: a redirect is made from it, and takes nothing of ours
    along.
    """
    call = exchange()
    own = call.request(*describe(request), request.headers) if call is not None else {}
    if not own or not options.carrier:
        return None
    callers = request.headers
    ours = callers.copy()
    ours.update(own)
    request.headers = ours
    return callers


def _answered(call: Exchange, response: httpx.Response) -> None:
    call.answered(response.status_code, response.headers.get("retry-after"))


@overlay
class _Client(httpx.Client):
    __slots__ = ()

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        with Exchange() as call:
            response = super().send(request, **options)
            guarded(_answered, None, call, response)
            return response

    # Private to httpx, and the one place that every request passes, also the second after a redirect. Were it renamed,
    # nothing of ours would leave any more; better than headers that leave for a host nobody has named.
    def _send_single_request(self, request: httpx.Request) -> httpx.Response:
        callers = guarded(_leaving, None, request, options_of(self))
        try:
            return super()._send_single_request(request)
        finally:
            if callers is not None:
                request.headers = callers


@overlay
class _AsyncClient(httpx.AsyncClient):
    __slots__ = ()

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        with Exchange() as call:
            response = await super().send(request, **options)
            guarded(_answered, None, call, response)
            return response

    async def _send_single_request(self, request: httpx.Request) -> httpx.Response:
        callers = guarded(_leaving, None, request, options_of(self))
        try:
            return await super()._send_single_request(request)
        finally:
            if callers is not None:
                request.headers = callers


def wrap(client: Any, options: Options) -> Any:
    """Instrument one client."""
    return become(client, _AsyncClient if isinstance(client, httpx.AsyncClient) else _Client, options)
