"""The benchmark runs, keeps its contract and hides nothing; its numbers are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.bench import claims, page, tables
from tests.bench.process import ROOT
from tests.bench.run import PARTS
from tests.bench.variants import ROWS

SCHEMA = json.loads((Path(__file__).parent / "schema.json").read_text())


def _bench(*arguments):
    command = [sys.executable, "-m", "tests.bench.run", "--json", "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    jsonschema.validate(result, SCHEMA)
    return result


def test_cpu_time_and_memory_of_a_row_are_printed_by_contract():
    """A short run prints a ratio for each row and bytes for each span in the form of the schema."""
    result = _bench("--parts", "paired", "memory", "--rows", "sampled", "exported")
    assert [row["row"] for row in result["paired"]] == ["sampled", "exported"]
    assert [row["base"] for row in result["paired"]] == ["floor", "floor_exported"]
    assert [row["row"] for row in result["memory"]] == ["floor", "users_provider", "sampled"]


@pytest.mark.slow
def test_spans_per_second_are_printed_by_contract():
    """A short run finds a rate that arrives whole, for the SDK's exporter and for ours."""
    sides = _bench("--parts", "throughput")["throughput"]
    assert [side["row"] for side in sides] == ["floor_exported", "exported"]
    assert all(side["spans_per_second"] >= 1000 for side in sides)


@pytest.mark.slow
def test_real_loops_are_printed_by_contract(amqp_url, redis_url, nats_url):
    """A short run sends messages through every broker with the client wrapped and without, and hops are exported."""
    loops = _bench("--parts", "loops")["loops"]
    assert [loop["loop"].partition("_")[0] for loop in loops] == ["rabbitmq", "rabbitmq", "redis", "nats"]


@pytest.mark.slow
def test_the_ledgers_cost_is_printed_by_contract(amqp_url, redis_url, nats_url):
    """A short run weighs the ledger and times it on each broker: at most 512 bytes, 28 a step and what names it."""
    found = _bench("--parts", "ledger")["ledger"]
    assert [one["loop"].partition("_")[0] for one in found] == ["rabbitmq", "redis", "nats"]
    for one in found:
        first, sixth, twelfth = one["bytes"]
        assert 8 + 28 < first < 8 + 28 + 40
        assert first + 5 * 28 <= sixth
        assert twelfth < 512


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_row_measures_what_it_says():
    """Each row runs, and exports as many spans as it says it does."""
    found = _bench("--parts", "paired")["paired"]
    assert {row["row"] for row in found} == set(ROWS) - {"floor"}


def test_a_claim_that_is_missed_is_shown_as_missed():
    """Beside each claim stands what was measured and whether it is reached; nothing measured is said too."""
    row = {"what": "", "instructions": 1, "of_floor": 1.0, "base": "floor"}
    found = {
        "instructions": [{**row, "row": "sampled", "ratio": 0.46}, {**row, "row": "unsampled", "ratio": 0.16}],
        "throughput": [
            {"row": "floor_exported", "spans_per_second": 1000},
            {"row": "exported", "spans_per_second": 3000},
        ],
    }
    judged = {claim["claim"]: claim for claim in claims.judge(found)}
    assert judged["full hop, sampled, our pipeline"]["reached"] == "missed"
    assert judged["full hop, unsampled"]["reached"] == "aim"
    assert judged["spans/s without a drop, against the SDK"]["reached"] == "must"
    assert judged["a buffered span"]["reached"] is None
    lines = tables.claims(list(judged.values()))
    assert next(line for line in lines if line.startswith("full hop, sampled, our pipeline")).endswith("MISSED")


def test_every_part_has_its_table_and_its_schema():
    """What can be measured can be printed, and is described."""
    assert all(callable(getattr(tables, part)) for part in PARTS)
    assert set(PARTS) < set(SCHEMA["properties"])


def test_the_page_is_what_was_measured():
    """docs/benchmarks.md is written from the results that are kept, not by hand, and every claim is on it."""
    jsonschema.validate(json.loads(page.BENCH.read_text()), SCHEMA)
    jsonschema.validate(json.loads(page.PEERS.read_text()), json.loads((page.FOLDER / "peers.schema.json").read_text()))
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render()
    assert all(claim.what in text for claim in claims.CLAIMS)
