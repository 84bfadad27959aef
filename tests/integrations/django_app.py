"""A Django application of a few views, and its settings: Django takes one of each per process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import django
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path

import rtobs
from rtobs.integrations.django import Middleware

OURS = "rtobs.integrations.django.Middleware"
ERROR = KeyError("missing")


class Trusted(Middleware):
    """Believes its callers."""

    trust = "trusted"


@cache
def ready() -> None:
    """Configure Django once for all tests."""
    settings.configure(
        ROOT_URLCONF="tests.integrations.django_app", ALLOWED_HOSTS=["*"], MIDDLEWARE=[OURS], SECRET_KEY="tests",
        DATABASES={}, LOGGING_CONFIG=None,
    )  # fmt: skip
    django.setup()


def order(request: HttpRequest, number: int) -> HttpResponse:
    rtobs.current().note(number=number)
    return HttpResponse(rtobs.current().correlation_id)


@rtobs.accept("named")
def named(request: HttpRequest) -> HttpResponse:
    return HttpResponse(rtobs.current().correlation_id)


async def later(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse(rtobs.current().correlation_id)


def status(request: HttpRequest, code: int) -> HttpResponse:
    return HttpResponse(status=code)


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def broken(request: HttpRequest) -> HttpResponse:
    raise ERROR


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        for _ in range(3):
            yield rtobs.current().correlation_id

    return StreamingHttpResponse(parts())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        for _ in range(3):
            yield rtobs.current().correlation_id

    return StreamingHttpResponse(parts())


_inner: Any = ([path("items/<slug:name>", later)], "inner")
urlpatterns = [
    path("orders/<int:number>/", order),
    path("named", named),
    path("later", later),
    path("status/<int:code>", status),
    path("missing", missing),
    path("broken", broken),
    path("stream", stream),
    path("astream", astream),
    path("v1/<tenant>/", include(_inner)),
    re_path(r"^old/(?P<number>[0-9]{4})/$", order),
]
