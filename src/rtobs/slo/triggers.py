"""Alerts that belong to no single SLO: the API against its own baseline, queues, retries, authentication.

They say early what an SLO will say later, and where to look. One rule group each. Must not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rtobs._conventions import (
    ACCEPT_DURATION,
    ATTEMPTS,
    MESSAGE_LAG,
    MESSAGE_SETTLED,
    QUEUE_AGE,
    QUEUE_DEPTH,
    SENT_MESSAGES,
    Label,
    prometheus_label,
    prometheus_name,
)  # fmt: skip
from rtobs.slo import links
from rtobs.slo.model import Declaration, Latency, Severity
from rtobs.slo.promql import ALL, Rule, alert, literal, number, one_of, record, select, text
from rtobs.slo.series import JOB, SERVICE, Scale
from rtobs.slo.windows import INTERVAL

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86_400.0
TRANSIENT: Final = ("transport", "timeout", "rate_limited", "unavailable", "overload")
"""Error categories that another try may mend."""

LATENCY: Final = "RtobsApiLatencyAboveBaseline"
LAG: Final = "RtobsLagGrowing"
SATURATED: Final = "RtobsBrokerSaturated"
DEAD: Final = "RtobsConsumersDead"
RETRIES: Final = "RtobsRetrySpike"
AUTH: Final = "RtobsAuthFailures"

PLAYBOOKS: Final = {
    LATENCY: "api-latency",
    LAG: "connector-backlog",
    SATURATED: "broker-saturation",
    DEAD: "connector-backlog",
    RETRIES: "downstream-vendor-outage",
    AUTH: "api-auth-failures",
}
"""What to do about each."""

_REQUESTS: Final = 50
_LAG_LEAST: Final = 5.0
"""Seconds that a lag has to grow in five minutes, and to have reached."""
_SPIKE_SHARE: Final = 0.2
_SPIKE_TIMES: Final = 3
_SPIKE_LEAST: Final = 20


@dataclass(frozen=True)
class Watch:
    """The series of one service, as triggers read them."""

    declaration: Declaration
    scale: Scale

    @property
    def labels(self) -> dict[str, str]:
        """Labels of what is recorded."""
        return {SERVICE: self.declaration.service}

    def raw(self, name: str, window: float, offset: float = 0, matchers: Mapping[str, str] = ALL) -> str:
        """Return the selector of an exported series over *window* seconds."""
        found = {JOB: one_of(self.declaration.jobs), **matchers}
        return select(name, found, self.scale.span(window) if window else "", self.scale.seconds(offset))

    def read(self, name: str, window: float = 0, offset: float = 0) -> str:
        """Return the selector of a recorded series."""
        found = {SERVICE: f"={text(self.declaration.service)}"}
        return select(name, found, self.scale.span(window) if window else "", self.scale.seconds(offset))

    def alert(
        self, name: str, expression: str, severity: Severity, says: str, why: str, *, wait: float = 0, keep: float = 0
    ) -> Rule:
        """Return an alert of this service."""
        service, owner = literal(self.declaration.service), literal(self.declaration.owner)
        labels = {SERVICE: service, "severity": severity, "owner": owner, "playbook": PLAYBOOKS[name]}
        board = links.CONNECTORS if name in {RETRIES, AUTH} else links.DELAYED
        annotations = {
            "summary": says,
            "description": why,
            **links.found_at(self.declaration, PLAYBOOKS[name], board),
        }
        scale = self.scale
        return alert(name, expression, labels, annotations, wait=scale.seconds(wait), keep=scale.seconds(keep))


class Trigger(NamedTuple):
    """One rule group that belongs to no SLO."""

    name: str
    rules: Callable[[Watch], Iterator[Rule]]


def group(declaration: Declaration, trigger: Trigger, scale: Scale) -> dict[str, Any]:
    """Return the rule group of *trigger*, as Prometheus' rule files have it."""
    return {
        "name": f"rtobs-{trigger.name}-{declaration.service}",
        "interval": scale.span(INTERVAL),
        "rules": list(trigger.rules(Watch(declaration, scale))),
    }


def latency_floor(declaration: Declaration) -> float:
    """Return the p95 in seconds below which nobody minds that it has doubled: a third of what is promised."""
    promised = [slo.threshold for slo in declaration.slos if isinstance(slo.sli, Latency) and slo.sli.hop == "accept"]
    return round(min(promised, default=0.3) / 3, 6)


def _api_latency(watch: Watch) -> Iterator[Rule]:
    duration, p95 = prometheus_name(ACCEPT_DURATION), "route:accept_p95:5m"
    answered = {Label.OUTCOME.value: '="ok"'}
    buckets = watch.raw(f"{duration}_bucket", 5 * MINUTE, matchers=answered)
    yield record(p95, f"histogram_quantile(0.95, sum by (route, le) (rate({buckets}))) > 0", watch.labels)
    # The median of a day, without the last hour: an incident must not become its own baseline.
    usual = f"quantile_over_time(0.5, {watch.read(p95, DAY, HOUR)})"
    yield record("route:accept_p95:baseline", usual, watch.labels)
    requests = f"sum by (route) (increase({watch.raw(f'{duration}_count', 5 * MINUTE, matchers=answered)}))"
    yield watch.alert(
        LATENCY,
        f"{watch.read(p95)} > 2 * {watch.read('route:accept_p95:baseline')}\n"
        f"and {watch.read(p95)} > {number(latency_floor(watch.declaration))}\n"
        f"and on (route) {requests} >= {_REQUESTS}",
        "ticket",
        "{{ $labels.route }} answers much more slowly than usual",
        "The 95th percentile of the last 5 minutes is more than twice the median of the last day.",
        wait=5 * MINUTE,
        keep=5 * MINUTE,
    )


def _queues(watch: Watch) -> Iterator[Rule]:
    age, lag = "destination:oldest_age:max", "destination:message_lag:mean2m"
    growing, depth = "destination:lag_growing:seconds", "destination:queue_depth:max"
    main = {Label.ROLE.value: '="main"'}
    yield record(age, f"max by (destination) ({watch.raw(prometheus_name(QUEUE_AGE), 0, matchers=main)})", watch.labels)
    yield record(
        depth, f"max by (destination) ({watch.raw(prometheus_name(QUEUE_DEPTH), 0, matchers=main)})", watch.labels
    )
    waited, messages = (
        f"sum by (destination) (rate({watch.raw(f'{prometheus_name(MESSAGE_LAG)}_{part}', 2 * MINUTE)}))"
        for part in ("sum", "count")
    )
    yield record(lag, f"{waited} / ({messages} > 0)", watch.labels)
    yield record(growing, f"{_growing(watch, age)}\nor on (destination)\n{_growing(watch, lag)}", watch.labels)
    yield watch.alert(
        LAG,
        watch.read(growing),
        "page",
        "messages for {{ $labels.destination }} wait longer and longer",
        "Their age has grown without a break for 5 minutes: they come faster than they are handled.",
    )
    known = f"count by (service) ({watch.read(age)} or on (destination) {watch.read(lag)})"
    many = f"count by (service) ({watch.read(growing)})"
    yield watch.alert(
        SATURATED,
        f"{many} >= 2 and {many} >= 0.5 * {known}",
        "page",
        "messages wait longer and longer in most queues at once",
        "Queues that have little to do with one another grow together: look at the broker first.",
    )
    yield watch.alert(
        DEAD,
        _dead(watch, depth),
        "page",
        "nobody handles the messages for {{ $labels.destination }}",
        "Messages wait or are sent, and none has been handled for 5 minutes.",
        wait=3 * MINUTE,
    )


def _growing(watch: Watch, name: str) -> str:
    """Return where a lag grows all the time, for five minutes; a jump, a saw and a drift are none of it."""
    slope = f"deriv({watch.read(name, 2 * MINUTE)})[{watch.scale.span(5 * MINUTE)}:{watch.scale.span(INTERVAL)}]"
    least = number(watch.scale.seconds(_LAG_LEAST))
    # Not delta(): that would guess what a series was like before it began.
    grown = f"{watch.read(name)} - {watch.read(name, 0, 5 * MINUTE)} > {least}"
    return f"({watch.read(name)} > {least} and {grown} and min_over_time({slope}) > 0)"


def _dead(watch: Watch, depth: str) -> str:
    """Return where messages wait, or are sent to where they used to be handled, and none is handled."""
    settled, sent = prometheus_name(MESSAGE_SETTLED), prometheus_name(SENT_MESSAGES)
    handled = f"sum by (destination) (rate({watch.raw(settled, 5 * MINUTE)})) > 0"
    before = f"sum by (destination) (increase({watch.raw(settled, DAY, 5 * MINUTE)})) > 0"
    name = prometheus_label(Label.MESSAGING_DESTINATION)
    coming = (
        f"sum by (destination) (label_replace(rate({watch.raw(sent, 5 * MINUTE)}),"
        f' "destination", "$1", "{name}", "(.+)")) > 0.1'
    )
    return (
        f"(min_over_time({watch.read(depth, 5 * MINUTE)}) > 0 unless on (destination) {handled})\n"
        "or on (destination)\n"
        f"(({coming} and on (destination) {before}) unless on (destination) {handled})"
    )


def _retries(watch: Watch) -> Iterator[Rule]:
    settled, attempts = prometheus_name(MESSAGE_SETTLED), prometheus_name(ATTEMPTS)
    yield from _spikes(
        watch,
        RETRIES,
        "more is tried again than usual{{ with or $labels.provider $labels.destination }}: {{ . }}{{ end }}",
        "More than 20 % of the last 10 minutes' tries fail for now or come back, three times the usual share.",
        _Share("destination:retried:ratio_rate10m", "destination", settled, {"outcome": '="retried"'}),
        _Share(
            "provider:transient:ratio_rate10m",
            "channel, provider",
            attempts,
            {"result": '="failed"', "error_category": one_of(TRANSIENT)},
        ),
    )


def _auth(watch: Watch) -> Iterator[Rule]:
    refused = {"error_category": '="auth"'}
    accepted, attempts = f"{prometheus_name(ACCEPT_DURATION)}_count", prometheus_name(ATTEMPTS)
    yield from _spikes(
        watch,
        AUTH,
        "credentials are refused{{ with or $labels.provider $labels.route }}: {{ . }}{{ end }}",
        "More than 20 % of the last 10 minutes' calls are refused for their credentials, three times the usual share.",
        _Share("route:auth:ratio_rate10m", "route", accepted, refused),
        _Share("provider:auth:ratio_rate10m", "channel, provider", attempts, refused),
    )


class _Share(NamedTuple):
    """A share of what one counter counts."""

    record: str
    by: str
    metric: str
    matchers: dict[str, str]


def _spikes(watch: Watch, name: str, says: str, why: str, *shares: _Share) -> Iterator[Rule]:
    """Record shares, and tell where one is large, three times its own usual, and of more than a few."""
    conditions: list[str] = []
    for share in shares:
        window = 10 * MINUTE
        every = f"sum by ({share.by}) (rate({watch.raw(share.metric, window)}))"
        some = f"sum by ({share.by}) (rate({watch.raw(share.metric, window, matchers=share.matchers)}))"
        yield record(share.record, f"({some} or 0 * {every}) / ({every} > 0)", watch.labels)
        usual = f"quantile_over_time(0.5, {watch.read(share.record, DAY, HOUR)})"
        count = f"sum by ({share.by}) (increase({watch.raw(share.metric, window, matchers=share.matchers)}))"
        conditions.append(
            f"({watch.read(share.record)} > {_SPIKE_SHARE} and {watch.read(share.record)} > {_SPIKE_TIMES} * {usual}"
            f" and on ({share.by}) {count} >= {_SPIKE_LEAST})"
        )
    yield watch.alert(name, "\nor\n".join(conditions), "ticket", says, why, wait=2 * MINUTE)


TRIGGERS: Final = (
    Trigger("api-latency", _api_latency),
    Trigger("queues", _queues),
    Trigger("retries", _retries),
    Trigger("auth", _auth),
)
