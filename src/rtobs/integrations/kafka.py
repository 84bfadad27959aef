"""kafka-python: producers and consumers, through one line each; see ``_kafka`` for what all Kafka clients share.

    producer = rtobs.wrap(KafkaProducer(bootstrap_servers="localhost"))

A record is handled in a hop that its handler opens: Kafka has no callbacks, and a commit settles all before an offset.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false, reportUntypedBaseClass=false
# (the client has no annotations)

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import MessageSizeTooLargeError
from kafka.structs import TopicPartition

from rtobs._hop import confirm, leaf
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

SUPPORTS = "kafka-python>=2.3,<4"
FACTORIES = ("kafka.KafkaProducer", "kafka.KafkaConsumer")
COVERAGE = Coverage(
    client="kafka-python (Kafka)",
    produce="`send`",
    consume="`poll`, iterators",
    carrier="one record header each",
    attempt="none: Kafka counts no deliveries",
    lag="the record's timestamp",
    depth="committed offsets against the end of the log",
    missing="Kafka itself (tested on a mock cluster)",
)

Client = TypeVar("Client", bound=KafkaProducer | KafkaConsumer)


def describe(native: Any) -> Message:
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


@overlay
class _Producer(KafkaProducer):
    __slots__ = ()

    def send(
        self, topic: str, value: Any = None, key: Any = None, headers: Any = None, partition: Any = None,
        *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        plain = _kafka.own(super().send)
        facts = guarded(_kafka.sent, None, options_of(self), topic, value, key, partition)
        with confirm.ConfirmedSend(facts) as send:
            carrying = guarded(_kafka.carrying, headers, send, headers)
            try:
                future = plain(topic, value, key, carrying, partition, *args, **options)
            except MessageSizeTooLargeError:
                if carrying is headers:
                    raise
                future = None
            if future is None:  # it is too large with our headers
                bare = guarded(_kafka.carrying, headers, send, headers, 0)
                future = plain(topic, value, key, bare, partition, *args, **options)
            guarded(_follow, None, send, future)
            return future


def _follow(send: confirm.ConfirmedSend, future: Any) -> None:
    """End the hop with the client's future, of a class of its own, which a thread of its own completes."""
    done: Future[Any] = Future()
    send.until(done, lambda found: _kafka.stored(send, found.partition, found.offset))
    future.add_callback(done.set_result)
    future.add_errback(done.set_exception)


# Consuming -----------------------------------------------------------------------------------------------------------


def _source(consumer: KafkaConsumer, options: Options) -> Options:
    """Return the options for what a consumer brings: settled by hand where it commits only when it is told to."""
    config = consumer.config
    return replace(options, group=config["group_id"] or "", manual=not config["enable_auto_commit"])


def _facts(record: Any, options: Options) -> Message:
    return describe(become(record, _Record, options))


@overlay
class _Consumer(KafkaConsumer):
    __slots__ = ()

    def poll(self, *args: Any, **options: Any) -> Any:
        plain = super().poll
        if "update_offsets" in options and options["update_offsets"] is False:  # the client's own iterator asks
            return plain(*args, **options)
        begun = leaf.now_ns()
        found = plain(*args, **options)
        guarded(_polled, None, found, options_of(self), begun)
        return found

    def __next__(self) -> Any:
        begun = leaf.now_ns()
        record = _kafka.own(super().__next__)()
        guarded(_came, None, [record], options_of(self), begun)
        return record

    def __iter__(self) -> Any:
        plain: Any = super().__iter__()
        return _Records(self) if plain is self else plain

    def seek(self, partition: Any, offset: int, *args: Any, **options: Any) -> None:
        super().seek(partition, offset, *args, **options)
        guarded(_kafka.sought, None, partition, offset)

    def commit(self, offsets: Any = None, *args: Any, **options: Any) -> None:
        with _kafka.settling(guarded(_kafka.covered, None, offsets)):
            super().commit(offsets, *args, **options)

    def commit_async(self, offsets: Any = None, *args: Any, **options: Any) -> Any:
        with _kafka.settling(guarded(_kafka.covered, None, offsets)):
            return super().commit_async(offsets, *args, **options)


def _polled(found: dict[Any, list[Any]], options: Options, begun_ns: int) -> None:
    _came([record for records in found.values() for record in records], options, begun_ns)


def _came(records: list[Any], options: Options, begun_ns: int) -> None:
    leaf.receive([_facts(record, options) for record in records], begun_ns)


class _Records(Iterator[Any]):
    """The client's iterator, timed."""

    __slots__ = ("_consumer", "_yielded")

    def __init__(self, consumer: _Consumer) -> None:
        self._consumer = consumer
        self._yielded = _kafka.Yielded()

    def __next__(self) -> Any:
        self._yielded.let_go()
        begun = leaf.now_ns()
        record = _kafka.own(super(_Consumer, self._consumer).__next__)()
        guarded(self._take, None, record, begun)
        return record

    def _take(self, record: Any, begun_ns: int) -> None:
        self._yielded.hand_out(_facts(record, options_of(self._consumer)), begun_ns)


@overlay
class _Record(ConsumerRecord):
    __slots__ = ()


# Watching ------------------------------------------------------------------------------------------------------------


def depths(client: object) -> Ask:
    """Return how to ask for one topic, over a connection of its own: a consumer is for one thread only."""
    if not isinstance(client, KafkaConsumer):
        raise UnsupportedError(
            f"rtobs.integrations.watch: a {type(client).__qualname__} knows no group; give a consumer"
        )
    known: Any = client
    if known.config["group_id"] is None:
        raise UnsupportedError(
            "rtobs.integrations.watch: this consumer has no group_id, so nothing waits for its group"
        )
    make: Any = KafkaConsumer
    config = {**known.config, "enable_auto_commit": False}

    def ask(topic: str) -> Answer:
        consumer = make(**config)
        try:
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                raise LookupError(f"the broker knows no topic {topic!r}")
            places = [TopicPartition(topic, number) for number in sorted(numbers)]
            begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
            found = [Partition(begins[place], ends[place], consumer.committed(place)) for place in places]
        finally:
            consumer.close()
        return depth(topic, found, from_begin=config["auto_offset_reset"] == "earliest")

    return ask


def wrap(client: Client, options: Options) -> Client:
    """Instrument one producer, or one consumer and the records it brings from now on."""
    runtime.register(ConsumerRecord, describe)
    native: Any = client
    if isinstance(native, KafkaProducer):
        return become(client, _Producer, options)
    if isinstance(native, KafkaConsumer):
        return become(client, _Consumer, _source(native, options))
    raise UnsupportedError(
        f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give a producer or a consumer"
    )
