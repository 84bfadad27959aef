"""Host programs over clients that need no broker here: SQS and SNS played in the client, HTTP by requests and aiohttp.

As those of ``drives``.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import socket
from typing import Any

import aiohttp
import boto3
import requests
from aiobotocore.session import get_session
from aiohttp.abc import AbstractResolver
from botocore.awsrequest import AWSResponse
from requests.adapters import BaseAdapter

import rtobs
from tests.support.http import Answer, Server
from tests.unbreakable.drives import Drive, Saw

QUEUE = "http://sqs.test/123456789012/orders"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:events"
ACCOUNT = {"region_name": "eu-west-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}


class Aws:
    """What SQS and SNS answer, as far as the program asks; no more than one message waits."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self.tight = False
        """Refuse what carries more than its sender gave."""

    def connect(self, client: Any, *, later: bool = False) -> Any:
        client.meta.events.register("provide-client-params", self._asked)
        client.meta.events.register("before-call", self._answer_later if later else self._answer)
        return client

    def _asked(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["asked"] = copy.deepcopy(params)

    def _answer(self, model: Any, context: dict[str, Any], **_: Any) -> Any:
        asked = context["asked"]
        if self.tight and "'rtobs'" in str(asked):
            return AWSResponse("", 400, {}, None), {"Error": {"Code": "InvalidParameterValue", "Message": "too long"}}
        return AWSResponse("", 200, {}, None), getattr(self, model.name, lambda _: {})(asked)

    async def _answer_later(self, **call: Any) -> Any:
        await asyncio.sleep(0)
        return self._answer(**call)

    def SendMessage(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802  as AWS calls it
        self._waiting.append(asked)
        return {"MessageId": "m"}

    def SendMessageBatch(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        first, *others = asked["Entries"]
        self._waiting.append(first)
        failed = [{"Id": each["Id"], "Code": "InternalError", "SenderFault": False} for each in others]
        return {"Successful": [{"Id": first["Id"], "MessageId": "m"}], "Failed": failed}

    def Publish(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"MessageId": "m"}

    def ReceiveMessage(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if not self._waiting:
            return {}
        sent, number = self._waiting.pop(), str(next(self._numbers))
        wanted = asked.get("MessageAttributeNames", ())
        found = {name: each for name, each in sent.get("MessageAttributes", {}).items() if name in wanted}
        system = {"SentTimestamp": "1800000000000", "ApproximateReceiveCount": "1"}
        system = {name: each for name, each in system.items() if name in asked.get("MessageSystemAttributeNames", ())}
        message = {"MessageId": "m", "ReceiptHandle": number, "Body": sent["MessageBody"], "Attributes": system,
                   "MessageAttributes": found, "MD5OfMessageAttributes": "d"}  # fmt: skip
        return {"Messages": [{name: each for name, each in message.items() if each}]}


class Sqs(Drive):
    """Sends, batches and topics, receives, deletions and visibility, by boto3's client and by aiobotocore's."""

    name = "sqs"

    async def open(self) -> None:
        self._aws = Aws()
        self._clients = [self._aws.connect(boto3.client(name, **ACCOUNT)) for name in ("sqs", "sns")]
        self._making = get_session().create_client("sqs", **ACCOUNT)
        self._later: Any = self._aws.connect(await self._making.__aenter__(), later=True)
        if self.wrapped:
            for client in (*self._clients, self._later):
                rtobs.wrap(client)

    async def run(self) -> Saw:
        saw: Saw = []
        sqs, sns = self._clients
        mine = {"x-shop": {"DataType": "String", "StringValue": "1"}}
        with rtobs.accept("/orders"):
            sent = sqs.send_message(QueueUrl=QUEUE, MessageBody="one", MessageAttributes=mine, DelaySeconds=1)
            saw.append(sent["MessageId"])
            saw.append(sns.publish(TopicArn=TOPIC, Message="two")["MessageId"])
        saw += self._take(sqs, MessageAttributeNames=["x-shop"])
        entries = [{"Id": each, "MessageBody": each} for each in ("a", "b")]
        found = sqs.send_message_batch(QueueUrl=QUEUE, Entries=entries)
        saw.append(([each["Id"] for each in found["Successful"]], [each["Id"] for each in found["Failed"]]))
        saw += self._take(sqs)
        saw.append(sqs.receive_message(QueueUrl=QUEUE).get("Messages"))
        self._aws.tight = True
        saw.append(sqs.send_message(QueueUrl=QUEUE, MessageBody="three")["MessageId"])
        self._aws.tight = False
        saw += self._take(sqs, batch=True)
        saw.append((await self._later.send_message(QueueUrl=QUEUE, MessageBody="four"))["MessageId"])
        for message in (await self._later.receive_message(QueueUrl=QUEUE))["Messages"]:
            saw.append((message["Body"], sorted(message)))
            with rtobs.consume("orders", message):
                await self._later.delete_message(QueueUrl=QUEUE, ReceiptHandle=message["ReceiptHandle"])
        return saw

    @staticmethod
    def _take(client: Any, *, batch: bool = False, **asked: Any) -> Saw:
        saw: Saw = []
        for message in client.receive_message(QueueUrl=QUEUE, **asked)["Messages"]:
            saw.append((message["Body"], sorted(message), sorted(message.get("MessageAttributes", {}))))
            which = {"ReceiptHandle": message["ReceiptHandle"]}
            with rtobs.consume("orders", message):
                if batch:
                    client.delete_message_batch(QueueUrl=QUEUE, Entries=[{"Id": "1", **which}])
                else:
                    client.change_message_visibility(QueueUrl=QUEUE, VisibilityTimeout=0, **which)
        return saw

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self._making.__aexit__(None, None, None)


class _Provider(BaseAdapter):
    """In place of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Saw = []

    def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
        self.asked.append((request.method, request.url, request.headers.get("x-shop")))
        if request.url.endswith("/away"):
            raise requests.ConnectionError("refused")
        response = requests.Response()
        response.request, response.url, response._content = request, request.url, b"done"
        moved = request.url.endswith("/moved")
        response.status_code = 307 if moved else 200
        response.headers.update({"location": "https://crm.test/there"} if moved else {"retry-after": "3"})
        return response

    def close(self) -> None:
        pass


class Requests(Drive):
    """requests in a deliver hop, with a redirect and a connection that fails."""

    name = "requests"

    async def open(self) -> None:
        self._session, self._provider = requests.Session(), _Provider()
        if self.wrapped:
            rtobs.wrap(self._session)
        self._session.mount("https://", self._provider)

        @rtobs.deliver("connector", "crm")
        async def deliver(path: str) -> requests.Response:
            return self._session.get(f"https://crm.test{path}", headers={"x-shop": "1"})

        self._deliver = deliver

    async def run(self) -> Saw:
        saw: Saw = []
        self._provider.asked.clear()
        for path in ("/done", "/moved"):
            response = await self._deliver(path)
            saw.append((response.status_code, response.text, dict(response.request.headers).keys() - set(OWN)))
        try:
            await self._deliver("/away")
        except requests.ConnectionError as error:
            saw.append(str(error))
        saw.append(self._session.get("https://crm.test/outside").text)
        return saw + self._provider.asked

    async def close(self) -> None:
        self._session.close()


OWN = ("traceparent", "tracestate", "baggage", "rtobs-journey")


class _Resolver(AbstractResolver):
    """Leads every host to one server, whose port is another each time."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        if host.startswith("away"):
            raise OSError("no such host")
        return [{"hostname": host, "host": "127.0.0.1", "port": self._port, "family": socket.AF_INET, "proto": 0,
                 "flags": 0}]  # fmt: skip

    async def close(self) -> None:
        pass


class AioHttp(Drive):
    """aiohttp's client in a deliver hop, with a redirect, an error status and a connection that fails."""

    name = "aiohttp"

    async def open(self) -> None:
        self._server = Server()
        self._server.start()
        self._server.answers |= {"/moved": Answer(307, {"location": "/there"}), "/busy": Answer(503)}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_Resolver(self._server.port)))
        if self.wrapped:
            rtobs.wrap(self._session)

        @rtobs.deliver("connector", "crm")
        async def deliver(url: str) -> tuple[int, str]:
            async with self._session.get(url, headers={"x-shop": "1"}) as response:
                return response.status, await response.text()

        self._deliver = deliver

    async def run(self) -> Saw:
        saw: Saw = []
        self._server.received.clear()
        for path in ("/done", "/moved", "/busy"):
            saw.append(await self._deliver(f"http://crm.test{path}"))
        try:
            await self._deliver("http://away.test/")
        except aiohttp.ClientError as error:
            saw.append(type(error))
        async with self._session.get("http://crm.test/outside") as response:
            saw.append(await response.text())
        return [*saw, *((each.method, each.path, each.headers.get("x-shop")) for each in self._server.received)]

    async def close(self) -> None:
        await self._session.close()
        self._server._server.shutdown()
        self._server._server.server_close()
