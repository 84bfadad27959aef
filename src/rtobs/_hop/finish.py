"""What the end of a hop means: attempts, settlements, deliveries and promises are concluded here, once.

Reads and writes records only. It must not know metrics or clients; the table it applies is ``conclude``.
"""

from __future__ import annotations

from rtobs import _conventions as names
from rtobs._hop import conclude
from rtobs._hop.clock import age_us
from rtobs._hop.runtime import runtime
from rtobs._journey.classify import classify
from rtobs._journey.journey import Journey, intent_id
from rtobs._journey.message import Message
from rtobs._journey.outcome import ErrorCategory, Outcome, proven_step
from rtobs._journey.record import Delivery, DeliveryEnd, HopRecord


def finish(record: HopRecord, error: BaseException | None) -> None:  # noqa: C901  a kind each
    """Decide how *record* ended; *error* is what left its block, if anything did."""
    if error is not None:
        _from_error(record, error)
    elif _went_well(record):
        record.healthy = True
        record.outcome = Outcome.OK
        if record.kind == "consume":
            record.settled = Outcome.OK
            journey = record.journey
            if journey is not None and journey.rare is not None and journey.intent and record.scope is None:
                _carried(record)
        if record.rare is not None and record.intents:
            count_promises(record)
        return
    if record.kind == "consume":
        _consume(record)
    elif record.kind == "deliver":
        _attempt(record)
    elif record.kind == "job":
        _job(record)
    else:
        record.outcome = record.explicit or _plain(record)
    if record.scope is None:
        _deliveries(record)
    if record.intents and record.outcome is Outcome.OK:
        count_promises(record)


PLAIN_KINDS = frozenset({"accept", "publish", "consume", "receive", "receipt"})


def _went_well(record: HopRecord) -> bool:
    """Tell whether nothing went wrong, nothing was said and nothing was tried before or inside."""
    return (
        record.attempt == 1
        and record.kind in PLAIN_KINDS
        and (record.settlement == "" or record.settlement == "acked")  # noqa: PLR1714  cheaper than a look-up
        and (
            record.rare is None
            or (
                record.deliveries is None
                and record.explicit is None
                and record.category is None
                and not record.cancelled
                and not record.error_type
            )
        )
    )


def _from_error(record: HopRecord, error: BaseException) -> None:
    if not isinstance(error, Exception):
        record.cancelled = True
        record.reason = record.reason or "cancelled"
        return
    if record.category is None:
        verdict = classify(error)
        record.category = verdict.category or ErrorCategory.INTERNAL
        record.reason = record.reason or verdict.reason
        record.ambiguous = verdict.ambiguous


def _plain(record: HopRecord) -> Outcome:
    if record.cancelled:
        return Outcome.CANCELLED
    return Outcome.FAILED if record.category is not None else Outcome.OK


def _consume(record: HopRecord) -> None:
    message = record.message
    most = message.max_deliveries if message is not None else 0
    record.settled, reason = conclude.settle(
        explicit=record.explicit,
        settlement=record.settlement,
        manual=message is not None and message.manual,
        failed=record.category is not None,
        cancelled=record.cancelled,
        category=record.category,
        last_delivery=message is not None and 0 < most <= message.delivery_count,
        dead_letter=message.dead_letter if message is not None else None,
    )
    record.reason = record.reason or reason
    record.outcome = Outcome.CANCELLED if record.cancelled else record.settled


def _attempt(record: HopRecord) -> None:
    explicit = record.explicit
    if explicit is Outcome.OK:
        record.result, record.category = "ok", None
    elif record.cancelled or explicit is Outcome.CANCELLED:
        record.result = "cancelled"
    elif explicit is not None or record.category is not None:
        record.result = "failed"
        if explicit is Outcome.FAILED and record.category is None:
            record.category = ErrorCategory.INTERNAL
    else:
        record.result = "ok"
    record.outcome = explicit or Outcome(record.result)
    if record.result == "ok" and record.journey is not None:
        record.age = _age(record.journey)
    scope = record.scope
    if scope is None:
        return
    if scope.ended:  # the end of a hop is final; this attempt came after it and stands alone
        record.scope = None
        return
    _merge(record, scope)


def _merge(record: HopRecord, scope: HopRecord) -> None:
    """Let an attempt be the last of its delivery: the one of its channel and key."""
    deliveries = scope.deliveries
    if deliveries is None:
        deliveries = scope.deliveries = {}
    identity, keepalive = record.key
    found = deliveries.get((record.channel, identity))
    if found is None and identity is None:  # a `with` without key means the one of its channel
        same = [delivery for (channel, _), delivery in deliveries.items() if channel == record.channel]
        found = same[0] if len(same) == 1 else None
    if found is None:
        deliveries[record.channel, identity] = Delivery(record, keepalive)
    else:
        found.last = record
        found.attempts += 1


def _job(record: HopRecord) -> None:
    record.outcome = record.explicit or _plain(record)
    due_ns, window_ns = record.window
    begun_late = record.wall_ns > due_ns + window_ns
    ended_late = record.wall_ns + record.duration_ns > due_ns + window_ns
    if record.outcome is not Outcome.OK:
        record.state = "failed"
    elif begun_late:
        record.state = "missed"
    else:
        record.state = "late" if ended_late else "completed"


def _age(journey: Journey) -> float | None:
    span = age_us(runtime.wall_ns() // 1000, journey.created_us)
    return None if span is None else span / 1e6


# Deliveries ----------------------------------------------------------------------------------------------------------


def _deliveries(scope: HopRecord) -> None:
    """Conclude what was tried inside *scope*, or the one promise its message carries if nothing was."""
    found = scope.deliveries
    if scope.kind == "deliver":
        _one(scope, scope, several=False)
    if found:
        for delivery in list(found.values()):
            _one(scope, delivery.last, several=len(found) > 1)
    elif scope.kind == "consume":
        _carried(scope)
    if scope.intents and scope.delivery_ends:
        ended = {end.channel for end in scope.delivery_ends}
        if any(channel in ended for channel, _ in scope.intents):
            count_promises(scope)


def _one(scope: HopRecord, attempt: HopRecord, *, several: bool) -> None:
    settled = scope.settled if scope.settled is not None else Outcome.OK
    outcome = conclude.deliver(
        result=attempt.result,
        explicit=attempt.explicit,
        category=attempt.category,
        settled=settled,
        explicit_message=scope.explicit if scope.kind == "consume" else None,
    )
    if outcome is None:
        return
    journey = attempt.journey
    if journey is None:
        return
    _add(
        scope, journey, attempt.channel, attempt.provider, outcome, attempt.category, attempt.age,
        promised_here=not journey.promises(attempt.channel),
        repeated=several and scope.attempt > 1 and outcome is Outcome.OK,
        replay=_is_replay(scope),
    )  # fmt: skip


def _carried(scope: HopRecord) -> None:
    """End the one promise, if it was made, of a message whose handling ended for good without a delivery."""
    journey, message = scope.journey, scope.message
    if journey is None or not journey.intent or not journey.promises(journey.channel):
        return
    if message is not None and message.dead_cause:
        if message.dead_cause == "expired":
            outcome = Outcome.EXPIRED
        elif message.dead_cause == "limit":
            outcome = Outcome.DEAD_LETTERED
        else:
            return
        _add(scope, journey, journey.channel, names.NONE, outcome, None, None, promised_here=False)
        return
    settled = scope.settled
    if settled is None or settled is Outcome.RETRIED or scope.cancelled:
        return
    if settled is Outcome.OK and scope.sends:
        return  # it was passed on, and the promise with it
    age = _age(journey) if settled is Outcome.OK else None
    _add(
        scope,
        journey,
        journey.channel,
        names.NONE,
        settled,
        scope.category,
        age,
        promised_here=False,
        replay=_is_replay(scope),
    )


def _is_replay(scope: HopRecord) -> bool:
    message: Message | None = scope.message
    return (message is not None and (message.replay or bool(message.dead_cause))) or (
        scope.journey is not None and scope.journey.replay
    )


def _add(  # noqa: PLR0917  the facts of one ending, all of them needed
    scope: HopRecord, journey: Journey, channel: str, provider: str, outcome: Outcome, category: ErrorCategory | None,
    age: float | None, *, promised_here: bool, repeated: bool = False, replay: bool = False,
) -> None:  # fmt: skip
    if replay and outcome is not Outcome.OK:
        return  # a dead letter was counted once, when it died
    step = proven_step(channel)
    if outcome is not Outcome.OK:
        step = runtime.promises.get(channel, step)
    if promised_here or journey.promise_tenant is None:
        tenant, region, named = journey.tenant, journey.region, journey.named
    else:
        tenant, region, named = journey.promise_tenant, journey.promise_region or "", journey.promise_named
    ends = scope.delivery_ends
    if ends is None:
        ends = scope.delivery_ends = []
    ends.append(
        DeliveryEnd(
            channel, provider, step, outcome, category, tenant, named, region, journey.source, age,
            promised_here and not replay, repeated, replay,
        )
    )  # fmt: skip


def delivered_later(record: HopRecord, channel: str, provider: str) -> None:
    """Note that a receipt proves a later step of a delivery."""
    journey = record.journey
    if journey is None or record.step is None:
        return
    record.delivery_ends = [
        DeliveryEnd(
            channel, provider, record.step, Outcome.OK, None, journey.tenant, journey.named, journey.region,
            journey.source, _age(journey), promised_here=False, repeated=False, recovered=False,
        )
    ]  # fmt: skip


# Promises ------------------------------------------------------------------------------------------------------------


def promise(record: HopRecord, channel: str, count: int) -> None:
    """Promise *count* deliveries; they are counted when the hop ends ok, or when a message leaves it."""
    journey = record.journey
    if journey is None:
        return
    journey.promise(channel)
    if record.intents is None:
        record.intents = []
    record.intents.append((channel, count))
    if record.ended:
        count_promises(record)


def count_promises(record: HopRecord | None) -> None:
    """Count what *record* and the hops around it have promised so far: a message that relies on it has left.

    Where that message is held back on purpose, what it stands for is promised for its release.
    """
    release_ns, only = 0, ""
    if record is not None and record.kind == "publish" and record.message is not None and record.message.release_ns:
        release_ns, only = record.message.release_ns, record.promise_channel
    while record is not None:
        if record.rare is not None and record.intents:
            intents, record.intents = record.intents, None
            journey = record.journey
            if journey is not None:
                journey.freeze_promise()
                for channel, count in intents:
                    runtime.promise(journey, channel, count, release_ns if only in ("", channel) else 0)
        record = record.parent


def promise_of(record: HopRecord, channel: str, key: object) -> None:
    """Let the message that *record* publishes stand for one promise."""
    journey = record.journey
    if channel and journey is not None:
        record.promise_channel = channel
        record.promise_id = intent_id(journey.correlation_id, channel, "" if key is None else key)  # type: ignore[arg-type]
