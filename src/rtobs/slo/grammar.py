"""What a declaration may say: one table, which the reader, the JSON Schema and the docs share.

Knows keys and shapes; what keys must not say together is in ``consistency``.
"""

from __future__ import annotations

from typing import Final

from rtobs.slo.shapes import Address, Field, Listing, Number, Object, Table, Text, Variant, choice, duration

VERSION: Final = "rtobs/v1"
STEPS: Final = ("accepted", "delivered", "displayed", "opened", "acted")
PROMISE: Final = "promise"
"""Stands for the promise step of each channel."""
BAD: Final = {
    "accept": ("failed",),
    "consume": ("rejected", "dropped", "expired", "dead_lettered", "failed"),
    "job": ("late", "missed", "failed"),
}
"""What can be bad at the end of a hop of each kind that a ratio may be about."""
TIMED: Final = ("accept", "consume")
"""Hops whose duration can be promised."""
WINDOWS: Final = ("7d", "28d", "30d")
SEVERITIES: Final = ("page", "ticket", "dashboard")
GROUPS: Final = ("channel", "connector")

_WORDS = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
_LONGEST_DEADLINE = 900.0
_LONGEST_EVERY = 31 * 86_400.0

LABEL: Final = Text("the name as it is in telemetry, such as acme", longest=100)
_TENANT: Final = Text("the name as it is in telemetry, such as acme", longest=64)
"""As many characters as a tenant may have in ``rtobs.configure``."""
_NAME: Final = Text("small letters, digits and single hyphens, such as api-ack", _WORDS, 60)
_LINE: Final = Text("one line of text")
_PERCENT: Final = Number("a percentage above 0 and below 100, such as 99.9", 0, 100, near=0.0001)
_COUNT: Final = Number("a whole number from 1 on, such as 10", 1, 1e9, whole=True)
_PLAYBOOK: Final = Text("the id of a playbook, such as api-latency", _WORDS, 60)
_OBJECTIVES: Final = Table("names with percentages, such as acme: 99.5", LABEL, _PERCENT)
_TENANT_OBJECTIVES: Final = Table("names with percentages, such as acme: 99.5", _TENANT, _PERCENT)
_NAMES: Final = Listing("a list of names, such as [acme, beta]", LABEL)

ALERTING: Final = Object(
    "min_bad_events or single_tenant",
    {
        "min_bad_events": Field(
            Object(
                "page and ticket, such as page: 10, ticket: 5",
                {
                    "page": Field(_COUNT, "Bad events in the longer window before anybody is paged; 10 if not given."),
                    "ticket": Field(_COUNT, "Bad events in the longer window before a ticket; 5 if not given."),
                },
            ),
            "How many bad events it takes, so that one failure of a quiet service alarms nobody.",
        ),
        "single_tenant": Field(
            choice(*SEVERITIES), "Severity where one named tenant alone is affected; ticket if not given."
        ),
    },
)

POLICY: Final = Listing(
    "a list of steps, such as - {budget_left: 10, action: no risky releases}",
    Object(
        "budget_left and action",
        {
            "budget_left": Field(
                Number("a percentage from 0 to below 100, such as 50", 0, 99.999),
                "The step is reached when no more than this share of the error budget is left, percent.",
                required=True,
            ),
            "action": Field(_LINE, "What the team does then.", required=True),
        },
    ),
)

_THRESHOLD: Final = "It is good if it took no longer."
SLI: Final = Variant(
    "a table with kind, such as kind: latency, hop: accept, threshold: 300ms",
    "kind",
    {
        "ratio": Object(
            "kind, hop and bad",
            {
                "kind": Field(choice("ratio"), "Good ones of all.", required=True),
                "hop": Field(choice(*BAD), "What is counted: each hop of this kind, at its end.", required=True),
                "bad": Field(
                    Listing(
                        "a list of endings, such as [dead_lettered]",
                        choice(*dict.fromkeys(word for words in BAD.values() for word in words)),
                    ),
                    "The endings that break the promise.",
                    required=True,
                ),
            },
        ),
        "latency": Object(
            "kind, hop or stage, and threshold",
            {
                "kind": Field(choice("latency"), "Good and in time, of all.", required=True),
                "hop": Field(choice(*TIMED), "What is timed: each hop of this kind."),
                "stage": Field(_NAMES.item, "What is timed: each stage of this name."),
                "threshold": Field(duration("300ms", 0.001, 600), _THRESHOLD, required=True),
            },
        ),
        "deadline": Object(
            "kind, step and threshold",
            {
                "kind": Field(choice("deadline"), "Reached in time, of all that were promised.", required=True),
                "step": Field(
                    choice(PROMISE, *STEPS),
                    "How far a delivery has to get; promise = the promise step of its channel.",
                    required=True,
                ),
                "threshold": Field(duration("5s", 0.1, _LONGEST_DEADLINE), _THRESHOLD, required=True),
            },
        ),
    },
)

WHERE: Final = Object(
    "route, destination, connector, stage or channel, with a list of names",
    {name: Field(_NAMES, f"Only these: {name}.") for name in ("route", "destination", "connector", "channel")},
)

SLO: Final = Object(
    "a table with name, objective, description, owner, playbook and sli",
    {
        "name": Field(_NAME, "Names the promise in metrics, alerts and pages; never changes.", required=True),
        "objective": Field(_PERCENT, "Share of good events that is promised, percent.", required=True),
        "description": Field(_LINE, "The promise in words that anybody understands.", required=True),
        "owner": Field(_LINE, "Who acts; the declaration's owner if not given."),
        "playbook": Field(_PLAYBOOK, "What to do when it breaks: the id of a playbook.", required=True),
        "sli": Field(SLI, "What is counted, and what is good.", required=True),
        "where": Field(WHERE, "Counts only what has one of these names."),
        "group_by": Field(choice(*GROUPS), "Also shown, and judged, by channel or connector."),
        "window": Field(choice(*WINDOWS), "What the objective is about; 30d if not given."),
        "severity": Field(
            choice(*SEVERITIES), "The most an alert of this SLO may do; dashboard = none; page if not given."
        ),
        "tenants": Field(_TENANT_OBJECTIVES, "Objectives of tenants that were promised something else, percent."),
        "channels": Field(_OBJECTIVES, "Objectives of channels, percent; needs group_by: channel."),
        "connectors": Field(_OBJECTIVES, "Objectives of connectors, percent; needs group_by: connector."),
        "every": Field(
            duration("1h", 60, _LONGEST_EVERY), "How often a job runs, so that one that never began is noticed."
        ),
        "alerting": Field(ALERTING, "When to alert, where it differs from the declaration's alerting."),
        "policy": Field(POLICY, "What the team does as the budget goes down; the declaration's policy if not given."),
    },
)

DECLARATION: Final = Object(
    "apiVersion, service and slos",
    {
        "apiVersion": Field(choice(VERSION), "The form of this file.", required=True),
        "service": Field(LABEL, "What the promises are about; a label of every series and alert.", required=True),
        "jobs": Field(_NAMES, "The Prometheus jobs whose series are counted; the service's name if not given."),
        "owner": Field(_LINE, "Who acts, where an SLO does not say."),
        "tenants": Field(
            Listing("a list of names, such as [acme, beta]", _TENANT),
            "Tenants that have series of their own; all others share one.",
        ),
        "playbooks": Field(_LINE, "Folder of the playbooks, relative to this file; playbooks if not given."),
        "playbook_url": Field(
            Address("the beginning of a web address, such as https://runbooks.example.com"),
            "Where the playbooks are published: alerts link to this, a slash and the playbook's file.",
        ),
        "dashboard_url": Field(
            Address("the beginning of a web address, such as https://grafana.example.com"),
            "Where Grafana is: alerts link to its dashboards.",
        ),
        "alerting": Field(ALERTING, "When to alert."),
        "policy": Field(POLICY, "What the team does as a budget goes down."),
        "slos": Field(Listing("a list of SLOs, each with name and objective", SLO), "The promises.", required=True),
    },
)

CATEGORIES: Final = (
    "transport", "timeout", "rate_limited", "unavailable", "auth", "validation", "recipient", "suppressed",
    "rejected_downstream", "overload", "internal",
)  # fmt: skip
"""Error categories, as telemetry has them."""

PLAYBOOK_HEAD: Final = Object(
    "a head with id, alerts and owner",
    {
        "id": Field(_PLAYBOOK, "Its name, which is its file's.", required=True),
        "alerts": Field(
            Listing("a list of alerts, such as [RtobsSLOBurn]", Text("the name of an alert", r"[A-Z]\w*", 100)),
            "The alerts that lead to it.",
            required=True,
        ),
        "owner": Field(_LINE, "Who keeps it true.", required=True),
        "applies_to": Field(
            Object(
                "stages and error_categories",
                {
                    "stages": Field(_NAMES, "Hops and stages in which this failure shows first."),
                    "error_categories": Field(
                        Listing("a list of error categories, such as [timeout]", choice(*CATEGORIES)),
                        "Error categories that it shows with.",
                    ),
                },
            ),
            "What an incident looks like that this playbook is about.",
        ),
        "last_drilled": Field(_LINE, "The day on which somebody last went through it."),
    },
)
