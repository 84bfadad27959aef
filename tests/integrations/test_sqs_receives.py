"""Receiving from SQS: what a message tells, what settles it, and that its receiver sees what he asked for."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import _boto_calls, _sqs
from rtobs.integrations._twin import Options
from tests.integrations.adapter import here
from tests.integrations.sqs_support import Aws, aws, boto, got, text
from tests.support.timing import eventually, scaled

__all__ = ["aws", "boto"]

_OWN = {"MessageId", "ReceiptHandle", "MD5OfBody", "Body"}


async def sent(aws: Aws, client: Any, queue: str, body: str = "x", **how: Any) -> str:
    """Send one message in a hop; return its correlation id."""
    with rtobs.accept("/orders") as hop:
        await got(client.send_message(QueueUrl=queue, MessageBody=body, **how))
    return hop.correlation_id


async def delete(client: Any, queue: str, message: dict[str, Any]) -> Any:
    return await got(client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"]))


def settled(telemetry) -> dict[str, int]:
    return telemetry.by(names.MESSAGE_SETTLED, "outcome")


# What the receiver sees ----------------------------------------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    {},
    {"MessageAttributeNames": ["order"]},
    {"MessageAttributeNames": ["ord.*"], "AttributeNames": ["SentTimestamp"]},
    {"MessageAttributeNames": ["nothing"], "MessageSystemAttributeNames": ["ApproximateReceiveCount"]},
    {"AttributeNames": ["All"]},
    {"MessageSystemAttributeNames": ["All"]},
    {"AttributeNames": ["SenderId"], "MessageSystemAttributeNames": ["SentTimestamp"]},
    {"AttributeNames": ["DeadLetterQueueSourceArn"]},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: json.dumps(asked)[:60])
async def test_a_receiver_sees_what_he_asked_for(aws, telemetry, asked):
    """Whatever was asked for, a wrapped client's messages are those of a bare one, their digests too."""
    queue, client = aws.queue(), await aws.client()
    attributes = {"order": text("7"), "blob": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}
    await sent(aws, aws.bare, queue, MessageAttributes=attributes)
    [expected] = await aws.receive(aws.bare, queue, VisibilityTimeout=0, **asked)
    await delete(aws.bare, queue, expected)
    await sent(aws, client, queue, MessageAttributes=attributes)
    [found] = await aws.receive(client, queue, **asked)
    assert found.keys() == expected.keys()
    changing = ("MessageId", "ReceiptHandle", "Attributes")
    assert {key: found[key] for key in found if key not in changing} == {
        key: expected[key] for key in expected if key not in changing
    }
    assert found.get("Attributes", {}).keys() == expected.get("Attributes", {}).keys()
    with rtobs.consume("orders", found) as hop:
        assert hop.correlation_id == telemetry.span("publish").attributes["rtobs.correlation_id"]


@pytest.mark.parametrize("wanted", ["All", ".*", "rtobs", "rt.*"])
async def test_our_attribute_is_there_for_who_asks_for_it(aws, telemetry, wanted, monkeypatch):
    """Asked for by its name, a prefix or all, our attribute stays, and a copy of the message still has its journey."""
    monkeypatch.setattr(_boto_calls, "_elsewhere", Options())  # whatever other tests were wrapped with
    queue, client = aws.queue(), await aws.client()
    correlation_id = await sent(aws, client, queue)
    [found] = await aws.receive(client, queue, MessageAttributeNames=[wanted])
    assert found.keys() == _OWN | {"MessageAttributes", "MD5OfMessageAttributes"}
    assert found["MD5OfMessageAttributes"] == _sqs.digest(found["MessageAttributes"])
    with rtobs.consume("orders", json.loads(json.dumps(found))) as hop:  # as another process gets it
        assert hop.correlation_id == correlation_id


async def test_lists_that_the_caller_gave_stay_as_they_were(aws, telemetry):
    """What a receive is called with is not changed."""
    queue, client = aws.queue(), await aws.client()
    asked = {"MessageAttributeNames": ["order"], "AttributeNames": ["SentTimestamp"]}
    before = json.dumps(asked)
    await aws.receive(client, queue, **asked)
    assert json.dumps(asked) == before


async def test_an_empty_receive_is_nothing(aws, telemetry):
    """A poll that brings nothing makes neither span nor measurement."""
    client = await aws.client()
    assert await aws.receive(client, aws.queue()) == []
    assert telemetry.spans() == []
    assert telemetry.count(names.CLIENT_DURATION) == 0


async def test_a_batch_is_one_receive_linked_to_each_message(aws, telemetry):
    """Ten messages of one receive are one span with ten links, and each is handled in its own sender's trace."""
    queue, client = aws.queue(), await aws.client()
    ids = {await sent(aws, client, queue, str(number)) for number in range(10)}
    messages: list[Any] = []
    while len(messages) < 10:
        messages += await aws.receive(client, queue)
    for message in messages:
        with rtobs.consume("orders", message):
            await delete(client, queue, message)
    senders = {span.context.span_id for span in telemetry.spans("publish")}
    links = [link.context.span_id for span in telemetry.spans("receive") for link in span.links]
    assert sorted(links) == sorted(senders)
    consumed = telemetry.spans("consume")
    assert {span.parent.span_id for span in consumed} == senders
    assert {span.attributes["rtobs.correlation_id"] for span in consumed} == ids
    assert settled(telemetry) == {"ok": 10}


# What a message tells ------------------------------------------------------------------------------------------------


async def test_a_killed_consumer_makes_the_next_delivery_the_second_attempt(aws, telemetry):
    """A message that comes back when its visibility ends is attempt 2 by the broker's own count."""
    queue, client = aws.queue(), await aws.client()
    await sent(aws, client, queue)
    [_] = await aws.receive(client, queue, VisibilityTimeout=1)  # and never heard of again
    [message] = await eventually(lambda: aws.receive(client, queue))
    with rtobs.consume("orders", message):
        await delete(client, queue, message)
    assert telemetry.span("consume").attributes["rtobs.attempt"] == 2
    assert telemetry.count(names.MESSAGE_REDELIVERED) == 1


async def test_lag_counts_by_the_brokers_clock_where_the_sender_has_none(aws, telemetry):
    """A message of a sender without rtobs has its lag from SQS' own time of sending, and begins a journey."""
    queue, client = aws.queue(), await aws.client()
    aws.bare.send_message(QueueUrl=queue, MessageBody="x")
    await asyncio.sleep(scaled(0.2))
    [message] = await aws.receive(client, queue)
    with rtobs.consume("orders", message) as hop:
        await delete(client, queue, message)
    assert hop.correlation_id
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"broker": 1}
    assert scaled(0.19) <= telemetry.seconds(names.MESSAGE_LAG) < 10
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"orders": 1}


async def test_a_delay_is_no_lag(aws, telemetry):
    """The lag of a message that was sent with a delay begins when the delay is over."""
    queue, client = aws.queue(), await aws.client()
    await sent(aws, client, queue, DelaySeconds=2)
    [message] = await eventually(lambda: aws.receive(client, queue))
    with rtobs.consume("orders", message):
        await delete(client, queue, message)
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"release": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) < 1.5


async def test_the_trace_of_another_instrumentation_goes_on(aws, telemetry):
    """A service that carries its trace in plain attributes, as OpenTelemetry's instrumentations do, is continued."""
    queue, client = aws.queue(), await aws.client()
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    attributes = {"traceparent": text(f"00-{trace}-{span}-01"), "baggage": text(f"rtobs.cid={'c' * 32},shop=7")}
    aws.bare.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    [message] = await aws.receive(client, queue)
    assert message.keys() == _OWN
    with rtobs.consume("orders", message) as hop:
        assert hop.correlation_id == "c" * 32
    consumed = telemetry.span("consume")
    assert (f"{consumed.parent.trace_id:032x}", f"{consumed.parent.span_id:016x}") == (trace, span)


# Settling ------------------------------------------------------------------------------------------------------------


async def test_a_batch_deletion_settles_the_hop_it_happens_in(aws, telemetry):
    """Deleted together with others inside its hop a message is acked, so that an error after that is its end."""
    queue, client = aws.queue(), await aws.client()
    for number in range(2):
        await sent(aws, client, queue, str(number))
    first, second = await aws.receive(client, queue)
    entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate((first, second))]

    async def handle() -> None:
        with rtobs.consume("orders", second):
            await got(client.delete_message_batch(QueueUrl=queue, Entries=entries))
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        await handle()
    assert settled(telemetry) == {"failed": 1}
    assert telemetry.by(names.CLIENT_DURATION, "operation")["ack"] == 1


async def test_a_deletion_that_fails_in_a_batch_settles_nothing(aws, telemetry):
    """A message whose entry comes back as failed is not acked, and the failure is on the operation."""
    queue, client = aws.queue(), await aws.client()
    await sent(aws, client, queue)
    [message] = await aws.receive(client, queue)

    def answer(**_: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        return AWSResponse("", 200, {}, None), {"Failed": [{"Id": "1", "Code": "InternalError", "SenderFault": False}]}

    client.meta.events.register("before-call.sqs.DeleteMessageBatch", answer)
    entries = [{"Id": "1", "ReceiptHandle": message["ReceiptHandle"]}]

    async def handle() -> None:
        with rtobs.consume("orders", message):
            found = await got(client.delete_message_batch(QueueUrl=queue, Entries=entries))
            assert found["Failed"][0]["Id"] == "1"
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        await handle()
    assert settled(telemetry) == {"retried": 1}
    assert telemetry.by(names.CLIENT_DURATION, "operation", "error_type")["ack", "ClientError"] == 1


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("seconds", [0, 30])
async def test_a_visibility_of_zero_gives_a_message_back(aws, telemetry, batch, seconds):
    """Made visible at once a message is retried; more time for it settles nothing."""
    operation, outcome = ("in_progress", "ok") if seconds else ("nack", "retried")
    queue, client = aws.queue(), await aws.client()
    await sent(aws, client, queue)
    [message] = await aws.receive(client, queue)
    entry = {"ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": seconds}
    with rtobs.consume("orders", message):
        if batch:
            entries = [{"Id": "0", "ReceiptHandle": "of another", "VisibilityTimeout": 99}, {"Id": "1", **entry}]
            await got(client.change_message_visibility_batch(QueueUrl=queue, Entries=entries))
        else:
            await got(client.change_message_visibility(QueueUrl=queue, **entry))
    assert settled(telemetry) == {outcome: 1}
    assert telemetry.by(names.CLIENT_DURATION, "operation")[operation] == 1
    assert bool(await aws.receive(client, queue)) is (seconds == 0)


@pytest.mark.parametrize("told", [True, False])
async def test_a_dead_letter_is_counted_once(aws, telemetry, told):
    """Whoever knows it counts it: a consumer told the limit at its last delivery, else the dead letters' reader."""
    queue, dead = aws.dead_lettered(2)
    options = {"max_deliveries": 2} if told else {}
    client = await aws.client(dead_letter=_sqs.place(dead), **options)
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "7")
        with rtobs.publish("orders", channel="webhook", key="7"):
            await got(client.send_message(QueueUrl=queue, MessageBody="x"))
    for _ in range(2):
        [message] = await aws.receive(client, queue)
        with pytest.raises(ValueError, match="broken"), rtobs.consume("orders", message):
            raise ValueError("broken")
        await got(
            client.change_message_visibility(
                QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        )
    ended = {"dead_lettered": 1} if told else {}
    assert telemetry.by(names.OUTCOMES, "outcome") == ended
    assert await aws.receive(client, queue) == []  # now the broker has moved it
    [message] = await aws.receive(client, dead)
    with rtobs.consume("dead", message):
        assert here().correlation_id == hop.correlation_id
        await delete(client, dead, message)
    assert telemetry.by(names.OUTCOMES, "outcome") == {"dead_lettered": 1}
    assert telemetry.by(names.INTENTS, "channel") == {"webhook": 1}


def test_aws_says_of_a_message_that_it_is_a_dead_letter():
    """The queue it came from, which AWS tells of what it has moved, makes it one without any declaration."""
    native = {"Attributes": {"DeadLetterQueueSourceArn": "arn:aws:sqs:eu-west-1:1:orders"}, "Body": "x"}
    assert _sqs.describe(native, "somewhere", Options()).dead_cause == "limit"
    assert _sqs.describe(native, "somewhere", Options(max_deliveries=3)).dead_cause == "decided"
    assert _sqs.describe({"Body": "x"}, "somewhere", Options(dead_letter="")).dead_cause == ""


# Messages and clients ------------------------------------------------------------------------------------------------


async def test_a_message_is_known_by_its_exact_shape(aws, telemetry):
    """Dictionaries that are no messages are none, whatever they look like; `consume` takes them as values."""
    await aws.client()
    for native in ({}, {"Body": "x"}, {"MessageId": "1", "Body": "x"}, {"body": "x", "receiptHandle": "y"}):
        with rtobs.consume("orders", native):
            pass
    assert telemetry.by(names.CONSUMED_MESSAGES, "system") == {"unknown": 4}


async def test_messages_of_several_threads_are_not_mixed_up(boto, telemetry):
    """Consumers in threads each see the journey of the message that they handle."""
    queue, client = boto.queue(), await boto.client()
    for _ in range(8):
        with rtobs.accept("/orders") as hop:
            client.send_message(QueueUrl=queue, MessageBody=hop.correlation_id)
    right: list[bool] = []

    def work() -> None:
        for message in client.receive_message(QueueUrl=queue, MaxNumberOfMessages=2).get("Messages", []):
            with rtobs.consume("orders", message) as hop:
                right.append(hop.correlation_id == message["Body"])
                client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])

    while len(right) < 8:
        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert right == [True] * 8


async def test_a_client_is_freed_with_its_class(boto, telemetry):
    """Nothing of ours keeps a client, or the class that botocore makes for each, alive."""
    client = await boto.client(wrapped=False)
    import boto3

    other = rtobs.wrap(boto3.client("sqs", endpoint_url=boto.url))
    assert other.__class__ is not client.__class__
    plain = weakref.ref(other.__class__)
    other.close()
    del other
    await eventually(lambda: gc.collect() >= 0 and plain() is None)


async def test_nothing_is_left_of_a_message(boto, telemetry):
    """After many messages as many objects live as before, and no hop among them."""
    queue, client = boto.queue(), await boto.client()

    async def run(number: int) -> int:
        for _ in range(number):
            await sent(boto, client, queue)
            for message in await boto.receive(client, queue):
                with rtobs.consume("orders", message):
                    await delete(client, queue, message)
        telemetry.forget()
        gc.collect()
        return len(gc.get_objects())

    await run(10)  # caches fill
    before = await run(5)
    assert await run(25) - before < 25


# Hostile input -------------------------------------------------------------------------------------------------------

_values = st.one_of(st.text(), st.integers(), st.none(), st.binary(), st.dictionaries(st.text(), st.text()))
_attributes = st.dictionaries(
    st.sampled_from(["rtobs", "traceparent", "baggage", "x"]),
    st.one_of(_values, st.fixed_dictionaries({"StringValue": _values}), st.fixed_dictionaries({"Value": _values})),
)
_envelopes = st.builds(
    lambda attributes, more: json.dumps({"TopicArn": more, "Message": more, "MessageAttributes": attributes}),
    st.one_of(_attributes.map(lambda found: {name: str(value) for name, value in found.items()}), st.text()),
    st.text(),
)


@given(
    attributes=st.one_of(_attributes, _values),
    system=st.dictionaries(st.sampled_from(["SentTimestamp", "ApproximateReceiveCount"]), st.text()),
    body=st.one_of(st.text(), _envelopes, _envelopes.map(lambda found: found[:-7])),
)
def test_whatever_comes_is_described(attributes, system, body):
    """No attributes and no body, however forged, make reading a message fail."""
    native = {"MessageId": "1", "ReceiptHandle": "2", "Body": body, "MessageAttributes": attributes}
    facts = _sqs.describe({**native, "Attributes": system}, "orders", Options())
    assert facts.delivery_count >= 1
    assert facts.sent_ns >= 0
    with rtobs.consume("orders", headers=facts.headers, trust="trusted"):
        pass


@pytest.mark.parametrize("body", ['{"TopicArn": "rtobs", "MessageAttributes": {' + '"a":[' * 20_000 + '"rtobs"',
                                  '{"TopicArn": ""' + ' "MessageAttributes": ' * 50_000 + '"rtobs"'])  # fmt: skip
def test_a_body_that_is_made_to_cost_costs_little(body):
    """A body of SNS' shape that is nested without end, or says the same again and again, has no headers."""
    assert _sqs.describe({"Body": body}, "orders", Options()).headers == {}
