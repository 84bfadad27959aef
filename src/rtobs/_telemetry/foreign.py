"""Another library's span as it may leave: searched and bounded as ours are.

Pure; for the export thread. Only where the process's provider is the one we set do such spans come by here. Must not
know exporters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

from rtobs import _redaction as redaction

_LIMIT = redaction.FOREIGN_LIMIT


class _Cleaned(ReadableSpan):
    """A span that knows how much the one it stands for had dropped."""

    _dropped: tuple[int, int] = (0, 0)

    @property
    def dropped_events(self) -> int:
        return self._dropped[0]

    @property
    def dropped_links(self) -> int:
        return self._dropped[1]


def cleaned(span: ReadableSpan) -> ReadableSpan:
    """Return *span*, or one like it without what should not leave."""
    name, status = _text(span.name, redaction.NAME_LIMIT), _status(span.status)
    before, events, links = span.attributes, span.events, span.links
    found = _attributes(before, span.dropped_attributes)
    new_events, new_links = [_event(one) for one in events], [_link(one) for one in links]
    if (
        name is span.name
        and found is before
        and status is span.status
        and all(map(_is, new_events, events))
        and all(map(_is, new_links, links))
    ):
        return span
    new = _Cleaned(
        name, span.context, span.parent, span.resource, found, new_events, new_links, span.kind, None, status,
        span.start_time, span.end_time, span.instrumentation_scope,
    )  # fmt: skip
    new._dropped = (span.dropped_events, span.dropped_links)  # noqa: SLF001  of the class above
    return new


def _is(one: object, other: object) -> bool:
    return one is other


def _text(value: Any, limit: int) -> Any:
    """Return *value* itself where there is nothing to take out: what cannot be encoded is the encoder's to refuse."""
    if not isinstance(value, str):
        return value
    found = redaction.redact(value, limit)
    return value if len(value) <= limit and found == redaction.text(value, limit) else found


def _field(name: Any, value: Any) -> Any:
    found = redaction.field(str(name), value, _LIMIT)
    return _text(value, _LIMIT) if isinstance(value, str) and found == redaction.text(value, _LIMIT) else found


def _attributes(before: Mapping[str, Any] | None, dropped: int) -> Any:
    if not before:
        return before
    found = {_text(name, redaction.NAME_LIMIT): _field(name, value) for name, value in before.items()}
    if len(found) == len(before) and all(_same(found.get(name), value) for name, value in before.items()):
        return before
    if not dropped:
        return found
    bounded = BoundedAttributes(None, found, immutable=False)
    bounded.dropped = dropped
    return bounded


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, tuple) and isinstance(other, tuple) and one == other)


def _event(event: Any) -> Any:
    name, found = _text(event.name, redaction.NAME_LIMIT), _attributes(event.attributes, event.dropped_attributes)
    if name is event.name and found is event.attributes:
        return event
    return Event(name, found, event.timestamp)


def _link(link: Any) -> Any:
    found = _attributes(link.attributes, link.dropped_attributes)
    return link if found is link.attributes else Link(link.context, found)


def _status(status: Any) -> Any:
    told = _text(status.description, redaction.TEXT_LIMIT)
    return status if told is status.description else Status(status.status_code, told)
