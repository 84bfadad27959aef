"""An application of nats-py's: one message goes round."""

import asyncio
import sys

import nats


async def main(url: str, name: str) -> None:
    client = await nats.connect(url)
    done = asyncio.Event()

    async def handle(_message: object) -> None:
        done.set()

    await client.subscribe(name, cb=handle)
    await client.publish(name, b"order")
    await asyncio.wait_for(done.wait(), 20)
    await client.drain()
    print("done")


asyncio.run(main(*sys.argv[1:]))
