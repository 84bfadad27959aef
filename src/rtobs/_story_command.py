"""The command ``rtobs story``: files, Tempo and Jaeger round the pure room.

Exit codes: 0 told; 1 no such journey, or a source cannot be read; 2 an argument is wrong.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `register` imports.

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rtobs.errors import ConfigError
from rtobs.story.pick import NotFoundError, Pick
from rtobs.story.spans import Span, spans
from rtobs.story.tale import Tale, tell

if TYPE_CHECKING:
    import typer

_TIMEOUT = 30.0
_MOST_BYTES = 256 * 1024 * 1024
_MOST_TRACES = 100
_WHOLE_ID = 32
_FORMED_AFTER = datetime(2020, 1, 1, tzinfo=UTC)


class _UnreadableError(Exception):
    """A source cannot be read; its text says which and why."""


def register(app: "typer.Typer") -> None:
    """Add the command to *app*; typer must be there."""
    import typer

    @app.command("story")
    def story(
        correlation_id: Annotated[
            str,
            typer.Argument(metavar="CORRELATION_ID", help="The journey's id; of files its first digits are enough."),
        ],
        files: Annotated[
            list[Path] | None,
            typer.Argument(
                metavar="[FILES]...", help="Spans as OTLP JSON, as a collector's file exporter writes them."
            ),
        ] = None,
        tempo: Annotated[str, typer.Option(metavar="URL", help="Ask Grafana Tempo.")] = "",
        jaeger: Annotated[str, typer.Option(metavar="URL", help="Ask Jaeger (version 3 of its API).")] = "",
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,  # noqa: FBT002  typer makes an option of it
    ) -> None:
        """Tell one message's whole way, and whether it was sent, accepted, delivered or displayed."""
        try:
            tale = _find(correlation_id, files or [], tempo, jaeger)
        except ConfigError as wrong:
            typer.echo(f"rtobs story: {wrong}", err=True)
            raise typer.Exit(2) from None
        except (NotFoundError, _UnreadableError) as failed:
            typer.echo(f"rtobs story: {failed}", err=True)
            raise typer.Exit(1) from None
        _print(tale, as_json=json)


def _print(tale: Tale, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(tale.data(), indent=2))  # noqa: T201  this is what the command is for
        return
    from rich.console import Console

    from rtobs.story.page import render

    Console(highlight=False).print(render(tale))


def _find(wanted: str, files: list[Path], tempo: str, jaeger: str) -> Tale:
    pick = Pick(wanted)
    _check(pick, files, {"--tempo": tempo, "--jaeger": jaeger})
    asked: list[Span] = []
    if tempo:
        asked += _from_tempo(tempo.rstrip("/"), pick.wanted)
    if jaeger:
        asked += _from_jaeger(jaeger.rstrip("/"), pick.wanted)
    pick.see(asked)
    for file in files:
        pick.see(span for text in _lines(file) if pick.wanted in text.lower() for span in _parsed(text))
    try:
        journey = pick.journey()
    except NotFoundError as none:
        where = ", ".join([*map(str, files), *filter(None, (tempo, jaeger))])
        raise NotFoundError(
            f"{none} in {where}. Was it exported? A healthy journey that was not sampled leaves no spans."
        ) from None
    mine = list(pick.of(asked))
    for file in files:
        mine += pick.of(span for text in _lines(file) for span in _parsed(text))
    tale = tell(journey, mine)
    if tale is None:
        raise NotFoundError(f"no span of {journey} any more; the files change while they are read.")
    return tale


def _check(pick: Pick, files: list[Path], backends: dict[str, str]) -> None:
    asked = {option: address for option, address in backends.items() if address}
    if not files and not asked:
        raise ConfigError("there is nothing to read; give files with spans, --tempo URL or --jaeger URL.")
    if asked and len(pick.wanted) < _WHOLE_ID:
        raise ConfigError(f"Tempo and Jaeger need the whole id; {pick.wanted} has {len(pick.wanted)} of 32 digits.")
    for option, address in asked.items():
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError(f"{option} {address!r} is no address; give one such as http://localhost:3200.")


# Files ---------------------------------------------------------------------------------------------------------------


def _lines(file: Path) -> Iterator[str]:
    """Yield the JSON values of a file as text: one a line, or the whole file where its first line is none."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
            if _is_json(first):
                yield first
                for line in lines:
                    if line.strip():
                        yield line
                return
            rest = lines.read(_MOST_BYTES)
    except OSError as error:
        raise _UnreadableError(f"{file} cannot be read ({error.strerror or error}).") from None
    whole = first + rest
    if not whole.strip():
        return
    if not _is_json(whole):
        raise _UnreadableError(f"{file} is not JSON; give what a collector's file exporter writes in its format json.")
    yield whole


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str) -> Iterator[Span]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return  # a line that is being written
    yield from spans(found)


# Backends ------------------------------------------------------------------------------------------------------------


def _from_tempo(address: str, wanted: str) -> list[Span]:
    """Return the journey's first trace, and every other one that Tempo finds by the journey's name."""
    traces = [wanted]
    query = {"q": f'{{ span.rtobs.correlation_id = "{wanted}" }}', "limit": str(_MOST_TRACES), **_window(wanted)}
    found = _ask(f"{address}/api/search?{urllib.parse.urlencode(query)}", "Tempo")
    try:
        traces += [str(one["traceID"]).zfill(_WHOLE_ID) for one in found.get("traces") or ()] if found else []
    except (TypeError, KeyError, AttributeError):
        raise _UnreadableError(f"Tempo at {address} answered something else than traces; see --tempo.") from None
    mine: list[Span] = []
    for trace in dict.fromkeys(traces):
        mine += spans(_ask(f"{address}/api/v2/traces/{trace}", "Tempo"))
    return mine


def _window(wanted: str) -> dict[str, str]:
    """Return when to look: around the moment that the id itself tells, if it does."""
    began = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(wanted[:12], 16))
    now = datetime.now(UTC)
    if not _FORMED_AFTER < began < now + timedelta(days=1):
        return {}
    start = began - timedelta(hours=1)
    return {
        "start": str(int(start.timestamp())),
        "end": str(int(min(now, began + timedelta(days=30)).timestamp()) + 60),
    }


def _from_jaeger(address: str, wanted: str) -> list[Span]:
    return list(spans(_ask(f"{address}/api/v3/traces/{wanted}", "Jaeger")))


def _ask(address: str, what: str) -> Any:
    """Return what a backend answers, parsed; None where it does not know the trace."""
    request = urllib.request.Request(address, headers={"Accept": "application/json"})  # noqa: S310  http or https, see above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310  as above
            body = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:  # noqa: PLR2004  not found
            return None
        raise _UnreadableError(f"{what} at {_shown(address)} cannot be asked: it answered {error.code}.") from None
    except (OSError, ValueError) as error:
        why = str(getattr(error, "reason", error))
        raise _UnreadableError(f"{what} at {_shown(address)} cannot be asked ({why}).") from None
    if len(body) > _MOST_BYTES:
        raise _UnreadableError(f"{what} at {_shown(address)} answered more than 256 MiB.")
    try:
        return _values(body.decode())
    except (ValueError, RecursionError):
        raise _UnreadableError(f"what answers at {_shown(address)} is not {what}: no JSON came.") from None


def _values(text: str) -> Any:
    """Return one JSON value, or a list of several: Jaeger may send a long trace in pieces."""
    decoder, found, at = json.JSONDecoder(), list[Any](), 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found[0] if len(found) == 1 else found


def _shown(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
