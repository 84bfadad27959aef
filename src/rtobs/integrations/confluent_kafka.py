"""confluent-kafka: producers and consumers of every kind it has, through one line each; see ``_kafka`` too.

    producer = rtobs.wrap(Producer({"bootstrap.servers": "localhost"}))

``Producer`` and ``Consumer`` are of C and can become nothing: what comes back stands for them, so use that. Subclasses,
``SerializingProducer`` and the asyncio clients stay the same objects. Messages are of C too; what is known of one waits
until a hop takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.aio import AIOConsumer, AIOProducer
from confluent_kafka.cimpl import Consumer, Producer  # not what another tool has put into their place

from rtobs._hop import confirm, leaf
from rtobs._hop.batch import Sends
from rtobs._hop.runtime import runtime
from rtobs._hop.watching import Answer, Ask
from rtobs._journey.message import Message as Facts
from rtobs._journey.message import Trust
from rtobs.errors import UnsupportedError
from rtobs.integrations import _confluent_kafka as calls
from rtobs.integrations import _kafka
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._kafka import SYSTEM
from rtobs.integrations._kafka_depths import Partition, depth, strains
from rtobs.integrations._twin import Options, StandIn, become, guarded, options_of, overlay, stand_in

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SUPPORTS = "confluent-kafka>=2.16,<3"
FACTORIES = (
    "confluent_kafka.Producer",
    "confluent_kafka.Consumer",
    "confluent_kafka.SerializingProducer",
    "confluent_kafka.DeserializingConsumer",
    "confluent_kafka.aio.AIOProducer",
    "confluent_kafka.aio.AIOConsumer",
)
COVERAGE = Coverage(
    client="confluent-kafka (Kafka)",
    produce="`produce`, to its delivery report",
    consume="`poll`, `consume`; serializing and asyncio clients",
    carrier="one record header each",
    attempt="none: Kafka counts no deliveries",
    lag="the record's timestamp",
    depth="committed offsets against the end of the log",
    missing="headers of `AIOProducer`, which refuses them; Kafka itself (a mock cluster)",
)

Client = TypeVar("Client", bound=Producer | Consumer | AIOProducer | AIOConsumer)

_ASK_SECONDS = 4.0
_BY_HAND = "_rtobs_by_hand"
"""Set on a consumer once its user has committed: it does not say whether it commits by itself."""
_TRUSTS: tuple[Trust, ...] = ("trusted", "link", "ignore")
_elsewhere = Options()
"""For messages that no wrapped client has handed out: no more trust than the least that ``wrap`` was told to have."""


def describe(native: Message) -> Facts | None:
    """Return what one message says about itself; None for an event of the client's."""
    return leaf.known(native) or calls.facts_of(native, _elsewhere)


# Sending -------------------------------------------------------------------------------------------------------------


def _produce(self: Any, plain: Callable[..., Any], topic: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    plain, asked = _kafka.own(plain), guarded(calls.Produce, None, self, args, options)
    if asked is None:
        return plain(topic, *args, **options)
    with confirm.ConfirmedSend(guarded(_sent, None, self, topic, asked)) as send:
        guarded(_report_to, None, asked, send)
        carrying = guarded(_carry, False, send, asked)  # noqa: FBT003  it carries nothing of ours
        try:
            return plain(topic, *asked.args, **asked.options)
        except KafkaException as error:
            if not (carrying and guarded(calls.is_too_large, False, error)):  # noqa: FBT003  "not that we know"
                raise
        guarded(_carry, None, send, asked, 0)  # it is too large with ours
        return plain(topic, *asked.args, **asked.options)


def _sent(client: object, topic: str, asked: calls.Produce) -> Facts | None:
    return _kafka.sent(options_of(client), topic, asked["value"], asked["key"], asked["partition"])


def _report_to(asked: calls.Produce, send: confirm.ConfirmedSend) -> None:
    if send.record is not None:
        asked.report_to(send)


def _carry(send: leaf.Send, asked: calls.Produce, room: int | None = None) -> bool:
    """Put our headers among those of a call; tell whether there are any."""
    theirs = asked.headers
    carrying = _kafka.carrying(send, {} if theirs is None else theirs, room) or theirs  # ddtrace adds to a dict only
    if carrying is theirs and room is None:
        return False
    asked["headers"] = carrying
    return True


def _produce_batch(self: Any, plain: Callable[..., Any], topic: str, messages: Any, *args: Any, **options: Any) -> Any:
    with Sends(guarded(_batch, [], options_of(self), topic, messages)):
        return _kafka.own(plain)(topic, messages, *args, **options)


def _batch(options: Options, topic: str, messages: list[dict[str, Any]]) -> list[Facts]:
    """Return what is known of messages in a batch, which has no room for headers."""
    found = (_uncarried(options, topic, each.get("value"), each.get("key"), each.get("partition")) for each in messages)
    return [facts for facts in found if facts is not None]


def _uncarried(options: Options, topic: str, value: Any, key: Any, partition: Any) -> Facts | None:
    if options.carrier:
        leaf.uncarried()
    return _kafka.sent(replace(options, carrier=False), topic, value, key, partition)


@overlay
class _Producer(Producer):
    def produce(self, topic: str, *args: Any, **options: Any) -> Any:
        return _produce(self, super().produce, topic, args, options)

    def produce_batch(self, topic: str, messages: Any, *args: Any, **options: Any) -> Any:
        return _produce_batch(self, super().produce_batch, topic, messages, *args, **options)


class _ProducerStandIn(StandIn):
    __slots__ = ()

    def produce(self, topic: str, *args: Any, **options: Any) -> Any:
        return _produce(self, self.__wrapped__.produce, topic, args, options)

    def produce_batch(self, topic: str, messages: Any, *args: Any, **options: Any) -> Any:
        return _produce_batch(self, self.__wrapped__.produce_batch, topic, messages, *args, **options)


@overlay
class _AIOProducer(AIOProducer):
    __slots__ = ()

    async def produce(self, topic: str, value: Any = None, key: Any = None, *args: Any, **options: Any) -> Any:
        partition = options.get("partition")
        with confirm.ConfirmedSend(guarded(_uncarried, None, options_of(self), topic, value, key, partition)) as send:
            future = await super().produce(topic, value, key, *args, **options)
            send.until(future, lambda found: _kafka.stored(send, found.partition(), found.offset()))
            return future


# Consuming -----------------------------------------------------------------------------------------------------------


def _came(client: object, messages: Sequence[Message], begun_ns: int) -> None:
    options = replace(options_of(client), manual=getattr(client, _BY_HAND, False))
    found = [facts for facts in (calls.facts_of(message, options) for message in messages) if facts is not None]
    for facts in found:
        leaf.handed_out(facts)
    leaf.receive(found, begun_ns)


def _covered(client: object, args: tuple[Any, ...], options: dict[str, Any]) -> Facts | None:
    object.__setattr__(client, _BY_HAND, True)
    return calls.covered(args, options)


def _noted(client: object, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Note what is settled by the commit that the client makes next."""
    facts = _covered(client, args, options)
    if facts is not None:
        leaf.settled("acked", facts)


def _poll(self: Any, plain: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    begun = leaf.now_ns()
    message = _kafka.own(plain)(*args, **options)
    if message is not None:
        guarded(_came, None, self, [message], begun)
    return message


def _consume(self: Any, plain: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    begun = leaf.now_ns()
    messages = _kafka.own(plain)(*args, **options)
    guarded(_came, None, self, messages, begun)
    return messages


def _commit(self: Any, plain: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    with _kafka.settling(guarded(_covered, None, self, args, options)):
        return _kafka.own(plain)(*args, **options)


def _store_offsets(
    self: Any, plain: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:  # fmt: skip
    plain(*args, **options)
    guarded(_noted, None, self, args, options)


def _seek(plain: Callable[..., Any], partition: TopicPartition) -> None:
    plain(partition)
    guarded(_sought, None, partition)


def _sought(partition: TopicPartition) -> None:
    _kafka.sought((partition.topic, partition.partition), partition.offset)


@overlay
class _Consumer(Consumer):
    def poll(self, *args: Any, **options: Any) -> Any:
        return _poll(self, super().poll, args, options)

    def consume(self, *args: Any, **options: Any) -> Any:
        return _consume(self, super().consume, args, options)

    def commit(self, *args: Any, **options: Any) -> Any:
        return _commit(self, super().commit, args, options)

    def store_offsets(self, *args: Any, **options: Any) -> None:
        _store_offsets(self, super().store_offsets, args, options)

    def seek(self, partition: TopicPartition) -> None:
        _seek(super().seek, partition)


class _ConsumerStandIn(StandIn):
    __slots__ = (_BY_HAND,)

    def poll(self, *args: Any, **options: Any) -> Any:
        return _poll(self, self.__wrapped__.poll, args, options)

    def consume(self, *args: Any, **options: Any) -> Any:
        return _consume(self, self.__wrapped__.consume, args, options)

    def commit(self, *args: Any, **options: Any) -> Any:
        return _commit(self, self.__wrapped__.commit, args, options)

    def store_offsets(self, *args: Any, **options: Any) -> None:
        _store_offsets(self, self.__wrapped__.store_offsets, args, options)

    def seek(self, partition: TopicPartition) -> None:
        _seek(self.__wrapped__.seek, partition)


@overlay
class _AIOConsumer(AIOConsumer):
    __slots__ = ()

    async def poll(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        message = await super().poll(*args, **options)
        if message is not None:
            guarded(_came, None, self, [message], begun)
        return message

    async def consume(self, *args: Any, **options: Any) -> Any:
        begun = leaf.now_ns()
        messages = await super().consume(*args, **options)
        guarded(_came, None, self, messages, begun)
        return messages

    async def commit(self, *args: Any, **options: Any) -> Any:
        with _kafka.settling(guarded(_covered, None, self, args, options)):
            return await super().commit(*args, **options)

    async def store_offsets(self, *args: Any, **options: Any) -> Any:
        found = await super().store_offsets(*args, **options)
        guarded(_noted, None, self, args, options)
        return found

    async def seek(self, partition: TopicPartition, *args: Any, **options: Any) -> Any:
        found = await super().seek(partition, *args, **options)
        guarded(_sought, None, partition)
        return found


# Watching ------------------------------------------------------------------------------------------------------------


def depths(client: object) -> Ask:
    """Return how to ask for one topic; the client, a consumer, may be asked from any thread."""
    consumer: Any = getattr(client, "_consumer", client)  # an asyncio client's own; it hands on one call at a time
    if not isinstance(consumer, Consumer):
        raise UnsupportedError(
            f"rtobs.integrations.watch: a {type(client).__qualname__} knows no group; give a consumer"
        )

    def ask(topic: str) -> Answer:
        numbers = consumer.list_topics(topic, _ASK_SECONDS).topics[topic].partitions
        if not numbers:
            raise LookupError(f"the broker knows no topic {topic!r}")
        found: list[Partition] = []
        for place in consumer.committed([TopicPartition(topic, number) for number in numbers], _ASK_SECONDS):
            begin, end = consumer.get_watermark_offsets(TopicPartition(topic, place.partition), _ASK_SECONDS)
            found.append(Partition(begin, end, place.offset if place.offset >= 0 else None))
        return depth(topic, found, from_begin=False)

    return ask


# Wrapping ------------------------------------------------------------------------------------------------------------


def _group(client: Any) -> str:
    return calls.group_of(client.consumer_group_metadata())


def wrap(client: Client, options: Options) -> Client:
    """Instrument one producer or consumer; in place of one of C itself comes back what stands for it."""
    global _elsewhere  # noqa: PLW0603  it holds for the process
    runtime.register(Message, describe)
    if _TRUSTS.index(options.trust) > _TRUSTS.index(_elsewhere.trust):
        _elsewhere = Options(trust=options.trust)
    if isinstance(client, AIOProducer):
        return become(client, _AIOProducer, options)
    if isinstance(client, Producer):
        made: Any = stand_in(client, _ProducerStandIn, options) if _is_c(client) else become(client, _Producer, options)
        return cast("Client", made)
    consumer: Any = getattr(client, "_consumer", client)
    if not isinstance(consumer, Consumer):
        raise UnsupportedError(
            f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give a producer or a consumer"
        )
    options = replace(options, group=guarded(_group, "", consumer))
    if isinstance(client, AIOConsumer):
        return become(client, _AIOConsumer, options)
    made = stand_in(client, _ConsumerStandIn, options) if _is_c(client) else become(client, _Consumer, options)
    return cast("Client", made)


def _is_c(client: object) -> bool:
    return not hasattr(client, "__dict__")
