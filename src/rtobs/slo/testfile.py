"""Unit tests for Prometheus rules, as promtool runs them: counters that grow at given rates, and what must fire then.

Knows promtool's notation; must not know SLOs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rtobs.slo.durations import span
from rtobs.slo.promql import expanded, number, text

MINUTE: Final = 60.0
STALE: Final = "stale"
"""The mark of a series that is gone."""

_Shown = tuple[float, Mapping[str, Any], Sequence[Mapping[str, str]]]
Segment = tuple[float, float]
"""Seconds, and how much a counter grows in a minute meanwhile."""


def selector(name: str, labels: Mapping[str, str]) -> str:
    """Return a series, or the labels of a sample, as promtool has them."""
    return f"{name}{{{', '.join(f'{label}={text(value)}' for label, value in labels.items() if value)}}}"


def grown(segments: Iterable[Segment], interval: float, start: float = 0) -> str:
    """Return the samples of a counter that begins at *start* and grows through *segments*, one each *interval* s."""
    parts, value = [number(start)], start
    for seconds, per_minute in segments:
        steps = round(seconds / interval)
        each = per_minute * interval / MINUTE
        if steps:
            parts.append(f"{number(value + each)}+{number(each)}x{steps - 1}")
            value += each * steps
    return " ".join(parts)


def up_to_multiple(value: float, of: float) -> float:
    """Return the smallest multiple of *of* that is not below *value*."""
    return math.ceil(round(value / of, 9)) * of


@dataclass
class Case:
    """One test: series go in, expressions are checked at moments in seconds from its start."""

    name: str
    interval: float = 30.0
    """Seconds between two samples of its series."""
    evaluation: float = 30.0
    """Seconds between two evaluations of the rules; cases of one file share it."""
    series: dict[str, str] = field(default_factory=dict[str, str])
    checks: list[tuple[float, str, dict[str, float]]] = field(default_factory=list[tuple[float, str, dict[str, float]]])
    alerts: list[_Shown] = field(default_factory=list[_Shown])

    def expect(self, at: float, expression: str, samples: Mapping[str, float]) -> None:
        """Demand that *expression* has exactly these values at *at*, by their labels."""
        self.checks.append((at, expression, dict(samples)))

    def fires(self, at: float, expected: Iterable[Mapping[str, str]], which: str = "") -> None:
        """Demand that exactly these alerts fire at *at*, of all or of those whose labels match *which*."""
        found = [dict(labels) for labels in expected]
        by = "alertname, severity, tenant, channel, connector, step, provider, destination, route"
        matchers = f'alertstate="firing"{"," if which else ""}{which}'
        self.expect(at, f"count by ({by}) (ALERTS{{{matchers}}})", {selector("", labels): 1 for labels in found})

    def shows(self, at: float, rule: Mapping[str, Any], labels: Iterable[Mapping[str, str]]) -> None:
        """Demand that *rule* fires at *at* with its very labels and annotations, once for each of *labels*."""
        self.alerts.append((at, rule, list(labels)))

    def data(self) -> dict[str, Any]:
        """Return the test as promtool's files have it."""
        found: dict[str, Any] = {"name": self.name, "interval": span(self.interval)}
        found["input_series"] = [{"series": name, "values": values} for name, values in self.series.items()]
        if self.alerts:
            found["alert_rule_test"] = [
                {
                    "eval_time": span(at),
                    "alertname": rule["alert"],
                    "exp_alerts": [
                        {
                            "exp_labels": {**_shown(rule["labels"]), **one},
                            "exp_annotations": _shown(rule["annotations"]),
                        }
                        for one in labels
                    ],
                }
                for at, rule, labels in self.alerts
            ]
        if self.checks:
            found["promql_expr_test"] = [
                {
                    "expr": expression,
                    "eval_time": span(at),
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
                }
                for at, expression, samples in self.checks
            ]
        return found


def _shown(values: Mapping[str, str]) -> dict[str, str]:
    return {name: expanded(value) for name, value in values.items()}


def test_file(rules: Sequence[str], interval: float, cases: Iterable[Case]) -> dict[str, Any]:
    """Return a test file for the files *rules*, which are evaluated each *interval* seconds."""
    return {
        "rule_files": list(rules),
        "evaluation_interval": span(interval),
        "tests": [case.data() for case in cases],
    }
