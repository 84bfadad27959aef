"""Client libraries: one leaf each, found by the class of the object that is wrapped.

``wrap`` and the registry are here; leaves never import one another. Must not know metrics, exporters or the
environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast, get_args

from rtobs._hop.watching import Role, Watch
from rtobs._journey.message import Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import (
    _constructors,
    asgi,
    wsgi,
)  # they import no client, so their `Middleware`s are there at once
from rtobs.integrations._twin import Options, options_of, restore

C = TypeVar("C")

_LEAVES = {
    "aio_pika": "rtobs.integrations.aio_pika",
    "aiomqtt": "rtobs.integrations.aiomqtt",
    "aioboto3": "rtobs.integrations.aiobotocore",
    "aiobotocore": "rtobs.integrations.aiobotocore",
    "aiohttp": "rtobs.integrations.aiohttp",
    "boto3": "rtobs.integrations.botocore",
    "botocore": "rtobs.integrations.botocore",
    "celery": "rtobs.integrations.celery",
    "faststream": "rtobs.integrations.faststream",
    "httpx": "rtobs.integrations.httpx",
    "aiokafka": "rtobs.integrations.aiokafka",
    "confluent_kafka": "rtobs.integrations.confluent_kafka",
    "cimpl": "rtobs.integrations.confluent_kafka",  # what its C classes say
    "kafka": "rtobs.integrations.kafka",
    "redis": "rtobs.integrations.redis",
    "nats": "rtobs.integrations.nats",
    "paho": "rtobs.integrations.paho",
    "websockets": "rtobs.integrations.websockets",
    "requests": "rtobs.integrations.requests",
    "pika": "rtobs.integrations.pika",
    "starlette": "rtobs.integrations.asgi",
    "fastapi": "rtobs.integrations.asgi",
    "flask": "rtobs.integrations.wsgi",
    "django": "rtobs.integrations.django",
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
    for cls in (*type(client).__mro__, *client.__class__.__mro__):  # a mock or proxy of a client says its class only
        for name in (cls.__module__, cls.__module__.partition(".")[0]):
            found = _LEAVES.get(name)
            if found is not None:
                return cast("Leaf", import_module(found))
    return cast("Leaf", asgi) if asgi.is_application(client) else None


def wrap(
    client: C, *, trust: Trust | None = None, carrier: bool = True, envelope: bool = False,
    correlation: bool = False, dead_letter: str | None = None, max_deliveries: int | None = None,
) -> C:  # fmt: skip
    """Instrument one client instance and everything it creates; the same object comes back.

    Two exceptions, so use what is returned: an ASGI application that is no Starlette comes back inside a
    ``Middleware``, and for a producer or consumer of confluent-kafka's own C classes comes what stands for it.
    No class is patched and other instances are untouched. Wrapping twice is wrapping once; ``unwrap`` undoes it.

    Args:
        client: a connection, channel, client or app of a supported library.
        trust: what to believe of the headers of messages it brings; without it a broker of one's own is ``trusted``
            and an HTTP caller only gets a ``link``.
        carrier: False writes nothing into messages.
        envelope: True puts the journey into the payload where a transport has no headers.
        correlation: True lets the broker's own correlation id name a journey that has no name yet.
        dead_letter: name of the dead-letter queue of what it consumes; empty: there is none.
        max_deliveries: deliveries after which the broker gives a message up.

    Raises:
        UnsupportedError: no leaf knows this class.
        ConfigError: an option of the wrong type.
    """
    _check("rtobs.wrap", trust, dead_letter, max_deliveries)
    leaf = _leaf_of(client)
    if leaf is None:
        known = ", ".join(sorted(_LEAVES))
        raise UnsupportedError(
            f"rtobs.wrap: no leaf knows {type(client).__module__}.{type(client).__qualname__}; "
            f"known libraries: {known}. Use rtobs.publish/consume with headers= instead, or write a leaf"
        )
    usual: Trust = getattr(leaf, "TRUST", "trusted")
    options = Options(
        trust=trust or usual, carrier=carrier, envelope=envelope, correlation=correlation,
        dead_letter=dead_letter, max_deliveries=max_deliveries or 0,
    )  # fmt: skip
    wrapped: C = leaf.wrap(client, options)
    return wrapped


def _check(asked: str, trust: Trust | None, dead_letter: str | None, max_deliveries: int | None) -> None:
    if trust is not None and trust not in get_args(Trust):
        raise ConfigError(f"{asked}: trust must be one of 'trusted', 'link', 'ignore'; got {trust!r}")
    if max_deliveries is not None and (type(max_deliveries) is not int or max_deliveries < 1):
        raise ConfigError(f"{asked}: max_deliveries must be a positive int; got {max_deliveries!r}")
    if dead_letter is not None and not isinstance(dead_letter, str):
        raise ConfigError(f"{asked}: dead_letter must be a queue's name; got {dead_letter!r}")


def unwrap(client: C) -> C:
    """Give one instance its own class back; what it created before keeps its wrapping until unwrapped itself."""
    if isinstance(client, asgi.Middleware | wsgi.Middleware):
        return cast("C", restore(client.app))
    return restore(client)


class Wrapping(TypedDict, total=False):
    """What ``wrap`` and ``instrument`` may be asked for; see `wrap`."""

    trust: Trust | None
    carrier: bool
    envelope: bool
    correlation: bool
    dead_letter: str | None
    max_deliveries: int | None


_instrumented: dict[str, Callable[[Any], None]] = {}


def instrumentable() -> dict[str, tuple[str, ...]]:
    """Return the names that `instrument` takes, each with the packages whose clients it meets."""
    found: dict[str, tuple[str, ...]] = {}
    for package, leaf in _LEAVES.items():
        if package != leaf:  # a leaf that is its own client is wrapped by whoever made it
            name = leaf.rpartition(".")[2]
            found[name] = (*found.get(name, ()), package)
    return dict(sorted(found.items()))


def leaf_of(name: str) -> str:
    """Return the module of one that `instrumentable` names."""
    return _LEAVES[instrumentable()[name][0]]


def instrument(*clients: str, **options: Unpack[Wrapping]) -> None:
    """Wrap every client that is made from now on, by whoever: no line of the application has to change.

    Call it before the clients are made; those made earlier stay as they are, and so do libraries that are not
    installed. Nothing of a library is replaced but its classes' constructors; `uninstrument` puts them back. For a
    client that was named before, the later options hold.

    Args:
        clients: names of leaves such as ``"aio_pika"`` or ``"redis"``; none: all of them.
        options: as those of `wrap`, for the clients named here. Django takes none: it gets the middleware.

    Raises:
        ConfigError: an unknown name, or an option of the wrong kind.
    """
    unknown = sorted(options.keys() - Wrapping.__annotations__.keys())
    if unknown:
        raise ConfigError(f"rtobs.integrations.instrument: there is no option {unknown[0]!r}; see rtobs.wrap")
    _check(
        "rtobs.integrations.instrument",
        options.get("trust"), options.get("dead_letter"), options.get("max_deliveries"),
    )  # fmt: skip
    for name, packages in _named("instrument", clients).items():
        uninstrument(name)
        _instrumented[name] = made = partial(_wrap_made, options)
        _constructors.meet(leaf_of(name), packages, made)


def uninstrument(*clients: str) -> None:
    """Undo `instrument` for the clients named, or for all; those that it wrapped stay so until `unwrap`."""
    for name in _named("uninstrument", clients):
        made = _instrumented.pop(name, None)
        if made is not None:
            _constructors.leave(leaf_of(name), made)


def _wrap_made(options: Wrapping, client: Any) -> None:
    try:
        wrap(client, **options)
    except UnsupportedError:  # such as a client of another service of AWS
        return


def _named(asked: str, clients: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    known = instrumentable()
    wrong = [name for name in clients if name not in known]
    if wrong:
        raise ConfigError(f"rtobs.integrations.{asked}: no client is called {wrong[0]!r}; known: {', '.join(known)}")
    return {name: known[name] for name in clients or known}


def hands_over(callback: C) -> C:
    """Mark a callback that only hands its messages over to a worker, by a queue for instance: it gets no consume hop.

    The hop is the worker's, ``with rtobs.consume(name, message)``, and its lag includes the wait in that queue. Until
    then the message is remembered, 10,000 of them at most.

    Args:
        callback: a function, given to a wrapped client after that; the same comes back.
    """
    callback.__rtobs_consume__ = True  # type: ignore[attr-defined]  # what opens a hop of its own carries the same
    return callback


def watch(
    client: object, destinations: Iterable[str] | Mapping[str, Role], *, interval: float = 15.0,
    slots: int | None = None,
) -> Watch:  # fmt: skip
    """Ask a broker again and again how many messages wait and how old the oldest is, and measure the event loop's lag.

    An asyncio client is asked on the running event loop, so call it there; any other on a thread of its own. Nothing
    is raised after that: a question that fails is counted, told once, and asked more seldom until it is answered.

    Args:
        client: a client, wrapped or not, of a supported broker.
        destinations: what to ask for: RabbitMQ queues, Redis streams and lists, NATS ``stream`` or ``stream/consumer``,
            SQS queues by name or URL, Celery queues, Kafka topics, of which waits what a consumer's group has yet to
            commit.
            A mapping says what each is for: ``main``, ``retry`` or ``dead``; otherwise all are ``main``, save the
            ``dead_letter`` that `wrap` was told.
        interval: seconds between two questions, +-20 %; each has 5 s to be answered.
        slots: messages that this process may handle at once for each main destination, where the client does not know.

    Returns:
        What has ``stop()``; ``rtobs.shutdown()`` stops it too.

    Raises:
        UnsupportedError: no leaf knows how to ask this client.
        ConfigError: an argument is wrong, or an asyncio client outside its event loop.
    """
    if isinstance(destinations, str | bytes):
        raise ConfigError(f"rtobs.integrations.watch: destinations is a collection of names; write [{destinations!r}]")
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < float("inf"):
        raise ConfigError(f"rtobs.integrations.watch: interval must be seconds greater than 0; got {interval!r}")
    if slots is not None and (type(slots) is not int or slots < 1):
        raise ConfigError(f"rtobs.integrations.watch: slots must be a positive int; got {slots!r}")
    queues = _roles(client, destinations)
    leaf: Any = _leaf_of(client)
    if not hasattr(leaf, "depths"):
        raise UnsupportedError(
            f"rtobs.integrations.watch: nothing is known about queues of "
            f"{type(client).__module__}.{type(client).__qualname__}; give a client of RabbitMQ, Redis, NATS, SQS or "
            "Kafka, a Celery application, or a Broker of rtobs.integrations.memory"
        )
    found = Watch(leaf.depths(client), queues, interval, slots, leaf.strains(client))
    try:
        found.start()
    except RuntimeError as error:
        raise ConfigError(
            "rtobs.integrations.watch: this client works on an event loop; call watch in a coroutine on that loop"
        ) from error
    return found


def _roles(client: object, destinations: Iterable[str] | Mapping[str, Role]) -> dict[str, Role]:
    found: dict[str, Role] = {}
    for name in destinations:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"rtobs.integrations.watch: destinations must be names; got {name!r}")
        usual: Role = "dead" if name == options_of(client).dead_letter else "main"
        found[name] = destinations[name] if isinstance(destinations, Mapping) else usual
        if found[name] not in get_args(Role):
            raise ConfigError(
                f"rtobs.integrations.watch: {name!r} must be one of 'main', 'retry', 'dead'; got {found[name]!r}"
            )
    if not found:
        raise ConfigError("rtobs.integrations.watch: destinations is empty; name what to ask for")
    return found
