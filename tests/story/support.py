"""Journeys of real hops as the JSON that collectors and backends give of them."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans


def with_base64(spans) -> dict[str, Any]:
    """Return an OTLP request in Protobuf's own JSON, as Tempo writes it: ids in base64, enumerations by name."""
    return MessageToDict(encode_spans(list(spans)))


def with_hex(spans) -> dict[str, Any]:
    """Return an OTLP request in OTLP's JSON: ids in hexadecimal, enumerations as numbers."""
    kinds = ["SPAN_KIND_UNSPECIFIED", "SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT",
             "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"]  # fmt: skip
    codes = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"]

    def changed(value, name=""):
        if isinstance(value, dict):
            return {key: changed(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [changed(one, name) for one in value]
        if name in ("traceId", "spanId", "parentSpanId"):
            return base64.b64decode(value).hex()
        if name == "kind":
            return kinds.index(value)
        return codes.index(value) if name == "code" else value

    return changed(with_base64(spans))


def write(path, *groups):
    """Write a file as a collector's file exporter does: one request a line."""
    path.write_text("".join(json.dumps(with_hex(group)) + "\n" for group in groups))
    return path
