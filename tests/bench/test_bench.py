"""The benchmark runs and keeps its contract; its numbers are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema

ROOT = Path(__file__).parent.parent.parent


def test_bench_prints_a_ratio_for_sampled_and_unsampled_hops() -> None:
    """One short run prints both ratios in the form of the schema."""
    command = [sys.executable, "-m", "tests.bench.run", "--json", "--rounds", "3", "--hops", "100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    result = json.loads(done.stdout)
    jsonschema.validate(result, json.loads((Path(__file__).parent / "schema.json").read_text()))
    assert [row["variant"] for row in result["rows"]] == ["sampled", "unsampled"]
