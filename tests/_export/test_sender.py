"""The sender against a scripted collector, and beside the SDK's exporter with the same environment."""

from __future__ import annotations

import datetime as dt
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from rtobs._config import environment
from rtobs._export.encoder import SpanEncoder, request
from rtobs._export.sender import Sender, _wait
from rtobs._export.transport import Answer
from tests._export.scripted import RARELY, Collector
from tests.support.timing import SCALE

RESOURCE = Resource({"service.name": "orders"})
SPAN = ReadableSpan("query", SpanContext(1, 2, is_remote=False), None, RESOURCE, {}, start_time=1, end_time=2)
DATA = request([SpanEncoder(RESOURCE).span(SPAN)[2]])

Set = Callable[..., None]


@pytest.fixture(autouse=True)
def set_environment(monkeypatch: pytest.MonkeyPatch) -> Set:
    """A function that sets ``OTEL_EXPORTER_OTLP_*`` variables by the rest of their names; none are set before."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)

    return put


def sent(seconds: float = 5.0) -> Answer:
    """Post one span to where the environment says; return the answer."""
    sender = Sender(environment.target("spans"))
    try:
        return sender.post(DATA, time.monotonic() + seconds)
    finally:
        sender.close()


# The environment -----------------------------------------------------------------------------------------------------

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "base": {"ENDPOINT": "{0}"},
    "base with slash": {"ENDPOINT": "{0}/"},
    "base with path": {"ENDPOINT": "{0}/otlp"},
    "own": {"TRACES_ENDPOINT": "{0}/v1/traces"},
    "own without path": {"TRACES_ENDPOINT": "{0}"},
    "own with another path": {"TRACES_ENDPOINT": "{0}/here/and/v1/traces?tenant=1", "ENDPOINT": "http://nowhere"},
    "headers": {"ENDPOINT": "{0}", "HEADERS": "Api-Key=secret%20word, x-two=2"},
    "own headers": {"ENDPOINT": "{0}", "HEADERS": "x-all=1", "TRACES_HEADERS": "authorization=Basic%20YTpi"},
    "liberal headers": {"ENDPOINT": "{0}", "HEADERS": "authorization=Basic YTpi==,x-json={{1; two}}"},
    "broken headers": {"ENDPOINT": "{0}", "HEADERS": "no-value,=x,fine=1"},
    "content type": {"ENDPOINT": "{0}", "HEADERS": "content-type=application/other"},
    "gzip": {"ENDPOINT": "{0}", "COMPRESSION": "gzip"},
    "own compression": {"ENDPOINT": "{0}", "COMPRESSION": "gzip", "TRACES_COMPRESSION": " Deflate "},
    "no compression": {"ENDPOINT": "{0}", "TRACES_COMPRESSION": "none", "COMPRESSION": "gzip"},
    "unknown compression": {"ENDPOINT": "{0}", "COMPRESSION": "zip"},
    "empty": {"ENDPOINT": "{0}", "TRACES_ENDPOINT": "", "HEADERS": "", "COMPRESSION": "", "CERTIFICATE": ""},
}


@pytest.mark.parametrize("variables", ENVIRONMENTS.values(), ids=list(ENVIRONMENTS))
def test_a_request_is_what_the_sdks_exporter_would_send(variables: dict[str, str], set_environment: Set) -> None:
    """Address, headers and compression are those of the SDK's exporter in the same environment."""
    with Collector() as collector:
        collector.state = "500"  # it looks at requests only, for their paths are not all a collector's
        set_environment(**{name: value.format(collector.endpoint) for name, value in variables.items()})
        assert sent().cause == "http 500"
        OTLPSpanExporter().export([SPAN])
    ours, theirs = collector.requests
    assert ours.path == theirs.path
    assert ours.body == theirs.body
    assert ours.headers.pop("user-agent").startswith("rtobs/")
    theirs.headers.pop("user-agent")
    for one in (ours, theirs):
        one.headers.pop("accept-encoding")
        if "content-encoding" in one.headers:
            one.headers.pop("content-length")  # the same, packed a little differently
    assert ours.headers == theirs.headers


@pytest.mark.parametrize("value", ["", "2.5", "0", "-1", "nan", "soon"])
def test_the_time_of_an_export_is_what_the_environment_says(value: str, set_environment: Set) -> None:
    """Seconds, as the SDK for Python has it; ten where it says nothing or nothing that makes sense."""
    set_environment(TRACES_TIMEOUT=value, TIMEOUT="" if value == "" else "7")
    assert environment.target("spans").timeout == {"": 10.0, "2.5": 2.5}.get(value, 10.0)


def test_each_signal_has_its_own_address(set_environment: Set) -> None:
    """Without an own address a signal goes to its path below the common one."""
    set_environment(ENDPOINT="http://a", METRICS_ENDPOINT="http://b/m", LOGS_CERTIFICATE="/ca.pem")
    assert [environment.target(signal).url for signal in ("spans", "metrics", "logs")] == [
        "http://a/v1/traces", "http://b/m", "http://a/v1/logs",
    ]  # fmt: skip
    assert [environment.target(signal).verify for signal in ("spans", "logs")] == [True, "/ca.pem"]


# Certificates and proxies --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Somebody who signs certificates."""
    return trustme.CA()


def serving(authority: trustme.CA, *, clients: bool = False, **when: Any) -> ssl.SSLContext:
    """Return the TLS side of a collector whose certificate *authority* has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", **when).configure_cert(context)
    if clients:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_certificates_are_checked_and_clients_may_have_one(
    authority: trustme.CA, tmp_path: Path, set_environment: Set
) -> None:
    """Only a collector whose certificate is trusted gets anything; with a certificate of our own we show it."""
    trusted, own = tmp_path / "ca.pem", authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(trusted)
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    with Collector(tls=serving(authority, clients=True)) as collector:
        set_environment(ENDPOINT=collector.endpoint)
        assert sent().cause == "tls"
        set_environment(CERTIFICATE=str(trusted))
        assert sent().state == "failed"  # no certificate of ours
        set_environment(CLIENT_CERTIFICATE=str(tmp_path / "both.pem"))
        assert sent() == Answer("taken")
        set_environment(TRACES_CLIENT_CERTIFICATE=str(tmp_path / "cert.pem"), CLIENT_KEY=str(tmp_path / "key.pem"))
        assert sent() == Answer("taken")
    assert collector.spans == {(2).to_bytes(8, "big"): 2}
    assert "client@example.org" in str(collector.requests[-1].client)


def test_an_expired_certificate_is_no_certificate(authority: trustme.CA, tmp_path: Path, set_environment: Set) -> None:
    """Nothing is sent to it, and the answer says why."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    long_ago = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    with Collector(tls=serving(authority, not_before=long_ago, not_after=long_ago)) as collector:
        set_environment(ENDPOINT=collector.endpoint, CERTIFICATE=str(tmp_path / "ca.pem"))
        assert sent() == Answer("failed", "tls", "SSLError", soon=True)
    assert collector.requests == []


def test_a_certificate_that_is_not_there_says_so(set_environment: Set) -> None:
    """Its name is wrong, not the network."""
    set_environment(ENDPOINT="https://localhost:1", CERTIFICATE="/no/such.pem")
    answer = sent()
    assert (answer.state, answer.cause) == ("failed", "certificate")
    assert "/no/such.pem" in answer.detail


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, set_environment: Set) -> None:
    """Requests go through it, with its own authorisation, but for the hosts that are excepted."""
    set_environment(ENDPOINT="http://collector.example:4318")
    with Collector() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint.replace("//", "//me:secret@"))
        assert sent() == Answer("taken")
        proxy.state = "407"
        assert sent().cause == "http 407"
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
        set_environment(ENDPOINT="https://collector.example:4318")
        assert sent().cause == "proxy"
    assert proxy.requests[0].path == "http://collector.example:4318/v1/traces"
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
    monkeypatch.setenv("NO_PROXY", "localhost")
    with Collector() as collector:
        set_environment(ENDPOINT=collector.endpoint)
        assert sent() == Answer("taken")


# Answers -------------------------------------------------------------------------------------------------------------

ANSWERS = {
    "400": Answer("refused", "http 400", "Whatever"), "413": Answer("refused", "http 413", "Whatever"),
    "401": Answer("failed", "http 401", "Whatever"), "404": Answer("failed", "http 404", "Whatever"),
    "302": Answer("failed", "http 302", "Whatever"), "500": Answer("failed", "http 500", "Whatever"),
    "503": Answer("failed", "http 503", "Whatever", soon=True),
    "429 long": Answer("failed", "http 429", "Whatever", soon=True, wait=3600.0),
    "garbage": Answer("failed", "not an OTLP answer", "application/x-protobuf"),
    "page": Answer("failed", "not an OTLP answer", "text/html"),
    "reset": Answer("failed", "connection lost", "ConnectionError", soon=True, unanswered=True),
    "partial": Answer("taken", "partial success", "too old", rejected=1),
}  # fmt: skip


@pytest.mark.parametrize("state", ANSWERS)
def test_what_an_answer_means(state: str, set_environment: Set) -> None:
    """Statuses, broken answers and partial success are told apart: what to take apart, what to send again, what not."""
    assert RARELY > 1
    with Collector("400" if state == "400" else state) as collector:
        set_environment(ENDPOINT=collector.endpoint)
        data = DATA
        if state in ("400", "413"):
            span = ReadableSpan("poison" * 9000, SPAN.context, None, RESOURCE, {}, start_time=1, end_time=2)
            data = request([SpanEncoder(RESOURCE).span(span)[2]])
        sender = Sender(environment.target("spans"))
        assert sender.post(data, time.monotonic() + 5) == ANSWERS[state]
        sender.close()


def test_nobody_there_and_no_such_name(monkeypatch: pytest.MonkeyPatch, set_environment: Set) -> None:
    """A closed port and a name that nobody has are told apart."""
    collector = Collector()
    collector.stop()
    set_environment(ENDPOINT=collector.endpoint)
    assert sent() == Answer("failed", "connect", "ConnectionError", soon=True)
    set_environment(ENDPOINT="http://collector.invalid:4318")
    assert sent() == Answer("failed", "dns", "ConnectionError", soon=True)


@pytest.mark.parametrize("url", ["collector:4318", "nonsense", "http://[::1", "http://host:port"])
def test_an_address_that_is_none_raises_before_anything_is_sent(url: str, set_environment: Set) -> None:
    """The pipeline tells it; nothing is looked up."""
    set_environment(ENDPOINT=url)
    with pytest.raises((requests.RequestException, ValueError), match=r"Failed to parse|begins with http|Invalid IPv6"):
        Sender(environment.target("spans"))


@pytest.mark.parametrize("state", ["blackhole", "drip"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_try_ends_at_its_deadline(
    state: str, tls: bool, authority: trustme.CA, tmp_path: Path, set_environment: Set
) -> None:
    """However slowly a collector speaks, if at all; a byte now and then does not make it longer."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Collector(state, serving(authority) if tls else None) as collector:
        set_environment(ENDPOINT=collector.endpoint, CERTIFICATE=str(tmp_path / "ca.pem"))
        begun = time.monotonic()
        answer = sent(0.5)
        took = time.monotonic() - begun
    assert (answer.state, answer.cause) == ("failed", "timeout")
    assert took < 0.5 + 0.5 * max(1.0, SCALE)
    assert collector.spans == {}


def test_a_large_request_to_somebody_who_reads_slowly_ends_at_its_deadline(set_environment: Set) -> None:
    """Sending counts, too."""
    with Collector("blackhole") as collector:
        set_environment(ENDPOINT=collector.endpoint)
        sender = Sender(environment.target("spans"))
        begun = time.monotonic()
        answer = sender.post(b"x" * 64_000_000, begun + 0.5)
        assert time.monotonic() - begun < 0.5 + 0.5 * max(1.0, SCALE)
        sender.close()
    assert (answer.state, answer.cause) == ("failed", "timeout")


def test_closing_ends_a_try_that_is_under_way(set_environment: Set) -> None:
    """Who gives up need not wait for the collector."""
    with Collector("blackhole") as collector:
        set_environment(ENDPOINT=collector.endpoint)
        sender = Sender(environment.target("spans"))
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(sender.post(DATA, time.monotonic() + 30)))
        thread.start()
        while not (sender._try.connection and sender._try.connection.sock):
            time.sleep(0.01)
        sender.close()
        thread.join(5)
    assert [(answer.state, answer.cause) for answer in answers] == [("failed", "connection lost")]


def test_one_connection_serves_many_requests(set_environment: Set) -> None:
    """And one that the collector has closed in the meantime is replaced."""
    with Collector() as collector:
        set_environment(ENDPOINT=collector.endpoint)
        sender = Sender(environment.target("spans"))
        sockets = []
        for _ in range(5):
            assert sender.post(DATA, time.monotonic() + 5) == Answer("taken")
            (pool,) = sender._adapter.poolmanager.pools._container.values()
            sockets.append(pool.pool.queue[-1].sock)
        assert len(set(map(id, sockets))) == 1
        sockets[0].shutdown(2)
        answer = sender.post(DATA, time.monotonic() + 5)
        assert answer == Answer("taken") or answer.soon
        assert sender.post(DATA, time.monotonic() + 5) == Answer("taken")
        sender.close()


def test_the_address_for_people_has_no_secrets(set_environment: Set) -> None:
    """Neither passwords nor parameters of an address are told."""
    set_environment(TRACES_ENDPOINT="https://me:secret@collector.example:4318/v1/traces?key=secret")
    assert Sender(environment.target("spans")).where == "https://collector.example:4318/v1/traces"


def test_retry_after_is_seconds_or_a_date() -> None:
    """Whatever else it is says nothing."""
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    assert _wait("7") == 7.0
    assert 80 < _wait(format_datetime(soon, usegmt=True)) <= 90
    assert _wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for nothing in (None, "", "soon", "-1", "1.5", "9" * 9, "Wed, 99 Oct 2015 07:28:00 GMT"):
        assert _wait(nothing) in (None, 999_999_999.0)
