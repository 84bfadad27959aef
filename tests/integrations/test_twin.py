"""How an instance gets our methods: every trap of the way, and what it must leave as it was."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import gc
import logging
import pickle
import threading
import weakref
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import pytest
import wrapt

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs.integrations import _twin, memory
from rtobs.integrations._twin import Options, become, options_of, overlay, restore
from tests.support import telemetry as support

OPTIONS = Options()


class Client:
    """A client as libraries have them: private names, a dictionary, calls to its own methods."""

    registry: list[type] = []  # noqa: RUF012 - shared by design, as users' registries are

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Client.registry.append(cls)

    def __init__(self, name: str = "client") -> None:
        self.name = name
        self.__secret = "secret"
        self.calls: list[str] = []

    def send(self, text: str) -> str:
        self.calls.append(text)
        return f"{self.__secret} {text}"

    def send_twice(self, text: str) -> list[str]:
        return [self.send(text), self.send(text)]

    def sibling(self) -> Client:
        return type(self)(self.name)

    def __call__(self, text: str) -> str:
        return self.send(text)


@overlay
class Seeing(Client):
    """Notes each send."""

    __slots__ = ()

    def send(self, text: str) -> str:
        SEEN.append(text)
        return super().send(text)


SEEN: list[str] = []


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Nothing is seen yet, and what fails while an object is wrapped is raised."""
    SEEN.clear()
    monkeypatch.setattr(_guard, "strict", True)


@dataclasses.dataclass
class Record:
    """A dataclass, whose equality asks for the class."""

    text: str


@overlay
class SeeingRecord(Record):
    __slots__ = ()


class Slotted:
    """A client without a dictionary and without weak references."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def shout(self) -> str:
        return self.text.upper()


@overlay
class SeeingSlotted(Slotted):
    __slots__ = ()

    def shout(self) -> str:
        SEEN.append(self.text)
        return super().shout()


class Special(Client):
    """A user's subclass that overrides what the overlay instruments."""

    def send(self, text: str) -> str:
        self.calls.append("special")
        return super().send(text)


# What an overlay may be ----------------------------------------------------------------------------------------------


def test_an_overlay_without_empty_slots_is_refused():
    """An overlay that would add a dictionary, and so another layout, raises where it is written."""
    with pytest.raises(TypeError, match="`__slots__ = \\(\\)`"):
        overlay(type("Storing", (Client,), {}))
    with pytest.raises(TypeError, match="one base"):
        overlay(type("Storing", (Client,), {"__slots__": ("more",)}))


def test_an_overlay_with_a_mixin_is_refused():
    """An overlay with a second base raises where it is written, not silently where it is used."""
    mixin = type("Mixin", (), {"__slots__": ()})
    with pytest.raises(TypeError, match="one base"):
        overlay(type("Mixed", (mixin, Client), {"__slots__": ()}))


# What a twin does ----------------------------------------------------------------------------------------------------


def test_a_twin_runs_the_overlay_for_every_caller():
    """Calls from outside, from the client's own methods and from its dunders all pass the overlay, once each."""
    client = become(Client(), Seeing, OPTIONS)
    assert client.send("a") == "secret a"
    assert client.send_twice("b") == ["secret b"] * 2
    assert client("c") == "secret c"
    assert SEEN == client.calls == ["a", "b", "b", "c"]


def test_a_twin_leaves_siblings_and_the_class_alone():
    """Only the one instance changes; another of the same class, and the class, do as before."""
    plain, before = Client(), dict(Client.__dict__)
    become(Client(), Seeing, OPTIONS)
    plain.send("a")
    assert SEEN == []
    assert dict(Client.__dict__) == before
    assert type(plain) is Client


def test_a_twin_says_it_is_its_class():
    """`isinstance` and `__class__` say the client's class; only `type(x) is C` tells, which no client asks."""
    client = become(Client(), Seeing, OPTIONS)
    assert isinstance(client, Client)
    assert client.__class__ is Client
    assert type(client) is not Client
    assert type(client).__name__ == "Client"
    assert type(client).__module__ == Client.__module__
    assert type(client).__doc__ == Client.__doc__


def test_a_dataclass_stays_equal_to_its_plain_twin():
    """Equality that compares classes, as dataclasses have it, holds between a plain and a wrapped object."""
    assert become(Record("a"), SeeingRecord, OPTIONS) == Record("a")
    assert become(Record("a"), SeeingRecord, OPTIONS) != Record("b")


def test_an_abstract_class_keeps_its_virtual_subclasses():
    """The metaclass makes the twin, so `isinstance` against an ABC works for registered classes too."""

    class Port(abc.ABC):
        @abc.abstractmethod
        def send(self) -> str: ...

    class Real(Port):
        def send(self) -> str:
            return "sent"

    @overlay
    class SeeingPort(Port):
        __slots__ = ()

        def send(self) -> str:
            SEEN.append("")
            return super().send()

    port = become(Real(), SeeingPort, OPTIONS)
    Port.register(int)
    assert port.send() == "sent"
    assert SEEN == [""]
    assert isinstance(port, Port)
    assert isinstance(1, Port)
    assert not isinstance("", type(port))


def test_a_client_that_makes_its_like_makes_something_harmless():
    """`type(self)()` inside the client gives an instrumented object, which wrapping again does not change."""
    client = become(Client(), Seeing, OPTIONS).sibling()
    assert isinstance(client, Client)
    assert type(become(client, Seeing, OPTIONS)) is type(client)
    client.send("a")
    assert SEEN == ["a"]


def test_wrapping_twice_is_wrapping_once():
    """A second `become` changes nothing, and one `restore` undoes both."""
    client = become(become(Client(), Seeing, OPTIONS), Seeing, OPTIONS)
    client.send("a")
    assert SEEN == ["a"]
    assert type(restore(client)) is Client


def test_restoring_is_idempotent_and_keeps_state():
    """The real class comes back, what the object holds stays, and restoring a plain object does nothing."""
    client = become(Client("mine"), Seeing, OPTIONS)
    client.send("a")
    assert restore(restore(client)) is client
    client.send("b")
    assert type(client) is Client
    assert SEEN == ["a"]
    assert (client.name, client.calls) == ("mine", ["a", "b"])


def test_a_users_own_assignment_of_the_class_works():
    """Code that assigns `__class__` itself gets what it asked for."""
    client = become(Client(), Seeing, OPTIONS)
    client.__class__ = Special
    assert type(client) is Special


# Traps of the user's classes -----------------------------------------------------------------------------------------


def test_a_twin_enters_no_registry_of_the_users():
    """`__init_subclass__` of the user's class does not run for a twin, not even where it wants arguments."""

    class Plugin(Client):
        def __init_subclass__(cls, *, kind: str) -> None:
            raise AssertionError(f"a subclass {cls} was registered as {kind}")

    before = list(Client.registry)
    plugin = become(Plugin(), Seeing, OPTIONS)
    plugin.send("a")
    assert SEEN == ["a"]
    assert Client.registry == before


def test_a_users_override_runs_once():
    """The overlay lies outside a user's subclass that overrides the same method: each runs once."""
    client = become(Special(), Seeing, OPTIONS)
    client.send("a")
    assert SEEN == ["a"]
    assert client.calls == ["special", "a"]
    assert client.__class__ is Special


def test_a_client_that_locks_its_attributes_is_wrapped():
    """A `__setattr__` that refuses everything does not see the class change, in either direction."""

    class Locked(Client):
        def __setattr__(self, name: str, value: object) -> None:
            if hasattr(self, "calls"):
                raise AttributeError(f"{name} is locked")
            super().__setattr__(name, value)

    client = become(Locked(), Seeing, OPTIONS)
    client.send("a")
    assert SEEN == ["a"]
    with pytest.raises(AttributeError, match="name is locked"):
        client.name = "other"
    assert type(restore(client)) is Locked


def test_a_client_without_a_dictionary_is_wrapped():
    """Objects with `__slots__` and no room for attributes become twins as well, subclasses with more slots too."""

    class More(Slotted):
        __slots__ = ("more",)

    for client in (Slotted("a"), More("a")):
        assert become(client, SeeingSlotted, OPTIONS).shout() == "A"
        assert not hasattr(client, "__dict__")
        restore(client).shout()
    assert SEEN == ["a", "a"]


def test_classes_made_at_run_time_are_freed():
    """Twins of classes that are made per client do not keep those classes alive."""
    gone = []
    for _ in range(50):
        made = type("Made", (Client,), {})
        client = become(made(), Seeing, OPTIONS)
        client.send("a")
        gone.append(weakref.ref(made))
    Client.registry[:] = [cls for cls in Client.registry if cls.__name__ != "Made"]
    del made, client
    gc.collect()
    assert len(SEEN) == 50
    assert [ref() for ref in gone if ref() is not None] == []


def test_one_class_has_one_twin():
    """Instances of one class with the same options share a twin, importable or made at run time."""
    made = type("Made", (Client,), {})
    for cls in (Client, made):
        first, second = (become(cls(), Seeing, OPTIONS) for _ in range(2))
        assert type(first) is type(second)
    Client.registry.remove(made)


# Traps of other tools ------------------------------------------------------------------------------------------------


def test_a_mock_stays_a_mock():
    """A mock with the client's spec is left alone: no real code runs before it, and `wrap` returns it."""
    double = mock.Mock(spec=Client)
    assert isinstance(double, Client)
    assert become(double, Seeing, OPTIONS) is double
    double.send("a")
    assert SEEN == []
    double.send.assert_called_once_with("a")
    broker = mock.Mock(spec=memory.Broker)
    assert rtobs.wrap(broker) is broker
    assert not hasattr(type(broker), "__rtobs_plain__")


def test_mock_patch_works_on_a_twin():
    """A test that patches a method of a wrapped object gets its own double for as long as it asked, then ours again."""
    client = become(Client(), Seeing, OPTIONS)
    with mock.patch.object(client, "send", return_value="mocked"):
        assert client.send("a") == "mocked"
    client.send("b")
    assert SEEN == ["b"]


def test_another_tools_proxy_stays_a_proxy():
    """A transparent proxy of another tool is left alone, with what it stands for."""
    client = Client()
    proxy = wrapt.ObjectProxy(client)
    assert become(proxy, Seeing, OPTIONS) is proxy
    assert type(client) is Client
    assert type(proxy) is wrapt.ObjectProxy


def test_a_method_that_another_tool_put_on_the_instance_is_told(telemetry, caplog):
    """A function in the instance's dictionary hides the overlay; rtobs says so in one log line and names it."""
    client = Client()
    client.send = lambda text: f"other {text}"  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="rtobs"):
        become(client, Seeing, OPTIONS)
        become(restore(client), Seeing, OPTIONS)
    assert client.send("a") == "other a"
    assert [record.getMessage() for record in caplog.records] == [
        "rtobs.wrap: send of this Client is replaced on the instance by another tool; wrap it before that tool does"
    ]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_class_that_another_tool_patches_runs_once_each(monkeypatch, when):
    """A tool that patches the class, before our wrap or after it, and we each see a call once."""
    theirs: list[str] = []
    client = Client()

    def patch() -> None:
        original = Client.send

        def send(self: Client, text: str) -> str:
            theirs.append(text)
            return original(self, text)

        monkeypatch.setattr(Client, "send", send)

    if when == "before":
        patch()
    become(client, Seeing, OPTIONS)
    if when == "after":
        patch()
    assert client.send("a") == "secret a"
    assert theirs == SEEN == client.calls == ["a"]


def test_a_method_taken_before_the_wrap_is_the_old_one():
    """A bound method or partial taken after the wrap is instrumented; one taken before it works as it did."""
    client = Client()
    before = functools.partial(client.send, "before")
    become(client, Seeing, OPTIONS)
    after = functools.partial(client.send, "after")
    assert before() == "secret before"
    assert after() == "secret after"
    assert SEEN == ["after"]


def test_threads_may_call_while_others_wrap_and_restore():
    """Four threads that call a client during 2,000 wraps and restores get a right answer every time."""
    client, stop = Client(), threading.Event()
    wrong: list[object] = []
    right = [0] * 4

    def call(number: int) -> None:
        while not stop.is_set():
            try:
                if client("x") != "secret x":
                    wrong.append(number)
                right[number] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what this test looks for
                wrong.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        restore(become(client, Seeing, OPTIONS))
    while min(right) == 0:
        stop.wait(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(client.calls) == sum(right)


def test_a_c_type_stays_as_it_is_and_is_counted():
    """An object whose class cannot be changed works on, and the failure is counted once per wrap."""

    @overlay
    class SeeingTime(datetime):
        __slots__ = ()

    telemetry = support.start(strict=False)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert become(moment, SeeingTime, OPTIONS) is moment
    assert type(moment) is datetime
    with rtobs.accept("/any"):  # series exist from the first hop on
        pass
    assert telemetry.by(names.INTERNAL_ERRORS, "site") == {"wrap": 1}
    support.start(strict=True)
    with pytest.raises(TypeError, match="__class__ assignment"):
        become(moment, SeeingTime, OPTIONS)
    support.stop()


# Copies --------------------------------------------------------------------------------------------------------------


class ByName(Client):
    """A class whose objects pickle as a global name."""

    def __reduce__(self) -> str:
        return "BY_NAME"


BY_NAME = ByName()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_twin_is_the_plain_class(protocol):
    """Pickled by any protocol, a wrapped object comes back as its own class with its state."""
    client = become(Client("mine"), Seeing, OPTIONS)
    found = pickle.loads(pickle.dumps(client, protocol))  # noqa: S301 - our own bytes
    assert type(found) is Client
    assert found.name == "mine"
    become(BY_NAME, Seeing, OPTIONS)
    assert pickle.loads(pickle.dumps(BY_NAME, protocol)) is BY_NAME  # noqa: S301 - our own bytes
    restore(BY_NAME)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copied_twin_is_the_plain_class(how):
    """A copy, shallow or deep, of a wrapped object is as if nobody had wrapped it."""
    client = become(Client("mine"), Seeing, OPTIONS)
    found = how(client)
    assert type(found) is Client
    assert found.name == "mine"
    found.send("a")
    assert SEEN == []
    slotted = how(become(Slotted("b"), SeeingSlotted, OPTIONS))
    assert (type(slotted), slotted.text) == (Slotted, "b")


# Options -------------------------------------------------------------------------------------------------------------


def test_options_ride_on_the_twin():
    """Each wrapped object carries its own options and no attribute more; an unwrapped one has the defaults."""
    strict = Options(trust="ignore", carrier=False)
    first, second = become(Client(), Seeing, OPTIONS), become(Client(), Seeing, strict)
    assert options_of(first) == OPTIONS
    assert options_of(second) == strict
    assert options_of(Client()) == Options()
    assert vars(first).keys() == vars(Client()).keys()


def test_the_first_options_stay():
    """Wrapping again with other options changes nothing until the object is restored."""
    client = become(Client(), Seeing, OPTIONS)
    become(client, Seeing, Options(trust="ignore"))
    assert options_of(client) == OPTIONS
    become(restore(client), Seeing, Options(trust="ignore"))
    assert options_of(client).trust == "ignore"


def test_destinations_have_a_budget(monkeypatch):
    """256 destinations are told apart; from the 257th on the name is left out, and known ones keep theirs."""
    monkeypatch.setattr(_twin, "_destinations", set())
    found = [OPTIONS.at(f"queue-{number}", manual=False).destination for number in range(300)]
    assert found[:256] == [f"queue-{number}" for number in range(256)]
    assert set(found[256:]) == {""}
    assert OPTIONS.at("queue-7") == dataclasses.replace(OPTIONS, destination="queue-7")
    assert OPTIONS.at("queue-299", manual=False) == dataclasses.replace(OPTIONS, manual=False)
