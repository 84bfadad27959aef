"""Promises as code: one declaration drives budgets, alerts and their tests, dashboards and playbooks.

Pure: a declaration goes in, files come out. ``rtobs slo`` is the command that writes them, and
``rtobs.configure(slos=…)`` counts what they are about; ``status()`` and ``endpoint`` show it.
"""

from rtobs.slo.live import Count, Standing, endpoint, status
from rtobs.slo.mistakes import DeclarationError, Mistake
from rtobs.slo.model import SLO, Alerting, Deadline, Declaration, Latency, Ratio, Step
from rtobs.slo.reader import load

__all__ = [
    "SLO",
    "Alerting",
    "Count",
    "Deadline",
    "Declaration",
    "DeclarationError",
    "Latency",
    "Mistake",
    "Ratio",
    "Standing",
    "Step",
    "endpoint",
    "load",
    "status",
]
