"""requests: what a delivery asked whom, and how it was answered.

    session = rtobs.wrap(requests.Session())

As ``httpx``: inside ``@rtobs.deliver`` each call adds method, host, port, status, resends and Retry-After to that hop,
no URL, header or body. It opens no hop and decides nothing. Headers of ours leave only towards
``configure(propagate_to=["host"])``, asked again for each redirect.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from rtobs._hop.http import Exchange, exchange
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

SYSTEM = "http"
SUPPORTS = "requests>=2.31,<3"
FACTORIES = ("requests.Session",)
COVERAGE = Coverage(
    client="requests",
    produce="calls inside `@rtobs.deliver`, as its detail",
    consume="none",
    carrier="HTTP headers, to hosts in `propagate_to`",
    attempt="`Retry-After` and resends are told",
    lag="none",
    depth="none",
    missing="calls outside a delivery",
)

Session = TypeVar("Session", bound=requests.Session)

_PORTS = {"https": 443, "http": 80}


def describe(request: requests.PreparedRequest) -> tuple[str, str, int | None]:
    """Return method, host and port of one request."""
    url = urlsplit(request.url or "")
    return request.method or "", url.hostname or "", url.port or _PORTS.get(url.scheme)


@overlay
class _Session(requests.Session):
    __slots__ = ()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if guarded(_follows, False, request):  # noqa: FBT003  it is a call of its own
            return super().send(request, **options)
        with Exchange() as call:
            response = super().send(request, **options)
            guarded(_answered, None, call, response)
            return response

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        untyped: Any = super()
        untyped.rebuild_auth(prepared_request, response)
        guarded(_redirected, None, prepared_request)

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        super().mount(prefix, become(adapter, _Adapter, options_of(self)))


def _redirected(request: requests.PreparedRequest) -> None:
    call = exchange()
    if call is not None:
        call.redirect = request


def _follows(request: requests.PreparedRequest) -> bool:
    """Tell whether *request* is how the client follows a redirect of the call that is being made."""
    call = exchange()
    return call is not None and call.redirect is request


def _answered(call: Exchange, response: requests.Response) -> None:
    call.answered(response.status_code, response.headers.get("retry-after"))


@overlay
class _Adapter(BaseAdapter):
    """Every request passes one, also after a redirect or a login; without a wrapped session it does nothing."""

    __slots__ = ()

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        callers = guarded(_leaving, None, request, options_of(self))
        try:
            return super().send(request, *args, **options)
        finally:
            if callers is not None:
                request.headers = callers


def _leaving(request: requests.PreparedRequest, options: Options) -> Any:
    """Let our headers go with *request*, if its host may have them; return the caller's own then, for afterwards."""
    call = exchange()
    own = call.request(*describe(request), request.headers) if call is not None else {}
    if not own or not options.carrier:
        return None
    callers = request.headers
    ours = callers.copy()
    ours.update(own)
    request.headers = ours
    return callers


def wrap(client: Session, options: Options) -> Session:
    """Instrument one session, and what is mounted in it."""
    for adapter in client.adapters.values():
        become(adapter, _Adapter, options)
    return become(client, _Session, options)
