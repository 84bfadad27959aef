"""The webhook connector: delivers each message to its subscriber. Run it with `python connector.py`."""

import asyncio
import contextlib
import json
import os
from typing import Any

import httpx
from aio_pika.abc import AbstractIncomingMessage
from topology import connect

import rtobs

rtobs.configure(service="connector", logs="stdout")

WEBHOOK_URL = os.environ.get("WEBHOOK_URL", "http://127.0.0.1:9000")
PAUSE = float(os.environ.get("RETRY_PAUSE", "1.0"))
"""Seconds before a failed delivery is tried again."""


class Connector:
    """Delivers over HTTP, and decides what becomes of a message whose delivery failed."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    @rtobs.consume("webhooks")
    async def handle(self, message: AbstractIncomingMessage) -> None:
        """Deliver; what another try may mend is put back, everything else is acknowledged."""
        async with message.process(ignore_processed=True):  # a bug of ours makes a dead letter
            job = json.loads(message.body)
            try:
                response = await self.post(job["subscriber"], job)
                again = response.status_code >= 500 or response.status_code == 429
            except httpx.TransportError:
                again = True
            if again:
                await asyncio.sleep(PAUSE)
                await message.nack(requeue=True)
            elif response.is_success:
                rtobs.current().event("webhook_delivered", subscriber=job["subscriber"])

    @rtobs.deliver("webhook", "subscriber", key=lambda _self, subscriber, _job: subscriber)
    async def post(self, subscriber: str, job: dict[str, Any]) -> httpx.Response:
        """Try once; the status of the response that is returned decides how this attempt ended."""
        rtobs.current().note(subscriber=subscriber)
        return await self.client.post(f"/{subscriber}", json=job)


async def main() -> None:
    """Deliver until somebody stops it."""
    broker = await connect()
    async with broker.connection, httpx.AsyncClient(base_url=WEBHOOK_URL, timeout=5.0) as client:
        await broker.webhooks.consume(Connector(rtobs.wrap(client)).handle)
        await asyncio.Future()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
