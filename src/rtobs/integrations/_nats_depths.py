"""NATS: how many messages of a stream wait for its consumers, and since when; and whether a subscription is too slow.

Messages that were delivered and not acknowledged wait too. Core NATS keeps no messages, so there is nothing to ask.
"""

# pyright: reportUnknownMemberType=false
# (the client's own annotations leave out some type arguments)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.errors import SlowConsumerError
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, DeliverPolicy
from nats.js.errors import NotFoundError

from rtobs._hop.watching import Answer, Ask, Depth, Strains
from rtobs.integrations import _nats


def depths(client: Client | JetStreamContext) -> Ask:
    """Return how to ask for one ``stream``, with all its consumers, or ``stream/consumer``."""
    context = client if isinstance(client, JetStreamContext) else JetStreamContext(client)

    async def ask(destination: str) -> Answer:
        stream, _, consumer = destination.partition("/")
        if consumer:
            return [await _depth(context, await context.consumer_info(stream, consumer))]
        found = [await _depth(context, each) for each in await context.consumers_info(stream)]
        return found or [Depth(stream, (await context.stream_info(stream)).state.messages, waiting=False)]

    return ask


async def _depth(context: JetStreamContext, info: ConsumerInfo) -> Depth:
    picked = info.config.filter_subject
    name = _nats.place(picked or "") or info.stream_name
    messages = (info.num_pending or 0) + (info.num_ack_pending or 0)
    oldest_ns, sequence = 0, _first(info)
    if messages and sequence and not info.config.filter_subjects:  # of several, the server picks only one
        try:
            head = await context.get_msg(info.stream_name, seq=sequence, subject=picked or ">", next=True)
            oldest_ns = int(head.time.timestamp() * 1e9) if head.time is not None else 0
        except NotFoundError:  # acknowledged since, the last of them too
            messages = 0
    return Depth(name, messages, oldest_ns)


def _first(info: ConsumerInfo) -> int:
    """Return the place in the stream from which on a consumer's first waiting message is the oldest; 0 = not known.

    Before its first acknowledgement the server does not tell where a consumer began that was not to have all messages.
    """
    delivered, acknowledged, config = info.delivered, info.ack_floor, info.config
    if delivered is not None and not info.num_ack_pending:
        return delivered.stream_seq + 1
    if acknowledged is not None and (acknowledged.stream_seq or config.deliver_policy == DeliverPolicy.ALL):
        return acknowledged.stream_seq + 1
    return config.opt_start_seq or 0


def strains(client: Client | JetStreamContext) -> Strains:
    """Return how to hear of messages that the client throws away because a subscription is too slow."""
    found: Any = client._nc if isinstance(client, JetStreamContext) else client  # noqa: SLF001  no other way

    def begin(report: Callable[[str], None]) -> Callable[[], None]:
        before = found._error_cb  # noqa: SLF001  it is given to `connect`, and nobody else may add one

        async def on_error(error: Exception) -> None:
            if isinstance(error, SlowConsumerError):
                report("slow_consumer")
            await before(error)

        def end() -> None:
            if found._error_cb is on_error:  # noqa: SLF001  as above
                found._error_cb = before  # noqa: SLF001

        found._error_cb = on_error  # noqa: SLF001
        return end

    return Strains(found, begin)
