"""What follows from what the probe saw."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs.doctor import advice

SPANS = {"ready": True, "off": False, "exports": True, "sdk_spans": False, "provider": "sdk.TracerProvider"}


def process(**seen: Any) -> dict[str, Any]:
    healthy = {
        "pid": 1, "clients": [], "versions": {}, "contrib": [], "others": [], "handed_out": {}, "unscoped": {},
        "passed_by": {}, "tallies": {"rtobs.internal.errors": 0, "rtobs.propagation.missing": 0}, "forks": 0,
        "scraped": False, "spans": SPANS,
    }  # fmt: skip
    return {**healthy, **seen}


def client(*, wrapped: bool, leaf: str = "redis") -> dict[str, Any]:
    return {"leaf": leaf, "class": "redis.client.Redis", "wrapped": wrapped, "number": 2}


def test_a_healthy_application_gets_no_advice():
    """Wrapped clients of tested versions and a collector that answers are nothing to speak of."""
    seen = process(
        clients=[client(wrapped=True)],
        versions={"redis": {"supports": "redis>=8.1,<9", "installed": {"redis": "8.1.0"}}},
    )
    assert advice.findings([seen], "", "http://localhost:4318") == []


@pytest.mark.parametrize(
    ("about", "seen", "fix"),
    [
        ("client", {"clients": [client(wrapped=False)]}, "instrument('redis')"),
        (
            "version",
            {"versions": {"redis": {"supports": "redis>=8.1,<9", "installed": {"redis": "7.4"}}}},
            "tested version",
        ),
        ("iterator", {"passed_by": {"rabbitmq orders": 3}}, "with rtobs.consume"),
        ("scope", {"unscoped": {"redis orders": 3}}, "with rtobs.consume"),
        ("context", {"tallies": {"rtobs.internal.errors": 0, "rtobs.propagation.missing": 1}}, "headers="),
        ("internal", {"tallies": {"rtobs.internal.errors": 1, "rtobs.propagation.missing": 0}}, "log"),
        ("prefork", {"forks": 2, "scraped": True}, "OTEL_METRICS_EXPORTER=otlp"),
    ],
)
def test_each_defect_has_its_fix(about, seen, fix):
    """One thing that is wrong is one finding, told once however many processes have it, with what to do."""
    seen = process(**seen)
    (found,) = advice.findings([seen, seen], "", "http://localhost:4318")
    assert found.about == about
    assert fix in found.do


def test_where_telemetry_goes_is_judged():
    """An address that nobody listens at, and none at all, are findings; a scrape needs none."""
    used = process(clients=[client(wrapped=True)])
    (refused,) = advice.findings([used], "Connection refused", "http://localhost:1")
    assert refused.saw == "http://localhost:1: Connection refused"
    assert [found.about for found in advice.findings([used], "", "")] == ["exporter"]
    assert advice.findings([process(clients=[client(wrapped=True)], scraped=True)], "", "") == []


def test_neighbours_and_the_span_path_are_notes():
    """Another instrumentation of the same client is told with how to be without it, as is the way spans take."""
    seen = process(clients=[client(wrapped=True)], contrib=["redis", "kafka_python"], others=["ddtrace"])
    told = advice.notes([seen])
    assert [("quick path" in told[0]), "DISABLED_INSTRUMENTATIONS=redis" in told[1], "ddtrace" in told[2]] == [True] * 3
    assert len(told) == 3
    slow = advice.notes([process(spans={**SPANS, "sdk_spans": True})])
    assert "on_start" in slow[0]


@given(st.tuples(*[st.integers(0, 99)] * 3))
def test_a_version_is_tested_if_it_lies_in_the_range(version):
    """The lower bound belongs to the range, the upper one does not; an unknown package is not judged."""
    text = ".".join(map(str, version))
    assert advice.is_tested(text, "b", "a>=1,<2; b>=2.16,<3") == ((2, 16) <= version < (3,))
    assert advice.is_tested(text, "c", "a>=1,<2")
