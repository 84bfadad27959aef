"""`rtobs.integrations.watch` on SQS: depths by URL and by name; ages are estimates."""

from __future__ import annotations

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import _sqs
from tests.integrations.sqs_support import aws, boto, got
from tests.support.timing import eventually

__all__ = ["aws", "boto"]

INTERVAL = 0.05


def _values(telemetry, instrument, url):
    return [
        (value, labels.get("estimated"))
        for labels, value, _ in telemetry.series(instrument, destination=_sqs.place(url))
    ]


@pytest.mark.parametrize("wrapped", [True, False])
async def test_what_waits_is_visible_or_in_flight(aws, telemetry, wrapped):
    """Messages that nobody has, and those that somebody has not deleted, wait; delayed ones do not yet."""
    queue, other = aws.queue(), aws.queue()
    client = await aws.client(wrapped=wrapped)
    watch = rtobs.integrations.watch(client, [queue, _sqs.place(other)], interval=INTERVAL)
    for url in (queue, other):
        await eventually(lambda url=url: _values(telemetry, names.QUEUE_AGE, url) == [(0.0, "false")])
    for body in ("1", "2"):
        aws.bare.send_message(QueueUrl=queue, MessageBody=body)
    aws.bare.send_message(QueueUrl=queue, MessageBody="3", DelaySeconds=900)
    aws.bare.receive_message(QueueUrl=queue, MaxNumberOfMessages=1)
    await eventually(lambda: _values(telemetry, names.QUEUE_DEPTH, queue) == [(2.0, None)], timeout=15)
    [(age, estimated)] = _values(telemetry, names.QUEUE_AGE, queue)
    assert estimated == "true"  # how old the oldest is only CloudWatch knows
    assert 0 <= age < 60
    assert _values(telemetry, names.QUEUE_DEPTH, other) == [(0.0, None)]
    watch.stop()
    assert telemetry.spans("receive") == []


async def test_a_resource_is_asked_through_its_client(boto, telemetry):
    """A resource of boto3 can be watched as its client can."""
    import boto3

    queue, resource = boto.queue(), boto3.resource("sqs", endpoint_url=boto.url)
    await got(resource.Queue(queue).send_message(MessageBody="x"))
    watch = rtobs.integrations.watch(resource, [queue], interval=INTERVAL)
    await eventually(lambda: _values(telemetry, names.QUEUE_DEPTH, queue) == [(1.0, None)])
    watch.stop()
    resource.meta.client.close()


async def test_a_queue_that_is_not_there_is_told_once(boto, telemetry, caplog):
    """A question that fails is counted and told, and raises nothing."""
    watch = rtobs.integrations.watch(await boto.client(), ["rtobs-test-nowhere"], interval=INTERVAL)
    await eventually(lambda: "no answer about rtobs-test-nowhere" in caplog.text)
    watch.stop()
    rtobs.configure()  # the fault is what this test is about
