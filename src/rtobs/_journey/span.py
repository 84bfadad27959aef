"""CurrentSpan: what other libraries see of a hop or a stage while it runs.

An OpenTelemetry span by its API only: children find their parent in it and may add facts. It must not know what the
facts are for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import islice
from typing import Any, NamedTuple, ParamSpec

from opentelemetry.trace import Span, SpanContext, StatusCode, TraceFlags, TraceState

from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._journey.journey import new_span_id

P = ParamSpec("P")

SAMPLED = 0x01
RANDOM = 0x02
NO_TRACE = "0" * 32
_FLAGS = (TraceFlags(RANDOM), TraceFlags(SAMPLED | RANDOM))


_TIME_END = 1 << 64


_NO_STATE = TraceState()
_tuple: Any = vars(tuple)["__new__"]


def context_of(
    trace_id: int, span_id: int, flags: TraceFlags, tracestate: str = "", *, is_remote: bool = False
) -> SpanContext:
    """Return what ``SpanContext`` makes of these, without looking whether ids that we have made or read are valid."""
    state = TraceState.from_header([tracestate]) if tracestate else _NO_STATE
    found: SpanContext = _tuple(SpanContext, (trace_id, span_id, is_remote, flags, state, True))
    return found


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


_drawing = threading.RLock()


def _draw_anew() -> None:
    global _drawing  # noqa: PLW0603  a thread that does not exist in a forked child may have held it
    _drawing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_draw_anew)


def _guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Keep from a neighbour what goes wrong with what it says: it may be anything."""

    @wraps(method)
    def call(*args: P.args, **named: P.kwargs) -> None:
        try:
            method(*args, **named)
        except Exception as error:  # noqa: BLE001  the neighbour goes on, and so does its host
            _guard.fault(f"span.{method.__name__}", error)

    return call


class CurrentSpan(Span):
    """A span that is ours: slotted, bounded, sanitised, ended by nobody but its opener.

    Ids are kept as the hex digits that travel; numbers are made of them where somebody wants numbers.
    """

    __slots__ = (
        "attributes", "drawn_hex", "ended", "events", "links", "parent_hex", "sampled", "span_context", "trace_hex",
        "tracestate", "wall_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.wall_ns = 0
        self.sampled = self.ended = False
        self.trace_hex = NO_TRACE
        self.drawn_hex = self.parent_hex = self.tracestate = ""
        self.span_context: SpanContext | None = None
        self.attributes: dict[str, Any] | None = None
        self.events: list[Event] | None = None
        self.links: list[Linked] | None = None

    # Ids -------------------------------------------------------------------------------------------------------------

    @property
    def span_hex(self) -> str:
        """16 hex digits, drawn when they are first asked for: the ids of most unsampled hops never are."""
        return self.drawn_hex or self._draw()

    def _draw(self) -> str:
        with _drawing:
            if not self.drawn_hex:
                self.drawn_hex = new_span_id()
            return self.drawn_hex

    @property
    def trace_id(self) -> int:
        """The trace id as a number."""
        return int(self.trace_hex, 16)

    @trace_id.setter
    def trace_id(self, number: int) -> None:
        self.trace_hex = f"{number:032x}"

    @property
    def span_id(self) -> int:
        """The span id as a number."""
        return int(self.span_hex, 16)

    @span_id.setter
    def span_id(self, number: int) -> None:
        self.drawn_hex = f"{number:016x}"

    @property
    def parent_span_id(self) -> int:
        """The parent's span id as a number; 0 = it has none."""
        return int(self.parent_hex, 16) if self.parent_hex else 0

    @parent_span_id.setter
    def parent_span_id(self, number: int) -> None:
        self.parent_hex = f"{number:016x}" if number else ""

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
            pairs = islice(fields.items(), redaction.ATTRIBUTE_LIMIT)
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
            found = self.span_context = context_of(
                int(self.trace_hex, 16), int(self.drawn_hex or self._draw(), 16), _FLAGS[self.sampled], self.tracestate
            )
        return found

    def is_recording(self) -> bool:
        """Tell whether attributes are still taken."""
        return not self.ended

    @_guarded
    def set_attribute(self, key: str, value: Any) -> None:
        """Take an attribute from a neighbour."""
        if not self.ended:
            self.note(key, value)

    @_guarded
    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Take attributes from a neighbour; more than a span has are not looked at."""
        for key, value in islice(attributes.items(), redaction.ATTRIBUTE_LIMIT):
            self.set_attribute(key, value)

    @_guarded
    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Take an event from a neighbour."""
        if not self.ended:
            time_ns = timestamp if type(timestamp) is int and 0 < timestamp < _TIME_END else self.wall_ns
            self.happened(name, time_ns, {} if attributes is None else attributes)

    @_guarded
    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Take a link from a neighbour."""
        del attributes
        self.link(context.trace_id, context.span_id, int(context.trace_flags))

    def update_name(self, name: str) -> None:
        """Ignore a neighbour's name: a hop is named by its destination."""

    @_guarded
    def set_status(self, status: Any, description: str | None = None) -> None:
        """Keep a neighbour's complaint as an attribute; the hop's outcome alone decides its status."""
        code = status if isinstance(status, StatusCode) else getattr(status, "status_code", None)
        description = description or getattr(status, "description", None)
        if code is StatusCode.ERROR and description:
            self.set_attribute("otel.status_description", description)

    @_guarded
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
