"""Shown: a hop as the SDK's processors want to see it when it starts: an SDK span by its type, the hop behind it.

What the SDK itself would build at the start of each span (attributes cleaned one by one, four locks, bounded lists) is
made only where a processor looks; what a processor or a neighbour says goes to the hop. Must not know samplers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, Span

from rtobs._telemetry.readable import SCOPE, readable

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from rtobs._journey.record import HopRecord


class Shown(Span):
    """The SDK span that stands for a hop of ours; as ``CurrentSpan`` it is bounded and ended by nobody but its opener.

    A ``ReadableSpan`` keeps all it tells in fields that this one has not: they are looked up in what the hop is now.
    """

    _instrumentation_scope = SCOPE  # the one thing that is asked of every current span

    def __init__(self, record: HopRecord, resource: Any) -> None:  # pylint: disable=super-init-not-called
        self._record, self._of = record, resource

    def __getattr__(self, name: str) -> Any:
        """Answer what the SDK keeps in a field of its own."""
        if name.startswith("__") or name in {"_record", "_of"}:
            raise AttributeError(name)
        return getattr(self._readable_span(), name)

    def _readable_span(self) -> ReadableSpan:
        return readable(self._record, self._of)[0]

    def get_span_context(self) -> SpanContext:
        return self._record.get_span_context()

    def is_recording(self) -> bool:
        return self._record.is_recording()

    def set_attribute(self, key: str, value: Any) -> None:
        self._record.set_attribute(key, value)

    def set_attributes(self, attributes: Any) -> None:
        self._record.set_attributes(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._record.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self._record.add_link(context, attributes)

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._record.set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False,  # noqa: FBT001, FBT002  the API's own signature
    ) -> None:  # fmt: skip
        self._record.record_exception(exception, attributes, timestamp, escaped)

    def update_name(self, name: str) -> None:
        """Ignore it: a hop is named by its destination."""

    def start(self, start_time: int | None = None, parent_context: Any = None) -> None:
        """Ignore it: it has started."""

    def end(self, end_time: int | None = None) -> None:
        """Ignore it: only the one who opened a hop ends it."""

    def __exit__(self, *error: object) -> None:
        """Ignore it, like ``end``."""
