"""The commands: what they print, how they end, and what they say when something is missing."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest

from rtobs.slo import SLO, Declaration, Ratio, Step, recorded
from tests.slo.support import EXAMPLE, PLAYBOOKS, needs_alertmanager, needs_promtool, promtool
from tests.support.prometheus import OwnPrometheus

SCHEMA = Path(recorded.__file__).with_name("status.schema.json")
RTOBS = Path(sys.executable).with_name("rtobs")


def rtobs(*arguments, cwd, **environment):
    """Run ``rtobs slo``; return exit code, output and errors."""
    done = subprocess.run(
        [RTOBS, "slo", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "TERM": "dumb", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def small(folder, objective=99):
    """Write a small declaration with its playbooks; return its path."""
    (folder / "slo.yaml").write_text(
        "apiVersion: rtobs/v1\nservice: notify\nowner: me\npolicy: [{budget_left: 10, action: Stop releasing.}]\n"
        f"playbooks: {PLAYBOOKS}\nslos:\n  - name: dead-letter\n    description: Few.\n    objective: {objective}\n"
        "    playbook: dead-letter-growth\n    sli: {kind: ratio, hop: consume, bad: [dead_lettered]}\n"
    )
    return folder / "slo.yaml"


def test_build_writes_and_says_so(tmp_path):
    """A build ends with 0 and says how many files are where; the next one says what it took away."""
    assert rtobs("build", EXAMPLE, "--out", "made", cwd=tmp_path) == (0, "24 files in made\n", "")
    assert (tmp_path / "made" / "rules" / "slo-api-ack.yaml").exists()
    code, out, _ = rtobs("build", small(tmp_path), "--out", "made", cwd=tmp_path)
    assert (code, out) == (0, "18 files in made, 6 of the last build taken away\n")
    assert not (tmp_path / "made" / "rules" / "slo-api-ack.yaml").exists()


def test_a_broken_declaration_writes_nothing(tmp_path):
    """A mistake ends the build with 1, is told on standard error, and leaves no file behind."""
    code, out, errors = rtobs("build", small(tmp_path, 100), "--out", "made", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert errors == (
        "The SLO declaration has 1 mistake:\n"
        f'  {tmp_path}/slo.yaml:9: SLO "dead-letter", objective: saw 100; '
        "give a percentage above 0 and below 100, such as 99.9\n"
    )
    assert not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    """Where a file stands in the folder's place, the build ends with 1 and says so."""
    (tmp_path / "made").write_text("mine")
    code, _, errors = rtobs("build", EXAMPLE, "--out", "made", cwd=tmp_path)
    assert code == 1
    assert (
        errors == "rtobs slo: made cannot be written (File exists); give a folder that can be. Nothing was changed.\n"
    )
    assert (tmp_path / "made").read_text() == "mine"


@pytest.mark.parametrize("scale", ["0.5", "0", "-1", "nan", "1e9"])
def test_a_time_scale_out_of_range(scale, tmp_path):
    """A time scale that means nothing is a wrong argument."""
    code, _, errors = rtobs("build", EXAMPLE, "--out", "made", f"--time-scale={scale}", cwd=tmp_path)
    assert code == 2
    assert errors.endswith("is out of range; give 1 to 10000.\n")


@pytest.mark.parametrize("module", ["yaml", "grafana_foundation_sdk"])
def test_a_missing_extra_is_named(module, tmp_path):
    """Without one of the extra's packages the build ends with 2 and says what to install."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    code, _, errors = rtobs("build", EXAMPLE, "--out", "made", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 2
    assert module in errors.replace("pyyaml", "yaml")
    assert 'pip install "rtobs[slo]"' in errors
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@needs_promtool
@needs_alertmanager
@pytest.mark.timeout(280)
def test_check_runs_promtool_and_amtool(tmp_path):
    """A check tells what to know, runs Prometheus' and Alertmanager's own tools, and ends with 0."""
    code, out, errors = rtobs("check", small(tmp_path), cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert f"{tmp_path}/slo.yaml: 1 SLOs, 6 playbooks, 5 rule files\n" in out
    assert "warning: " in out
    assert "slo.yaml: saw no tenants, so that nobody is told whether one or all are affected; name the most" in out
    assert "promtool: 5 rule files and 5 test files are fine\n" in out
    assert "amtool: alertmanager.yaml is fine\n" in out


def test_check_without_promtool(tmp_path):
    """Where Prometheus' tools are not installed, a check says what was not checked and ends with 0."""
    code, out, _ = rtobs("check", small(tmp_path), cwd=tmp_path, PATH=str(RTOBS.parent))
    assert code == 0
    assert "promtool is not installed, so the rules were not checked; on Debian and Ubuntu it comes with promet" in out
    assert "amtool is not installed, so alertmanager.yaml was not checked" in out


@pytest.mark.parametrize("name", ["promtool", "amtool"])
def test_check_fails_where_a_tool_says_no(name, tmp_path):
    """What promtool or amtool refuses ends the check with 1, with their own words."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / name).write_text("#!/bin/sh\necho nonsense at line 7\nexit 1\n")
    (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), str(RTOBS.parent), "/bin"))
    code, _, errors = rtobs("check", small(tmp_path), cwd=tmp_path, PATH=path)
    assert code == 1
    assert errors.startswith(f"rtobs slo: {name} check")
    assert errors.endswith("says no:\nnonsense at line 7\n")


# Status --------------------------------------------------------------------------------------------------------------

JOBS = SLO(
    "jobs", 99, Ratio("job", ("late",)), "In time.", "backlog", "me", policy=(Step(50, "Look."), Step(10, "Stop."))
)
LEFT, COVERED, BURN = recorded.NAMES
SPEED = "burns 0.5 times as fast as it may"


@pytest.mark.parametrize(
    ("left", "covered", "code", "line"),
    [
        (0.9, 1.0, recorded.OK, f"jobs    90% of the budget left  {SPEED}  100% of 30d known"),
        (0.5, 1.0, recorded.REACHED, "      -> Look."),
        (0.1, 0.3, recorded.REACHED, "      -> Stop."),
        (0.0, 1.0, recorded.SPENT, "      -> Stop."),
        (
            -11.43,
            1.0,
            recorded.SPENT,
            "jobs  -999% of the budget left  burns 0.5 times as fast as it may  100% of 30d known",
        ),
        (-11.43, 0.05, recorded.OK, "jobs  too early to say  burns 0.5 times as fast as it may  5% of 30d known"),
        (float("nan"), 1.0, recorded.UNKNOWN, "jobs  nothing is known: no series, or no traffic, in 30d"),
        (None, None, recorded.UNKNOWN, "jobs  nothing is known: no series, or no traffic, in 30d"),
    ],
)
def test_a_budget_is_judged(left, covered, code, line):
    """What is left of a budget, and how much of its window is known, decide what is told and how it ends."""
    answers = {LEFT: {"jobs": left}, COVERED: {"jobs": covered}, BURN: {"jobs": 0.5}}
    budgets = recorded.judge(Declaration("notify", (JOBS,)), answers)
    assert recorded.exit_code(budgets) == code
    assert line in recorded.lines(budgets)


def test_the_worst_budget_decides():
    """A budget that is used up outranks a step of a policy, and that outranks one of which nothing is known."""
    made = [
        recorded.Budget(JOBS, left, 1.0, None, step) for left, step in ((None, None), (0.4, JOBS.policy[0]), (-1, None))
    ]
    assert recorded.exit_code(made) == recorded.SPENT
    assert recorded.exit_code(made[:2]) == recorded.REACHED
    assert recorded.exit_code(made[:1]) == recorded.UNKNOWN
    assert recorded.exit_code([]) == recorded.OK
    assert "no traffic now" in recorded.lines(made)[1]


@pytest.mark.slow
@needs_promtool
def test_status_asks_a_real_prometheus(tmp_path):
    """Budgets that a real Prometheus holds are printed, worst outcome as exit code; what it does not know is said."""
    server = OwnPrometheus(tmp_path / "prometheus")
    now = time.time()
    recorded = {LEFT: -0.25, COVERED: 0.5, BURN: 2.0}
    lines = [f"# TYPE {name} gauge" + "".join(
        f'\n{name}{{slo="dead-letter",service="notify"}} {value} {now - age:.3f}' for age in range(600, 0, -15)
    ) for name, value in recorded.items()]  # fmt: skip
    (tmp_path / "recorded.txt").write_text("\n".join([*lines, "# EOF", ""]))
    content, said = promtool(
        "tsdb", "create-blocks-from", "openmetrics", "recorded.txt", "prometheus/data", cwd=tmp_path
    )
    assert content, said
    with server:
        address = f"http://127.0.0.1:{server.port}"
        code, out, errors = rtobs("status", small(tmp_path), "--prometheus", address, cwd=tmp_path)
        assert (code, errors) == (4, "")
        assert out == (
            "dead-letter   -25% of the budget left  burns 2.0 times as fast as it may  50% of 30d known\n"
            "             -> Stop releasing.\n"
        )
        code, out, _ = rtobs("status", small(tmp_path), "--prometheus", address, "--json", cwd=tmp_path)
        data = json.loads(out)
        jsonschema.validate(data, json.loads(SCHEMA.read_text()))
        assert (code, data["code"], data["service"]) == (4, 4, "notify")
        assert data["slos"][0] | {"left": -0.25, "burn": 2.0, "action": "Stop releasing."} == data["slos"][0]
        code, out, _ = rtobs("status", EXAMPLE, "--prometheus", address, cwd=tmp_path)
        assert code == 4
        assert "api-ack           nothing is known: no series, or no traffic, in 30d\n" in out


@pytest.fixture
def answering():
    """A server that gives one answer to everything; returns how to set it, and its address."""
    answer = {"status": 200, "body": b"{}"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield answer, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "why"),
    [
        (200, b"<html>", "what it answered is not from Prometheus"),
        (200, b"[]", "what it answered is not from Prometheus"),
        (200, json.dumps({"data": {"result": [{"metric": {"slo": "x"}, "value": [1]}]}}).encode(), "is not from"),
        (503, b"", "it answered 503"),
    ],
)
def test_a_server_that_is_no_prometheus(code, body, why, answering, tmp_path):
    """What answers otherwise than Prometheus ends the status with 1 and says so."""
    answer, address = answering
    answer.update(status=code, body=body)
    ended, out, errors = rtobs("status", small(tmp_path), "--prometheus", address, cwd=tmp_path)
    assert (ended, out) == (1, "")
    assert why in errors
    assert errors.startswith(f"rtobs slo: Prometheus at {address} cannot be asked")


@pytest.mark.parametrize(
    ("address", "code", "why"),
    [
        ("http://127.0.0.1:9", 1, "refused"),
        ("localhost:9090", 2, "is no address; give one such as http://localhost:9090"),
        ("file:///etc/passwd", 2, "is no address"),
    ],
)
def test_an_address_that_does_not_answer(address, code, why, tmp_path):
    """Where nobody answers, or what was given is no address, the status says what to do."""
    ended, _, errors = rtobs("status", small(tmp_path), "--prometheus", address, cwd=tmp_path)
    assert ended == code
    assert why in errors
