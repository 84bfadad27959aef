"""redis-py: Streams, Pub/Sub and lists through one wrapped client, sync or asyncio, also in pipelines.

    client = rtobs.wrap(redis.asyncio.Redis())

A stream's entry carries the journey in a field of its own. Pub/Sub and lists have no room for it: with
``wrap(client, envelope=True)`` their payloads travel in an envelope, which every wrapped client takes off again. Every
other command passes through. See ``_redis_calls`` and ``_redis_commands``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.client import PubSub as AsyncPubSub
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.client import Pipeline, PubSub
from redis.cluster import ClusterPipeline

from rtobs._hop import leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message, Trust
from rtobs.errors import ConfigError, UnsupportedError
from rtobs.integrations import _redis_calls as calls
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._redis_commands import COMMANDS, Entry, Reader, encoder, is_a, moment, text
from rtobs.integrations._redis_depths import depths, strains
from rtobs.integrations._redis_facts import PUBLISHED, SYSTEM, entry_facts, opened, published_facts
from rtobs.integrations._redis_pubsub import instrument
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SUPPORTS = "redis>=8.1,<9"
FACTORIES = ("redis.Redis", "redis.asyncio.Redis", "redis.RedisCluster", "redis.asyncio.RedisCluster")
COVERAGE = Coverage(
    client="redis-py (Redis)",
    produce="`XADD`, `PUBLISH`, lists; pipelines",
    consume="stream reads and claims, Pub/Sub handlers, pops",
    carrier="one field of an entry; else an opt-in envelope",
    attempt="the group's delivery count",
    lag="the entry's id",
    depth="`XLEN`, `XINFO`, `LLEN`",
    missing="sends in Lua; clusters of several nodes; client-side caching",
)

Client = TypeVar("Client")

_MESSAGE = frozenset({"type", "pattern", "channel", "data"})
_TRUSTS: tuple[Trust, ...] = ("trusted", "link", "ignore")
_elsewhere = Options()
"""For messages that no wrapped client has handed out: no more trust than the least that ``wrap`` was told to have."""


def describe(native: object) -> Message | None:
    """Return what is known of a native value; None if it is no message of a wrapped client.

    An entry ``(id, fields)`` of a stream, its fields alone, a Pub/Sub message, an item of a list or ``[key, item]``: as
    they were handed out. From elsewhere, an entry and a Pub/Sub message are known by their exact shape.
    """
    value: Any = native
    kind = type(native)
    pair = kind in (tuple, list) and len(value) == 2  # noqa: PLR2004  as the docstring says
    found = leaf.known(value[1] if pair else value)
    if found is not None:
        return found if found.system == SYSTEM else None
    if kind is dict and value.keys() == _MESSAGE and value["type"] in PUBLISHED:
        return published_facts(value, _elsewhere, opened(value)[1])
    if kind is tuple and pair and is_a(value[0], str, bytes) and is_a(value[1], dict) and moment(text(value[0])):
        return entry_facts(Entry("", value[0], value[1]), _elsewhere, Reader())
    return None


# Clients -------------------------------------------------------------------------------------------------------------


@overlay
class _Redis(redis.Redis):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        return calls.run(self, command, execute, args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return become(untyped.pipeline(*args, **options), _Pipeline, options_of(self))

    def pubsub(self, **options: Any) -> Any:
        untyped: Any = super()
        pubsub = untyped.pubsub(**options)
        return guarded(instrument, pubsub, pubsub, options_of(self))

    def client(self) -> Any:
        untyped: Any = super()
        return become(untyped.client(), _Redis, options_of(self))


@overlay
class _AsyncRedis(redis.asyncio.Redis):
    __slots__ = ()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return await execute(*args, **options)
        return await calls.run_async(self, command, execute, args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return become(untyped.pipeline(*args, **options), _AsyncPipeline, options_of(self))

    def pubsub(self, **options: Any) -> Any:
        untyped: Any = super()
        pubsub = untyped.pubsub(**options)
        return guarded(instrument, pubsub, pubsub, options_of(self))

    def client(self) -> Any:
        untyped: Any = super()
        return become(untyped.client(), _AsyncRedis, options_of(self))


@overlay
class _Cluster(redis.RedisCluster):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        return calls.run(self, command, execute, args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return become(untyped.pipeline(*args, **options), _ClusterPipeline, options_of(self))

    def pubsub(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        pubsub = untyped.pubsub(*args, **options)
        return guarded(instrument, pubsub, pubsub, options_of(self))


@overlay
class _AsyncCluster(redis.asyncio.RedisCluster):
    __slots__ = ()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return await execute(*args, **options)
        return await calls.run_async(self, command, execute, args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        return become(untyped.pipeline(*args, **options), _AsyncClusterPipeline, options_of(self))

    def pubsub(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        pubsub = untyped.pubsub(*args, **options)
        return guarded(instrument, pubsub, pubsub, options_of(self))


# Pipelines: what is queued leaves at `execute`; after WATCH a command runs at once ------------------------------------


@overlay
class _Pipeline(Pipeline):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        if guarded(_is_watching, False, self):  # noqa: FBT003  it is queued, as most are
            return calls.run(self, command, execute, args, options)
        return execute(*calls.queued(self, command, args), **options)

    def execute(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        with calls.Batch(self, _stack) as batch:
            return batch.results(untyped.execute(*args, **options))

    def annotate_exception(self, exception: Any, number: Any, command: Any) -> None:
        untyped: Any = super()
        untyped.annotate_exception(exception, number, calls.plain(command))


@overlay
class _AsyncPipeline(AsyncPipeline):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        if guarded(_is_watching, False, self):  # noqa: FBT003  as above
            return calls.run_async(self, command, execute, args, options)
        return execute(*calls.queued(self, command, args), **options)

    async def execute(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        with calls.Batch(self, _stack) as batch:
            return batch.results(await untyped.execute(*args, **options))

    def annotate_exception(self, exception: Any, number: Any, command: Any) -> None:
        untyped: Any = super()
        untyped.annotate_exception(exception, number, calls.plain(command))


def _is_watching(pipeline: Pipeline | AsyncPipeline) -> bool:
    return bool(pipeline.watching and not pipeline.explicit_transaction)


def _stack(pipeline: Any) -> list[Any]:
    return pipeline.command_stack  # type: ignore[no-any-return]


# A cluster's pipelines keep their queue, and whether they watch, in a strategy object; only its class has names for it.


@overlay
class _ClusterPipeline(ClusterPipeline):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        if guarded(_runs_at_once, False, self):  # noqa: FBT003  it is queued, as most are
            return calls.run(self, command, execute, args, options)
        return execute(*calls.queued(self, command, args), **options)

    def execute(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        with calls.Batch(self, _command_queue) as batch:
            return batch.results(untyped.execute(*args, **options))


@overlay
class _AsyncClusterPipeline(AsyncClusterPipeline):
    __slots__ = ()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        command, execute = guarded(COMMANDS.get, None, args[0]), untyped.execute_command
        if command is None:
            return execute(*args, **options)
        if guarded(_runs_at_once, False, self):  # noqa: FBT003  it is queued, as most are
            return calls.run_async(self, command, execute, args, options)
        return execute(*calls.queued(self, command, args), **options)

    async def execute(self, *args: Any, **options: Any) -> Any:
        untyped: Any = super()
        with calls.Batch(self, _command_queue) as batch:
            return batch.results(await untyped.execute(*args, **options))


def _strategy(pipeline: ClusterPipeline | AsyncClusterPipeline) -> Any:
    return pipeline._execution_strategy  # noqa: SLF001  as above


def _command_queue(pipeline: Any) -> list[Any]:
    return _strategy(pipeline)._command_queue  # type: ignore[no-any-return]  # noqa: SLF001  as above


def _runs_at_once(pipeline: ClusterPipeline | AsyncClusterPipeline) -> bool:
    strategy = _strategy(pipeline)
    return getattr(strategy, "_watching", False) and not getattr(strategy, "_explicit_transaction", False)


_OVERLAYS: tuple[type, ...] = (  # the first that fits: a pipeline is a client too
    _Pipeline, _AsyncPipeline, _Redis, _AsyncRedis, _ClusterPipeline, _AsyncClusterPipeline, _Cluster, _AsyncCluster,
)  # fmt: skip


def wrap(client: Client, options: Options) -> Client:
    """Instrument one client, pipeline or PubSub object, and what it creates from now on.

    Raises:
        UnsupportedError: an object that neither sends nor brings messages itself.
        ConfigError: an envelope for a client whose encoding does not contain ASCII.
    """
    global _elsewhere  # noqa: PLW0603  it holds for the process
    native: Any = client
    over = next((over for over in _OVERLAYS if isinstance(native, over.__bases__[0])), None)
    if over is None and not isinstance(native, PubSub | AsyncPubSub):
        raise UnsupportedError(
            f"rtobs.wrap: a redis {type(native).__qualname__} sends no messages itself; wrap the client it belongs to"
        )
    if options.envelope and "rtobs".encode(encoding := encoder(native).encoding) != b"rtobs":
        raise ConfigError(f"rtobs.wrap: envelope=True needs a client whose encoding contains ASCII; got {encoding!r}")
    if _TRUSTS.index(options.trust) > _TRUSTS.index(_elsewhere.trust):
        _elsewhere = Options(trust=options.trust)
    for kind in (tuple, list, dict, bytes, str):
        runtime.share(kind, describe)
    return instrument(native, options) if over is None else become(native, over, options)  # type: ignore[no-any-return]
