"""What the tests of the SQS and SNS leaves share: clients of both kinds on moto's server, and names that go away."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import boto3
import pytest
from aiobotocore.session import get_session

import rtobs


async def got(result: Any) -> Any:
    """Return a result of either kind of client."""
    return await result if inspect.isawaitable(result) else result


class Aws:
    """One test's use of the server, by clients of boto3 or of aiobotocore."""

    def __init__(self, url: str, unique: Callable[[str], str], *, sync: bool) -> None:
        self.url = url
        self.sync = sync
        self._unique = unique
        self._open = contextlib.AsyncExitStack()
        self._queues: list[str] = []
        self.bare: Any = boto3.client("sqs", endpoint_url=url)
        """A sync client of SQS that nobody wraps."""
        self.bare_topics: Any = boto3.client("sns", endpoint_url=url)

    async def client(self, service: str = "sqs", *, wrapped: bool = True, **options: Any) -> Any:
        """Return a client; if *wrapped*, through `rtobs.wrap(client, **options)`."""
        if self.sync:
            client = boto3.client(service, endpoint_url=self.url)
            self._open.callback(client.close)
        else:
            making = get_session().create_client(service, region_name="eu-west-1", endpoint_url=self.url)
            client = await self._open.enter_async_context(making)
        return rtobs.wrap(client, **options) if wrapped else client

    def queue(self, label: str = "queue", suffix: str = "", **settings: str) -> str:
        """Return the URL of a new queue."""
        url: str = self.bare.create_queue(QueueName=self._unique(label) + suffix, Attributes=settings)["QueueUrl"]
        self._queues.append(url)
        return url

    def arn(self, queue: str) -> str:
        """Return a queue's ARN."""
        found = self.bare.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        return str(found["Attributes"]["QueueArn"])

    def dead_lettered(self, most: int = 1) -> tuple[str, str]:
        """Return the URLs of a new queue and of its dead-letter queue, where messages go after *most* deliveries."""
        dead = self.queue("dead")
        policy = json.dumps({"deadLetterTargetArn": self.arn(dead), "maxReceiveCount": most})
        return self.queue("main", RedrivePolicy=policy), dead

    def topic(self, *queues: str, raw: bool = False) -> str:
        """Return the ARN of a new topic that *queues* are subscribed to."""
        arn: str = self.bare_topics.create_topic(Name=self._unique("topic"))["TopicArn"]
        for queue in queues:
            self.bare_topics.subscribe(
                TopicArn=arn,
                Protocol="sqs",
                Endpoint=self.arn(queue),
                Attributes={"RawMessageDelivery": str(raw).lower()},
            )
        self._open.callback(self.bare_topics.delete_topic, TopicArn=arn)
        return arn

    async def receive(self, client: Any, queue: str, **how: Any) -> list[dict[str, Any]]:
        """Receive what there is."""
        found = await got(client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, **how))
        return found.get("Messages", [])  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self._open.aclose()
        for url in self._queues:
            self.bare.delete_queue(QueueUrl=url)
        self.bare.close()
        self.bare_topics.close()


@pytest.fixture(params=["boto3", "aiobotocore"])
async def aws(request, aws_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Aws, None]:
    found = Aws(aws_url, unique, sync=request.param == "boto3")
    yield found
    await found.close()


@pytest.fixture
async def boto(aws_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Aws, None]:
    """For what is the same code for both kinds of client: those of boto3."""
    found = Aws(aws_url, unique, sync=True)
    yield found
    await found.close()


def text(value: str) -> dict[str, str]:
    """Return a message attribute that is text."""
    return {"DataType": "String", "StringValue": value}


def many(number: int) -> dict[str, Any]:
    """Return that many message attributes."""
    return {f"x-{index}": text(str(index)) for index in range(number)}
