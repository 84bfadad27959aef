"""boto3 that others instrument too: one span for each thing that happens, whoever makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest
from opentelemetry.instrumentation.boto3sqs import Boto3SQSInstrumentor
from opentelemetry.instrumentation.botocore import BotocoreInstrumentor

import rtobs
from tests.integrations.sqs_support import Aws
from tests.support.telemetry import user_provider

NEIGHBOURS = {
    "boto3sqs": [Boto3SQSInstrumentor],
    "botocore": [BotocoreInstrumentor],
    "both": [Boto3SQSInstrumentor, BotocoreInstrumentor],
}


class Neighbours:
    """Other instrumentations of boto3; calling it switches them on."""

    def __init__(self, name: str) -> None:
        self.only_queues, self.both = name == "boto3sqs", name == "both"
        self._made = [each() for each in NEIGHBOURS[name]]

    def __call__(self) -> None:
        for each in self._made:
            each.instrument(tracer_provider=user_provider(), skip_dep_check=True)

    def off(self) -> None:
        for each in self._made:
            if each.is_instrumented_by_opentelemetry:
                each.uninstrument()


@pytest.fixture(params=NEIGHBOURS)
def neighbours(request) -> Generator[Neighbours, None, None]:
    found = Neighbours(request.param)
    yield found
    found.off()


@pytest.fixture
async def aws(aws_url: str, unique: Callable[[str], str]) -> Any:
    found = Aws(aws_url, unique, sync=True)
    yield found
    await found.close()


@pytest.mark.parametrize("first", ["rtobs", "contrib"])
async def test_a_message_has_our_spans_only(neighbours, aws, telemetry, first):
    """Sends, batches, topics, receives and handlings are our spans alone, each once, whichever came first."""
    queue, topics_queue = aws.queue(), aws.queue()
    topic = aws.topic(topics_queue)
    if first == "contrib":
        neighbours()
    client, topics = await aws.client(), await aws.client("sns")
    if first == "rtobs":
        neighbours()
    with rtobs.accept("/orders") as hop:
        client.send_message(QueueUrl=queue, MessageBody="x")
        client.send_message_batch(QueueUrl=queue, Entries=[{"Id": "1", "MessageBody": "x"}])
        topics.publish(TopicArn=topic, Message="x")
        topics.publish_batch(TopicArn=topic, PublishBatchRequestEntries=[{"Id": "1", "Message": "x"}])
    for place in (queue, topics_queue):
        for message in client.receive_message(QueueUrl=place, MaxNumberOfMessages=10)["Messages"]:
            with rtobs.consume("orders", message) as again:
                assert again.correlation_id == hop.correlation_id
    assert {span.instrumentation_scope.name for span in telemetry.spans()} == {"rtobs"}
    kinds = Counter(span.attributes["rtobs.hop"] for span in telemetry.spans())
    assert kinds == {"accept": 1, "publish": 4, "receive": 2, "consume": 4}
    sent = {span.context.span_id for span in telemetry.spans("publish")}
    assert {span.parent.span_id for span in telemetry.spans("consume")} == sent
    assert {span.context.trace_id for span in telemetry.spans("consume")} == {telemetry.span("accept").context.trace_id}


async def test_other_calls_are_theirs(neighbours, aws, telemetry):
    """What is no hop of ours, a deletion or a look at the queue, has the other instrumentation's span, in our hop."""
    neighbours()
    queue, client = aws.queue(), await aws.client()
    client.send_message(QueueUrl=queue, MessageBody="x")
    [message] = client.receive_message(QueueUrl=queue)["Messages"]
    telemetry.forget()
    with rtobs.consume("orders", message):
        client.get_queue_attributes(QueueUrl=queue)
        client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    consumed = telemetry.span("consume")
    theirs = [span for span in telemetry.spans() if span is not consumed]
    assert {span.parent.span_id for span in theirs} <= {consumed.context.span_id}
    assert len(theirs) == (0 if neighbours.only_queues else 2)


async def test_a_client_that_nobody_wraps_stays_theirs(neighbours, aws, telemetry):
    """A bare client beside a wrapped one has the other instrumentation's spans as ever."""
    neighbours()
    queue, bare = aws.queue(), await aws.client(wrapped=False)
    await aws.client()
    telemetry.forget()
    bare.send_message(QueueUrl=queue, MessageBody="x")
    assert len(telemetry.spans()) == (2 if neighbours.both else 1)
    assert "rtobs" not in {span.instrumentation_scope.name for span in telemetry.spans()}
