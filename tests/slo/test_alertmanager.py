"""Who hears of what: the generated cases, on a real Alertmanager and on the part of its rules that we have."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from rtobs.slo import alertmanager
from tests.slo.support import needs_alertmanager
from tests.support.prometheus import free_port
from tests.support.timing import wait_until

PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


@needs_alertmanager
def test_amtool_accepts_the_configuration(built, tmp_path):
    """`amtool check-config` finds nothing wrong with the generated configuration."""
    (tmp_path / "alertmanager.yaml").write_text(built["alertmanager.yaml"])
    done = subprocess.run(
        ["amtool", "check-config", "alertmanager.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 inhibit rules" in done.stdout


@contextlib.contextmanager
def running(folder, config):
    """Run a real Alertmanager with *config* on a free loopback port; yield a function that asks its API."""
    (folder / "alertmanager.yaml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    command = [
        PROGRAM, f"--config.file={folder / 'alertmanager.yaml'}", f"--storage.path={folder / 'data'}",
        f"--web.listen-address={address}", "--cluster.listen-address=",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:

        def ask(path, body=None):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                f"http://{address}{path}", data, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=5) as answer:
                text = answer.read()
            return json.loads(text) if text.startswith((b"[", b"{")) else text

        def ready():
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return ask("/-/ready")
            except (urllib.error.URLError, OSError):
                return None

        wait_until(ready, 30)
        yield ask
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
@needs_alertmanager
def test_a_real_alertmanager_hears_the_same(built, tmp_path):
    """Each generated case, sent to Alertmanager: who is told, and who is inhibited, is what the case and we say."""
    config = yaml.safe_load(built["alertmanager.yaml"])
    cases = json.loads(built["tests/alertmanager.json"])
    assert len(cases) >= 12
    told = {}
    with running(tmp_path, built["alertmanager.yaml"]) as ask:
        now = datetime.now(UTC)
        for number, case in enumerate(cases):
            ask(
                "/api/v2/alerts",
                [
                    {
                        "labels": {**labels, "case": f"{number}", "position": f"{index}"},
                        "startsAt": now.isoformat(),
                        "endsAt": (now + timedelta(minutes=5)).isoformat(),
                    }
                    for index, labels in enumerate(case["firing"])
                ],
            )

            def seen(number=number, case=case):
                found = [alert for alert in ask("/api/v2/alerts") if alert["labels"]["case"] == f"{number}"]
                settled = len(found) == len(case["firing"]) and all(
                    alert["status"]["state"] in {"active", "suppressed"} for alert in found
                )
                return found if settled else None

            found = wait_until(seen, 20)
            time.sleep(0.2)  # what inhibits is looked up beside the API
            heard = {}
            for alert in sorted(wait_until(seen, 5), key=lambda alert: int(alert["labels"]["position"])):
                if alert["status"]["state"] == "active":
                    receivers = [receiver["name"] for receiver in alert["receivers"]]
                    heard.setdefault(receivers[0], []).append(int(alert["labels"]["position"]))
            told[case["name"]] = heard
            gone = [{"labels": alert["labels"], "endsAt": now.isoformat()} for alert in found]
            ask("/api/v2/alerts", gone)
            wait_until(lambda: not ask("/api/v2/alerts?active=true&inhibited=true"), 20)
    assert told == {case["name"]: case["heard"] for case in cases}
    assert told == {case["name"]: alertmanager.heard(config, case["firing"]) for case in cases}


@pytest.mark.parametrize(
    ("matcher", "labels", "matches"),
    [
        ('a="x"', {"a": "x"}, True),
        ('a="x"', {}, False),
        ('a!="x"', {}, True),
        ('a!=""', {}, False),
        ('a=~"x|y"', {"a": "y"}, True),
        ('a=~"x|y"', {"a": "xy"}, False),
        ('a="say \\"x\\""', {"a": 'say "x"'}, True),
    ],
)
def test_matchers(matcher, labels, matches):
    """A matcher looks at one label; what is missing is empty, and an expression has to match all of it."""
    config = {"route": {"receiver": "no", "routes": [{"matchers": [matcher], "receiver": "yes"}]}, "inhibit_rules": []}
    assert alertmanager.heard(config, [labels]) == {"yes" if matches else "no": [0]}
