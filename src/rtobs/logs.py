"""Your own log lines in a message's story: a structlog processor that says which journey a line belongs to.

    structlog.configure(processors=[rtobs.logs.add_journey, structlog.processors.JSONRenderer()])

Reads the current hop; must not know where log lines go, nor touch anybody's configuration.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from opentelemetry.trace import get_current_span

from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import LogKey
from rtobs._hop import engine


def add_journey(logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what is known of the current hop to a log event, for use in a structlog chain of your own.

    Adds ``tenant_id``, ``correlation_id``, ``destination``, ``trace_id`` (32 hex digits) and ``span_id`` (16 hex
    digits, of the innermost span: a stage's or another library's inside the hop), as far as they are known. Outside a
    hop it adds nothing. Keys that are there already stay as they are. Never raises.
    """
    del logger, method_name
    try:
        for name, value in _known():
            if value and name not in event_dict:
                event_dict[name] = value
    except Exception as error:  # noqa: BLE001  the user's line is logged without us
        _guard.fault("logs.add_journey", error)
    return event_dict


def _known() -> list[tuple[str, str]]:
    record = engine.current()
    if record is None or record.journey is None:
        return []
    span = get_current_span().get_span_context()
    trace_id, span_id = (span.trace_id, span.span_id) if span.is_valid else (record.trace_id, record.span_id)
    return [
        (LogKey.TENANT_ID.value, redaction.text(record.journey.tenant)),  # looked at when it was set
        (LogKey.CORRELATION_ID.value, record.journey.correlation_id),
        (LogKey.DESTINATION.value, redaction.redact(record.name)),
        (LogKey.TRACE_ID.value, f"{trace_id:032x}"),
        (LogKey.SPAN_ID.value, f"{span_id:016x}"),
    ]
