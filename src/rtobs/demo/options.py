"""What may be asked of the demo, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

CHANNELS: Final = ("push", "sms", "email", "in_app", "ticket")
FAULTS: Final = ("none", "schema-drift", "rate-limit", "expired-token", "slow-consumer")
CONNECTOR_PROCESSES: Final = 2
"""Processes that share the deliveries where a real broker stands between processes."""
MOST_SECONDS: Final = 3600.0
MOST_MESSAGES: Final = 500.0


class UsageError(Exception):
    """An argument is wrong: what was seen, what to do. The command ends with 2."""


class BrokenRunError(Exception):
    """The run could not be brought to its end: what happened, what was seen, what to do. The command ends with 1."""


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the demo."""

    fault: str = "schema-drift"
    target: str = "ticket"
    seconds: float = 20.0
    rate: float = 40.0
    """Messages a second at the API; each fans out to one to five deliveries."""
    seed: int = 1
    broker: str = "memory"
    otlp: str = ""
    """OTLP/HTTP endpoint that gets a copy of everything; empty = nobody does."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.fault not in FAULTS:
            raise UsageError(f"--fault {self.fault!r} is not a fault of the demo; choose one of: {', '.join(FAULTS)}.")
        if self.target not in CHANNELS:
            raise UsageError(f"--target {self.target!r} is not a channel; choose one of: {', '.join(CHANNELS)}.")
        if not (math.isfinite(self.seconds) and 1.0 <= self.seconds <= MOST_SECONDS):
            raise UsageError(f"--seconds {self.seconds:g} is out of range; give 1 to {MOST_SECONDS:g} seconds.")
        if not (math.isfinite(self.rate) and 1.0 <= self.rate <= MOST_MESSAGES):
            raise UsageError(f"--rate {self.rate:g} is out of range; give 1 to {MOST_MESSAGES:g} messages a second.")
        if self.broker != "memory":
            _check_address("--broker", self.broker, ("amqp", "amqps"), "memory, or an address such as amqp://localhost")
        if self.otlp:
            _check_address(
                "--otlp", self.otlp, ("http", "https"), "an OTLP/HTTP endpoint such as http://localhost:4318"
            )

    @property
    def broker_shown(self) -> str:
        """The broker without user name and password, fit to be printed."""
        return self.broker if self.broker == "memory" else without_secrets(self.broker)


def without_secrets(address: str) -> str:
    """Return *address* without the part that names a user and a password."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check_address(option: str, address: str, schemes: tuple[str, ...], advice: str) -> None:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        shown = without_secrets(address) if "@" in address and "://" in address else address
        raise UsageError(f"{option} {shown!r} is not an address the demo can use; give {advice}.")
