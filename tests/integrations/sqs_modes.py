"""The conformance suite's adapters for SQS: boto3's client, its resource, and aiobotocore's client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import boto3
from aiobotocore.session import get_session
from botocore.config import Config

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf
from rtobs._journey import envelope
from tests.integrations.adapter import FOREIGN, Handler, How

CONNECTIONS = 16
_NOTHING = "(empty)"  # an attribute cannot be empty


def attributes(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers as message attributes; ours as a message has them that is sent on."""
    given = dict(headers)
    forwarded = {name: given.pop(name) for name in names.OWN_HEADERS if name in given}
    found = {name: {"DataType": "String", "StringValue": value or _NOTHING} for name, value in given.items()}
    if forwarded:
        found["rtobs"] = {"DataType": "String", "StringValue": envelope.pack(forwarded).decode()}
    return found


class SqsAdapter:
    """What all share: a worker's loop stands for a callback, and bodies are text, so bytes travel as base64."""

    system = "aws_sqs"
    sync_callbacks = True
    raising_brings_back = False
    counts_deliveries = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._admin: Any = boto3.client("sqs", endpoint_url=url)
        self._urls: dict[str, str] = {}
        self._came: dict[int, tuple[Any, str]] = {}
        self._last: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._hooks: dict[int, Callable[[], Awaitable[None]]] = {}

    async def declare(self, queue: str, *, dead_letter: str | None = None) -> None:
        settings = {}
        if dead_letter is not None:
            found = self._admin.get_queue_attributes(QueueUrl=self._urls[dead_letter], AttributeNames=["QueueArn"])
            policy = {"deadLetterTargetArn": found["Attributes"]["QueueArn"], "maxReceiveCount": 1}
            settings["RedrivePolicy"] = json.dumps(policy)
        self._urls[queue] = self._admin.create_queue(QueueName=queue, Attributes=settings)["QueueUrl"]

    async def call(self, client: Any, operation: str, **params: Any) -> Any:
        """Make one call of the client's."""
        raise NotImplementedError

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        raise NotImplementedError

    async def send(self, client: Any, queue: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        more = {"MessageAttributes": attributes(headers)} if headers else {}
        text = base64.b64encode(body).decode()
        return await self.call(client, "send_message", QueueUrl=self._urls[queue], MessageBody=text, **more)

    async def wait(self, client: Any, queue: str, most: int = 10) -> list[Any]:
        which = {"QueueUrl": self._urls[queue], "MessageAttributeNames": list(FOREIGN)}
        answer = await self.call(client, "receive_message", MaxNumberOfMessages=most, **which)
        found = answer.get("Messages", [])
        for native in found:
            self._came[id(native)] = client, queue
        return found

    async def fetch(self, client: Any, queue: str) -> Any:
        found = await self.wait(client, queue, 1)
        return found[0] if found else None

    async def settle(self, native: Any, how: How) -> Any:
        self._last = client, queue = self._came.pop(id(native), self._last)
        which = {"QueueUrl": self._urls[queue], "ReceiptHandle": native["ReceiptHandle"]}
        if how == "ack":
            return await self.call(client, "delete_message", **which)
        return await self.call(client, "change_message_visibility", VisibilityTimeout=0, **which)

    def spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def callback(
        self, client: Any, queue: str, handler: Handler, *, prefetch: int = 16
    ) -> Callable[[], Awaitable[None]]:
        """Receive as a worker does, and handle each message in a task of its own, in a hop."""

        async def one(native: Any) -> None:
            decorated = hasattr(handler, "__rtobs_consume__")
            hop = contextlib.nullcontext() if decorated else rtobs.consume(queue, native)
            with contextlib.suppress(asyncio.CancelledError), hop:
                result = handler(native)
                if inspect.isawaitable(result):
                    await result

        stopped = asyncio.Event()

        async def loop() -> None:
            while not stopped.is_set():
                found = await self.wait(client, queue)
                for native in found:
                    self.spawn(one(native))
                await asyncio.sleep(0 if found else 0.02)

        task = self.spawn(loop())

        async def stop() -> None:
            stopped.set()
            await task

        self._stops.append(stop)
        return stop

    async def iterate(self, client: Any, queue: str) -> AsyncIterator[Any]:
        async def items() -> AsyncIterator[Any]:
            while True:
                for native in await self.wait(client, queue, 1):
                    yield native

        return items()

    def body(self, native: Any) -> bytes:
        return base64.b64decode(native["Body"])

    def headers(self, native: Any) -> dict[str, Any]:
        foreign = native.get("MessageAttributes", {})
        known = leaf.known(native)
        plain = {name: each["StringValue"] for name, each in foreign.items() if name != "rtobs"}
        found = {name: "" if value == _NOTHING else value for name, value in plain.items()}
        packed = foreign.get("rtobs", {}).get("StringValue")
        return {**found, **(known.headers if known is not None else envelope.unpack(packed))}

    def destination(self, queue: str) -> str:
        return queue

    target = destination

    def before_send(self, client: Any, hook: Callable[[], Awaitable[None]]) -> None:
        self._hooks[id(client)] = hook

    async def close(self) -> None:
        for stop in self._stops:
            await stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for url in self._urls.values():
            self._admin.delete_queue(QueueUrl=url)
        self._admin.close()


class Boto3Adapter(SqsAdapter):
    """Each call in a thread, with the caller's context."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._clients: list[Any] = []

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        client = boto3.client("sqs", endpoint_url=self.url, config=Config(max_pool_connections=CONNECTIONS))
        self._clients.append(client)
        loop = asyncio.get_running_loop()

        def held(**_: Any) -> None:
            hook = self._hooks.get(id(client))
            if hook is not None:
                asyncio.run_coroutine_threadsafe(hook(), loop).result()

        client.meta.events.register("before-call.sqs.SendMessage", held)
        return rtobs.wrap(client, **options) if wrapped else client

    async def call(self, client: Any, operation: str, **params: Any) -> Any:
        return await asyncio.to_thread(getattr(client, operation), **params)

    async def close(self) -> None:
        await super().close()
        for client in self._clients:
            client.close()


class AiobotocoreAdapter(SqsAdapter):
    """One asyncio client each."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._open = contextlib.AsyncExitStack()

    async def client(self, *, wrapped: bool = True, **options: Any) -> Any:
        making = get_session().create_client("sqs", region_name="eu-west-1", endpoint_url=self.url)
        client = await self._open.enter_async_context(making)

        async def held(**_: Any) -> None:
            hook = self._hooks.get(id(client))
            if hook is not None:
                await hook()

        client.meta.events.register("before-call.sqs.SendMessage", held)
        return rtobs.wrap(client, **options) if wrapped else client

    async def call(self, client: Any, operation: str, **params: Any) -> Any:
        return await getattr(client, operation)(**params)

    async def close(self) -> None:
        await super().close()
        await self._open.aclose()
