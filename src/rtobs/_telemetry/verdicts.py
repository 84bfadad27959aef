"""What counts as good for an SLO: pure functions of an ended hop, or a delivery's end, and what is promised.

None stands for what counts neither way. Must not know series.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from rtobs._conventions import Attribute
from rtobs._journey.outcome import ErrorCategory, Outcome

if TYPE_CHECKING:
    from rtobs._journey.record import DeliveryEnd, HopRecord
    from rtobs._telemetry.budget import Promise

NEVER_LATE: Final = sys.maxsize
"""A limit, in nanoseconds, where no time is promised."""
_BAD_REQUESTS: Final = range(400, 500)
_OUR_FAULT: Final = (408, 429)
_CALLERS_FAULT: Final = frozenset({ErrorCategory.VALIDATION, ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED})
"""Where there is no HTTP status: what the caller has to mend. Not `auth`: the broker may refuse us."""
_NOT_OWED: Final = frozenset({ErrorCategory.RECIPIENT, ErrorCategory.SUPPRESSED})
_STATUS_DIGITS: Final = 3


def accepted(record: HopRecord, limit_ns: int) -> bool | None:
    """Tell whether a request was acknowledged in time; None where its caller made the mistake, or left in time."""
    late = record.duration_ns > limit_ns
    if record.outcome is Outcome.OK:
        return not late
    if record.outcome is Outcome.CANCELLED:
        return False if late else None
    if record.explicit in (Outcome.REJECTED, Outcome.DROPPED):
        return None
    status = (record.attributes or {}).get(Attribute.HTTP_STATUS, 0)
    if not status and len(record.reason) == _STATUS_DIGITS and record.reason.isdigit():
        status = int(record.reason)  # what the exception says that was raised
    callers = status in _BAD_REQUESTS and status not in _OUR_FAULT if status else record.category in _CALLERS_FAULT
    return None if callers else False


def consumed(promise: Promise, record: HopRecord, *, replay: bool) -> bool | None:
    """Tell whether the handling of a message was good; None where it does not count."""
    settled, message = record.settled, record.message
    if message is not None and message.dead_cause and not message.replay:
        # A consumer that decided has counted it. What the broker did, only who reads the dead letters can tell.
        died = {"expired": {"expired", "dead_lettered"}, "limit": {"dead_lettered"}}.get(message.dead_cause, set())
        return False if died & promise.bad and settled not in (None, Outcome.RETRIED) else None
    if replay:
        return None
    if promise.limit_ns != NEVER_LATE:
        if record.cancelled:
            return None
        return record.outcome is Outcome.OK and record.duration_ns <= promise.limit_ns
    if settled in (None, Outcome.RETRIED):
        return None
    return (Outcome.FAILED if settled is Outcome.CANCELLED else settled) not in promise.bad


def kept(promise: Promise, end: DeliveryEnd, record: HopRecord) -> bool:
    """Tell whether the end of a delivery keeps its promise."""
    if end.repeated and not end.promised_here:
        return False  # it may have been counted before
    if end.outcome is not Outcome.OK:  # it was called off, or there is nobody to deliver to: nothing is owed any more
        return end.outcome is Outcome.CANCELLED or end.category in _NOT_OWED
    if end.step != promise.kept_at(end.channel):
        return False
    if end.age is None:  # the clocks make no sense: nobody can say that it was late
        return True
    late_ns = end.age * 1e9 - promise.limit_ns
    return late_ns <= 0 or late_ns <= _held_back_ns(record)


def _held_back_ns(record: HopRecord) -> int:
    """Return for how long a message was delayed on purpose before it was first handled."""
    message, journey = record.message, record.journey
    if message is None or journey is None or not message.release_ns or record.attempt > 1:
        return 0  # a later try was delayed because the first one failed
    return max(message.release_ns - journey.created_us * 1000, 0)
