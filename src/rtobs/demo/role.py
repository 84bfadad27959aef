"""One process of the platform: ``python -m rtobs.demo.role ROLE``, started and spoken to by `processes.Platform`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import traceback
from importlib import import_module
from typing import Any, Final

import rtobs
from rtobs.demo import brokers, roles, world
from rtobs.demo.api import Load
from rtobs.demo.devices import Clients
from rtobs.demo.options import CHANNELS, CONNECTOR_PROCESSES, without_secrets
from rtobs.demo.providers import Fault, UnexpectedAnswerError

FINISH_SECONDS: Final = 5.0
"""How long handlers may go on after the end was called."""


class Play:
    """The roles that one process plays: one of them, or all where it is the whole platform."""

    def __init__(self, role: str, config: dict[str, Any]) -> None:
        everyone = role == "platform"
        self._declares = everyone or role == "api"
        queues = [roles.INBOX, *(roles.outbox(channel) for channel in CHANNELS)]
        self._broker = brokers.make(config["broker"], config["run"], queues, [roles.DEVICES], roles.BACKOFF)
        seed, seconds, rate = config["seed"], config["seconds"], config["rate"]
        fault = Fault(config["fault"], config["target"], seconds, rate, shares=1 if everyone else CONNECTOR_PROCESSES)
        self._load = Load(self._broker, seed, rate, seconds) if self._declares else None
        self._connectors = roles.connectors(self._broker, seed, fault) if role in ("connectors", "platform") else []
        self._readers: list[roles.Reader] = [*self._connectors]
        if everyone or role == "router":
            self._readers.append(roles.Router(self._broker))
        if everyone or role == "clients":
            self._readers.append(Clients(self._broker, seed))

    async def begin(self) -> None:
        """Connect and read the queues."""
        await self._broker.open(declare=self._declares)
        for reader in self._readers:
            await reader.start()

    async def perform(self, said: asyncio.Queue[str]) -> bool:
        """Make messages, if that is this process's part, until told to stop; return whether the observer said so."""
        for connector in self._connectors:
            connector.provider.begin()
        stop = asyncio.create_task(hear(said, "stop"))
        if self._load is not None:
            load = asyncio.create_task(self._load.run())
            await asyncio.wait((load, stop), return_when=asyncio.FIRST_COMPLETED)
            if load.done():
                load.result()  # raises what went wrong
                print("done", flush=True)
            else:
                load.cancel()
        return bool(await stop)

    async def end(self) -> None:
        """Let what is being handled finish, and disconnect."""
        await self._broker.stop_consuming()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                for reader in self._readers:
                    await reader.idle()
        await self._broker.close()


async def hear(said: asyncio.Queue[str], word: str) -> str:
    """Wait for *word*, or for the end of what is said, an empty line: then the observer is gone and this is over."""
    while (line := await said.get()) not in (word, ""):
        pass
    return line


def listen(said: asyncio.Queue[str], loop: asyncio.AbstractEventLoop) -> None:
    """Pass on the observer's lines; after the last one, empty ones."""
    for line in sys.stdin:
        loop.call_soon_threadsafe(said.put_nowait, line.strip())
    with contextlib.suppress(RuntimeError):  # the loop has ended
        for _ in ("go", "stop"):
            loop.call_soon_threadsafe(said.put_nowait, "")


def warm_up() -> None:
    """Load now what rtobs loads with the first message, so that the first messages do not wait for imports."""
    for signal in ("trace_exporter", "metric_exporter", "_log_exporter"):
        import_module(f"opentelemetry.exporter.otlp.proto.http.{signal}")
    for room in ("_export.pipeline", "_telemetry.events", "_telemetry.metrics", "_telemetry.spans"):
        import_module(f"rtobs.{room}")


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
        play = Play(role, config)
        await play.begin()
        warm_up()
        print("ready", flush=True)
        await hear(said, "go")
        told = await play.perform(said)
        await play.end()
    except ConnectionError as error:
        sys.exit(f"{error}\nCheck that a broker answers at {without_secrets(config['broker'])}.")
    if not told:
        os._exit(1)  # the observer is gone, and with it the collector: do not wait for an answer


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
