"""required.toml: what is read, what is refused, and how it grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtobs.incident import Facts, required, summarise
from rtobs.incident.signals import SIGNALS, demanded
from rtobs.slo import DeclarationError, project
from rtobs.slo.model import SLO, Declaration, Ratio
from tests.slo.support import EXAMPLE

GOOD = """\
[[required]]
signal = "queue-age"
missed = "2027-01-15, notify: RtobsLagGrowing"

[[required]]
stage = "look_up_customer"
missed = "the same: nobody saw where the time went"
"""


def test_requirements_are_read(tmp_path):
    """Signals and names are read with their lines."""
    file = tmp_path / "required.toml"
    file.write_text(GOOD)
    found = required.read(file)
    assert [(one.kind, one.name) for one in found] == [("signal", "queue-age"), ("stage", "look_up_customer")]
    assert [one.place for one in found] == [f"{file}:2", f"{file}:6"]


@pytest.mark.parametrize(
    ("good", "broken", "told"),
    [
        ('signal = "queue-age"\n', "", ":1: required[0]: saw nothing that is required; give one of signal, route,"),
        ('stage = "l', 'route = "/x"\nstage = "l', ": required[1]: saw route and stage; give one of signal,"),
        ('"queue-age"', '"age"', ':2: required[0].signal: saw "age"; give tenants, promises, deliveries,'),
        ('missed = "2', 'why = "2', ':3: required[0].why: saw the key "why", which means nothing here;'),
        ("[[required]]\nstage", "[[stage]]\nstage", ':5: stage: saw the key "stage", which means nothing here;'),
        ("[[required]]\nsignal", "[[required\nsignal", ": this is not TOML ("),
    ],
)
def test_a_broken_file_is_told(good, broken, told, tmp_path):
    """A mistake is told with file and line, what was seen, and what to do."""
    file = tmp_path / "required.toml"
    file.write_text(GOOD.replace(good, broken, 1))
    with pytest.raises(DeclarationError) as caught:
        required.read(file)
    assert any(f"{file}" in one and told in one for one in map(str, caught.value.mistakes)), str(caught.value)


def test_it_grows_by_what_is_new(tmp_path):
    """What is missing is added below what people wrote, once, and a broken file is left alone."""
    file = tmp_path / "sub" / "required.toml"
    assert required.extend(file, SIGNALS[:2], "first") == 2
    file.write_text(file.read_text() + "# by hand\n" + GOOD)
    before = file.read_text()
    assert required.extend(file, SIGNALS, "second") == len(SIGNALS) - 3
    assert file.read_text().startswith(before)
    assert required.extend(file, SIGNALS, "third") == 0
    file.write_text("[[required")
    with pytest.raises(DeclarationError):
        required.extend(file, SIGNALS, "fourth")
    assert file.read_text() == "[[required"


@given(st.text(min_size=1).filter(str.strip))
def test_whatever_alerts_are_called_it_can_be_read_again(missed):
    """Any text that says what was missed makes a file that can be read, or says that it has no such line."""
    text = required.extended("", (), SIGNALS[:1], f"missed: {missed}"[:190])
    (one,) = required._read(required.source.parse(text, "TOML", "required.toml"))
    assert (one.kind, one.name) == ("signal", SIGNALS[0].name)


def test_only_what_a_service_can_have_is_demanded():
    """A service of API requests alone is not asked for the age of queues, nor for deliveries or tenants."""
    api = Declaration("api", (SLO("ack", 99, Ratio("accept", ("failed",)), "d", "p", "me"),))
    assert demanded(api) == {"promises", "coverage", "versions", "onset", "traces"}
    found = project.load(EXAMPLE)
    summary = summarise(Facts(0, 1), found.declaration, found.playbooks)
    assert [one.name for one in required.lacking(summary, found.declaration)] == [one.name for one in SIGNALS]
    assert [one.name for one in required.lacking(summary, api)] == [
        one.name for one in SIGNALS if one.name in demanded(api)
    ]
