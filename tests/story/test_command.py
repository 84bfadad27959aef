"""``rtobs story``: what it prints of files and backends, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import jsonschema
import pytest
from opentelemetry.sdk.resources import Resource
from typer.testing import CliRunner

import rtobs
from rtobs._journey import ledger
from rtobs._journey.journey import new_correlation_id
from rtobs._journey.ledger_entries import sent_span_id
from rtobs._telemetry.completion import rebuild
from rtobs.cli import build
from tests.story.support import with_base64, with_hex, write
from tests.support.http import Answer, free_port, listening
from tests.support.pages import ROOT
from tests.support.telemetry import telemetry

__all__ = ["telemetry"]

RTOBS = Path(sys.executable).with_name("rtobs")
SCHEMA = json.loads((ROOT / "src/rtobs/story/story.schema.json").read_text())


def story(*arguments):
    """Run the command in this process; return exit code, output and errors."""
    done = CliRunner().invoke(build(), ["story", *map(str, arguments)], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


def as_a_program(*arguments, **environment):
    """Run the command as a user does."""
    done = subprocess.run(
        [RTOBS, "story", *map(str, arguments)],
        env={**os.environ, "TERM": "dumb", "COLUMNS": "80", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def failed(telemetry):
    """The spans of a message that failed at its second step, of which the first was rebuilt; and its id."""
    start = time.time_ns() - 50_000_000
    name, sent = new_correlation_id(start), sent_span_id(7, 1)
    trace = int(name, 16)
    label = ledger.label("api", "/notify", "orders")
    text = ledger.append(
        "", "", f"{name}-{sent:016x}", ledger.CODES["accept"], f"{7:016x}", start, start, start, 1, label
    )
    journey = f"100{start // 1000:014x}{start // 1000:014x}01" + "." * 9
    headers = {"traceparent": f"00-{name}-{sent:016x}-01", "rtobs-journey": journey}
    with (
        pytest.raises(TimeoutError),
        rtobs.consume("orders", headers=headers, trust="trusted"),
        rtobs.deliver("sms", "twilio"),
    ):
        raise TimeoutError("no answer")
    return name, [*telemetry.spans(), *rebuild(ledger.read(text, trace, sent, trace), name)]


def test_a_file_of_a_collector_is_told_at_80_columns_without_colour(failed, tmp_path):
    """From the first digits the story comes: answer, rebuilt steps and their bytes, no line above 80, no colour."""
    name, spans = failed
    file = write(tmp_path / "spans.jsonl", spans[:1], spans[1:])
    with file.open("a") as more:
        more.write('{"resourceSpans": [half a line')
    code, said, errors = as_a_program(name[:13], file)
    assert (code, errors) == (0, "")
    assert "sms by twilio: failed after 1 try (timeout" in said
    assert "~ accept /notify" in said
    assert "rebuilt from 21 bytes that" in said.replace("\n", " ")
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 80
    assert "\x1b" not in as_a_program(name, file, NO_COLOR="1", TERM="xterm-256color")[1]


def test_json_has_a_schema(failed, tmp_path):
    """``--json`` prints one object that its schema describes, and nothing else."""
    name, spans = failed
    code, said, _ = story(name, write(tmp_path / "a.jsonl", spans), "--json")
    found = json.loads(said)
    jsonschema.validate(found, SCHEMA)
    assert code == 0
    assert (found["correlation_id"], found["rebuilt"]["spans"]) == (name, 2)


def test_one_whole_document_is_read_too(failed, tmp_path):
    """A file that is one JSON document over many lines, as downloaded from a backend, is read as well."""
    name, spans = failed
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"batches": with_base64(spans)["resourceSpans"]}, indent=2))
    assert story(name, file)[0] == 0


def test_several_files_are_one_story(failed, tmp_path):
    """Spans of one journey in several files make one story, and what several of them hold is told once."""
    name, spans = failed
    files = [write(tmp_path / f"{index}.jsonl", group) for index, group in enumerate((spans[:1], spans, spans[1:]))]
    found = json.loads(story(name, *files, "--json")[1])
    assert len(found["rows"]) == len(spans)


def test_what_is_wrong_is_said(failed, tmp_path):
    """No such journey and a file that cannot be read end with 1, a wrong argument with 2; each says what to do."""
    name, spans = failed
    file = write(tmp_path / "a.jsonl", spans)
    text = tmp_path / "b.txt"
    text.write_text("not JSON at all\n")
    empty = tmp_path / "c.jsonl"
    empty.touch()
    for arguments, expected, words in (
        (("abcd" * 8, file), 1, "Was it exported?"),
        ((name, empty), 1, "Was it exported?"),
        ((name, tmp_path / "missing"), 1, "cannot be read (No such file"),
        ((name, text), 1, "is not JSON"),
        ((name,), 2, "there is nothing to read"),
        (("order-17", file), 2, "no correlation id"),
        ((name[:8], "--tempo", "http://127.0.0.1:1"), 2, "need the whole id"),
        ((name, "--jaeger", "localhost:16686"), 2, "is no address"),
        ((name, "--tempo", f"http://127.0.0.1:{free_port()}"), 1, "cannot be asked (Connection refused"),
    ):
        code, said, errors = story(*map(str, arguments))
        assert (code, said) == (expected, ""), errors
        assert errors.startswith("rtobs story: ")
        assert words in errors.replace("[Errno 111] ", "")


def test_tempo_is_asked_for_all_traces_of_a_journey(failed):
    """Tempo gives the first trace by its id, and the others, whose ids may lack zeros in front, by the journey's."""
    name, spans = failed
    other = "00" + "7" * 30
    raw = with_hex(spans[:1])["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    raw = {**raw, "traceId": other, "parentSpanId": ""}

    def decide(request):
        path, _, query = request.path.partition("?")
        if path == "/api/search":
            asked = urllib.parse.parse_qs(query)
            assert asked["q"] == [f'{{ span.rtobs.correlation_id = "{name}" }}']
            assert int(asked["start"][0]) < int(asked["end"][0])
            found = {"traces": [{"traceID": other.lstrip("0"), "rootServiceName": "x"}], "metrics": {}}
        elif path == f"/api/v2/traces/{name}":
            found = {"trace": with_base64(spans), "metrics": {"inspectedBytes": "1"}}
        elif path == f"/api/v2/traces/{other}":
            found = {"trace": {"resourceSpans": [{"scopeSpans": [{"spans": [raw]}]}]}}
        else:
            return Answer(404)
        return Answer(body=json.dumps(found).encode())

    with listening() as server:
        server.decide = decide
        found = json.loads(story(name, "--tempo", server.url("/"), "--json")[1])
    assert found["traces"] == [name, other]
    assert len(found["rows"]) == len(spans) + 1


def test_jaeger_is_asked_for_the_first_trace(failed):
    """Jaeger gives the journey's first trace in OTLP's form, also in several pieces."""
    name, spans = failed
    pieces = "\n".join(json.dumps({"result": with_hex(group)}) for group in (spans[:1], spans[1:]))
    with listening() as server:
        server.answers[f"/api/v3/traces/{name}"] = Answer(body=pieces.encode())
        code, said, _ = story(name, "--jaeger", server.url("/"), "--json")
    assert code == 0
    assert len(json.loads(said)["rows"]) == len(spans)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(404), "Was it exported?"),
        (Answer(503), "it answered 503"),
        (Answer(body=b"<html>"), "no JSON came"),
        (Answer(body=b'{"traces": 7}'), "Was it exported?"),
        (Answer(hang_up=True), "cannot be asked"),
    ],
)
@pytest.mark.parametrize("option", ["--jaeger", "--tempo"])
def test_a_backend_that_does_not_know_or_answer(option, answer, words):
    """A backend that does not know the trace, breaks or is something else: one line says it, and the exit code is 1."""
    with listening() as server:
        server.decide = lambda _: answer
        code, said, errors = story("0199aa" + "1" * 26, option, server.url("/"))
    assert (code, said) == (1, "")
    assert words in errors or "something else than traces" in errors
    assert len(errors.splitlines()) == 1


def test_services_of_files_are_named(tmp_path, failed):
    """Each hop stands under the name of the service whose resource it came with."""
    name, spans = failed
    found = json.loads(story(name, write(tmp_path / "a.jsonl", spans), "--json")[1])
    real = Resource.create().attributes["service.name"]
    assert found["services"] == ["api", real]
