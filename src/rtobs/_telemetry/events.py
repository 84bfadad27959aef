"""Log events: one per hop that explains something, through a structlog chain of our own.

A healthy hop says nothing: metrics count it. Must not know where events go, or brokers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rtobs import _redaction as redaction
from rtobs._conventions import LogKey
from rtobs._hop.clock import LATE_SECONDS
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._telemetry.keeping import is_slow

if TYPE_CHECKING:
    from rtobs._journey.record import HopRecord

try:
    import structlog
except ValueError:  # it asks whether stdout is a terminal, and the host has closed that
    closed, sys.stdout = sys.stdout, None
    try:
        import structlog
    finally:
        sys.stdout = closed

LogSink = Callable[[Mapping[str, Any]], None]

_QUIET = frozenset({ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED})
_STREAM = "operational"
"""Told from what a security or audit log holds."""


class _Output:
    """The last link of the chain: hands the finished event to the sink under structlog's method names."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink

    def msg(self, event: Mapping[str, Any]) -> None:
        self._sink(event)

    debug = info = warning = error = msg


class EventSink:
    """Turns hops that explain something into log events."""

    sees_quiet = False

    def __init__(self, sink: LogSink, service: str, slow: Mapping[str, float]) -> None:
        """Send events to *sink*; the user's structlog and logging configuration is never touched."""
        self._slow = slow
        self._service = service
        self._log: Any = structlog.wrap_logger(
            _Output(sink),
            processors=[_merge, structlog.processors.add_log_level, _redact, _hand_over],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            context_class=dict,
            cache_logger_on_first_use=False,
        )  # everything said here, so that a structlog.configure of the user's changes nothing

    def end(self, record: HopRecord) -> None:
        """Log an ended hop if it explains something, and each domain event it told."""
        if (
            record.healthy
            and record.events is None
            and not self._slow
            and (record.lag is None or record.lag <= LATE_SECONDS)
        ):
            return
        told = [event for event in record.events or () if event.domain]
        explains = self._explains(record)
        if not explains and not told:
            return
        facts = self._facts(record)
        for event in told:
            own = {**facts, LogKey.TIMESTAMP: _time(event.time_ns)}
            self._log.info(event.name, facts=_with_theirs(own, event.attributes))
        if explains:
            emit = self._log.warning if _is_bad(record) else self._log.info
            own = {**facts, LogKey.EXPLAINS: explains, **self._details(record)}
            emit(f"{record.kind}.{record.outcome or record.result}", facts=_with_theirs(own, record.attributes or {}))

    def _explains(self, record: HopRecord) -> str:
        """Return what the event explains: an outcome, recovered, late, slow; empty for a healthy hop."""
        if record.kind == "receive":
            return ""
        outcome = record.settled or record.outcome
        if record.result == "failed" or outcome not in (None, Outcome.OK):
            return str(outcome or record.result)
        if record.kind == "consume" and record.attempt > 1:
            return "recovered"
        if record.lag is not None and record.lag > self._slow.get(record.name, LATE_SECONDS):
            return "late"
        return "slow" if is_slow(record, self._slow) else ""

    def _facts(self, record: HopRecord) -> dict[str, Any]:
        journey, scope = record.journey, record.scope or record
        message = record.message or scope.message
        facts: dict[str, Any] = {
            LogKey.STREAM: _STREAM,
            LogKey.TIMESTAMP: _time(record.wall_ns + record.duration_ns),
            LogKey.SERVICE: self._service,
            LogKey.HOP: record.kind,
            LogKey.TENANT_ID: journey.tenant if journey is not None else "",
            LogKey.EVENT_ID: record.intent() or (message.id if message is not None else ""),
            LogKey.CORRELATION_ID: journey.correlation_id if journey is not None else "",
            LogKey.DESTINATION: record.name,
            LogKey.RETRY_COUNT: record.attempt - 1,
            LogKey.ERROR_CATEGORY: record.category.value if record.category is not None else "",
            LogKey.OUTCOME: str(record.settled or record.outcome or record.result),
            LogKey.REASON: record.reason,
            LogKey.TRACE_ID: f"{record.trace_id:032x}",
            LogKey.SPAN_ID: f"{record.span_id:016x}",
        }
        if record.channel:
            facts[LogKey.CHANNEL], facts[LogKey.PROVIDER] = record.channel, record.provider
        return facts

    @staticmethod
    def _details(record: HopRecord) -> dict[str, Any]:
        details: dict[str, Any] = {LogKey.DURATION.value: round(record.duration_ns / 1e9, 6)}
        if record.lag is not None:
            details[LogKey.LAG.value] = round(record.lag, 6)
        if record.age is not None:
            details[LogKey.AGE.value] = round(record.age, 6)
        if record.error_type:
            details[LogKey.ERROR.value] = f"{record.error_type}: {record.error_message}"
        failed = next((stage.name for stage in record.stages or () if stage.outcome == "failed"), "")
        if failed:
            details[LogKey.STAGE.value] = failed
        return details


def _is_bad(record: HopRecord) -> bool:
    outcome = record.settled or record.outcome
    if record.category in _QUIET:
        return False
    return record.result == "failed" or outcome in (
        Outcome.FAILED,
        Outcome.DEAD_LETTERED,
        Outcome.EXPIRED,
        Outcome.REJECTED,
    )


def _time(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="milliseconds")


_RESERVED = frozenset(LogKey)


def _with_theirs(own: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Add the user's fields; one that has the name of ours is kept beside it, for ours is what people filter by."""
    for name, value in theirs.items():
        own[f"user.{name}" if name in _RESERVED else name] = value
    return own


def _merge(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Unpack the facts: as keyword arguments, a user's field named `event` or `self` would not pass."""
    facts: dict[str, Any] = event.pop("facts")
    return {**facts, LogKey.EVENT: event[LogKey.EVENT]}


_CLOSED = frozenset({
    LogKey.TIMESTAMP, LogKey.LEVEL, LogKey.STREAM, LogKey.HOP, LogKey.CORRELATION_ID, LogKey.TRACE_ID, LogKey.SPAN_ID,
    LogKey.TENANT_ID, LogKey.ERROR_CATEGORY, LogKey.OUTCOME, LogKey.RETRY_COUNT, LogKey.EXPLAINS,
})  # fmt: skip
"""Facts of our own making; a tenant was looked at when it was set."""


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every key and value safe to render, one record one line, and take out what should not leave."""
    return {
        redaction.redact(key, redaction.NAME_LIMIT): redaction.scalar(value)
        if key in _CLOSED
        else redaction.field(key, redaction.scalar(value))
        for key, value in event.items()
    }


def _hand_over(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[Mapping[str, Any]], dict[str, Any]]:
    return (event,), {}
