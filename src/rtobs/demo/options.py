"""What may be asked of the demo, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

CHANNELS: Final = ("push", "sms", "email", "in_app", "ticket")
FAULTS: Final = ("none", "schema-drift", "rate-limit", "expired-token", "slow-consumer")
CONNECTOR_PROCESSES: Final = 2
"""Processes that share the deliveries where a real broker stands between processes."""
MOST_SECONDS: Final = 3600.0
MOST_MESSAGES: Final = 500.0
MOST_PORT: Final = 65_535


class Kind(NamedTuple):
    """A kind of broker."""

    name: str
    client: str
    """The library that talks to it, as it is installed."""
    module: str
    """The same, as it is imported."""


RABBITMQ: Final = Kind("RabbitMQ", "aio-pika", "aio_pika")
REDIS: Final = Kind("Redis", "redis", "redis")
NATS: Final = Kind("NATS", "nats-py", "nats")
BROKERS: Final = {"amqp": RABBITMQ, "amqps": RABBITMQ, "redis": REDIS, "rediss": REDIS, "nats": NATS}
"""By the scheme of an address."""


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
    prometheus: int = 0
    """Port at which Prometheus may scrape the first process, the next one for the next process; 0 = it may not."""
    after: float = 0.0
    """Seconds for which all is well before the fault begins."""
    slo: str = ""
    """Path of a declaration of SLOs that the platform counts; empty = it promises nothing."""
    sample: float = 1.0
    """Share of healthy journeys whose spans are exported; of failed ones all are."""

    def __post_init__(self) -> None:  # noqa: C901  an option each
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
            advice = "memory, or an address such as amqp://localhost, redis://localhost or nats://localhost"
            _check_address("--broker", self.broker, tuple(BROKERS), advice)
        if self.otlp:
            _check_address(
                "--otlp", self.otlp, ("http", "https"), "an OTLP/HTTP endpoint such as http://localhost:4318"
            )
        if not (math.isfinite(self.after) and 0.0 <= self.after < self.seconds):
            raise UsageError(
                f"--fault-after {self.after:g} is out of range; give 0 or more, and less than the {self.seconds:g} "
                "seconds of the run."
            )
        if not (math.isfinite(self.sample) and 0.0 <= self.sample <= 1.0):
            raise UsageError(f"--sample {self.sample:g} is out of range; give a share from 0 to 1, such as 0.01.")
        if self.slo:
            _check_declaration(self.slo)
        most = MOST_PORT + 1 - len(self.roles)
        if self.prometheus and not 1 <= self.prometheus <= most:
            raise UsageError(
                f"--prometheus {self.prometheus} is out of range; give a port from 1 to {most}: each of the "
                f"{len(self.roles)} processes of this run takes one, from there on."
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each process, in the order in which they start."""
        if self.broker == "memory":
            return ("platform",)
        return ("api", "router", *["connectors"] * CONNECTOR_PROCESSES, "clients")

    @property
    def ports(self) -> tuple[int, ...]:
        """The port at which Prometheus may scrape each process, 0 where it may not."""
        return tuple(self.prometheus and self.prometheus + place for place in range(len(self.roles)))

    @property
    def broker_shown(self) -> str:
        """The broker without user name and password, fit to be printed."""
        return self.broker if self.broker == "memory" else without_secrets(self.broker)


def _check_declaration(path: str) -> None:
    """Refuse a declaration with mistakes before anything starts."""
    from rtobs.errors import ConfigError
    from rtobs.slo import load

    try:
        load(path)
    except ConfigError as wrong:
        raise UsageError(f"--slo {path} cannot be used. {wrong}") from None


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
