"""What is known of an incident, as it was heard: alerts, and answers to questions by the questions' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from rtobs.errors import ConfigError

Labels = Mapping[str, str]


class Sample(NamedTuple):
    """One value and the labels it has."""

    labels: Labels
    value: float


class Line(NamedTuple):
    """Values over time: pairs of seconds since 1970 and a value."""

    labels: Labels
    points: tuple[tuple[float, float], ...]


class Exemplar(NamedTuple):
    """One measured event and the trace it was in."""

    trace_id: str
    value: float
    labels: Labels


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: when it began, in seconds since 1970, and when it ended; *until* None = it still fires.

    *inhibited*: something worse fired, so that nobody was told.
    """

    labels: Labels
    since: float
    until: float | None = None
    inhibited: bool = False

    @property
    def name(self) -> str:
        """Name of its rule."""
        return self.labels.get("alertname", "")


@dataclass(frozen=True, slots=True)
class Facts:
    """An incident from *begin* to *end*, seconds since 1970, and what was answered about it.

    Attributes:
        begin, end: what was asked about; *end* is now while it goes on.
        alerts: all that fired meanwhile, inhibited ones included.
        samples, lines: answers by the name of the question; a question without an answer is missing.
        exemplars: measured events of what was bad.
        over: whether it is known to be over at *end*, whatever still fires.
    """

    begin: float
    end: float
    alerts: tuple[Alert, ...] = ()
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict[str, tuple[Sample, ...]])
    lines: Mapping[str, tuple[Line, ...]] = field(default_factory=dict[str, tuple[Line, ...]])
    exemplars: tuple[Exemplar, ...] = ()
    over: bool = False


def from_webhook(payload: Any) -> tuple[Alert, ...]:
    """Return the alerts of what Alertmanager sends to a webhook.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return tuple(_alert(alert) for alert in list(payload["alerts"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        advice = "give a JSON object with alerts, each with labels and startsAt"
        raise ConfigError(f"This is not what Alertmanager sends to a webhook; {advice}.") from None


def _alert(alert: Any) -> Alert:
    labels = {str(key): str(value) for key, value in alert["labels"].items()}
    ended = alert.get("status") == "resolved"
    until = datetime.fromisoformat(alert["endsAt"]).timestamp() if ended else None
    return Alert(labels, datetime.fromisoformat(alert["startsAt"]).timestamp(), until)
