"""An application of aio-pika's: one message goes round."""

import asyncio
import sys

import aio_pika


async def main(url: str, name: str) -> None:
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, auto_delete=True)
        done = asyncio.Event()

        async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            async with message.process():
                done.set()

        tag = await queue.consume(handle)
        await channel.default_exchange.publish(aio_pika.Message(b"order"), routing_key=name)
        await asyncio.wait_for(done.wait(), 20)
        await queue.cancel(tag)
    print("done")


asyncio.run(main(*sys.argv[1:]))
