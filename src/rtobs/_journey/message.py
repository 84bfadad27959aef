"""Message: what a leaf knows about one native message, before any code of the user has run.

Facts only. It must not know how a hop is opened or what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Trust = Literal["trusted", "link", "ignore"]
Headers = Mapping[str, str | bytes] | Iterable[tuple[str | bytes, str | bytes]]


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
    release_ns: int = 0
    """When a delayed message was due; lag counts from here. 0 = at once."""
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
    size: int = 0
    """Bytes of the body; 0 = unknown."""
    group: str = ""
    """The consumers that share the messages of this destination, by the name the broker knows them by."""
    pending: int | None = None
    """Messages that the broker held for that group behind this one; None = unknown."""

    def is_same(self, other: Message) -> bool:
        """Tell whether two descriptions are of one message."""
        return self.native is not None and self.native is other.native
