"""R23, R24: what log events do to a stream, and what a stream does to the host, whatever either of them is like."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import rtobs
from rtobs import _config, _guard, logs
from rtobs._config import outputs
from tests._export.scripted import Collector
from tests.support import scripts
from tests.unbreakable import figures

INJECTIONS = {
    "new line": '\n{"event": "forged"}', "carriage return": "\rforged", "both": "\r\nforged: yes\r\n\r\n",
    "line separator": "\u2028forged", "paragraph separator": "\u2029forged", "next line": "\x85forged",
    "vertical tab and form feed": "\x0b\x0cforged", "nul": "\x00forged", "backspace": "forged\x08\x08\x08",
    "colour": "\x1b[31mred\x1b[0m", "clear the screen": "\x1b[2J\x1b[1;1H", "title": "\x1b]0;forged\x07",
    "hyperlink": "\x1b]8;;https://evil.test\x1b\\click\x1b]8;;\x1b\\", "c1 escape": "\x9b31mred", "delete": "\x7f",
    "bidi override": "\u202egnp.exe", "bidi isolate": "\u2066\u2069", "left-to-right mark": "\u200e",
    "lone surrogates": "\ud800\udfff", "half an emoji": "\ud83d", "not a character": "\ufffe\uffff",
    "json breakers": '"}], "event": "forged", \\', "json escape": "\\u000a\\n", "logfmt": ' event=forged level="x"',
    "formats": "%s%n%(event)s{0}{event!r}${jndi:ldap://evil.test}", "html": "<script>alert(1)</script>",
    "very long": "x" * 200_000, "long lines": "forged\n" * 20_000, "other scripts": "Zürich 東京 😀 עברית",
}  # fmt: skip
"""What somebody may put into a value in order to forge a record, hide one or break who reads it."""

NO_TYPE = ("nul", "lone surrogates", "half an emoji")
"""What Python allows in no class's name."""
RAW = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""What must not stand in a record as it is."""
FIELDS = (
    "tenant", "region", "source", "device_type", "route", "destination", "channel", "provider", "stage", "reason",
    "keep", "note name", "note value", "event name", "event field", "event value", "error message", "error type",
    "service",
)  # fmt: skip


def emit(field: str, value: str) -> None:
    """Emit log events that have *value* in one of the fields, through the public surface only."""

    def put(name: str, otherwise: str) -> str:
        return value if field == name else otherwise

    kind = type(put("error type", "GoneError"), (ConnectionError,), {})
    with rtobs.accept(put("route", "/orders")) as hop:
        hop.segment(
            tenant=put("tenant", "acme"), region=put("region", "eu"), source=put("source", "crm"),
            device_type=put("device_type", "ios"),
        )  # fmt: skip
        hop.keep(put("keep", "vip"))
        hop.note(**{put("note name", "size"): put("note value", "3")})
        hop.event(put("event name", "order.paid"), **{put("event field", "amount"): put("event value", "3")})
        hop.outcome(rtobs.Outcome.REJECTED, put("reason", "no such number"))
    try:
        with (
            rtobs.consume(put("destination", "orders"), headers={}),
            rtobs.stage(put("stage", "normalize")),
            rtobs.deliver(put("channel", "push"), put("provider", "fcm")),
        ):
            raise kind(put("error message", "gone"))
    except ConnectionError:
        pass


def whole(record: Mapping[str, Any], value: str) -> bool:
    """Tell whether a record has *value* as it was, or shows that it has been changed."""
    texts = [str(text) for pair in record.items() for text in pair]
    marked = any("\ufffd" in text or text.endswith("…") or text.startswith("<") for text in texts)
    return marked or any(value in text for text in texts)


def judge(lines: list[str], where: str) -> list[dict[str, Any]]:
    """Parse the lines of one stream; every one is a whole record of ours without anything raw."""
    found = []
    for line in lines:
        assert line.isascii(), where
        record = json.loads(line)
        assert record["stream"] == "operational", where
        assert record["correlation_id"], where
        for text in (text for pair in record.items() for text in map(str, pair)):
            assert not RAW.search(text), (where, text)
        found.append(record)
    return found


@pytest.fixture
def clean() -> Generator[None]:
    """Leave the process as it was found."""
    with _guard._lock:
        _guard._tallies.clear()
        _guard._last_told.clear()
    yield
    rtobs.configure()


def dropped() -> int:
    """Return how many log events are counted as lost."""
    return sum(n for (name, values), n in _guard.tallies().items() if name.endswith("dropped") and "logs" in values)


# R23 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("where", ["stdout", "logging"])
def test_r23_one_record_is_one_line(
    where: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """R23: whatever is injected into whichever field, every record is one line of JSON that tells it."""
    caplog.set_level(logging.INFO, "rtobs")
    rtobs.configure(logs=where, strict=True)
    records = 0
    for field in FIELDS:
        for name, value in INJECTIONS.items():
            if field == "error type" and name in NO_TYPE:
                continue
            if field == "service":
                rtobs.configure(logs=where, strict=True, service=value)
            emit(field, value)
            if where == "stdout":
                out, err = capfd.readouterr()
                assert err == ""
                assert out.endswith("\n")
                lines = out[:-1].split("\n")
            else:
                lines = [record.getMessage() for record in caplog.records]
                caplog.clear()
            found = judge(lines, f"{name} in {field}")
            assert len(found) == 4, (field, name, [record["event"] for record in found])
            told = {record["event"] for record in found}
            assert "forged" not in told
            if field not in ("region", "source", "device_type", "keep"):  # these are not told
                assert any(whole(record, value) for record in found), (field, name)
            records += len(found)
        rtobs.configure(logs=where, strict=True)
    figures.record("R23", f"{len(INJECTIONS)} injections in {len(FIELDS)} fields: {records} records, {records} lines",
                   where)  # fmt: skip


@pytest.mark.usefixtures("clean")
def test_r23_records_arrive_over_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """R23: sent by OTLP, every record arrives, and no attribute of one holds anything raw."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{collector.endpoint}/v1/logs")
        rtobs.configure(logs="otlp", strict=True)
        emitted = 0
        for field in FIELDS:
            for name, value in INJECTIONS.items():
                if field != "service" and not (field == "error type" and name in NO_TYPE):
                    emit(field, value)
                    emitted += 4
            assert _config.flush(20)
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT")
        found = [
            record
            for request in collector.requests
            for group in ExportLogsServiceRequest.FromString(request.body).resource_logs
            for scope in group.scope_logs
            for record in scope.log_records
        ]
    assert len(found) == collector.logs == emitted
    for record in found:
        texts = [record.body.string_value, record.event_name, *(one.key for one in record.attributes),
                 *(one.value.string_value for one in record.attributes)]  # fmt: skip
        assert not any(RAW.search(text) for text in texts), texts
    assert dropped() == 0
    figures.record("R23", f"{len(found)} records sent, {collector.logs} arrived, 0 with a raw character", "otlp")


RENDERERS = {
    "json": structlog.processors.JSONRenderer(),
    "key value": structlog.processors.KeyValueRenderer(),
    "logfmt": structlog.processors.LogfmtRenderer(bool_as_flag=False),
    "console": structlog.dev.ConsoleRenderer(colors=False),
}


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("renderer", RENDERERS)
def test_r23_what_is_added_to_the_hosts_own_lines_breaks_none(renderer: str) -> None:
    """R23: what ``rtobs.logs.add_journey`` adds to a line of the host's keeps it one line, whoever renders it."""
    rtobs.configure(strict=True)
    for value in INJECTIONS.values():
        with rtobs.accept(value) as hop:
            hop.segment(tenant=value)
            event = logs.add_journey(None, "info", {"event": "theirs"})
        assert {"correlation_id", "tenant_id", "destination"} <= set(event)
        assert not any(RAW.search(str(text)) for text in event.values())
        line = RENDERERS[renderer](None, "info", dict(event))
        assert len(str(line).splitlines()) == 1


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans())))
def test_r23_any_event_is_one_line_of_ascii(event: dict[str, Any]) -> None:
    """R23: the line itself is safe for any text, also for one that no hop has looked at before."""
    line = outputs.line(event)
    assert line.isascii()
    assert line.isprintable()
    assert isinstance(json.loads(line), dict)


# R24 -----------------------------------------------------------------------------------------------------------------

HOST = """
import json, os, resource, signal, sys
import rtobs
from rtobs import _guard
{before}
rtobs.configure(logs={logs!r})
told = 0
for number in range({events}):
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="Z\\xfcrich \\u6771\\u4eac")
        hop.event("order.paid", amount=number)
    told += 1
{after}
lost = sum(n for (name, values), n in _guard.tallies().items()
           if name in ("rtobs.telemetry.dropped", "rtobs.internal.errors"))
with open({report!r}, "w") as report:
    json.dump({{"told": told, "lost": lost}}, report)
"""
EVENTS = 100
LOGGED = "import logging; logging.basicConfig(level=20, stream=sys.{}, format='%(message)s')\n"


def host(folder: Path, *, before: str = "", after: str = "", logs: str = "stdout", **options: Any) -> tuple[Any, Any]:
    """Run a host that tells events; return the process and what it counted."""
    report = folder / "report.json"
    code = HOST.format(before=before, after=after, logs=logs, events=EVENTS, report=str(report))
    variables = {"PYTHONUNBUFFERED": "", **options.pop("variables", {})}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=scripts.ROOT, env=scripts.environment(**variables), timeout=50, check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip
    assert report.exists(), done.stderr
    return done, json.loads(report.read_text())


def limited() -> None:
    """Let no file grow beyond 4 KiB, which fails as a full disk does."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


BUFFERED = pytest.mark.parametrize(
    "variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"]
)  # the host's choice


@BUFFERED
def test_r24_a_full_disk_costs_events_and_nothing_else(variables: dict[str, str], tmp_path: Path) -> None:
    """R24: on a disk that is full from the start the host goes on and ends as ever; every event is counted as lost."""
    with open("/dev/full", "w") as full:  # noqa: PTH123  a device
        done, found = host(tmp_path, stdout=full, variables=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert found == {"told": EVENTS, "lost": EVENTS}
    figures.record("R24", f"{EVENTS} of {EVENTS} events counted as lost, exit code 0", "disk full")


@BUFFERED
def test_r24_a_disk_that_fills_up_keeps_what_it_took(variables: dict[str, str], tmp_path: Path) -> None:
    """R24: what fits is there line by line, what does not is counted, and the host ends as ever."""
    path = tmp_path / "events.log"
    with path.open("w") as stdout:
        done, found = host(tmp_path, stdout=stdout, variables=variables, preexec_fn=limited)
    assert (done.returncode, done.stderr) == (0, b"")
    *lines, cut = path.read_text().split("\n")
    assert len(judge(lines, "disk")) == len(lines) > 0
    assert found["told"] == len(lines) + found["lost"] == EVENTS
    assert cut == "" or len(cut) < 4096
    figures.record("R24", f"{len(lines)} lines whole, {found['lost']} counted as lost, exit code 0", "disk filling up")


@BUFFERED
def test_r24_a_reader_that_is_gone_costs_events_and_nothing_else(variables: dict[str, str], tmp_path: Path) -> None:
    """R24: after EPIPE the host goes on; its exit code is what it would have been without us."""
    read, write = os.pipe()
    os.close(read)
    try:
        done, found = host(tmp_path, stdout=write, variables=variables)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert found == {"told": EVENTS, "lost": EVENTS}
    figures.record("R24", f"{EVENTS} of {EVENTS} events counted as lost, exit code 0", "reader gone")


def test_r24_a_reader_that_goes_away_meanwhile(tmp_path: Path) -> None:
    """R24: what was written before the reader left is whole; the rest is counted."""
    done, found = host(
        tmp_path, before="read, write = os.pipe(); os.dup2(write, 1); os.close(write)",
        after="os.write(2, os.read(read, 1 << 20)); os.close(read)\n"
              "for _ in range(50):\n    with rtobs.accept('/orders') as hop:\n        hop.event('late')\n    told += 1",
    )  # fmt: skip
    assert done.returncode == 0
    assert len(judge(done.stderr.decode().splitlines(), "pipe")) == EVENTS
    assert found == {"told": EVENTS + 50, "lost": 50}


@pytest.mark.parametrize(
    ("how", "before"),
    [
        ("by the host", "sys.stdout.close()"),
        ("below Python", "os.close(1)"),
        ("replaced by nothing", "sys.stdout = None"),
        ("detached", "sys.stdout.detach()"),
    ],
)
def test_r24_a_closed_stdout_costs_events_and_nothing_else(how: str, before: str, tmp_path: Path) -> None:
    """R24: whoever closed stdout, the host sees no exception and every event is counted as lost."""
    done, found = host(tmp_path, before=before)
    assert found == {"told": EVENTS, "lost": EVENTS}, how
    ends = "import os, sys\n" + before  # closed below Python, the host itself ends differently on some versions
    assert done.returncode == scripts.run(ends, PYTHONUNBUFFERED="").returncode
    assert done.stdout == b""


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONUNBUFFERED": "1"},
    ],
    ids=["ascii", "cp1252", "unbuffered"],
)
@pytest.mark.parametrize("logs", ["stdout", "logging"])
def test_r24_no_locale_stops_a_line(logs: str, variables: dict[str, str], tmp_path: Path) -> None:
    """R24: in any locale, every event is written and can be read back, its tenant in Japanese too."""
    before = LOGGED.format("stdout") if logs == "logging" else ""
    done, found = host(tmp_path, before=before, logs=logs, variables=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert found == {"told": EVENTS, "lost": 0}
    records = judge(done.stdout.decode("ascii").splitlines(), logs)
    assert len(records) == EVENTS
    assert {record["tenant_id"] for record in records} == {"Zürich 東京"}


@pytest.mark.parametrize("state", ["closed", "full", "nothing"])
def test_r24_a_closed_stderr_stops_nobody(state: str, tmp_path: Path) -> None:
    """R24: with a stderr that is closed, full or not there, and a logger that writes to it, the host sees nothing."""
    states = {
        "closed": "{}sys.stderr.close()", "full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n{}",
        "nothing": "sys.stderr = None\n{}",
    }  # fmt: skip
    before = states[state].format(LOGGED.format("stderr"))
    done, found = host(tmp_path, before=before, logs="logging")
    assert found["told"] == EVENTS
    plain = "import os, sys\n" + before + "\nif sys.stderr and not sys.stderr.closed: logging.info('x')"
    assert done.returncode == scripts.run(plain, PYTHONUNBUFFERED="").returncode


def test_r24_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """R24: processes that share one stdout, as workers of a server do, write whole lines."""
    done, found = host(tmp_path, before="rtobs.configure(); children = [os.fork() for _ in range(2)]",
                       after="if 0 in children: os._exit(0)\n[os.wait() for _ in children]")  # fmt: skip
    assert done.returncode == 0
    assert found == {"told": EVENTS, "lost": 0}
    assert len(judge(done.stdout.decode().splitlines(), "shared")) == 4 * EVENTS
