"""Spans as OTLP bytes, joined by hand: the same message as the SDK's encoder makes, at a fraction of its cost.

Which facts become which attributes is ``_telemetry.readable``'s to say; the field numbers are those of
``opentelemetry/proto/trace/v1/trace.proto``. For one thread. Must not know queues or the network.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind

from rtobs import _redaction as redaction
from rtobs._conventions import Attribute
from rtobs._export.protobuf import any_value, double, field, key_value, utf8, varint
from rtobs._export.transport import Unit
from rtobs._telemetry.readable import (
    _REMOTE as REMOTE,
)
from rtobs._telemetry.readable import (
    KINDS,
    OWN,
    SCOPE,
    Shape,
    attributes,
    events_of,
    links_of,
    position_of,
    readable,
    shape,
    span_name,
    status_of,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, Status, TraceState

    from rtobs._journey.record import HopRecord

_MOST_KEYS: Final = 1024
_MOST_PAIRS: Final = 4096
_MOST_SOURCES: Final = 256
_MOST_NAMES: Final = 1024
"""Bounds of what is remembered; at a bound everything is forgotten, and what is still used is soon back."""
_MOST_VALUES: Final = 64
_STRIKES: Final = 8
"""A key that has had more than 64 values eight times over is one that identifies: its values are not remembered."""
_SHORT: Final = 120
"""Longest value whose lengths all fit one byte whatever short key stands before it."""

_KINDS: Final = {
    SpanKind.INTERNAL: b"\x30\x01", SpanKind.SERVER: b"\x30\x02", SpanKind.CLIENT: b"\x30\x03",
    SpanKind.PRODUCER: b"\x30\x04", SpanKind.CONSUMER: b"\x30\x05",
}  # fmt: skip
_LOCAL: Final = b"\x00\x01\x00\x00"
_REMOTE: Final = b"\x00\x03\x00\x00"
"""Bits 8 and 9 of a span's flags: it is known whether the parent is remote, and it is."""
_FROM_LOCAL: Final = b"\x85\x01" + _LOCAL
_FROM_REMOTE: Final = b"\x85\x01" + _REMOTE
_times = struct.Struct("<BQBQ").pack
_time = struct.Struct("<BQ").pack


Source = tuple[bytes, bytes]
"""The ResourceSpans and the ScopeSpans that a span belongs in, as bytes, without the spans."""


_from_hex = unhexlify


class _Key:
    """What is known of one attribute's name."""

    __slots__ = ("double", "heads", "pairs", "raw", "strikes")

    def __init__(self, name: object) -> None:
        self.raw = field(b"\x0a", utf8(name))
        self.pairs: dict[str, bytes] = {}
        """Whole attributes by their value, where there are few values."""
        self.strikes = 0
        self.heads: dict[int, bytes] = {}
        """All that stands before a text, by its length."""
        self.double = b"\x4a" + varint(len(self.raw) + 11) + self.raw + b"\x12\x09\x21"

    def head(self, size: int) -> bytes:
        """Return what stands before a text of *size* bytes, fewer than ``_SHORT``."""
        whole = len(self.raw) + size + 4
        found = self.heads[size] = b"\x4a%b%b\x12%c\x0a%c" % (varint(whole), self.raw, size + 2, size)
        return found


def _long(key: _Key, raw: bytes) -> bytes:
    return field(b"\x4a", key.raw + field(b"\x12", field(b"\x0a", raw)))


_ID = _Key(Attribute.MESSAGE_ID.value)
_CID_LENGTH: Final = 32
_CID_HEAD: Final = _Key(Attribute.CORRELATION_ID.value).head(32)
_LAG_HEAD: Final = _Key(Attribute.LAG.value).double
_SPAN_IDS: Final = b"\x0a\x10%b\x12\x08%b"


class SpanEncoder:
    """Encodes hops with their stages, and spans of other libraries; remembers what comes again."""

    def __init__(self, resource: Resource) -> None:
        """Make hops spans of *resource*; other spans have their own."""
        self.resource = resource
        self.lost = 0
        """Attributes that could not be encoded so far; their spans can, and say how many they lack."""
        self._keys: dict[object, _Key] = {}
        self._pairs = 0
        self._names: dict[tuple[object, str | SpanKind], bytes] = {}
        self._shapes: dict[Shape, bytes] = {}
        self._last_status: tuple[Status | None, bytes] = (None, b"")
        self._groups: dict[int, tuple[Resource, bytes]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, bytes]] = {}
        self._own = (self._resource_bytes(resource), self._scope_bytes(SCOPE))

    # Whole spans -----------------------------------------------------------------------------------------------------

    def hop(self, record: HopRecord) -> Unit:
        """Return an ended hop's span and its stages' child spans, for ``request``.

        Raises:
            Exception: it cannot be encoded.
        """
        known = shape(record) if record.stages is None else None
        if known is not None and record.journey is not None and len(record.journey.correlation_id) == _CID_LENGTH:
            data = self._plain(record, known)
            return 1, len(data), (self._own, data)
        if record.stages:
            spans = [self._span(span) for span in readable(record, self.resource)]
            return len(spans), sum(map(len, spans)), (self._own, b"".join(spans))
        kind, start_ns = record.kind, record.wall_ns
        parts = [b"\x0a\x10" + _from_hex(record.trace_hex) + b"\x12\x08" + _from_hex(record.span_hex)]
        if record.tracestate:
            _state(parts, record.get_span_context().trace_state)
        remote = False
        if record.parent_hex:
            remote = kind in REMOTE
            parts.append(b"\x22\x08" + _from_hex(record.parent_hex))
        name = span_name(record)
        parts.append(self._names.get((name, kind)) or self._name(name, kind, KINDS[kind]))
        parts.append(_times(0x39, start_ns, 0x41, start_ns + record.duration_ns))
        self._attributes(parts, attributes(record), 0)
        events, links, status = events_of(record), links_of(record), status_of(record)
        if events:
            parts.extend(map(self._event, events))
        if links:
            parts.extend(map(self._link, links))
        if status is not self._last_status[0]:
            self._last_status = (status, _status(status))
        parts.append(self._last_status[1])
        parts.append(_FROM_REMOTE if remote else _FROM_LOCAL)
        data = b"".join(parts)
        data = b"\x12%b%b" % (varint(len(data)), data)
        return 1, len(data), (self._own, data)

    def _plain(self, record: HopRecord, known: Shape) -> bytes:
        """Return the span of a hop of a known shape: what all of these have in common was encoded once."""
        static = self._shapes.get(known)
        if static is None:
            static = self._shape(record, known)
        span, parent = record.drawn_hex or record.span_hex, record.parent_hex
        parts = [_SPAN_IDS % (_from_hex(record.trace_hex), _from_hex(span)), static]
        start_ns, message, journey = record.wall_ns, record.message, record.journey
        if parent:
            parts.append(b"\x22\x08" + _from_hex(parent))
        parts.append(_FROM_REMOTE if parent and record.kind in REMOTE else _FROM_LOCAL)
        parts.append(_times(0x39, start_ns, 0x41, start_ns + record.duration_ns))
        if journey is not None:
            parts.append(_CID_HEAD + journey.correlation_id.encode())
        if record.lag is not None:
            parts.append(_LAG_HEAD + double(record.lag))
        if message is not None and message.id:
            raw = redaction.redact(message.id).encode()
            size = len(raw)
            parts.append((_ID.heads.get(size) or _ID.head(size)) + raw if size < _SHORT else _long(_ID, raw))
        if message is not None and message.position is not None:
            self._attributes(parts, position_of(message.position), 0)
        data = b"".join(parts)
        return b"\x12%b%b" % (varint(len(data)), data)

    def _shape(self, record: HopRecord, known: Shape) -> bytes:
        parts = [self._name(span_name(record), record.kind, KINDS[record.kind])]
        static = {name: value for name, value in attributes(record, known).items() if name not in OWN}
        self._attributes(parts, static, 0)
        parts.append(_status(status_of(record)))
        if len(self._shapes) >= _MOST_NAMES:
            self._shapes.clear()
        found = self._shapes[known] = b"".join(parts)
        return found

    def span(self, span: ReadableSpan) -> Unit:
        """Return another library's ended span, for ``request``.

        Raises:
            Exception: it cannot be encoded.
        """
        source = (self._resource_bytes(span.resource), self._scope_bytes(span.instrumentation_scope))
        data = self._span(span)
        return 1, len(data), (source, data)

    def _span(self, span: ReadableSpan) -> bytes:
        context, parent = span.get_span_context(), span.parent
        if context is None:
            raise ValueError("a span without ids")
        parts = _ids(context.trace_id, context.span_id)
        _state(parts, context.trace_state)
        if parent is not None:
            parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
        parts.append(self._name(span.name, span.kind, span.kind))
        parts.append(_times(0x39, _moment(span.start_time), 0x41, _moment(span.end_time)))
        self._attributes(parts, span.attributes, span.dropped_attributes)
        parts.extend(map(self._event, span.events or ()))
        _count(parts, b"\x60", span.dropped_events)
        parts.extend(map(self._link, span.links or ()))
        _count(parts, b"\x70", span.dropped_links)
        parts.append(_status(span.status))
        parts.append(_FROM_REMOTE if parent is not None and parent.is_remote else _FROM_LOCAL)
        return field(b"\x12", b"".join(parts))

    def _name(self, name: Any, which: str | SpanKind, kind: SpanKind) -> bytes:
        """Return the fields of name and kind; *which* is the kind as it is remembered, for an enum is slow to hash."""
        found = self._names.get((name, which))
        if found is None:
            found = field(b"\x2a", utf8(name)) + _KINDS[kind]
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            if len(found) < _MOST_NAMES:
                self._names[name, which] = found
        return found

    # Attributes ------------------------------------------------------------------------------------------------------

    def _attributes(self, parts: list[bytes], found: Mapping[str, Any] | None, dropped: int) -> None:
        """Add a span's attributes, and how many there are not."""
        add, keys, lost = parts.append, self._keys, 0
        for name, value in found.items() if found else ():
            key = keys.get(name)
            if key is not None and value.__class__ is str:
                pair = key.pairs.get(value)
                if pair is not None:
                    add(pair)
                    continue
            try:
                self._attribute(add, key or self._key(name), value)
            except Exception:  # noqa: BLE001  one attribute is lost, as it is with the SDK; its span is not
                lost += 1
        self.lost += lost
        _count(parts, b"\x50", dropped + lost)

    def _key(self, name: Any) -> _Key:
        found = _Key(name)
        if len(self._keys) >= _MOST_KEYS:
            self._forget()
        if len(found.raw) < _SHORT:
            self._keys[name] = found
        return found

    def _forget(self) -> None:
        self._keys.clear()
        self._pairs = 0

    def _attribute(self, add: Any, key: _Key, value: Any) -> None:
        kind = value.__class__
        if kind is str:
            raw = value.encode()
            size = len(raw)
            if size < _SHORT:
                head = key.heads.get(size) or key.head(size)
                if key.strikes < _STRIKES:
                    self._remember(key, value, head + raw)
                add(head)
                add(raw)
                return
        elif kind is float:
            add(key.double + double(value))
            return
        add(field(b"\x4a", key.raw + field(b"\x12", any_value(value))))

    def _remember(self, key: _Key, value: str, pair: bytes) -> None:
        if len(key.pairs) >= _MOST_VALUES:
            self._pairs -= len(key.pairs)
            key.pairs.clear()
            key.strikes += 1
        if self._pairs >= _MOST_PAIRS:
            self._forget()
        key.pairs[value] = pair
        self._pairs += 1

    # Inside spans ----------------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> bytes:
        parts = [_time(0x09, event.timestamp), field(b"\x12", utf8(event.name))]
        self._further(parts, b"\x1a", event.attributes, b"\x20", event.dropped_attributes)
        return field(b"\x5a", b"".join(parts))

    def _link(self, link: Link) -> bytes:
        context = link.context
        parts = _ids(context.trace_id, context.span_id)
        self._further(parts, b"\x22", link.attributes, b"\x28", link.dropped_attributes)
        parts.append(b"\x35" + (_REMOTE if context.is_remote else _LOCAL))
        return field(b"\x6a", b"".join(parts))

    def _further(
        self, parts: list[bytes], tag: bytes, found: Mapping[str, Any] | None, count_tag: bytes, dropped: int
    ) -> None:
        """Add attributes of what comes seldom, and how many there are not."""
        lost = 0
        for name, value in found.items() if found else ():
            try:
                parts.append(field(tag, key_value(name, value)))
            except Exception:  # noqa: BLE001  one attribute is lost, as it is with the SDK
                lost += 1
        self.lost += lost
        _count(parts, count_tag, dropped + lost)

    # What spans share ------------------------------------------------------------------------------------------------

    def _resource_bytes(self, resource: Resource) -> bytes:
        found = self._groups.get(id(resource))
        if found is None:
            parts: list[bytes] = []
            self._further(parts, b"\x0a", resource.attributes, b"\x10", 0)
            data = field(b"\x0a", b"".join(parts)) + _text(b"\x1a", resource.schema_url)
            if len(self._groups) >= _MOST_SOURCES:
                self._groups.clear()
            found = self._groups[id(resource)] = (resource, data)  # kept, so that its id stays its own
        return found[1]

    def _scope_bytes(self, scope: InstrumentationScope | None) -> bytes:
        found = self._scopes.get(id(scope))
        if found is None:
            parts: list[bytes] = []
            if scope is not None:
                parts += (_text(b"\x0a", scope.name), _text(b"\x12", scope.version))
                self._further(parts, b"\x1a", scope.attributes, b"\x20", 0)
            data = field(b"\x0a", b"".join(parts)) + _text(b"\x1a", scope.schema_url if scope is not None else "")
            if len(self._scopes) >= _MOST_SOURCES:
                self._scopes.clear()
            found = self._scopes[id(scope)] = (scope, data)  # as above
        return found[1]


def request(found: Iterable[tuple[Source, bytes]]) -> bytes:
    """Return an ExportTraceServiceRequest with the contents of units, grouped by resource and scope."""
    resources: dict[bytes, dict[bytes, list[bytes]]] = {}
    last: Source | None = None
    spans: list[bytes] = []
    for source, data in found:
        if source is not last:  # as a rule all are of one
            last = source
            spans = resources.setdefault(source[0], {}).setdefault(source[1], [])
        spans.append(data)
    return b"".join(
        field(b"\x0a", resource + b"".join(field(b"\x12", scope + b"".join(spans)) for scope, spans in scopes.items()))
        for resource, scopes in resources.items()
    )


def _ids(trace_id: int, span_id: int) -> list[bytes]:
    """Begin a span or a link."""
    return [b"\x0a\x10", trace_id.to_bytes(16, "big"), b"\x12\x08", span_id.to_bytes(8, "big")]


def _state(parts: list[bytes], state: TraceState | None) -> None:
    if state:
        parts.append(field(b"\x1a", ",".join([f"{key}={value}" for key, value in state.items()]).encode()))


def _status(status: Status | None) -> bytes:
    if status is None:
        return b""
    code = status.status_code.value
    return field(b"\x7a", _text(b"\x12", status.description) + (b"\x18" + varint(code) if code else b""))


def _text(tag: bytes, text: object) -> bytes:
    return field(tag, utf8(text)) if text else b""


def _count(parts: list[bytes], tag: bytes, number: int) -> None:
    if number:
        parts.append(tag + varint(number))


def _moment(time_ns: int | None) -> int:
    return 0 if time_ns is None else time_ns
