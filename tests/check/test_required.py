"""required.toml is enforced: what an incident could not see has to be in the code, or in Prometheus."""

from __future__ import annotations

import time

import pytest

from rtobs.incident import required
from rtobs.incident.required import Requirement
from rtobs.incident.signals import SIGNALS
from rtobs.readiness import demands
from rtobs.readiness.code import Code
from rtobs.slo import project
from tests.check.support import READY
from tests.incident.support import fill
from tests.slo.support import EXAMPLE, needs_promtool
from tests.support.prometheus import OwnPrometheus


def toml(**named):
    return "".join(f'[[required]]\n{kind} = "{name}"\nmissed = "once"\n\n' for kind, name in named.items())


@pytest.mark.parametrize(
    ("kind", "there", "opened"),
    [
        ("route", "/orders", "rtobs.accept"),
        ("destination", "orders", "rtobs.consume or rtobs.publish"),
        ("connector", "crm-sync", "rtobs.job"),
        ("stage", "normalize", "rtobs.stage"),
        ("channel", "email", "rtobs.deliver"),
        ("provider", "fcm", "rtobs.deliver"),
        ("event", "pushed", "hop.event"),
    ],
)
def test_names_are_required_of_the_code(kind, there, opened, check):
    """A name that was missed has to be opened by the code; where it is, all is well."""
    assert check(files={"required.toml": toml(**{kind: there})})[0] == 0
    code, data, _ = check(files={"required.toml": toml(**{kind: "gone"})})
    assert code == 1
    assert data["findings"] == [
        {
            "about": "required",
            "place": "required.toml:2",
            "saw": f"saw no {kind} gone in the code",
            "do": f"open it with {opened} (it was missed in: once)",
        }
    ]


@pytest.mark.parametrize(
    ("signal", "added"),
    [
        ("queue-age", "rtobs.integrations.watch(client, ['orders'])"),
        ("promises", "rtobs.configure(slos='slo.yaml')"),
    ],
)
def test_signals_are_required_of_the_code(signal, added, check):
    """A signal that code has to give is missing until the code does what gives it."""
    files = {"required.toml": toml(signal=signal)}
    code, data, _ = check(files=files)
    assert (code, [one["saw"] for one in data["findings"]]) == (1, [f"saw nothing in the code that gives {signal}"])
    assert check(f"{READY}\n\ndef start(client):\n    {added}\n", files=files)[0] == 0


def test_signals_that_the_code_has(check):
    """Tenants, deliveries, handled messages and places are given by a service that opens hops and names tenants."""
    for signal in ("tenants", "deliveries", "messages", "onset"):
        assert check(files={"required.toml": toml(signal=signal)})[0] == 0
    _, data, _ = check(
        READY.replace("segment(tenant=", "note(tenant="), files={"required.toml": toml(signal="tenants")}
    )
    assert [one["saw"] for one in data["findings"]] == ["saw nothing in the code that gives tenants"]


def test_what_only_prometheus_shows_is_said(check):
    """Without a Prometheus a signal that code cannot show is a note, and fails nothing."""
    code, data, _ = check(files={"required.toml": toml(signal="traces")})
    assert code == 0
    assert data["notes"] == ["required, and only to be seen in Prometheus: traces; give --prometheus"]


@needs_promtool
def test_prometheus_is_asked(check, tmp_path):
    """With a Prometheus a signal has to have been there within the last hour; no answer at all is no verdict."""
    now = int(time.time())
    age = [(at, 1.0) for at in range(now - 1200, now - 5, 15)]
    fill(tmp_path / "prometheus", [('rtobs_queue_oldest_age_seconds{job="shop",destination="orders"}', age)])
    source = f"{READY}\n\ndef start(client):\n    rtobs.integrations.watch(client, [])\n"
    files = {"required.toml": toml(signal="queue-age") + toml(signal="versions") + toml(signal="traces")}
    with OwnPrometheus(tmp_path / "prometheus") as server:
        address = f"http://127.0.0.1:{server.port}"
        code, data, _ = check(source, "--prometheus", address, files=files)
    assert code == 1
    assert [one["saw"] for one in data["findings"]] == [
        "saw nothing of versions in Prometheus within the last hour",
        "saw nothing of traces in Prometheus within the last hour",
    ]
    code, out, errors = check(source, "--prometheus", address, files=files)
    assert (code, out) == (2, "")
    assert "cannot be asked" in errors


def test_a_file_that_is_named_has_to_be_there(check):
    """A file of requirements that is named and does not exist is a finding; one that is only looked for is not."""
    code, data, _ = check(modules=["json"])
    assert code == 0
    code, data, _ = check(READY, "--required", "gone.toml")
    assert (code, [one["about"] for one in data["findings"]]) == (1, ["required"])
    assert data["findings"][0]["saw"] == "it cannot be read (No such file or directory)"


def test_what_an_incident_adds_is_what_a_check_reads(tmp_path):
    """Every signal that an incident can lack is one that a check knows how to demand."""
    file = tmp_path / "required.toml"
    required.extend(file, SIGNALS, "2027-01-15 08:00 UTC, notify: RtobsSLOBurn")
    wanted = required.read(file)
    declaration = project.load(EXAMPLE).declaration
    findings = list(demands.unmet(wanted, Code(), declaration, None))
    told = len(findings) + len(demands.unasked(wanted))
    assert told == len(SIGNALS)
    assert list(demands.unmet([Requirement("event", "x", "m", "p")], Code(), None, None))
