"""CurrentSpan: what other libraries see of a hop or a stage while it runs.

An OpenTelemetry span by its API only: children find their parent in it and may add facts. It must not know what the
facts are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.trace import Span, SpanContext, StatusCode, TraceFlags, TraceState

from rtobs import _redaction as redaction

SAMPLED = 0x01
RANDOM = 0x02


class Event(NamedTuple):
    """Something that happened inside a hop."""

    name: str
    time_ns: int
    attributes: dict[str, Any]
    domain: bool
    """True where the user's code told it (``hop.event``): it is counted and logged too."""


class Linked(NamedTuple):
    """Another span this one belongs to without being its child."""

    trace_id: int
    span_id: int
    flags: int
    attributes: dict[str, Any]


class CurrentSpan(Span):
    """A span that is ours: slotted, bounded, sanitised, ended by nobody but its opener."""

    __slots__ = (
        "attributes",
        "ended",
        "events",
        "links",
        "sampled",
        "span_context",
        "span_id",
        "trace_id",
        "tracestate",
        "wall_ns",
    )

    def __init__(self) -> None:
        self.trace_id = self.span_id = self.wall_ns = 0
        self.sampled = self.ended = False
        self.tracestate = ""
        self.span_context: SpanContext | None = None
        self.attributes: dict[str, Any] | None = None
        self.events: list[Event] | None = None
        self.links: list[Linked] | None = None

    # What rtobs itself adds -------------------------------------------------------------------------------------------

    def note(self, name: str, value: object) -> None:
        """Add one attribute, sanitised and bounded; it goes to span and log, never to a metric."""
        attributes = self.attributes
        if attributes is None:
            attributes = self.attributes = {}
        name = redaction.text(name, redaction.NAME_LIMIT)
        if len(attributes) < redaction.ATTRIBUTE_LIMIT or name in attributes:
            attributes[name] = redaction.scalar(value)

    def happened(self, name: str, time_ns: int, fields: Mapping[str, object], *, domain: bool = False) -> None:
        """Add one event, sanitised and bounded."""
        events = self.events
        if events is None:
            events = self.events = []
        if len(events) < redaction.EVENT_LIMIT:
            pairs = list(fields.items())[: redaction.ATTRIBUTE_LIMIT]
            attributes = {redaction.text(str(k), redaction.NAME_LIMIT): redaction.scalar(v) for k, v in pairs}
            events.append(Event(redaction.text(name, redaction.NAME_LIMIT), time_ns, attributes, domain))

    def link(self, trace_id: int, span_id: int, flags: int = 0, **attributes: object) -> None:
        """Add a link to another span."""
        links = self.links
        if links is None:
            links = self.links = []
        if len(links) < redaction.LINK_LIMIT and trace_id and span_id:
            links.append(Linked(trace_id, span_id, flags, attributes))

    @property
    def flags(self) -> int:
        """W3C trace flags of this hop's span."""
        return SAMPLED | RANDOM if self.sampled else RANDOM

    # What neighbours see ---------------------------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        """Return the ids that children of other libraries take as their parent."""
        found = self.span_context
        if found is None:
            state = TraceState.from_header([self.tracestate]) if self.tracestate else TraceState()
            found = SpanContext(
                self.trace_id, self.span_id, is_remote=False, trace_flags=TraceFlags(self.flags), trace_state=state
            )
            self.span_context = found
        return found

    def is_recording(self) -> bool:
        """Tell whether attributes are still taken."""
        return not self.ended

    def set_attribute(self, key: str, value: Any) -> None:
        """Take an attribute from a neighbour."""
        if not self.ended:
            self.note(key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Take attributes from a neighbour."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Take an event from a neighbour."""
        if not self.ended:
            self.happened(name, timestamp or self.wall_ns, attributes or {})

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Take a link from a neighbour."""
        del attributes
        self.link(context.trace_id, context.span_id, int(context.trace_flags))

    def update_name(self, name: str) -> None:
        """Ignore a neighbour's name: a hop is named by its destination."""

    def set_status(self, status: Any, description: str | None = None) -> None:
        """Keep a neighbour's complaint as an attribute; the hop's outcome alone decides its status."""
        code = status if isinstance(status, StatusCode) else getattr(status, "status_code", None)
        if code is StatusCode.ERROR and description:
            self.set_attribute("otel.status_description", description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False,  # noqa: FBT001, FBT002  the API's own signature
    ) -> None:  # fmt: skip
        """Take an exception as an event: type and message, no stack."""
        del attributes, escaped
        fields = {"exception.type": type(exception).__qualname__, "exception.message": redaction.error_text(exception)}
        self.add_event("exception", fields, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Ignore it: only the one who opened a hop ends it."""

    def __exit__(self, *error: object) -> None:
        """Ignore it, like ``end``."""
