"""A small platform for a real Prometheus to scrape: two streams, one worker, two channels; run as a program.

It keeps its own books, beside rtobs, and prints them as one line of JSON when its messages are through; then it stays
up until its input is closed.

    python platform_process.py REDIS_URL STREAM STUCK_STREAM
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict

import redis.asyncio

import rtobs

MESSAGES = 60
STUCK = 3


class Refused(ConnectionError):
    """The provider is away."""


@rtobs.deliver("push", "fcm")
async def push(number: int) -> None:
    if number % 6 == 0:
        raise Refused


@rtobs.deliver("sms", "twilio")
async def sms(number: int) -> None:
    await asyncio.sleep(0.08 if number % 10 == 9 else 0.001)  # one in ten is slow


async def main(url: str, stream: str, stuck: str) -> None:
    client = rtobs.wrap(redis.asyncio.Redis.from_url(url))
    await client.xgroup_create(stream, "workers", mkstream=True)
    await client.xgroup_create(stuck, "nobody", mkstream=True)
    rtobs.integrations.watch(client, [stream, stuck], interval=0.3, slots=4)
    stuck_since = time.time()
    for _ in range(STUCK):
        await client.xadd(stuck, {"body": "x"})
    delivered, failed, ages = defaultdict(int), defaultdict(int), defaultdict(list)
    for number in range(MESSAGES):
        channel = "sms" if number % 2 else "push"
        begun = time.time()
        with rtobs.accept("/notify") as hop:
            hop.segment(tenant="acme")
            await client.xadd(stream, {"number": number})
        [[_, entries]] = await client.xreadgroup("workers", "one", {stream: ">"}, count=1)
        for entry in entries:
            with rtobs.consume("notifications", entry):
                try:
                    await (sms if number % 2 else push)(number)
                except Refused:
                    failed[channel] += 1
                else:
                    delivered[channel] += 1
                    ages[channel].append(time.time() - begun)
                await client.xack(stream, "workers", entry[0])
    print(json.dumps({"delivered": delivered, "failed": failed, "ages": ages, "stuck_since": stuck_since}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    rtobs.shutdown()
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
