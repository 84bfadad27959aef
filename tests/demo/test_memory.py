"""The demo in one process, run as a user runs it: the law of the promises, and the right connector by name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import jsonschema
import pytest

from rtobs.demo.options import CHANNELS
from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Telemetry
from tests.demo.support import command, demo, sabotage

pytestmark = pytest.mark.slow

SCHEMA = json.loads(resources.files("rtobs.demo").joinpath("summary.schema.json").read_text())

RUNS = {
    "default": ("--seconds", "8"),
    "other-target": ("--seconds", "4", "--target", "email", "--seed", "2"),
    "rate-limit": ("--seconds", "4", "--fault", "rate-limit", "--target", "sms"),
    "expired-token": ("--seconds", "4", "--fault", "expired-token", "--target", "push"),
    "slow-consumer": ("--seconds", "4", "--fault", "slow-consumer"),
    "one-percent": ("--seconds", "8", "--sample", "0.01"),
    **{f"healthy-{seed}": ("--seconds", "3", "--fault", "none", "--seed", str(seed)) for seed in range(1, 6)},
}


@pytest.fixture(scope="module")
def runs():
    """The summaries of all runs, made three at a time."""
    with ThreadPoolExecutor(3) as pool:
        return dict(zip(RUNS, pool.map(lambda name: demo(*RUNS[name]), RUNS), strict=True))


@pytest.mark.timeout(180)  # the first test waits for all runs
@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_accounted_for(runs, name):
    """No correlation id is lost, everything promised has an outcome, nothing is open; the output fits its schema."""
    run = runs[name]
    jsonschema.validate(run, SCHEMA)
    assert run["journeys"] > 50
    assert run["lost_correlation_ids"] == 0
    assert run["consumed"] >= run["journeys"] + run["intents"]
    assert run["compared"] == run["consumed"] or "--sample" in RUNS[name]  # only spans that leave can be compared
    assert run["intents"] == sum(run["outcomes"].values()) + run["open"] + run["unaccounted"]
    assert (run["open"], run["unaccounted"], run["inferred"]) == (0, 0, 0)
    assert sum(tenant["intents"] for tenant in run["tenants"].values()) == run["intents"]
    assert sum(sum(channel["outcomes"].values()) for channel in run["channels"].values()) == run["intents"]
    assert all(one["attempts"] == one["ok"] + sum(one["failed"].values()) for one in run["connectors"])
    assert sum(one["retries"] for one in run["connectors"]) == run["consumed"] - run["journeys"] - run["intents"]


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_healthy_platform_names_nobody(runs, seed):
    """Without a fault no connector is named and no tenant is affected, although a few tries fail."""
    run = runs[f"healthy-{seed}"]
    assert run["failing"] is None
    assert not any(tenant["affected"] for tenant in run["tenants"].values())


@pytest.mark.parametrize(
    ("name", "channel", "symptom", "category"),
    [
        ("default", "ticket", "failing", "validation"),
        ("other-target", "email", "failing", "validation"),
        ("rate-limit", "sms", "failing", "rate_limited"),
        ("expired-token", "push", "failing", "auth"),
        ("slow-consumer", "ticket", "slow", None),
    ],
)
def test_the_failing_connector_is_named(runs, name, channel, symptom, category):
    """Every fault is named by its connector, its symptom and its error category."""
    failing = runs[name]["failing"]
    assert (failing["channel"], failing["symptom"], failing["category"]) == (channel, symptom, category)


def test_schema_drift(runs):
    """Under schema drift retries rise, the 95th percentile widens, the on-time share falls, and the queue drains."""
    drift, healthy = runs["default"], runs["healthy-1"]
    assert drift["journeys"] > 100
    ticket = {
        run["fault"]: next(one for one in run["connectors"] if one["channel"] == "ticket") for run in (drift, healthy)
    }
    assert ticket["schema-drift"]["retries"] > 30 > ticket["none"]["retries"]
    widened, usual = drift["channels"]["ticket"]["p95_seconds"], healthy["channels"]["ticket"]["p95_seconds"]
    assert widened > max(1, 2 * usual)
    assert drift["channels"]["ticket"]["on_time"] < min(0.95, drift["channels"]["push"]["on_time"] - 0.03)
    assert drift["outcomes"]["ok"] > 0.9 * drift["intents"]


def test_a_slow_consumer_makes_its_own_queue_wait(runs):
    """Only the slow consumer's messages wait; no try fails for it."""
    channels = runs["slow-consumer"]["channels"]
    assert channels["ticket"]["wait_seconds"] > 10 * channels["push"]["wait_seconds"]
    assert channels["ticket"]["longest_wait_seconds"] > 1


def test_the_view_knows_queues_and_workers(runs):
    """The slow consumer's queue grows old and its worker is full; without a fault nothing piles up."""
    slow, healthy = runs["slow-consumer"]["queues"], runs["healthy-1"]["queues"]
    assert set(slow) == set(healthy) == {"notifications", *(f"deliver.{channel}" for channel in CHANNELS)}
    assert slow["deliver.ticket"]["oldest_age_seconds"] > 1
    assert slow["deliver.ticket"]["deepest"] > 10
    assert slow["deliver.ticket"]["busy"] > 0.5 > max(queue["busy"] for queue in healthy.values())
    assert not any(queue["estimated"] for queue in (*slow.values(), *healthy.values()))


def test_an_expired_token_is_final(runs):
    """After the token has expired deliveries are rejected at once, without another try."""
    run = runs["expired-token"]
    assert run["channels"]["push"]["outcomes"]["rejected"] > 20
    assert next(one for one in run["connectors"] if one["channel"] == "push")["retries"] <= 3


def test_users_confirm_what_they_saw(runs):
    """Receipts come back for the channels with a screen, and only for a part of what was delivered."""
    channels = runs["default"]["channels"]
    assert 0 < channels["in_app"]["displayed"] < channels["in_app"]["outcomes"]["ok"]
    assert channels["sms"]["displayed"] == 0


def test_a_failure_that_was_not_sampled_is_told_whole(runs):
    """At one percent the failed story is complete: its first steps were rebuilt, and it says from how many bytes."""
    story = runs["one-percent"]["stories"]["failed"]
    hops = [(row["depth"], row["hop"], row["outcome"]) for row in story["rows"]]
    assert hops[:4] == [
        (0, "accept", "rebuilt"), (1, "publish", "rebuilt"), (2, "consume", "rebuilt"), (3, "publish", "rebuilt")
    ]  # fmt: skip
    assert story["rebuilt"] == 4
    assert 2 * 21 < story["ledger_bytes"] < 512
    assert sum(row["hop"] == "deliver" for row in story["rows"]) == 5
    assert "ticket by ticket-desk ended dead_lettered after 5 tries" in story["headline"]


def test_two_stories(runs):
    """The failed story ends at the failing connector, the delivered one with every delivery ok, stage by stage."""
    stories = runs["default"]["stories"]
    for story in stories.values():
        hops = [row["hop"] for row in story["rows"]]
        assert hops[0] == "accept"
        assert {"publish", "consume", "deliver", "stage"} <= set(hops)
        assert {"normalize", "enrich", "route"} <= {row["name"] for row in story["rows"] if row["hop"] == "stage"}
        assert all(row["waited"] is not None for row in story["rows"] if row["hop"] == "consume")
    assert "ticket by ticket-desk ended dead_lettered after 5 tries" in stories["failed"]["headline"]
    waits = [
        row["waited"]
        for row in stories["failed"]["rows"]
        if row["name"] == "deliver.ticket" and row["hop"] == "consume"
    ]
    late = [wait - delay for wait, delay in zip(waits[1:], [0.25, 0.5, 1.0, 2.0], strict=True)]
    assert all(-0.02 <= one < 1.0 for one in late), waits  # never early; how late is up to a busy machine
    assert any("deliver.failed" in sentence for sentence in stories["failed"]["said"])
    assert all(row["outcome"] == "ok" for row in stories["delivered"]["rows"] if row["hop"] == "deliver")


@pytest.mark.timeout(60)
def test_a_copy_goes_to_another_collector():
    """With --otlp another collector receives all of the telemetry."""
    copy = Telemetry()
    with Receiver(copy) as collector:
        run = demo("--seconds", "2", "--fault", "none", "--otlp", collector.endpoint)
    assert round(copy.total("rtobs.delivery.intents")) == run["intents"]
    assert len(copy.correlation_ids) == run["journeys"]


@pytest.mark.timeout(60)
def test_a_dead_collector_is_told_and_does_no_harm():
    """Where nobody listens at --otlp the run goes on, and standard error says what was not passed on."""
    done = command("demo", "--json", "--seconds", "1", "--fault", "none", "--otlp", "http://127.0.0.1:9")
    assert done.returncode == 0
    assert json.loads(done.stdout)["unaccounted"] == 0
    assert "could not be passed on to http://127.0.0.1:9" in done.stderr


@pytest.mark.timeout(60)
def test_lost_correlation_ids_are_seen(tmp_path):
    """If nothing carries the journey over the broker, every consumed message is reported as having lost its id."""
    environment = sabotage(tmp_path, "import rtobs\nrtobs.wrap = lambda client, **options: client\n")
    run = demo("--seconds", "1", "--fault", "none", **environment)
    assert run["lost_correlation_ids"] == run["compared"] == run["consumed"] > 50


@pytest.mark.timeout(60)
def test_a_crash_is_reported(tmp_path):
    """If a process of the platform crashes, the run ends with 1 and shows the end of what the process said."""
    code = "import rtobs.demo.world\nrtobs.demo.world.notification = lambda *arguments: 1 / 0\n"
    done = command("demo", "--json", "--seconds", "2", **sabotage(tmp_path, code))
    assert (done.returncode, done.stdout) == (1, "")
    assert "The platform process ended with exit code 1 during the run. It said:" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "Run the demo again" in done.stderr
