"""HopRecord: everything that is known of one hop, and at the same time the current span while it runs.

It is an OpenTelemetry span to its neighbours (children of other libraries find their parent in it) and a plain record
to our sinks. It must not know brokers, metrics, exporters or who opens and ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from uuid import UUID

from rtobs._journey.journey import intent_id
from rtobs._journey.rare import Rare
from rtobs._journey.span import NO_TRACE, CurrentSpan

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from rtobs._journey.journey import Journey
    from rtobs._journey.message import Message
    from rtobs._journey.outcome import ErrorCategory, Outcome, Step

Kind = Literal["accept", "publish", "consume", "deliver", "receipt", "job", "receive"]
Settlement = Literal["", "acked", "requeued", "rejected", "terminated", "retried"]


class DeliveryEnd(NamedTuple):
    """The end of one promised delivery, ready to be counted."""

    channel: str
    provider: str
    step: Step
    outcome: Outcome
    category: ErrorCategory | None
    tenant: str
    named: bool
    region: str
    source: str
    age: float | None
    """Seconds from the journey's creation to the step; None where the clocks make no sense or it was not reached."""
    promised_here: bool
    """Nobody had promised it before: intent and outcome are counted together."""
    repeated: bool
    recovered: bool
    """A replay from the dead-letter queue: counted as recovered, not as an outcome."""


class Delivery:
    """The attempts of one delivery inside one scope; the last one decides."""

    __slots__ = ("attempts", "keepalive", "last")

    def __init__(self, last: HopRecord, keepalive: object) -> None:
        self.last = last
        self.attempts = 1
        self.keepalive = keepalive
        """Keeps arguments alive whose identity is the key."""


class HopRecord(CurrentSpan):
    """Facts about one hop. Durations are monotonic, moments are wall clock, both in nanoseconds."""

    __slots__ = (
        "adopted", "attempt", "auto", "duration_ns", "handed_ns", "healthy", "held", "journey", "kind", "lag",
        "lag_source", "layer", "message", "name", "named", "number", "opener", "outcome", "parent", "previous", "rare",
        "scope", "sends", "settled", "settlement", "stages", "start_ns", "told",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, message: Message | None = None) -> None:
        # CurrentSpan's own fields, without the call
        self.trace_hex = NO_TRACE
        self.drawn_hex = self.parent_hex = self.tracestate = self.lag_source = ""
        self.span_context = self.attributes = self.events = self.links = None
        self.wall_ns = self.start_ns = self.duration_ns = self.sends = self.number = self.handed_ns = 0
        self.ended = self.sampled = False
        self.kind = kind
        self.name = name
        """Destination, route, connector: low-cardinality."""
        self.message = message
        self.journey: Journey | None = None
        self.rare: dict[str, Any] | None = None
        """Fields that few hops have, by name; None where this one has none: nothing went wrong and nothing was said."""
        self.parent: HopRecord | None = None
        """The hop of this process that encloses it."""
        self.scope: HopRecord | None = None
        """The hop whose end decides deliveries: the enclosing consume, else the outermost; None = this one."""
        self.adopted: Span | None = None
        """A span of the SDK's that stands for this hop: a neighbour's, or with ``told`` one that we end."""
        self.told: dict[str, Any] | None = None
        """What an SDK span that we started for this hop knows since its start."""
        self.auto = self.named = self.held = self.healthy = False
        self.opener: object = None
        """The ``with`` that is to end it."""
        self.previous: Any = None
        """The context around it, while it is current."""
        self.attempt = 1
        self.settlement: Settlement = ""
        self.lag: float | None = None
        self.layer: object = None
        self.outcome: Outcome | None = None
        self.settled: Outcome | None = None
        self.stages: list[StageRecord] | None = None

    def intent(self) -> str:
        """Return the id of the one promise that this hop is about; empty where there is none or it is not known which.

        A `deliver` with a key of its own says itself which one; else it is the one that the message stands for.
        """
        journey = self.journey
        if self.rare is not None:
            if self.promise_id:
                return self.promise_id
            identity = self.key[0] if self.kind == "deliver" and self.key else None
            if journey is not None and isinstance(identity, str | bytes | int | UUID):
                return intent_id(journey.correlation_id, self.channel, identity)
        return journey.intent if journey is not None and journey.rare is not None else ""

    # ``healthy``: it ended, and did at the first try what it is for: there is nothing to explain.
    # ``number``: which send of its parent this is, where its span's id is made of that; else 0.
    # ``handed_ns``: when its first message left, wall clock; 0 = none has.

    age = Rare[float | None](None)
    """Seconds from the journey's creation to this hop's end."""
    ambiguous = Rare(False)  # noqa: FBT003  a default
    cancelled = Rare(False)  # noqa: FBT003  as above
    category = Rare["ErrorCategory | None"](None)
    channel = Rare("")
    deliveries = Rare["dict[Any, Delivery] | None"](None)
    delivery_ends = Rare["list[DeliveryEnd] | None"](None)
    error_message = Rare("")
    error_type = Rare("")
    explicit = Rare["Outcome | None"](None)
    foreign_baggage = Rare("")
    intents = Rare["list[tuple[str, int]] | None"](None)
    """Promises not yet counted: (channel, how many)."""
    keep_reason = Rare("")
    key = Rare[Any](None)
    missing_carrier = Rare(False)  # noqa: FBT003  as above
    promise_channel = Rare("")
    promise_id = Rare("")
    provider = Rare("")
    reason = Rare("")
    result = Rare("")
    send_error = Rare[BaseException | None](None)
    state = Rare("")
    step = Rare["Step | None"](None)
    window = Rare[Any](None)


class StageRecord(CurrentSpan):
    """One timed step inside a hop, and the current span while it runs."""

    __slots__ = ("duration_ns", "error_type", "hop", "name", "outcome", "previous", "start_ns")

    def __init__(self, name: str, hop: HopRecord, parent_hex: str) -> None:
        super().__init__()
        self.name = name
        self.hop = hop
        self.trace_hex = hop.trace_hex
        self.sampled = hop.sampled
        self.tracestate = hop.tracestate
        self.parent_hex = parent_hex
        self.previous: Any = None
        self.start_ns = self.duration_ns = 0
        self.outcome = "ok"
        self.error_type = ""


class Sink(Protocol):
    """Gets every record once, at its end; what it raises is counted and dropped.

    One that says ``sees_quiet = False`` is left alone with hops that are healthy, punctual and not sampled.
    """

    def end(self, record: HopRecord, /) -> None:
        """Take one ended hop."""
