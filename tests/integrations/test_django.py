"""The Django middleware: one accept hop for each HTTP request, under WSGI and under ASGI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test.utils import override_settings
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.trace import SpanKind

from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs.errors import ConfigError
from rtobs.integrations.django import Middleware
from tests.integrations import django_app
from tests.integrations.web import CALLER, forged, routes
from tests.support.http import serving, serving_wsgi

django_app.ready()


async def fetch(path: str, way: str, **options: Any) -> httpx.Response:
    """One request to Django behind a real server."""
    if way == "wsgi":
        with serving_wsgi(WSGIHandler()) as url:
            async with httpx.AsyncClient() as client:
                return await client.get(url + path, **options)
    async with serving(ASGIHandler(), lifespan="off") as url, httpx.AsyncClient() as client:
        return await client.get(url + path, **options)


both = pytest.mark.parametrize("way", ["wsgi", "asgi"])


@both
@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/orders/7/", "/orders/<int:number>/"),
        ("/named", "named"),
        ("/later", "/later"),
        ("/v1/acme/items/one", "/v1/<tenant>/items/<slug:name>"),
        ("/old/2024/", "/^old/(?P<number>[0-9]{4})/$"),
    ],
)
async def test_a_request_is_one_hop_named_by_its_pattern(telemetry, way, path, route):
    """Sync and async views under either server are one accept hop; parameters never reach its name."""
    if "acme" in path:
        assert (await fetch(path, way)).status_code == 500  # the view takes no arguments
    else:
        answer = await fetch(path, way)
        assert answer.text == telemetry.span("accept").attributes["rtobs.correlation_id"]
    assert routes(telemetry) == {route: 1}
    assert telemetry.span("accept").kind is SpanKind.SERVER
    assert not runtime.open_hops
    assert engine.current() is None


@both
@pytest.mark.parametrize(
    ("path", "ended", "reason"),
    [
        ("/status/204", ("ok", ""), None),
        ("/status/401", ("failed", "auth"), "401"),
        ("/status/503", ("failed", "unavailable"), "503"),
        ("/missing", ("failed", "recipient"), "404"),
        ("/broken", ("failed", "internal"), "KeyError"),
        ("/nobody/knows/4711", ("failed", "recipient"), "404"),
    ],
)
async def test_status_and_exception_decide(telemetry, way, path, ended, reason):
    """From 400 on a request has failed by its status, or by the exception that Django has turned into a 500."""
    await fetch(path, way)
    assert telemetry.by(names.ACCEPT_DURATION, "outcome", "error_category") == {ended: 1}
    assert telemetry.span("accept").attributes.get("rtobs.reason") == reason


@pytest.mark.parametrize(("way", "path"), [("wsgi", "/stream"), ("asgi", "/astream"), ("asgi", "/stream")])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")  # Django's, of a sync stream under ASGI
async def test_a_stream_is_made_in_its_hop(telemetry, way, path):
    """The parts of a streamed response are made while the hop is current, and it ends with the last of them."""
    answer = await fetch(path, way)
    correlation_id = telemetry.span("accept").attributes["rtobs.correlation_id"]
    assert answer.text == 3 * correlation_id
    assert telemetry.by(names.ACCEPT_DURATION, "outcome") == {"ok": 1}
    assert not runtime.open_hops


@both
@pytest.mark.parametrize("trusted", [True, False])
async def test_callers_are_linked_to_unless_a_subclass_trusts_them(telemetry, way, trusted):
    """By default a caller is linked to and names no tenant; a subclass with `trust` continues its journey."""
    used = "tests.integrations.django_app.Trusted" if trusted else django_app.OURS
    with override_settings(MIDDLEWARE=[used, used]):  # twice is once
        answer = await fetch("/orders/1/", way, headers={"traceparent": CALLER} | forged())
    found = telemetry.span("accept")
    assert (answer.text == "f" * 32) == (found.context.trace_id == int(CALLER[3:35], 16)) == trusted
    assert [link.context.trace_id for link in found.links] == ([] if trusted else [int(CALLER[3:35], 16)])
    assert found.attributes.get("rtobs.tenant") == ("victim" if trusted else None)


@contextmanager
def contrib() -> Iterator[None]:
    """Contrib's instrumentation, as its users turn it on."""
    with override_settings(MIDDLEWARE=[django_app.OURS]):
        DjangoInstrumentor().instrument(is_sql_commentor_enabled=False)
        try:
            yield
        finally:
            DjangoInstrumentor().uninstrument()


@both
async def test_contribs_span_is_the_hop(telemetry, way):
    """With contrib's Django instrumentation there is one span for a request, with its ids and our attributes."""
    with contrib():
        answer = await fetch("/orders/7/", way)
    [found] = telemetry.spans()
    assert found.instrumentation_scope.name.startswith("opentelemetry.instrumentation.django")
    assert found.attributes["rtobs.correlation_id"] == answer.text
    assert routes(telemetry) == {"/orders/<int:number>/": 1}


def test_a_wrong_trust_raises_at_once():
    """A subclass with a trust that does not exist is told when Django builds its middlewares."""
    with pytest.raises(ConfigError, match="got 'yes'"):
        type("Wrong", (Middleware,), {"trust": "yes"})(lambda request: None)
