"""What watching this code costs: Prometheus series, and bytes a month, reckoned from what it opens and declares.

An estimate, with its assumptions beside it. Must not know how telemetry is exported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from rtobs import _conventions as names
from rtobs._conventions import Instrument, Label
from rtobs._telemetry.metrics import SERIES_LIMIT
from rtobs.readiness.code import EVENT, INTEND, Code
from rtobs.slo.bounds import bounds
from rtobs.slo.model import Declaration, Latency

MONTH: Final = 30 * 86_400
BYTES_PER_SAMPLE: Final = 1.5
"""What Prometheus keeps on disk of one sample of one series, about."""
BYTES_PER_SPAN: Final = 500
"""One span as OTLP, not compressed, about."""
ENDINGS: Final = 2
"""How each thing ends: well, and with one error category."""
ASSUMED: Final = 5
"""Names that one computed name stands for, where it is not said."""
_STATES: Final = 4
_HISTOGRAM: Final = 3
"""Series of a histogram beside those of its bounds: +Inf, sum and count."""
_OWN: Final = 45
"""Series about rtobs itself in each process."""

COUNTED: Final = (
    Label.ROUTE, Label.DESTINATION, Label.CHANNEL, Label.PROVIDER, Label.STAGE, Label.CONNECTOR, Label.TENANT,
    Label.REGION, Label.SOURCE, Label.STEP, Label.EVENT,
)  # fmt: skip
"""Labels of which it can be said how many values they have."""


class Line(NamedTuple):
    """What one instrument costs in one process."""

    instrument: str
    combinations: int
    """Of its labels."""
    each: int
    """Series of one combination: 1, or a histogram's."""

    @property
    def series(self) -> int:
        """Prometheus series."""
        return self.combinations * self.each


@dataclass(frozen=True, slots=True)
class Cost:
    """What it comes to.

    Attributes:
        lines: by instrument, the most expensive first.
        counts: how many values each label has.
        assumed: the labels among them whose names are computed, and for which a number was assumed.
        processes: how many there are.
        series: Prometheus series of all of them; never more than 10,000 each.
        metric_bytes: bytes a month in Prometheus.
        spans: spans of one journey.
        span_bytes: bytes a month of spans as OTLP.
    """

    lines: tuple[Line, ...]
    counts: Mapping[str, int]
    assumed: tuple[str, ...]
    processes: int
    series: int
    metric_bytes: int
    spans: int
    span_bytes: int


def reckon(
    code: Code,
    declaration: Declaration | None,
    given: Mapping[str, int],
    *,
    processes: int = 1,
    interval: float = 15.0,
    rate: float = 1.0,
    head: float = 1.0,
) -> Cost:
    """Return what watching *code* costs.

    Args:
        code: what is opened.
        declaration: what is promised; None = nothing.
        given: how many values labels have, where it is known better than the code says.
        processes: how many run.
        interval: seconds between two scrapes, or exports.
        rate: journeys a second.
        head: share of them whose spans are exported.
    """
    counts, assumed = _counts(code, declaration, given)
    lines = [line for line in _lines(code, declaration, counts) if line.combinations]
    lines.sort(key=lambda line: (-line.series, line.instrument))
    series = min(sum(line.series for line in lines), SERIES_LIMIT) * processes
    samples = series * MONTH / interval
    spans = sum(1 for _ in code.of("accept", "publish", "consume", "deliver", "receipt", "job", "stage"))
    return Cost(
        lines=tuple(lines),
        counts=counts,
        assumed=tuple(sorted(assumed)),
        processes=processes,
        series=series,
        metric_bytes=round(samples * BYTES_PER_SAMPLE),
        spans=spans,
        span_bytes=round(spans * rate * head * MONTH * BYTES_PER_SPAN),
    )


def _counts(code: Code, declaration: Declaration | None, given: Mapping[str, int]) -> tuple[dict[str, int], set[str]]:
    """Return how many values each label has, and of which labels that was assumed."""
    found: dict[str, int] = {}
    assumed: set[str] = set()
    computed = {
        Label.ROUTE: ("accept",), Label.DESTINATION: ("publish", "consume"), Label.CHANNEL: ("deliver", INTEND),
        Label.STAGE: ("stage",), Label.CONNECTOR: ("job",), Label.STEP: ("receipt",), Label.EVENT: (EVENT,),
    }  # fmt: skip
    chosen, judged = _declared(declaration)
    for label, kinds in computed.items():
        known = code.names(*kinds) | chosen.get(label, set()) | judged.get(label, set())
        known |= code.channels if label is Label.CHANNEL else set()
        found[label] = len(known)
        if any(not one.name for one in code.of(*kinds)) and label not in chosen:
            found[label] += ASSUMED
            assumed.add(label)
    providers = {one.provider for one in code.of("deliver")}
    found[Label.PROVIDER] = len(providers - {""})
    if "" in providers:
        found[Label.PROVIDER] = max(found[Label.PROVIDER], found[Label.CHANNEL])
        assumed.add(Label.PROVIDER)
    found[Label.TENANT] = len(declaration.tenants) + 1 if declaration is not None else 1
    found[Label.REGION] = found[Label.SOURCE] = 1
    return {**{str(label): count for label, count in found.items()}, **given}, {
        str(label) for label in assumed if label not in given
    }


def _declared(declaration: Declaration | None) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the names that SLOs choose by, which are all there are, and those that they judge by, which are some."""
    chosen: dict[str, set[str]] = {}
    judged: dict[str, set[str]] = {}
    for slo in declaration.slos if declaration is not None else ():
        for label, named in slo.where.items():
            chosen.setdefault(label, set()).update(named)
        if slo.group_by:
            judged.setdefault(slo.group_by, set()).update(slo.groups)
    return chosen, judged


def _lines(code: Code, declaration: Declaration | None, counts: Mapping[str, int]) -> Iterator[Line]:
    """Yield the formula: for each instrument, how many combinations of its labels there are."""

    def line(instrument: Instrument, combinations: int) -> Line:
        most = min(combinations, instrument.series)
        return Line(instrument.name, most, _each(instrument, declaration))

    def has(*kinds: str) -> bool:
        return any(True for _ in code.of(*kinds))

    routes, destinations = counts[Label.ROUTE] if has("accept") else 0, counts[Label.DESTINATION]
    sent, handled = (destinations if has(kind) else 0 for kind in ("publish", "consume"))
    channels = counts[Label.CHANNEL] if has("deliver", INTEND) or code.channels else 0
    pairs = max(channels, counts[Label.PROVIDER]) if has("deliver") else 0
    tenants, sources = counts[Label.TENANT], counts[Label.SOURCE]
    where = tenants * counts[Label.REGION]
    steps = 1 + counts[Label.STEP]
    yield line(names.ACCEPT_DURATION, routes * ENDINGS)
    yield line(names.CLIENT_DURATION, sent + handled)
    yield line(names.SENT_MESSAGES, sent)
    for instrument in (names.PROCESS_DURATION, names.CONSUMED_MESSAGES):
        yield line(instrument, handled * ENDINGS)
    for instrument in (names.MESSAGE_LAG, names.MESSAGE_REDELIVERED, names.BUSY_TIME):
        yield line(instrument, handled)
    yield line(names.MESSAGE_SETTLED, handled * ENDINGS * tenants * sources)
    yield line(names.MESSAGE_FANOUT, sent and routes + handled)
    yield line(names.STAGE_DURATION, counts[Label.STAGE] * ENDINGS)
    yield line(names.INTENTS, channels * where * sources)
    for instrument in (names.ATTEMPTS, names.DELIVERY_DURATION):
        yield line(instrument, pairs * ENDINGS)
    yield line(names.OUTCOMES, pairs * where * (ENDINGS - 1 + steps))
    yield line(names.END_TO_END, channels * steps)
    yield line(names.JOBS, counts[Label.CONNECTOR] * _STATES if has("job") else 0)
    yield line(names.EVENTS, counts[Label.EVENT])
    if "watch" in code.uses:
        for instrument in (names.QUEUE_DEPTH, names.QUEUE_AGE, names.CAPACITY_TIME):
            yield line(instrument, handled)
    if declaration is not None and "configure(slos)" in code.uses:
        promised = sum(max(1, counts.get(slo.group_by, 1)) for slo in declaration.slos) * tenants
        for instrument in (names.SLO_EXPECTED, names.SLO_GOOD):
            yield line(instrument, promised)
        yield line(names.SLO_INFO, len(declaration.slos))
    yield Line("rtobs itself", _OWN, 1)


def _each(instrument: Instrument, declaration: Declaration | None) -> int:
    """Return how many series one combination of labels has."""
    if instrument.kind != "histogram":
        return 1
    promised = [slo.threshold for slo in declaration.slos if slo.threshold] if declaration is not None else []
    mine = (
        [slo.threshold for slo in declaration.slos if _bounded(slo.sli, instrument)] if promised and declaration else []
    )
    return max(len(bounds(mine)), len(instrument.bounds)) + _HISTOGRAM


def _bounded(sli: object, instrument: Instrument) -> bool:
    if isinstance(sli, Latency):
        about = (
            names.STAGE_DURATION
            if sli.stage
            else {"accept": names.ACCEPT_DURATION}.get(sli.hop, names.PROCESS_DURATION)
        )
        return about is instrument
    return getattr(sli, "kind", "") == "deadline" and instrument is names.END_TO_END


def table(cost: Cost) -> list[str]:
    """Return the cost as people read it."""
    said = ", ".join(f"{label} {count}" for label, count in cost.counts.items() if count)
    lines = [f"labels: {said}"]
    if cost.assumed:
        lines.append(f"assumed, because names are computed: {', '.join(cost.assumed)}; say how many with --values")
    lines += [f"{one.series:>8,}  {one.instrument} ({one.combinations} x {one.each})" for one in cost.lines]
    most = f", each at most {SERIES_LIMIT:,}"
    lines.append(f"{cost.series:>8,}  series in {cost.processes} process{'es' if cost.processes > 1 else ''}{most}")
    lines.append(f"{_bytes(cost.metric_bytes)} a month in Prometheus")
    lines.append(f"{_bytes(cost.span_bytes)} a month of spans, {cost.spans} in a journey")
    return lines


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or not math.isfinite(size):  # noqa: PLR2004  decimal prefixes
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
