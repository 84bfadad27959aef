"""The commands ``rtobs slo build``, ``check`` and ``status``: files, programs and Prometheus round the pure room.

Exit codes: 0 fine; 1 the declaration, a check or Prometheus says no; 2 an argument is wrong or an extra is missing;
``status`` also 3, a step of a policy is reached, and 4, a budget is used up.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `commands` imports.

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rtobs._prometheus import Prometheus, PrometheusError, QueryError
from rtobs.errors import ConfigError
from rtobs.slo.mistakes import DeclarationError
from rtobs.slo.source import INSTALL

if TYPE_CHECKING:
    import typer

    from rtobs.slo.project import Project

_TOOL_TIMEOUT = 600.0
_MOST_SCALE = 10_000.0


class _FailedError(Exception):
    """The command ends with *code* after saying why."""

    def __init__(self, why: str, code: int = 1) -> None:
        super().__init__(why)
        self.code = code


def commands() -> "typer.Typer":
    """Return the group of commands; typer must be there."""
    import typer

    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Promises as code: one file drives them all.")
    declaration = typer.Argument(metavar="FILE", help="The declaration: YAML, TOML or JSON.")

    def run(work: Any) -> None:
        try:
            code = work()
        except _FailedError as failed:
            typer.echo(f"rtobs slo: {failed}", err=True)
            raise typer.Exit(failed.code) from None
        except DeclarationError as wrong:
            typer.echo(str(wrong), err=True)
            raise typer.Exit(1) from None
        except ConfigError as wrong:
            typer.echo(f"rtobs slo: {wrong}", err=True)
            raise typer.Exit(2) from None
        except ModuleNotFoundError as missing:
            package = (missing.name or "").partition(".")[0]
            typer.echo(f"rtobs slo: this needs {package}, which is not installed. Run: {INSTALL}", err=True)
            raise typer.Exit(2) from None
        raise typer.Exit(code)

    @app.command("build")
    def build_command(
        file: Annotated[Path, declaration],
        out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that the files are written into.")],
        time_scale: Annotated[
            float, typer.Option(help="Let windows go by so many times faster, for tests against a live Prometheus.")
        ] = 1.0,
    ) -> None:
        """Make rules and their tests, Alertmanager's routes, dashboards and pages from a declaration."""
        run(lambda: _build(file, out, time_scale, typer.echo))

    @app.command("check")
    def check_command(file: Annotated[Path, declaration]) -> None:
        """Say what is wrong with a declaration and its playbooks, and run the tests of its rules with promtool."""
        run(lambda: _check(file, typer.echo))

    @app.command("status")
    def status_command(
        file: Annotated[Path, declaration],
        prometheus: Annotated[str, typer.Option(metavar="URL", help="Where Prometheus is.")],
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,  # noqa: FBT002  typer makes options of parameters
    ) -> None:
        """Say how much of each error budget is left, and what the team's policy says about it."""
        run(lambda: _status(file, prometheus, typer.echo, as_json=json))

    return app


# Build ---------------------------------------------------------------------------------------------------------------


def _build(file: Path, out: Path, scale: float, say: Any) -> int:
    if not 1 <= scale <= _MOST_SCALE:
        raise _FailedError(f"--time-scale {scale:g} is out of range; give 1 to {_MOST_SCALE:g}.", 2)
    from rtobs.slo.output import write
    from rtobs.slo.project import build, load

    files = build(load(file), scale)
    try:
        gone = write(files, out)
    except OSError as error:
        why, place = error.strerror or str(error), str(error.filename or "")
        place = str(out) if not place or ".rtobs-" in place else place
        raise _FailedError(
            f"{place} cannot be written ({why}); give a folder that can be. Nothing was changed."
        ) from None
    say(f"{len(files)} files in {out}" + (f", {len(gone)} of the last build taken away" if gone else ""))
    return 0


# Check ---------------------------------------------------------------------------------------------------------------


def _check(file: Path, say: Any) -> int:
    from rtobs.slo import lint
    from rtobs.slo.output import write
    from rtobs.slo.project import build, load

    project = load(file)
    files = build(project)
    rules = [name for name in files if name.startswith("rules/")]
    say(f"{file}: {len(project.declaration.slos)} SLOs, {len(project.playbooks)} playbooks, {len(rules)} rule files")
    for warning in lint.warnings(project, datetime.now(UTC).date()):
        say(f"warning: {warning}")
    _check_routes(project, files["alertmanager.yaml"])
    with tempfile.TemporaryDirectory(prefix="rtobs-slo-") as folder:
        write(files, Path(folder))
        tests = [name for name in files if name.startswith("tests/") and name.endswith(".yaml")]
        if _tool("promtool", "prometheus", "the rules were not checked", say):
            _run(folder, [["promtool", "check", "rules", "--lint=all", "--lint-fatal", *rules]])
            _run(folder, [["promtool", "test", "rules", test] for test in tests])
            say(f"promtool: {len(rules)} rule files and {len(tests)} test files are fine")
        if _tool("amtool", "prometheus-alertmanager", "alertmanager.yaml was not checked", say):
            _run(folder, [["amtool", "check-config", "alertmanager.yaml"]])
            say("amtool: alertmanager.yaml is fine")
    return 0


def _check_routes(project: "Project", text: str) -> None:
    import yaml

    from rtobs.slo import alertmanager

    config = yaml.safe_load(text)
    for case in alertmanager.cases(project.declaration):
        heard = alertmanager.heard(config, case.firing)
        if heard != dict(case.heard):
            raise _FailedError(f"Alertmanager's routes break {case.name!r}: heard {heard}, wanted {dict(case.heard)}.")


def _tool(name: str, package: str, otherwise: str, say: Any) -> bool:
    if shutil.which(name):
        return True
    say(f"warning: {name} is not installed, so {otherwise}; on Debian and Ubuntu it comes with {package}")
    return False


def _run(folder: str, programs: Iterable[list[str]]) -> None:
    """Run programs in *folder*, as many at a time as there are processors; the first that fails ends the check."""

    def one(command: list[str]) -> str:
        try:
            done = subprocess.run(  # noqa: S603  our own commands
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TOOL_TIMEOUT,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} has not ended after {_TOOL_TIMEOUT:g} s; run it on a quieter machine."
        return "" if done.returncode == 0 else f"{' '.join(command[:3])} says no:\n{done.stdout}{done.stderr}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for said in pool.map(one, programs):
            if said:
                raise _FailedError(said.rstrip())


# Status --------------------------------------------------------------------------------------------------------------


def _status(file: Path, prometheus: str, say: Any, *, as_json: bool) -> int:
    from rtobs.slo import recorded
    from rtobs.slo.reader import load

    declaration = load(file)
    asked = Prometheus(prometheus)
    answers = {name: _ask(asked, recorded.question(declaration, name)) for name in recorded.NAMES}
    budgets = recorded.judge(declaration, answers)
    if as_json:
        say(json.dumps(recorded.data(declaration, budgets), ensure_ascii=False))
    else:
        for line in recorded.lines(budgets):
            say(line)
    return recorded.exit_code(budgets)


def _ask(prometheus: Prometheus, query: str) -> dict[str, float]:
    """Return the values of an instant query by the label ``slo``."""
    try:
        return {one.labels["slo"]: one.value for one in prometheus.instant(query) if "slo" in one.labels}
    except (PrometheusError, QueryError) as error:
        raise _FailedError(str(error)) from None
