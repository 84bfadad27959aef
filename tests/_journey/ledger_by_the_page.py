"""A second reader of ledgers, written from docs/wire-format.md alone; it shares no code with rtobs."""

from __future__ import annotations

import base64
import zlib
from urllib.parse import unquote

KINDS = ("gap", "accept", "consume", "job", "publish", "deliver", "receipt", "trace")
NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~/*{}#>+$@:%")


class NotValidError(ValueError):
    pass


def check(condition):
    if not condition:
        raise NotValidError


def bits(number, *widths):
    """Split a number into fields of so many bits, highest first."""
    found = []
    left = sum(widths)
    for width in widths:
        left -= width
        found.append(number >> left & ((1 << width) - 1))
    return found


def part(text):
    return unquote(text.replace(":", "."))


def split(text):
    """Return the entries as dictionaries, each with its label's three names."""
    labels = [""]
    found = []
    while text:
        if text[0] == "(":
            label, closing, text = text[1:].partition(")")
            parts = label.split("|")
            check(closing)
            check(len(parts) <= 3)
            check(all(set(one) <= NAME and len(one) <= 40 for one in parts))
            check(label not in labels[1:])
            check(len(labels) <= 15)
            check(text)
            check(text[0] != "(")
            labels.append(label)
            continue
        check(len(text) >= 28)
        check(set(text[:28]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
        raw, text = base64.urlsafe_b64decode(text[:28]), text[28:]
        number = int.from_bytes(raw, "big")
        kind, exported, apart, attempt, span_id, start, first, send, index, more = bits(
            number, 3, 1, 1, 3, 64, 41, 23, 6, 4, 22
        )
        if kind == 7:
            _, flags, zero, trace_id = bits(number, 3, 5, 32, 128)
            check(flags == zero == 0)
            check(trace_id)
            found.append({"kind": "trace", "trace_id": trace_id})
            continue
        check(span_id)
        check(index < len(labels))
        if kind == 0:
            check(exported == apart == attempt == start == first == index == more == 0)
        check(kind != 4 or (send == 0 and not apart))
        check(send or not apart)
        names = [*map(part, labels[index].split("|")), "", "", ""][:3]
        found.append(
            {
                "kind": KINDS[kind], "exported": bool(exported), "apart": bool(apart), "attempt": attempt + 1,
                "span_id": span_id, "start": start, "first": first, "more": more,
                "number": send, "names": names,
            }
        )  # fmt: skip
    return found


def sent_from(entry, into):
    """Return the span that an entry's message was sent from, in trace *into*."""
    if entry["kind"] == "gap" or entry["number"] == 0:
        return entry["span_id"]
    turn = into if entry["apart"] else entry["number"] * 0x9E3779B97F4A7C15
    return (entry["span_id"] ^ turn) % 2**64 or 1


def decode(ledger, trace_id, parent_span_id, correlation_id):
    """Return the steps of a ledger as dictionaries and the number left out, or raise NotValidError.

    *trace_id* and *parent_span_id* are those of the traceparent that it came with.
    """
    check(parent_span_id)
    digits, text = ledger[:8], ledger[8:]
    entries = split(text)
    check(0 < len(entries) <= 12)
    for index, entry in enumerate(entries):
        if entry["kind"] == "trace":
            check(index + 1 < len(entries))
            check(entries[index + 1].get("apart"))
    last = f"{trace_id:032x}-{sent_from(entries[-1], trace_id):016x}"
    check(digits == f"{zlib.crc32((text + last).encode()):08x}")
    into = trace_id
    for index in reversed(range(len(entries))):
        entry = entries[index]
        if entry["kind"] == "trace":
            continue
        entry["into"] = into
        if entry["apart"]:
            marked = index > 0 and entries[index - 1]["kind"] == "trace"
            into = entries[index - 1]["trace_id"] if marked else correlation_id
        entry["trace_id"] = into
    steps, left_out, parent = [], 0, 0
    for entry in entries:
        if entry["kind"] == "trace":
            continue
        sent = sent_from(entry, entry["into"])
        if entry["kind"] == "gap":
            left_out += entry["number"]
        else:
            start = 1_735_689_600_000 + entry["start"]
            first = start + entry["first"]
            service, name, destination = entry["names"]
            steps.append(
                {
                    "kind": entry["kind"], "trace_id": entry["trace_id"], "span_id": entry["span_id"],
                    "parent_span_id": parent, "start_ns": start * 1_000_000,
                    "handover_ns": first * 1_000_000, "sent_ns": (first + entry["more"]) * 1_000_000,
                    "attempt": entry["attempt"], "exported": entry["exported"], "service": service, "name": name,
                    "destination": destination, "sent_trace_id": entry["into"], "sent_span_id": sent,
                }
            )  # fmt: skip
        parent = sent
    return steps, left_out
