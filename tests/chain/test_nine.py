"""One story through nine processes: HTTP, RabbitMQ, Kafka, Redis, NATS, MQTT, SQS, Celery, and a webhook."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from typing import Any, NamedTuple

import aio_pika
import boto3
import httpx
import pytest
import redis
from google.protobuf.json_format import MessageToJson

from rtobs import _conventions as names
from rtobs.story.pick import Pick
from rtobs.story.spans import spans as story_spans
from rtobs.story.tale import tell
from tests._export.collector import collector, plain
from tests.chain import stations
from tests.chain.processes import Span, exporting, running, spans, total
from tests.integrations.kafka_support import kafka_address
from tests.support import brokers

__all__ = ["kafka_address"]

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow, pytest.mark.broker]  # nine processes on a busy core

MESSAGES = 5
SYSTEMS = {
    "rabbitmq": "rabbitmq", "kafka": "kafka", "redis": "redis", "nats": "nats", "mqtt": "mqtt", "sqs": "aws_sqs",
    "celery": "redis",
}  # fmt: skip
"""What each station is fed by."""
WAY = [
    ("accept", "http", ""),
    *(
        one
        for (sender, receiver) in zip(("http", *SYSTEMS), SYSTEMS, strict=False)
        for one in (("publish", sender, SYSTEMS[receiver]), ("consume", receiver, SYSTEMS[receiver]))
    ),
    ("deliver", "celery", ""),
    ("accept", "webhook", ""),
]
"""Kind, process and system of each hop of a message, each the parent of the next."""


class Run(NamedTuple):
    """What is known after all messages have come to the webhook."""

    asked: list[str]
    """The correlation ids that the API answered."""
    took: list[str]
    """Those that the webhook had."""
    spans: list[Span]
    collected: Any


@pytest.fixture(scope="module")
def through(  # noqa: PLR0917  every broker
    amqp_url, redis_url, nats_url, mqtt_url, aws_url, kafka_address, unique, tmp_path_factory
):  # fmt: skip
    """A function that sends some messages through the nine processes, which trust one another as it is told."""

    def send(how):
        name, variables = unique("nine"), {"AWS_ENDPOINT_URL": aws_url, stations.KAFKA: kafka_address}
        with collector("http", tmp_path_factory.mktemp("nine") / "otlp") as collected, _places(name, aws_url):
            variables.update(exporting(collected, every=1.0))
            with contextlib.ExitStack() as stack:

                def start(station):
                    return stack.enter_context(running(stations.__name__, station, name, how, **variables))

                webhook = start("webhook")
                variables[stations.WEBHOOK] = webhook.says("ready")
                others = {station: start(station) for station in stations.STATIONS if station != "webhook"}
                ready = {station: process.says("ready") for station, process in others.items()}
                answers = [httpx.post(f"{ready['http']}/orders", content=b"%d" % one) for one in range(MESSAGES)]
                took = [webhook.says("journey", *others.values()) for _ in answers]
                assert all(process.close("flushed")["flushed"] for process in (*others.values(), webhook))
        return Run([answer.raise_for_status().text for answer in answers], took, spans(collected), collected)

    return send


@pytest.fixture(scope="module")
def trusted(through):
    """What came of it where MQTT's broker and the webhook's callers are trusted."""
    return through("trusted")


@pytest.fixture(scope="module")
def default(through):
    """What came of it with the defaults of both."""
    return through("default")


@contextlib.contextmanager
def _places(name, aws_url):
    """Make the queues, and delete them in the end; topics come into being when they are used."""

    async def queue(what):
        async with await aio_pika.connect(brokers.AMQP.url) as connection:
            await getattr(await connection.channel(), what)(name)

    sqs = boto3.client("sqs", endpoint_url=aws_url)
    with redis.Redis.from_url(brokers.REDIS.url) as client:
        client.xgroup_create(name, stations.GROUP, mkstream=True)
        address = sqs.create_queue(QueueName=name)["QueueUrl"]
        asyncio.run(queue("declare_queue"))
        try:
            yield
        finally:
            asyncio.run(queue("queue_delete"))
            sqs.delete_queue(QueueUrl=address)
            client.delete(name, f"{name}-tasks")
            client.srem("_kombu.binding.celery", name)
            sqs.close()


def of(run, journey):
    """Return the hops of one journey, the first first, and nothing that is beside their way."""
    by_parent, above, way = defaultdict(list), b"", []
    for span in run.spans:
        if span.attributes.get("rtobs.correlation_id") == journey and span.attributes.get("rtobs.hop") != "receive":
            by_parent[span.parent_id].append(span)
    first = [span for spans in by_parent.values() for span in spans]
    above = first[0].parent_id if above not in by_parent and first else above
    while by_parent[above]:
        (span,) = by_parent[above]
        way.append(span)
        above = span.span_id
    return way


def shown(way):
    return [(one.attributes["rtobs.hop"], one.service, one.attributes.get("messaging.system", "")) for one in way]


def test_one_message_is_one_journey_through_nine_processes(trusted):
    """From the request to the webhook all hops have one correlation id and one trace, each the child of the last."""
    assert sorted(trusted.took) == sorted(trusted.asked)
    assert len(set(trusted.asked)) == MESSAGES
    for journey in trusted.asked:
        way = of(trusted, journey)
        assert shown(way) == WAY
        assert {span.trace_id for span in way} == {journey}


def test_everything_is_counted_once(trusted):
    """Each station consumed each message once; the promise that was made at the API was kept by Celery's task."""
    for system, times in (("rabbitmq", 1), ("kafka", 1), ("redis", 2), ("nats", 1), ("mqtt", 1), ("aws_sqs", 1)):
        assert (
            total(trusted.collected, names.CONSUMED_MESSAGES.name, **{"messaging.system": system}) == times * MESSAGES
        ), system
    assert total(trusted.collected, names.INTENTS.name, channel="webhook", tenant="acme") == MESSAGES
    assert total(trusted.collected, names.OUTCOMES.name, outcome="ok", tenant="acme") == MESSAGES
    for none in (names.INTERNAL_ERRORS, names.PROPAGATION_MISSING, names.PROPAGATION_REJECTED, names.TELEMETRY_DROPPED):
        assert total(trusted.collected, none.name) == 0, none.name


def test_the_story_of_nine_processes_can_be_told(trusted):
    """`rtobs story` tells all nine services and the answer from what was exported."""
    exported = [json.loads(MessageToJson(request)) for request in trusted.collected.requests("traces")]
    pick = Pick(trusted.asked[0])
    pick.see(story_spans(exported))
    tale = tell(trusted.asked[0], pick.of(story_spans(exported)))
    assert tale is not None
    assert tale.services == tuple(stations.STATIONS)
    assert tale.missing == 0
    assert tale.answer.startswith("webhook by crm: ")


def test_by_default_strangers_begin_a_new_journey_with_a_link(default):
    """MQTT's broker and the webhook's callers are not ours by default: two new journeys, each linked to its sender."""
    assert not {*default.took} & {*default.asked}
    links = linked(default)
    for journey in default.asked:
        way = of(default, journey)
        assert shown(way) == WAY[: WAY.index(("consume", "mqtt", "mqtt"))]
        (second,) = (cid for cid, at in links.items() if at == (journey, way[-1].span_id))
        way = of(default, second)
        assert shown(way) == WAY[WAY.index(("consume", "mqtt", "mqtt")) : -1]
        (third,) = (cid for cid, at in links.items() if at == (second, way[-1].span_id))
        assert shown(of(default, third)) == [WAY[-1]]
        assert third in default.took


def linked(run):
    """Return trace and span that the first hop of a journey is linked to, by journey."""
    found = {}
    for request in run.collected.requests("traces"):
        for span in (one for group in request.resource_spans for scope in group.scope_spans for one in scope.spans):
            attributes = plain(span.attributes)
            if span.links and attributes.get("rtobs.hop") in ("consume", "accept"):
                (link,) = span.links
                found[attributes["rtobs.correlation_id"]] = link.trace_id.hex(), link.span_id
    return found
