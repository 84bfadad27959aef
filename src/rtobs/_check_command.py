"""The command ``rtobs check``: whether a module is ready, and what it costs to watch it.

Exit codes: 0 ready; 1 something is not ready, each is told with what to do; 2 an argument is wrong or an extra missing.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `register` imports.

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rtobs._prometheus import Prometheus, PrometheusError
from rtobs.errors import ConfigError
from rtobs.slo.mistakes import DeclarationError, Mistake, listed

if TYPE_CHECKING:
    import typer

    from rtobs.incident.required import Requirement
    from rtobs.readiness.code import Code
    from rtobs.readiness.cost import Cost
    from rtobs.readiness.coverage import Finding
    from rtobs.readiness.report import Report
    from rtobs.slo.project import Project

_REQUIRED = "required.toml"
_MOST = 100_000


class _UsageError(Exception):
    """An argument is wrong: what was seen, what to do."""


class _Load(NamedTuple):
    """What the cost is reckoned for."""

    values: dict[str, int]
    processes: int
    interval: float
    rate: float
    head: float


def register(app: "typer.Typer") -> None:
    """Add the command to *app*; typer must be there."""
    import typer

    @app.command("check")
    def check(
        modules: Annotated[list[str], typer.Argument(metavar="MODULE...", help="As python -m finds them.")],
        slo: Annotated[Path, typer.Option(metavar="FILE", help="The SLO declaration.")] = Path("slo.yaml"),
        required: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="What incidents missed; required.toml beside the declaration if there."),
        ] = None,
        prometheus: Annotated[
            str, typer.Option(metavar="URL", help="Ask there for required signals that code cannot show.")
        ] = "",
        cost: Annotated[bool, typer.Option("--cost", help="Also reckon series and bytes a month.")] = False,
        values: Annotated[
            str, typer.Option(metavar="LABEL=N,…", help="How many values labels have, where the code does not say.")
        ] = "",
        processes: Annotated[int, typer.Option(help="How many processes run.")] = 1,
        interval: Annotated[float, typer.Option(help="Seconds between two scrapes.")] = 15.0,
        rate: Annotated[float, typer.Option(help="Journeys a second.")] = 1.0,
        head: Annotated[
            float | None,
            typer.Option(help="Share whose spans are exported, 0 to 1; OTEL_TRACES_SAMPLER_ARG or 1 if not given."),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,
    ) -> None:
        """Say which hops, stages, channels and connectors have no SLO, owner or playbook: they are not ready."""
        try:
            load = _load(values, processes, interval, rate, _head(head))
            asked = Prometheus(prometheus) if prometheus else None
            report = _report(modules, slo, required, asked, load if cost else None)
        except (_UsageError, ConfigError, PrometheusError) as wrong:
            typer.echo(f"rtobs check: {wrong}", err=True)
            raise typer.Exit(2) from None
        typer.echo(_dumped(report.data()) if json else "\n".join(report.lines()))
        raise typer.Exit(report.exit_code)


def _dumped(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def _load(values: str, processes: int, interval: float, rate: float, head: float) -> _Load:
    from rtobs.readiness.cost import COUNTED

    given: dict[str, int] = {}
    for one in filter(None, values.split(",")):
        label, _, number = one.partition("=")
        if label not in COUNTED or not number.isdecimal() or not int(number) <= _MOST:
            raise _UsageError(f"--values {one!r} says nothing; give a label with a number, of {listed(COUNTED)}.")
        given[str(label)] = int(number)
    for name, value, least, most in (
        ("processes", processes, 1, _MOST), ("interval", interval, 0.1, 3600), ("rate", rate, 0, _MOST),
        ("head", head, 0, 1),
    ):  # fmt: skip
        if not (math.isfinite(value) and least <= value <= most):
            raise _UsageError(f"--{name} {value:g} is out of range; give {least:g} to {most:g}.")
    return _Load(given, processes, interval, rate, head)


def _head(given: float | None) -> float:
    if given is not None:
        return given
    try:
        return float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1)
    except ValueError:
        return 1.0


def _report(
    modules: list[str], slo: Path, required: Path | None, asked: Prometheus | None, load: _Load | None
) -> "Report":
    from rtobs.readiness import coverage, demands
    from rtobs.readiness.report import Report

    findings: list[Finding] = []
    project = _declared(slo, findings)
    wanted = _wanted(slo, required, findings)
    code = _code(modules, findings)
    things: list[coverage.Thing] = []
    notes: list[str] = []
    if project is not None:
        things = coverage.things(code, project)
        findings += coverage.unready(things, code)
        notes += coverage.idle(code, project) if code.operations else ()
    declaration = project.declaration if project is not None else None
    findings += demands.unmet(wanted, code, declaration, asked)
    if asked is None and (signals := demands.unasked(wanted)):
        notes.append(f"required, and only to be seen in Prometheus: {', '.join(signals)}; give --prometheus")
    reckoned = _cost(code, project, load) if load is not None else None
    return Report(tuple(modules), code, tuple(things), tuple(findings), tuple(notes), reckoned)


def _declared(slo: Path, findings: "list[Finding]") -> "Project | None":
    from rtobs.slo.project import load

    try:
        return load(slo)
    except DeclarationError as wrong:
        findings += _found("declaration", wrong.mistakes)
        return None


def _wanted(slo: Path, required: Path | None, findings: "list[Finding]") -> "tuple[Requirement, ...]":
    from rtobs.incident.required import read

    path = required or slo.with_name(_REQUIRED)
    if required is None and not path.exists():
        return ()
    try:
        return read(path)
    except DeclarationError as wrong:
        findings += _found("required", wrong.mistakes)
        return ()


def _found(about: str, mistakes: Iterable[Mistake]) -> "list[Finding]":
    from rtobs.readiness.coverage import Finding

    return [Finding(about, *mistake) for mistake in mistakes]


def _code(modules: list[str], findings: "list[Finding]") -> "Code":
    from rtobs.readiness.coverage import Finding
    from rtobs.readiness.importing import NotFoundError, find

    try:
        code, broken = find(modules)
    except NotFoundError as wrong:
        raise _UsageError(
            f"there is no module {wrong}; give one that python -m {wrong} would find from here."
        ) from None
    do = "make it importable; what its source says was checked, what it does when it is imported was not"
    findings += [Finding("import", one.place, f"saw {one.saw}", do) for one in broken]
    return code


def _cost(code: "Code", project: "Project | None", load: _Load) -> "Cost":
    from rtobs.readiness.cost import reckon

    declaration = project.declaration if project is not None else None
    return reckon(
        code, declaration, load.values,
        processes=load.processes, interval=load.interval, rate=load.rate, head=load.head,
    )  # fmt: skip
