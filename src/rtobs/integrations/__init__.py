"""Client libraries: one leaf each, found by the class of the object that is wrapped.

``wrap`` and the registry are here; leaves never import one another. Must not know metrics, exporters or the
environment.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, TypeVar, get_args

from rtobs._journey.message import Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations._twin import Options, restore

C = TypeVar("C")

_LEAVES = {
    "aio_pika": "rtobs.integrations.aio_pika",
    "httpx": "rtobs.integrations.httpx",
    "starlette": "rtobs.integrations.asgi",
    "fastapi": "rtobs.integrations.asgi",
    "rtobs.integrations.memory": "rtobs.integrations.memory",
}
"""Module that a client's class is from (its whole name or its first part) -> leaf."""


class Leaf(Protocol):
    """What every leaf module has; see ``docs/writing-a-leaf.md``."""

    SYSTEM: str
    SUPPORTS: str

    def wrap(self, client: Any, options: Options, /) -> Any:
        """Instrument one instance and what it will create; return it."""


def register(module: str, leaf: str) -> None:
    """Let ``wrap`` find *leaf* (a module's dotted name) for classes that come from *module*."""
    _LEAVES[module] = leaf


def _leaf_of(client: object) -> Leaf | None:
    for cls in type(client).__mro__:
        for name in (cls.__module__, cls.__module__.partition(".")[0]):
            found = _LEAVES.get(name)
            if found is not None:
                return import_module(found)
    return None


def wrap(
    client: C, *, trust: Trust | None = None, carrier: bool = True, envelope: bool = False, correlation: bool = False,
    dead_letter: str | None = None, max_deliveries: int | None = None,
) -> C:  # fmt: skip
    """Instrument one client instance and everything it creates; the same object comes back.

    No class is patched and other instances are untouched. Wrapping twice is wrapping once; ``unwrap`` undoes it.

    Args:
        client: a connection, channel, client or app of a supported library.
        trust: what to believe of the headers of messages it brings; a broker of one's own is ``trusted``.
        carrier: False writes nothing into messages.
        envelope: True puts the journey into the payload where a transport has no headers.
        correlation: True lets the broker's own correlation id name a journey that has no name yet.
        dead_letter: name of the dead-letter queue of what it consumes; empty: there is none.
        max_deliveries: deliveries after which the broker gives a message up.

    Raises:
        UnsupportedError: no leaf knows this class.
        ConfigError: an option of the wrong type.
    """
    if trust is not None and trust not in get_args(Trust):
        raise ConfigError(f"rtobs.wrap: trust must be one of 'trusted', 'link', 'ignore'; got {trust!r}")
    if max_deliveries is not None and (type(max_deliveries) is not int or max_deliveries < 1):
        raise ConfigError(f"rtobs.wrap: max_deliveries must be a positive int; got {max_deliveries!r}")
    if dead_letter is not None and not isinstance(dead_letter, str):
        raise ConfigError(f"rtobs.wrap: dead_letter must be a queue's name; got {dead_letter!r}")
    leaf = _leaf_of(client)
    if leaf is None:
        known = ", ".join(sorted(_LEAVES))
        raise UnsupportedError(
            f"rtobs.wrap: no leaf knows {type(client).__module__}.{type(client).__qualname__}; known libraries: {known}. "
            "Use rtobs.publish/consume with headers= instead, or write a leaf"
        )
    options = Options(
        trust=trust or "trusted", carrier=carrier, envelope=envelope, correlation=correlation, dead_letter=dead_letter,
        max_deliveries=max_deliveries or 0,
    )  # fmt: skip
    wrapped: C = leaf.wrap(client, options)
    return wrapped


def unwrap(client: C) -> C:
    """Give one instance its own class back; what it created before keeps its wrapping until unwrapped itself."""
    return restore(client)
