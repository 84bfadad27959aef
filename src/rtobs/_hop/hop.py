"""Hop: the handle that user code holds on the hop it is in.

Nothing here raises: a wrong value is counted and left out. Must not know how a hop is opened or ended.
"""

from __future__ import annotations

import re
import threading

from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._hop import engine
from rtobs._hop.finish import promise
from rtobs._hop.handover import headers_of
from rtobs._hop.runtime import runtime
from rtobs._journey.journey import Key
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs._journey.record import HopRecord

Scalar = redaction.Scalar

_NOT_A_WORD = re.compile("[^a-z_]+")
_WORD_LIMIT = 16
_MOST_INTENDED = 1_000_000

_lock = threading.RLock()


class Hop:
    """The hop that user code runs in. Methods may be called from any thread; outside a hop they do nothing."""

    __slots__ = ("_record",)

    def __init__(self, record: HopRecord | None = None) -> None:
        """Hold *record*; None makes a handle that does nothing."""
        self._record = record

    @property
    def correlation_id(self) -> str:
        """The journey's name, 32 hex digits; empty outside a hop."""
        record = self._record
        return record.journey.correlation_id if record is not None and record.journey is not None else ""

    @property
    def headers(self) -> dict[str, str]:
        """A fresh copy of the headers that carry the journey on from here, for transports that nobody wraps.

        Layout: ``docs/wire-format.md``. Empty outside a hop.
        """
        record = self._record
        if record is None:
            return {}
        try:
            return headers_of(record)
        except Exception as error:  # noqa: BLE001  the message leaves without a journey rather than not at all
            _guard.fault("hop.headers", error)
            return {}

    def note(self, /, **fields: Scalar) -> None:
        """Add facts to the hop's span and log event. They never become metric labels.

        Values longer than 1,024 bytes are cut; at most 64 fields are kept. What is recognised as a secret or as
        somebody's address does not leave: ``docs/privacy.md``.
        """
        record = self._record
        if record is None or record.ended:
            return
        try:
            with _lock:
                for name, value in fields.items():
                    record.note(name, value)
        except Exception as error:  # noqa: BLE001  the handler goes on
            _guard.fault("hop.note", error)

    def event(self, name: str, /, **fields: Scalar) -> None:
        """Tell that something happened: a span event and a log event; counted by *name* (keep names few)."""
        record = self._record
        if record is None or record.ended:
            return
        try:
            now = record.wall_ns + runtime.monotonic_ns() - record.start_ns
            with _lock:
                record.happened(str(name), now, fields, domain=True)
        except Exception as error:  # noqa: BLE001  the handler goes on
            _guard.fault("hop.event", error)

    def segment(self, *, tenant: str = "", region: str = "", source: str = "", device_type: str = "") -> None:
        """Say whose journey this is, from here on and for the hops around this one.

        Promises that were counted before keep the tenant and region they had. Never take a tenant from a caller's
        headers: it is a label and decides where telemetry shows up.
        """
        record = self._record
        journey = record.journey if record is not None else None
        if record is None or journey is None:
            return
        try:
            if tenant:
                journey.tenant = _word(tenant)
                journey.named = runtime.admit_tenant(journey.tenant)
                runtime.segmented(record)
            if region:
                journey.region = _word(region)
            if source:
                journey.source = _word(source)
            if device_type:
                journey.device_type = _word(device_type)
        except Exception as error:  # noqa: BLE001  a segment of the wrong type must not stop the message
            _guard.fault("hop.segment", error)

    def intend(self, channel: str, *keys: Key, count: int = 1) -> None:
        """Promise deliveries on *channel*: one per key, or *count* without keys.

        Counted in ``rtobs.delivery.intents`` when this hop ends ok, or as soon as a message has left it.
        """
        record = self._record
        if record is None:
            return
        try:
            number = len(keys) or count
            if 0 < number <= _MOST_INTENDED:
                with _lock:
                    promise(record, redaction.text(channel, redaction.NAME_LIMIT), number)
        except Exception as error:  # noqa: BLE001  the handler goes on
            _guard.fault("hop.intend", error)

    def outcome(self, outcome: Outcome, reason: str = "", *, category: ErrorCategory | None = None) -> None:
        """Decide how this ends, over everything else that is seen.

        In a ``deliver`` it is that attempt's; in a ``consume`` the message's and its one promise's. It does not
        settle the message. *reason* is an attribute, never a label.
        """
        record = self._record
        if record is None or record.ended:
            return
        try:
            record.explicit = Outcome(outcome)
            if reason:
                record.reason = redaction.text(reason)
            if category is not None:
                record.category = ErrorCategory(category)
        except Exception as error:  # noqa: BLE001  an unknown word must not stop the message
            _guard.fault("hop.outcome", error)

    def keep(self, reason: str) -> None:
        """Export this journey whole from here on, whatever sampling says. *reason*: a short lower-case word."""
        record = self._record
        if record is None:
            return
        try:
            runtime.keep(record, _NOT_A_WORD.sub("_", reason.lower())[:_WORD_LIMIT] or "forced")
        except Exception as error:  # noqa: BLE001  the handler goes on
            _guard.fault("hop.keep", error)

    def receipt_token(self) -> str:
        """Return a signed token by which a client can report on this delivery (76 characters).

        Only in a ``deliver`` hop and only with ``configure(wire_key=…)``; empty otherwise.
        """
        record = self._record
        if record is None or record.kind != "deliver":
            return ""
        try:
            return runtime.mint(record)
        except Exception as error:  # noqa: BLE001  the delivery goes out without a token
            _guard.fault("hop.receipt_token", error)
            return ""

    def __repr__(self) -> str:
        """Name the hop by kind, name and journey."""
        record = self._record
        return "<Hop: none>" if record is None else f"<Hop {record.kind} {record.name} {self.correlation_id}>"


def _word(value: str) -> str:
    """Return a word that travels and is shown; what was declared in ``configure`` is no secret."""
    found = redaction.redact(value, redaction.NAME_LIMIT)
    return found if found == value or not runtime.declares(value) else redaction.text(value, redaction.NAME_LIMIT)


NO_HOP = Hop()


def current() -> Hop:
    """Return the innermost hop of this context; outside of one, a handle whose methods do nothing."""
    try:
        record = engine.current()
        return NO_HOP if record is None else Hop(record)
    except Exception as error:  # noqa: BLE001  the handler goes on
        _guard.fault("hop.current", error)
        return NO_HOP
