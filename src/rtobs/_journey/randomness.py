"""Randomness: the one number, 56 bits, by which a journey is sampled or not, and the trace ids that carry it.

It is the low 56 bits of a trace's id, or ``rv`` of its tracestate where the id does not carry the journey's
(OpenTelemetry, TraceState: Probability Sampling). Pure. Must not know rates, or what is sampled.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

BITS: Final = 56
MASK: Final = (1 << BITS) - 1
DIGITS: Final = 14
"""Hexadecimal digits of it."""


def foreign_randomness(correlation_id: str, key: bytes | None = None) -> int:
    """Return randomness for a journey whose name we did not draw, and whose bits may therefore not be random."""
    return int.from_bytes(blake2b(correlation_id.encode(), digest_size=7, key=(key or b"")[:64]).digest(), "big")


def branch_randomness(journey: int, number: int) -> int:
    """Return the randomness of the trace of its own that send *number* begins: not the journey's, always the same.

    Were it the journey's, all of ten thousand branches would be sampled or none.
    """
    mixed = journey + number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF  # SplitMix64 (Steele, Lea, Flood 2014)
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 31) & MASK


def trace_id_with(randomness: int, bits: int) -> int:
    """Return a trace id that carries *randomness* itself, so that it needs no ``rv``; *bits* are 72 random ones."""
    return bits << BITS | randomness


def explicit(randomness: int) -> str:
    """Return the tracestate of a trace whose id does not carry *randomness*."""
    return f"ot=rv:{randomness:014x}"
