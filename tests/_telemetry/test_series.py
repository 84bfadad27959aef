"""What a whole platform costs in Prometheus series."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

import rtobs
from rtobs import _config
from rtobs import _conventions as names
from rtobs._telemetry.metrics import SERIES_LIMIT
from tests._export.collector import collector, plain
from tests.demo.support import demo
from tests.support import telemetry as support

TENANTS = [f"tenant-{number}" for number in range(200)]
CHANNELS = ["push", "sms", "email", "in_app", "webhook"]
PROVIDERS = [f"provider-{number}" for number in range(8)]
REGIONS = ["eu", "us", "apac", "latam"]


@pytest.fixture(params=[20, 200])
def quiet(request):
    """A large platform that declares its most important tenants, or all, without spans."""
    found = support.start(strict=True, tenants=TENANTS[: request.param], sampling={"default": 0.0})
    yield found
    support.stop()


def test_a_large_platform_stays_in_budget(quiet, capsys):
    """200 tenants on 5 channels of 8 providers in 4 regions stay within one process's budget, and no total is lost."""
    combinations = list(itertools.product(TENANTS, CHANNELS, PROVIDERS, REGIONS))
    for number, (tenant, channel, provider, region) in enumerate(combinations):
        with rtobs.accept("/notify") as hop:
            hop.segment(tenant=tenant, region=region)
            with rtobs.deliver(channel, provider) as attempt:
                if number % 7 == 0:
                    attempt.outcome(rtobs.Outcome.REJECTED, category=rtobs.ErrorCategory.RECIPIENT)
        if number % 4096 == 0:
            quiet.forget()
    used = _config._bound.registry.series_used
    with capsys.disabled():
        kept = len(quiet.by(names.OUTCOMES, "tenant"))
        print(f"\n{len(combinations)} combinations: {used} Prometheus series, {kept} tenants by name")
    assert used <= SERIES_LIMIT
    assert quiet.count(names.OUTCOMES) == quiet.count(names.INTENTS) == len(combinations)
    assert quiet.by(names.OUTCOMES, "channel") == dict.fromkeys(CHANNELS, len(combinations) // len(CHANNELS))


@pytest.mark.slow
def test_the_demo_stays_in_budget(amqp_url, tmp_path, capsys):
    """All that the demo's five processes export comes to fewer Prometheus series than one process may have."""
    with collector("http", tmp_path / "otlp") as collected:
        demo("--broker", amqp_url, "--seconds", "2", "--otlp", collected.endpoint)
    processes: dict[str, Counter[str]] = {}
    for export in collected.requests("metrics"):
        for group in export.resource_metrics:
            found = processes.setdefault(plain(group.resource.attributes)["service.instance.id"], Counter())
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                points = getattr(metric, metric.WhichOneof("data")).data_points
                found[metric.name] = max(found[metric.name], sum(map(_prometheus_series, points)))
    used = sorted((found.total() for found in processes.values()), reverse=True)
    with capsys.disabled():
        print(f"\ndemo: {sum(used)} Prometheus series in {len(used)} processes, at most {used[0]} in one")
    assert len(used) == 5
    assert names.END_TO_END.name in set().union(*processes.values())
    assert sum(used) < SERIES_LIMIT


def _prometheus_series(point):
    """Return as how many series a data point is scraped: a histogram has one a bound, +Inf, sum and count."""
    return len(point.explicit_bounds) + 3 if hasattr(point, "explicit_bounds") else 1
