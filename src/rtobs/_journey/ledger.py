"""The ledger: what the steps before this one would say of themselves, in 28 characters each, inside the message.

A step adds one entry to what it received, as text, without decoding what is there; ``docs/wire-format.md`` says the
layout to the bit. Nothing here raises on what a message brought: what is not valid is counted and left out. Must not
know hops, headers beside its own field, or what is rebuilt from it.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64, crc32, unhexlify
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._journey.ledger_entries import (
    APART,
    CODES,
    EXPORTED,
    FORM,
    GAP,
    KINDS,
    MOST_ENTRIES,
    MOST_LABELS,
    NAME_LIMIT,
    SAFE,
    SIZE,
    SPLIT,
    TRACE,
    URL,
    Entry,
    Kind,
    apart_span_id,
    fewer,
    pack,
    parse,
    sent_from,
    sent_span_id,
    shorter,
    text_of,
    written,
)

__all__ = [
    "APART", "CODES", "EXPORTED", "Step", "Told", "apart_span", "append", "count_steps", "first", "fit", "label",
    "read", "sent_span",
]  # fmt: skip

EPOCH_MS: Final = 1_735_689_600_000
"""2025-01-01T00:00Z."""
_MS: Final = 1_000_000
_MOST_FIRST: Final = (1 << 23) - 1
_MOST_MORE: Final = (1 << 22) - 1
_CHECK: Final = 8
_WHOLE: Final = MOST_ENTRIES * SIZE
_MOST_CACHED: Final = 1024
_pack_first: Final = struct.Struct(">B8sQI").pack
"""An entry whose span id is bytes; how it is written elsewhere is in ``ledger_entries``."""
_pack_check: Final = struct.Struct(">I").pack
_LABELLED: Final = 1 << 22
_labels: dict[tuple[str, str, str], str] = {}


class Step(NamedTuple):
    """One step of a journey, as far as the ledger tells."""

    kind: Kind
    trace_id: int
    span_id: int
    parent_span_id: int
    """0: it began its trace."""
    start_ns: int
    handover_ns: int
    """When it first sent a message on; the same in the ledgers of all that it sent."""
    sent_ns: int
    """When it sent this one."""
    attempt: int
    """8: the eighth or a later one."""
    exported: bool
    """Its spans left: there is nothing to rebuild."""
    service: str
    name: str
    """Destination, route or connector; empty where it is not known, as the other names are."""
    destination: str
    """What the message was sent to."""
    sent_trace_id: int
    sent_span_id: int
    """The span of the send; of a step that is itself a send, its own."""


class Told(NamedTuple):
    """What a ledger tells."""

    steps: tuple[Step, ...]
    """In the order in which they handed the message on."""
    left_out: int
    """Steps for which there was no room."""


NOTHING: Final = Told((), 0)


def label(service: str, name: str, destination: str) -> str:
    """Return the names of a step as they are written; empty where none fits."""
    key = service, name, destination
    found = _labels.get(key)
    if found is None:
        found = "|".join(map(_quoted, key)).rstrip("|")
        found = f"({found})" if found else ""
        if len(_labels) < _MOST_CACHED:
            _labels[key] = found
    return found


def _quoted(name: str) -> str:
    shown = redaction.redact(name, redaction.NAME_LIMIT) if len(name) <= NAME_LIMIT else ""
    quoted = quote(shown, safe=SAFE + ".", errors="replace").replace(".", ":")
    return quoted if len(quoted) <= NAME_LIMIT else ""


def sent_span(span: str, number: int) -> str:
    """Return the id, in hexadecimal digits as *span* is, of the span of a step's send *number*, 1 to 63."""
    return f"{sent_span_id(int(span, 16), number):016x}"


def apart_span(span: str, trace: str) -> str:
    """Return likewise the id of the span of a step's send that begins *trace*."""
    return f"{apart_span_id(int(span, 16), int(trace, 16)):016x}"


# Writing -------------------------------------------------------------------------------------------------------------


def append(  # noqa: PLR0917  all that an entry says, in place: keywords would cost as much as the work
    ledger: str, received: str, sent: str, code: int, span: str, start_ns: int, first_ns: int, now_ns: int, number: int,
    known_as: str, marked: str = "",
) -> str:  # fmt: skip
    """Return *ledger* with the entry of the step that sends now.

    Args:
        ledger: what the step's message brought; empty where it brought none.
        received: trace id, hyphen and span id, 49 characters as in ``traceparent``, that came with the message; empty
            where the step began its trace.
        sent: likewise, those that go with this message.
        code: ``CODES`` of the step's kind, its flags and its attempt minus one, at most 7.
        span: the step's span, 16 hexadecimal digits.
        start_ns: when the step began, wall clock.
        first_ns: when it sent its first message, likewise.
        now_ns: when it sends this one, likewise.
        number: which send of the step this is, 1 to 63 (later ones are 63); 0 where the step is itself a send.
        known_as: its names, made by ``label``.
        marked: of a message that goes apart, the step's own trace where that is not the correlation id.
    """
    body = ""
    if received:
        body = ledger[8:]
        if ledger[:8] != f"{crc32((body + received).encode()):08x}":
            body = _received(ledger, received)
    if marked:
        body += text_of(bytes((TRACE, 0, 0, 0, 0)) + bytes.fromhex(marked))
    index = body.count("(") + 1
    if known_as in body:
        index = body.count("(", 0, body.find(known_as)) + 1 if known_as else 0
    elif index <= MOST_LABELS:
        body += known_as
    else:
        index = 0
    start = start_ns // _MS - EPOCH_MS
    handover = first_ns // _MS
    first, more = handover - start - EPOCH_MS, now_ns // _MS - handover
    if first >> 23 or more >> 22 or start < 0:
        start, first, more = max(start, 0), min(max(first, 0), _MOST_FIRST), min(max(more, 0), _MOST_MORE)
    entry = b2a_base64(pack(code, int(span, 16), start << 23 | first, number << 26 | index << 22 | more), newline=False)
    body += entry.translate(URL).decode()
    if len(body) > _WHOLE and count_steps(body) > MOST_ENTRIES:
        body = _few_enough(body, sent)
    return f"{crc32((body + sent).encode()):08x}{body}"


def first(  # noqa: PLR0917  as above
    known_as: str, sent: str, code: int, span: str, start_ns: int, now_ns: int
) -> str:
    """Return what ``append`` returns for a step that began its journey and sends its first message now."""
    start = start_ns // _MS - EPOCH_MS
    waited = now_ns // _MS - EPOCH_MS - start
    if waited >> 23 or start < 0:
        return append("", "", sent, code, span, start_ns, now_ns, now_ns, 0, known_as)
    packed = _pack_first(code, unhexlify(span), start << 23 | waited, _LABELLED if known_as else 0)
    entry = b2a_base64(packed, newline=False)
    body = known_as + entry.translate(URL).decode()
    return _pack_check(crc32((body + sent).encode())).hex() + body


def count_steps(ledger: str) -> int:
    """Return how many entries a ledger has, if it is one."""
    return len(SPLIT.findall(ledger)) - ledger.count("(")


def fit(ledger: str, room: int, sent: str) -> str:
    """Return *ledger*, made by ``append``, with at most *room* characters.

    The names of steps in the middle go first, then those steps, counted. Where not even the last one finds room,
    nothing is left.
    """
    entries = parse(ledger[_CHECK:])
    body = ""
    while entries and _CHECK + len(body := written(entries)) > room:
        entries = shorter(entries, sent)
    if entries:
        return f"{crc32((body + sent).encode()):08x}{body}"
    _guard.tally(names.PROPAGATION_REJECTED, "ledger_full")
    return ""


def _received(ledger: str, received: str) -> str:
    """Return what a ledger that is not this message's own, or none, is worth: what it tells and a gap, or a gap."""
    body, gap = ledger[_CHECK:], text_of(pack(GAP, int(received[33:], 16), 0, 0))
    if not ledger:
        return gap
    if _checked(ledger, received) is not None:  # somebody in between continued the trace and passed it on
        return body + gap
    _guard.tally(names.PROPAGATION_REJECTED, "ledger")
    return gap


def _few_enough(body: str, sent: str) -> str:
    """Return *body* with at most twelve entries; those in the middle go first, counted."""
    entries = parse(body)
    if entries is None:  # it came so, with the right check
        _guard.tally(names.PROPAGATION_REJECTED, "ledger")
        return text_of(pack(GAP, int(sent[33:], 16), 0, 0))
    while len(entries) > MOST_ENTRIES:
        entries = fewer(entries, sent)
    return written(entries)


# Reading -------------------------------------------------------------------------------------------------------------


def read(ledger: str, trace_id: int, parent_span_id: int, correlation_id: int) -> Told:
    """Return what *ledger*, which came with this trace and sender, tells; nothing, counted, where it is not valid."""
    if not ledger or not parent_span_id:
        return NOTHING
    entries = _checked(ledger, f"{trace_id:032x}-{parent_span_id:016x}")
    if entries is None:
        _guard.tally(names.PROPAGATION_REJECTED, "ledger")
        return NOTHING
    steps: list[Step] = []
    left_out = parent = 0
    for entry, (own, into) in zip(entries, _traces(entries, trace_id, correlation_id), strict=True):
        kind = KINDS[entry.code >> 5]
        if kind == "trace":
            continue
        sent = sent_from(entry, into)
        if kind == "gap":
            left_out += entry.number
        else:
            first_ms = EPOCH_MS + entry.start + entry.first
            service, name, destination = _names(entry.label)
            steps.append(
                Step(
                    kind, own, entry.span_id, parent, (EPOCH_MS + entry.start) * _MS, first_ms * _MS,
                    (first_ms + entry.more) * _MS, (entry.code & 7) + 1,
                    entry.code & EXPORTED != 0, service, name, destination, into, sent,
                )
            )  # fmt: skip
        parent = sent
    return Told(tuple(steps), left_out)


def _checked(ledger: str, received: str) -> list[Entry] | None:
    """Return the entries of a ledger that was written for this trace, by its sender or before it; else None."""
    entries = parse(ledger[_CHECK:]) if FORM.fullmatch(ledger) else None
    if entries is None:
        return None
    handed = f"{received[:32]}-{sent_from(entries[-1], int(received[:32], 16)):016x}"
    return entries if ledger[:_CHECK] == f"{crc32((ledger[_CHECK:] + handed).encode()):08x}" else None


def _traces(entries: list[Entry], trace_id: int, correlation_id: int) -> list[tuple[int, int]]:
    """Return for each entry the trace it stands in and the one that it handed over into."""
    found: list[tuple[int, int]] = []
    now = trace_id
    for index in range(len(entries) - 1, -1, -1):
        into = now
        if entries[index].code != TRACE and entries[index].code & APART:
            before = entries[index - 1] if index else None
            now = before.span_id if before is not None and before.code == TRACE else correlation_id
        found.append((now, into))
    return found[::-1]


def _names(label: str) -> tuple[str, str, str]:
    found = [redaction.redact(unquote(part.replace(":", "."), errors="replace")) for part in label[1:-1].split("|")]
    service, name, destination, *_ = *found, "", ""
    return service, name, destination
