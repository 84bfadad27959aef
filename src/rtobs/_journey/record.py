"""HopRecord: everything that is known of one hop, and at the same time the current span while it runs.

It is an OpenTelemetry span to its neighbours (children of other libraries find their parent in it) and a plain record
to our sinks. It must not know brokers, metrics, exporters or who opens and ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from rtobs._journey.span import CurrentSpan

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
        "adopted", "age", "ambiguous", "attempt", "auto", "cancelled", "category", "channel", "deliveries",
        "delivery_ends", "duration_ns", "error_message", "error_type", "explicit", "fallback", "foreign_baggage",
 "intents", "journey", "keep_reason", "key", "kind", "lag", "lag_source", "layer", "message",
        "missing_carrier", "name", "named", "outcome", "parent", "parent_span_id", "parent_trace_id", "previous",
        "promise_channel", "promise_id", "provider", "reason", "result", "scope", "send_error", "sends", "settled",
        "settlement", "stages", "start_ns", "state", "step", "window",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, journey: Journey | None) -> None:
        super().__init__()
        self.kind = kind
        self.name = name
        """Destination, route, connector: low-cardinality."""
        self.journey = journey
        self.message: Message | None = None
        self.parent: HopRecord | None = None
        """The hop of this process that encloses it."""
        self.scope: HopRecord | None = None
        """The hop whose end decides deliveries: the enclosing consume, else the outermost; None = this one."""
        self.adopted: Span | None = None
        """A span of the SDK's that stands for this hop: a neighbour's, or with ``fallback`` one that we end."""
        self.auto = self.named = self.cancelled = self.fallback = False
        self.parent_span_id = self.parent_trace_id = 0
        self.previous: Any = None
        self.start_ns = self.duration_ns = 0
        self.channel = self.provider = ""
        self.key: Any = None
        self.promise_channel = self.promise_id = ""
        self.attempt = 1
        self.lag: float | None = None
        self.lag_source = ""
        self.age: float | None = None
        """Seconds from the journey's creation to this hop's end."""
        self.missing_carrier = False
        self.foreign_baggage = ""
        self.layer: object = None
        self.sends = 0
        self.send_error: BaseException | None = None
        self.settlement: Settlement = ""
        self.explicit: Outcome | None = None
        self.outcome: Outcome | None = None
        self.settled: Outcome | None = None
        self.result = ""
        self.category: ErrorCategory | None = None
        self.reason = ""
        self.error_type = self.error_message = ""
        self.ambiguous = False
        self.step: Step | None = None
        self.state = ""
        self.window: Any = None
        self.keep_reason = ""
        self.stages: list[StageRecord] | None = None
        self.intents: list[tuple[str, int]] | None = None
        """Promises not yet counted: (channel, how many)."""
        self.deliveries: dict[Any, Delivery] | None = None
        self.delivery_ends: list[DeliveryEnd] | None = None


class StageRecord(CurrentSpan):
    """One timed step inside a hop, and the current span while it runs."""

    __slots__ = ("duration_ns", "error_type", "hop", "name", "outcome", "parent_span_id", "previous", "start_ns")

    def __init__(self, name: str, hop: HopRecord, parent_span_id: int) -> None:
        super().__init__()
        self.name = name
        self.hop = hop
        self.trace_id = hop.trace_id
        self.sampled = hop.sampled
        self.tracestate = hop.tracestate
        self.parent_span_id = parent_span_id
        self.previous: Any = None
        self.start_ns = self.duration_ns = 0
        self.outcome = "ok"
        self.error_type = ""


class Sink(Protocol):
    """Gets every record once, at its end; what it raises is counted and dropped."""

    def end(self, record: HopRecord, /) -> None:
        """Take one ended hop."""


class Sampler(Protocol):
    """Decides at the start of a hop whether its span is exported."""

    def __call__(self, record: HopRecord, /) -> bool:
        """Return True to sample."""
        ...
