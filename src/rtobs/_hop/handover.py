"""Handover: what a message that leaves takes along: the journey, and one more entry in the ledger of its steps.

A step is the hop that sends; the spans of its sends have ids that are made of its own, so one entry tells both. Must
not know brokers, nor what is rebuilt from a ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.baggage import _BAGGAGE_KEY as BAGGAGE_KEY

from rtobs import _guard
from rtobs._hop.context import get_current
from rtobs._hop.runtime import runtime
from rtobs._journey import carrier
from rtobs._journey.carrier import is_plain, write_plain
from rtobs._journey.ledger import APART, CODES, EXPORTED, append, first, label
from rtobs._journey.ledger_entries import MOST_SENDS
from rtobs._journey.span import RANDOM, SAMPLED
from rtobs._journey.tracestate import without_th

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord

_FIRST, _FIRST_EXPORTED = CODES["publish"], CODES["publish"] + EXPORTED
_MOST_TRIES = 7
"""What an entry has room for, minus one."""


def headers_of(record: HopRecord, attempt: int = 1) -> dict[str, str]:
    """Return a fresh copy of the headers that carry *record*'s journey on from here, sent now."""
    journey = record.journey
    if journey is None:
        return {}
    foreign: Any = get_current().get(BAGGAGE_KEY)
    now_ns = runtime.wall_ns()
    trace, span = record.trace_hex, record.drawn_hex or record.span_hex
    if record.handed_ns or record.kind != "publish" or record.parent is not None or journey.ledger or record.parent_hex:
        ledger = _told(record, journey, f"{trace}-{span}", now_ns)
    else:
        ledger = _first(record, f"{trace}-{span}", span, now_ns)
    if record.rare is None and not (foreign or record.tracestate or runtime.wire_key) and is_plain(journey, trace):
        return write_plain(journey, span, record.sampled, now_ns // 1000, attempt, ledger)
    kept = journey.rare is not None and journey.kept != ""
    channel = intent = ""
    if record.rare is not None:
        channel, intent = record.promise_channel, record.promise_id
    return carrier.write(
        journey, trace, span, SAMPLED | RANDOM if record.sampled or kept else RANDOM, now_ns // 1000, attempt=attempt,
        channel=channel, intent=intent, tracestate=without_th(record.tracestate) if kept else record.tracestate,
        foreign_baggage=carrier.format_baggage(foreign) if foreign else "", ledger=ledger, wire_key=runtime.wire_key,
    )  # fmt: skip


def _first(record: HopRecord, sent: str, span: str, now_ns: int) -> str:
    """Return the ledger of a message that begins its journey, sent now: what ``_told`` says of most."""
    try:
        record.handed_ns = now_ns
        code = _FIRST_EXPORTED if record.sampled and runtime.exports else _FIRST
        return first(label(runtime.service, "", record.name), sent, code, span, record.wall_ns, now_ns)
    except Exception as error:  # noqa: BLE001  as below
        _guard.fault("handover.ledger", error)
        return ""


def _told(record: HopRecord, journey: Journey, sent: str, now_ns: int) -> str:
    """Return the ledger of a message that *record* sends now, *sent* from there; what fails costs no more than that."""
    try:
        number, step, name, destination = record.number, record, record.name, ""
        if number and record.parent is not None:
            step, destination = record.parent, name
            name = _name(step)
        elif record.kind == "publish":
            name, destination = "", name
        first_ns = step.handed_ns
        if not first_ns:
            first_ns = step.handed_ns = now_ns
        trace, marked = step.trace_hex, ""
        code = CODES[step.kind] + (min(step.attempt - 1, _MOST_TRIES) if step.attempt > 1 else 0)
        if step.sampled and runtime.exports:
            code += EXPORTED
        if number and (record.adopted is not None or trace != record.trace_hex):
            if record.adopted is not None:  # somebody else chose its id: it is an entry of its own
                return _by_itself(record, step, journey, sent, now_ns)
            code += APART
            number = min(number, MOST_SENDS)
            if trace != journey.correlation_id:
                marked = trace
        before = step.parent
        if before is None:
            text = journey.ledger
        else:
            text = _inside(before, now_ns) if before.journey is step.journey else ""
        received = f"{trace}-{step.parent_hex}" if step.parent_hex else ""
        return append(
            text, received, sent, code, step.drawn_hex or step.span_hex, step.wall_ns, first_ns, now_ns, number,
            label(runtime.service, name, destination), marked,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  the journey goes on, without what was before
        _guard.fault("handover.ledger", error)
        return ""


def _name(step: HopRecord) -> str:
    return f"{step.channel} {step.provider}" if step.kind == "deliver" else step.name


def _inside(step: HopRecord, now_ns: int) -> str:
    """Return the ledger up to a hop around the step that sends: it handed over from its own span."""
    around = step.parent
    if around is None:
        text = step.journey.ledger if step.journey is not None else ""
    else:
        text = _inside(around, now_ns) if around.journey is step.journey else ""
    if not step.handed_ns:
        step.handed_ns = now_ns
    code = CODES[step.kind] + min(step.attempt - 1, _MOST_TRIES)
    if step.sampled and runtime.exports:
        code += EXPORTED
    received = f"{step.trace_hex}-{step.parent_hex}" if step.parent_hex else ""
    return append(
        text, received, f"{step.trace_hex}-{step.span_hex}", code, step.span_hex, step.wall_ns, step.handed_ns,
        now_ns, 0, label(runtime.service, _name(step), ""),
    )  # fmt: skip


def _by_itself(record: HopRecord, step: HopRecord, journey: Journey, sent: str, now_ns: int) -> str:
    """Return the ledger of a send whose span another library chose: the step's entry, then its own.

    In a trace of its own nothing can be told of what was before.
    """
    text = _inside(step, now_ns) if step.journey is journey and step.trace_hex == record.trace_hex else ""
    received = f"{record.trace_hex}-{record.parent_hex}" if text and record.parent_hex else ""
    code = CODES[record.kind] + (EXPORTED if record.sampled and runtime.exports else 0)
    return append(
        text, received, sent, code, record.span_hex, record.wall_ns, now_ns, now_ns, 0,
        label(runtime.service, "", record.name),
    )  # fmt: skip
