"""What happened, told from data alone: alerts, answers of Prometheus, exemplars; the same data give the same text.

Pure but for ``receiver``, which Alertmanager speaks to: ``gather`` makes ``Facts`` of what a Prometheus answers that
it is given. Where nothing was answered the summary says unknown.
"""

from rtobs.incident.facts import Alert, Exemplar, Facts, Line, Sample, from_webhook
from rtobs.incident.gather import gather
from rtobs.incident.pages import opened, postmortem
from rtobs.incident.questions import Question, questions
from rtobs.incident.summary import Summary, summarise

__all__ = [
    "Alert",
    "Exemplar",
    "Facts",
    "Line",
    "Question",
    "Sample",
    "Summary",
    "from_webhook",
    "gather",
    "opened",
    "postmortem",
    "questions",
    "summarise",
]
