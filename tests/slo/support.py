"""What the tests of the SLO room share: the mission's four SLOs, what is built of them, and Prometheus' own tools."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rtobs.slo import project

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "slo" / "slo.yaml"
PLAYBOOKS = ROOT / "docs" / "playbooks"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; run `make brokers` on Debian or Ubuntu"
)
needs_alertmanager = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="Alertmanager is not installed; run `make brokers` on Debian or Ubuntu"
)


def built():
    """Return the files that are made of the example, by path."""
    return project.build(project.load(EXAMPLE))


def promtool(*arguments, cwd):
    """Run promtool; return whether it is content, and what it says."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def check_rules(folder, *files):
    """Return what promtool finds wrong with rule files, most strictly."""
    content, said = promtool("check", "rules", "--lint=all", "--lint-fatal", *files, cwd=folder)
    return "" if content else said


def run_cases(folder, rules, test, names=None):
    """Run the cases of one test file, all or some, against *rules*; return what promtool says of those that fail."""
    (folder / "rules").mkdir(parents=True, exist_ok=True)
    (folder / "tests").mkdir(exist_ok=True)
    chosen = copy.copy(test)
    if names is not None:
        chosen["tests"] = [case for case in test["tests"] if case["name"] in names]
        assert len(chosen["tests"]) == len(names), f"{set(names) - {case['name'] for case in test['tests']}} not there"
    (folder / chosen["rule_files"][0].removeprefix("../")).write_text(rules, encoding="utf-8")
    (folder / "tests" / "chosen.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
    content, said = promtool("test", "rules", "tests/chosen.yaml", cwd=folder)
    return "" if content else said
