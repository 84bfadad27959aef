"""The platform's HTTP side: an ASGI application that accepts notifications, one that takes receipts, and their callers.

Both are called as a server would call them, in the same process, so that the demo needs neither server nor port.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

import rtobs
from rtobs.demo import world
from rtobs.demo.roles import INBOX
from rtobs.integrations.asgi import Middleware

if TYPE_CHECKING:
    from rtobs.demo.brokers import Broker
    from rtobs.integrations.asgi import App, Event, Receive, Scope, Send

ACCEPTED: Final = 202
NO_CONTENT: Final = 204


class Notifications:
    """``POST /notifications``: take one notification in and put it into the router's inbox."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        del scope  # there is one route
        await self.accept(json.loads((await receive())["body"]))
        await answer(send, ACCEPTED)

    @rtobs.accept("/notifications")
    async def accept(self, notification: dict[str, Any]) -> None:
        """Accept a notification: the journey begins here, and the payload gets a copy of its correlation id."""
        hop = rtobs.current()
        hop.segment(tenant=notification["tenant"], region=notification["region"], source=notification["source"])
        with rtobs.publish(INBOX):
            await self._broker.send(INBOX, notification | {"correlation_id": hop.correlation_id})


async def receipts(scope: Scope, receive: Receive, send: Send) -> None:
    """``POST /receipts``: a device says what its user did with a message, and proves by its token which one it was."""
    del scope  # there is one route
    said = json.loads((await receive())["body"])
    with rtobs.receipt(said["step"], said["token"]):
        await answer(send, NO_CONTENT)


class Load:
    """Tenants that send notifications at random moments.

    Args:
        broker: where the API puts what it accepts.
        seed: decides what is sent, and when.
        rate: notifications a second, on average.
        seconds: how long.
    """

    def __init__(self, broker: Broker, seed: int, rate: float, seconds: float) -> None:
        self._app = Middleware(Notifications(broker))
        self._seed = seed
        self._rate = rate
        self._seconds = seconds

    async def run(self) -> None:
        """Send until the time is over; return when all requests are answered."""
        gaps = world.pauses(self._seed, self._rate)
        begin, due, number = time.monotonic(), 0.0, 0
        async with asyncio.TaskGroup() as requests:
            while (due := due + gaps.expovariate(self._rate)) <= self._seconds:
                await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
                number += 1
                sent = world.notification(self._seed, number)
                requests.create_task(post(self._app, "/notifications", sent.as_json()))


async def answer(send: Send, status: int) -> None:
    """Answer a request without a body."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def post(app: App, path: str, payload: dict[str, Any]) -> None:
    """Call an ASGI application with one POST, as a server would."""
    body: Event = {"type": "http.request", "body": json.dumps(payload).encode(), "more_body": False}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> Event:
        return body

    async def send(event: Event) -> None:
        del event  # the load does not wait for an answer's content

    await app(scope, receive, send)
