"""SLOs as Python objects: what files are read into, what rules are made of, what the running service counts by.

Knows what a promise is; must not know Prometheus, Grafana or how anything is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from rtobs.slo import consistency, grammar
from rtobs.slo.durations import seconds
from rtobs.slo.mistakes import DeclarationError, Mistake, Mistakes, Source, items, shown

Severity = Literal["page", "ticket", "dashboard"]
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ratio:
    """Good ones of all hops of one kind.

    Attributes:
        hop: "accept", "consume" or "job"; counted at its end.
        bad: the endings that break the promise: "failed" of an accept hop; "rejected", "dropped", "expired",
            "dead_lettered" or "failed" of a consume hop; "late", "missed" or "failed" of a job.
    """

    hop: str
    bad: tuple[str, ...]
    kind: Literal["ratio"] = field(default="ratio", init=False)


@dataclass(frozen=True, slots=True)
class Latency:
    """Good ones that took no longer than *threshold*, of all hops of one kind or all stages of one name.

    Attributes:
        threshold: a time with its unit, such as "300ms".
        hop: "accept" or "consume"; this or *stage*.
        stage: name of a stage.
    """

    threshold: str
    hop: str = ""
    stage: str = ""
    kind: Literal["latency"] = field(default="latency", init=False)


@dataclass(frozen=True, slots=True)
class Deadline:
    """Deliveries that got as far as *step* within *threshold*, of all that were promised: lost ones are bad.

    Attributes:
        step: "accepted", "delivered", "displayed", "opened" or "acted"; "promise" = the promise step of each channel.
        threshold: a time with its unit, such as "5s", from the creation of the journey.
    """

    step: str
    threshold: str
    kind: Literal["deadline"] = field(default="deadline", init=False)


@dataclass(frozen=True, slots=True)
class Alerting:
    """When an SLO alerts.

    Attributes:
        page: bad events in the longer window before anybody is paged.
        ticket: bad events in the longer window before a ticket.
        single_tenant: severity where one named tenant alone is affected.
    """

    page: int = 10
    ticket: int = 5
    single_tenant: Severity = "ticket"


@dataclass(frozen=True, slots=True)
class Step:
    """What the team does once no more than *budget_left* percent of the error budget is left."""

    budget_left: float
    action: str


@dataclass(frozen=True, slots=True)
class SLO:
    """One promise. Everything is checked when it is made.

    Attributes:
        name: small letters, digits and hyphens; names the promise in metrics, alerts and pages.
        objective: promised share of good events, percent.
        sli: what is counted, and what is good: a Ratio, Latency or Deadline.
        description: the promise in words that anybody understands.
        playbook: id of the playbook that says what to do when it breaks.
        owner: who acts.
        window: "7d", "28d" or "30d".
        severity: the most its alerts may do: "page", "ticket" or "dashboard" (no alert).
        group_by: "channel" or "connector", by which it is also judged; empty = neither.
        where: names that are counted, by "route", "destination", "connector" or "channel"; empty = all.
        tenants, channels, connectors: objectives of single ones, percent.
        every: how often a job runs, such as "1h"; empty = not said.
        alerting: how many bad events alerts need.
        policy: what the team does as the budget goes down.

    Raises:
        DeclarationError: with everything that is wrong.
    """

    name: str
    objective: float
    sli: Ratio | Latency | Deadline
    description: str
    playbook: str
    owner: str
    window: str = "30d"
    severity: Severity = "page"
    group_by: str = ""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _NOTHING)
    tenants: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    channels: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    connectors: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    every: str = ""
    alerting: Alerting = Alerting()
    policy: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what a file could not say either."""
        data = to_data(self)
        mistakes = Mistakes(Source(f"SLO({data.get('name')!r})", data))
        consistency.check_slo(grammar.SLO.read(data, (), mistakes), (), mistakes)
        mistakes.check()

    @property
    def budget(self) -> float:
        """Share of events that may be bad, 0 to 1."""
        return _budget(self.objective)

    @property
    def threshold(self) -> float:
        """Seconds within which it is good; 0 for a ratio."""
        return 0.0 if isinstance(self.sli, Ratio) else seconds(self.sli.threshold)

    @property
    def offset(self) -> float:
        """Seconds that go by between an event's being expected and its being bad; 0 where both are one moment."""
        return self.threshold if isinstance(self.sli, Deadline) else 0.0

    @property
    def groups(self) -> Mapping[str, float]:
        """Objectives of single channels or connectors, percent."""
        return {"channel": self.channels, "connector": self.connectors}.get(self.group_by, _NOTHING)

    @property
    def revision(self) -> str:
        """Eight characters that change whenever what is counted, or what is promised, changes."""
        counted = {
            key: value
            for key, value in to_data(self).items()
            if key not in {"description", "playbook", "owner", "severity", "alerting", "policy"}
        }
        return hashlib.blake2b(json.dumps(counted, sort_keys=True).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class Declaration:
    """All promises of one service.

    Attributes:
        service: what the promises are about; a label of every series and alert.
        slos: the promises, each with a name of its own.
        jobs: Prometheus jobs whose series are counted; the service's name if none is given.
        tenants: tenants that have series of their own, those with objectives of their own included.
        owner: who acts on alerts that are about no single SLO.
        playbooks: folder of the playbooks, relative to the declaration's file.
        playbook_url, dashboard_url: where playbooks and Grafana are found; empty = not published.
        file: where it was read; empty = nowhere.
    """

    service: str
    slos: tuple[SLO, ...]
    jobs: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    owner: str = ""
    playbooks: str = "playbooks"
    playbook_url: str = ""
    dashboard_url: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        """Refuse what a file could not say either; take in the tenants that SLOs name."""
        self._check()
        names = [slo.name for slo in self.slos]
        twice = dict.fromkeys(name for name in names if names.count(name) > 1)
        if twice:
            place = self.file or "SLOs"
            do = "give each SLO a name of its own; an SLO of the file cannot be declared in code too"
            raise DeclarationError(tuple(Mistake(place, f"saw two SLOs named {name!r}", do) for name in twice))
        tenants = dict.fromkeys((*self.tenants, *(tenant for slo in self.slos for tenant in slo.tenants)))
        object.__setattr__(self, "tenants", tuple(tenants))
        object.__setattr__(self, "jobs", self.jobs or (self.service,))
        object.__setattr__(self, "owner", self.owner or next((slo.owner for slo in self.slos), ""))

    def _check(self) -> None:
        """Raise what is wrong beside the SLOs, which have been checked when they were made."""
        given = {name: _plain(getattr(self, name)) for name in grammar.DECLARATION.fields if hasattr(self, name)}
        given = {name: value for name, value in given.items() if name == "service" or value not in ("", [])}
        mistakes = Mistakes(Source(self.file or f"Declaration({self.service!r})", given))
        for name in given.keys() - {"slos"}:
            grammar.DECLARATION.fields[name].shape.read(given[name], (name,), mistakes)
        if not self.slos or not all(isinstance(slo, SLO) for slo in self.slos):  # pyright: ignore[reportUnnecessaryIsInstance]  who writes Python may give anything
            mistakes.add(("slos",), f"saw {shown(self.slos)}", "give SLO objects, at least one")
        consistency.reserved(given.get("tenants", ()), ("tenants",), mistakes)
        mistakes.check()

    def with_slos(self, more: Iterable[SLO]) -> Declaration:
        """Return this declaration with *more* SLOs; raise DeclarationError if one has a name that is taken."""
        return replace(self, slos=(*self.slos, *more))


def least(*severities: Severity) -> Severity:
    """Return the mildest of *severities*."""
    return min(severities, key=("dashboard", "ticket", "page").index)


def _budget(objective: float) -> float:
    return round(1 - objective / 100, 9)


def budget_of(objective: float) -> float:
    """Return the share of events that may be bad at *objective* percent."""
    return _budget(objective)


def to_data(slo: SLO) -> dict[str, Any]:
    """Return *slo* as a file would say it; what is left at its default is left out."""
    data: dict[str, Any] = {}
    for one in fields(slo):
        value = getattr(slo, one.name)
        if value or one.name in {"name", "objective", "sli", "description", "playbook"}:
            data[one.name] = value
    data["sli"] = _table(slo.sli)
    if isinstance(slo.alerting, Alerting):
        table = _table(slo.alerting)
        data["alerting"] = {
            "min_bad_events": {key: table[key] for key in ("page", "ticket")},
            "single_tenant": table["single_tenant"],
        }
    if slo.policy:
        data["policy"] = [_table(step) for step in slo.policy]
    for key in ("where", "tenants", "channels", "connectors"):
        if isinstance(data.get(key), Mapping):
            data[key] = {name: _plain(one) for name, one in data[key].items()}
    return data


def _table(value: Any) -> Any:
    try:
        return {one.name: _plain(found) for one in fields(value) if (found := getattr(value, one.name)) != ""}
    except TypeError:  # something else was given; the grammar will say so
        return value


def _plain(value: Any) -> Any:
    entries = items(value)
    return value if entries is None else entries


def from_data(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> SLO:
    """Return the SLO that checked *data* of a file stands for; *defaults* are the whole declaration's."""
    merged = dict(data)
    merged.setdefault("owner", defaults.get("owner", ""))
    kinds: dict[str, type[Ratio | Latency | Deadline]] = {"ratio": Ratio, "latency": Latency, "deadline": Deadline}
    sli: dict[str, Any] = {key: tuple(value) if key == "bad" else value for key, value in data["sli"].items()}
    merged["sli"] = kinds[str(sli.pop("kind"))](**sli)
    outer, inner = defaults.get("alerting", {}), data.get("alerting", {})
    counts = {**outer.get("min_bad_events", {}), **inner.get("min_bad_events", {})}
    single = inner.get("single_tenant", outer.get("single_tenant", "ticket"))
    merged["alerting"] = Alerting(**counts, single_tenant=cast("Severity", single))
    merged["policy"] = tuple(Step(**step) for step in data.get("policy", defaults.get("policy", ())))
    if "where" in data:
        merged["where"] = {key: tuple(names) for key, names in data["where"].items()}
    return SLO(**merged)
