"""How a hop ends: the table of the design as pure functions over a record.

It must not know clients, metrics or time; whoever calls it has put the facts into the record.
"""

from __future__ import annotations

from rtobs._journey.outcome import PERMANENT, ErrorCategory, Outcome

FINAL = frozenset(
    {Outcome.OK, Outcome.REJECTED, Outcome.DROPPED, Outcome.EXPIRED, Outcome.DEAD_LETTERED, Outcome.CANCELLED}
)
"""Outcomes that, said explicitly inside a ``deliver``, end the delivery whatever becomes of the message."""


def settle(  # noqa: PLR0911  a row of the table each
    *, explicit: Outcome | None, settlement: str, manual: bool, failed: bool, cancelled: bool,
    category: ErrorCategory | None, last_delivery: bool, dead_letter: bool | None,
) -> tuple[Outcome, str]:  # fmt: skip
    """Return how the handling of one message ended, and why where that needs a word.

    *settlement* is what the broker was told inside the hop: acked, requeued, rejected, terminated, retried or nothing.
    """
    if explicit is not None:
        return explicit, ""
    used_up = Outcome.FAILED if dead_letter is False else Outcome.DEAD_LETTERED
    if settlement in ("requeued", "retried"):
        return (used_up, "tries_used_up") if last_delivery else (Outcome.RETRIED, "")
    if settlement == "terminated":
        return Outcome.DEAD_LETTERED, "terminated"
    if settlement == "rejected":
        if dead_letter or (dead_letter is None and last_delivery):
            return Outcome.DEAD_LETTERED, "rejected"
        if dead_letter is False:
            return Outcome.FAILED, "tries_used_up"
        return Outcome.DROPPED, "rejected_no_dlx_known"
    if cancelled:
        return (Outcome.RETRIED if manual and not settlement else Outcome.FAILED), "cancelled"
    if not failed:
        return Outcome.OK, ""
    if manual and not settlement:
        return (used_up, "tries_used_up") if last_delivery else (Outcome.RETRIED, "")
    return (Outcome.REJECTED if category in PERMANENT else Outcome.FAILED), ""


def deliver(
    *,
    result: str,
    explicit: Outcome | None,
    category: ErrorCategory | None,
    settled: Outcome,
    explicit_message: Outcome | None,
) -> Outcome | None:
    """Return the outcome of a delivery whose last attempt had *result*, or None while it is still owed.

    *settled* is how its scope's message ended (``ok`` or ``failed`` where there was none).
    """
    if explicit in FINAL:
        return explicit
    if result == "ok":
        return Outcome.OK
    if result == "cancelled" or settled is Outcome.RETRIED:
        return None
    if settled in (Outcome.DEAD_LETTERED, Outcome.DROPPED, Outcome.EXPIRED):
        return settled
    if explicit_message in (Outcome.REJECTED, Outcome.FAILED):
        return explicit_message
    return Outcome.REJECTED if category in PERMANENT else Outcome.FAILED
