"""What a declaration means: three formats and Python say the same, defaults reach every SLO, editors know the form."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rtobs._journey.outcome import STEPS, ErrorCategory, Outcome
from rtobs.slo import (
    SLO,
    Alerting,
    Deadline,
    Declaration,
    DeclarationError,
    Latency,
    Ratio,
    Step,
    grammar,
    load,
    locate,
    reader,
    source,
    triggers,
)
from rtobs.slo.bounds import bounds
from rtobs.slo.durations import seconds, span
from rtobs.slo.schema import schema
from rtobs.slo.windows import cliff_share, tiers, usable
from tests.slo.support import EXAMPLE
from tests.slo.test_mistakes import BROKEN, GOOD

SCHEMA = json.loads((Path(grammar.__file__).parent / "slo.schema.json").read_text())


def test_the_example_says_what_was_promised():
    """The four promises of the example have the objectives, thresholds and owners that its words say."""
    found = load(EXAMPLE)
    assert (found.service, found.jobs) == ("notify", ("notify-api", "notify-worker", "notify-connector"))
    assert found.tenants == ("acme", "globex", "initech")
    said = {slo.name: (slo.objective, slo.threshold, slo.offset, slo.sli.kind, slo.owner) for slo in found.slos}
    assert said == {
        "api-ack": (99.9, 0.3, 0, "latency", "team-messaging"),
        "delivery-5s": (99, 5, 5, "deadline", "team-messaging"),
        "connector-window": (99.5, 0, 0, "ratio", "team-messaging"),
        "dead-letter": (99.9, 0, 0, "ratio", "team-messaging"),
    }
    delivery = found.slos[1]
    assert (dict(delivery.groups), dict(delivery.tenants)) == ({"in_app": 99.9, "sms": 98}, {"acme": 99.5})
    assert [step.budget_left for step in delivery.policy] == [50, 10, 0]


def test_three_formats_say_the_same(tmp_path):
    """A declaration in YAML, TOML or JSON is the same declaration."""
    data = yaml.safe_load(EXAMPLE.read_text())
    (tmp_path / "slo.json").write_text(json.dumps(data))
    slos = "".join(
        "[[slos]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in slo.items()) for slo in data["slos"]
    )
    top = "".join(f"{key} = {_toml(value)}\n" for key, value in data.items() if key != "slos")
    (tmp_path / "slo.toml").write_text(top + slos)
    assert tomllib.loads(top + slos) == data
    wanted = load(EXAMPLE)
    for name in ("slo.json", "slo.toml"):
        found = load(tmp_path / name)
        assert found.slos == wanted.slos
        assert (found.service, found.jobs, found.tenants) == (wanted.service, wanted.jobs, wanted.tenants)


def _toml(value):
    match value:
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def test_python_says_the_same():
    """The example's delivery promise, made of objects, equals the one that was read."""
    made = SLO(
        "delivery-5s", 99, Deadline("promise", "5s"), "99 % of notifications are delivered within 5 s, end to end.",
        "downstream-vendor-outage", "team-messaging", group_by="channel", channels={"in_app": 99.9, "sms": 98},
        tenants={"acme": 99.5}, policy=load(EXAMPLE).slos[1].policy,
    )  # fmt: skip
    assert made == load(EXAMPLE).slos[1]
    assert made.revision == load(EXAMPLE).slos[1].revision


def test_what_is_said_once_is_meant_for_all():
    """Owner, alerting and policy of the declaration hold for every SLO that does not say otherwise."""
    text = GOOD.replace(
        "tenants: [acme, globex]",
        "alerting: {min_bad_events: {page: 20}, single_tenant: page}\npolicy: [{budget_left: 0, action: Stop.}]",
    ).replace(
        "playbook: backlog",
        "playbook: backlog\n    owner: others\n    policy: [{budget_left: 1, action: Look.}]\n"
        "    alerting: {min_bad_events: {ticket: 1}}\n    tenants: {initech: 98}",
    )
    found = reader.declare(source.parse(text, "YAML", "slo.yaml"))
    ack, _, jobs = found.slos
    assert (ack.owner, ack.alerting, ack.policy) == ("team-messaging", Alerting(20, 5, "page"), (Step(0, "Stop."),))
    assert (jobs.owner, jobs.alerting, jobs.policy) == ("others", Alerting(20, 1, "page"), (Step(1, "Look."),))
    assert (found.jobs, found.tenants, found.owner) == (("notify",), ("initech",), "team-messaging")


def test_a_revision_is_about_what_is_counted():
    """What is counted or promised changes the revision; who is told about it does not."""
    made = SLO("jobs", 99, Ratio("job", ("late",)), "In time.", "backlog", "me")
    same = SLO("jobs", 99, Ratio("job", ("late",)), "On time.", "other", "you", severity="ticket")
    assert made.revision == same.revision
    others = (
        SLO("jobs", 99.5, Ratio("job", ("late",)), "In time.", "backlog", "me"),
        SLO("jobs", 99, Ratio("job", ("late", "missed")), "In time.", "backlog", "me"),
        SLO("jobs", 99, Ratio("job", ("late",)), "In time.", "backlog", "me", where={"connector": ("crm",)}),
        SLO("jobs", 99, Ratio("job", ("late",)), "In time.", "backlog", "me", tenants={"acme": 98}),
    )
    assert len({made.revision, *(other.revision for other in others)}) == 5


# The JSON Schema -----------------------------------------------------------------------------------------------------


def test_the_schema_that_is_shipped_is_the_grammar():
    """src/rtobs/slo/slo.schema.json is a JSON Schema and is what the grammar says today."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert schema() == SCHEMA


def test_the_schema_accepts_what_the_reader_accepts():
    """The example and the good declaration of the tests are valid."""
    for text in (EXAMPLE.read_text(), GOOD):
        jsonschema.validate(yaml.safe_load(text), SCHEMA)


def test_the_schema_refuses_what_is_wrong_by_itself():
    """All broken declarations of the tests are refused, but for what only their parts together make wrong."""
    together = ("second time", "stands for", "no owner", "group_by", "cannot be told apart", "neither hop", "both hop")
    together += ("is no bad end", "not counted", "has none", "every for", "this is not YAML", 'saw "1h"', 'saw "1s"')
    together += ("saw NaN",)  # no JSON
    refused = 0
    for good, broken, told in BROKEN:
        if not any(part in told[0] for part in together):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(yaml.safe_load(GOOD.replace(good, broken, 1)), SCHEMA)
            refused += 1
    assert refused > 30


VALUES_OF_ANY_KIND = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 200), st.sampled_from([99.9, 1.0, 100.0, 1e308, 10**400]),
    st.text(max_size=8),
    st.sampled_from(["a\n", "5s", "300ms", "https://x.example/?a", "HTTP://x", "http://[::1", "b" * 250]),
    st.lists(st.sampled_from(["a", "a\n", 1]), max_size=2), st.dictionaries(st.sampled_from(["a", "a\n"]), st.just(50)),
)  # fmt: skip
TOGETHER = ("second time", "stands for", "no owner", "without group_by", "cannot be told apart", "neither hop",
            "both hop", "is no bad end", "not counted", "has none", "every for")  # fmt: skip


@given(st.data())
def test_the_schema_and_the_reader_agree(data):
    """Whatever stands in the place of one value, the schema refuses what the reader refuses, but for times."""
    whole = yaml.safe_load(EXAMPLE.read_text())
    path = data.draw(st.sampled_from([path for path in _paths(whole) if path]))
    inner = whole
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = data.draw(VALUES_OF_ANY_KIND)
    try:
        reader.declare(source.Source("slo.yaml", whole))
        told = []
    except DeclarationError as error:
        told = [str(mistake) for mistake in error.mistakes]
    alone = [one for one in told if not any(part in one for part in TOGETHER)]
    if "a time of" not in "".join(told):
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid(whole) == (not alone), told


# Words that other rooms own ------------------------------------------------------------------------------------------


def test_words_are_those_of_telemetry():
    """Steps, outcomes and error categories that a declaration may name are the ones that exist."""
    assert grammar.STEPS == STEPS
    assert set(grammar.CATEGORIES) == {category.value for category in ErrorCategory}
    assert set(triggers.TRANSIENT) < {category.value for category in ErrorCategory}
    assert {*grammar.BAD["consume"], *grammar.BAD["accept"]} <= {outcome.value for outcome in Outcome}


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "factors"),
    [("30d", (14.4, 6, 3, 1)), ("28d", (13.44, 5.6, 2.8, 0.9333)), ("7d", (13.44, 5.6, 2.8, 0.9333))],
)
def test_tiers_follow_from_shares_of_the_budget(window, factors):
    """A tier's factor is the share of the month's budget that its longer window may use up."""
    assert tuple(tier.factor for tier in tiers(window)) == factors


def test_tiers_that_cannot_fire_are_left_out():
    """Nothing burns faster than everything being bad; the cliff stays between 40 and 50 %."""
    assert [tier.factor for tier in usable("30d", 0.1)] == [6, 3, 1]
    assert [tier.factor for tier in usable("30d", 0.2)] == [3, 1]
    assert [cliff_share("30d", budget) for budget in (0.001, 0.03, 0.2)] == [0.4, 0.432, 0.5]


@given(st.integers(1, 31 * 86_400_000))
def test_a_span_is_read_as_it_is_written(milliseconds):
    """Any time to the millisecond comes back from its text."""
    assert seconds(span(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-9)


@pytest.mark.parametrize("text", ["", "5", "s", "1.5s", "-1s", "5 s", "1s1m", "1m1m", "5S", "1w"])
def test_other_texts_are_no_span(text):
    """What is not whole numbers with units, largest first, is refused."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        seconds(text)


@given(st.lists(st.integers(1, 600_000).map(lambda value: value / 1000), min_size=1, max_size=3))
def test_bounds_lie_round_every_threshold(thresholds):
    """At most 16 bounds, each threshold among them, and a neighbour above it less than twice as far."""
    found = bounds(thresholds)
    assert len(found) <= 16
    assert list(found) == sorted(set(found))
    assert set(thresholds) <= set(found)
    for threshold in thresholds:
        above = [bound for bound in found if bound > threshold]
        assert above[0] / threshold < 2 if above else True


def test_without_thresholds_there_are_no_bounds():
    """Nothing promised, nothing to put bounds round."""
    assert bounds([]) == ()


# Lines ---------------------------------------------------------------------------------------------------------------

WORDS = st.characters(max_codepoint=0x2FFF)  # beyond the BMP, JSON's escapes are no TOML
KEYS = st.text(WORDS, min_size=1, max_size=6)
VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(WORDS, max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


def _paths(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _paths(one, (*path, key))


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_json_lines(data):
    """In JSON with one value a line, every value is found, on a line that shows it."""
    text = json.dumps(data, indent=1)
    found = locate.in_json(text)
    assert set(found.lines) == set(_paths(data))
    assert found.repeated == ()
    shown = text.splitlines()
    for path, line in found.lines.items():
        if path and isinstance(path[-1], str):
            assert shown[line - 1].lstrip().startswith(json.dumps(path[-1]))


@given(st.lists(st.dictionaries(st.text("abc.", min_size=1, max_size=3), VALUES, min_size=1, max_size=3), min_size=1))
def test_toml_lines(tables):
    """In TOML, keys of an array of tables are found on the lines on which they stand."""
    lines, wanted = [], {}
    for index, table in enumerate(tables):
        lines.append("[[all]]")
        for key, value in table.items():
            lines.append(f"{json.dumps(key)} = {_toml_text(value)}  # {key}")
            wanted["all", index, key] = len(lines)
    text = "\n".join(lines)
    assert tomllib.loads(text)["all"] == tables
    found = locate.in_toml(text).lines
    assert {path: line for path, line in found.items() if path in wanted} == wanted


def _toml_text(value):
    match value:
        case dict():
            return "{" + ", ".join(f"{_quoted(key)} = {_toml_text(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml_text, value)) + "]"
        case str():
            return _quoted(value)
    return json.dumps(value)


def _quoted(text):
    return json.dumps(text).replace("\x7f", "\\u007f")


def test_latency_of_a_stage():
    """A stage can be promised too; its threshold is read in seconds."""
    made = SLO("enrich", 99, Latency("200ms", stage="enrich"), "Fast.", "api-latency", "me")
    assert (made.threshold, made.offset) == (0.2, 0)
    assert Declaration("notify", (made,)).jobs == ("notify",)


def test_two_of_one_name_are_refused():
    """A declaration cannot be made of two SLOs with one name."""
    made = SLO("enrich", 99, Latency("200ms", stage="enrich"), "Fast.", "api-latency", "me")
    with pytest.raises(DeclarationError, match="SLOs: saw two SLOs named 'enrich'"):
        Declaration("notify", (made, made))
