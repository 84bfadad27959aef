"""Spans as collectors and backends write them in OTLP's JSON form (opentelemetry-proto, "JSON Protobuf Encoding").

Ids may be hexadecimal or, as in Protobuf's own JSON, base64; numbers may be text; enumerations may be names. What is
not a span is left out. Must not know what a journey tells.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from rtobs import _redaction as redaction
from rtobs._conventions import Attribute

Value = str | int | float | bool

_HEX: Final = {size: re.compile(rf"[0-9a-fA-F]{{{size * 2}}}", re.ASCII) for size in (8, 16)}
_WRAPPERS: Final = ("trace", "result", "data")
"""Where backends put what OTLP has at the top."""
_GROUPS: Final = ("resourceSpans", "resource_spans", "batches")
_MOST_DEPTH: Final = 8


class Event(NamedTuple):
    """Something that happened inside a span."""

    name: str
    time_ns: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Span:
    """One finished operation."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Value]
    events: tuple[Event, ...] = field(default=())
    links: tuple[tuple[str, str], ...] = ()
    """Trace and span ids."""

    @property
    def key(self) -> tuple[str, str]:
        """Its trace and span id."""
        return self.trace_id, self.span_id

    @property
    def hop(self) -> str:
        """The kind of hop it is; empty for a stage or another library's span."""
        return self.text(Attribute.HOP)

    def text(self, name: str) -> str:
        """Return attribute *name* as text, empty where it is missing."""
        value = self.attributes.get(name, "")
        return value if isinstance(value, str) else str(value)

    def number(self, name: str) -> float | None:
        """Return attribute *name* as a number, None where it is missing or is none."""
        value = self.attributes.get(name)
        return None if isinstance(value, bool | str | None) else float(value)


def spans(found: object, depth: int = 0) -> Iterator[Span]:
    """Yield the spans in one parsed JSON value: an OTLP request, or the answer of a backend round one."""
    if isinstance(found, list) and depth < _MOST_DEPTH:
        for one in cast("list[object]", found):
            yield from spans(one, depth + 1)
    if not isinstance(found, dict) or depth >= _MOST_DEPTH:
        return
    have = cast("dict[str, object]", found)
    for name in _WRAPPERS:
        yield from spans(have.get(name), depth + 1)
    for name in _GROUPS:
        for group in _dicts(have.get(name)):
            service = str(_attributes(_dict(group.get("resource")).get("attributes")).get("service.name", ""))
            scopes = group.get("scopeSpans") or group.get("scope_spans") or group.get("instrumentationLibrarySpans")
            for scope in _dicts(scopes):
                for raw in _dicts(scope.get("spans")):
                    span = _span(raw, service)
                    if span is not None:
                        yield span


def _span(raw: dict[str, Any], service: str) -> Span | None:
    trace_id, span_id = _id(_of(raw, "traceId"), 16), _id(_of(raw, "spanId"), 8)
    start = _int(_of(raw, "startTimeUnixNano"))
    if not trace_id or not span_id:
        return None
    status = _dict(raw.get("status"))
    return Span(
        trace_id,
        span_id,
        _id(_of(raw, "parentSpanId"), 8),
        redaction.text(str(raw.get("name") or "")),
        service,
        start,
        max(_int(_of(raw, "endTimeUnixNano")), start),
        status.get("code") in (2, "2", "STATUS_CODE_ERROR"),
        _attributes(raw.get("attributes")),
        tuple(
            Event(
                redaction.text(str(one.get("name") or "")),
                _int(_of(one, "timeUnixNano")),
                _attributes(one.get("attributes")),
            )
            for one in _dicts(raw.get("events"))
        ),
        tuple((_id(_of(one, "traceId"), 16), _id(_of(one, "spanId"), 8)) for one in _dicts(raw.get("links"))),
    )


def _of(raw: dict[str, Any], name: str) -> object:
    """Return a field by its JSON name, or by the one that the protocol's source has."""
    return raw[name] if name in raw else raw.get(re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name))


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    for one in cast("list[object]", value) if isinstance(value, list) else ():
        if isinstance(one, dict):
            yield cast("dict[str, Any]", one)


def _id(value: object, size: int) -> str:
    """Return an id as hexadecimal digits in lower case; empty where it is none or all zero."""
    if not isinstance(value, str):
        return ""
    found = value.lower() if _HEX[size].fullmatch(value) else ""
    if not found and value:
        try:
            raw = b64decode(value, validate=True)
        except ValueError:
            return ""
        found = raw.hex() if len(raw) == size else ""
    return found if found.strip("0") else ""


def _int(value: object) -> int:
    try:
        return max(int(cast("str", value)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _attributes(pairs: object) -> dict[str, Value]:
    return {redaction.text(str(pair.get("key") or "")): _value(_dict(pair.get("value"))) for pair in _dicts(pairs)}


def _value(value: dict[str, Any]) -> Value:  # noqa: PLR0911  one line for each type
    for name, found in value.items():
        match name.replace("_v", "V"):
            case "stringValue":
                return redaction.text(str(found))
            case "boolValue":
                return bool(found)
            case "intValue":
                try:
                    return int(found)
                except (TypeError, ValueError, OverflowError):
                    return ""
            case "doubleValue":
                try:
                    return float(found)
                except (TypeError, ValueError, OverflowError):
                    return ""
            case "arrayValue":
                return ", ".join(str(_value(one)) for one in _dicts(_dict(found).get("values")))
            case _:
                return ""
    return ""
