"""Where log events go: one JSON line to stdout or the standard logger, or as they are to a function.

Must not know what an event is about.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

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
    """Print one event."""
    sys.stdout.write(line(event) + "\n")
    sys.stdout.flush()  # into a pipe, it would wait for 8 kB of explanations


def to_logging(event: Mapping[str, Any]) -> None:
    """Hand one event to the standard logger ``rtobs``."""
    level = _LEVELS.get(str(event.get(LogKey.LEVEL)), 20)
    if _guard.log.isEnabledFor(level):
        _guard.log.log(level, "%s", line(event))
