"""One process of the platform: ``python -m rtobs.demo.role ROLE``, started and spoken to by `processes.Platform`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from importlib import import_module
from typing import Any, Final

import rtobs
from rtobs._hop.runtime import runtime
from rtobs.demo import brokers, roles, world
from rtobs.demo.api import Load
from rtobs.demo.devices import Clients
from rtobs.demo.options import CHANNELS, CONNECTOR_PROCESSES, without_secrets
from rtobs.demo.providers import Fault, UnexpectedAnswerError

OPEN_SECONDS: Final = 10.0
"""How long the broker may take until the queues are there."""
LONGEST_REASON: Final = 200
"""Characters of a broker's error that are shown: a server of another kind may say anything."""
FINISH_SECONDS: Final = 5.0
"""How long handlers may go on after the end was called."""
GONE_SECONDS: Final = 20.0
"""How long this process may outlive the observer, whatever it waits for."""


class Play:
    """The roles that one process plays: one of them, or all where it is the whole platform."""

    def __init__(self, role: str, config: dict[str, Any]) -> None:
        everyone = role == "platform"
        self._declares = everyone or role == "api"
        queues = [roles.INBOX, *(roles.outbox(channel) for channel in CHANNELS)]
        self._broker = brokers.make(config["broker"], config["run"], queues, [roles.DEVICES], roles.BACKOFF)
        seed, seconds, rate = config["seed"], config["seconds"], config["rate"]
        shares = 1 if everyone else CONNECTOR_PROCESSES
        fault = Fault(config["fault"], config["target"], seconds, rate, shares, config["after"])
        self._load = Load(self._broker, seed, rate, seconds) if self._declares else None
        self._connectors = roles.connectors(self._broker, seed, fault) if role in ("connectors", "platform") else []
        self._readers: list[roles.Reader] = [*self._connectors]
        if everyone or role == "router":
            self._readers.append(roles.Router(self._broker))
        if everyone or role == "clients":
            self._readers.append(Clients(self._broker, seed))

    async def begin(self) -> None:
        """Connect and read the queues.

        Raises:
            ConnectionError: the broker does not answer, or is no such broker.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._broker.open(declare=self._declares)
                for reader in self._readers:
                    await reader.start()
        except self._broker.errors as error:
            said = str(error) or "no answer in time"
            raise ConnectionError(f"{type(error).__name__}: {said[:LONGEST_REASON]}") from error

    async def perform(self, said: asyncio.Queue[str]) -> str:
        """Make messages, if that is this process's part, until told to stop; return what was heard, see `hear`."""
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
        return await stop

    async def end(self) -> None:
        """Let what is being handled finish, and disconnect."""
        await self._broker.stop_consuming()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                for reader in self._readers:
                    await reader.idle()
        await self._broker.close()

    async def close(self) -> None:
        """Disconnect and leave nothing behind, if the broker still answers; what is being handled is lost."""
        async with asyncio.timeout(FINISH_SECONDS):
            await self._broker.close()


async def hear(said: asyncio.Queue[str], *words: str) -> str:
    """Wait for one of *words*, or for an empty line, the end of what is said: then the observer is gone."""
    while (line := await said.get()) not in (*words, ""):
        pass
    return line


def listen(said: asyncio.Queue[str], loop: asyncio.AbstractEventLoop) -> None:
    """Pass on the observer's lines; after the last one, empty ones, and soon the end."""
    for line in sys.stdin:
        loop.call_soon_threadsafe(said.put_nowait, line.strip())
    with contextlib.suppress(RuntimeError):  # the loop has ended
        for _ in ("go", "stop"):
            loop.call_soon_threadsafe(said.put_nowait, "")
    time.sleep(GONE_SECONDS)
    os._exit(1)


def warm_up() -> None:
    """Do now what rtobs does with the first message: that one need not wait, and Prometheus need not wait for it."""
    for signal in ("trace_exporter", "metric_exporter", "_log_exporter"):
        import_module(f"opentelemetry.exporter.otlp.proto.http.{signal}")
    if not runtime.ready:
        runtime.prepare()


async def run(role: str) -> None:
    """Read the configuration and play the role."""
    said: asyncio.Queue[str] = asyncio.Queue()
    threading.Thread(target=listen, args=(said, asyncio.get_running_loop()), daemon=True).start()
    config = json.loads(await said.get())
    rtobs.configure(
        service=role,
        slos=config["slo"] or (),
        tenants=world.TENANTS[:1],
        high_value={world.HIGH_VALUE} if config["sample"] == 1.0 else (),
        sampling={"default": config["sample"]},
        errors={UnexpectedAnswerError: rtobs.ErrorCategory.VALIDATION},
        wire_key=bytes.fromhex(config["wire_key"]),
    )
    play = Play(role, config)
    try:
        await play.begin()
    except ConnectionError as error:
        name = brokers.kind(config["broker"]).name
        sys.exit(f"{error}\nCheck that {name} answers at {without_secrets(config['broker'])}.")
    warm_up()
    print("ready", flush=True)
    told = await hear(said, "go", "stop")
    try:
        if told == "go":
            told = await play.perform(said)
    except Exception:
        with contextlib.suppress(Exception):  # what it broke on is what matters
            await play.close()
        raise
    await play.end()
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
