"""The connector: brings each ticket to a vendor over HTTP. Run it with `python connector.py`."""

import asyncio
import contextlib
import json
import os

import httpx
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from topology import BATCH, DEAD, TICKETS, TRIES, connect, pull, stream

import rtobs

rtobs.configure(service="connector", logs="stdout", sigterm=True)

VENDOR_URL = os.environ.get("VENDOR_URL", "http://127.0.0.1:9000")
PAUSE = float(os.environ.get("RETRY_PAUSE", "1.0"))
"""Seconds before the second try; doubled before each further one."""


class Connector:
    """Delivers over HTTP, and decides what becomes of a ticket that the vendor did not take."""

    def __init__(self, streams: JetStreamContext, client: httpx.AsyncClient) -> None:
        self.streams, self.client = streams, client

    @rtobs.consume(TICKETS)
    async def handle(self, message: Msg) -> None:
        """Deliver; what another try may mend is put back, anything else becomes a dead letter."""
        if message.metadata.num_delivered > TRIES:  # each time its connector was killed, or met a bug of ours
            await self.bury(message, "tries_used_up")
            return
        try:
            with rtobs.stage("normalize"):
                title = json.loads(message.data)["title"]
        except (ValueError, KeyError, TypeError):
            await self.bury(message, "unreadable")
            return
        try:
            response = await self.create(title)
            why, asked = str(response.status_code), response.headers.get("retry-after", "")
            again = response.status_code >= 500 or response.status_code == 429
        except httpx.TransportError as error:
            why, asked, again = type(error).__name__, "", True
        if why.startswith("2"):
            await message.ack()
        elif again and message.metadata.num_delivered < TRIES:
            pause = PAUSE * 2 ** (message.metadata.num_delivered - 1)
            await message.nak(delay=float(asked) if asked.isdecimal() else pause)
        else:
            await self.bury(message, why)

    @rtobs.deliver("connector", "vendor", key=lambda _self, title: title)
    async def create(self, title: str) -> httpx.Response:
        """Try once; the status of the response that is returned decides how this attempt ended."""
        return await self.client.post("/tickets", json={"title": title}, headers={"idempotency-key": title})

    async def bury(self, message: Msg, why: str) -> None:
        """Publish a ticket as a dead letter; only then is it delivered no more."""
        rtobs.current().note(died_of=why)
        with rtobs.publish(DEAD):
            await self.streams.publish(DEAD, message.data, headers={**(message.headers or {}), "Died-Of": why})
        await message.term()


async def main() -> None:
    """Fetch and deliver until somebody stops it."""
    broker = await connect()
    tickets = await pull(broker.streams, TICKETS, "connector")
    queues = {f"{stream(TICKETS)}/connector": "main", f"{stream(DEAD)}/replay": "dead"}
    await pull(broker.streams, DEAD, "replay")  # so that there is something to watch
    rtobs.integrations.watch(broker.client, queues, interval=2.0, slots=BATCH)
    async with httpx.AsyncClient(base_url=VENDOR_URL, timeout=5.0) as client:
        connector = Connector(broker.streams, rtobs.wrap(client))
        while True:
            with contextlib.suppress(TimeoutError):  # nothing there
                messages = await tickets.fetch(BATCH, timeout=5.0)
                await asyncio.gather(*map(connector.handle, messages), return_exceptions=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
