"""How a twin gets along with users' classes and with other tools that touch the same client."""

from __future__ import annotations

import functools
import gc
import logging
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
from rtobs.integrations import memory
from rtobs.integrations._twin import become, overlay, restore
from tests.integrations.twins import OPTIONS, SEEN, Client, Seeing, SeeingSlotted, Slotted, Special
from tests.support import telemetry as support


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Nothing is seen yet, and what fails while an object is wrapped is raised."""
    SEEN.clear()
    monkeypatch.setattr(_guard, "strict", True)


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

    def note(wrapped: Any, _client: Client, args: tuple[str], options: dict[str, Any]) -> str:
        theirs.append(args[0])
        return wrapped(*args, **options)

    def patch() -> None:
        monkeypatch.setattr(Client, "send", wrapt.FunctionWrapper(Client.send, note))

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
