"""The ledger: what steps wrote is read again, by the code and by the page; what was damaged or forged says nothing."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._journey import ledger
from rtobs._journey.ledger_entries import apart_span_id, sent_span_id, text_of
from tests._journey import ledger_by_the_page as page

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ledger.json").read_text())["ledgers"]
NOW = 1_790_000_000_123_450_000
CID = 0x0199A1B2C3D47E5F8A6B7C8D9E0F1A2B


def link(trace_id, span_id):
    return f"{trace_id:032x}-{span_id:016x}"


def appended(hops):
    """Append what a vector lists; return the ledger and what goes with its message."""
    text = ""
    for hop in hops:
        text = ledger.append(
            text, hop["received"], hop["sent"], hop["code"], hop["span_id"], hop["start_ns"],
            hop["first_ns"], hop["now_ns"], hop["number"], ledger.label(*hop["names"]), hop["marked"] or "",
        )  # fmt: skip
    return text, hops[-1]["sent"]


def refused(reason="ledger"):
    return _guard.tallies().get((names.PROPAGATION_REJECTED.name, (reason,)), 0)


def by_code(text, trace_id, parent, cid):
    told = ledger.read(text, trace_id, parent, cid)
    return [step._asdict() for step in told.steps], told.left_out


ids = st.integers(1, (1 << 64) - 1)
traces = st.integers(1, (1 << 128) - 1)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12)


@st.composite
def hop(draw):
    kind = draw(st.sampled_from(["accept", "consume", "job", "publish", "deliver", "receipt"]))
    return {
        "kind": kind,
        "span_id": draw(ids),
        "number": 0 if kind == "publish" else draw(st.integers(0, 63)),
        "exported": draw(st.booleans()),
        "attempt": draw(st.integers(1, 8)),
        "start_ns": NOW + draw(st.integers(-(10**9), 10**15)),
        "took": draw(st.integers(0, 8 * 10**12)),
        "more": draw(st.integers(0, 4 * 10**12)),
        "names": (draw(words), draw(words), draw(words)),
        "apart": draw(st.none() | traces) if kind != "publish" else None,
        "stranger": draw(st.none() | ids),
    }


@st.composite
def journeys(draw, most=9):
    """A journey's ledger as its steps write it: the text, the trace and sender it arrives with, and what is true."""
    cid = draw(traces)
    trace = draw(st.just(cid) | traces)
    received = link(trace, draw(ids)) if draw(st.booleans()) else ""
    text, truth = "", []
    for one in draw(st.lists(hop(), min_size=1, max_size=most, unique_by=lambda one: one["span_id"])):
        if one["stranger"] and received:
            received = link(trace, one["stranger"])
        apart = one["apart"] if one["number"] else None
        into = apart or trace
        sent = one["span_id"]
        if apart:
            sent = apart_span_id(sent, apart)
        elif one["number"]:
            sent = sent_span_id(sent, one["number"])
        code = ledger.CODES[one["kind"]] | (one["attempt"] - 1)
        code |= ledger.EXPORTED if one["exported"] else 0
        code |= ledger.APART if apart else 0
        first = one["start_ns"] + one["took"]
        now = first + one["more"]
        text = ledger.append(
            text, received, link(into, sent), code, f"{one['span_id']:016x}", one["start_ns"], first, now,
            one["number"], ledger.label(*one["names"]), f"{trace:032x}" if apart and trace != cid else "",
        )  # fmt: skip
        service, name, destination = one["names"]
        truth.append(
            {
                "kind": one["kind"], "trace_id": trace, "span_id": one["span_id"],
                "parent_span_id": int(received[33:] or "0", 16), "attempt": one["attempt"],
                "exported": one["exported"], "service": service, "name": name, "destination": destination,
                "sent_trace_id": into, "sent_span_id": sent, "start_ns": one["start_ns"],
                "handover_ns": first, "sent_ns": now,
            }
        )  # fmt: skip
        trace, received = into, link(into, sent)
    return text, trace, int(received[33:], 16), cid, truth


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_appending_gives_the_vector(vector):
    """What rtobs writes is the vector, byte for byte."""
    text, sent = appended(vector["appended"])
    if vector["room"]:
        text = ledger.fit(text, vector["room"], sent)
        assert len(text) <= vector["room"]
    assert text == vector["ledger"]
    assert len(text) == vector["bytes"]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_page_and_the_code_read_the_same(vector):
    """An independent reader and rtobs find the steps in a vector that it lists."""
    trace, parent = vector["read_with"].split("-")
    arguments = vector["ledger"], int(trace, 16), int(parent, 16), int(vector["correlation_id"], 16)
    steps, left_out = by_code(*arguments)
    assert (steps, left_out) == page.decode(*arguments)
    assert left_out == vector["left_out"]
    listed = [
        {key: int(value, 16) if key.endswith("_id") else value for key, value in step.items()}
        for step in vector["steps"]
    ]
    assert steps == listed


@pytest.mark.parametrize("part", range(3))
@settings(max_examples=150)
@given(journey=journeys())
def test_what_steps_wrote_is_what_is_read(part, journey):
    """Every step that has room comes back with its ids, parent, trace, flags and times to the millisecond."""
    text, trace, parent, cid, truth = journey
    told = ledger.read(text, trace, parent, cid)
    by_page = page.decode(text, trace, parent, cid)
    found = [step._asdict() for step in told.steps]
    assert [{**step, "service": "", "name": "", "destination": ""} for step in found] == [
        {**step, "service": "", "name": "", "destination": ""} for step in by_page[0]
    ]
    assert len(text) <= 8 + 12 * 28 + 15 * 124
    if not told.left_out:
        assert len(found) == len(truth)
    true = {(one["trace_id"], one["span_id"], one["start_ns"] // 1_000_000): one for one in truth}
    for step in found:
        expected = true[step["trace_id"], step["span_id"], step["start_ns"] // 1_000_000]
        for key in (
            "kind", "trace_id", "span_id", "parent_span_id", "attempt", "exported", "sent_trace_id", "sent_span_id",
        ):  # fmt: skip
            assert step[key] == expected[key], key
        for key in ("start_ns", "handover_ns", "sent_ns"):
            assert 0 <= expected[key] - step[key] < 1_000_000, key
        for key in ("service", "name", "destination"):
            assert step[key] in (expected[key], ""), key


@pytest.mark.parametrize("part", range(2))
@settings(max_examples=100)
@given(journey=journeys(most=16), room=st.integers(0, 500))
def test_what_finds_room_is_true(part, journey, room):
    """A shortened ledger fits, and each step it still tells has the ids, parent and times it had before."""
    text, trace, parent, cid, truth = journey
    short = ledger.fit(text, room, link(trace, parent))
    assert len(short) <= room
    told = ledger.read(short, trace, parent, cid)
    assert not short or page.decode(short, trace, parent, cid)[1] == told.left_out
    true = {(one["trace_id"], one["span_id"], one["parent_span_id"], one["sent_span_id"]) for one in truth}
    for step in told.steps:
        assert (step.trace_id, step.span_id, step.parent_span_id, step.sent_span_id) in true


def test_middle_steps_go_first_and_are_counted():
    """Of fourteen steps the first and last ones stay, and what is left out is counted at the reader and the writer."""
    before = refused("ledger_full")
    vector = next(one for one in VECTORS if one["name"].startswith("fourteen steps: two"))
    text, _ = appended(vector["appended"])
    trace, parent = vector["read_with"].split("-")
    told = ledger.read(text, int(trace, 16), int(parent, 16), int(vector["correlation_id"], 16))
    services = [step.service for step in told.steps]
    assert services == [f"service-{index}" for index in (*range(5), *range(8, 14))]
    assert told.left_out == 3
    assert refused("ledger_full") > before


def test_a_ledger_of_another_trace_or_sender_is_not_believed():
    """Beside another trace the ledger says nothing; passed on by a stranger in its trace it does, behind a gap."""
    text, sent = appended(VECTORS[1]["appended"])
    trace, span = int(sent[:32], 16), int(sent[33:], 16)
    before = refused()
    assert ledger.read(text, trace ^ 1, span, CID).steps == ()
    assert refused() == before + 1
    assert len(ledger.read(text, trace, span ^ 1, CID).steps) == 3
    received = link(trace, span ^ 1)
    longer = ledger.append(
        text, received, link(trace, sent_span_id(7, 1)), ledger.CODES["consume"], f"{7:016x}", NOW, NOW, NOW, 1, ""
    )
    last = ledger.read(longer, trace, sent_span_id(7, 1), CID).steps[-1]
    assert last.parent_span_id == span ^ 1
    other = ledger.append(
        text, link(trace ^ 1, span), link(trace ^ 1, 8), ledger.CODES["publish"], f"{8:016x}", NOW, NOW, NOW, 0, ""
    )
    assert refused() == before + 2
    (alone,) = ledger.read(other, trace ^ 1, 8, CID).steps
    assert (alone.span_id, alone.parent_span_id) == (8, span)


# Hostile input: 20,950 examples in all ------------------------------------------------------------------------------


def same_or_nothing(text, whole, trace, parent, cid):
    """Read a damaged ledger: it tells exactly what the whole one does, or nothing, and then it is counted."""
    before = refused()
    told = ledger.read(text, trace, parent, cid)
    if text == whole:
        assert told == ledger.read(whole, trace, parent, cid)
    else:
        assert told.steps == ()
        assert not text or refused() == before + 1
    extended = ledger.append(
        text, link(trace, parent), link(trace, 9), ledger.CODES["publish"], f"{9:016x}", NOW, NOW, NOW, 0, "(a|b)"
    )
    steps = ledger.read(extended, trace, 9, cid).steps
    if text != whole:
        assert [step.span_id for step in steps] == [9]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
@settings(max_examples=700)
@given(drawn=st.integers(0, 8 * 1024 - 1))
def test_one_flipped_bit_is_noticed(vector, drawn):
    """With one bit flipped anywhere a ledger tells nothing, is counted, and what is added to it stands behind a gap."""
    trace, parent = (int(part, 16) for part in vector["read_with"].split("-"))
    text = vector["ledger"]
    bit, place = drawn >> 10, (drawn & 1023) % len(text)
    damaged = text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
    same_or_nothing(damaged, text, trace, parent, int(vector["correlation_id"], 16))


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
@settings(max_examples=450)
@given(drawn=st.integers(0, 1024 * 1024 - 1))
def test_a_cut_is_noticed(vector, drawn):
    """Truncated at its end, or with a part cut out, a ledger tells nothing and is counted."""
    trace, parent = (int(part, 16) for part in vector["read_with"].split("-"))
    first, second = sorted((drawn >> 10, drawn & 1023))
    text = vector["ledger"][:first] + vector["ledger"][second:]
    same_or_nothing(text, vector["ledger"], trace, parent, int(vector["correlation_id"], 16))


LIKELY = st.text("ABCxyz019-_()|:%*. /é=+", max_size=40)
PIECES = st.lists(
    st.sampled_from(["A" * 28, "_" * 28, "4" + "A" * 27, "(a)", "(a|b|c|d)", "(", ")", "()", "QQ" + "A" * 26]) | LIKELY,
    max_size=8,
).map("".join)


@pytest.mark.parametrize("part", range(4))
@settings(max_examples=750)
@given(text=PIECES | st.text(max_size=60), trace=traces, parent=ids)
def test_anything_at_all_never_raises(part, text, trace, parent):
    """Any text in a ledger's place tells nothing and is counted."""
    assert ledger.read(text, trace, parent, trace) == ledger.NOTHING
    extended = ledger.append(
        text, link(trace, parent), link(trace, 9), ledger.CODES["publish"], f"{9:016x}", NOW, NOW, NOW, 0, "(a)"
    )
    (step,) = ledger.read(extended, trace, 9, trace).steps
    assert step.parent_span_id == parent
    assert len(extended) < 80


@pytest.mark.parametrize("part", range(4))
@settings(max_examples=750)
@given(text=PIECES, count=st.integers(1, 12), seed=st.integers(0, 1 << 30))
def test_forged_with_the_right_check_it_is_valid_by_the_page_or_nothing(part, text, count, seed):
    """A forger who computes the check gets no further than the page allows: both readers agree, and nothing raises."""
    drawn = random.Random(seed)
    if seed % 2:
        for _ in range(count):
            raw = bytearray(drawn.randbytes(21))
            raw[0] &= drawn.choice((0xE7, 0xFF, 0x3F, 0xF0))
            if drawn.random() < 0.5:
                raw[17:19] = bytes((drawn.choice((0, 4)), drawn.choice((0, 64))))
            text += text_of(bytes(raw))
    parent = drawn.getrandbits(64) | 1
    ending = text[-28:]
    try:
        (last,) = page.split(ending if "(" not in ending else "")
        parent = page.sent_from(last, CID)
    except (ValueError, KeyError):
        pass
    forged = f"{crc32((text + link(CID, parent)).encode()):08x}{text}"
    try:
        expected, left_out = page.decode(forged, CID, parent, CID)
    except ValueError:
        expected, left_out = [], 0
    told = ledger.read(forged, CID, parent, CID)
    ids_of = ("kind", "trace_id", "span_id", "parent_span_id", "start_ns", "handover_ns", "sent_ns", "sent_span_id")
    assert [[getattr(step, key) for key in ids_of] for step in told.steps] == [
        [step[key] for key in ids_of] for step in expected
    ]
    assert told.left_out == left_out
    extended = ledger.append(
        forged, link(CID, parent), link(CID, 9), ledger.CODES["publish"], f"{9:016x}", NOW, NOW, NOW, 0, "(a)"
    )
    assert len(ledger.read(extended, CID, 9, CID).steps) <= 12


def packed(code, span_id=5, start=0, first=0, number=0, index=0, more=0):  # noqa: PLR0917  the fields in their order
    """Return an entry of these fields, whatever they are worth."""
    return text_of(
        (code << 160 | span_id << 96 | start << 55 | first << 32 | number << 26 | index << 22 | more).to_bytes(
            21, "big"
        )
    )


STEP = packed(ledger.CODES["consume"], number=1)
TRACE = packed(ledger.CODES["trace"], span_id=0, more=7)


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        (packed(0) + STEP, True),
        (packed(0, start=1) + STEP, False),
        (packed(0, first=1) + STEP, False),
        (packed(0, more=1) + STEP, False),
        ("(a)" + packed(0, index=1) + STEP, False),
        (packed(1) + STEP, False),  # a gap has no flags
        (packed(ledger.CODES["consume"], number=1, index=1), False),  # no such label
        ("(a)" + packed(ledger.CODES["consume"], number=1, index=1), True),
        ("(a)(b)" + STEP, False),
        ("(a)" + STEP + "(a)" + STEP, False),
        (STEP + "(a)", False),
        (packed(ledger.CODES["publish"]), True),
        (packed(ledger.CODES["publish"], number=1), False),
        (packed(ledger.CODES["publish"] | ledger.APART), False),
        (packed(ledger.CODES["consume"] | ledger.APART), False),  # what is apart has a number
        (TRACE + packed(ledger.CODES["consume"] | ledger.APART, number=1), True),
        (TRACE + STEP, False),
        (TRACE + TRACE + packed(ledger.CODES["consume"] | ledger.APART, number=1), False),
        (packed(ledger.CODES["trace"] | 1, span_id=0, more=7) + packed(72, number=1), False),
        (packed(ledger.CODES["trace"], span_id=1 << 63, more=7) + packed(72, number=1), False),
        (packed(ledger.CODES["consume"], span_id=0, number=1), False),
        (STEP * 12, True),
        (STEP * 13, False),
    ],
)
def test_nothing_but_what_the_page_describes(body, valid):
    """A field that should be zero, a label that is not there, an entry in the wrong place: page and code say no."""
    told = False
    for sent in (sent_span_id(5, 1), 5, apart_span_id(5, CID)):
        text = f"{crc32((body + link(CID, sent)).encode()):08x}{body}"
        try:
            by_page = page.decode(text, CID, sent, CID)
        except page.NotValidError:
            by_page = ([], 0)
        assert by_code(text, CID, sent, CID) == by_page
        told = told or bool(by_page[0])
    assert told is valid


def test_a_long_forgery_with_the_right_check_leaves_only_its_sender():
    """A text too long for twelve entries that is no ledger is replaced by the sender alone."""
    body = STEP * 11 + packed(ledger.CODES["consume"], span_id=0, number=1)
    received, sent = link(CID, 7), link(CID, sent_span_id(9, 1))
    forged = f"{crc32((body + received).encode()):08x}{body}"
    text = ledger.append(forged, received, sent, ledger.CODES["consume"], f"{9:016x}", NOW, NOW, NOW, 1, "(x)")
    assert ledger.read(text, CID, sent_span_id(9, 1), CID) == ledger.NOTHING
    assert len(text) == 8 + 28


# What it costs -------------------------------------------------------------------------------------------------------


def bytecodes(function, *arguments):
    """Count the bytecodes that a call executes, those of functions it calls included."""
    found = 0

    def trace(frame, event, argument):
        nonlocal found
        frame.f_trace_opcodes = True
        found += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return found


@pytest.mark.parametrize(("steps", "most"), [(0, 130), (1, 150), (6, 150), (11, 170)])
def test_adding_an_entry_costs_the_same_behind_any_number(steps, most):
    """One more entry takes at most 150 bytecodes, and 20 more where the twelve may be exceeded."""
    text, received = "", ""
    for index in range(steps):
        sent = link(CID, sent_span_id(index + 1, 1))
        label = ledger.label(f"s{index % 5}", "queue", "")
        text = ledger.append(
            text, received, sent, ledger.CODES["consume"], f"{index + 1:016x}", NOW, NOW + 10**6, NOW + 10**6, 1, label
        )
        received = sent
    times = NOW, NOW + 10**6, NOW + 10**6
    arguments = text, received, link(CID, 99), ledger.CODES["consume"], f"{99:016x}", *times, 1, "(mine|queue)"
    assert bytecodes(ledger.append, *arguments) <= most
