"""Sends to SQS and SNS: one attribute, within all limits, and no send that fails because of it."""

from __future__ import annotations

import copy
import itertools
from types import MappingProxyType
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ParamValidationError

import rtobs
from rtobs import _conventions as names
from rtobs._journey import envelope
from rtobs.errors import UnsupportedError
from rtobs.integrations import _boto_calls, unwrap
from tests.integrations.sqs_support import Aws, aws, boto, got, many, text

__all__ = ["aws", "boto"]

OLD_LIMIT, LIMIT = 262_144, 1_048_576
ORDER = text("7")


def wire(aws: Aws, queue: str) -> list[dict[str, Any]]:
    """Return what is in a queue, as whoever asks for everything sees it."""
    found = aws.bare.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"]
    )
    return found.get("Messages", [])


def carried(message: dict[str, Any]) -> dict[str, str]:
    """Return our headers in a message."""
    found = message.get("MessageAttributes", {}).get("rtobs")
    return envelope.unpack(found["StringValue"]) if found else {}


def left_out(telemetry) -> dict[str, int]:
    return telemetry.by(names.PROPAGATION_REJECTED, "reason")


async def test_a_message_carries_its_journey_in_one_attribute(aws, telemetry):
    """Beside the sender's attributes there is one more, a String, and the sender's own objects stay as they are."""
    queue, client = aws.queue(), await aws.client()
    given = {"order": ORDER, "blob": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}
    before = copy.deepcopy(given)
    with rtobs.accept("/orders") as hop:
        await got(client.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=given))
    assert given == before
    [message] = wire(aws, queue)
    ours = message["MessageAttributes"].pop("rtobs")
    assert message["MessageAttributes"] == {**given, "blob": given["blob"]}
    assert ours["DataType"] == "String"
    headers = envelope.unpack(ours["StringValue"])
    assert headers[names.TRACEPARENT].split("-")[2] == f"{telemetry.span('publish').context.span_id:016x}"
    assert hop.correlation_id in headers[names.BAGGAGE]
    assert telemetry.span("publish").attributes["messaging.message.id"] == message["MessageId"]


async def test_what_a_send_returns_vouches_for_the_senders_own_attributes(aws, telemetry):
    """The response of a send, the digest of the attributes in it, is what an unwrapped client gets."""
    queue = aws.queue()
    for more in ({}, {"MessageAttributes": {"order": ORDER, "blob": {"DataType": "Binary", "BinaryValue": b"\xff"}}}):
        found = []
        for wrapped in (False, True):
            client = await aws.client(wrapped=wrapped)
            one = await got(client.send_message(QueueUrl=queue, MessageBody="x", **more))
            several = await got(
                client.send_message_batch(QueueUrl=queue, Entries=[{"Id": "1", "MessageBody": "y", **more}])
            )
            answers = [one, *several["Successful"]]
            found.append(
                [{key: each[key] for key in each.keys() - {"MessageId", "ResponseMetadata"}} for each in answers]
            )
            found[-1].append(several.keys())
        assert found[0] == found[1]


@pytest.mark.parametrize("operation", ["send", "batch", "topic", "topic batch"])
@pytest.mark.parametrize("number", [9, 10])
async def test_ten_attributes_leave_no_room(aws, telemetry, operation, number):
    """A message that has ten attributes already goes as it was, counted; beside nine there is room for ours."""
    queue = aws.queue()
    entry = {"MessageAttributes": many(number)}
    if operation in ("send", "batch"):
        client = await aws.client()
        if operation == "send":
            await got(client.send_message(QueueUrl=queue, MessageBody="x", **entry))
        else:
            await got(client.send_message_batch(QueueUrl=queue, Entries=[{"Id": "1", "MessageBody": "x", **entry}]))
    else:
        client, topic = await aws.client("sns"), aws.topic(queue, raw=True)
        if operation == "topic":
            await got(client.publish(TopicArn=topic, Message="x", **entry))
        else:
            entries = [{"Id": "1", "Message": "x", **entry}]
            await got(client.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries))
    [message] = wire(aws, queue)
    assert len(message["MessageAttributes"]) == 10
    assert bool(carried(message)) is (number == 9)
    assert left_out(telemetry) == ({} if number == 9 else {"too_long": 1})
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}


@pytest.mark.parametrize("limit", [OLD_LIMIT, LIMIT])
@pytest.mark.parametrize(("spare", "fits"), [(0, False), (200, False), (1000, True)])
async def test_a_message_at_the_byte_limit_goes_as_it_is(boto, telemetry, limit, spare, fits):
    """Where our attribute would not fit below the limit of a queue, of today's or the former default, it stays out."""
    queue, client = boto.queue(MaximumMessageSize=str(LIMIT)), await boto.client()
    body = "é" * ((limit - spare) // 2)  # bytes count, not characters
    client.send_message(QueueUrl=queue, MessageBody=body)
    [message] = wire(boto, queue)
    assert message["Body"] == body
    assert bool(carried(message)) is fits
    assert left_out(telemetry) == ({} if fits else {"too_long": 1})


async def test_a_batch_stays_below_the_limit_of_all_its_messages(boto, telemetry):
    """Of a batch as many messages carry their journeys as there is room for, and all of them are sent."""
    queue, client = boto.queue(), await boto.client()
    size = (LIMIT - 3 * 400) // 10  # room for a few
    entries = [{"Id": str(number), "MessageBody": f"{number:0{size}}"} for number in range(10)]
    found = client.send_message_batch(QueueUrl=queue, Entries=entries)
    assert [each["Id"] for each in found["Successful"]] == [entry["Id"] for entry in entries]
    messages = wire(boto, queue)
    assert sorted(message["Body"] for message in messages) == [entry["MessageBody"] for entry in entries]
    total = sum(
        len(message["Body"]) + sum(len(name) + len(each["DataType"]) + len(each["StringValue"])
                                   for name, each in message.get("MessageAttributes", {}).items())
        for message in messages
    )  # fmt: skip
    assert 0 < sum(bool(carried(message)) for message in messages) < 10
    assert total <= LIMIT
    assert telemetry.count(names.SENT_MESSAGES) == 10


def refusing(client: Any, operation: str, largest: int) -> list[dict[str, Any]]:
    """Let a client's broker refuse messages of more than *largest* bytes as AWS does; return what it is asked to take.

    moto looks at bodies only, and at the limit of a queue not at all.
    """
    seen: list[dict[str, Any]] = []

    def answer(params: dict[str, Any], **_: Any) -> Any:
        body = params["body"] if isinstance(params["body"], str | bytes) else str(params["body"])
        seen.append(params)
        if len(body) <= largest:
            return None
        error = {"Code": "InvalidParameterValue", "Message": "Reason: Message must be shorter than 1024 bytes."}
        response = AWSResponse("", 400, {}, None)
        return response, {"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}}

    client.meta.events.register(f"before-call.{operation}", answer)
    return seen


async def test_a_queue_with_a_limit_of_its_own_gets_the_message_without_us(aws, telemetry):
    """What a queue refuses with our attribute is sent without it, once; from then on its limit is known."""
    queue, client = aws.queue(), await aws.client()
    seen = refusing(client, "sqs.SendMessage", 600)
    for asked in (2, 3):
        await got(client.send_message(QueueUrl=queue, MessageBody="x" * 400))
        assert len(seen) == asked
    messages = wire(aws, queue)
    assert [message["Body"] for message in messages] == ["x" * 400] * 2
    assert [carried(message) for message in messages] == [{}, {}]
    await got(client.send_message(QueueUrl=queue, MessageBody="x"))
    assert carried(wire(aws, queue)[0])
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 3}


async def test_a_message_that_is_refused_anyway_fails_as_it_would(aws, telemetry):
    """The client's own exception reaches the sender where the message is refused without our attribute too."""
    queue, client = aws.queue(), await aws.client()
    seen = refusing(client, "sqs.SendMessage", 100)
    with pytest.raises(ClientError, match="must be shorter") as caught:
        await got(client.send_message(QueueUrl=queue, MessageBody="x" * 4000))
    assert caught.value.__context__ is None
    assert len(seen) == 2
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ClientError": 1}


async def test_what_fails_for_another_reason_is_not_tried_again(aws, telemetry):
    """A queue that does not exist is asked once."""
    client, seen = await aws.client(), []
    client.meta.events.register("before-call.sqs.SendMessage", lambda **params: seen.append(params))
    with pytest.raises(client.exceptions.QueueDoesNotExist):
        await got(client.send_message(QueueUrl=f"{aws.url}/123456789012/nowhere", MessageBody="x"))
    assert len(seen) == 1


@pytest.mark.parametrize("second", ["works", "fails", "refuses"])
async def test_a_refused_message_of_a_batch_is_sent_without_us(aws, telemetry, second):
    """Of a batch only what was refused is tried again, and the sender gets one response for all."""
    queue, client = aws.queue(), await aws.client()
    calls = itertools.count(1)

    def answer(params: dict[str, Any], **_: Any) -> Any:
        failed = {"Id": "b", "SenderFault": True, "Code": "InvalidParameterValue", "Message": "too long"}
        if next(calls) == 1:
            successful = [{"Id": "a", "MessageId": "1", "MD5OfMessageBody": ""}]
            return AWSResponse("", 200, {}, None), {"Successful": successful, "Failed": [failed]}
        if second == "fails":
            raise ConnectionError("gone")
        if second == "refuses":
            return AWSResponse("", 200, {}, None), {"Failed": [failed]}
        return None

    client.meta.events.register("before-call.sqs.SendMessageBatch", answer)
    entries = [{"Id": "a", "MessageBody": "1"}, {"Id": "b", "MessageBody": "2"}]
    found = await got(client.send_message_batch(QueueUrl=queue, Entries=entries))
    assert next(calls) == 3
    assert [each["Id"] for each in found["Successful"]] == (["a", "b"] if second == "works" else ["a"])
    assert [each["Id"] for each in found.get("Failed", [])] == ([] if second == "works" else ["b"])
    if second == "works":
        assert "Failed" not in found
        assert [(message["Body"], carried(message)) for message in wire(aws, queue)] == [("2", {})]
    counts = {"": 2} if second == "works" else {"": 1, "ClientError": 1}
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == counts


async def test_each_message_of_a_batch_is_a_send(aws, telemetry):
    """A batch is as many publish hops as it has messages, siblings in the caller's trace, each in its message."""
    queue, client = aws.queue(), await aws.client()
    with rtobs.accept("/orders"):
        await got(
            client.send_message_batch(
                QueueUrl=queue, Entries=[{"Id": str(number), "MessageBody": str(number)} for number in range(3)]
            )
        )
    spans = telemetry.spans("publish")
    accepted = telemetry.span("accept").context.span_id
    assert [span.parent.span_id for span in spans] == [accepted] * 3
    messages = wire(aws, queue)
    sent = {span.attributes["messaging.message.id"]: f"{span.context.span_id:016x}" for span in spans}
    assert {each["MessageId"]: carried(each)[names.TRACEPARENT].split("-")[2] for each in messages} == sent


async def test_a_wrong_call_fails_as_it_would(aws, telemetry):
    """What the client refuses to send it refuses with the same words, whatever is wrong."""
    queue = aws.queue()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("send_message", {}),
        ("send_message", {"QueueUrl": 7, "MessageBody": "x"}),
        ("send_message", {"QueueUrl": queue, "MessageBody": b"x"}),
        ("send_message", {"QueueUrl": queue, "MessageBody": "x", "MessageAttributes": {"a": "b"}}),
        ("send_message", {"QueueUrl": queue, "MessageBody": "x", "MessageAttributes": [1]}),
        ("send_message", {"QueueUrl": queue, "MessageBody": "x", "MessageAttributes": MappingProxyType({})}),
        ("send_message_batch", {"QueueUrl": queue}),
        ("send_message_batch", {"QueueUrl": queue, "Entries": "x"}),
        ("send_message_batch", {"QueueUrl": queue, "Entries": []}),
        ("send_message_batch", {"QueueUrl": queue, "Entries": [{"MessageBody": "x"}, 7]}),
        ("receive_message", {"QueueUrl": queue, "MessageAttributeNames": "All"}),
        ("receive_message", {"QueueUrl": queue, "MessageAttributeNames": 7, "AttributeNames": [8]}),
        ("delete_message", {"QueueUrl": queue}),
        ("delete_message_batch", {"QueueUrl": queue, "Entries": {}}),
        ("change_message_visibility", {"QueueUrl": queue, "ReceiptHandle": "x", "VisibilityTimeout": "0"}),
    ]
    found: dict[bool, list[Any]] = {}
    for wrapped in (False, True):
        client = await aws.client(wrapped=wrapped)
        found[wrapped] = []
        for name, params in calls:
            with pytest.raises((ParamValidationError, ClientError)) as caught:
                await got(getattr(client, name)(**params))
            found[wrapped].append((name, type(caught.value).__name__, str(caught.value)))
    assert found[True] == found[False]


# FIFO ----------------------------------------------------------------------------------------------------------------


async def test_groups_and_deduplication_of_a_fifo_queue_stay_as_they_were(aws, telemetry):
    """Our attribute changes neither order nor what counts as a duplicate, by content or by id; the group is noted."""
    queue = aws.queue(suffix=".fifo", FifoQueue="true", ContentBasedDeduplication="true")
    client = await aws.client()
    for body in ("1", "2", "1", "3"):  # the second "1" is a duplicate by its body, though its journey is another
        with rtobs.accept("/orders"):
            await got(client.send_message(QueueUrl=queue, MessageBody=body, MessageGroupId="customer-7"))
    for _ in range(2):
        more = {"MessageGroupId": "customer-7", "MessageDeduplicationId": "once"}
        await got(client.send_message(QueueUrl=queue, MessageBody="4", **more))
    bodies = []
    for _ in range(3):
        for message in await aws.receive(client, queue):
            assert message.keys() == {"MessageId", "ReceiptHandle", "MD5OfBody", "Body"}
            with rtobs.consume("orders", message):
                bodies.append(message["Body"])
                await got(client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"]))
    assert bodies == ["1", "2", "3", "4"]
    for kind in ("publish", "consume"):
        assert {span.attributes["rtobs.address"] for span in telemetry.spans(kind)} == {"customer-7"}


# Topics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("raw", [False, True])
async def test_a_journey_goes_on_through_a_topic(aws, telemetry, raw, batch):
    """A message that SNS delivers to a queue continues its journey, in SNS' envelope or without it."""
    queue = aws.queue()
    topic = aws.topic(queue, raw=raw)
    topics, client = await aws.client("sns"), await aws.client()
    attributes = {"order": text('a "MessageAttributes": {"rtobs": 1} ' + "é")}
    entry = {"Message": 'tricky "MessageAttributes" : {', "MessageAttributes": attributes}
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="acme")
        if batch:
            entries = [{"Id": "1", **entry}]
            await got(topics.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries))
        else:
            await got(topics.publish(TopicArn=topic, **entry))
    [message] = await aws.receive(client, queue)
    with rtobs.consume("orders", message) as again:
        assert again.correlation_id == hop.correlation_id
    sent, consumed = telemetry.span("publish"), telemetry.span("consume")
    assert consumed.parent.span_id == sent.context.span_id
    assert consumed.attributes["rtobs.tenant"] == "acme"
    place = topic.rpartition(":")[2]
    assert telemetry.by(names.SENT_MESSAGES, "system", "messaging_destination") == {("aws.sns", place): 1}
    assert telemetry.by(names.CONSUMED_MESSAGES, "system") == {"aws_sqs": 1}


async def test_what_goes_to_a_phone_or_a_device_is_a_delivery(boto, telemetry):
    """A publish to a phone number or a device is no message of a broker's: no hop, and nothing of ours goes with it."""
    topics, seen = await boto.client("sns"), []
    topics.meta.events.register("before-call.sns.Publish", lambda params, **_: seen.append(str(params["body"])))
    app = topics.create_platform_application(Name="app", Platform="GCM", Attributes={})
    arn = topics.create_platform_endpoint(PlatformApplicationArn=app["PlatformApplicationArn"], Token="token")
    with rtobs.deliver("sms", "sns"):
        topics.publish(PhoneNumber="+4915112345678", Message="x")
    with rtobs.deliver("push", "sns"):
        topics.publish(TargetArn=arn["EndpointArn"], Message="x")
    assert len(seen) == 2
    assert "rtobs" not in "".join(seen)
    assert telemetry.spans("publish") == []
    assert telemetry.count(names.ATTEMPTS) == 2


# Wrapping ------------------------------------------------------------------------------------------------------------


async def test_other_services_are_refused(boto, telemetry):
    """`wrap` says which services it knows when it is given a client of another one."""
    client = await boto.client("kms", wrapped=False)
    with pytest.raises(UnsupportedError, match="'kms' sends no messages"):
        rtobs.wrap(client)
    with pytest.raises(UnsupportedError, match="'sns' has no queues"):
        rtobs.integrations.watch(await boto.client("sns"), ["orders"])


async def test_a_resource_is_wrapped_by_its_client(boto, telemetry):
    """`wrap(resource)` returns it, with all it makes: queues, topics and messages; unwrapping its client undoes it."""
    import boto3

    url = boto.queue()
    topic = boto.topic(url, raw=True)
    sqs, sns = (rtobs.wrap(boto3.resource(name, endpoint_url=boto.url)) for name in ("sqs", "sns"))
    assert rtobs.wrap(sqs) is sqs
    queue = sqs.Queue(url)
    with rtobs.accept("/orders") as hop:
        queue.send_message(MessageBody="1")
        queue.send_messages(Entries=[{"Id": "1", "MessageBody": "2"}])
        sns.Topic(topic).publish(Message="3")
    found = queue.receive_messages(MaxNumberOfMessages=10)
    assert sorted(message.body for message in found) == ["1", "2", "3"]
    for message in found[:2]:
        assert message.message_attributes is None
        with rtobs.consume("orders", message) as again:
            assert again.correlation_id == hop.correlation_id
            message.delete()

    @rtobs.consume("orders")
    def handle(message: Any) -> None:
        assert rtobs.current().correlation_id == hop.correlation_id
        message.change_visibility(VisibilityTimeout=0)

    handle(found[2])
    assert telemetry.count(names.SENT_MESSAGES) == 3
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 2, "retried": 1}
    unwrap(sqs.meta.client)
    queue.send_message(MessageBody="4")
    assert telemetry.count(names.SENT_MESSAGES) == 3
    for resource in (sqs, sns):
        resource.meta.client.close()


async def test_the_largest_size_is_learned_for_a_bounded_number_of_queues(boto, telemetry, monkeypatch):
    """What is remembered of queues' limits does not grow without end."""
    monkeypatch.setattr(_boto_calls, "_MOST_TIGHT", 1)
    monkeypatch.setattr(_boto_calls, "_tight", {})
    client = await boto.client()
    refusing(client, "sqs.SendMessage", 600)
    for _ in range(2):
        queue = boto.queue()
        for _ in range(2):
            client.send_message(QueueUrl=queue, MessageBody="x" * 400)
        assert len(wire(boto, queue)) == 2
    assert len(_boto_calls._tight) == 1


async def test_what_is_sent_for_later_is_expected_at_its_release(aws, promised, clock):
    """A promise that leaves with a delayed message is counted at once and expected when the delay is over."""
    queue, client = aws.queue(), await aws.client()
    with rtobs.accept("/orders") as hop:
        hop.intend("webhook", "a")
        await got(client.send_message(QueueUrl=queue, MessageBody="x", DelaySeconds=900))
    assert (promised.count(names.INTENTS), promised.count(names.SLO_EXPECTED)) == (1, 0)
    clock.now += 899 * 1_000_000_000
    assert promised.count(names.SLO_EXPECTED) == 0
    clock.now += 1_000_000_000
    assert promised.count(names.SLO_EXPECTED) == 1
