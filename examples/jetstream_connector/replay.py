"""Puts dead letters back, once their cause is mended. Run it with `python replay.py`."""

import asyncio
import contextlib
import json

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from topology import BATCH, DEAD, TICKETS, connect, pull

import rtobs

rtobs.configure(service="replay", logs="stdout")


class Replay:
    """Publishes each dead letter as a ticket again."""

    def __init__(self, streams: JetStreamContext) -> None:
        self.streams = streams

    @rtobs.consume(DEAD)
    async def handle(self, message: Msg) -> None:
        """Put one back: the same journey, and the same promise."""
        hop = rtobs.current()
        title = json.loads(message.data)["title"]
        with rtobs.publish(TICKETS, channel="connector", key=title):
            await self.streams.publish(TICKETS, message.data)
        await message.ack()
        hop.event("ticket_replayed", title=title, died_of=(message.headers or {}).get("Died-Of", ""))


async def main() -> None:
    """Put back what is there."""
    broker = await connect()
    dead, replay = await pull(broker.streams, DEAD, "replay"), Replay(broker.streams)
    with contextlib.suppress(TimeoutError):  # that was all
        while messages := await dead.fetch(BATCH, timeout=1.0):
            await asyncio.gather(*map(replay.handle, messages), return_exceptions=True)
    await broker.client.close()


if __name__ == "__main__":
    asyncio.run(main())
