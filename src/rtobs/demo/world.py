"""The platform's small world: tenants, what they send, on which channels it goes out, and how users look at it.

Everything is drawn from the seed and the message's number, so that two runs with one seed send the same messages.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Looked = Literal["displayed", "opened"]

TENANTS: Final = ("acme", "globex", "initech", "umbrella", "hooli")
"""Largest first; the n-th sends 1/n of what the first sends."""
HIGH_VALUE: Final = "hooli"
REGIONS: Final = ("eu", "us")

TEMPLATES: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "order_shipped": (("push", "email"), 3),
    "login_code": (("sms",), 2),
    "mention": (("push", "in_app"), 2),
    "incident": (("ticket", "email", "in_app"), 3),
    "payment_failed": (("push", "sms", "email", "in_app", "ticket"), 2),
    "support_reply": (("ticket",), 2),
}
"""Template -> its channels, and how often it is sent."""

SOURCES: Final = {"order_shipped": "shop", "payment_failed": "billing", "login_code": "accounts"}


@dataclass(frozen=True, slots=True)
class Notification:
    """What a tenant asks the API to send."""

    id: str
    tenant: str
    user: str
    template: str
    region: str
    source: str

    def as_json(self) -> dict[str, Any]:
        """Return the request body."""
        return asdict(self)


def channel_share(channel: str) -> float:
    """Return the part of all notifications that goes out on *channel*."""
    total = sum(weight for _, weight in TEMPLATES.values())
    return sum(weight for channels, weight in TEMPLATES.values() if channel in channels) / total


def notification(seed: int, number: int) -> Notification:
    """Return the *number*-th notification of a run."""
    luck = random.Random(f"{seed}/{number}")
    tenant = luck.choices(TENANTS, [1 / rank for rank in range(1, len(TENANTS) + 1)])[0]
    template = luck.choices(list(TEMPLATES), [weight for _, weight in TEMPLATES.values()])[0]
    return Notification(
        id=f"n{number}",
        tenant=tenant,
        user=f"{tenant}-user-{luck.randrange(500)}",
        template=template,
        region=luck.choice(REGIONS),
        source=SOURCES.get(template, "app"),
    )


def pauses(seed: int, rate: float) -> random.Random:
    """Return the luck by which the gaps between messages are drawn (exponential, *rate* a second on average)."""
    return random.Random(f"{seed}/pauses/{rate}")


def looks_after(seed: int, number: str, channel: str) -> list[tuple[Looked, float]]:
    """Return what a user does with a message that reached the device: (step, seconds since the step before)."""
    if channel not in ("push", "in_app"):
        return []
    luck = random.Random(f"{seed}/{number}/{channel}/looks")
    steps: list[tuple[Looked, float]] = []
    if luck.random() < 0.85:  # noqa: PLR2004 - how attentive the users of this world are
        steps.append(("displayed", luck.uniform(0.05, 0.4)))
        if luck.random() < 0.3:  # noqa: PLR2004 - as above
            steps.append(("opened", luck.uniform(0.1, 0.6)))
    return steps
