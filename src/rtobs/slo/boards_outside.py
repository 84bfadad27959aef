"""Dashboards about what was promised: deliveries and budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rtobs._conventions import ACCEPT_DURATION, END_TO_END, SLO_INFO, STAGE_DURATION, Label
from rtobs.slo.model import Deadline
from rtobs.slo.panels import COUNT, PER_SECOND, SECONDS, SHARE, TIMES, Panel, Pick, Query, limit, playbook
from rtobs.slo.promql import one_of
from rtobs.slo.triggers import latency_floor
from rtobs.slo.windows import GROUP_FACTOR, tiers


def _burn(pick: Pick, about: Mapping[str, str], window: str = "1h") -> str:
    return f"{pick.kept(f'slo:sli_error:ratio_rate{window}', about)} / {pick.kept('slo:error_budget:ratio', about)}"


def delayed(pick: Pick) -> Iterator[Panel]:
    """Yield the panels of: are deliveries delayed?"""
    declaration = pick.declaration
    slos, deadline, leads_to = declaration.slos, limit(declaration), playbook(declaration)
    deadlines = [slo for slo in slos if isinstance(slo.sli, Deadline)]
    about = {Label.SLO.value: one_of([slo.name for slo in deadlines or slos])}
    yield Panel(
        "Late or lost in the last 5 minutes",
        "Red: more than the budget allows. Find the channel and the stage below.",
        SHARE,
        (Query(pick.kept("slo:sli_error:ratio_rate5m", about), "{{slo}}"),),
        min(slo.budget for slo in deadlines or slos),
        leads_to,
        "stat",
    )
    yield Panel(
        "Error budget left",
        "Near 0: what the team does then is written in slos.md.",
        SHARE,
        (Query(pick.kept("slo:period_error_budget_remaining:ratio", about), "{{slo}}"),),
        0.1,
        leads_to,
        "stat",
        less_is_bad=True,
    )
    yield Panel(
        "Oldest message that waits",
        "It grows: nobody handles that queue, or not fast enough.",
        SECONDS,
        (Query(f"max({pick.kept('destination:oldest_age:max')})", "oldest"),),
        deadline,
        "broker-saturation",
        "stat",
    )
    yield Panel(
        "Age at delivery, 95th percentile, by channel",
        "A channel above the line breaks its promise: open an exemplar's trace, then the stage beside it.",
        SECONDS,
        (Query(pick.p95("channel, step", END_TO_END), "{{channel}} {{step}}", exemplars=True),),
        deadline,
        leads_to,
    )
    yield Panel(
        "Where the time goes: stages, 95th percentile",
        "The stage that grew when the age did is where to look first.",
        SECONDS,
        (Query(pick.p95("stage", STAGE_DURATION), "{{stage}}", exemplars=True),),
        deadline,
        leads_to,
    )
    yield Panel(
        "Age of the oldest message, by queue",
        "One queue grows: its consumers. All grow: the broker.",
        SECONDS,
        (Query(pick.kept("destination:oldest_age:max"), "{{destination}}"),),
        deadline,
        "connector-backlog",
    )
    yield Panel(
        "API answers, 95th percentile, by route",
        "A route above the line breaks its promise; compare with the same hour yesterday.",
        SECONDS,
        (Query(pick.p95("route", ACCEPT_DURATION, {Label.OUTCOME.value: '="ok"'}), "{{route}}", exemplars=True),),
        3 * latency_floor(declaration),
        "api-latency",
    )
    yield Panel(
        "Budget burn over 1 hour",
        "Above the line the budget would not last long: somebody has been paged.",
        TIMES,
        (Query(_burn(pick, about), "{{slo}}"),),
        tiers("30d")[0].factor,
        leads_to,
    )


def promises(pick: Pick) -> Iterator[Panel]:
    """Yield the panels of: are we keeping our promises?"""
    chosen = {Label.SLO.value: '=~"$slo"'}
    slos = pick.declaration.slos
    leads_to = playbook(pick.declaration)
    yield Panel(
        "Error budget left, least first",
        "At 0 the promise is broken: slos.md says what the team does.",
        SHARE,
        (Query(f"sort({pick.kept('slo:period_error_budget_remaining:ratio', chosen)})", "{{slo}}"),),
        0.1,
        leads_to,
        "stat",
        less_is_bad=True,
    )
    yield Panel(
        "Share of the window that is known",
        "Below 10 % the budget says little: the service, or its monitoring, is young.",
        SHARE,
        (Query(pick.kept("slo:window_coverage:ratio", chosen), "{{slo}}"),),
        0.1,
        leads_to,
        "stat",
        less_is_bad=True,
    )
    firing = pick.kept("ALERTS", {"alertstate": '="firing"'})
    yield Panel(
        "Alerts that fire",
        "Pages first; each alert links to its playbook.",
        COUNT,
        (Query(f"count by (alertname, severity, slo) ({firing})"),),
        1,
        leads_to,
        "table",
    )
    yield Panel(
        "Budget burn",
        "1 = the budget lasts exactly as long as its window. Above the line somebody is paged.",
        TIMES,
        tuple(Query(_burn(pick, chosen, window), f"{{{{slo}}}} {window}") for window in ("5m", "1h", "6h")),
        tiers("30d")[0].factor,
        leads_to,
    )
    yield Panel(
        "Bad events against the budget",
        "A line above its budget breaks its promise if it stays there.",
        SHARE,
        (
            Query(pick.kept("slo:sli_error:ratio_rate1d", chosen), "{{slo}} 1 day"),
            Query(pick.kept("slo:error_budget:ratio", chosen), "{{slo}} budget"),
        ),
        min(slo.budget for slo in slos),
        leads_to,
    )
    groups = list(dict.fromkeys(slo.group_by for slo in slos if slo.group_by))
    if groups:
        yield Panel(
            f"Budget burn by {' and '.join(groups)}",
            "Each against its own objective.",
            TIMES,
            tuple(Query(pick.kept(f"{one}:burn:rate1h", chosen), f"{{{{{one}}}}} {{{{slo}}}}") for one in groups),
            GROUP_FACTOR,
            leads_to,
        )
    yield Panel(
        "Events that promises are about",
        "No line: nothing is counted, so nothing is known.",
        PER_SECOND,
        (Query(pick.kept("slo:sli_total:rate5m", chosen), "{{slo}}"),),
        0.001,
        leads_to,
        less_is_bad=True,
    )
    yield Panel(
        "Processes by the revision they count by",
        "Two revisions of one SLO: a release is under way, or was left unfinished.",
        COUNT,
        (
            Query(f"count by (slo, revision) ({pick.raw(SLO_INFO, chosen)})", "running"),
            Query(f"count by (slo, revision) ({pick.kept('slo:revision:info', chosen)})", "declared"),
        ),
        1,
        leads_to,
        "table",
    )
