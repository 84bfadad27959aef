"""The command ``rtobs incident``: a webhook of Alertmanager's, or a time, becomes a page that says what happened.

Exit codes: 0 it was told; 1 Prometheus could not be asked or knows nothing, or a file could not be written (what is
known was told all the same); 2 an argument is wrong, a webhook is none, or an extra is missing; 3 nothing happened.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `register` imports.

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rtobs._prometheus import Prometheus, PrometheusError
from rtobs.errors import ConfigError
from rtobs.slo.mistakes import DeclarationError
from rtobs.slo.source import INSTALL

if TYPE_CHECKING:
    import typer

    from rtobs.incident.facts import Alert
    from rtobs.incident.receiver import Incident
    from rtobs.incident.summary import Summary
    from rtobs.slo.project import Project
    from rtobs.slo.series import Scale

TOLD, NOT_ALL, WRONG, NOTHING = 0, 1, 2, 3
_MOST_SCALE = 10_000.0
_ANSWER_TIMEOUT = 5.0  # Alertmanager waits ten seconds for an answer


class _UsageError(Exception):
    """An argument is wrong: what was seen, what to do."""


class _Wanted(NamedTuple):
    """What was asked for, checked."""

    project: "Project"
    prometheus: Prometheus | None
    scale: "Scale"
    required: Path | None
    out: Path | None
    as_json: bool


def register(app: "typer.Typer") -> None:
    """Add the command to *app*; typer must be there."""
    import typer

    @app.command("incident")
    def incident(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The SLO declaration of the service.")],
        webhook: Annotated[
            str, typer.Option(metavar="FILE", help="What Alertmanager sent to a webhook, as JSON; - is standard input.")
        ] = "",
        begin: Annotated[
            str, typer.Option("--from", metavar="TIME", help="Since when, such as 2027-01-15T08:00Z or 2h (ago).")
        ] = "",
        end: Annotated[str, typer.Option("--to", metavar="TIME", help="Until when; now if not given.")] = "",
        listen: Annotated[
            str, typer.Option(metavar="HOST:PORT", help="Wait for Alertmanager's webhooks there, until it is stopped.")
        ] = "",
        prometheus: Annotated[str, typer.Option(metavar="URL", help="Where Prometheus is.")] = "",
        out: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Write the page and its JSON there, a pair for each incident."),
        ] = None,
        close: Annotated[bool, typer.Option("--close", help="It is over: draft the postmortem.")] = False,
        required: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="When it is over, add what could not be seen to this required.toml."),
        ] = None,
        time_scale: Annotated[float, typer.Option(help="As given to rtobs slo build.")] = 1.0,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,
    ) -> None:
        """Tell what happened: since when, to whom, where it began, what it cost, what changed, what to do."""
        try:
            ways = [bool(webhook), bool(begin), bool(listen)]
            kept = required is None or bool(listen or (close and prometheus))
            _check(ways, end, begin, listen, prometheus, out, time_scale, kept=kept)
            from rtobs.slo.project import load
            from rtobs.slo.series import Scale

            asked = Prometheus(prometheus, _ANSWER_TIMEOUT) if prometheus else None
            wanted = _Wanted(load(file), asked, Scale(time_scale), required, out, json)
            if listen:
                code = _listen(wanted, *_address(listen))
            else:
                code = _once(wanted, webhook, begin, end, over=close)
        except (_UsageError, ConfigError) as wrong:
            typer.echo(str(wrong) if isinstance(wrong, DeclarationError) else f"rtobs incident: {wrong}", err=True)
            raise typer.Exit(WRONG) from None
        except ModuleNotFoundError as missing:
            package = (missing.name or "").partition(".")[0]
            typer.echo(f"rtobs incident: this needs {package}, which is not installed. Run: {INSTALL}", err=True)
            raise typer.Exit(WRONG) from None
        raise typer.Exit(code)


def _check(
    ways: list[bool], end: str, begin: str, listen: str, prometheus: str, out: Path | None, scale: float, *, kept: bool
) -> None:
    if sum(ways) != 1:
        raise _UsageError("give one of --webhook, --from and --listen.")
    if end and not begin:
        raise _UsageError("--to needs --from; a webhook says itself when it was.")
    if (begin or listen) and not prometheus:
        raise _UsageError(f"--{'from' if begin else 'listen'} needs --prometheus, such as http://localhost:9090.")
    if listen and out is None:
        raise _UsageError("--listen needs --out, a folder that a page for each incident is written into.")
    if not kept:
        raise _UsageError("--required needs --close and --prometheus, or --listen.")
    if not 1 <= scale <= _MOST_SCALE:
        raise _UsageError(f"--time-scale {scale:g} is out of range; give 1 to {_MOST_SCALE:g}.")


# Once ----------------------------------------------------------------------------------------------------------------


def _once(wanted: _Wanted, webhook: str, begin: str, end: str, *, over: bool) -> int:
    from rtobs.incident.receiver import name_of

    now = time.time()
    if webhook:
        alerts = _alerts(wanted, webhook)
        first, last = min(alert.since for alert in alerts), now
        if all(alert.until is not None for alert in alerts):
            last = max(alert.until or 0.0 for alert in alerts)
    else:
        alerts = ()
        first, last = _moment("--from", begin, now), _moment("--to", end, now) if end else now
        if not first < last <= now + 1:
            raise _UsageError("--from has to be before --to, and neither in the future.")
    summary, told = _summary(wanted, alerts, first, last, over=over or bool(end))
    if told == TOLD and not summary.alerts and summary.first is None:
        told = _quiet(summary)
    pages = _pages(wanted, summary, over=over)
    if wanted.out is not None:
        told = _write(wanted, name_of(summary.service, summary.begin), pages, told)
    elif wanted.as_json:
        print(pages[".json"], end="")
    else:
        print(pages[".postmortem.md" if over else ".md"], end="")
    return _extend(wanted, summary, told) if over else told


def _quiet(summary: "Summary") -> int:
    """Return what a time without alerts was: one in which nothing happened, or one of which nothing is known."""
    if not summary.promises:
        rest = "see that it evaluates their rules."
        _warn(f"Prometheus has nothing of the promises of {summary.service} in that time; {rest}")
        return NOT_ALL
    return TOLD if any(one.bad > 0 for one in summary.promises) else NOTHING


def _alerts(wanted: _Wanted, webhook: str) -> "tuple[Alert, ...]":
    from rtobs.incident.facts import from_webhook
    from rtobs.incident.gather import of_service

    try:
        text = sys.stdin.read() if webhook == "-" else Path(webhook).read_text(encoding="utf-8")
        found = from_webhook(json.loads(text))
    except OSError as error:
        raise _UsageError(f"--webhook {webhook} cannot be read ({error.strerror or error}).") from None
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        raise _UsageError(f"--webhook {webhook}: this is not JSON; Alertmanager sends JSON.") from None
    service = wanted.project.declaration.service
    alerts = of_service(found, wanted.project.declaration)
    if not alerts:
        others = ", ".join(sorted({alert.labels.get("service", "none") for alert in found})[:3]) or "no alerts"
        raise _UsageError(f"--webhook {webhook}: saw no alert of service {service}, but {others}.")
    return alerts


def _moment(option: str, text: str, now: float) -> float:
    from rtobs.slo.durations import seconds

    try:
        return now - seconds(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise _UsageError(
            f"{option} {text!r} is no time; give one such as 2027-01-15T08:00Z, or how long ago, such as 2h."
        ) from None


# What both ways share ------------------------------------------------------------------------------------------------


def _summary(
    wanted: _Wanted, alerts: "tuple[Alert, ...]", begin: float, end: float, *, over: bool
) -> "tuple[Summary, int]":
    """Return what is known, and whether all that could be asked was."""
    from rtobs.incident import Facts, gather, summarise
    from rtobs.incident.gather import quiet

    declaration, told = wanted.project.declaration, TOLD
    facts = Facts(begin, end, quiet(declaration, alerts), over=over)
    if wanted.prometheus is not None:
        try:
            facts = gather(wanted.prometheus, declaration, alerts, begin, end, scale=wanted.scale, over=over)
        except PrometheusError as error:
            _warn(f"{error} What it knows is told as unknown.")
            told = NOT_ALL
    return summarise(facts, declaration, wanted.project.playbooks), told


def _pages(wanted: _Wanted, summary: "Summary", *, over: bool) -> dict[str, str]:
    """Return the texts that tell of an incident, by how their files' names end."""
    from rtobs.incident import opened, postmortem

    declaration = wanted.project.declaration
    pages = {
        ".md": opened(summary, declaration),
        ".json": json.dumps(summary.data(), indent=None if wanted.out is None else 2, ensure_ascii=False) + "\n",
    }
    return {**pages, ".postmortem.md": postmortem(summary, declaration)} if over else pages


def _write(wanted: _Wanted, name: str, pages: dict[str, str], told: int) -> int:
    try:
        for path in _written(wanted, name, pages):
            print(path, flush=True)
    except OSError as error:
        _warn(f"{wanted.out} cannot be written ({error.strerror or error}).")
        return NOT_ALL
    return told


def _written(wanted: _Wanted, name: str, pages: dict[str, str]) -> list[Path]:
    folder = wanted.out or Path()
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for ending, text in pages.items():
        path = folder / f"{name}{ending}"
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
        paths.append(path)
    return paths


def _extend(wanted: _Wanted, summary: "Summary", told: int) -> int:
    """Add what the incident could not see to the file of requirements; nobody was asked, so nothing was missed."""
    from rtobs.incident import required

    if wanted.required is None or wanted.prometheus is None or told == NOT_ALL:
        return told
    when = datetime.fromtimestamp(summary.begin, UTC).strftime("%Y-%m-%d %H:%M UTC")
    what = ", ".join(dict.fromkeys(alert.name for alert in summary.alerts))[:100] or "no alert"
    missed = f"{when}, {summary.service}: {what}"
    try:
        added = required.extend(wanted.required, required.lacking(summary, wanted.project.declaration), missed)
    except DeclarationError as wrong:
        _warn(f"nothing was added to {wanted.required}:\n{required.told(wrong)}")
        return NOT_ALL
    except OSError as error:
        _warn(f"{wanted.required} cannot be written ({error.strerror or error}).")
        return NOT_ALL
    if added:
        _warn(f"{added} added to {wanted.required}")
    return told


def _warn(words: str) -> None:
    print(f"rtobs incident: {words}", file=sys.stderr, flush=True)


# Listen --------------------------------------------------------------------------------------------------------------


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not (host and colon and port.isdecimal() and port.isascii() and int(port) <= 65_535):  # noqa: PLR2004  ports
        raise _UsageError(f"--listen {listen!r} is no address; give one such as 127.0.0.1:9099.")
    return host.strip("[]"), int(port)


def _listen(wanted: _Wanted, host: str, port: int) -> int:
    from rtobs.incident.receiver import Inbox, serve

    inbox = Inbox(wanted.project.declaration)

    def hear(alerts: "tuple[Alert, ...]") -> None:
        incident = inbox.hear(alerts)
        if incident is None:
            return
        try:
            _told(wanted, incident)
        except OSError:
            inbox.again(incident)
            raise

    try:
        server = serve(host, port, hear, _warn)
    except OSError as error:
        raise _UsageError(f"--listen {host}:{port} cannot be used ({error.strerror or error}).") from None
    _warn(f"listening on http://{host}:{server.server_address[1]}")
    _until_stopped(server.serve_forever, server.shutdown)
    server.server_close()
    return TOLD


def _told(wanted: _Wanted, incident: "Incident") -> None:
    alerts = tuple(incident.alerts.values())
    begin, end = min(alert.since for alert in alerts), time.time()
    if incident.over:
        end = max(alert.until or 0.0 for alert in alerts)
    summary, told = _summary(wanted, alerts, begin, end, over=incident.over)
    for path in _written(wanted, incident.name, _pages(wanted, summary, over=incident.over)):
        print(path, flush=True)
    if incident.over:
        _extend(wanted, summary, told)


def _until_stopped(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run until SIGINT or SIGTERM; what is being written is finished."""

    def stopping(*_: Any) -> None:
        threading.Thread(target=stop).start()  # it waits for the loop, which this handler holds up

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stopping)
    run()
