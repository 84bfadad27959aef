"""rtobs makes every message of a real-time messaging app explain itself.

Decorate what accepts, publishes, consumes and delivers messages, wrap your clients, and each message tells where it
is, how long each step took, whether its user got it, and why not.
"""

from rtobs import integrations
from rtobs._config import configure, shutdown
from rtobs._hop.hop import Hop, current
from rtobs._hop.kinds import accept, consume, deliver, job, publish, receipt, stage
from rtobs._hop.operation import Operation
from rtobs._journey.outcome import ErrorCategory, Outcome
from rtobs.integrations import wrap

__all__ = [
    "ErrorCategory",
    "Hop",
    "Operation",
    "Outcome",
    "accept",
    "configure",
    "consume",
    "current",
    "deliver",
    "integrations",
    "job",
    "publish",
    "receipt",
    "shutdown",
    "stage",
    "wrap",
]
