"""One process of the platform: ``python -m rtobs.demo.role ROLE``, started and spoken to by `processes.Platform`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import traceback
from typing import Any, Final

import rtobs
from rtobs.demo import brokers, roles, world
from rtobs.demo.options import CHANNELS, without_secrets
from rtobs.demo.providers import Fault, UnexpectedAnswerError

FINISH_SECONDS: Final = 5.0
"""How long handlers may go on after the end was called."""


async def play(role: str, config: dict[str, Any], said: asyncio.Queue[str]) -> None:
    """Be one role (or, as ``platform``, all of them) until told to stop."""
    queues = [roles.INBOX, *(roles.outbox(channel) for channel in CHANNELS)]
    broker = brokers.make(config["broker"], config["run"], queues, [roles.DEVICES], roles.BACKOFF)
    await broker.open(declare=role in ("api", "platform"))
    shares = 1 if role == "platform" else 2
    fault = Fault(config["fault"], config["target"], config["seconds"], config["rate"], shares)
    api = roles.Api(broker, config["seed"], config["rate"], config["seconds"])
    router = roles.Router(broker)
    connectors = roles.connectors(broker, config["seed"], fault)
    clients = roles.Clients(broker, config["seed"])
    everyone = role == "platform"
    if everyone or role == "clients":
        await clients.start()
    if everyone or role == "connectors":
        for connector in connectors:
            await connector.start()
    if everyone or role == "router":
        await router.start()
    print("ready", flush=True)
    await hear(said, "go")
    for connector in connectors:
        connector.provider.begin()
    load = asyncio.create_task(api.run()) if everyone or role == "api" else None
    stop = asyncio.create_task(hear(said, "stop"))
    if load is not None:
        await asyncio.wait((load, stop), return_when=asyncio.FIRST_COMPLETED)
        if load.done():
            load.result()  # raises what went wrong
            print("done", flush=True)
    await stop
    if load is not None and not load.done():
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
    await broker.stop_consuming()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            await router.idle()
            for connector in connectors:
                await connector.idle()
            await clients.stop()
    await broker.close()


async def hear(said: asyncio.Queue[str], word: str) -> None:
    """Wait for *word*, or for the end of what is said: then the observer is gone and this is over."""
    while await said.get() not in (word, ""):
        pass


def listen(said: asyncio.Queue[str], loop: asyncio.AbstractEventLoop) -> None:
    """Pass on the observer's lines; after the last one, empty ones."""
    for line in sys.stdin:
        loop.call_soon_threadsafe(said.put_nowait, line.strip())
    with contextlib.suppress(RuntimeError):  # the loop has ended
        for _ in ("go", "stop"):
            loop.call_soon_threadsafe(said.put_nowait, "")


async def run(role: str) -> None:
    """Read the configuration and play the role."""
    said: asyncio.Queue[str] = asyncio.Queue()
    threading.Thread(target=listen, args=(said, asyncio.get_running_loop()), daemon=True).start()
    config = json.loads(await said.get())
    rtobs.configure(
        service=role,
        tenants=world.TENANTS[:1],
        high_value={world.HIGH_VALUE},
        errors={UnexpectedAnswerError: rtobs.ErrorCategory.VALIDATION},
        wire_key=bytes.fromhex(config["wire_key"]),
    )
    try:
        await play(role, config, said)
    except ConnectionError as error:
        sys.exit(f"{error}\nCheck that a broker answers at {without_secrets(config['broker'])}.")


def main() -> None:
    """Play the role named on the command line."""
    try:
        asyncio.run(run(sys.argv[1]))
    except Exception:  # noqa: BLE001 - the observer reports the last words of a process that broke
        traceback.print_exc()
        sys.exit(1)
    finally:
        rtobs.shutdown()


if __name__ == "__main__":
    main()
