"""What declared SLOs mean for the other rooms: names, bounds and times they need, and whether rules will find them.

Knows declarations and the names of telemetry; must not know how anything is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import Label

if TYPE_CHECKING:
    from rtobs.slo.live import Standing
    from rtobs.slo.model import SLO, Declaration

WITHIN: Final = 10.0
"""Seconds after ``configure`` in which declared series exist, even if no hop was opened."""

_WHERE: Final = {
    "route": Label.ROUTE, "destination": Label.DESTINATION, "connector": Label.CONNECTOR, "channel": Label.CHANNEL,
}  # fmt: skip
_TIMED: Final = {
    "accept": names.ACCEPT_DURATION, "consume": names.PROCESS_DURATION, "stage": names.STAGE_DURATION,
}  # fmt: skip


_timer: threading.Timer | None = None


def begin(bind: Callable[[], None], ask: Callable[[], tuple[Standing, ...]] | None) -> None:
    """Let ``rtobs.slo.status`` *ask* from now on, and *bind* the rooms soon, hop or not; None = nothing is declared."""
    global _timer  # noqa: PLW0603  one configuration per process
    if _timer is None and ask is None:
        return
    from rtobs.slo import live

    live.use(ask)
    stop()
    if ask is not None:
        _timer = threading.Timer(WITHIN, bind)
        _timer.daemon = True
        _timer.start()


def stop() -> None:
    """Bind nothing any more."""
    global _timer  # noqa: PLW0603  as above
    if _timer is not None:
        _timer.cancel()
        _timer = None


def with_declared(
    declaration: Declaration | None, known: Mapping[Label, tuple[str, ...]], slower: Mapping[str, float]
) -> tuple[dict[Label, tuple[str, ...]], dict[str, tuple[float, ...]], dict[str, float]]:
    """Return label values to pin, bounds of histograms, and what is slow: what was configured, and what is declared."""
    if declaration is None:
        return dict(known), {}, dict(slower)
    more = pinned(declaration)
    found = {label: (*known.get(label, ()), *more.get(label, ())) for label in (*known, *more)}
    return found, bounds(declaration), {**slow(declaration), **slower}


def pinned(declaration: Declaration) -> dict[Label, tuple[str, ...]]:
    """Return the label values that are declared: they are never counted under ``other``."""
    from rtobs.slo.model import Latency

    found: dict[Label, list[str]] = {Label.TENANT: list(declaration.tenants)}
    for slo in declaration.slos:
        for key, values in slo.where.items():
            found.setdefault(_WHERE[key], []).extend(values)
        if slo.group_by:
            found.setdefault(_WHERE[slo.group_by], []).extend(slo.groups)
        if isinstance(slo.sli, Latency) and slo.sli.stage:
            found.setdefault(Label.STAGE, []).append(slo.sli.stage)
    return {label: tuple(dict.fromkeys(values)) for label, values in found.items()}


def bounds(declaration: Declaration) -> dict[str, tuple[float, ...]]:
    """Return bounds for the histograms that promises are about, by name: every threshold is one of them."""
    from rtobs.slo.bounds import bounds as about

    thresholds: dict[str, list[float]] = {}
    for slo in declaration.slos:
        if name := _histogram(slo)[1]:
            thresholds.setdefault(name, []).append(slo.threshold)
    return {name: about(found) for name, found in thresholds.items()}


def _histogram(slo: SLO) -> tuple[str, str]:
    """Return what kind of hop *slo* promises a time of, "stage" or nothing, and the histogram of it."""
    from rtobs.slo.model import Deadline, Latency

    if isinstance(slo.sli, Deadline):
        return "deliver", names.END_TO_END.name
    if isinstance(slo.sli, Latency):
        about = slo.sli.hop or "stage"
        return about, _TIMED[about].name
    return "", ""


def slow(declaration: Declaration) -> dict[str, float]:
    """Return the seconds from which a hop breaks a promise, by channel, destination or route, or for every such hop."""
    from rtobs._telemetry.keeping import EVERY

    found: dict[str, float] = {}
    for slo in declaration.slos:
        kind = _histogram(slo)[0]
        if kind not in EVERY:
            continue  # no time is promised, or that of a stage, which is no hop
        for name in [name for chosen in slo.where.values() for name in chosen] or [EVERY[kind]]:
            found[name] = min(slo.threshold, found.get(name, slo.threshold))
    return found


def check(
    declaration: Declaration, standings: Iterable[Standing], attributes: Mapping[str, object], **facts: Any
) -> None:
    """Log what ``mismatches`` finds."""
    for number, mismatch in enumerate(mismatches(declaration, standings, attributes, **facts)):
        _guard.tell(f"slos.{number}", "SLOs are counted here, but alerts on them may not work: %s", mismatch)


def mismatches(
    declaration: Declaration, standings: Iterable[Standing], attributes: Mapping[str, object],
    *, pushed: bool, scraped: bool, delta: bool,
) -> Iterator[str]:  # fmt: skip
    """Yield why rules made of *declaration* would not find what this process exports, and what to do.

    Args:
        declaration: what is promised.
        standings: what the process counts, by series.
        attributes: those of its resource.
        pushed: its metrics leave by OTLP.
        scraped: Prometheus can fetch them.
        delta: they are pushed as differences.
    """
    if not pushed and not scraped:
        yield "no metrics leave this process; set OTEL_EXPORTER_OTLP_ENDPOINT, or let Prometheus scrape it"
    if pushed and delta:
        yield "metrics leave as differences, and rules read sums; let a collector add them up for Prometheus"
    name, space = str(attributes.get("service.name", "")), str(attributes.get("service.namespace", ""))
    job = f"{space}/{name}" if space else name
    if pushed and job not in declaration.jobs:
        known = ", ".join(declaration.jobs)
        yield f"this process is the Prometheus job {job!r}, and rules read {known}; add it to jobs of the declaration"
    for standing in standings:
        if not standing.counts:
            yield f"SLO {standing.slo!r} has no series; declare fewer tenants, channels or connectors"
