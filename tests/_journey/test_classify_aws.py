"""What boto3 and botocore raise, real exceptions of real calls where a server can be had."""

from __future__ import annotations

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rtobs._journey.classify import classify
from rtobs._journey.outcome import ErrorCategory, Verdict
from tests.support.http import Answer, free_port, listening

AUTH, LIMITED, VALIDATION = ErrorCategory.AUTH, ErrorCategory.RATE_LIMITED, ErrorCategory.VALIDATION
TIMEOUT, TRANSPORT, UNAVAILABLE = ErrorCategory.TIMEOUT, ErrorCategory.TRANSPORT, ErrorCategory.UNAVAILABLE


def raised(endpoint, call, **settings):
    """Return what *call* raises against *endpoint*, tried once."""
    config = Config(retries={"total_max_attempts": 1}, signature_version=UNSIGNED, connect_timeout=2, **settings)
    client = boto3.client("sqs", endpoint_url=endpoint, region_name="eu-west-1", config=config)
    try:
        with pytest.raises((ClientError, BotoCoreError)) as caught:
            call(client)
    finally:
        client.close()
    return caught.value


def send(client):
    client.send_message(QueueUrl="http://127.0.0.1/000000000000/orders", MessageBody="x")


@pytest.mark.parametrize(
    ("status", "code", "category"),
    [
        (400, "RequestThrottled", LIMITED), (400, "ThrottlingException", LIMITED), (403, "OverLimit", LIMITED),
        (403, "AccessDenied", AUTH), (403, "InvalidClientTokenId", AUTH), (400, "ExpiredToken", AUTH),
        (400, "AWS.SimpleQueueService.NonExistentQueue", VALIDATION), (400, "InvalidMessageContents", VALIDATION),
        (500, "InternalFailure", UNAVAILABLE), (503, "ServiceUnavailable", UNAVAILABLE),
    ],
)  # fmt: skip
def test_an_answer_is_judged_by_its_code_before_its_status(status, code, category):
    """A refusal for too many requests, or for credentials, is told by its code, any other by its status."""
    body = f'{{"__type": "com.amazonaws.sqs#{code}", "message": "no"}}'.encode()
    with listening() as server:
        server.decide = lambda _: Answer(status, {"content-type": "application/x-amz-json-1.0"}, body)
        error = raised(server.url(), send)
    assert classify(error).category is category
    if category in (LIMITED, AUTH):
        assert classify(error) == Verdict(category, code)


def test_what_never_got_an_answer_is_told_by_its_class():
    """A refused connection is transport, an answer that does not come a timeout that may have arrived."""
    assert classify(raised(f"http://127.0.0.1:{free_port()}", send)) == Verdict(TRANSPORT, "EndpointConnectionError")
    with listening() as server:
        server.answers["/"] = Answer(delay=5)
        late = raised(server.url(), send, read_timeout=0.2)
    assert classify(late) == Verdict(TIMEOUT, "ReadTimeoutError", ambiguous=True)
    with listening() as server:
        server.answers["/"] = Answer(hang_up=True)
        broken = raised(server.url(), send)
    assert classify(broken).category is TRANSPORT
    assert classify(broken).ambiguous


def test_wrong_arguments_are_validation():
    """What botocore refuses before it sends is validation."""
    assert classify(raised("http://127.0.0.1:9", lambda client: client.send_message(QueueUrl=1))).category is VALIDATION


@pytest.mark.parametrize("response", [None, {}, {"Error": None}, {"Error": {"Code": 7}, "ResponseMetadata": []}])
def test_an_answer_without_a_code_is_unavailable(response):
    """An error that says nothing, or nonsense, does not raise and is a failure of theirs."""
    error = ClientError({"Error": {"Code": "x"}}, "SendMessage")
    error.response = response
    assert classify(error) == Verdict(UNAVAILABLE, "ClientError")
