"""Tracestate: what its member ``ot`` says of sampling: ``rv``, the randomness, and ``th``, the threshold.

The rules are OpenTelemetry's (TraceState: Probability Sampling) and W3C's (Trace Context §3.3 and §3.5). Pure: text and
integers. Must not know who samples what, or why.
"""

from __future__ import annotations

import re
from typing import Final

from rtobs._journey.randomness import DIGITS, MASK

ALL: Final = 0
"""The threshold that drops nothing."""
_MOST_MEMBERS: Final = 32
_MOST_VALUE: Final = 256
_TH: Final = re.compile(r"[0-9a-f]{1,14}", re.ASCII)
_RV: Final = re.compile(r"[0-9a-f]{14}", re.ASCII)


def randomness(identity: int, tracestate: str = "") -> int:
    """Return the randomness of a trace: explicit in its tracestate, else the low 56 bits of its id, 128 bits."""
    if "rv:" in tracestate:
        explicit = _RV.fullmatch(_parsed(tracestate).get("rv", ""))
        if explicit is not None:
            return int(explicit[0], 16)
    return identity & MASK


def th(limit: int) -> str:
    """Return a threshold as ``th`` has it: hexadecimal without zeros at its end."""
    return f"{limit:014x}".rstrip("0") or "0"


def limit_of(tracestate: str) -> int | None:
    """Return the threshold that a tracestate says, None where it says none."""
    if "th:" not in tracestate:
        return None
    found = _TH.fullmatch(_parsed(tracestate).get("th", ""))
    return int(found[0].ljust(DIGITS, "0"), 16) if found is not None else None


def root_state(limit: int, *, explicit: int | None = None, tracestate: str = "") -> str:
    """Return the tracestate of a sampled span that begins a trace; *explicit*: randomness that its id lacks."""
    if not tracestate and explicit is None:
        return f"ot=th:{th(limit)}"
    return _with(tracestate, th(limit), None if explicit is None else f"{explicit:014x}")


def child_state(tracestate: str, trace_id: int, *, sampled: bool) -> str:
    """Return what a child has of its parent's tracestate: all of it, without a ``th`` that cannot be true.

    One that cannot be: the span is not sampled, or is although the randomness is below the threshold.
    """
    if "ot=" not in tracestate:
        return tracestate
    limit = limit_of(tracestate)
    if limit is None:
        fine = "th:" not in tracestate or "th" not in _parsed(tracestate)
    else:
        fine = sampled and randomness(trace_id, tracestate) >= limit
    return tracestate if fine else without_th(tracestate)


def without_th(tracestate: str) -> str:
    """Return a tracestate of a span of which nobody knows how probable it was: without ``th``, with ``rv``."""
    return _with(tracestate, None, None) if "th:" in tracestate else tracestate


def certain_state(tracestate: str, limit: int = ALL) -> str:
    """Return the tracestate of a span whose kind is always kept, or kept at *limit*, whatever the head said."""
    return _with(tracestate, th(limit), None)


def only_rv(tracestate: str) -> str:
    """Return of a tracestate no more than what never changes along a journey: its ``rv``, if it is explicit."""
    explicit = _RV.fullmatch(_parsed(tracestate).get("rv", "")) if "rv:" in tracestate else None
    return f"ot=rv:{explicit[0]}" if explicit is not None else ""


def _members(tracestate: str) -> list[str]:
    return [member for member in (part.strip(" \t") for part in tracestate.split(",")) if member]


def _parsed(tracestate: str) -> dict[str, str]:
    """Return the sub-keys of the member ``ot``."""
    for member in _members(tracestate):
        if member.startswith("ot="):
            return dict(_pairs(member[3:]))
    return {}


def _pairs(value: str) -> list[tuple[str, str]]:
    return [(key, text) for key, colon, text in (part.partition(":") for part in value.split(";")) if colon]


def _with(tracestate: str, limit: str | None, explicit: str | None) -> str:
    """Return *tracestate* with this ``th`` or none, and with this ``rv`` or what it had.

    Other sub-keys stay, other members stay in their order, and a changed ``ot`` goes to the front (W3C Trace Context
    §3.5).
    """
    members = _members(tracestate)
    others = [member for member in members if not member.startswith("ot=")]
    pairs = dict(_pairs(next((member[3:] for member in members if member.startswith("ot=")), "")))
    pairs.pop("th", None)
    if limit is not None:
        pairs = {"th": limit, **pairs}
    if explicit is not None:
        pairs["rv"] = explicit
    own = ";".join(f"{key}:{value}" for key, value in pairs.items())
    if not own or len(own) > _MOST_VALUE:
        return ",".join(others)
    return ",".join([f"ot={own}", *others[: _MOST_MEMBERS - 1]])
