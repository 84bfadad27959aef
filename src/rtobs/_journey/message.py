"""Message: what a leaf knows about one native message, before any code of the user has run.

Facts only. It must not know how a hop is opened or what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Trust = Literal["trusted", "link", "ignore"]
Headers = Mapping[str, str | bytes] | Iterable[tuple[str | bytes, str | bytes]]


class Position(NamedTuple):
    """Where a message stands in a partitioned log; what is not known yet is left out."""

    partition: int | None
    offset: int | None
    key: str = ""
    """What put it into that partition; empty where it has none, or one that is no short text."""
    tombstone: bool = False
    """It has a key and no value: what was kept under that key is to go."""


@dataclass(slots=True)
class Message:
    """One message as its client shows it."""

    system: str
    """``messaging.system``: rabbitmq, redis, nats …"""
    destination: str
    """Low-cardinality place: exchange or queue, stream key, subject; becomes a label."""
    headers: Any = None
    """The native headers, in whatever shape the client has them."""
    address: str = ""
    """The concrete routing key or subject; an attribute, never a label."""
    id: str = ""
    conversation_id: str = ""
    native: object = None
    """The client's own object; two Messages are the same message if it is the same object."""
    trust: Trust = "trusted"
    carrier: bool = True
    """False: nothing of ours is written into the message."""
    adopt_correlation: bool = False
    """True: the broker's own conversation id names the journey if it carries no name of ours."""
    manual: bool = False
    """The handler settles it by hand: no settlement and an exception mean that it comes back."""
    delivery_count: int = 1
    """How often the broker has delivered it, this time included; 1 = first."""
    sent_ns: int = 0
    """When the broker took it, nanoseconds since the epoch; 0 = unknown."""
    sent_clock: Literal["broker", "producer"] = "broker"
    """Whose clock that was."""
    release_ns: int = 0
    """When a delayed message was, or being sent will be, due; nanoseconds since the epoch. 0 = at once.

    Lag and deadlines count from here, and what it promises is expected from here on.
    """
    dead_letter: bool | None = None
    """Whether a rejected message goes to a dead-letter target; None = not known."""
    max_deliveries: int = 0
    """Deliveries after which the broker gives up; 0 = not known."""
    replay: bool = False
    """It ended in a dead-letter queue before and was put back."""
    dead_cause: Literal["", "decided", "expired", "limit"] = ""
    """Read from a dead-letter queue: a consumer had decided, it had expired, or a broker's limit parked it."""
    neighbour: str = ""
    """Instrumentation scope of the spans that another tool makes for this client."""
    again: bool | None = None
    """A message that is being sent: it is the one whose hop this is, once more. None: judged by where both go."""
    size: int = 0
    """Bytes of the body; 0 = unknown."""
    group: str = ""
    """The consumers that share the messages of this destination, by the name the broker knows them by."""
    pending: int | None = None
    """Messages that the broker held for that group behind this one; None = unknown."""
    position: Position | None = None

    def is_same(self, other: Message) -> bool:
        """Tell whether two descriptions are of one message."""
        return self.native is not None and self.native is other.native
