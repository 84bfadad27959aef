"""Where log events go: one JSON line to stdout or the standard logger, or as they are to a function.

Must not know what an event is about.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import REQUIRED_LOG_KEYS, LogKey

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def line(event: Mapping[str, Any]) -> str:
    """Return one event as one line of JSON: ASCII, no line break whatever is in it, empty facts left out.

    The keys that people filter by are always there, empty where nothing is known.
    """
    fields = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in event.items()
        if name in REQUIRED_LOG_KEYS or value not in ("", None)
    }
    return json.dumps(fields, ensure_ascii=True)


def to_stdout(event: Mapping[str, Any]) -> None:
    """Print one event. What cannot be written (disk full, reader gone, stream closed) is counted as dropped."""
    text = line(event) + "\n"
    try:
        _write(sys.stdout, text)
    except Exception as error:  # noqa: BLE001  the stream is the host's, and may be anything
        _guard.tally(names.TELEMETRY_DROPPED, "logs", "export_failed")
        _guard.tell("stdout", "log events cannot be written to stdout, they are dropped: %s", type(error).__name__)


def _write(stream: Any, text: str) -> None:
    """Write a whole line at once, and leave nothing of ours in the host's buffer.

    Python flushes that once more at the end of the process: a line of ours that failed would change its exit code.
    """
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(raw, io.FileIO):
        stream.write(text)
        stream.flush()  # into a pipe, it would wait for 8 kB of explanations
        return
    stream.flush()
    data = text.encode("ascii")
    while data:
        written = raw.write(data)
        if written is None:
            raise BlockingIOError("nobody reads, and the host does not want to wait")
        data = data[written:]


def to_logging(event: Mapping[str, Any]) -> None:
    """Hand one event to the standard logger ``rtobs``."""
    level = _LEVELS.get(str(event.get(LogKey.LEVEL)), 20)
    if _guard.log.isEnabledFor(level):
        _guard.log.log(level, "%s", line(event))
