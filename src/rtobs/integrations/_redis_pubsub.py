"""Redis Pub/Sub: messages by handler, one by one and by iterator, sync and asyncio, of one server and of a cluster.

A handler gets a consume hop. Any other message is handed out: a hop takes it, or none. Must not know commands.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from redis.asyncio.client import PubSub as AsyncPubSub
from redis.asyncio.cluster import ClusterPubSub as AsyncClusterPubSub
from redis.client import PubSub
from redis.typing import Subscription

from rtobs._hop import handler, leaf
from rtobs._journey.message import Message
from rtobs.integrations._redis_commands import is_a, text
from rtobs.integrations._redis_facts import PUBLISHED, opened, published_facts
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

_NOTICES = ("__key", "__redis__:")
"""Channels on which the server itself speaks: keyspace and keyevent notifications, invalidations."""


# Handlers ------------------------------------------------------------------------------------------------------------


def _handlers(pubsub: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a subscribe method was given, with a consume hop round each handler."""
    options = options_of(pubsub)

    def positional(arg: Any) -> Any:
        if is_a(arg, list, tuple):
            return [positional(each) for each in arg]
        if isinstance(arg, Subscription) and arg.handler is not None:
            return Subscription(arg.name, _around(options, arg.name, arg.handler))
        return arg

    return tuple(map(positional, args)), {
        name: _around(options, name, value) if callable(value) else value for name, value in named.items()
    }


def _around(options: Options, name: object, callback: Any) -> Any:
    if text(name).startswith(_NOTICES):
        return callback
    return handler.around(callback, functools.partial(_arrived, options), awaits=False)


def _arrived(options: Options, message: dict[str, Any]) -> Message | None:
    """Take the envelope off a message that the client has just made, and hand it out."""
    # Twice, for an envelope that is not taken off reaches the host.
    found = guarded(opened, None, message) or guarded(opened, None, message)
    message["data"], headers = found or (message["data"], {})
    facts = guarded(published_facts, None, message, options, headers)
    if facts is not None:
        leaf.handed_out(facts)
    return facts


# One by one and iterators --------------------------------------------------------------------------------------------


def _handled(pubsub: Any, message: Any) -> Any:
    """Pass on what ``handle_message`` returned: a message for its caller, a notice, or nothing."""
    guarded(_hand_out, None, options_of(pubsub), message)
    return message


def _hand_out(options: Options, message: Any) -> None:
    if is_a(message, dict) and message["type"] in PUBLISHED and not text(message["channel"]).startswith(_NOTICES):
        _arrived(options, message)


def _received(message: Any, begun_ns: int, *, span: bool = True) -> Message | None:
    facts = leaf.known(message) if message is not None else None
    if facts is not None:
        leaf.receive([facts], begun_ns, span=span)
    return facts


def _fetched(pubsub: Any, message: Any, begun_ns: int) -> Any:
    guarded(_note, None, options_of(pubsub), message, begun_ns)
    return message


def _note(options: Options, message: Any, begun_ns: int) -> None:
    if leaf.known(message) is None:  # a cluster's sharded ones come through a plain PubSub of each node
        _hand_out(options, message)
    _received(message, begun_ns)


def _iterated(message: Any, begun_ns: int) -> Message | None:
    return _received(message, begun_ns, span=False)


def _let_go(facts: Message | None) -> None:
    """Record the lag of a message that an iterator yielded, unless a hop has taken it."""
    if facts is not None:
        leaf.passed_by(facts)


def _each(messages: Any) -> Iterator[Any]:
    """Yield what an iterator brings, timed."""
    try:
        while True:
            begun = leaf.now_ns()
            message = next(messages, None)
            if message is None:
                return
            facts = guarded(_iterated, None, message, begun)
            try:
                yield message
            finally:
                guarded(_let_go, None, facts)
    finally:
        messages.close()


async def _each_async(messages: Any) -> AsyncIterator[Any]:
    try:
        while True:
            begun = leaf.now_ns()
            message = await anext(messages, None)
            if message is None:
                return
            facts = guarded(_iterated, None, message, begun)
            try:
                yield message
            finally:
                guarded(_let_go, None, facts)
    finally:
        await messages.aclose()


# The client's classes ------------------------------------------------------------------------------------------------


@overlay
class _PubSub(PubSub):  # a cluster's too, which is a subclass
    __slots__ = ()

    def subscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return untyped.subscribe(*args, **handlers)

    def psubscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return untyped.psubscribe(*args, **handlers)

    def ssubscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return untyped.ssubscribe(*args, **handlers)

    def handle_message(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return _handled(self, untyped.handle_message(*args, **options))

    def get_message(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        untyped: Any = super()
        return _fetched(self, untyped.get_message(*args, **options), begun)

    def get_sharded_message(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        untyped: Any = super()
        return _fetched(self, untyped.get_sharded_message(*args, **options), begun)

    def listen(self) -> Any:
        untyped: Any = super()
        return _each(untyped.listen())


@overlay
class _AsyncPubSub(AsyncPubSub):
    __slots__ = ()

    async def subscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return await untyped.subscribe(*args, **handlers)

    async def psubscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return await untyped.psubscribe(*args, **handlers)

    async def ssubscribe(self, *args: Any, **handlers: Any) -> Any:
        args, handlers = guarded(_handlers, (args, handlers), self, args, handlers)
        untyped: Any = super()
        return await untyped.ssubscribe(*args, **handlers)

    async def handle_message(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return _handled(self, await untyped.handle_message(*args, **options))

    async def get_message(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        untyped: Any = super()
        return _fetched(self, await untyped.get_message(*args, **options), begun)

    def listen(self) -> Any:
        untyped: Any = super()
        return _each_async(untyped.listen())


@overlay
class _AsyncClusterPubSub(AsyncClusterPubSub):  # over the one above
    __slots__ = ()

    async def get_sharded_message(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        untyped: Any = super()
        return _fetched(self, await untyped.get_sharded_message(*args, **options), begun)


def instrument(pubsub: Any, options: Options) -> Any:
    """Instrument one PubSub object of any kind, handlers that it has included."""
    if is_a(pubsub, PubSub):
        become(pubsub, _PubSub, options)
    else:
        become(pubsub, _AsyncPubSub, options)
        become(pubsub, _AsyncClusterPubSub, options)
    tables: list[dict[Any, Any]] = [pubsub.channels, pubsub.patterns, pubsub.shard_channels]
    for handlers in tables:
        for name, callback in handlers.items():
            if callback is not None:
                handlers[name] = _around(options, name, callback)
    return pubsub
