"""Small host programs, one for each way that messages take through rtobs; each tells what its host saw.

A program that is run again sees the same again. It must not know what is done to rtobs meanwhile, nor look at what
rtobs makes of it. What rtobs itself hands out (headers, tokens) is used as a host would, and not told.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import rtobs
from rtobs.integrations import asgi

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FOREIGN = {"x-shop": "Zürich", "baggage": "theirs=1"}
_NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Saw = list[object]


class HostError(Exception):
    """What the host's own code raises."""


class Refused(HostError):
    """One that says with which status, as clients' exceptions do."""

    @property
    def status_code(self) -> int:
        return 422


class Drive:
    """One host program. ``open`` once, ``run`` as often as wanted, ``close``."""

    name = ""
    wrapped = True
    """Whether a broker's client is wrapped."""

    async def open(self) -> None:
        """Connect, and wrap the client."""

    async def run(self) -> Saw:
        """Do all of it once; return what the host saw."""
        raise NotImplementedError

    async def close(self) -> None:
        """Clean up."""


def attempted(saw: Saw, function: Callable[[], object]) -> None:
    """Call the host's *function* and note what came back, or which exception."""
    try:
        saw.append(("returned", function()))
    except HostError as error:
        saw.append(("raised", repr(error), repr(error.__cause__), repr(error.__context__)))


async def awaited(saw: Saw, function: Callable[[], Awaitable[object]]) -> None:
    """Do the same with a coroutine function."""
    try:
        saw.append(("returned", await function()))
    except HostError as error:
        saw.append(("raised", repr(error), repr(error.__cause__), repr(error.__context__)))


# Without a client ----------------------------------------------------------------------------------------------------


class Blocks(Drive):
    """``with`` for every kind of hop, and what can be said on one."""

    name = "blocks"

    async def run(self) -> Saw:
        saw: Saw = []
        with rtobs.accept("/orders", headers={"traceparent": TRACEPARENT, "x-request-id": "abc-1", **FOREIGN}) as hop:
            hop.segment(tenant="acme", region="eu", source="crm", device_type="ios")
            hop.note(size=3, colour="red")
            hop.event("ordered", items=2)
            hop.intend("push", "user-1")
            hop.keep("vip")
            saw.append("accepted")
            with rtobs.publish("orders", channel="push", key="user-1") as out:
                carried = out.headers
            saw.append("published")
        with rtobs.consume("orders", headers=carried, trust="trusted") as hop:
            with rtobs.stage("normalize"):
                saw.append("normalized")
            with rtobs.deliver("push", "fcm", key="user-1") as attempt:
                token = attempt.receipt_token()
                saw.append("delivered")
            with rtobs.deliver("sms", "twilio") as attempt:
                attempt.outcome(rtobs.Outcome.REJECTED, "no such number", category=rtobs.ErrorCategory.RECIPIENT)
            hop.outcome(rtobs.Outcome.OK)
            rtobs.current().note(done=True)
        with rtobs.receipt("displayed", token):
            saw.append("displayed")
        with rtobs.job("crm", due=_NOW, window=timedelta(minutes=5)), rtobs.publish("changes"):
            saw.append("polled")
        self._failing(saw)
        return saw

    def _failing(self, saw: Saw) -> None:
        def stage() -> None:
            with rtobs.consume("orders", headers={}), rtobs.stage("enrich"):
                raise HostError("stage")

        def delivery() -> None:
            with rtobs.deliver("webhook", "shop"):
                raise Refused("delivery") from ValueError("below")

        attempted(saw, stage)
        attempted(saw, delivery)


class Functions(Drive):
    """Decorators for every kind of hop, on sync and async functions and async generators."""

    name = "functions"

    def __init__(self) -> None:
        self._calls: Saw = []

    async def open(self) -> None:  # noqa: C901  a function of each sort
        calls = self._calls

        @rtobs.accept("/orders")
        def accept(number: int) -> int:
            calls.append(("accept", number))
            return submit(number)

        @rtobs.publish("orders")
        def submit(number: int, headers: dict[str, str] | None = None) -> int:
            calls.append(("submit", number))
            self._headers = headers or {}
            return number + 1

        @rtobs.consume("orders")
        async def consume(number: int) -> int:
            calls.append(("consume", number))
            await normalize(number)
            send(number)
            with contextlib.suppress(HostError):
                send(-number)
            await asend(number)
            return number

        @rtobs.stage("normalize")
        async def normalize(number: int) -> None:
            calls.append(("normalize", number))

        @rtobs.deliver("push", "fcm", key=str, judge=_judged)
        def send(number: int) -> int:
            calls.append(("send", number))
            if number < 0:
                raise HostError("send")
            return number

        @rtobs.deliver("sms", "twilio")
        async def asend(number: int) -> int:
            calls.append(("asend", number))
            return number

        @rtobs.deliver("in_app", "socket")
        async def stream(number: int) -> AsyncGenerator[int, None]:
            for part in range(number):
                calls.append(("part", part))
                yield part

        @rtobs.stage("page")
        async def pages(number: int) -> AsyncGenerator[int, None]:
            yield number
            raise HostError("page")

        self._accept, self._consume, self._stream, self._pages = accept, consume, stream, pages

    async def run(self) -> Saw:
        saw: Saw = []
        self._calls.clear()
        attempted(saw, lambda: self._accept(1))
        await awaited(saw, lambda: self._consume(2))

        async def streamed() -> list[int]:
            return [part async for part in self._stream(2)]

        async def paged() -> None:
            with rtobs.consume("pages", headers={}):
                async for number in self._pages(1):
                    saw.append(number)

        async def left() -> int:
            stream = self._stream(3)
            async with contextlib.aclosing(stream):
                async for part in stream:
                    return part
            raise AssertionError

        await awaited(saw, streamed)
        await awaited(saw, paged)
        await awaited(saw, left)
        return [*saw, *self._calls]


def _judged(number: int) -> rtobs.ErrorCategory | None:
    return rtobs.ErrorCategory.TIMEOUT if number == 2 else None


# HTTP ----------------------------------------------------------------------------------------------------------------


class Http(Drive):
    """httpx in a deliver hop, with a redirect, an error status and a connection that fails."""

    name = "httpx"

    async def open(self) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            self._asked.append((request.method, request.url.path, request.headers.get("x-shop")))
            if request.url.path == "/away":
                raise httpx.ConnectError("refused")
            if request.url.path == "/moved":
                return httpx.Response(307, headers={"location": "https://crm.test/there"})
            if request.url.path == "/busy":
                return httpx.Response(503, headers={"retry-after": "3"})
            return httpx.Response(200, text="done")

        self._asked: Saw = []
        transport = httpx.MockTransport(answer)
        self._client = httpx.AsyncClient(transport=transport, follow_redirects=True)
        self._sync = httpx.Client(transport=transport)
        if self.wrapped:
            rtobs.wrap(self._client)
            rtobs.wrap(self._sync)

        @rtobs.deliver("connector", "crm")
        async def deliver(path: str) -> httpx.Response:
            return await self._client.get(f"https://crm.test{path}", headers={"x-shop": "1"})

        self._deliver = deliver

    async def run(self) -> Saw:
        saw: Saw = []
        self._asked.clear()
        for path in ("/done", "/moved", "/busy"):
            response = await self._deliver(path)
            saw.append((response.status_code, response.text))
        try:
            await self._deliver("/away")
        except httpx.ConnectError as error:
            saw.append((type(error), str(error)))
        with rtobs.deliver("connector", "crm"):
            saw.append(self._sync.get("https://crm.test/done").text)
        saw.append((await self._client.get("https://crm.test/outside")).text)
        return saw + self._asked

    async def close(self) -> None:
        await self._client.aclose()
        self._sync.close()


class Asgi(Drive):
    """A bare ASGI application and a Starlette one: answers, errors, a caller that hangs up."""

    name = "asgi"

    async def open(self) -> None:
        async def endpoint(request: Request) -> PlainTextResponse:
            if request.path_params["number"] == "7":
                raise HostError("endpoint")
            return PlainTextResponse(
                request.path_params["number"], 404 if request.path_params["number"] == "4" else 200
            )

        @rtobs.accept("/named/{number}")
        async def named(request: Request) -> PlainTextResponse:
            return PlainTextResponse("named")

        async def bare(scope: Any, receive: Any, send: Any) -> None:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        app = Starlette(
            routes=[
                Mount("/shops/{shop}", routes=[Route("/orders/{number}", endpoint)]),
                Route("/named/{number}", named),
            ]
        )
        self._app: Any = rtobs.wrap(app) if self.wrapped else app
        self._bare: Any = asgi.Middleware(bare) if self.wrapped else bare

    async def _ask(self, app: Any, path: str, event: str = "http.request") -> Saw:
        sent: Saw = []

        async def receive() -> dict[str, Any]:
            return {"type": event, "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append((message["type"], message.get("status"), message.get("body")))

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "https",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(b"host", b"shop.test"), (b"traceparent", TRACEPARENT.encode())],
            "server": ("shop.test", 443), "client": ("192.0.2.1", 5),
        }  # fmt: skip
        try:
            await app(scope, receive, send)
        except HostError as error:
            sent.append(str(error))
        return sent

    async def run(self) -> Saw:
        saw: Saw = []
        for path in ("/shops/1/orders/2", "/shops/1/orders/4", "/shops/1/orders/7", "/named/3", "/nowhere"):
            saw += await self._ask(self._app, path)
        saw += await self._ask(self._bare, "/bare")
        saw += await self._ask(self._bare, "/bare", "http.disconnect")
        return saw
