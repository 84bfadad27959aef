"""The carrier as one text, as `docs/wire-format.md` describes it: written, read, and not taken from anybody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._journey import envelope
from rtobs._journey.carrier import extract
from tests.support import pages

HEADERS = {
    names.TRACEPARENT: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
    names.JOURNEY: "1000006a1c0d2b8000006a1c0d2b80001.........",
    names.TRACESTATE: "vendor=a=b",
    names.BAGGAGE: "rtobs.cid=0123456789abcdef0123456789abcdef,shop=7",
}
PACKED = (
    b"traceparent=00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\n"
    b"rtobs-journey=1000006a1c0d2b8000006a1c0d2b80001.........\n"
    b"tracestate=vendor=a=b\n"
    b"baggage=rtobs.cid=0123456789abcdef0123456789abcdef,shop=7\n"
)


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch):
    monkeypatch.setattr(_guard, "_tallies", {})


def rejected() -> dict[str, int]:
    return {
        values[0]: count for (name, values), count in _guard.tallies().items() if name == "rtobs.propagation.rejected"
    }


def test_a_field_is_lines_of_name_and_value():
    """The four headers are lines, each with its line feed, and come back from bytes and from text."""
    assert envelope.pack(HEADERS) == PACKED
    assert envelope.unpack(PACKED) == envelope.unpack(PACKED.decode()) == HEADERS
    assert rejected() == {}


def test_an_envelope_is_one_line_the_headers_and_the_payload():
    """The first line has the version and the headers' length in hexadecimal; then come headers and payload."""
    closed = envelope.close(b"\x00payload", HEADERS)
    assert closed == b"rtobs1 00cd\n" + PACKED + b"\x00payload"
    assert envelope.open(closed) == (b"\x00payload", HEADERS)
    assert envelope.open(closed.decode()) == ("\x00payload", HEADERS)
    assert envelope.close(b"payload", {}) == b"payload"


def test_the_examples_of_the_wire_format_are_right():
    """The field and the envelope that the wire format page shows are read as it says."""
    texts = [block.text for block in pages.blocks(pages.ROOT / "docs" / "wire-format.md") if block.language == "text"]
    (field,) = [f"{text}\n" for text in texts if text.startswith("traceparent=")]
    (closed,) = [text for text in texts if text.startswith("rtobs1 ")]
    headers = envelope.unpack(field)
    assert list(headers) == [names.TRACEPARENT, names.JOURNEY, names.BAGGAGE]
    assert envelope.open(closed) == ('{"the": "payload"}', headers)
    assert extract(headers).journey.correlation_id == "0123456789abcdef0123456789abcdef"
    assert rejected() == {}


@given(payload=st.text(max_size=50), encoding=st.sampled_from(["utf-8", "latin-1", "cp1252", "shift_jis"]))
def test_a_decoded_envelope_has_the_decoded_payload(payload, encoding):
    """What a client decodes, by any encoding that contains ASCII, holds what it would have made of the payload."""
    data = payload.encode(encoding, "replace")
    closed = envelope.close(data, HEADERS).decode(encoding, "replace")
    assert envelope.open(closed) == (data.decode(encoding, "replace"), HEADERS)


def test_names_of_later_versions_are_left_out():
    """A line with a name that is not known is not read, and the others are."""
    assert envelope.unpack(b"x-later=1\n" + PACKED) == HEADERS


def test_a_value_that_does_not_fit_into_a_line_stays_out():
    """A header with a line feed or a letter that is not ASCII is left out; the others travel."""
    assert envelope.pack({"a": "1\nb=2", "b": "é", "c": "3"}) == b"c=3\n"


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"", "field"), (b"traceparent", "field"), (PACKED[:-1], "field"), (PACKED + b"\n", "field"),
        (b"A=1\n", "field"), (b"\xff=1\n", "field"), ("a=é\n", "field"), (b"a=\x00\n", "field"),
        (b"a=" + b"x" * 10_000, "too_long"),
        (7, "type"), ({"a": 1}, "type"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_ours_is_counted(field, reason):
    """A field that is not as we write it brings no headers and is counted by reason."""
    assert envelope.unpack(field) == {}
    assert rejected() == {reason: 1}


def test_no_field_is_nothing():
    """Where there is no field there is nothing to count."""
    assert envelope.unpack(None) == {}
    assert rejected() == {}


@given(data=st.binary(max_size=80) | st.builds(lambda rest: b"rtobs1 " + rest, st.binary(max_size=80)))
def test_what_is_no_envelope_is_left_alone(data):
    """Arbitrary bytes, behind our own first word too, are no envelope and nothing is counted."""
    assert envelope.open(data) is None
    assert rejected() == {}
