"""``rtobs incident``: asked once, or by Alertmanager, about what a real Prometheus knows."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from rtobs import incident
from rtobs.incident import required
from tests.incident import support
from tests.incident.support import RTOBS, rtobs
from tests.slo.support import EXAMPLE, needs_alertmanager, needs_promtool
from tests.support.prometheus import OwnAlertmanager, OwnPrometheus
from tests.support.timing import wait_until

SCHEMA = json.loads((Path(incident.__file__).parent / "incident.schema.json").read_text())
NOBODY = "http://127.0.0.1:9"
SLOW, FAILED = "a" * 31 + "1", "b" * 31 + "2"
END_TO_END = "rtobs_delivery_end_to_end_seconds_bucket"
EXEMPLARS = f"""\
# TYPE rtobs_delivery_duration_seconds histogram
rtobs_delivery_duration_seconds_bucket{{provider="fcm",result="failed",le="+Inf"}} 3 # {{trace_id="{FAILED}"}} 0.2
# TYPE rtobs_delivery_end_to_end_seconds histogram
{END_TO_END}{{channel="push",le="2.5"}} 1 # {{trace_id="{"c" * 32}"}} 1.2
{END_TO_END}{{channel="push",le="+Inf"}} 2 # {{trace_id="{SLOW}"}} 9.5
# EOF
"""


def post(*alerts):
    """Return what Alertmanager posts: of each alert its labels, since when, and until when or None."""
    return {"version": "4", "groupKey": "{}", "status": "firing", "receiver": "rtobs", "alerts": [
        {
            "status": "resolved" if until else "firing",
            "labels": labels,
            "annotations": {},
            "startsAt": datetime.fromtimestamp(since, UTC).isoformat(),
            "endsAt": datetime.fromtimestamp(until, UTC).isoformat() if until else "0001-01-01T00:00:00Z",
        }
        for labels, since, until in alerts
    ]}  # fmt: skip


def burn(**more):
    found = {"alertname": "RtobsSLOBurn", "service": "notify", "slo": "delivery-5s", "severity": "page"}
    return {**found, "playbook": "downstream-vendor-outage", **more}


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A Prometheus that saw a token run out half an hour ago; when that was, and its address."""
    folder = tmp_path_factory.mktemp("history")
    now = int(time.time()) // 30 * 30
    began = now - 1800
    support.fill(folder / "prometheus", support.expired_token(began, now))
    with (
        support.exporter(EXEMPLARS) as port,
        OwnPrometheus(folder / "prometheus", jobs={"notify-worker": [port]}) as server,
    ):
        query = f'{END_TO_END}{{job="notify-worker"}}'
        wait_until(lambda: server.values(query, "le"), 20)
        yield began, f"http://127.0.0.1:{server.port}"


@pytest.fixture
def webhook(history, tmp_path):
    """The post that told of it, as a file."""
    path = tmp_path / "webhook.json"
    path.write_text(json.dumps(post((burn(), history[0] + 180, None))))
    return path


@needs_promtool
def test_a_webhook_becomes_a_page(history, webhook, tmp_path):
    """Of Alertmanager's post and what Prometheus knows comes a page with cause, cost, traces, change and playbook."""
    began, address = history
    code, out, errors = rtobs("incident", EXAMPLE, "--webhook", webhook, "--prometheus", address, cwd=tmp_path)
    assert (code, errors) == (0, "")
    lines = dict(re.findall(r"^- \*\*(.+?)\*\*: (.*)$", out, re.MULTILINE))
    assert out.startswith("# notify: RtobsAuthFailures, RtobsSLOBurn\n")
    since = datetime.fromtimestamp(began, UTC)
    first = datetime.strptime(lines["Since"][:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert 0 <= (first - since).total_seconds() <= 120
    assert lines["Since"].endswith("and it goes on")
    assert re.search(r"delivery-5s: [\d,]+ of [\d,]+ events bad \(\d\d\.\d%\)", lines["Promises"])
    burned = re.search(r"([\d.]+)% of the budget burned, 74% left", lines["Promises"])
    assert 2 < float(burned[1]) < 5  # 17,640 of 20 * 0.01 a second in 30 days
    assert "(13% of the window known)" in lines["Promises"]
    assert lines["Affected"].startswith("3 of 3 active tenants; tenants acme (")
    assert "channels push (" in lines["Affected"]
    assert lines["Began at"].startswith("deliver fcm, ")
    assert lines["Errors"].startswith("auth at fcm (")
    assert set(lines["Traces"].split(", ")) == {FAILED, SLOW}
    assert lines["Changed"] == "notify-worker is now 1.5"
    assert lines["Playbook"].startswith("[api-auth-failures](https://runbooks.example.com/notify/api-auth-failures.md)")
    assert "next downstream-vendor-outage (" in lines["Playbook"]
    assert lines["Also, and silent because of the above"] == "RtobsSLOBurnSlow"


@needs_promtool
def test_the_same_question_has_the_same_answer(history, webhook, tmp_path):
    """Asked twice about a time that has passed, the command prints the same to the byte, as JSON by its schema."""
    began, address = history
    times = [datetime.fromtimestamp(at, UTC).isoformat() for at in (began - 600, began + 1500)]
    command = ["incident", EXAMPLE, "--from", times[0], "--to", times[1], "--prometheus", address, "--json"]
    (code, first, errors), (_, second, _) = (rtobs(*command, cwd=tmp_path) for _ in range(2))
    assert (code, errors, first) == (0, "", second)
    data = json.loads(first)
    jsonschema.validate(data, SCHEMA)
    assert (data["ongoing"], data["end"]) == (False, began + 1500)
    assert [one["labels"]["alertname"] for one in data["alerts"]] == ["RtobsAuthFailures", "RtobsSLOBurn"]
    assert (data["first"]["place"], data["first"]["who"]) == ("deliver", "fcm")
    assert abs(data["first"]["at"] - began) <= 120


@needs_promtool
def test_at_the_end_there_is_a_draft_and_what_was_missing(history, tmp_path):
    """Closing an incident drafts the postmortem, and adds what it could not see to required.toml, once."""
    _, address = history
    command = ["incident", EXAMPLE, "--from", "40m", "--close", "--prometheus", address, "--required", "required.toml"]
    code, out, errors = rtobs(*command, cwd=tmp_path)
    assert (code, errors) == (0, "rtobs incident: 1 added to required.toml\n")
    assert out.startswith("# Postmortem (draft): notify: ")
    unseen = out.partition("## What could we not see?")[2].partition("##")[0]
    assert '- age of messages that wait: nothing was answered (`signal = "queue-age"`)' in unseen
    (one,) = required.read(tmp_path / "required.toml")
    assert (one.kind, one.name) == ("signal", "queue-age")
    assert "notify: RtobsAuthFailures, RtobsSLOBurn" in one.missed
    before = (tmp_path / "required.toml").read_text()
    assert rtobs(*command, cwd=tmp_path)[2] == ""
    assert (tmp_path / "required.toml").read_text() == before


@needs_promtool
def test_a_time_without_incident(history, tmp_path):
    """Where nothing fired and nothing was unusual, the page says so and the command ends with 3."""
    began, address = history
    times = [datetime.fromtimestamp(began - ago, UTC).isoformat() for ago in (2400, 900)]
    command = ["incident", EXAMPLE, "--from", times[0], "--to", times[1], "--prometheus", address]
    code, out, errors = rtobs(*command, cwd=tmp_path)
    assert (code, errors) == (3, "")
    assert out.startswith("# notify: no alert fires\n")
    assert "- **Began at**: unknown" in out
    assert "- **Playbook**: unknown" in out


@needs_promtool
def test_an_empty_prometheus_knows_nothing(tmp_path):
    """Where Prometheus has no data every line that needs some says unknown, and no time is said to be quiet."""
    hook = tmp_path / "webhook.json"
    hook.write_text(json.dumps(post((burn(), time.time() - 600, None))))
    with OwnPrometheus(tmp_path / "empty") as server:
        address = f"http://127.0.0.1:{server.port}"
        code, out, errors = rtobs("incident", EXAMPLE, "--webhook", hook, "--prometheus", address, cwd=tmp_path)
        nothing = rtobs("incident", EXAMPLE, "--from", "2h", "--prometheus", address, cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert nothing[0] == 1
    assert "Prometheus has nothing of the promises of notify in that time; see that it evaluates" in nothing[2]
    for part in ("Promises", "Began at", "Errors", "Traces", "Changed"):
        assert f"- **{part}**: unknown" in out
    assert "- **Affected**: tenants unknown" in out
    assert "- **Playbook**: [downstream-vendor-outage]" in out


def test_without_prometheus_it_tells_what_the_alerts_say(tmp_path):
    """Where Prometheus does not answer the page is told all the same, with 1 and why; nothing is required."""
    command = ["incident", EXAMPLE, "--webhook", "-", "--prometheus", NOBODY, "--close", "--required", "required.toml"]
    code, out, errors = rtobs(*command, cwd=tmp_path, given=json.dumps(post((burn(), time.time() - 60, None))))
    assert code == 1
    assert errors.startswith(f"rtobs incident: Prometheus at {NOBODY} cannot be asked (")
    assert "refused" in errors
    assert "- **Promises**: unknown" in out
    assert "- **Playbook**: [downstream-vendor-outage]" in out
    assert not (tmp_path / "required.toml").exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "this is not JSON; Alertmanager sends JSON"),
        ("[" * 100_000, "this is not JSON; Alertmanager sends JSON"),
        ("{}", "This is not what Alertmanager sends to a webhook; give a JSON object with alerts"),
        (json.dumps(post()), "saw no alert of service notify, but no alerts."),
        (json.dumps(post((burn(service="shop"), 1.8e9, None))), "saw no alert of service notify, but shop."),
    ],
)
def test_what_is_no_webhook_of_ours(given, why, tmp_path):
    """What is no webhook, or about another service, is a wrong argument and is told in one line."""
    code, out, errors = rtobs("incident", EXAMPLE, "--webhook", "-", cwd=tmp_path, given=given)
    assert (code, out) == (2, "")
    assert why in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give one of --webhook, --from and --listen."),
        (("--webhook", "-", "--from", "2h"), "give one of --webhook, --from and --listen."),
        (("--webhook", "-", "--to", "2h"), "--to needs --from"),
        (("--webhook", "gone.json"), "--webhook gone.json cannot be read (No such file or directory)."),
        (("--from", "2h"), "--from needs --prometheus"),
        (("--from", "soon", "--prometheus", NOBODY), "--from 'soon' is no time; give one such as 2027-01-15T08:00Z"),
        (("--from", "1h", "--to", "2h", "--prometheus", NOBODY), "--from has to be before --to"),
        (("--from", "2h", "--prometheus", "localhost:9090"), "'localhost:9090' is no address"),
        (("--from", "2h", "--prometheus", NOBODY, "--time-scale", "0"), "--time-scale 0 is out of range"),
        (("--from", "2h", "--prometheus", NOBODY, "--required", "r.toml"), "--required needs --close and --prometheus"),
        (("--listen", "127.0.0.1:0"), "--listen needs --prometheus"),
        (("--listen", "127.0.0.1:0", "--prometheus", NOBODY), "--listen needs --out"),
        (("--listen", "9099", "--prometheus", NOBODY, "--out", "o"), "--listen '9099' is no address"),
        (("--listen", "127.0.0.1:99999", "--prometheus", NOBODY, "--out", "o"), "'127.0.0.1:99999' is no address"),
    ],
)
def test_wrong_arguments(arguments, why, tmp_path):
    """A wrong argument ends the command with 2 and says what to give."""
    code, out, errors = rtobs("incident", EXAMPLE, *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert errors.startswith("rtobs incident: ")
    assert why in errors


def test_hostile_labels_stay_text(tmp_path):
    """Markup, HTML, links and lines in labels come out as text of one line."""
    evil = "x](http://evil.example) <script>alert(1)</script>\n# Owned\n![a](b) `c` **d** www.evil.example"
    hook = json.dumps(post((burn(alertname=evil, destination=evil), time.time() - 60, None)))
    code, out, _ = rtobs("incident", EXAMPLE, "--webhook", "-", "--close", cwd=tmp_path, given=hook)
    assert code == 0
    assert "<script>" not in out
    assert "\n# Owned" not in out
    assert "](http://evil" not in out
    assert "http://evil" not in out


# Alertmanager calls ---------------------------------------------------------------------------------------------------


class Listening:
    """``rtobs incident --listen`` on a free port."""

    def __init__(self, folder, address, *more):
        self.folder = folder
        out = ["--out", str(folder / "told"), "--required", str(folder / "required.toml")]
        self.process = subprocess.Popen(
            [RTOBS, "incident", str(EXAMPLE), "--listen", "127.0.0.1:0", "--prometheus", address, *out, *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        self.url = self.process.stderr.readline().rpartition(" ")[2].strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.said = self.process.communicate(timeout=20)

    def post(self, body, headers=None, method="POST"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def files(self):
        return sorted(path.name for path in (self.folder / "told").glob("*"))


@needs_promtool
def test_each_incident_has_its_pages(history, tmp_path):
    """Posts of one incident make one page that grows; when all has ended there is a draft, and the next is another."""
    began, address = history
    lag = {"alertname": "RtobsLagGrowing", "service": "notify", "severity": "page", "playbook": "connector-backlog"}
    with Listening(tmp_path, address) as listening:
        assert listening.post(post((burn(), began + 180, None))) == (200, "")
        first = listening.files()
        assert [name.partition(".")[2] for name in first] == ["json", "md"]
        assert listening.post(post((lag, began + 240, None)))[0] == 200
        assert listening.files() == first
        page = (tmp_path / "told" / first[1]).read_text()
        assert page.startswith("# notify: RtobsAuthFailures, RtobsSLOBurn, RtobsLagGrowing\n")
        assert listening.post(post((burn(), began + 180, began + 900)))[0] == 200
        assert listening.files() == first
        assert listening.post(post((lag, began + 240, began + 960)))[0] == 200
        name = first[1].removesuffix(".md")
        assert listening.files() == [f"{name}.json", f"{name}.md", f"{name}.postmortem.md"]
        data = json.loads((tmp_path / "told" / f"{name}.json").read_text())
        jsonschema.validate(data, SCHEMA)
        assert (data["ongoing"], data["end"]) == (False, began + 960)
        assert listening.post(post((burn(), began + 1500, None)))[0] == 200
        assert len(listening.files()) == 5
    assert listening.process.returncode == 0
    out, errors = listening.said
    assert len(out.splitlines()) == 2 + 2 + 2 + 3 + 2
    assert errors == f"rtobs incident: 2 added to {tmp_path}/required.toml\n"
    named = [one.name for one in required.read(tmp_path / "required.toml")]
    assert named == ["queue-age", "traces"]  # its exemplars are of now, not of then


@needs_promtool
@needs_alertmanager
def test_a_real_alertmanager_is_heard(history, tmp_path):
    """What a real Alertmanager posts when an alert fires, and when it is resolved, makes page and draft."""
    began, address = history
    with Listening(tmp_path, address) as listening:
        wait = {"group_wait": "0s", "group_interval": "1s"}
        receiver = {"name": "rtobs", "webhook_configs": [{"url": listening.url, "send_resolved": True}]}
        config = {"route": {"receiver": "rtobs", **wait}, "receivers": [receiver]}
        with OwnAlertmanager(tmp_path / "alertmanager", config) as manager:

            def fire(until):
                starts, ends = (datetime.fromtimestamp(at, UTC).isoformat() for at in (began + 180, until))
                body = json.dumps([{"labels": burn(), "startsAt": starts, "endsAt": ends}]).encode()
                api = f"http://127.0.0.1:{manager.port}/api/v2/alerts"
                headers = {"Content-Type": "application/json"}
                urllib.request.urlopen(urllib.request.Request(api, body, headers), timeout=10).close()

            fire(time.time() + 3600)
            wait_until(lambda: len(listening.files()) == 2, 30)
            fire(time.time() - 1)
            wait_until(lambda: len(listening.files()) == 3, 30)
        data = json.loads((tmp_path / "told" / listening.files()[0]).read_text())
    jsonschema.validate(data, SCHEMA)
    assert (data["ongoing"], data["first"]["who"], data["traces"]) == (False, "fcm", [SLOW, FAILED])
    assert data["suggestions"][0]["playbook"] == "api-auth-failures"


def test_what_is_no_post_of_alertmanagers(tmp_path):
    """Anything else than Alertmanager's posts is refused with what is wrong, writes nothing, and hurts nobody."""
    with Listening(tmp_path, NOBODY) as listening:
        for body, status, why in (
            (b"", 400, "This is not JSON"),
            (b"\xff\xfe{", 400, "This is not JSON"),
            (b"[" * 100_000, 400, "This is not JSON"),
            (b"{}", 400, "This is not what Alertmanager sends"),
            (b'{"alerts": [{"labels": {}, "startsAt": "soon"}]}', 400, "This is not what Alertmanager sends"),
        ):
            assert listening.post(body)[0] == status
            assert why in listening.process.stderr.readline()
        assert listening.post(b"{}", {"Content-Length": str(4 * 1024 * 1024 + 1)})[0] == 413
        assert listening.post(b"{}", {"Content-Length": "x"})[0] == 411
        assert listening.post(b"{}", method="PUT")[0] == 501
        assert listening.post(post((burn(service="shop"), time.time(), None))) == (200, "")
        assert not (tmp_path / "told").exists()
        assert listening.post(post((burn(), time.time(), None)))[0] == 200
        assert len(listening.files()) == 2
    assert listening.process.returncode == 0


def test_what_cannot_be_written_is_posted_again(tmp_path):
    """Where the page cannot be written the answer is 500, so that Alertmanager tries again, and then it is there."""
    (tmp_path / "told").write_text("in the way")
    with Listening(tmp_path, NOBODY) as listening:
        now = time.time()
        over = post((burn(), now - 60, now))
        assert listening.post(over)[0] == 500
        (tmp_path / "told").unlink()
        assert listening.post(over)[0] == 200
        assert [name.partition(".")[2] for name in listening.files()] == ["json", "md", "postmortem.md"]


def test_a_port_that_is_taken(tmp_path):
    """Where the port is taken the command ends with 2 and says so."""
    with support.exporter("") as port:
        command = ["incident", EXAMPLE, "--listen", f"127.0.0.1:{port}", "--prometheus", NOBODY, "--out", "told"]
        code, _, errors = rtobs(*command, cwd=tmp_path)
    assert code == 2
    assert errors == f"rtobs incident: --listen 127.0.0.1:{port} cannot be used (Address already in use).\n"
