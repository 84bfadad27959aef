"""`rtobs.integrations.instrument`: clients that are made afterwards are wrapped, until it is undone."""

from __future__ import annotations

from collections.abc import Generator
from importlib import metadata
from typing import Any

import aiomqtt
import confluent_kafka
import httpx
import paho.mqtt.client as paho
import pytest
import redis
import redis.asyncio
from confluent_kafka import cimpl

from rtobs import _guard, integrations
from rtobs.errors import ConfigError
from rtobs.integrations import instrumentors
from rtobs.integrations._twin import options_of


@pytest.fixture(autouse=True)
def undone() -> Generator[None, None, None]:
    """All constructors are the libraries' own again after the test."""
    yield
    integrations.uninstrument()


def is_wrapped(client: Any) -> bool:
    return "__rtobs_plain__" in vars(type(client))


def mqtt(cls: type = paho.Client) -> Any:
    return cls(paho.CallbackAPIVersion.VERSION2)


def test_clients_made_afterwards_are_wrapped_and_those_made_before_are_not():
    """Without a name every library is instrumented, also those whose classes were imported by name before."""
    before = httpx.Client()
    integrations.instrument()
    assert not is_wrapped(before)
    made = [
        httpx.Client(),
        httpx.AsyncClient(),
        redis.Redis(),
        redis.asyncio.Redis(),
        mqtt(),
        redis.Redis.from_url("redis://x"),
    ]
    assert [is_wrapped(client) for client in made] == [True] * len(made)
    assert [isinstance(client, type(client).__mro__[-2]) for client in made]


def test_it_is_undone_by_its_counterpart():
    """Classes have the very constructors that they had, and what they make is plain."""
    constructors = [httpx.Client.__init__, redis.Redis.__init__, paho.Client.__init__, confluent_kafka.Producer]
    integrations.instrument()
    assert httpx.Client.__init__ is not constructors[0]
    integrations.uninstrument()
    now = [httpx.Client.__init__, redis.Redis.__init__, paho.Client.__init__, confluent_kafka.Producer]
    assert all(one is other for one, other in zip(now, constructors, strict=True))
    assert not is_wrapped(httpx.Client())


def test_only_the_named_ones_are_instrumented_and_undone():
    """A name chooses a library, in both directions."""
    integrations.instrument("redis", "httpx")
    integrations.uninstrument("httpx")
    assert [is_wrapped(client) for client in (redis.Redis(), httpx.Client(), mqtt())] == [True, False, False]


def test_options_are_each_client_s_own_and_the_later_ones_hold():
    """What is asked for one library reaches its clients only; twice is once, with the later options."""
    integrations.instrument()
    integrations.instrument("paho", trust="trusted", envelope=True)
    integrations.instrument("paho", trust="ignore")
    assert (options_of(mqtt()).trust, options_of(mqtt()).envelope) == ("ignore", False)
    assert options_of(redis.Redis()).trust == "trusted"
    integrations.uninstrument("paho")
    assert not is_wrapped(mqtt())


def test_a_subclass_of_the_user_s_is_wrapped_too():
    """Its own constructor runs once, and it stays what it is."""
    integrations.instrument("paho")
    seen = []

    class Mine(paho.Client):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(self)

    client = mqtt(Mine)
    assert seen == [client]
    assert is_wrapped(client)
    assert isinstance(client, Mine)


async def test_what_a_client_makes_for_itself_is_left_to_it():
    """A client of aiomqtt's has one of paho's inside: the outer one is wrapped, and no message counts twice."""
    integrations.instrument()
    client = aiomqtt.Client("127.0.0.1")
    assert is_wrapped(client)
    (overlay, *_) = type(client._client).__mro__[1:]
    assert overlay.__module__ == "rtobs.integrations.aiomqtt"


def test_a_class_of_c_is_met_under_its_name():
    """A producer of confluent-kafka's is instrumented, and stays an instance of the class of C."""
    integrations.instrument("confluent_kafka")
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "x:1", "log_level": 0})
    assert is_wrapped(producer)
    assert isinstance(producer, cimpl.Producer)


def test_a_constructor_that_raises_raises_what_it_did():
    """The application's mistake stays its own, and the next client is instrumented as ever."""
    integrations.instrument("paho")
    with pytest.raises(TypeError, match="Unsupported"):
        paho.Client("nonsense")
    assert is_wrapped(mqtt())


def test_a_leaf_that_cannot_be_imported_is_counted_and_harms_nobody(monkeypatch):
    """The library works on as it was; what was missed is told."""
    monkeypatch.setitem(integrations._LEAVES, "paho", "rtobs.integrations.no_such_leaf")
    before = _guard.tallies()
    integrations.instrument("no_such_leaf")
    assert not is_wrapped(mqtt())
    counted = [labels for (_, labels), _ in _guard.tallies().items() - before.items()]
    integrations.uninstrument("no_such_leaf")
    assert counted == [("instrument.no_such_leaf",)]


@pytest.mark.parametrize(
    ("clients", "options", "said"),
    [
        (("kafkaa",), {}, "no client is called 'kafkaa'"),
        ((), {"trust": "yes"}, "trust must be one of"),
        ((), {"dead_leter": "x"}, "no option 'dead_leter'"),
    ],
)
def test_a_wrong_argument_raises_at_once(clients, options, said):
    """What was seen and what is known is in the message."""
    with pytest.raises(ConfigError, match=said):
        integrations.instrument(*clients, **options)


def test_every_leaf_has_its_entry_point():
    """`opentelemetry-instrument` finds an instrumentor for each library that `instrument` knows."""
    found = {
        point.name: point.load()
        for point in metadata.entry_points(group="opentelemetry_instrumentor")
        if point.name.startswith("rtobs_")
    }
    assert found.keys() == {
        f"rtobs_{name}" for name in integrations.instrumentable() if integrations.leaf_of(name).startswith("rtobs.")
    }
    one = found["rtobs_paho"]()
    assert not one.is_instrumented_by_opentelemetry
    one.instrument(skip_dep_check=True)
    assert one.is_instrumented_by_opentelemetry
    assert is_wrapped(mqtt())
    found["rtobs_paho"]().uninstrument()
    assert not is_wrapped(mqtt())
    with pytest.raises(AttributeError):
        _ = instrumentors.no_such_leaf
