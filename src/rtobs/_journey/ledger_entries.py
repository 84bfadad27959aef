"""What a ledger is made of: entries and labels as text, and which of them go where there is no room for all.

Pure; ``ledger`` is what others use. Must not know what an entry is for, nor headers.
"""

from __future__ import annotations

import re
import struct
from binascii import a2b_base64, b2a_base64
from typing import Final, Literal, NamedTuple

from rtobs import _conventions as names
from rtobs import _guard

Kind = Literal["gap", "accept", "consume", "job", "publish", "deliver", "receipt", "trace"]

KINDS: Final[tuple[Kind, ...]] = ("gap", "accept", "consume", "job", "publish", "deliver", "receipt", "trace")
CODES: Final[dict[str, int]] = {kind: code << 5 for code, kind in enumerate(KINDS)}
"""The first byte of an entry by its kind; add the flags below and the attempt minus one, at most 7."""
EXPORTED: Final = 0x10
"""The step's own spans leave: there is nothing to rebuild."""
APART: Final = 0x08
"""The message went into a trace of its own: this step and all before it are in another."""
GAP, ACCEPT, PUBLISH, TRACE = CODES["gap"], CODES["accept"], CODES["publish"], CODES["trace"]

MOST_ENTRIES: Final = 12
SIZE: Final = 28
"""Characters of an entry: 21 bytes."""
MOST_SENDS: Final = 63
MOST_LABELS: Final = 15
NAME_LIMIT: Final = 40
"""Most characters of an encoded name; a longer one is left out."""
SAFE: Final = "-_~/*{}#>+$@"
"""What stands for itself in a name, beside letters and digits; a full stop is written as a colon."""
_64_BITS: Final = (1 << 64) - 1
_TURN: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, and odd: its multiples are all different and far apart."""

_layout = struct.Struct(">BQQI")
pack, _unpack = _layout.pack, _layout.unpack
URL: Final = bytes.maketrans(b"+/", b"-_")
_NAME: Final = rf"[A-Za-z0-9{re.escape(SAFE)}:%]{{0,{NAME_LIMIT}}}"
_PIECE: Final = rf"(?:\({_NAME}(?:\|{_NAME}){{0,2}}\))?[A-Za-z0-9_-]{{{SIZE}}}"
FORM: Final = re.compile(rf"[0-9a-f]{{8}}(?:{_PIECE}){{1,{MOST_ENTRIES}}}", re.ASCII)
"""A whole ledger: the check, then entries, each behind a label where it is the first that has it."""
SPLIT: Final = re.compile(rf"\([^)]*\)|[A-Za-z0-9_-]{{{SIZE}}}", re.ASCII)


class Entry(NamedTuple):
    """One entry as it is written."""

    code: int
    """Kind, flags and attempt."""
    span_id: int
    """Of a trace entry the trace id."""
    start: int = 0
    """Milliseconds since 2025."""
    first: int = 0
    """Milliseconds from the start to the step's first send."""
    more: int = 0
    """Milliseconds from there to this one."""
    number: int = 0
    """Which send of its step this was, 0 = the step is itself a send; of a gap, how many steps were left out there."""
    label: str = ""
    """Service, name and destination as they are written; empty where they are not known."""


def sent_span_id(span_id: int, number: int) -> int:
    """Return the id of the span of a step's send *number*, 1 and up, in the step's own trace."""
    return (span_id ^ number * _TURN) & _64_BITS or 1


def apart_span_id(span_id: int, trace_id: int) -> int:
    """Return the id of the span of a step's send that begins trace *trace_id*."""
    return (span_id ^ trace_id) & _64_BITS or 1


def text_of(entry: bytes) -> str:
    return b2a_base64(entry, newline=False).translate(URL).decode()


def _raw(text: str) -> bytes:
    return a2b_base64(text.replace("-", "+").replace("_", "/"))


def written(entries: list[Entry]) -> str:
    """Return entries as text, each label written before the first that has it."""
    known: dict[str, int] = {}
    parts: list[str] = []
    for entry in entries:
        if entry.code == TRACE:
            parts.append(text_of(bytes((TRACE,)) + entry.span_id.to_bytes(20, "big")))
            continue
        index = 0
        if entry.label:
            if entry.label not in known:
                known[entry.label] = len(known) + 1
                parts.append(entry.label)
            index = known[entry.label]
        when, rest = entry.start << 23 | entry.first, entry.number << 26 | index << 22 | entry.more
        parts.append(text_of(pack(entry.code, entry.span_id, when, rest)))
    return "".join(parts)


def shorter(entries: list[Entry], sent: str) -> list[Entry]:
    """Return what takes less room: of the steps in the middle the service alone, then fewer steps, then no names."""
    middle = [_service_only(entry) for entry in entries[1:-1]]
    if middle != entries[1:-1]:
        return [entries[0], *middle, entries[-1]]
    found = fewer(entries, sent)
    if len(found) < len(entries):
        return found
    if any(entry.label for entry in entries):
        return [entry._replace(label="") for entry in entries]
    return []


def _service_only(entry: Entry) -> Entry:
    service, more, _ = entry.label.partition("|")
    return entry._replace(label=f"{service})" if service != "(" else "") if more else entry


def fewer(entries: list[Entry], sent: str) -> list[Entry]:
    """Return one entry fewer: a gap in the middle takes in what stands beside it, in the larger half first.

    What says where another trace begins stays. Where nothing else is left, all before the last step becomes one gap: a
    step without anything before it would seem to begin the journey.
    """
    last = len(entries) - 1
    inside = {index for index in range(1, last) if not _marks_trace(entries[index])}
    hole = next((index for index in inside if _is_hole(entries[index])), None)
    pairs = [index for index in inside if index + 1 in inside and hole in (None, index, index + 1)]
    if pairs:
        first = min(pairs, key=lambda index: (abs(2 * index + 1 - last), index))
        return [*entries[:first], _merged(entries[first : first + 2], 0), *entries[first + 2 :]]
    mark = [entry for entry in entries[-2:-1] if entry.code == TRACE]
    before = entries[: last - len(mark)]
    if not before or (len(before) == 1 and _is_hole(before[0])):
        return entries
    if entries[-1].code & APART and not mark:  # they stand in the correlation id's trace, which is not known here
        return []
    return [_merged(before, mark[0].span_id if mark else int(sent[:32], 16)), *mark, entries[-1]]


def _marks_trace(entry: Entry) -> bool:
    return entry.code == TRACE or entry.code & APART != 0


def _is_hole(entry: Entry) -> bool:
    return entry.code == GAP and entry.number > 0


def _merged(entries: list[Entry], trace_id: int) -> Entry:
    """Return the gap that stands for *entries*, counted; the last of them handed over into *trace_id*."""
    steps = sum(entry.number if entry.code == GAP else entry.code != TRACE for entry in entries)
    _guard.tally(names.PROPAGATION_REJECTED, "ledger_full")
    return Entry(GAP, sent_from(entries[-1], trace_id), number=min(max(steps, 1), MOST_SENDS))


def sent_from(entry: Entry, trace_id: int) -> int:
    """Return the span that *entry*'s message was sent from, in trace *trace_id*."""
    if entry.code & APART:
        return apart_span_id(entry.span_id, trace_id)
    if entry.number and entry.code != GAP:
        return sent_span_id(entry.span_id, entry.number)
    return entry.span_id


def parse(body: str) -> list[Entry] | None:
    """Return the entries of a text that has the form of a ledger; None where what they say cannot be."""
    known: list[str] = [""]
    entries: list[Entry] = []
    for match in SPLIT.finditer(body):
        text = match[0]
        if text[0] == "(":
            if text in known or len(known) > MOST_LABELS:
                return None
            known.append(text)
            continue
        entry = _parse_entry(_raw(text), known)
        marked = bool(entries) and entries[-1].code == TRACE
        if entry is None or (marked and (entry.code == TRACE or not entry.code & APART)):
            return None
        entries.append(entry)
    return entries if entries and entries[-1].code != TRACE else None


def _parse_entry(raw: bytes, known: list[str]) -> Entry | None:
    if raw[0] == TRACE:
        identity = int.from_bytes(raw[1:], "big")
        return Entry(TRACE, identity) if 0 < identity < 1 << 128 else None
    code, span_id, when, rest = _unpack(raw)
    start, first = when >> 23, when & 0x7FFFFF
    number, index, more = rest >> 26, rest >> 22 & 15, rest & 0x3FFFFF
    if not span_id or index >= len(known):
        return None
    if code < ACCEPT:
        fine = code == GAP and not (when or index or more)
    else:
        alone = code & 0xE0 == PUBLISH and number + (code & APART) == 0
        fine = code < TRACE and (alone or code & 0xE0 != PUBLISH) and (number > 0 or not code & APART)
    return Entry(code, span_id, start, first, more, number, known[index]) if fine else None
