"""aio-pika wrapped by rtobs while OpenTelemetry's own instrumentation of it is active: one span each, one header."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import Place, here
from tests.integrations.rabbit import BODY, Rabbit, arguments, ends, fetched, processed, promised, send, settled
from tests.support.telemetry import Telemetry, user_provider

SCOPE = "opentelemetry.instrumentation.aio_pika"


@pytest.fixture
async def rabbit(amqp_url: str, unique: Callable[[str], str]) -> AsyncGenerator[Rabbit, None]:
    async with Rabbit(amqp_url, unique) as rabbit:
        yield rabbit


@pytest.fixture
def contrib() -> Generator[Callable[[], None], None, None]:
    """Switches the other instrumentation on; it is off again after the test."""
    instrumentor = AioPikaInstrumentor()

    def instrument() -> None:
        instrumentor.instrument(tracer_provider=user_provider(), skip_dep_check=True)

    yield instrument
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def theirs(telemetry: Telemetry) -> list[Any]:
    return [span for span in telemetry.spans() if span.instrumentation_scope.name == SCOPE]


def span_id(span: Any) -> int:
    return span.context.span_id


@pytest.mark.parametrize(("kind", "robust"), [("plain", False), ("plain", True), ("decorated", True)])
@pytest.mark.parametrize("first", ["contrib", "rtobs"])
async def test_one_message_is_one_producer_and_one_consumer_span(rabbit, telemetry, contrib, first, kind, robust):  # noqa: PLR0917  fixtures and cases
    """Whichever came first, the send is our span, the handling is theirs with our facts; nothing counts twice."""
    if first == "contrib":
        contrib()
    channel = await rabbit.channel(robust=robust)
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    if first == "rtobs":
        contrib()
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append((here(), message.headers))
        await message.ack()

    await queue.consume(rtobs.consume("tickets")(handle) if kind == "decorated" else handle)
    correlation_id = await promised(channel, queue.name)
    await processed(telemetry)

    assert sorted(span.kind.name for span in telemetry.spans()) == ["CONSUMER", "PRODUCER", "SERVER"]
    sent = telemetry.span("publish")
    (handled,) = theirs(telemetry)
    place, headers = seen[0]
    assert headers["traceparent"].split("-")[1:3] == [f"{sent.context.trace_id:032x}", f"{span_id(sent):016x}"]
    assert place == Place(correlation_id, handled.context.trace_id, span_id(handled))
    assert handled.parent.span_id == span_id(sent)
    expected = {"rtobs.hop": "consume", "rtobs.correlation_id": correlation_id, "rtobs.outcome": "ok"}
    assert expected.items() <= handled.attributes.items()
    assert telemetry.count(names.SENT_MESSAGES) == telemetry.count(names.CONSUMED_MESSAGES) == 1
    assert settled(telemetry) == ends(telemetry) == {"ok": 1}


async def test_what_a_handler_sends_and_fetches_has_spans_of_its_own(rabbit, telemetry, contrib):
    """Inside a handling that is their span, our send and receive spans are its children and not it once more."""
    contrib()
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    further = await channel.declare_queue(rabbit.name("further"), arguments=arguments())

    async def handle(message: Any) -> None:
        await send(channel, further.name)
        inner = await fetched(further)
        async with inner.process():
            assert here().span_id not in {span_id(span) for span in theirs(telemetry)}
        await message.ack()

    await queue.consume(handle)
    await send(channel, queue.name)
    await processed(telemetry, 2)
    (handled,) = theirs(telemetry)
    sent, received = telemetry.spans("publish")[1], telemetry.span("receive")
    assert sent.parent.span_id == received.parent.span_id == span_id(handled)
    inner = next(span for span in telemetry.spans("consume") if span is not handled)
    assert inner.parent.span_id == span_id(sent)
    assert len({span_id(span) for span in telemetry.spans()}) == len(telemetry.spans()) == 5


async def test_a_failure_is_shown_on_their_span(rabbit, telemetry, contrib):
    """A handler that raises under both leaves one consumer span with our verdict."""
    contrib()
    channel = await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())

    async def handle(_: Any) -> None:
        raise ConnectionResetError

    await queue.consume(handle)
    await send(channel, queue.name)
    await processed(telemetry)
    (handled,) = theirs(telemetry)
    assert handled.attributes["rtobs.error_category"] == "transport"
    assert not handled.status.is_ok
    assert settled(telemetry) == {"retried": 1}


async def test_an_unwrapped_connection_is_left_to_them(rabbit, telemetry, contrib):
    """A connection that nobody wrapped has their spans and headers only, and is not counted by us."""
    contrib()
    await rabbit.connect()
    channel = await rabbit.channel(wrapped=False)
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    await send(channel, queue.name, BODY)
    message = await fetched(queue)
    assert message.headers.keys() & set(names.OWN_HEADERS) == {names.TRACEPARENT}
    assert [span.kind.name for span in theirs(telemetry)] == ["PRODUCER"]
    assert telemetry.count(names.SENT_MESSAGES) == 0


async def test_a_fetched_message_from_them_continues_their_trace(rabbit, telemetry, contrib):
    """A message that only they put a trace into is handled in that trace, as a journey of its own."""
    contrib()
    sender, channel = await rabbit.channel(wrapped=False), await rabbit.channel()
    queue = await channel.declare_queue(rabbit.name("orders"), arguments=arguments())
    await send(sender, queue.name)
    async with (await fetched(queue)).process():
        place = here()
    (sent,) = theirs(telemetry)
    assert place.trace_id == sent.context.trace_id
    assert telemetry.span("consume").parent.span_id == span_id(sent)
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {queue.name: 1}
