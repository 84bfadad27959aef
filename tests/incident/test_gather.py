"""Facts from a Prometheus: which alerts fired, since when it burns, which traces were bad; and text stays text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rtobs._prometheus import Example, PrometheusError, QueryError, Value, Values
from rtobs.incident import Alert, gather, summarise
from rtobs.incident.escape import literal
from rtobs.incident.gather import burning_since, chosen
from rtobs.slo import project
from tests.slo.support import EXAMPLE

END = 1_800_000_000.0
BEGIN = END - 1800


@pytest.fixture(scope="module")
def declaration():
    """The example's declaration."""
    return project.load(EXAMPLE).declaration


class Answers:
    """A Prometheus that knows when alerts fired, and refuses what it is told to."""

    def __init__(self, lines=(), refuses=""):
        self.lines = list(lines)
        self.refuses = refuses
        self.asked = []

    def instant(self, query, at=None):
        self.asked.append((query, at))
        if self.refuses and self.refuses in query:
            raise QueryError(query)
        return [Value({"slo": "delivery-5s", "__name__": "x"}, 1.0)]

    def over_time(self, query, begin, end, step):
        self.asked.append((query, end))
        return self.lines if query.startswith("ALERTS") else []

    def examples(self, query, begin, end):
        return []


def firing(name, *spans, **labels):
    points = tuple((float(at), 1.0) for first, last in spans for at in range(int(first), int(last) + 1, 30))
    labels = {"__name__": "ALERTS", "alertstate": "firing", "alertname": name, "service": "notify", **labels}
    return Values(labels, points)


def test_an_alert_that_fires_twice_is_two(declaration):
    """A pause ends an alert; one that fires to the end goes on."""
    asked = Answers([firing("A", (BEGIN, BEGIN + 300), (BEGIN + 600, END))])
    found = gather(asked, declaration, (), BEGIN, END).alerts
    assert [(alert.since - BEGIN, alert.until and alert.until - BEGIN) for alert in found] == [(0, 330), (600, None)]
    assert found[0].labels == {"alertname": "A", "service": "notify"}


def test_what_alertmanager_said_is_not_told_twice(declaration):
    """An alert that Alertmanager sent, with labels of its own, replaces what Prometheus shows of it."""
    sent = Alert({"alertname": "A", "service": "notify", "cluster": "eu"}, BEGIN + 1.5)
    asked = Answers([firing("A", (BEGIN, END)), firing("B", (BEGIN, END))])
    found = gather(asked, declaration, (sent,), BEGIN, END)
    assert [(alert.name, alert.since) for alert in found.alerts] == [("A", BEGIN + 1.5), ("B", BEGIN)]
    assert found.begin == BEGIN - 600 + 0


def test_nobody_hears_of_what_is_inhibited(declaration):
    """Beside a page of an SLO its ticket is silent, as Alertmanager's routes have it."""
    slo = {"slo": "delivery-5s"}
    page = firing("RtobsSLOBurn", (BEGIN, END), severity="page", **slo)
    ticket = firing("RtobsSLOBurnSlow", (BEGIN, END), severity="ticket", **slo)
    found = gather(Answers([page, ticket]), declaration, (), BEGIN, END).alerts
    assert [(alert.name, alert.inhibited) for alert in found] == [("RtobsSLOBurn", False), ("RtobsSLOBurnSlow", True)]


def test_one_refused_question_is_one_unknown(declaration):
    """A question that Prometheus refuses is not answered; all others are."""
    found = gather(Answers(refuses="slo:tenants_affected"), declaration, (), BEGIN, END)
    assert "affected" not in found.samples
    assert "active" in found.samples
    summary = summarise(found, declaration, ())
    assert "tenants affected" in summary.unknown
    assert summary.affected is None


def test_who_cannot_be_asked_is_told(declaration):
    """Where Prometheus cannot be asked, that is the caller's to tell."""

    class Gone(Answers):
        def over_time(self, query, begin, end, step):
            raise PrometheusError

    with pytest.raises(PrometheusError):
        gather(Gone(), declaration, (), BEGIN, END)


@given(st.lists(st.sampled_from([0.0, 1.0, 1.1, 20.0, float("nan")])))
def test_a_budget_burns_since_the_last_pause(burns):
    """A budget burns since the beginning of the last unbroken run above 1, if that run reaches the end."""
    points = list(enumerate(burns))
    since = burning_since(points)
    if since is None:
        assert not burns or not burns[-1] > 1
    else:
        assert all(burn > 1 for burn in burns[since:])
        assert since == 0 or not burns[since - 1] > 1


def example(trace, value, series="rtobs_delivery_end_to_end_seconds_bucket", **labels):
    return Example({"__name__": series, **labels}, {"trace_id": trace, "span_id": "1"}, value, END)


def test_traces_are_of_what_was_bad(declaration):
    """Failed tries and what was too late are examples, of each series the worst first; what was fine is not."""
    failed = example("f" * 32, 0.1, "rtobs_delivery_duration_seconds_bucket", result="failed", le="0.1")
    late, later = example("a" * 32, 6.0, channel="push", le="10"), example("b" * 32, 60.0, channel="push", le="+Inf")
    fine, none = example("c" * 32, 4.9, channel="push"), example("<script>", 99.0, channel="push")
    slow_api = example("d" * 32, 0.4, "rtobs_accept_duration_seconds_bucket", outcome="ok")
    found = chosen([fine, late, later, none, slow_api, failed], declaration)
    assert [one.trace_id[0] for one in found] == ["d", "f", "b", "a"]


@given(st.text(max_size=200))
def test_any_text_stays_text(text):
    """Whatever a label holds, a page shows it as one line of text, with no markup, HTML or link of its own."""
    page = MarkdownIt("commonmark", {"html": True}).enable("strikethrough")
    html = page.render(f"- **x**: {literal(text)} end\n")
    assert re.fullmatch(r"<ul>\n<li><strong>x</strong>: [^<>]* ?end</li>\n</ul>\n", html), html


@pytest.mark.parametrize("text", ["http://evil.example", "www.evil.example", "a\nb", "<b>&amp;", "[x](y)", "_x_ a_b"])
def test_addresses_and_lines_do_not_survive(text):
    """Addresses that pages make links of, line breaks and markup are taken apart; words with underscores are not."""
    found = literal(text)
    assert "://" not in found.replace(":\\//", "")
    assert "www." not in found
    assert "\n" not in found
    assert literal("rate_limited at fcm") == "rate_limited at fcm"
