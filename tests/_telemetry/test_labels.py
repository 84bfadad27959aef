"""The label guard: what may become a metric label, and what becomes `other`."""

from __future__ import annotations

import ipaddress
import threading
import uuid
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtobs
from rtobs import _conventions as names
from rtobs import _guard
from rtobs._conventions import OTHER, UNKNOWN, Label
from rtobs._journey import carrier
from rtobs._telemetry.labels import BUDGETS, LabelGuard, is_raw_identifier
from tests.support.telemetry import Telemetry

OPEN = [label for label in BUDGETS if label not in (Label.ERROR_TYPE, Label.SITE, Label.REASON)]
"""Labels whose values come from outside; the other three are names of ours and of exception classes."""


@pytest.fixture(autouse=True)
def _no_counts() -> Generator[None]:
    with _guard._lock:
        _guard._tallies.clear()
        _guard._last_told.clear()
    yield
    with _guard._lock:
        _guard._tallies.clear()


def limited() -> dict[tuple[str, ...], int]:
    return {values: n for (name, values), n in _guard.tallies().items() if name == names.LABELS_LIMITED.name}


# Raw identifiers -----------------------------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=7, max_size=15)
identifiers = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda found: str(found).upper()),
    st.uuids().map(lambda found: found.hex).filter(lambda found: any(c.isdigit() for c in found)),
    st.uuids().map(lambda found: f"reply-{found}"),
    st.emails().filter(lambda found: "." in found.rpartition("@")[2]),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=4).map(lambda found: f"{found}:5672"),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=6).map(lambda found: found.exploded),
    digits,
    digits.map(lambda found: f"+{found}"),
    digits.map(lambda found: f"+{found[:2]} ({found[2:4]}) {found[4:6]}-{found[6:]}"),
    st.integers(0, 2**128 - 1).map(lambda found: f"{found:032x}").filter(lambda found: any(c.isdigit() for c in found)),
    st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25).map(lambda found: f"0{found}"),
)


@given(identifiers, st.sampled_from(OPEN))
@settings(max_examples=400)
def test_a_raw_identifier_never_becomes_a_label(value: str, label: Label) -> None:
    """UUIDs, e-mail addresses, phone numbers, IP addresses and long hex become `other` under every label."""
    assert LabelGuard().label(label, value) == OTHER
    assert not LabelGuard().admit_tenant(value)


@pytest.mark.parametrize(
    "value",
    ["acme", "eu-west-1", "orders.*", "order/{id}", "smtp", "tier-1", "route66", "2024", "v1.2.3", "a@b", "cafe",
     "deadbeef", "customer-123456", "Ärzte GmbH", "株式会社", "amq.topic", "orders:created", "10", "in_app"],
)  # fmt: skip
def test_ordinary_names_pass(value: str) -> None:
    """Names that people give to tenants, queues, routes and regions are not taken for identifiers."""
    assert not is_raw_identifier(value)
    assert LabelGuard().label(Label.DESTINATION, value) == value


@pytest.mark.parametrize(
    "value",
    [
        str(uuid.UUID(int=1)), "ann@example.org", "Ann <ann@example.org>", "+49 30 901820", "(030) 901820-1",
        str(ipaddress.ip_address("::1")), "[::1]:5672", "fe80::1%eth0", "192.168.0.1", "amq.gen-0af7651916cd43dd",
        "2024-01-31", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ],
)  # fmt: skip
def test_what_counts_as_a_raw_identifier(value: str) -> None:
    """These are told from names."""
    assert is_raw_identifier(value)


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_a_label_is_short_and_printable_whatever_comes(value: str) -> None:
    """Any text becomes itself, if it is short, printable and travels, or one of our words."""
    found = LabelGuard().label(Label.TENANT, value)
    assert found in (value, OTHER, UNKNOWN)
    assert len(found) <= 64
    assert found.isprintable()
    assert carrier.encode(found, carrier.TENANT_LIMIT) != OTHER or found == OTHER


@pytest.mark.parametrize(
    ("label", "longest"), [(Label.REGION, 23), (Label.SOURCE, 23), (Label.CHANNEL, 23), (Label.TENANT, 64)]
)
def test_a_name_that_does_not_travel_is_other_here_too(label: Label, longest: int) -> None:
    """What the next process could not read is not named by this one, or intents and outcomes would not agree."""
    if label is Label.TENANT:
        assert LabelGuard().label(label, "é" * 35) == "é" * 35
        assert LabelGuard().label(label, "é" * 36) == OTHER
    else:
        assert LabelGuard().label(label, "é" * 11) == "é" * 11
        assert LabelGuard().label(label, "é" * 12) == OTHER
    assert limited() == {(label.value, "invalid"): 1}


# Budgets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", BUDGETS, ids=str)
def test_a_budget_names_the_first_and_counts_the_rest_as_other(label: Label) -> None:
    """As many values as the budget says keep their names, for good; each further measurement is counted."""
    guard, budget = LabelGuard(), BUDGETS[label]
    values = [f"name-{number}" for number in range(budget + 50)]
    assert [guard.label(label, value) for value in values] == values[:budget] + [OTHER] * 50
    assert [guard.label(label, value) for value in values] == values[:budget] + [OTHER] * 50
    assert limited() == {(label.value, "budget"): 100}
    assert guard.usage() == {label: (budget, budget)}


def test_words_of_ours_cost_no_budget() -> None:
    """`other`, `unknown`, `none` and an empty value pass without being admitted."""
    guard = LabelGuard()
    for value in (OTHER, UNKNOWN, names.NONE):
        assert guard.label(Label.PROVIDER, value) == value
    assert guard.label(Label.PROVIDER, "") == ""
    assert guard.label(Label.TENANT, "") == UNKNOWN
    assert guard.usage() == {}


def test_declared_names_are_never_refused() -> None:
    """Pinned values keep their names behind a full budget, and where they look like identifiers."""
    declared = [str(uuid.UUID(int=1)), "acme", *(f"declared-{number}" for number in range(300))]
    guard = LabelGuard({Label.TENANT: declared})
    assert not guard.admit_tenant("late")
    for tenant in declared:
        assert guard.admit_tenant(tenant)
        assert guard.label(Label.TENANT, tenant) == tenant
        assert guard.tenant(tenant, named=True) == tenant


def test_a_decision_made_upstream_is_obeyed_up_to_four_times_the_budget() -> None:
    """A named tenant stays named here although this process has used up its own budget; then `other`, counted."""
    guard, budget = LabelGuard(), BUDGETS[Label.TENANT]
    for number in range(budget):
        assert guard.admit_tenant(f"own-{number}")
    upstream = [f"theirs-{number}" for number in range(4 * budget)]
    found = [guard.tenant(tenant, named=True) for tenant in upstream]
    assert found == upstream[: 3 * budget] + [OTHER] * budget
    assert limited() == {("tenant", "budget"): budget}
    assert guard.tenant(upstream[0], named=True) == upstream[0]


@given(st.text(max_size=100), st.booleans())
def test_what_upstream_decided_is_decided(tenant: str, named: bool) -> None:
    """An unnamed tenant is `other`, no tenant is `unknown`, and no decision makes a label of what cannot be one."""
    found = LabelGuard().tenant(tenant, named=named)
    if not tenant:
        assert found == UNKNOWN
    elif not named or len(tenant) > 64 or not tenant.isprintable():
        assert found == OTHER
    else:
        assert found == tenant


def test_threads_agree_on_who_was_first() -> None:
    """However many threads ask at once, the budget is kept and every one gets the same answer for a value."""
    guard, start = LabelGuard(), threading.Barrier(8)
    answers: list[dict[str, set[str]]] = []

    def ask(offset: int) -> None:
        mine: dict[str, set[str]] = {}
        start.wait()
        for turn in range(3):
            for number in range(300):
                value = f"tenant-{(number + offset + turn) % 300}"
                mine.setdefault(value, set()).add(guard.label(Label.TENANT, value))
        answers.append(mine)

    threads = [threading.Thread(target=ask, args=(number * 37,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[str, set[str]] = {}
    for mine in answers:
        for value, labels in mine.items():
            found.setdefault(value, set()).update(labels)
    assert all(len(labels) == 1 for labels in found.values())
    assert sum(labels != {OTHER} for labels in found.values()) == BUDGETS[Label.TENANT]


def test_a_used_up_budget_is_told_once_with_what_to_do(caplog: Any) -> None:
    """One log line a minute names the label, its budget and the remedy."""
    guard = LabelGuard()
    for number in range(300):
        guard.label(Label.TENANT, f"tenant-{number}")
    (record,) = caplog.records
    assert record.name == "rtobs"
    assert "200" in record.getMessage()
    assert "rtobs.configure(tenants=[...])" in record.getMessage()


# Through hops --------------------------------------------------------------------------------------------------------


def test_only_the_offending_label_becomes_other(telemetry: Telemetry) -> None:
    """A tenant that is an e-mail address costs its own label; channel, provider, step, outcome and region stay."""
    with rtobs.accept("/orders") as hop:
        hop.segment(tenant="ann@example.org", region="eu")
        with rtobs.deliver("webhook", "crm"):
            pass
    ((labels, count, _),) = telemetry.series(names.OUTCOMES)
    assert count == 1
    assert labels == {
        "channel": "webhook", "provider": "crm", "step": "delivered", "outcome": "ok", "error_category": "",
        "tenant": OTHER, "region": "eu",
    }  # fmt: skip
    assert telemetry.by(names.INTENTS, "tenant") == {OTHER: 1}
    assert telemetry.span("deliver").attributes["rtobs.tenant"].startswith("[email:")
    assert telemetry.by(names.LABELS_LIMITED, "label", "reason") == {("tenant", "raw_identifier"): 1}


def test_a_tenant_unnamed_upstream_is_other_downstream_too(telemetry: Telemetry) -> None:
    """The bit travels: the consumer has room for the name and does not use it."""
    for number in range(BUDGETS[Label.TENANT] + 1):
        with rtobs.accept("/orders") as hop:
            hop.segment(tenant=f"tenant-{number}")
            hop.intend("webhook")
            headers = hop.headers
    rtobs.configure(strict=True)
    with rtobs.consume("orders", headers=headers, trust="trusted"), rtobs.deliver("webhook", "crm"):
        pass
    assert telemetry.by(names.OUTCOMES, "tenant") == {OTHER: 1}
    assert telemetry.by(names.MESSAGE_SETTLED, "tenant") == {OTHER: 1}


def test_use_and_limit_of_each_budget_are_gauges(telemetry: Telemetry) -> None:
    """How full a budget is can be seen before it is full."""
    for number in range(3):
        with rtobs.accept(f"/{number}"):
            pass
    assert telemetry.by(names.LABELS_USED, "label")["route"] == 3
    assert telemetry.by(names.LABELS_LIMIT, "label")["route"] == BUDGETS[Label.ROUTE]
