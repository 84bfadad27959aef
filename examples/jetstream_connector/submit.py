"""Submits tickets, as an API would. Run it with `python submit.py printer`, or more titles at once."""

import asyncio
import json
import sys

from nats.js import JetStreamContext
from topology import TICKETS, connect

import rtobs

rtobs.configure(service="submit", logs="stdout")


async def submit(streams: JetStreamContext, title: str) -> None:
    """Take one ticket in; its journey begins here, with the promise that the vendor will have it."""
    with rtobs.accept("/tickets") as hop:
        hop.segment(tenant="acme")
        hop.intend("connector", title)
        with rtobs.publish(TICKETS, channel="connector", key=title):
            await streams.publish(TICKETS, json.dumps({"title": title}).encode())
        hop.event("ticket_submitted", title=title)


async def main(titles: list[str]) -> None:
    """Submit one ticket for each title."""
    broker = await connect()
    for title in titles:
        await submit(broker.streams, title)
    await broker.client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
