"""Submits tickets as a program that knows nothing of rtobs. Run it with `python legacy.py keyboard`."""

import asyncio
import json
import sys

import nats
from topology import NATS_URL, TICKETS


async def main(titles: list[str]) -> None:
    """Submit one ticket for each title."""
    async with await nats.connect(NATS_URL) as client:
        for title in titles:
            await client.jetstream().publish(TICKETS, json.dumps({"title": title}).encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
