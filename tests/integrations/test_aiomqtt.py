"""The leaf of aiomqtt on a live Mosquitto, and what MQTT messages say, by any input."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import CallbackAPIVersion, Client

import rtobs
from rtobs import _conventions as names
from rtobs._hop import leaf as engine
from rtobs.errors import UnsupportedError
from rtobs.integrations import _mqtt, unwrap
from rtobs.integrations import aiomqtt as leaf
from rtobs.integrations._twin import Options
from tests.integrations.adapter import NOWHERE, here
from tests.integrations.mqtt_support import V3, V5, AiomqttAdapter, pairs_of, user_properties
from tests.support.telemetry import SECOND
from tests.support.timing import eventually

OURS = {names.TRACEPARENT, names.JOURNEY, names.BAGGAGE}


@pytest.fixture
async def adapter(mqtt_url: str) -> AsyncIterator[AiomqttAdapter]:
    found = AiomqttAdapter(mqtt_url, V5)
    yield found
    await found.close()


def test_the_leaf_names_the_versions_it_is_tested_with():
    """The aiomqtt that the tests run with is one that the leaf says it supports."""
    least, below = re.fullmatch(r"aiomqtt>=([\d.]+),<(\d+)", leaf.SUPPORTS).groups()
    installed = tuple(map(int, version("aiomqtt").split(".")[:2]))
    assert tuple(map(int, least.split("."))) <= installed < (int(below),)


async def test_user_properties_stay_and_may_repeat(adapter, unique, telemetry):
    """All user properties arrive in order, the same name several times, ours behind them; the caller's stay."""
    topic = unique("topic")
    client = await adapter.client()
    await client.subscribe(topic, 1)
    given = [("tag", "a"), ("tag", "b"), ("José", "Zürich ✓")]
    properties = user_properties(*given, ContentType="text/plain")
    await client.publish(topic, b"x", 1, properties=properties)
    message = await anext(client.messages)
    assert properties.UserProperty == given
    assert pairs_of(message)[:3] == given
    assert {name for name, _ in pairs_of(message)[3:]} == OURS
    assert message.properties.ContentType == "text/plain"


@pytest.mark.parametrize("trust", [None, "trusted"])
async def test_by_default_a_journey_is_linked_and_continued_when_trusted(adapter, unique, telemetry, trust):
    """Without more trust a message begins a new journey with a link to its sender; from a trusted broker it goes on."""
    topic = unique("topic")
    async with aiomqtt.Client("127.0.0.1", adapter._url.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        rtobs.wrap(client, trust=trust)
        await client.subscribe(topic, 1)
        with rtobs.accept("/orders") as hop:
            await client.publish(topic, b"x", 1)
        with rtobs.consume("orders", await anext(client.messages)) as again:
            pass
    sent, consumed = telemetry.span("publish").context, telemetry.span("consume")
    assert (again.correlation_id == hop.correlation_id) is (trust == "trusted")
    assert [link.context.span_id for link in consumed.links] == ([] if trust else [sent.span_id])
    assert (consumed.parent is None) is (trust is None)


async def test_a_task_for_each_message_continues_its_journey_however_late(adapter, unique, telemetry):
    """Who handles messages in tasks, after others have come, has each in its own journey; so has who tries again."""
    topic = unique("topic")
    await adapter.declare(topic)
    for protocol in (V5, V3):
        adapter._protocol, adapter._options["envelope"] = protocol, protocol == V3
        client = await adapter.client()
        sent, seen = [], []
        gate = asyncio.Event()

        async def handle(message: Any, gate: asyncio.Event = gate, seen: list[Any] = seen) -> None:
            await gate.wait()
            for _ in range(2):
                with rtobs.consume("orders", message) as hop:
                    seen.append(hop.correlation_id)

        for _ in range(3):
            with rtobs.accept("/orders") as hop:
                await client.publish(topic, b"x", 1)
            sent += [hop.correlation_id] * 2
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(handle(await anext(client.messages)))
            gate.set()
        assert sorted(seen) == sorted(sent)
        await client.unsubscribe(topic)


async def test_one_message_at_a_time_has_its_lag_once(adapter, unique, telemetry, clock):
    """A message that `anext` brings, and that a hop then takes, has its lag recorded once, as that hop's."""
    topic = unique("topic")
    await adapter.declare(topic)
    client = await adapter.client()
    await client.publish(topic, b"x", 1)
    clock.now += 7 * SECOND
    with rtobs.consume("orders", await anext(client.messages)):
        pass
    await asyncio.sleep(0.01)
    assert telemetry.by(names.MESSAGE_LAG, "destination") == {"orders": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 7


async def test_what_is_retained_has_the_lag_of_its_release(adapter, unique, telemetry, clock):
    """A retained message's lag counts from the subscription that released it."""
    topic = unique("topic")
    sender = await adapter.client()
    await sender.publish(topic, b"x", 1, retain=True)
    clock.now += 3600 * SECOND
    client = await adapter.client()
    await client.subscribe(topic, 1)
    message = await anext(client.messages)
    clock.now += 2 * SECOND
    with rtobs.consume("prices", message):
        pass
    await sender.publish(topic, b"", 1, retain=True)
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"release": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 2


async def test_what_the_broker_says_of_itself_is_no_message(adapter, telemetry):
    """Messages on $SYS are yielded, and are neither hops nor counted."""
    client = await adapter.client()
    await client.subscribe("$SYS/broker/version")
    message = await asyncio.wait_for(anext(client.messages), 10)
    assert message.topic.matches("$SYS/broker/version")
    assert here() == NOWHERE
    assert not engine.known(message)
    assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 0


async def test_the_brokers_largest_packet_is_kept(own_mosquitto, unique, telemetry):
    """Where our properties would make a packet too large for the broker it leaves without them, counted."""
    own_mosquitto.stop()
    own_mosquitto.start("allow_anonymous true\nmax_packet_size 1000")
    topic = unique("topic")
    client = rtobs.wrap(aiomqtt.Client("127.0.0.1", own_mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5))
    async with client:
        await client.subscribe(topic, 1)
        await client.publish(topic, b"x" * 900, 1)
        message = await anext(client.messages)
    assert len(message.payload) == 900
    assert pairs_of(message) == []
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason") == {"too_long": 1}


async def test_a_lost_connection_ends_the_loop_as_ever(own_mosquitto, telemetry):
    """When the broker goes away the iterator raises the client's own error, and a send that waits has failed."""
    client = rtobs.wrap(aiomqtt.Client("127.0.0.1", own_mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5))
    await client.__aenter__()
    await client.subscribe("orders")
    own_mosquitto.stop()
    with pytest.raises(aiomqtt.MqttError):
        async for _ in client.messages:
            pass
    with pytest.raises(aiomqtt.MqttError):
        await client.publish("orders", b"x", 1)
    assert telemetry.span("publish").attributes["error.type"] == "MqttCodeError"
    assert isinstance(client._disconnected.exception(), aiomqtt.MqttError)


async def test_a_client_is_the_same_wrapped_or_not(adapter, unique, telemetry):
    """Results and types of a wrapped client are those of a bare one; so is the number of messages that wait."""
    found = {}
    for wrapped in (False, True):
        topic = unique("topic")
        client = await adapter.client(wrapped=wrapped)
        subscribed = await client.subscribe(topic, 1)
        result = await client.publish(topic, b"x", 1)
        await eventually(lambda client=client: len(client.messages))
        messages = client.messages
        message = await anext(messages)
        found[wrapped] = [
            client.__class__, type(subscribed), result, messages.__class__, len(messages), message.__class__,
            str(message.topic).partition("-")[0], message.qos, message.retain,
        ]  # fmt: skip
        del messages
    assert found[True] == found[False]


async def test_an_unwrapped_client_is_as_it_was(adapter, unique, telemetry):
    """After `unwrap` nothing is added or counted any more."""
    topic = unique("topic")
    client = unwrap(await adapter.client())
    await client.subscribe(topic, 1)
    await client.publish(topic, b"x", 1)
    assert pairs_of(await anext(client.messages)) == []
    assert telemetry.count(names.SENT_MESSAGES) == 0


async def test_what_is_no_client_is_refused():
    """A message of aiomqtt's cannot be wrapped, and the error says what can."""
    with pytest.raises(UnsupportedError, match="give its client"):
        rtobs.wrap(aiomqtt.Message("orders", b"x", 0, retain=False, mid=1, properties=None))


# What messages say ---------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CLIENT = Client(CallbackAPIVersion.VERSION2, protocol=V5)
NAMES = st.one_of(WORDS, st.sampled_from(sorted(names.OWN_HEADERS)))


@given(st.lists(st.tuples(NAMES, WORDS), max_size=8), st.integers(0, 2000))
def test_properties_are_kept_whatever_they_are(pairs, largest):
    """The user's own properties stay, in order and repeated; ours are there once each, or not where too large."""
    client = CLIENT
    _mqtt.connection(client).largest = largest
    given = user_properties(*pairs) if pairs else None
    with engine.Send(_mqtt.sent(_mqtt.connection(client), Options(), "orders", b"x", given)) as send:
        payload, properties = _mqtt.carrying(send, client, Options(), False, ("orders", b"x", given))
    assert payload == b"x"
    found = list(getattr(properties, "UserProperty", ()))
    assert getattr(given, "UserProperty", []) == pairs
    foreign = [pair for pair in pairs if pair[0] not in names.OWN_HEADERS]
    if properties is given:
        assert largest
        assert found == pairs
        return
    assert [pair for pair in found if pair[0] not in names.OWN_HEADERS] == foreign
    ours = [name for name, _ in found if name in names.OWN_HEADERS]
    assert sorted(ours) == sorted(set(ours))
    assert set(ours) >= OURS
    assert not largest or len(properties.pack()) + len(b"orders") + len(b"x") + 7 <= largest


@given(
    st.one_of(st.none(), st.integers(), st.binary(), WORDS, st.lists(st.one_of(WORDS, st.tuples(WORDS, WORDS)))), WORDS
)
def test_a_message_of_any_properties_is_described(properties, topic):
    """Whatever a forged message has for properties, what is known of it is said without an error."""

    class Forged:
        UserProperty = CorrelationData = properties

    message = aiomqtt.Message(aiomqtt.Topic("orders"), b"x", 0, retain=False, mid=1, properties=Forged())
    facts = _mqtt.received(message, topic, {}, None, Options())
    assert facts.address == topic
    with engine.Process(facts) as process:
        assert process.record is not None


@pytest.mark.parametrize(
    ("topic", "place"),
    [
        ("orders", "orders"),
        ("devices/4711/state", "devices/+/state"),
        ("/devices/0190a7e6-3f7c-7b1c-9d5c-2f1f4c2f7d11", "/devices/+"),
        ("devices/+/state/#", "devices/+/state/#"),
    ],
)
def test_a_topic_is_named_without_its_identifiers(topic, place):
    """Levels that are numbers, UUIDs, addresses or long identifiers become the wildcard of one level."""
    assert _mqtt.place(topic) == place


def test_the_most_specific_subscription_is_the_one():
    """Of several filters that match a topic the most specific names it; what is not subscribed to has none."""
    connection = _mqtt.Connection()
    connection.subscribe([("base/#", 0), ("base/+/state", 1), ("base/hall/state", 1), ("$share/team/other/+", 1)], None)
    found = [connection.subscription(f"{topic}") for topic in ("base/hall/state", "base/x/state", "base/x", "other/x")]
    assert [each.destination for each in found] == ["base/hall/state", "base/+/state", "base/#", "other/+"]
    assert [each.group for each in found] == ["", "", "", "team"]
    assert connection.subscription("elsewhere") is None
