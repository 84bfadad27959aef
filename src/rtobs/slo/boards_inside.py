"""Dashboards about where it fails: connectors and tenants."""

from __future__ import annotations

from collections.abc import Iterator

from rtobs._conventions import ATTEMPTS, DELIVERY_DURATION, JOBS, MESSAGE_SETTLED, OUTCOMES, Label
from rtobs.slo.panels import COUNT, SECONDS, SHARE, TIMES, Panel, Pick, Query, budget, limit, playbook
from rtobs.slo.series import ACTIVE, AFFECTED


def connectors(pick: Pick) -> Iterator[Panel]:
    """Yield the panels of: which connector is failing?"""
    which = {Label.PROVIDER.value: '=~"$provider"'}
    result = {Label.RESULT.value: '="failed"'}
    failed = pick.rate("channel, provider", ATTEMPTS, {**which, **result}, "30m")
    every = pick.rate("channel, provider", ATTEMPTS, which, "30m")
    vendor = "downstream-vendor-outage"
    yield Panel(
        "Connectors of which more than 20 % fails",
        "Not 0: the table beside names them.",
        COUNT,
        (Query(f"count({failed} / {every} > 0.2) or vector(0)", "connectors"),),
        1,
        vendor,
        "stat",
    )
    yield Panel(
        "Failed tries in 30 minutes, worst first",
        "One connector: its vendor, its credentials or our mapping; the error categories below say which.",
        SHARE,
        (Query(f"sort_desc({failed} / {every})"),),
        0.2,
        vendor,
        "table",
    )
    categories = pick.share("provider, error_category", "provider", ATTEMPTS, result, matchers=which)
    yield Panel(
        "Failed tries by error category",
        "rate_limited, unavailable, timeout: the vendor. auth: credentials. validation: our mapping or their schema.",
        SHARE,
        (Query(categories, "{{provider}} {{error_category}}"),),
        0.2,
        vendor,
    )
    yield Panel(
        "Tries that have to be repeated",
        "Three times the usual share opens a ticket: stretch the back-off before the vendor does it for us.",
        SHARE,
        (
            Query(pick.kept("provider:transient:ratio_rate10m", which), "{{channel}} {{provider}}"),
            Query(pick.kept("destination:retried:ratio_rate10m"), "{{destination}} comes back"),
        ),
        0.2,
        vendor,
    )
    yield Panel(
        "Duration of a try, 95th percentile",
        "It grows before it fails: lower the concurrency of that connector.",
        SECONDS,
        (Query(pick.p95("channel, provider", DELIVERY_DURATION, which), "{{channel}} {{provider}}", exemplars=True),),
        limit(pick.declaration),
        vendor,
    )
    outside = pick.share("connector, state", "connector", JOBS, {Label.STATE.value: '!="completed"'}, window="1h")
    yield Panel(
        "Runs outside of their window",
        "late: scale its workers. missed: it is not started in time. failed: its log.",
        SHARE,
        (Query(outside, "{{connector}} {{state}}"),),
        budget(pick.declaration, "job"),
        "connector-backlog",
    )
    dead = {Label.OUTCOME.value: '="dead_lettered"'}
    yield Panel(
        "Dead letters",
        "Read one before replaying any: the error category says whether a replay can work.",
        SHARE,
        (
            Query(
                pick.share("destination, error_category", "destination", MESSAGE_SETTLED, dead),
                "{{destination}} {{error_category}}",
            ),
        ),
        budget(pick.declaration, "consume"),
        "dead-letter-growth",
    )
    yield Panel(
        "Refused credentials",
        "A leap: keys were rotated, a token ran out, or a clock is wrong.",
        SHARE,
        (
            Query(pick.kept("provider:auth:ratio_rate10m", which), "{{channel}} {{provider}}"),
            Query(pick.kept("route:auth:ratio_rate10m"), "{{route}}"),
        ),
        0.2,
        "api-auth-failures",
    )


def tenants(pick: Pick) -> Iterator[Panel]:
    """Yield the panels of: is one tenant affected?"""
    this = {Label.TENANT.value: '=~"$tenant"'}
    leads_to = playbook(pick.declaration)
    if pick.declaration.tenants:
        yield from _named_tenants(pick, this, leads_to)
    not_ok = {Label.OUTCOME.value: '!="ok"'}
    yield Panel(
        "Deliveries that did not arrive, by channel",
        "One channel: the connector's dashboard. All: the tenant's recipients or settings.",
        SHARE,
        (Query(pick.share("channel, outcome", "channel", OUTCOMES, not_ok, matchers=this), "{{channel}} {{outcome}}"),),
        budget(pick.declaration, "deadline"),
        leads_to,
    )
    yield Panel(
        "Messages that were not handled well, by queue",
        "retried: it comes back. dead_lettered: it does not, until somebody replays it.",
        SHARE,
        (
            Query(
                pick.share("destination, outcome", "destination", MESSAGE_SETTLED, not_ok, matchers=this),
                "{{destination}} {{outcome}}",
            ),
        ),
        budget(pick.declaration, "consume"),
        "dead-letter-growth",
    )


def _named_tenants(pick: Pick, this: dict[str, str], leads_to: str) -> Iterator[Panel]:
    yield Panel(
        "Tenants whose promise is broken now",
        "1: that tenant's credentials, data or limits. Many: the dashboards of deliveries and connectors.",
        COUNT,
        (Query(pick.kept(AFFECTED), "{{slo}}"),),
        1,
        leads_to,
        "stat",
    )
    yield Panel(
        "Share of active tenants",
        "All tenants without a name count as one.",
        SHARE,
        (Query(f"{pick.kept(AFFECTED)} / {pick.kept(ACTIVE)}", "{{slo}}"),),
        0.5,
        leads_to,
        "stat",
    )
    yield Panel(
        "Tenants that burn their budget, worst first",
        "Choose one above to see it against everyone.",
        TIMES,
        (Query(f"topk(20, {pick.kept('tenant:burn:rate1h')} > 1)"),),
        1,
        leads_to,
        "table",
    )
    yield Panel(
        "Bad events: this tenant against everyone",
        "Apart: the cause is theirs. Together: it is ours.",
        SHARE,
        (
            Query(pick.kept("tenant:sli_error:ratio_rate1h", this), "{{tenant}} {{slo}}"),
            Query(pick.kept("slo:sli_error:ratio_rate1h"), "everyone {{slo}}"),
        ),
        min(slo.budget for slo in pick.declaration.slos),
        leads_to,
    )
    share = f"{pick.kept('tenant:sli_total:rate5m', this)} / on (slo, service) group_left"
    yield Panel(
        "Share of the traffic",
        "A leap: a bulk job of theirs may crowd out the others.",
        SHARE,
        (Query(f"{share} {pick.kept('slo:sli_total:rate5m')}", "{{tenant}} {{slo}}"),),
        0.5,
        "connector-backlog",
    )
