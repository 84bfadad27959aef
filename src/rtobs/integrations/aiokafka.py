"""aiokafka: producers, consumers and batches, through one line each; see ``_kafka`` for what all Kafka clients share.

    producer = rtobs.wrap(AIOKafkaProducer(bootstrap_servers="localhost"))

A record is handled in a hop that its handler opens: Kafka has no callbacks, and a commit settles all before an offset.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false, reportMissingTypeStubs=false
# (the client has hardly any annotations)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import ConsumerRecord

from rtobs._hop import confirm, leaf
from rtobs._hop.batch import Draft, Sending
from rtobs._hop.runtime import runtime
from rtobs._hop.watching import Answer, Ask
from rtobs._journey.message import Message
from rtobs.errors import UnsupportedError
from rtobs.integrations import _kafka
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._kafka import SYSTEM
from rtobs.integrations._kafka_depths import Partition, depth, strains
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SUPPORTS = "aiokafka>=0.14,<0.15"
FACTORIES = ("aiokafka.AIOKafkaProducer", "aiokafka.AIOKafkaConsumer")
COVERAGE = Coverage(
    client="aiokafka (Kafka)",
    produce="`send`, batches",
    consume="`getone`, `getmany`, iterators",
    carrier="one record header each",
    attempt="none: Kafka counts no deliveries",
    lag="the record's timestamp",
    depth="committed offsets against the end of the log",
    missing="share groups; Kafka itself (tested on a mock cluster)",
)

Client = TypeVar("Client", bound=AIOKafkaProducer | AIOKafkaConsumer)

_DRAFTS = "_rtobs"
"""Where a batch keeps the hops of its messages until it is sent."""
_iterating: ContextVar[bool] = ContextVar("rtobs-aiokafka-iterating", default=False)


def describe(native: ConsumerRecord[Any, Any]) -> Message:
    """Return what one record says about itself."""
    facts = _kafka.received(
        options_of(native), native, native.topic, native.partition, native.offset, native.key, native.value,
        native.headers,
    )  # fmt: skip
    if native.timestamp > 0:
        facts.sent_ns = native.timestamp * 1_000_000
        facts.sent_clock = "broker" if native.timestamp_type else "producer"
    return facts


# Sending -------------------------------------------------------------------------------------------------------------


def _carrying(send: leaf.Send, headers: Any, room: int | None = None) -> Any:
    pairs: Any = [*headers] if isinstance(headers, tuple) else headers  # this client takes either
    found = _kafka.carrying(send, pairs, room)
    return headers if found is pairs else found


@overlay
class _Producer(AIOKafkaProducer):
    __slots__ = ()

    async def send(  # noqa: PLR0917  the client's own
        self, topic: str, value: Any = None, key: Any = None, partition: Any = None, timestamp_ms: Any = None,
        headers: Any = None, *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        plain = _kafka.own(super().send)
        facts = guarded(_kafka.sent, None, options_of(self), topic, value, key, partition)
        with confirm.ConfirmedSend(facts) as send:
            carrying = guarded(_carrying, headers, send, headers)
            try:
                future = await plain(topic, value, key, partition, timestamp_ms, carrying, *args, **options)
            except MessageSizeTooLargeError:
                if carrying is headers:
                    raise
                future = None
            if future is None:  # it is too large with our headers
                bare = guarded(_carrying, headers, send, headers, 0)
                future = await plain(topic, value, key, partition, timestamp_ms, bare, *args, **options)
            send.until(future, lambda found: _placed(send, found))
            return future

    def create_batch(self) -> Any:
        return become(super().create_batch(), _Batch, options_of(self))

    async def send_batch(self, batch: Any, topic: str, *args: Any, **options: Any) -> Any:
        drafts: list[Draft] = guarded(_drafts, [], batch)
        with Sending(drafts, topic) as sending:
            future = await super().send_batch(batch, topic, *args, **options)
            sending.until(future, lambda first: _stored(drafts, first))
            return future


def _placed(send: leaf.Send, found: Any) -> None:
    if found is not None:  # nobody says where it is that was not to be confirmed
        _kafka.stored(send, found.partition, found.offset)


@overlay
class _Batch(BatchBuilder):
    __slots__ = ()

    def append(self, *, timestamp: Any, key: Any, value: Any, headers: Any = (), **options: Any) -> Any:
        draft = guarded(_draft, None, self, value, key)
        if draft is not None:
            headers = guarded(_carrying, headers, draft, headers)
        found = super().append(timestamp=timestamp, key=key, value=value, headers=headers, **options)
        if draft is not None and found is not None:
            guarded(_keep, None, self, draft)
        return found


def _draft(batch: BatchBuilder, value: object, key: object) -> Draft | None:
    facts = _kafka.sent(options_of(batch), "", value, key)
    return Draft(facts) if facts is not None else None


def _keep(batch: BatchBuilder, draft: Draft) -> None:
    draft.bind()
    vars(batch).setdefault(_DRAFTS, []).append(draft)


def _drafts(batch: object) -> list[Draft]:
    return vars(batch).pop(_DRAFTS, [])  # type: ignore[no-any-return]


def _stored(drafts: list[Draft], first: Any) -> None:
    """Note where the messages of a batch are, from what the broker said of the first, if anything."""
    for number, draft in enumerate(drafts if first else ()):
        _kafka.stored(draft, first.partition, first.offset + number)


# Consuming -----------------------------------------------------------------------------------------------------------


def _source(consumer: AIOKafkaConsumer, options: Options) -> Options:
    """Return the options for what a consumer brings: settled by hand where it commits only when it is told to."""
    manual = not consumer._enable_auto_commit  # noqa: SLF001  it is given to its constructor, and it does not say
    return replace(options, group=consumer._group_id or "", manual=manual)  # noqa: SLF001  as above


def _facts(record: ConsumerRecord[Any, Any], options: Options) -> Message:
    return describe(become(record, _Record, options))


@overlay
class _Consumer(AIOKafkaConsumer):
    __slots__ = ()

    async def getone(self, *partitions: Any) -> Any:
        plain = _kafka.own(super().getone)
        if guarded(_iterating.get, False):  # noqa: FBT003  "not that we know"
            return await plain(*partitions)
        begun = leaf.now_ns()
        record = await plain(*partitions)
        guarded(_came, None, [record], options_of(self), begun)
        return record

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        found = await _kafka.own(super().getmany)(*partitions, **options)
        guarded(_polled, None, found, options_of(self), begun)
        return found

    def __aiter__(self) -> Any:
        plain: Any = super().__aiter__()
        return _Records(self) if plain is self else plain

    def seek(self, partition: Any, offset: int) -> None:
        super().seek(partition, offset)
        guarded(_kafka.sought, None, partition, offset)

    async def commit(self, offsets: Any = None) -> None:
        with _kafka.settling(guarded(_kafka.covered, None, offsets)):
            await super().commit(offsets)


def _polled(found: dict[Any, list[Any]], options: Options, begun_ns: int) -> None:
    _came([record for records in found.values() for record in records], options, begun_ns)


def _came(records: list[ConsumerRecord[Any, Any]], options: Options, begun_ns: int) -> None:
    leaf.receive([_facts(record, options) for record in records], begun_ns)


class _Records(AsyncIterator[Any]):
    """The client's iterator, timed."""

    __slots__ = ("_consumer", "_yielded")

    def __init__(self, consumer: _Consumer) -> None:
        self._consumer = consumer
        self._yielded = _kafka.Yielded()

    async def __anext__(self) -> Any:
        self._yielded.let_go()
        begun = leaf.now_ns()
        guarded(_iterating.set, None, True)  # noqa: FBT003  it is a flag
        try:
            record = await super(_Consumer, self._consumer).__anext__()
        finally:
            # Twice, for what stays set counts no record any more.
            _ = guarded(_iterating.set, None, False) or guarded(_iterating.set, None, False)  # noqa: FBT003  as above
        guarded(self._take, None, record, begun)
        return record

    def _take(self, record: ConsumerRecord[Any, Any], begun_ns: int) -> None:
        self._yielded.hand_out(_facts(record, options_of(self._consumer)), begun_ns)


@overlay
class _Record(ConsumerRecord):
    __slots__ = ()


def depths(client: object) -> Ask:
    """Return how to ask for one topic; the client is a consumer that has been started."""
    if not isinstance(client, AIOKafkaConsumer):
        raise UnsupportedError(
            f"rtobs.integrations.watch: a {type(client).__qualname__} knows no group; give a consumer"
        )
    consumer: Any = client

    async def ask(topic: str) -> Answer:
        numbers = await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  it may be no topic that it reads
        places = [TopicPartition(topic, number) for number in sorted(numbers)]
        begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        grouped = consumer._group_id is not None  # noqa: SLF001  as above
        committed = [await (consumer.committed if grouped else consumer.position)(place) for place in places]
        found = [Partition(begins[place], ends[place], at) for place, at in zip(places, committed, strict=True)]
        return depth(topic, found, from_begin=consumer._auto_offset_reset == "earliest")  # noqa: SLF001  as above

    return ask


def wrap(client: Client, options: Options) -> Client:
    """Instrument one producer, or one consumer and the records it brings from now on."""
    runtime.register(ConsumerRecord, describe)
    if isinstance(client, AIOKafkaProducer):
        return become(client, _Producer, options)
    if isinstance(client, AIOKafkaConsumer):
        return become(client, _Consumer, _source(client, options))
    raise UnsupportedError(
        f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give a producer or a consumer"
    )
