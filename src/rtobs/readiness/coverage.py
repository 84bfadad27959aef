"""Code against promises: each hop, stage, channel and connector needs an SLO, its owner and its playbook.

Knows what code has and what is declared; must not know how either was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from rtobs.readiness.code import EVENT, INTEND, Code, Operation
from rtobs.slo.grammar import PROMISE
from rtobs.slo.model import SLO, Deadline, Latency
from rtobs.slo.playbooks import Playbook
from rtobs.slo.project import Project

_LABELS: Final = {"accept": "route", "consume": "destination", "job": "connector"}
"""By which label an SLO may choose among hops of a kind."""
_ENOUGH: Final = 3
"""Places that are named in one finding."""


class Finding(NamedTuple):
    """One thing that is not ready."""

    about: str
    """"slo", "playbook", "required", "declaration" or "import"."""
    place: str
    saw: str
    do: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.place}: {self.saw}; {self.do}"


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that has to be monitored.

    Attributes:
        kind: "accept", "publish", "consume", "receipt", "job" (a connector), "channel" or "stage".
        name: its name; empty = computed, or given by a framework.
        places: where the code opens it.
        slos: names of the SLOs that are about it.
        owners, playbooks: who acts on them, and where they lead.
    """

    kind: str
    name: str
    places: tuple[str, ...]
    slos: tuple[str, ...]
    owners: tuple[str, ...]
    playbooks: tuple[str, ...]


def things(code: Code, project: Project) -> list[Thing]:
    """Return all that has to be monitored, with what is about it."""
    judge = _Judge(code, project)
    found: list[Thing] = []
    for (kind, name), operations in _grouped(code).items():
        slos = judge.slos(kind, name, operations)
        books = dict.fromkeys((*(slo.playbook for slo in slos), *(book.id for book in judge.books(kind, name))))
        if kind == "stage" and not judge.books(kind, name) and not _own(slos, name):
            books = {}  # its hop's playbook does not say what to do about it
        places = tuple(dict.fromkeys(str(operation.place) for operation in operations))
        owners = tuple(dict.fromkeys(slo.owner for slo in slos))
        found.append(Thing(kind, name, places, tuple(slo.name for slo in slos), owners, tuple(books)))
    return found


def _grouped(code: Code) -> dict[tuple[str, str], list[Operation]]:
    """Return operations by what has to be monitored; a channel is what is delivered on, sent for it, or promised."""
    found: dict[tuple[str, str], list[Operation]] = {}
    for one in code.operations:
        if one.kind in ("deliver", INTEND):
            found.setdefault(("channel", one.name), []).append(one)
        elif one.kind != EVENT:
            found.setdefault((one.kind, one.name), []).append(one)
        if one.kind == "publish" and one.channel:
            found.setdefault(("channel", one.channel), []).append(one)
    return dict(sorted(found.items()))


def _own(slos: Iterable[SLO], stage: str) -> bool:
    return any(isinstance(slo.sli, Latency) and slo.sli.stage == stage for slo in slos)


def _counts(slo: SLO, label: str, name: str) -> bool:
    """Return whether *slo* counts what has *name* at *label*; a computed name may be one that it does not."""
    names = slo.where.get(label)
    return not names or name in names


class _Judge:
    def __init__(self, code: Code, project: Project) -> None:
        self._code = code
        self._slos = project.declaration.slos
        self._playbooks = project.playbooks

    def books(self, kind: str, name: str) -> list[Playbook]:
        """Return the playbooks that are about a stage of this *name*."""
        return [book for book in self._playbooks if kind == "stage" and name and name in book.stages]

    def slos(self, kind: str, name: str, operations: Iterable[Operation]) -> list[SLO]:
        """Return the SLOs that notice when something of this *kind* and *name* fails."""
        match kind:
            case "accept" | "consume" | "job":
                label = _LABELS[kind]
                return self._some(lambda slo: getattr(slo.sli, "hop", "") == kind and _counts(slo, label, name))
            case "channel":
                return self._some(lambda slo: isinstance(slo.sli, Deadline) and _counts(slo, "channel", name))
            case "receipt":
                return self._some(lambda slo: isinstance(slo.sli, Deadline) and slo.sli.step in (PROMISE, name))
            case "publish":
                channels = {one.channel for one in operations if one.channel}
                found = [slo for channel in channels for slo in self.slos("channel", channel, ())]
                return list({slo.name: slo for slo in (*found, *self.slos("consume", name, ()))}.values())
            case _:
                return self._stage(name, operations)

    def _some(self, is_about: Callable[[SLO], bool]) -> list[SLO]:
        return [slo for slo in self._slos if is_about(slo)]

    def _stage(self, name: str, operations: Iterable[Operation]) -> list[SLO]:
        """Return the SLOs of a stage: its own, or those of every hop that it may be in.

        A stage is always in a hop. Where the source does not show in which, it may be any that the code opens.
        """
        own = self._some(lambda slo: isinstance(slo.sli, Latency) and name != "" and slo.sli.stage == name)
        if own:
            return own
        hops = {hop for operation in operations for hop in ([operation.inside] if operation.inside else self._hops())}
        around = [self._hop(kind, inner) for kind, inner in sorted(hops)]
        if not around or not all(around):
            return []
        return list({slo.name: slo for found in around for slo in found}.values())

    def _hops(self) -> list[tuple[str, str]]:
        return [(one.kind, one.name) for one in self._code.of("accept", "consume", "job", "deliver")]

    def _hop(self, kind: str, name: str) -> list[SLO]:
        return self.slos("channel" if kind == "deliver" else kind, name, ())


# Findings ------------------------------------------------------------------------------------------------------------

_ADVICE: Final = {
    "accept": "promise it: sli: {{kind: latency, hop: accept, threshold: 300ms}}, where: {{route: [{}]}}",
    "publish": "name the channel that it is sent for, or promise what is consumed there: where: {{destination: [{}]}}",
    "consume": "promise it: sli: {{kind: ratio, hop: consume, bad: [dead_lettered]}}, where: {{destination: [{}]}}",
    "job": "promise it: sli: {{kind: ratio, hop: job, bad: [late, missed, failed]}}, where: {{connector: [{}]}}",
    "channel": "promise it: sli: {{kind: deadline, step: promise, threshold: 5s}}, where: {{channel: [{}]}}",
    "receipt": "promise that deliveries get as far: sli: {{kind: deadline, step: {}, threshold: 1m}}",
    "stage": "promise it: sli: {{kind: latency, stage: {}, threshold: 1s}}, or promise the hop that it is in",
}
_WORDS: Final = {"job": "connector"}
_COMPUTED: Final = "with a computed name"
_ALL: Final = "write its name as text, or promise all of them: an SLO without where, or a stage in a hop that has one"


def unready(found: Iterable[Thing], code: Code) -> Iterator[Finding]:
    """Yield what has no SLO or no playbook; an SLO always has an owner, so what has one has both."""
    hops = any(True for _ in code.of("accept", "consume", "job", "deliver"))
    for thing in found:
        places = ", ".join(thing.places[:_ENOUGH])
        place = f"{places} and {len(thing.places) - _ENOUGH} more" if len(thing.places) > _ENOUGH else places
        what = f"{_WORDS.get(thing.kind, thing.kind)} {thing.name or _COMPUTED}"
        if thing.kind == "stage" and not hops:
            yield Finding("slo", place, f"saw {what}, and no hop that it could be in", "open a hop round it")
        elif not thing.slos:
            advice = _ADVICE[thing.kind].format(thing.name) if thing.name else _ALL
            yield Finding("slo", place, f"saw {what}, of which no SLO knows: no owner, no playbook", advice)
        elif not thing.playbooks:
            do = "name it in applies_to.stages of the playbook that helps, or give it an SLO of its own"
            yield Finding("playbook", place, f"saw {what}, of which no playbook knows", do)


def idle(code: Code, project: Project) -> Iterator[str]:
    """Yield what is promised and not counted by this code; another module may do it."""
    for slo in project.declaration.slos:
        if not any(slo.name in thing.slos for thing in things(code, project)):
            yield f"SLO {slo.name} is about nothing here; where is it counted?"
