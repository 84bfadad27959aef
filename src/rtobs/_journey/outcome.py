"""How an attempt, a message and a delivery end: closed sets and the one table that decides between them.

Knows words and facts only; it must not know hops, spans or metrics.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

Step = Literal["accepted", "delivered", "displayed", "opened", "acted"]

STEPS: tuple[Step, ...] = ("accepted", "delivered", "displayed", "opened", "acted")

_ACCEPTED_ONLY = frozenset({"push", "sms", "email", "in_app"})


def proven_step(channel: str) -> Step:
    """Return the step that a successful ``deliver`` on *channel* proves."""
    return "accepted" if channel in _ACCEPTED_ONLY else "delivered"


class Outcome(StrEnum):
    """How a delivery, or the handling of a message, ended."""

    OK = "ok"
    REJECTED = "rejected"
    """Someone said no for good."""
    DROPPED = "dropped"
    """We chose not to."""
    EXPIRED = "expired"
    DEAD_LETTERED = "dead_lettered"
    FAILED = "failed"
    """Tries used up, or our bug."""
    CANCELLED = "cancelled"
    RETRIED = "retried"
    """The message will come back; exists only on settlements, never as the end of a delivery."""


class ErrorCategory(StrEnum):
    """Why an attempt failed, by who has to act."""

    TRANSPORT = "transport"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    AUTH = "auth"
    VALIDATION = "validation"
    RECIPIENT = "recipient"
    SUPPRESSED = "suppressed"
    REJECTED_DOWNSTREAM = "rejected_downstream"
    OVERLOAD = "overload"
    INTERNAL = "internal"


PERMANENT = frozenset(
    {
        ErrorCategory.AUTH,
        ErrorCategory.VALIDATION,
        ErrorCategory.RECIPIENT,
        ErrorCategory.SUPPRESSED,
        ErrorCategory.REJECTED_DOWNSTREAM,
    }
)
"""Categories that another try does not mend."""


class Verdict(NamedTuple):
    """What one error or one returned value says about an attempt."""

    category: ErrorCategory | None
    """None: the attempt worked."""
    reason: str = ""
    """The provider's own code, or the exception's type; an attribute, never a label."""
    outcome: Outcome | None = None
    """Set where the judge named an outcome instead of a category."""
    ambiguous: bool = False
    """The request may have arrived although no answer did."""
