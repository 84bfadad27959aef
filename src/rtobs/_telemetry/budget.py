"""The two counters of every declared SLO: what was expected of a hop, a stage or a delivery, and what was good.

Thresholds are known here, so that rules need no bucket that matches. One lock section per hop, none where no SLO is
about it. Must not know how series leave the process, or brokers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from rtobs import _conventions as names
from rtobs._conventions import OTHER, Instrument, Label
from rtobs._hop.runtime import runtime
from rtobs._journey.outcome import STEPS, Step, proven_step
from rtobs._telemetry import verdicts
from rtobs._telemetry.releases import Releases
from rtobs.slo import grammar, live
from rtobs.slo.model import SLO, Deadline, Declaration, Latency, Ratio

if TYPE_CHECKING:
    from rtobs._journey.journey import Journey
    from rtobs._journey.record import HopRecord
    from rtobs._telemetry.labels import LabelGuard

_MOST_BOUND: Final = 4096
"""Different hops whose series are remembered; when there are more, all are looked up again."""
_MOST_JOBS: Final = 1024
"""Runs of connectors that are remembered, so that one that is tried again is not expected twice."""
_MOST_DECLARED: Final = 512
"""Series of one SLO that begin at zero; where tenants times channels are more, those of single tenants begin later."""
_GRAINS: Final = 16
"""Parts of a deadline in which it is known how many deliveries are not due yet."""


class _Series(Protocol):
    value: float


class _Registry(Protocol):
    """What is needed of the metrics' registry."""

    guard: LabelGuard
    lock: Any

    def counter(self, instrument: Instrument, *labels: str) -> _Series: ...


class _Pair:
    """The two series of one promise to one tenant, on one channel or for one connector."""

    __slots__ = ("expected", "good")

    def __init__(self, expected: _Series, good: _Series) -> None:
        self.expected = expected
        self.good = good


class Promise:
    """One SLO with the series it is counted in."""

    __slots__ = ("_grain", "_recent", "bad", "ended", "label", "limit_ns", "names", "pairs", "slo", "step")

    def __init__(self, slo: SLO) -> None:
        self.slo = slo
        self.names = frozenset(name for each in slo.where.values() for name in each)
        """Routes, destinations, connectors or channels that it is about; empty = all."""
        self.limit_ns = round(slo.threshold * 1e9) or verdicts.NEVER_LATE
        self.bad: frozenset[str] = frozenset(slo.sli.bad) if isinstance(slo.sli, Ratio) else frozenset()
        self.step = slo.sli.step if isinstance(slo.sli, Deadline) else ""
        self.label = slo.group_by
        self._grain = max(self.limit_ns // _GRAINS, 1)
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.pairs: dict[tuple[str, str], _Pair] = {}
        """By tenant and group."""
        self.ended = False
        """A delivery that it is about has ended in this process."""
        self._recent: deque[list[int]] = deque()

    def grouped(self, group: str) -> tuple[str, str]:
        """Return the labels channel and connector of what belongs to *group*."""
        return (group, "") if self.label == Label.CHANNEL else ("", group)

    def takes(self, name: str) -> bool:
        """Tell whether it is about what has this name."""
        return not self.names or name in self.names

    def expect(self, count: int, now_ns: int) -> None:
        """Note that *count* deliveries are not due yet."""
        grain = now_ns // self._grain
        if self._recent and self._recent[-1][0] == grain:
            self._recent[-1][1] += count
        else:
            self._recent.append([grain, count])
        while self._recent[0][0] < grain - _GRAINS:
            self._recent.popleft()

    def waiting(self, now_ns: int) -> int:
        """Return how many deliveries are not due yet."""
        first = now_ns // self._grain - _GRAINS
        return sum(count for grain, count in self._recent if grain >= first)

    def kept_at(self, channel: str) -> Step:
        """Return the step at which a delivery on *channel* keeps this promise."""
        proven = proven_step(channel)
        if self.step == grammar.PROMISE:
            return runtime.promises.get(channel, proven)
        return STEPS[max(STEPS.index(proven), grammar.STEPS.index(self.step))]


class SloSink:
    """Counts hops, stages and deliveries that a declared SLO is about."""

    def __init__(self, declaration: Declaration, registry: _Registry) -> None:
        """Count into *registry*; every declared series exists, at zero, from here on."""
        self._registry = registry
        self._tenants = frozenset(declaration.tenants)
        self._all = tuple(Promise(slo) for slo in declaration.slos)
        self._hops: dict[str, list[Promise]] = {}
        self._stages: dict[str, list[Promise]] = {}
        self._deadlines: list[Promise] = []
        for promise in self._all:
            sli = promise.slo.sli
            if isinstance(sli, Deadline):
                self._deadlines.append(promise)
            elif isinstance(sli, Latency) and sli.stage:
                self._stages.setdefault(sli.stage, []).append(promise)
            else:
                self._hops.setdefault(sli.hop, []).append(promise)
        self.about_deliveries = bool(self._deadlines)
        """Whether promised deliveries have to be told to ``promise``."""
        self.reset()

    # Series ----------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin anew: the registry has, or has just begun."""
        self._known: dict[tuple[str, str, str], tuple[tuple[int, _Pair], ...]] = {}
        self._jobs: OrderedDict[tuple[str, str, int], bool] = OrderedDict()
        self._later: Releases[tuple[Promise, str, str]] = Releases()
        with self._registry.lock:
            for promise in self._all:
                promise.reset()
                self._registry.counter(names.SLO_INFO, promise.slo.name, promise.slo.revision).value = 1
                groups = _declared(promise.slo)
                tenants = sorted(self._tenants) if len(groups) * len(self._tenants) < _MOST_DECLARED else []
                for tenant in (OTHER, *tenants):
                    for group in groups:
                        self._pair(promise, tenant, group)

    def _pair(self, promise: Promise, tenant: str, group: str) -> _Pair:
        """Return the series of one promise. Call with the lock held."""
        group = self._registry.guard.label(promise.label, group) if promise.label else ""
        found = promise.pairs.get((tenant, group))
        if found is None:
            labels = (promise.slo.name, tenant, *promise.grouped(group))
            counters = (self._registry.counter(each, *labels) for each in (names.SLO_EXPECTED, names.SLO_GOOD))
            found = promise.pairs[tenant, group] = _Pair(*counters)
        return found

    def _tenant(self, tenant: str | None) -> str:
        return tenant if tenant is not None and tenant in self._tenants else OTHER

    def _count(self, promise: Promise, tenant: str | None, group: str, expected: int, good: int) -> None:
        with self._registry.lock:
            pair = self._pair(promise, self._tenant(tenant), group)
            pair.expected.value += expected
            pair.good.value += good
            if expected and promise.step:
                promise.expect(expected, runtime.monotonic_ns())

    # Counting --------------------------------------------------------------------------------------------------------

    def end(self, record: HopRecord) -> None:
        """Count one ended hop, its stages and the deliveries that it ended."""
        journey = record.journey
        replay = journey is not None and journey.rare is not None and journey.replay
        promises = self._hops.get(record.kind)
        if promises is not None:
            if record.healthy and not replay:
                self._healthy(record, promises)
            else:
                self._judged(record, promises, replay=replay)
        if record.stages and self._stages and not replay:
            self._timed(record)
        if record.delivery_ends and self._deadlines:
            self._ends(record)

    def _healthy(self, record: HopRecord, promises: list[Promise]) -> None:
        """Count a hop that did what it is for: it is good unless it took too long."""
        journey = record.journey
        key = (record.kind, record.name, self._tenant(journey.tenant if journey is not None else ""))
        with self._registry.lock:
            found = self._known.get(key)
            if found is None:
                if len(self._known) >= _MOST_BOUND:
                    self._known.clear()
                found = self._known[key] = tuple(
                    (promise.limit_ns, self._pair(promise, key[2], "")) for promise in promises if promise.takes(key[1])
                )
            for limit_ns, pair in found:
                pair.expected.value += 1
                if record.duration_ns <= limit_ns:
                    pair.good.value += 1

    def _judged(self, record: HopRecord, promises: list[Promise], *, replay: bool) -> None:
        tenant = record.journey.tenant if record.journey is not None else ""
        for promise in promises:
            if not promise.takes(record.name):
                continue
            if record.kind == "job":
                expected, good = self._run(promise, record)
            else:
                verdict = (
                    verdicts.accepted(record, promise.limit_ns)
                    if record.kind == "accept"
                    else verdicts.consumed(promise, record, replay=replay)
                )
                expected, good = int(verdict is not None), int(bool(verdict))
            if expected or good:
                self._count(promise, tenant, record.name, expected, good)

    def _run(self, promise: Promise, record: HopRecord) -> tuple[int, int]:
        """Return what a run of a connector adds: each is expected once, and good once, however often it is begun."""
        key = (promise.slo.name, record.name, record.window[0])
        good = record.state not in promise.bad
        with self._registry.lock:
            before = self._jobs.get(key)
            self._jobs[key] = good or bool(before)
            if len(self._jobs) > _MOST_JOBS:
                self._jobs.popitem(last=False)
        return int(before is None), int(good and not before)

    def _timed(self, record: HopRecord) -> None:
        tenant = record.journey.tenant if record.journey is not None else ""
        for stage in record.stages or ():
            for promise in self._stages.get(stage.name, ()) if stage.ended and stage.outcome != "cancelled" else ():
                good = stage.outcome == "ok" and stage.duration_ns <= promise.limit_ns
                self._count(promise, tenant, "", 1, int(good))

    # Deliveries ------------------------------------------------------------------------------------------------------

    def promise(self, journey: Journey, channel: str, count: int, release_ns: int = 0) -> None:
        """Expect *count* deliveries, with the tenant that their promise keeps; from *release_ns* on, if that is later.

        A process that ends before expects them at its end: who begins after it does not know of them.
        """
        if journey.replay:
            return
        tenant, held_back = self._tenant(journey.promise_tenant), release_ns > runtime.wall_ns()
        for promise in self._deadlines:
            if promise.takes(channel):
                with self._registry.lock:
                    later = held_back and self._later.add(release_ns, (promise, tenant, channel), count)
                if not later:
                    self._count(promise, tenant, channel, count, 0)

    def release(self, *, everything: bool = False) -> Sequence[Any]:
        """Expect what has been released by now, or *everything*; there is nothing else to be read here."""
        with self._registry.lock:
            for (promise, tenant, channel), count in self._later.due(None if everything else runtime.wall_ns()):
                self._count(promise, tenant, channel, count, 0)
        return ()

    def _ends(self, record: HopRecord) -> None:
        for end in record.delivery_ends or ():
            if end.recovered:
                continue
            for promise in self._deadlines:
                if promise.takes(end.channel):
                    promise.ended = True
                    expected, good = int(end.promised_here), int(verdicts.kept(promise, end, record))
                    if expected or good:
                        self._count(promise, end.tenant, end.channel, expected, good)

    # Reading ---------------------------------------------------------------------------------------------------------

    def standings(self) -> tuple[live.Standing, ...]:
        """Return how every SLO stands, all at one moment, from the very numbers that are exported."""
        self.release()
        now_ns = runtime.monotonic_ns()
        with self._registry.lock:
            return tuple(
                live.standing(promise.slo, tuple(_counts(promise)), promise.waiting(now_ns), ended=promise.ended)
                for promise in self._all
            )


def _declared(slo: SLO) -> tuple[str, ...]:
    """Return the channels or connectors that the declaration names; one without a name where it names none."""
    named: Mapping[str, Iterable[str]] = slo.where
    return tuple(dict.fromkeys((*slo.groups, *named.get(slo.group_by, ())))) or ("",)


def _counts(promise: Promise) -> Iterable[live.Count]:
    seen: set[int] = set()
    for (tenant, group), pair in promise.pairs.items():
        if id(pair.expected) not in seen:  # two names may share a series that was given up for `other`
            seen.add(id(pair.expected))
            expected, good = int(pair.expected.value), int(pair.good.value)
            yield live.Count(tenant, *promise.grouped(group), expected, good)
