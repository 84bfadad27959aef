"""A client: says what is typed, shows what others say, and reports that. Run it with `python client.py alice`."""

import asyncio
import contextlib
import json
import os
import sys

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

URL = os.environ.get("CHAT_URL", "ws://127.0.0.1:8000/rooms/lobby")
LARGE = 16 * 1024 * 1024


async def show(socket: ClientConnection) -> None:
    """Print what is said, with the correlation id of its journey, and send the receipts back."""
    async for frame in socket:
        said = json.loads(frame)
        print(f"{said['id']} {said['name']}: {said['text'][:80]}", flush=True)
        await socket.send(json.dumps({"seen": said["receipt"]}))


async def say(socket: ClientConnection) -> None:
    """Send each line that is typed; `/paste` stands for five megabytes of a log file."""
    typed = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(typed)
    keyboard, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    with contextlib.closing(keyboard):
        async for line in typed:
            text = line.decode().strip().replace("/paste", "x" * 5_000_000)
            await socket.send(json.dumps({"text": text}))


async def main(name: str) -> None:
    """Talk until the input or the connection ends."""
    # Not compressed, so that what is pasted is as large on the wire.
    async with connect(f"{URL}?name={name}", max_size=LARGE, compression=None) as socket:
        print("connected", flush=True)
        tasks = asyncio.create_task(show(socket)), asyncio.create_task(say(socket))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"closed: {socket.close_code} {socket.close_reason}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, ConnectionClosed):
        asyncio.run(main(sys.argv[1]))
