"""R20: secrets do not leave, by whatever way they came in; what is no secret stays readable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

import rtobs
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import OTHER
from rtobs._redaction import identity, names, patterns
from rtobs._telemetry.foreign import cleaned
from tests._export.scripted import Collector
from tests.support.http import Server
from tests.support.telemetry import Telemetry, telemetry
from tests.unbreakable.corpus.secrets import Secret, secrets
from tests.unbreakable.leaky import texts_of

__all__ = ["telemetry"]

ROOT = Path(__file__).parents[2]
SECRETS = secrets()


# What leaves a process ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("logs", ["otlp", "stdout", "logging"])
def test_r20_no_secret_leaves_a_process(logs: str) -> None:
    """R20: of 40 kinds of secrets and more, planted wherever a host has them, none is in what leaves the process."""
    server = Server()
    server.start()
    with Collector() as collector:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.unbreakable.leaky", logs, server.url("")]
        ran = subprocess.run(command, env=environment, capture_output=True, timeout=150, check=False, cwd=ROOT)
        assert ran.returncode == 0, ran.stderr.decode()[-3000:]
        sent = Counter(request.path.rpartition("/")[2] for request in collector.requests)
        bodies = b"".join(request.body for request in collector.requests)
    assert b"done True faults {'leaky': %d}" % len(SECRETS) in ran.stdout, ran.stdout[-500:]
    assert sent["traces"] > 0
    assert sent["metrics"] > 0
    assert (sent["logs"] > 0) == (logs == "otlp")
    said = {"otlp": bodies, "stdout": ran.stdout, "logging": ran.stderr}[logs]
    assert said.count(b"consume.failed") >= len(SECRETS)
    for place, data in {"OTLP": bodies, "stdout": ran.stdout, "stderr": ran.stderr}.items():
        found = [secret.kind for secret in SECRETS if secret.shown.encode() in data]
        assert found == [], place


def test_there_are_more_than_40_kinds() -> None:
    """The corpus has as many kinds as the promise says, and each text holds its secret."""
    assert len({secret.kind for secret in SECRETS}) == len(SECRETS) >= 40
    assert all(secret.shown in secret.text or "\n" in secret.text for secret in SECRETS)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.kind)
def test_every_kind_is_found_in_every_way_to_write_it(secret: Secret) -> None:
    """A secret of each kind goes out of a sentence, JSON, a Python repr, and a text that is cut, with ten seeds."""
    place = SECRETS.index(secret)
    for seed in range(10):
        one = secrets(seed)[place]
        for written in texts_of(one):
            found = redaction.redact(written)
            assert one.shown not in found, written
            assert redaction.redact(found) == found, "redacting twice changes nothing"
        if one.name:
            assert redaction.field(one.name, one.shown) == "[redacted]"


def test_a_secret_across_the_cut_does_not_show_its_beginning() -> None:
    """Wherever a text is cut, no part of ten characters of a secret is left."""
    for secret in SECRETS:
        if (
            secret.kind.startswith("phone")
            or secret.kind in ("card in groups", "iban in groups")
            or len(secret.shown) < 10
        ):
            continue
        for before in (*range(1024 - len(secret.text) - 2, 1026, 3), 2000, 2040, 2048):
            found = redaction.redact(f"{'x ' * (before // 2)} {secret.text} {'and more ' * 300}")
            assert secret.shown[:10] not in found, (secret.kind, before)
            assert len(found.encode()) <= 1024


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "DB_PASSWORD",
        "userPassword",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "http.request.header.authorization",
        "set-cookie",
        "client_secret",
        "accessToken",
        "private_key",
        "sessionId",
        "aws.secretAccessKey",
        "PIN",
        "jwt",
    ],
)
def test_the_name_of_a_secret_is_known_in_any_spelling(name: str) -> None:
    """Snake, camel and header case, and with words around it; a number is a secret, too."""
    assert redaction.field(name, "a") == redaction.field(name, 1234) == "[redacted]"


@pytest.mark.parametrize(
    "name",
    [
        "token_count",
        "input_tokens",
        "auth_method",
        "password_length",
        "author",
        "keyboard",
        "passenger",
        "secretary",
        "routing_key",
        "session_count",
        "error_category",
        "pinned",
        "destination",
        "cookie_name",
    ],
)
def test_names_that_only_look_like_secrets_are_left_alone(name: str) -> None:
    """What a field says about a secret, or a word that contains another, stays readable."""
    assert redaction.field(name, "auth") == "auth"
    assert redaction.field(name, 5) == 5


def test_people_are_hashed_with_a_key() -> None:
    """The same person has the same hash, in a field, in a text and with any spelling; another key gives another."""
    redaction.use_key(b"k" * 16)
    by_name = redaction.field("email", "Ann@Example.org")
    assert re.fullmatch(r"\[email:[0-9a-f]{12}\]", by_name)
    assert redaction.redact("to ann@example.org, now") == f"to {by_name}, now"
    assert redaction.redact("+49 151 1234567") == redaction.redact("+491511234567")
    assert re.fullmatch(r"\[id:[0-9a-f]{12}\]", redaction.field("recipient", "ann"))
    assert redaction.field("recipient", "ann") != redaction.field("recipient", "bob")
    redaction.use_key(b"l" * 16)
    assert redaction.field("email", "ann@example.org") != by_name
    redaction.use_key(b"k" * 16)
    assert redaction.field("email", "ann@example.org") == by_name
    redaction.use_key(None)
    assert redaction.field("email", "ann@example.org") == by_name, "without a key, the one drawn or given stays"
    assert b"k" * 16 not in identity._key


def test_bodies_are_not_shown_under_their_name() -> None:
    """A field that is called body or payload does not leave; its size does."""
    assert redaction.field("body", "hello") == redaction.field("request.payload", "x") == "[redacted]"
    assert redaction.field("messaging.message.body.size", 5) == 5


# In a process ------------------------------------------------------------------------------------------------------


def test_a_redacted_word_is_no_label(telemetry: Telemetry) -> None:
    """A secret or a person in the name of a tenant, a provider or an event is counted under `other`."""
    token = next(secret.text for secret in SECRETS if secret.kind == "github token")
    with rtobs.accept("/x") as hop:
        hop.segment(tenant="ann@example.org", region=token)
        hop.event(f"login {token}")
        with rtobs.deliver("webhook", token):
            pass
    bound = rtobs._config._bound
    for snapshot in bound.registry.collect():
        for point in snapshot.points:
            assert not any(token in label or "ann@" in label or "[" in label for label in point.labels)
    from rtobs import _conventions as conventions

    assert telemetry.by(conventions.OUTCOMES, "provider") == {OTHER: 1}


def test_a_declared_tenant_may_be_called_anything(telemetry: Telemetry) -> None:
    """What the operator has written into `configure` is no secret: the tenant keeps its name everywhere."""
    rtobs.configure(tenants=["ann@example.org"], high_value={"bob@example.org"}, logs=telemetry.events.append)
    for tenant in ("ann@example.org", "bob@example.org", "eve@example.org"):
        with rtobs.accept("/x") as hop:
            hop.segment(tenant=tenant)
            hop.event("ordered")
    seen = [span.attributes["rtobs.tenant"] for span in telemetry.spans("accept")]
    assert seen[:2] == ["ann@example.org", "bob@example.org"]
    assert seen[2].startswith("[email:")
    assert [event["tenant_id"] for event in telemetry.events] == seen


def test_what_cannot_be_searched_does_not_leave(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search itself fails, the value is replaced and the fault is counted; the message goes on."""
    rtobs.configure(logs=telemetry.events.append)

    def fails(_: str) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(patterns, "search", fails)
    redaction._clean.clear()
    with rtobs.accept("/orders/x") as hop:
        hop.note(detail="something", number=5)
        hop.event("something happened")
    attributes = telemetry.span("accept").attributes
    assert (attributes["[redacted]"], attributes["rtobs.route"]) == (5, "[redacted]")
    assert "something" not in str(telemetry.events)
    counted = {values[0] for (name, values), _ in _guard.tallies().items() if name == "rtobs.internal.errors"}
    assert counted == {"redaction"}
    telemetry.forget()
    with _guard._lock:
        _guard._tallies.clear()  # what this test is about, not a fault of it


def test_exemplars_carry_ids_only(telemetry: Telemetry) -> None:
    """An exemplar has a trace and a span, and no field of the user's."""
    with rtobs.accept("/x") as hop:
        hop.note(email="ann@example.org")
        with rtobs.deliver("webhook", "crm"):
            pass
    bound = rtobs._config._bound
    found = [one for s in bound.registry.collect() for point in s.points for one in point.exemplars]
    assert found
    assert all(not isinstance(value, str) for one in found for value in one)


def test_the_spans_of_other_libraries_are_searched() -> None:
    """Name, attributes, events, links and status; what is fine is the very same span, and what was dropped is known."""
    context = SpanContext(1, 2, is_remote=False)
    fine = ReadableSpan("GET", context, None, None, BoundedAttributes(attributes={"a": "b", "n": (1, 2)}), start_time=1)
    assert cleaned(fine) is fine
    attributes = BoundedAttributes(1, {"z": 1, "url.full": "https://a:b@c/d?token=e&f=g", "bytes": b"password=x"})
    bad = ReadableSpan(
        "mail ann@example.org",
        context,
        None,
        None,
        attributes,
        (Event("to ann@example.org", {"exception.stacktrace": "x\n  password='hunter2'\n" * 2000}, 1),),
        (Link(context, {"note": "password=x"}),),
        status=Status(StatusCode.ERROR, "password=hunter2"),
        start_time=1,
    )
    found = cleaned(bad)
    assert re.fullmatch(r"mail \[email:\w+\]", found.name)
    assert found.dropped_attributes == 2
    assert found.status.description == "password=[redacted]"
    stack = found.events[0].attributes["exception.stacktrace"]
    assert "hunter2" not in stack
    assert 5000 < len(stack) <= redaction.FOREIGN_LIMIT
    assert found.links[0].attributes["note"] == "password=[redacted]"
    assert found.events[0].name.startswith("to [email:")
    url = ReadableSpan(
        "x", context, attributes={"url.full": "https://a:b@c/d?token=e&f=g", "in": {"pin": 1}, "b": b"pin=9x"}
    )
    assert dict(cleaned(url).attributes) == {
        "url.full": "https://[redacted]@c/d?token=[redacted]&f=g",
        "in": {"pin": "[redacted]"},
        "b": "[redacted]",
    }


# What is no secret -------------------------------------------------------------------------------------------------


def test_r20_the_projects_own_pages_stay_readable(record_property: Any) -> None:
    """R20: at most 2 % of the words of the README and of the docs are redacted."""
    words = changed = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if page.name == "privacy.md":  # it shows what is redacted
            continue
        for line in page.read_text().splitlines():
            before = line[:1000].split()
            after = Counter(redaction.redact(line[:1000]).split())
            words += len(before)
            changed += sum((Counter(redaction.text(line[:1000]).split()) - after).values())
    record_property("false redactions", f"{changed} of {words} words")
    print(f"\nR20: {changed} of {words} words redacted ({changed / words:.2%})")
    assert words > 10_000
    assert changed <= 0.02 * words


@pytest.mark.slow
def test_r20_the_demos_log_fields_stay_readable(record_property: Any) -> None:
    """R20: at most 2 % of the values of the demo's own spans and log events are redacted."""
    code = """
import json, re, sys
from rtobs.cli import main
from rtobs.demo.telemetry import Telemetry
seen = changed = 0
def count(attributes):
    global seen, changed
    for one in attributes:
        seen += 1
        changed += re.search(r"\\[(?:redacted|[a-z]+:[0-9a-f]{12})", str(one.value)) is not None
def counting(absorb, scopes):
    def taking(self, request):
        for resource in request.ListFields()[0][1]:
            for scope in getattr(resource, scopes):
                for one in scope.spans if scopes == "scope_spans" else scope.log_records:
                    count(one.attributes)
                    for event in getattr(one, "events", ()):
                        count(event.attributes)
        return absorb(self, request)
    return taking
Telemetry.absorb_traces = counting(Telemetry.absorb_traces, "scope_spans")
Telemetry.absorb_logs = counting(Telemetry.absorb_logs, "scope_logs")
sys.argv = ["rtobs", "demo", "--seconds", "3", "--json"]
try:
    main()
except SystemExit:
    pass
print("\\nCOUNTED", json.dumps([seen, changed]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    found = re.search(r"COUNTED \[(\d+), (\d+)\]", ran.stdout)
    assert found is not None, ran.stderr[-2000:]
    seen, changed = int(found[1]), int(found[2])
    record_property("false redactions", f"{changed} of {seen} values")
    print(f"\nR20: {changed} of {seen} fields of the demo redacted")
    assert seen > 500
    assert changed <= 0.02 * seen


PLAIN = [
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "0199a1b2c3d47e5f8a6b7c8d9e0f1a2b",
    "1763845862123-0",
    "2026-11-22T21:11:02.123456+00:00",
    "5f0c1a2b-1111-4222-8333-444455556666",
    "orders.eu.created",
    "10.0.0.1:5672",
    "connection refused",
    "HTTP/1.1 503 Service Unavailable",
    "Retry-After: 120",
    "KeyError: 'ticket'",
    "1234567890",
    "basic authentication failed",
    "bearer of news",
    "rtobs.delivery.outcomes",
    "x = 1, y = 2",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "projects/p/topics/t",
    "TimeoutError: timed out after 30.0 s",
    "1763845862123456789",
    "v1.2.3-rc.1+build.5",
    "arn:aws:sqs:eu-west-1:123456789012:orders",
    "Mozilla/5.0 (X11; Linux x86_64)",
    "token bucket is empty",
    "the key is not known",
    "a@b",
    "user@host",
    "99.95 %",
    "invoice 2026-0001-0002",
    "test_something_long_with_words_only",
]


@pytest.mark.parametrize("value", PLAIN)
def test_what_operators_read_stays_as_it_is(value: str) -> None:
    """Ids, times, addresses, subjects and everyday sentences are not taken for secrets."""
    assert redaction.redact(value) == value


# Cost --------------------------------------------------------------------------------------------------------------

SLOW = [
    "a",
    "a-",
    "a.",
    "1 ",
    "1",
    "1-",
    "@",
    "a@",
    "a.b@",
    "a@b.",
    "%40",
    "://a",
    "eyJ",
    "password=",
    "password ",
    "token'",
    "'",
    "AKIA",
    "+1 ",
    "(123) ",
    "DE89 ",
    "Bearer ",
    "basic ",
    "-----BEGIN PRIVATE KEY-----",
    "=:",
    "[\"'",
    "\\\\\"'",
    "x=",
    "https://u:p",
    "A1b",
    "authorization: ",
    "?a=b&",
    ">a",
    "key key ",
    "xoxb-",
    "password=[",
    'password="',
    "password='\\'",
    "\n",
    "\ud800",
    "é",
    "a=;",
    "pass\\\\\\'",
    "ExponentPushToken[",
    "cookie: a=b; ",
    "1(((",
    "GB82 WEST ",
]


@pytest.mark.parametrize("piece", SLOW)
def test_no_pattern_runs_away(piece: str) -> None:
    """Searching takes linear time: sixteen times as much text takes at most about sixteen times as long."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = 1e9
        for _ in range(5):
            begun = time.thread_time()
            patterns.search(text)
            best = min(best, time.thread_time() - begun)
        return best

    small, large = seconds(4000), seconds(64_000)
    assert large <= 48 * small + 0.002  # a pattern that is quadratic takes 256 times as long


@given(st.one_of(st.text(max_size=3000), st.lists(st.sampled_from([*SLOW, *PLAIN]), max_size=60).map("".join)))
@settings(max_examples=400)
def test_any_text_can_be_searched_and_searched_again(value: str) -> None:
    """Nothing raises; what comes out is valid, bounded, one line, and has nothing more to take out."""
    found = redaction.redact(value)
    assert len(found.encode()) <= redaction.TEXT_LIMIT
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", found)
    assert not any(name == "rtobs.internal.errors" for name, _ in _guard.tallies())


def test_names_are_known_without_looking_twice() -> None:
    """What is remembered about names and texts is bounded."""
    for number in range(5000):
        redaction.field(f"name{number}", f"value {number}")
    assert len(names._known) <= names._MOST_KNOWN
    assert len(redaction._clean) <= redaction._MOST_CLEAN
