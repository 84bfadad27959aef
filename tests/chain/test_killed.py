"""A consumer that is killed in the middle of a message, on each broker: what the one that comes after it measures."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from rtobs import _conventions as names
from tests._export.collector import Collected, collector
from tests.chain import worker
from tests.chain.processes import exporting, running, series, spans, total
from tests.support.timing import wait_until

pytestmark = pytest.mark.timeout(180)  # three processes on what may be one busy core


class Story(NamedTuple):
    """What is known after one worker was killed and another one has done its work, by broker."""

    journeys: dict[str, str]
    moments: dict[str, dict[str, int]]
    """When each message was created, sent, handled and delivered, by the survivor's own books; nanoseconds."""
    collected: Collected

    def hop(self, kind: str, broker: str) -> Any:
        """Return the one exported span of a kind of hop."""
        found = [
            span
            for span in spans(self.collected, kind)
            if span.attributes["rtobs.correlation_id"] == self.journeys[broker]
            and span.attributes.get("rtobs.channel", "webhook") == "webhook"
        ]
        assert len(found) == 1
        return found[0]

    def counts(self, instrument: names.Instrument, which: dict[str, str], *labels: str) -> dict[Any, int]:
        """Return the counts of all processes, the dead one included, by the values of some labels."""
        found: dict[Any, int] = {}
        for one in series(self.collected, instrument.name):
            if which.items() <= one.labels.items() and one.value:
                key = tuple(one.labels[label] for label in labels)
                found[key] = found.get(key, 0) + int(one.value)
        return found


@pytest.fixture(scope="module")
def story(amqp_url, redis_url, nats_url, unique, tmp_path_factory):
    """Let one worker die while it has a message of each broker, and another one take them over."""
    name = unique("killed").replace("-", "_")
    with collector("http", tmp_path_factory.mktemp("killed") / "otlp") as collected:
        variables = exporting(collected, every=0.2)
        with (
            running(worker.__name__, "survivor", name, **variables) as survivor,
            running(worker.__name__, "victim", name, **variables) as victim,
        ):
            assert survivor.says("ready")
            assert victim.says("ready")
            survivor.tell()
            journeys = survivor.says("sent")
            assert victim.says("handled", survivor) == journeys
            # the dead worker has told the collector of what it had done
            wait_until(lambda: total(collected, names.ATTEMPTS.name) == len(journeys))
            victim.kill()
            survivor.tell()
            moments = survivor.says("moments")
            assert survivor.close("flushed")["flushed"]
        yield Story(journeys, moments, collected)


@pytest.mark.parametrize("broker", worker.BROKERS)
def test_a_killed_consumers_message_is_the_second_attempt(story, broker, capsys):
    """After a SIGKILL in a handler the next one has attempt 2 of the same journey, its true lag and its true age."""
    consumed, delivered, moments = story.hop("consume", broker), story.hop("deliver", broker), story.moments[broker]
    assert consumed.service == delivered.service == "survivor"
    assert consumed.trace_id == story.journeys[broker]
    assert consumed.attributes["rtobs.attempt"] == delivered.attributes["rtobs.attempt"] == 2
    assert total(story.collected, names.MESSAGE_REDELIVERED.name, destination=consumed.name.split()[1]) == 1
    lag, waited = consumed.attributes["rtobs.lag"], (moments["begun"] - moments["sent"]) / 1e9
    age, took = delivered.attributes["rtobs.journey.age"], (moments["delivered"] - moments["created"]) / 1e9
    with capsys.disabled():
        print(
            f"\n{broker:16} waited {waited:.3f} s, lag is off by {1e3 * abs(lag - waited):.3f} ms; "
            f"end to end {took:.3f} s, off by {1e3 * abs(age - took):.3f} ms",
            end="",
        )
    assert waited > 0.1  # for the dead worker
    assert lag == pytest.approx(waited, abs=0.050)
    assert age == pytest.approx(took, abs=0.050)


@pytest.mark.parametrize("broker", worker.BROKERS)
def test_what_a_killed_consumer_had_promised_ends_once(story, broker):
    """Promises and outcomes of both workers add up: each promise is counted once, and ended once where it was tried."""
    own = {"tenant": broker}
    promised = story.counts(names.INTENTS, own, "channel")
    assert promised == {("webhook",): 1, ("sms",): 1, ("email",): 1}
    ended = story.counts(names.OUTCOMES, own, "channel", "outcome")
    assert ended == {("webhook", "ok"): 1, ("sms", "ok"): 1}  # nobody has tried the e-mail: it is open
    tried = story.counts(names.ATTEMPTS, {"provider": broker}, "channel", "result")
    assert tried == {("sms", "ok"): 2, ("webhook", "ok"): 1}
    assert story.counts(names.MESSAGE_SETTLED, own, "outcome") == {("ok",): 1}


def test_end_to_end_is_counted_once(story):
    """`rtobs.delivery.end_to_end` of both workers holds the age of each delivery once."""
    (found,) = (one for one in series(story.collected, names.END_TO_END.name) if one.labels["channel"] == "webhook")
    ages = [story.hop("deliver", broker).attributes["rtobs.journey.age"] for broker in worker.BROKERS]
    assert found.count == len(ages)
    assert found.value == pytest.approx(sum(ages))
