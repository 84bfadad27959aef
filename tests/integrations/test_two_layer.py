"""One message is one hop of each kind, however many layers open one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from typing import NamedTuple

import pytest

import rtobs
from rtobs import _conventions as names
from rtobs.integrations.memory import Broker
from tests.integrations.adapter import NOWHERE, assert_one_of_each, here, place_of
from tests.integrations.test_conformance_memory import Client
from tests.integrations.two_layer import Event, Framework, teach
from tests.support.timing import eventually


class Side(NamedTuple):
    """Who opens a hop on one side of the queue."""

    user: str
    outer: bool
    inner: bool

    def __str__(self) -> str:
        layers = [self.user] * (self.user != "nobody") + ["outer"] * self.outer + ["inner"] * self.inner
        return "+".join(layers)


SIDES = [
    Side(*found)
    for found in itertools.product(["nobody", "decorator", "with"], [True, False], [True, False])
    if found != ("nobody", False, False)
]


def layers(side: Side, shared: Broker, **options: int) -> tuple[Framework, Client]:
    """Return a framework over a broker's client, each wrapped as *side* says."""
    client = Client(shared)
    framework = Framework(client, **options)
    if side.inner:
        rtobs.wrap(client)
    if side.outer:
        rtobs.wrap(framework)
    return framework, client


BOTH = Side("nobody", outer=True, inner=True)


@pytest.fixture
async def shared(telemetry):
    teach()
    return Broker()


async def emit(side: Side, framework: Framework, topic: str) -> None:
    """Send one event, its content the correlation id of the accept hop around."""

    async def send(headers: dict[str, str] | None = None) -> None:
        await framework.emit(topic, rtobs.current().correlation_id, headers)

    with rtobs.accept("/orders"):
        if side.user == "decorator":
            await rtobs.publish("orders")(send)()
        elif side.user == "with":
            with rtobs.publish("orders") as hop:
                await send(hop.headers)
        else:
            await send()


@pytest.mark.parametrize("taker", SIDES, ids=str)
@pytest.mark.parametrize("sender", SIDES, ids=str)
async def test_every_pair_of_layers_is_one_hop(shared, telemetry, sender, taker):
    """Any of decorator, block, outer and inner layer together make 1 sent, 1 consumed and 1 process, in one journey."""
    seen = []

    async def done(event: Event) -> None:
        seen.append((event.content, here()))
        await event.done()

    async def done_in_block(event: Event) -> None:
        with rtobs.consume("orders", event):
            await done(event)

    sending, _ = layers(sender, shared)
    taking, client = layers(taker, shared)
    handler = {"nobody": done, "decorator": rtobs.consume("orders")(done), "with": done_in_block}[taker.user]
    taking.on("topic", handler)
    await emit(sender, sending, "topic")
    await eventually(lambda: telemetry.spans("consume"))
    await client.close()
    assert_one_of_each(telemetry)
    sent, consumed = telemetry.span("publish"), telemetry.span("consume")
    assert consumed.parent.span_id == sent.context.span_id
    assert seen == [(place_of(sent).correlation_id, place_of(consumed))]
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 1}
    nearest = "memory" if sender.inner else "framework" if sender.outer else "unknown"
    assert telemetry.by(names.SENT_MESSAGES, "system") == {nearest: 1}


async def test_a_polled_event_is_one_hop(shared, telemetry):
    """An event taken by the framework's poll and handled in a block is one consume hop, both layers being wrapped."""
    framework, _ = layers(BOTH, shared)
    await emit(BOTH, framework, "topic")
    event = await framework.poll("topic")
    with rtobs.consume("orders", event) as hop, rtobs.consume("orders", event.raw) as again:
        assert again.correlation_id == hop.correlation_id == event.content
        await event.done()
    assert_one_of_each(telemetry)
    assert here() == NOWHERE


@pytest.mark.parametrize("opened", [True, False], ids=["in a publish hop", "alone"])
async def test_an_outer_send_of_two_inner_messages_is_two_sends(shared, telemetry, opened):
    """A framework that sends two broker messages for one event makes two sends beside each other, and two arrive."""
    framework, client = layers(BOTH, shared, copies=2)
    with rtobs.accept("/orders"), rtobs.publish("orders") if opened else contextlib.nullcontext():
        await framework.emit("topic", "")
    assert telemetry.count(names.SENT_MESSAGES) == 2
    spans = telemetry.spans("publish")
    assert {span.parent.span_id for span in spans} == {telemetry.span("accept").context.span_id}
    for _ in range(2):
        message = await client.get("queue.topic")
        with rtobs.consume("topic", message):
            await message.ack()
    parents = {span.parent.span_id for span in telemetry.spans("consume")}
    assert parents == {span.context.span_id for span in spans}


async def test_gathered_sends_through_two_layers_are_one_each(shared, telemetry):
    """Events emitted concurrently in one publish hop make one send each, through both layers."""
    framework, client = layers(BOTH, shared)
    ready = asyncio.Barrier(5)

    async def meet() -> None:
        await ready.wait()

    client.before_send = meet
    with rtobs.publish("orders"):
        await asyncio.gather(*(framework.emit("topic", "") for _ in range(5)))
    assert telemetry.count(names.SENT_MESSAGES) == 5
    assert Counter(span.name == "publish orders" for span in telemetry.spans("publish")) == {True: 1, False: 4}


@pytest.mark.parametrize("opened", [True, False], ids=["in a publish hop", "alone"])
async def test_a_retry_by_the_outer_layer_is_the_same_send(shared, telemetry, opened):
    """An inner send that the framework tries again is one sent message, without an error."""
    framework, client = layers(BOTH, shared, tries=3)
    left = iter([ConnectionError("gone"), ConnectionError("gone"), None])

    async def fail_twice() -> None:
        error = next(left)
        if error is not None:
            raise error

    client.before_send = fail_twice
    with rtobs.publish("orders") if opened else contextlib.nullcontext():
        await framework.emit("topic", "")
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"": 1}
    message = await client.get("queue.topic")
    with rtobs.consume("topic", message):
        await message.ack()
    assert telemetry.span("consume").parent.span_id == telemetry.span("publish").context.span_id


async def test_a_failure_passes_both_layers_unchanged(shared, telemetry):
    """What the broker raises reaches the caller as the same object, and is counted once."""
    framework, client = layers(BOTH, shared)
    error = ConnectionResetError("gone")

    async def fail() -> None:
        raise error

    client.before_send = fail
    with pytest.raises(ConnectionResetError) as caught:
        await framework.emit("topic", "")
    assert caught.value is error
    assert telemetry.by(names.SENT_MESSAGES, "error_type") == {"ConnectionResetError": 1}
    assert len(telemetry.spans("publish")) == 1


async def test_one_app_that_calls_another_keeps_two_accept_hops(telemetry):
    """An app called in-process with the caller's headers is a second accept hop, child of the first, same journey."""
    with rtobs.accept("/gateway") as gateway, rtobs.accept("/orders", headers=gateway.headers) as orders:
        assert orders.correlation_id == gateway.correlation_id
    inner, outer = telemetry.spans("accept")
    assert [inner.name, outer.name] == ["accept /orders", "accept /gateway"]
    assert inner.parent.span_id == outer.context.span_id
    assert telemetry.by(names.ACCEPT_DURATION, "route") == {"/gateway": 1, "/orders": 1}
