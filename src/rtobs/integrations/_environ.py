"""A WSGI environ, or Django's META, as the headers that a carrier reads. Must not know frameworks or hops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

READ = ("traceparent", "tracestate", "rtobs-journey", "baggage", "x-request-id", "x-correlation-id")
"""The headers that say something about a journey."""

_KEYS = {name: "HTTP_" + name.upper().replace("-", "_") for name in READ}


def headers(environ: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the request's headers that a carrier may read (PEP 3333 §environ Variables)."""
    return {name: value for name, key in _KEYS.items() if (value := environ.get(key)) is not None}
