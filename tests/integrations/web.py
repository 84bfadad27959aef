"""What the tests of the ASGI leaf share: applications, clients that call them in process, and a caller that lies."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI

from rtobs import _conventions as names

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def client(app: Any, **options: Any) -> httpx.AsyncClient:
    """A client that calls *app* in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://app.example")


def api() -> FastAPI:
    """A FastAPI that leaves tracing to rtobs; with its own, its span of a request is the hop's."""
    return FastAPI(telemetry={"tracing": False})


async def get(app: Any, path: str = "/", **options: Any) -> httpx.Response:
    """One request to *app*; like a server, it answers 500 where the application raises."""
    async with client(app, raise_app_exceptions=False) as caller:
        return await caller.get(path, **options)


def routes(telemetry) -> dict[str, int]:
    return telemetry.by(names.ACCEPT_DURATION, "route")


def forged(journey: str = "f" * 32) -> dict[str, str]:
    """Headers of a journey that says everything it can."""
    from rtobs._journey import carrier
    from rtobs._journey.journey import Journey

    said = Journey(journey, 1_000_000)
    said.tenant, said.named, said.kept, said.region = "victim", True, "forced", "eu"
    headers = carrier.write(said, CALLER[3:35], CALLER[36:52], 1, 1_000_000)
    return headers | {"x-request-id": "req-4711", "baggage": f"{headers['baggage']},mine=1"}
