"""The simulated outside world: five providers with their speed, their small failures and, one of them, its fault.

A provider answers as its real kin would: with an HTTP status, or with a body that the connector has to understand.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rtobs.demo import world

if TYPE_CHECKING:
    from collections.abc import Mapping

TRUTH: Final = "RTOBS_DEMO_TRUTH"
"""Environment variable for tests: the path of a file that gets one line for each message a provider took or refused,
with the process and the time."""

TRANSIENT: Final = 0.01
"""Share of tries that fail for a moment, at every provider, always."""
DEAD_ADDRESS: Final = 0.004
"""Share of users whose address a provider refuses for good."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A provider's name and speed."""

    name: str
    seconds: float
    """Median time for an answer."""


PROFILES: Final[dict[str, Profile]] = {
    "push": Profile("push-gateway", 0.020),
    "sms": Profile("sms-carrier", 0.060),
    "email": Profile("mail-relay", 0.080),
    "in_app": Profile("websocket", 0.005),
    "ticket": Profile("ticket-desk", 0.070),
}


class RefusedError(Exception):
    """The provider answered with an error status."""

    def __init__(self, status: int, retry_after: float = 0.0) -> None:
        super().__init__(f"the provider answered {status}")
        self.status_code = status
        self.retry_after = retry_after


class UnexpectedAnswerError(Exception):
    """The provider's answer lacks a field that the connector needs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and how much of it one process has to do."""

    name: str
    target: str
    seconds: float
    """Length of the run; the fault grows with it."""
    rate: float
    shares: int = 1
    """Processes among which the target's work, and so its provider's allowance, is divided."""
    after: float = 0.0
    """Seconds for which all is well before it begins, all at once; 0 = it grows from the start."""

    def hits(self, channel: str) -> str:
        """Return the fault's name if it is this channel's, else an empty string."""
        return self.name if channel == self.target and self.name != "none" else ""

    @property
    def arrivals(self) -> float:
        """Deliveries a second that reach the target in one process."""
        return self.rate * world.channel_share(self.target) / self.shares


class Provider:
    """The far end of one channel.

    Args:
        channel: what it carries.
        seed: decides, together with the message and the try, how it goes.
        fault: what goes wrong in this run.
    """

    def __init__(self, channel: str, seed: int, fault: Fault) -> None:
        self.channel = channel
        self.name = PROFILES[channel].name
        self._seconds = PROFILES[channel].seconds
        self._seed = seed
        self._fault = fault
        self._hit = fault.hits(channel)
        self._begun = time.monotonic()
        self._allowance = 0.0
        self._counted_at = self._begun
        self._truth = os.environ.get(TRUTH, "")

    def begin(self) -> None:
        """Start the clock by which the fault grows."""
        self._begun = self._counted_at = time.monotonic()

    async def send(self, message: Mapping[str, Any], tries: int) -> dict[str, str]:
        """Answer one request.

        Raises:
            RefusedError: with the status of a real provider's refusal.
        """
        luck = random.Random(f"{self._seed}/{message['id']}/{self.channel}/{tries}")
        await asyncio.sleep(self._seconds * math.exp(luck.gauss(0.0, 0.35)))
        self._refuse_by_fault()
        if random.Random(f"{self._seed}/{message['user']}/{self.channel}").random() < DEAD_ADDRESS:
            self._write_truth(message, "refused")
            raise RefusedError(410)
        if luck.random() < TRANSIENT:
            raise RefusedError(503)
        if self.broken == "schema-drift" and luck.random() < self._drift():
            # The partner's new release renamed a field of its answer, and creates nothing when called the old way.
            return {"status": "accepted", "reference": f"{self.channel}-{message['id']}"}
        self._write_truth(message, "took")
        return {"status": "accepted", "id": f"{self.channel}-{message['id']}"}

    @property
    def broken(self) -> str:
        """The fault that this provider's channel has by now; empty where all is well."""
        return self._hit if time.monotonic() - self._begun >= self._fault.after else ""

    def _progress(self) -> float:
        return min(1.0, (time.monotonic() - self._begun) / self._fault.seconds)

    def _drift(self) -> float:
        """Share of the partner's servers that run its new release: it is being rolled out, or was at once."""
        return 1.0 if self._fault.after else 0.15 + 0.5 * self._progress()

    def _refuse_by_fault(self) -> None:
        broken = self.broken
        if broken == "expired-token" and (self._fault.after or self._progress() > 0.3):  # noqa: PLR2004 - when it expires
            raise RefusedError(401)
        if broken == "rate-limit":
            now = time.monotonic()
            allowed = 0.6 * self._fault.arrivals
            self._allowance = min(max(1.0, allowed), self._allowance + (now - self._counted_at) * allowed)
            self._counted_at = now
            if self._allowance < 1.0:
                raise RefusedError(429, retry_after=0.5)
            self._allowance -= 1.0

    def _write_truth(self, message: Mapping[str, Any], verdict: str) -> None:
        if not self._truth:
            return
        line = f"{message['correlation_id']} {self.channel} {verdict} {os.getpid()} {time.time()}\n".encode()
        file = os.open(self._truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)  # one write: lines of several processes do not mix
        finally:
            os.close(file)
