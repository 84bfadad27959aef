"""The inbox: alerts heard one after the other become incidents."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rtobs.incident import Alert
from rtobs.incident.receiver import MOST_ALERTS, Inbox, name_of
from rtobs.slo.model import SLO, Declaration, Ratio

NOTIFY = Declaration("notify", (SLO("ack", 99, Ratio("accept", ("failed",)), "d", "p", "me"),))


def alert(name, since, until=None, service="notify"):
    return Alert({"alertname": name, "service": service}, float(since), until)


POSTS = st.lists(
    st.lists(
        st.builds(
            lambda name, since, ended, service: alert(name, since, since + 5.0 if ended else None, service),
            st.sampled_from("ABC"),
            st.integers(0, 3),
            st.booleans(),
            st.sampled_from(["notify", "notify", "shop"]),
        ),
        max_size=4,
    ),
    max_size=12,
)


@given(POSTS)
def test_an_incident_goes_on_until_all_of_its_alerts_have_ended(posts):
    """Whatever is posted, an incident holds each alert once as it was last heard, and is over when none fires."""
    inbox, expected, name = Inbox(NOTIFY), {}, ""
    for post in posts:
        ours = [one for one in post if one.labels["service"] == "notify"]
        incident = inbox.hear(post)
        if not ours:
            assert incident is None
            continue
        expected |= {(one.name, one.since): one for one in ours}
        assert {(one.name, one.since): one for one in incident.alerts.values()} == expected
        assert incident.over == all(one.until is not None for one in expected.values())
        assert name in ("", incident.name)
        name = incident.name
        if incident.over:
            expected, name = {}, ""


def test_what_could_not_be_written_is_the_same_incident_again():
    """An incident that is opened again keeps its name and its alerts."""
    inbox = Inbox(NOTIFY)
    first = inbox.hear([alert("A", 0, 5.0)])
    inbox.again(first)
    second = inbox.hear([alert("B", 60, 65.0)])
    assert second is first
    assert len(second.alerts) == 2
    assert inbox.hear([alert("C", 120)]) is not first


def test_a_flood_of_alerts_is_bounded():
    """Of one incident no more than a thousand alerts are kept; those that are kept can still end."""
    inbox = Inbox(NOTIFY)
    incident = inbox.hear(alert(f"A{number}", 0) for number in range(MOST_ALERTS + 500))
    assert len(incident.alerts) == MOST_ALERTS
    assert inbox.hear(alert(f"A{number}", 0, 5.0) for number in range(MOST_ALERTS)).over


@given(st.text(), st.floats(0, 4e9))
def test_names_are_names_of_files(service, begin):
    """Whatever a service is called, its incident's files have names that every system takes."""
    assert re.fullmatch(r"\d{8}T\d{6}Z-[A-Za-z0-9_-]{0,60}", name_of(service, begin))
