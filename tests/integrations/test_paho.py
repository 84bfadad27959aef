"""The leaf of paho-mqtt on a live Mosquitto: properties, confirmations, callbacks, redelivery, what stays as it was."""

from __future__ import annotations

import queue as queues
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

import rtobs
from rtobs import _conventions as names
from rtobs.errors import UnsupportedError
from rtobs.integrations import hands_over, unwrap
from rtobs.integrations import paho as leaf
from tests.integrations.adapter import NOWHERE, here, place_of
from tests.integrations.mqtt_support import V3, V5, Paho, pairs_of, published, user_properties
from tests.support.telemetry import SECOND
from tests.support.timing import wait_until

OURS = {names.TRACEPARENT, names.JOURNEY, names.BAGGAGE}


@pytest.fixture
def paho(mqtt_url: str) -> Iterator[Paho]:
    found = Paho(mqtt_url)
    yield found
    found.close()


def inbox(client: mqtt.Client) -> queues.SimpleQueue[Any]:
    """Let a client hand over what comes to a queue; return that."""
    found: queues.SimpleQueue[Any] = queues.SimpleQueue()

    @hands_over
    def put(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        found.put(message)

    client.on_message = put
    return found


def ended(telemetry, hop: str, number: int = 1) -> list[Any]:
    """Return the spans of one kind of hop, once there are *number* of them."""
    wait_until(lambda: len(telemetry.spans(hop)) >= number, 5)
    return telemetry.spans(hop)


def test_the_leaf_names_the_versions_it_is_tested_with():
    """The paho-mqtt that the tests run with is one that the leaf says it supports."""
    least, below = re.fullmatch(r"paho-mqtt>=([\d.]+),<(\d+)", leaf.SUPPORTS).groups()
    installed = tuple(map(int, version("paho-mqtt").split(".")[:2]))
    assert tuple(map(int, least.split("."))) <= installed < (int(below),)


# Properties ----------------------------------------------------------------------------------------------------------


def test_user_properties_stay_and_may_repeat(paho, unique, telemetry):
    """All user properties arrive in order, the same name several times, ours behind them; the caller's stay."""
    topic = unique("topic")
    client = paho.client(topic)
    came = inbox(client)
    given = [("shop", "7"), ("tag", "a"), ("tag", "b"), ("José", "Zürich ✓"), ("", "")]
    properties = user_properties(*given, ContentType="text/plain", MessageExpiryInterval=60)
    published(client, topic, properties=properties)
    message = came.get(timeout=5)
    assert properties.UserProperty == given
    assert pairs_of(message)[:5] == given
    assert {name for name, _ in pairs_of(message)[5:]} == OURS
    assert message.properties.ContentType == "text/plain"
    assert 0 < message.properties.MessageExpiryInterval <= 60


def test_a_message_without_properties_carries_its_journey(paho, unique, telemetry):
    """A message that was sent without any properties arrives with those of its journey."""
    topic = unique("topic")
    client = paho.client(topic)
    came = inbox(client)
    published(client, topic)
    assert {name for name, _ in pairs_of(came.get(timeout=5))} == OURS


def test_correlation_data_is_the_conversation(paho, unique, telemetry):
    """A request's correlation data are the conversation id of both spans, in hex digits where they are no text."""
    topic = unique("topic")
    client = paho.client(topic)
    came = inbox(client)
    for data in (b"order-7", b"\x00\xff"):
        published(client, topic, properties=user_properties(CorrelationData=data, ResponseTopic="answers"))
        message = came.get(timeout=5)
        assert message.properties.CorrelationData == data
        assert message.properties.ResponseTopic == "answers"
        with rtobs.consume("requests", message):
            pass
    found = [span.attributes["messaging.message.conversation_id"] for span in telemetry.spans()]
    assert found == ["order-7", "order-7", "00ff", "00ff"]


def test_what_would_exceed_the_brokers_largest_packet_stays_out(own_mosquitto, unique, telemetry):
    """Where our properties would make a packet too large for the broker it leaves without them, counted."""
    own_mosquitto.stop()
    own_mosquitto.start("allow_anonymous true\nmax_packet_size 1000")
    paho = Paho(own_mosquitto.url)
    topic = unique("topic")
    client = paho.client(topic)
    came = inbox(client)
    for size in (100, 900):
        published(client, topic, b"x" * size, properties=user_properties(("mine", "stays")))
    found = [came.get(timeout=5) for _ in range(2)]
    paho.close()
    assert [len(message.payload) for message in found] == [100, 900]
    assert [{name for name, _ in pairs_of(message)} for message in found] == [{"mine", *OURS}, {"mine"}]
    assert telemetry.by(names.PROPAGATION_REJECTED, "reason") == {"too_long": 1}
    assert client._rtobs_mqtt.largest == 1000


def test_a_topic_alias_is_named_by_its_topic(paho, unique, telemetry):
    """A send by an alias alone has the destination that the alias was given with."""
    topic = unique("topic")
    client = paho.client()
    published(client, topic, properties=user_properties(TopicAlias=1))
    client.publish("", b"x", 0, properties=user_properties(TopicAlias=1))
    assert telemetry.by(names.SENT_MESSAGES, "messaging_destination") == {topic: 2}


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_destination_is_the_subscribed_filter(paho, unique, telemetry):
    """What comes is counted under the filter that was subscribed to, the topic is an attribute; sends by a template."""
    base = unique("devices")
    client = paho.client(f"{base}/+/state/#")
    came = inbox(client)
    published(client, f"{base}/4711/state/on")
    with rtobs.consume("states", came.get(timeout=5)):
        pass
    assert telemetry.span("consume").attributes["rtobs.address"] == f"{base}/4711/state/on"
    assert telemetry.span("publish").name.endswith(f"{base}/+/state/on")

    handled = []
    client.on_message = lambda _client, _userdata, message: handled.append(message)
    published(client, f"{base}/4712/state/off")
    ended(telemetry, "consume", 2)
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination")[f"{base}/+/state/#"] == 1


def test_a_shared_subscription_names_its_group(paho, unique, telemetry):
    """Of a shared subscription the group is an attribute, and the destination is the filter alone."""
    topic = unique("topic")
    client = paho.client(f"$share/workers/{topic}")
    client.on_message = lambda *_: None
    published(client, topic)
    (span,) = ended(telemetry, "consume")
    assert span.attributes["messaging.consumer.group.name"] == "workers"
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {topic: 1}


def test_what_the_broker_says_of_itself_is_no_message(paho, telemetry):
    """Messages on $SYS reach their callback, and are neither hops nor counted."""
    client = paho.client()
    seen: queues.SimpleQueue[Any] = queues.SimpleQueue()
    client.on_message = lambda _client, _userdata, message: seen.put((message.topic, here()))
    client.subscribe("$SYS/broker/version")
    assert seen.get(timeout=10) == ("$SYS/broker/version", NOWHERE)
    assert telemetry.spans() == []
    assert telemetry.count(names.CONSUMED_MESSAGES) == 0


# Trust ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [None, "trusted"])
def test_by_default_a_journey_is_linked_and_continued_when_trusted(paho, unique, telemetry, trust):
    """Without more trust a message begins a new journey with a link to its sender; from a trusted broker it goes on."""
    topic = unique("topic")
    client = paho.client(topic, **({} if trust is None else {"trust": trust}))
    client.on_message = lambda *_: None
    with rtobs.accept("/orders") as hop:
        published(client, topic)
    (consumed,) = ended(telemetry, "consume")
    sent = telemetry.span("publish").context
    if trust is None:
        assert consumed.attributes["rtobs.correlation_id"] != hop.correlation_id
        assert consumed.parent is None
        assert [link.context.span_id for link in consumed.links] == [sent.span_id]
    else:
        assert consumed.attributes["rtobs.correlation_id"] == hop.correlation_id
        assert consumed.parent.span_id == sent.span_id


# Confirmations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_send_ends_when_the_broker_has_confirmed_it(paho, unique, telemetry, qos):
    """A send is one hop that has ended, without error, by the time that its confirmation was waited for."""
    client = paho.client()
    told: queues.SimpleQueue[Any] = queues.SimpleQueue()
    client.on_publish = lambda *_: told.put(None)
    client.publish(unique("topic"), b"x", qos).wait_for_publish(5)
    told.get(timeout=5)
    assert telemetry.span("publish").status.is_ok
    assert telemetry.count(names.SENT_MESSAGES) == 1
    assert client._rtobs_mqtt.pending == {}


def test_a_send_waits_for_the_connection(own_mosquitto, unique, telemetry):
    """A message of QoS 1 that is published while the broker is away is a send until the broker has it."""
    paho = Paho(own_mosquitto.url)
    client = paho.client()
    client.reconnect_delay_set(1, 1)
    own_mosquitto.stop()
    wait_until(lambda: not client.is_connected(), 5)
    info = client.publish(unique("topic"), b"x", 1)
    assert info.rc == mqtt.MQTT_ERR_NO_CONN
    assert telemetry.spans("publish") == []
    own_mosquitto.start()
    wait_until(lambda: telemetry.spans("publish"), 15)
    paho.close()
    assert telemetry.span("publish").status.is_ok


@pytest.mark.parametrize(
    ("qos", "category", "reason"), [(0, "transport", "not_connected"), (1, "overload", "queue_full")]
)
def test_a_send_that_the_client_does_not_take_has_failed(telemetry, qos, category, reason):
    """Without a connection a message of QoS 0 is lost, and with a full queue one of QoS 1: each is a failed send."""
    client = rtobs.wrap(mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=V5))
    if qos:
        client.max_queued_messages_set(1)
        client.publish("orders", b"x", 1)
    info = client.publish("orders", b"x", qos)
    assert info.rc != mqtt.MQTT_ERR_SUCCESS
    span = telemetry.span("publish")
    assert not span.status.is_ok
    assert span.attributes["error.type"] == reason
    assert span.attributes["rtobs.error_category"] == category


def test_what_the_broker_refuses_has_failed(own_mosquitto, telemetry):
    """A message that the broker says no to (MQTT 5, reason code 0x87) is a send that failed for lack of rights."""
    own_mosquitto.stop()
    rules = own_mosquitto._folder / "rules"
    rules.write_text("topic read #\n")
    own_mosquitto.start(f"allow_anonymous true\nacl_file {rules}")
    paho = Paho(own_mosquitto.url)
    published(paho.client(), "orders")
    paho.close()
    span = telemetry.span("publish")
    assert span.attributes["error.type"] == "not_authorized"
    assert span.attributes["rtobs.error_category"] == "auth"


def test_a_failing_publish_raises_as_ever(telemetry):
    """What the client refuses it refuses in its own words, wrapped or not."""
    for wrapped in (False, True):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=V5)
        if wrapped:
            rtobs.wrap(client)
        for arguments in (("orders/#", b"x"), ("orders", b"x", 3), ("orders", {"no": "payload"}), ("orders", object())):
            with pytest.raises((ValueError, TypeError)) as caught:
                client.publish(*arguments)
            assert "rtobs" not in str(caught.value)


# Callbacks -----------------------------------------------------------------------------------------------------------


def test_a_decorated_callback_is_its_messages_hop(paho, unique, telemetry):
    """A callback of three arguments that `rtobs.consume` decorates finds its message among them: one hop."""
    topic = unique("topic")
    client = paho.client(topic, trust="trusted")
    seen: queues.SimpleQueue[Any] = queues.SimpleQueue()

    @client.message_callback()
    @rtobs.consume("tickets")
    def handle(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        seen.put((message.payload, here()))

    with rtobs.accept("/tickets") as hop:
        published(client, topic, b"one")
    payload, place = seen.get(timeout=5)
    (span,) = ended(telemetry, "consume")
    assert (payload, place) == (b"one", place_of(span))
    assert place.correlation_id == hop.correlation_id
    assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 1}


def test_two_callbacks_for_one_message_are_one_hop(paho, unique, telemetry):
    """A message for which two filters have a callback is consumed once, and both callbacks run in that hop."""
    base = unique("base")
    client = paho.client(f"{base}/#")
    seen: queues.SimpleQueue[Any] = queues.SimpleQueue()
    for name in (f"{base}/+", f"{base}/#"):
        client.message_callback_add(name, lambda *_: seen.put(here()))
    published(client, f"{base}/orders")
    places = [seen.get(timeout=5) for _ in range(2)]
    (span,) = ended(telemetry, "consume")
    assert places == [place_of(span)] * 2
    assert telemetry.count(names.CONSUMED_MESSAGES) == 1


def test_a_callback_that_is_a_method_of_the_users_client_has_its_hop(paho, unique, telemetry):
    """A client class of the user's with a method `on_message` works as it did, and each call of it is a hop."""
    seen: queues.SimpleQueue[Any] = queues.SimpleQueue()

    class Receiver(mqtt.Client):
        def on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
            seen.put((message.payload, here() != NOWHERE))

    topic = unique("topic")
    client = paho.client(topic, of=Receiver)
    published(client, topic, b"one")
    assert seen.get(timeout=5) == (b"one", True)
    assert isinstance(client, Receiver)


def test_a_worker_behind_a_queue_has_the_hop(paho, unique, telemetry, clock):
    """A callback that only hands over has no hop; the worker's is the one, and its lag includes the wait for it."""
    topic = unique("topic")
    client = paho.client(topic, trust="trusted")
    came = inbox(client)
    with rtobs.accept("/orders") as hop:
        published(client, topic)
    message = came.get(timeout=5)
    assert telemetry.spans("consume") == []
    clock.now += 7 * SECOND
    with rtobs.consume("orders", message) as again:
        assert again.correlation_id == hop.correlation_id
    assert telemetry.count(names.CONSUMED_MESSAGES) == 1
    assert telemetry.seconds(names.MESSAGE_LAG, destination="orders") == 7


@pytest.mark.parametrize("protocol", [V5, V3])
def test_a_swallowed_error_is_the_hops_own(paho, unique, telemetry, protocol):
    """With `suppress_exceptions` the client acknowledges whatever happens: the handling has failed, for good."""
    topic = unique("topic")
    client = paho.client(topic, protocol=protocol)
    client.suppress_exceptions = True

    def fail(*_: object) -> None:
        raise ValueError("broken")

    client.on_message = fail
    published(client, topic)
    (span,) = ended(telemetry, "consume")
    assert span.attributes["error.type"] == "ValueError"
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"failed": 1}
    client.on_message = lambda *_: None
    published(client, topic)
    assert ended(telemetry, "consume", 2)[1].attributes.get("error.type") is None


def test_an_error_ends_the_clients_thread_as_ever_and_the_message_comes_back(paho, unique, telemetry):
    """A callback that raises stops paho's thread as ever; the next connection brings the message as attempt 2."""
    topic, name = unique("topic"), unique("client")
    error, raised = ValueError("broken"), list[BaseException]()

    class Failing(mqtt.Client):
        def _thread_main(self) -> None:
            try:
                super()._thread_main()
            except ValueError as found:
                raised.append(found)

    def fail(*_: object) -> None:
        raise error

    client = paho.client(topic, of=Failing, name=name, session=60, trust="trusted", on_message=fail)
    with rtobs.accept("/orders") as hop:
        published(paho.client(), topic)
    (first,) = ended(telemetry, "consume")
    wait_until(lambda: raised, 5)
    assert raised == [error]
    assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 1}
    client._sock_close()

    paho.client(name=name, session=60, trust="trusted", on_message=lambda *_: None)
    second = ended(telemetry, "consume", 2)[1]
    assert [span.attributes["rtobs.correlation_id"] for span in (first, second)] == [hop.correlation_id] * 2
    assert second.attributes["rtobs.attempt"] == 2
    assert telemetry.count(names.MESSAGE_REDELIVERED) == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgements_by_hand_are_timed(paho, unique, telemetry, qos):
    """With `manual_ack` each acknowledgement counts one duration, and settles the hop that it is made in."""
    topic = unique("topic")
    client = paho.client(connection={"manual_ack": True})
    came = inbox(client)
    client.subscribe(topic, qos)
    published(client, topic, qos=qos)
    message = came.get(timeout=5)
    with rtobs.consume("orders", message):
        assert client.ack(message.mid, message.qos) == mqtt.MQTT_ERR_SUCCESS
    assert telemetry.count(names.CLIENT_DURATION, operation="ack") == 1
    assert client._rtobs_mqtt.unacknowledged == {}


# Retained messages ---------------------------------------------------------------------------------------------------


def test_lag_of_a_retained_message_counts_from_its_release(paho, unique, telemetry, clock):
    """A retained message waits for nobody: its lag counts from the subscription, and what it stands for is a replay."""
    topic = unique("topic")
    sender = paho.client(trust="trusted")
    with rtobs.accept("/prices") as hop:
        hop.intend("webhook", "7")
        with rtobs.publish("prices", channel="webhook", key="7"):
            published(sender, topic, retain=True)
    clock.now += 3600 * SECOND
    receiver = paho.client(topic, trust="trusted")
    came = inbox(receiver)
    receiver.subscribe(topic, 1)  # once more: the broker sends what is retained to each
    message = came.get(timeout=5)
    clock.now += 2 * SECOND
    with rtobs.consume("prices", message) as again:
        assert again.correlation_id == hop.correlation_id
    published(sender, topic, b"", retain=True)
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"release": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 2
    assert telemetry.by(names.RECOVERED, "channel") == {"webhook": 1}
    assert telemetry.count(names.OUTCOMES) == 0


def test_a_retain_flag_kept_as_published_tells_no_age(paho, unique, telemetry, clock):
    """With `retainAsPublished` a message that comes at once has its real lag, though it is flagged as retained."""
    topic = unique("topic")
    client = paho.client((topic, SubscribeOptions(qos=1, retainAsPublished=True)), trust="trusted")
    came = inbox(client)
    published(client, topic, retain=True)
    message = came.get(timeout=5)
    published(client, topic, b"", retain=True)
    assert message.retain
    clock.now += 2 * SECOND
    with rtobs.consume("prices", message):
        pass
    assert telemetry.by(names.MESSAGE_LAG, "lag_source") == {"producer": 1}
    assert telemetry.seconds(names.MESSAGE_LAG) == 2


# MQTT 3.1.1 ----------------------------------------------------------------------------------------------------------


def test_mqtt_3_carries_nothing_unless_asked_for(paho, unique, telemetry):
    """Without `envelope=True` a payload of MQTT 3.1.1 is what it was, and its consumer counts a missing journey."""
    topic = unique("topic")
    client, bare = paho.client(topic, protocol=V3), paho.client(topic, protocol=V3, wrapped=False)
    came, plain = inbox(client), inbox(bare)
    published(client, topic, b"body")
    assert plain.get(timeout=5).payload == b"body"
    with rtobs.consume("orders", came.get(timeout=5)):
        pass
    assert telemetry.by(names.PROPAGATION_MISSING, "destination") == {"orders": 1}


@pytest.mark.parametrize("payload", [b"\x00\xff", "Zürich", 7, 7.5, None, bytearray(b"x"), b""])
@pytest.mark.parametrize("protocol", [V3, V5])
def test_an_envelope_is_taken_off_by_every_wrapped_client(paho, unique, telemetry, payload, protocol):
    """What a client of MQTT 3.1.1 sends in an envelope comes byte for byte, also to MQTT 5 and without the option."""
    topic = unique("topic")
    sender = paho.client(protocol=V3, envelope=True)
    came = inbox(paho.client(topic, protocol=protocol, trust="trusted"))
    with rtobs.accept("/orders") as hop:
        published(sender, topic, payload)
    message = came.get(timeout=5)
    expected = payload.encode() if isinstance(payload, str) else payload
    assert message.payload == (str(payload).encode() if isinstance(payload, int | float) else expected or b"")
    with rtobs.consume("orders", message) as again:
        assert again.correlation_id == hop.correlation_id


def test_what_clears_a_retained_message_stays_empty(paho, unique, telemetry):
    """An empty retained payload, which deletes, gets no envelope: nobody who subscribes later sees a message."""
    topic = unique("topic")
    sender = paho.client(protocol=V3, envelope=True)
    published(sender, topic, b"old", retain=True)
    published(sender, topic, b"", retain=True)
    came = inbox(paho.client(topic, protocol=V3, wrapped=False))
    published(sender, topic, b"live")
    assert came.get(timeout=5).payload.endswith(b"live")


# Wrapping ------------------------------------------------------------------------------------------------------------


def test_a_client_is_the_same_wrapped_or_not(paho, unique, telemetry):
    """Results, types and callbacks of a wrapped client are those of a bare one."""
    found = {}
    for wrapped in (False, True):
        topic = unique("topic")
        client = paho.client(wrapped=wrapped, connection={"manual_ack": True})
        came = inbox(client)
        subscribed = client.subscribe(topic, 1)
        info = published(client, topic)
        message = came.get(timeout=5)
        found[wrapped] = [
            client.__class__, isinstance(client, mqtt.Client), type(subscribed), subscribed[0], type(info), info.rc,
            info.is_published(), type(message), message.qos, client.ack(message.mid, 1), client.unsubscribe(topic)[0],
            client.on_message.__name__,
        ]  # fmt: skip
    assert found[True] == found[False]


def test_what_is_no_client_is_refused():
    """A message or an info of paho's cannot be wrapped, and the error says what can."""
    with pytest.raises(UnsupportedError, match="give its client"):
        rtobs.wrap(mqtt.MQTTMessage())


def test_an_unwrapped_client_is_as_it_was(paho, unique, telemetry):
    """After `unwrap` nothing is added or counted any more."""
    topic = unique("topic")
    client = unwrap(paho.client(topic))
    came = inbox(client)
    published(client, topic)
    assert pairs_of(came.get(timeout=5)) == []
    assert type(client) is mqtt.Client
    assert telemetry.count(names.SENT_MESSAGES) == 0
