"""The rule that names the failing connector: right under every fault, silent where all is well."""

from __future__ import annotations

import random

import pytest

from rtobs.demo.suspect import Connector, find_suspect, surprise
from rtobs.demo.telemetry import Histogram

QUICK = {
    channel: Histogram((0.1, 1.0, 5.0), [100, 20, 0, 0]) for channel in ("push", "sms", "email", "in_app", "ticket")
}


def connector(channel: str, attempts: int, **failed: int) -> Connector:
    """A connector with *attempts*, of which some failed by category."""
    return Connector(channel, f"{channel}-provider", attempts, attempts - sum(failed.values()), failed)


def others(attempts: int = 100) -> list[Connector]:
    """Four healthy connectors."""
    return [connector(channel, attempts, unavailable=1) for channel in ("push", "sms", "email", "in_app")]


def name(connectors: list[Connector]) -> str | None:
    """Return the channel that is named."""
    found = find_suspect(connectors, QUICK, {}, 1.0)
    return None if found is None else found.channel


def test_names_what_fails():
    """A connector of which a third of the tries fail is named, with its most frequent category."""
    found = find_suspect([*others(), connector("ticket", 90, validation=28, unavailable=2)], QUICK, {}, 1.0)
    assert found is not None
    assert (found.channel, found.provider, found.symptom, found.category) == (
        "ticket", "ticket-provider", "failing", "validation",
    )  # fmt: skip
    assert found.bad == 30
    assert found.background == pytest.approx(0.01)


def test_a_few_failures_are_not_a_failing_connector():
    """Seven failures of seven tries are too few to be sure; eight of eight are not."""
    assert name([*others(), connector("ticket", 7, auth=7)]) is None
    assert name([*others(), connector("ticket", 8, auth=8)]) == "ticket"


def test_dead_addresses_are_nobodys_fault():
    """Unknown recipients and opt-outs do not make a connector a failing one."""
    assert name([*others(), connector("ticket", 100, recipient=60, suppressed=20)]) is None


def test_where_all_fail_nobody_stands_out():
    """A fault of the whole platform names no single connector."""
    channels = ("push", "sms", "email", "in_app", "ticket")
    assert name([connector(channel, 100, transport=40) for channel in channels]) is None


def test_the_worst_is_named():
    """Of two failing connectors the one with the clearer evidence is named."""
    assert (
        name([*others()[1:], connector("push", 100, timeout=30), connector("ticket", 100, validation=80)]) == "ticket"
    )


def test_healthy_noise_names_nobody():
    """In a thousand healthy runs of very different length, with one per cent noise, nothing is ever named."""
    luck = random.Random(7)
    for _ in range(1000):
        attempts = luck.choice((20, 60, 200, 800))
        noisy = []
        for channel in ("push", "sms", "email", "in_app", "ticket"):
            failed = sum(luck.random() < 0.014 for _ in range(attempts))
            noisy.append(connector(channel, attempts, unavailable=failed))
        assert name(noisy) is None


def late(channel: str, count: int) -> dict[str, Histogram]:
    """End-to-end times where *count* of 120 deliveries of one channel took longer than promised."""
    return QUICK | {channel: Histogram((0.1, 1.0, 5.0), [100 - count, 20, count, 0])}


def test_a_slow_consumer_is_named():
    """A channel whose deliveries are late and whose queue makes them wait is named as slow."""
    found = find_suspect([*others(), connector("ticket", 120)], late("ticket", 60), {"ticket": 2.0, "push": 0.01}, 1.0)
    assert found is not None
    assert (found.channel, found.provider, found.symptom, found.category) == ("ticket", "ticket-provider", "slow", "")


def test_a_machine_that_stands_still_names_nobody():
    """Where all queues wait alike, the machine is slow and not a connector."""
    waits = dict.fromkeys(("push", "sms", "email", "in_app", "ticket"), 2.0)
    assert find_suspect([*others(), connector("ticket", 120)], late("ticket", 60), waits, 1.0) is None


def test_surprise():
    """Surprise is none at or below what is expected, and bounds the binomial tail from above the odds."""
    assert surprise(0, 0, 0.1) == 0.0
    assert surprise(5, 100, 0.1) == 0.0
    assert surprise(100, 100, 0.1) == pytest.approx(230.26, abs=0.1)
    assert surprise(30, 100, 0.1) > surprise(20, 100, 0.1) > 0
