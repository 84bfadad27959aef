"""The JSON Schema of a declaration, made from its grammar, so that editors know what the reader knows."""

from __future__ import annotations

from typing import Any

from rtobs.slo.durations import PATTERN
from rtobs.slo.grammar import DECLARATION
from rtobs.slo.shapes import (
    ADDRESS,
    Address,
    Choice,
    Duration,
    Field,
    Listing,
    Number,
    Object,
    Shape,
    Table,
    Text,
    Variant,
)


def schema() -> dict[str, Any]:
    """Return the schema; what keys must not say together is beyond it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Service level objectives for rtobs",
        **_of(DECLARATION),
    }


def _of(shape: Shape) -> dict[str, Any]:  # noqa: PLR0911  one for each shape
    match shape:
        case Text():
            return {"type": "string", "pattern": _whole(shape.pattern), "maxLength": shape.longest}
        case Address():
            return {"type": "string", "pattern": _whole(ADDRESS)}
        case Number():
            return _number(shape)
        case Duration():
            return {"type": "string", "minLength": 2, "pattern": _whole(PATTERN)}
        case Choice():
            return {"enum": list(shape.words)}
        case Listing():
            return {
                "type": "array",
                "minItems": int(shape.filled),
                "uniqueItems": True,
                "items": _of(shape.item),
            }
        case Table():
            names = {key: value for key, value in _of(shape.key).items() if key != "type"}
            return {
                "type": "object",
                "minProperties": 1,
                "propertyNames": names,
                "additionalProperties": _of(shape.item),
            }
        case Object():
            return {
                "type": "object",
                "additionalProperties": False,
                "required": [key for key, field in shape.fields.items() if field.required],
                "properties": {key: _field(field) for key, field in shape.fields.items()},
            }
        case Variant():
            return {"oneOf": [_of(one) for one in shape.shapes.values()]}
        case _:
            raise TypeError(shape)


def _field(field: Field) -> dict[str, Any]:
    return {"description": field.says, **_of(field.shape)}


def _number(shape: Number) -> dict[str, Any]:
    kind = "integer" if shape.whole else "number"
    return {"type": kind, "minimum": shape.least + shape.near, "maximum": shape.most - shape.near}


def _whole(pattern: str) -> str:
    """Return a pattern for all of a text, also where ``$`` would let a last line break pass, as in Python."""
    return f"^(?:{pattern})$(?!\\n)"
