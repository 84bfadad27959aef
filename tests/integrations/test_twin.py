"""How an instance gets our methods, and what stays as it was."""

from __future__ import annotations

import abc
import copy
import dataclasses
import pickle

import pytest

from rtobs import _guard
from rtobs.integrations import _twin
from rtobs.integrations._twin import Options, become, options_of, overlay, restore
from tests.integrations.twins import (
    OPTIONS,
    SEEN,
    Client,
    Record,
    Seeing,
    SeeingRecord,
    SeeingSlotted,
    Slotted,
    Special,
)


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Nothing is seen yet, and what fails while an object is wrapped is raised."""
    SEEN.clear()
    monkeypatch.setattr(_guard, "strict", True)


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
