"""pika wrapped by rtobs while OpenTelemetry's own instrumentation of it is active: one span each, one header."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from opentelemetry.instrumentation.pika import PikaInstrumentor

import rtobs
from rtobs import _conventions as names
from rtobs.integrations import unwrap
from tests.integrations.adapter import Place, here
from tests.integrations.pika_support import Rabbit, fetched
from tests.support.telemetry import Telemetry, user_provider
from tests.support.timing import wait_until

SCOPE = "opentelemetry.instrumentation.pika.pika_instrumentor"


@pytest.fixture
def rabbit(amqp_url: str, unique: Callable[[str], str]) -> Generator[Rabbit, None, None]:
    rabbit = Rabbit(amqp_url, unique)
    yield rabbit
    rabbit.close()


@pytest.fixture
def contrib() -> Generator[Callable[[], None], None, None]:
    """Switches the other instrumentation on for every connection; it is off again after the test."""
    instrumentor = PikaInstrumentor()

    def instrument() -> None:
        instrumentor.instrument(tracer_provider=user_provider(), skip_dep_check=True)

    yield instrument
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def theirs(telemetry: Telemetry) -> list[Any]:
    return [span for span in telemetry.spans() if span.instrumentation_scope.name == SCOPE]


def span_id(span: Any) -> int:
    return span.context.span_id


ORDERS = ["contrib, rtobs", "rtobs, contrib", "channel: contrib, rtobs", "channel: rtobs, contrib"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["plain", "decorated"])
def test_one_message_is_one_producer_and_one_consumer_span(rabbit, telemetry, contrib, order, kind):
    """Whichever came first, for all connections or one channel, send and handling are one span each."""
    if order == "contrib, rtobs":
        contrib()
    connection = rabbit.connect(wrapped=not order.startswith("channel"))
    if order == "rtobs, contrib":
        contrib()
    channel = connection.channel()
    for who in order.removeprefix("channel: ").split(", ") if order.startswith("channel") else ():
        if who == "contrib":
            PikaInstrumentor().instrument_channel(channel, tracer_provider=user_provider())
        else:
            rtobs.wrap(channel)
    queue = rabbit.queue(channel)
    seen: list[Any] = []

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        seen.append((here(), properties.headers))
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, rtobs.consume("tickets")(handle) if kind == "decorated" else handle)
    with rtobs.accept("/orders") as hop:
        channel.basic_publish("", queue, b"x")
    wait_until(lambda: connection.process_data_events(0.01) or telemetry.count(names.MESSAGE_SETTLED))

    assert sorted(span.kind.name for span in telemetry.spans()) == ["CONSUMER", "PRODUCER", "SERVER"]
    sent, handled = (next(s for s in telemetry.spans() if s.kind.name == name) for name in ("PRODUCER", "CONSUMER"))
    place, headers = seen[0]
    assert headers["traceparent"].split("-")[1:3] == [f"{sent.context.trace_id:032x}", f"{span_id(sent):016x}"]
    assert place == Place(hop.correlation_id, handled.context.trace_id, span_id(handled))
    assert handled.parent.span_id == span_id(sent)
    assert handled in theirs(telemetry)
    for span, kind_of_hop in ((sent, "publish"), (handled, "consume")):
        expected = {"rtobs.hop": kind_of_hop, "rtobs.correlation_id": hop.correlation_id}
        assert expected.items() <= span.attributes.items()
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}


def test_a_generator_leaves_nothing_of_theirs_current(rabbit, telemetry, contrib):
    """Their span marks what a generator brings and is over; the handling is ours, and in between none is current."""
    contrib()
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    sent = []
    for _ in range(2):
        with rtobs.accept("/orders") as hop:
            channel.basic_publish("", queue, b"x")
        sent.append(hop.correlation_id)
    seen = []
    for native in channel.consume(queue):
        assert here() == Place("", 0, 0)
        with rtobs.consume("tickets", native):
            seen.append(here())
            channel.basic_ack(native[0].delivery_tag)
        if len(seen) == 2:
            break
    assert here() == Place("", 0, 0)
    assert [place.correlation_id for place in seen] == sent
    assert [place.span_id for place in seen] == [span_id(span) for span in telemetry.spans("consume")]
    parents = [span.parent.span_id for span in telemetry.spans("consume")]
    assert parents == [span_id(span) for span in telemetry.spans("publish")]


def test_an_unwrapped_connection_is_left_to_them(rabbit, telemetry, contrib):
    """A connection that nobody wrapped has their spans and headers only, and is not counted by us."""
    contrib()
    rabbit.connect()
    channel = rabbit.channel(wrapped=False)
    queue = rabbit.queue(channel)
    channel.basic_publish("", queue, b"x")
    assert fetched(channel, queue, auto_ack=True)[1].headers.keys() & set(names.OWN_HEADERS) == {names.TRACEPARENT}
    assert telemetry.count(names.SENT_MESSAGES) == 0


def test_a_channel_that_both_had_works_on_unwrapped(rabbit, telemetry, contrib):
    """After `unwrap` a channel that they instrumented first sends and consumes with their spans only."""
    contrib()
    channel = rabbit.channel()
    queue = rabbit.queue(channel)
    unwrap(channel)
    seen: list[bytes] = []
    channel.basic_consume(queue, lambda _channel, _method, _properties, body: seen.append(body), auto_ack=True)
    channel.basic_publish("", queue, b"x")
    wait_until(lambda: channel.connection.process_data_events(0.01) or seen)
    assert [span.kind.name for span in theirs(telemetry)] == ["PRODUCER", "CONSUMER"]
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 0
