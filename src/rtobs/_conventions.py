"""Every name that rtobs puts into telemetry, written once.

Emitters and the SLO generator both import it, so rules and dashboards cannot drift from what is exported.
Knows names, units and shapes; must not know how anything is measured.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

SCOPE: Final = "rtobs"
"""Instrumentation scope of everything we emit; rules filter on it."""

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# Headers -------------------------------------------------------------------------------------------------------------

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
JOURNEY: Final = "rtobs-journey"
OWN_HEADERS: Final = (TRACEPARENT, TRACESTATE, BAGGAGE, JOURNEY)
BAGGAGE_CID: Final = "rtobs.cid"
BAGGAGE_TENANT: Final = "rtobs.tenant"

# Labels --------------------------------------------------------------------------------------------------------------

OTHER: Final = "other"
"""What a label value becomes once its budget is used up."""
UNKNOWN: Final = "unknown"
"""A label nobody set."""
NONE: Final = "none"
"""Provider of a delivery that ended before anybody tried."""


class Label(StrEnum):
    """Metric label names: short words, except where a semantic convention gives the name."""

    ROUTE = "route"
    OUTCOME = "outcome"
    RESULT = "result"
    ERROR_CATEGORY = "error_category"
    CHANNEL = "channel"
    PROVIDER = "provider"
    DESTINATION = "destination"
    TENANT = "tenant"
    REGION = "region"
    SOURCE = "source"
    STAGE = "stage"
    STEP = "step"
    LAG_SOURCE = "lag_source"
    CONNECTOR = "connector"
    STATE = "state"
    REASON = "reason"
    SITE = "site"
    SIGNAL = "signal"
    LABEL = "label"
    EVENT = "event"
    KIND = "kind"
    ROLE = "role"
    WORKER = "worker"
    ESTIMATED = "estimated"
    SLO = "slo"
    REVISION = "revision"
    SYSTEM = "messaging.system"
    OPERATION = "messaging.operation.name"
    MESSAGING_DESTINATION = "messaging.destination.name"
    ERROR_TYPE = "error.type"


# Instruments ---------------------------------------------------------------------------------------------------------

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The bounds that semantic conventions advise for messaging durations, seconds."""
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""For waits and journeys, which may take an hour, seconds."""
_SENDS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0, 2048.0)


class Instrument(NamedTuple):
    """One metric: what is counted, in which unit, by which labels, and how many Prometheus series it may cost."""

    name: str
    kind: str
    """``counter``, ``histogram`` or ``gauge``."""
    unit: str
    labels: tuple[Label, ...]
    series: int
    """Ceiling of label combinations in one process (a histogram's buckets come on top)."""
    description: str
    bounds: tuple[float, ...] = ()


_MESSAGING = (Label.SYSTEM, Label.OPERATION, Label.MESSAGING_DESTINATION, Label.ERROR_TYPE)

ACCEPT_DURATION: Final = Instrument(
    "rtobs.accept.duration", "histogram", "s", (Label.ROUTE, Label.OUTCOME, Label.ERROR_CATEGORY), 40,
    "Time to accept one message at the API.", _SHORT,
)  # fmt: skip
CLIENT_DURATION: Final = Instrument(
    "messaging.client.operation.duration", "histogram", "s", _MESSAGING, 70,
    "Duration of one send, receive, ack or nack.", _SHORT,
)  # fmt: skip
PROCESS_DURATION: Final = Instrument(
    "messaging.process.duration", "histogram", "s", _MESSAGING, 60, "Duration of processing one message.", _SHORT,
)  # fmt: skip
SENT_MESSAGES: Final = Instrument(
    "messaging.client.sent.messages", "counter", "{message}", _MESSAGING, 200, "Messages that were sent.",
)  # fmt: skip
CONSUMED_MESSAGES: Final = Instrument(
    "messaging.client.consumed.messages", "counter", "{message}", _MESSAGING, 200, "Messages that were consumed.",
)  # fmt: skip
MESSAGE_LAG: Final = Instrument(
    "rtobs.message.lag", "histogram", "s", (Label.DESTINATION, Label.LAG_SOURCE), 40,
    "Wait between sending a message and the start of its handler.", _LONG,
)  # fmt: skip
MESSAGE_SETTLED: Final = Instrument(
    "rtobs.message.settled", "counter", "{message}",
    (Label.DESTINATION, Label.OUTCOME, Label.ERROR_CATEGORY, Label.TENANT, Label.SOURCE), 1000,
    "How each handling of a message ended.",
)  # fmt: skip
MESSAGE_REDELIVERED: Final = Instrument(
    "rtobs.message.redelivered", "counter", "{message}", (Label.DESTINATION,), 66,
    "Messages that arrived a second time or later.",
)  # fmt: skip
MESSAGE_FANOUT: Final = Instrument(
    "rtobs.message.fanout", "histogram", "{message}", (Label.DESTINATION,), 20,
    "Messages that one hop sent on.", _SENDS,
)  # fmt: skip
STAGE_DURATION: Final = Instrument(
    "rtobs.stage.duration", "histogram", "s", (Label.STAGE, Label.OUTCOME), 50, "Time in one stage.", _SHORT,
)  # fmt: skip
INTENTS: Final = Instrument(
    "rtobs.delivery.intents", "counter", "{delivery}",
    (Label.CHANNEL, Label.TENANT, Label.REGION, Label.SOURCE), 1200, "Deliveries that were promised.",
)  # fmt: skip
ATTEMPTS: Final = Instrument(
    "rtobs.delivery.attempts", "counter", "{attempt}",
    (Label.CHANNEL, Label.PROVIDER, Label.RESULT, Label.ERROR_CATEGORY), 400, "Tries to deliver.",
)  # fmt: skip
DELIVERY_DURATION: Final = Instrument(
    "rtobs.delivery.duration", "histogram", "s",
    (Label.CHANNEL, Label.PROVIDER, Label.RESULT, Label.ERROR_CATEGORY), 90, "Duration of one try to deliver.", _SHORT,
)  # fmt: skip
OUTCOMES: Final = Instrument(
    "rtobs.delivery.outcomes", "counter", "{delivery}",
    (Label.CHANNEL, Label.PROVIDER, Label.STEP, Label.OUTCOME, Label.ERROR_CATEGORY, Label.TENANT, Label.REGION), 1500,
    "How each promised delivery ended.",
)  # fmt: skip
END_TO_END: Final = Instrument(
    "rtobs.delivery.end_to_end", "histogram", "s", (Label.CHANNEL, Label.STEP), 30,
    "Age of the journey when a delivery reached a step.", _LONG,
)  # fmt: skip
RECOVERED: Final = Instrument(
    "rtobs.delivery.recovered", "counter", "{delivery}", (Label.CHANNEL, Label.PROVIDER), 100,
    "Deliveries that a replay from the dead-letter queue saved.",
)  # fmt: skip
AMBIGUOUS: Final = Instrument(
    "rtobs.delivery.ambiguous", "counter", "{attempt}", (Label.CHANNEL, Label.PROVIDER), 100,
    "Failed tries that may have arrived all the same.",
)  # fmt: skip
REPEATED: Final = Instrument(
    "rtobs.delivery.repeated", "counter", "{delivery}", (Label.CHANNEL, Label.PROVIDER), 100,
    "Successes that a redelivered message with several deliveries may have counted before.",
)  # fmt: skip
JOBS: Final = Instrument(
    "rtobs.connector.jobs", "counter", "{job}", (Label.CONNECTOR, Label.STATE), 130,
    "Scheduled connector runs by how they kept their window.",
)  # fmt: skip
_PROMISED = (Label.SLO, Label.TENANT, Label.CHANNEL, Label.CONNECTOR)
SLO_EXPECTED: Final = Instrument(
    "rtobs.slo.expected", "counter", "{event}", _PROMISED, 1000, "Events that a declared SLO is about.",
)  # fmt: skip
SLO_GOOD: Final = Instrument(
    "rtobs.slo.good", "counter", "{event}", _PROMISED, 1000, "Those of them that kept the promise.",
)  # fmt: skip
SLO_INFO: Final = Instrument(
    "rtobs.slo.info", "gauge", "{slo}", (Label.SLO, Label.REVISION), 64,
    "1 for each SLO that this process counts, by the revision of its declaration.",
)  # fmt: skip
QUEUE_DEPTH: Final = Instrument(
    "rtobs.queue.depth", "gauge", "{message}", (Label.DESTINATION, Label.ROLE), 200,
    "Messages that wait at the broker, as of its last answer.",
)  # fmt: skip
QUEUE_AGE: Final = Instrument(
    "rtobs.queue.oldest_age", "gauge", "s", (Label.DESTINATION, Label.ROLE, Label.ESTIMATED), 200,
    "Age of the oldest message that waits at the broker.",
)  # fmt: skip
BUSY_TIME: Final = Instrument(
    "rtobs.worker.busy_time", "counter", "s", (Label.WORKER,), 34,
    "Time that handlers have held messages, those that run now included.",
)  # fmt: skip
CAPACITY_TIME: Final = Instrument(
    "rtobs.worker.capacity_time", "counter", "s", (Label.WORKER,), 34,
    "Time that handlers could have held messages: slots times elapsed time.",
)  # fmt: skip
BACKPRESSURE: Final = Instrument(
    "rtobs.worker.backpressure", "counter", "{occurrence}", (Label.REASON,), 16,
    "Times that this process was held back, or held its broker back.",
)  # fmt: skip
EVENTLOOP_LAG: Final = Instrument(
    "rtobs.eventloop.lag", "histogram", "s", (), 1, "How much later than due an event loop runs what is ready.",
    (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)  # fmt: skip
HOPS_ACTIVE: Final = Instrument(
    "rtobs.hop.active", "gauge", "{hop}", (Label.KIND,), 8, "Hops that are running now.",
)  # fmt: skip
HOPS_UNTRACKED: Final = Instrument(
    "rtobs.hop.untracked", "counter", "{hop}", (Label.KIND,), 8, "Hops that began while 10,000 others were open.",
)  # fmt: skip
EVENTS: Final = Instrument(
    "rtobs.event.count", "counter", "{event}", (Label.EVENT,), 66, "Domain events by name.",
)  # fmt: skip
INTERNAL_ERRORS: Final = Instrument(
    "rtobs.internal.errors", "counter", "{error}", (Label.SITE,), 66,
    "Faults inside rtobs that were kept from the host.",
)  # fmt: skip
LABELS_LIMITED: Final = Instrument(
    "rtobs.labels.limited", "counter", "{measurement}", (Label.LABEL, Label.REASON), 66,
    "Measurements whose label value became `other`.",
)  # fmt: skip
LABELS_USED: Final = Instrument(
    "rtobs.labels.used", "gauge", "{value}", (Label.LABEL,), 16, "Distinct values a label has admitted.",
)  # fmt: skip
LABELS_LIMIT: Final = Instrument(
    "rtobs.labels.limit", "gauge", "{value}", (Label.LABEL,), 16, "Distinct values a label may admit.",
)  # fmt: skip
PROPAGATION_MISSING: Final = Instrument(
    "rtobs.propagation.missing", "counter", "{message}", (Label.DESTINATION,), 66,
    "Messages that were consumed without a journey in their headers.",
)  # fmt: skip
PROPAGATION_REJECTED: Final = Instrument(
    "rtobs.propagation.rejected", "counter", "{header}", (Label.REASON,), 32,
    "Headers that were not valid, or could not be written.",
)  # fmt: skip
CLOCK_REJECTED: Final = Instrument(
    "rtobs.clock.rejected", "counter", "{measurement}", (Label.REASON,), 8,
    "Time spans across hosts that cannot be true and were not recorded.",
)  # fmt: skip
TELEMETRY_DROPPED: Final = Instrument(
    "rtobs.telemetry.dropped", "counter", "{item}", (Label.SIGNAL, Label.REASON), 32,
    "Spans, log events and metric points that were not exported.",
)  # fmt: skip
SAMPLING_KEPT: Final = Instrument(
    "rtobs.sampling.kept", "counter", "{hop}", (Label.REASON,), 32, "Hops whose spans were kept, by why.",
)  # fmt: skip
SAMPLING_SHED: Final = Instrument(
    "rtobs.sampling.shed", "counter", "{hop}", (Label.REASON,), 4,
    "Hops that there was a reason to keep, and no room for.",
)  # fmt: skip
SPANS_REBUILT: Final = Instrument(
    "rtobs.sampling.rebuilt", "counter", "{span}", (), 1, "Spans of other processes that were rebuilt from a ledger.",
)  # fmt: skip

INSTRUMENTS: Final[dict[str, Instrument]] = {
    value.name: value for value in list(globals().values()) if isinstance(value, Instrument)
}
"""All of the above by name."""


def prometheus_name(instrument: Instrument) -> str:
    """Return the name under which Prometheus stores *instrument* (OTLP and scrape agree).

    Follows the OpenTelemetry "Prometheus and OpenMetrics compatibility" page: dots become underscores, the unit is
    spelled out, counters end in ``_total``; units in braces are annotations and are left out.
    """
    name = instrument.name.replace(".", "_")
    unit = {"s": "seconds", "By": "bytes"}.get(instrument.unit, "")
    if unit:
        name = f"{name}_{unit}"
    return f"{name}_total" if instrument.kind == "counter" else name


def prometheus_label(label: str) -> str:
    """Return the Prometheus spelling of a label or attribute name."""
    return label.replace(".", "_")


# Span attributes and log keys ----------------------------------------------------------------------------------------


DELIVERY_EVENT: Final = "rtobs.delivery"
"""Span event on the hop that decided how a promised delivery ended."""


class Attribute(StrEnum):
    """Span attribute names: a label's word behind ``rtobs.``, or the semantic convention's name."""

    CORRELATION_ID = "rtobs.correlation_id"
    CONVERSATION_ID = "messaging.message.conversation_id"
    HOP = "rtobs.hop"
    OUTCOME = "rtobs.outcome"
    RESULT = "rtobs.result"
    ERROR_CATEGORY = "rtobs.error_category"
    REASON = "rtobs.reason"
    CHANNEL = "rtobs.channel"
    PROVIDER = "rtobs.provider"
    DESTINATION = "rtobs.destination"
    TENANT = "rtobs.tenant"
    REGION = "rtobs.region"
    SOURCE = "rtobs.source"
    DEVICE_TYPE = "rtobs.device_type"
    STEP = "rtobs.step"
    STAGE = "rtobs.stage"
    ATTEMPT = "rtobs.attempt"
    INTENT_ID = "rtobs.intent_id"
    LAG = "rtobs.lag"
    LAG_SOURCE = "rtobs.lag_source"
    AGE = "rtobs.journey.age"
    SENDS = "rtobs.sends"
    SETTLEMENT = "rtobs.settlement"
    SAMPLING_REASON = "rtobs.sampling.reason"
    RECONSTRUCTED = "rtobs.reconstructed"
    LEDGER_BYTES = "rtobs.ledger.bytes"
    LEDGER_LEFT_OUT = "rtobs.ledger.left_out"
    MAYBE_DELIVERED = "rtobs.maybe_delivered"
    CLIENT_ID = "rtobs.client_id"
    ROUTE = "rtobs.route"
    CONNECTOR = "rtobs.connector"
    STATE = "rtobs.state"
    SYSTEM = Label.SYSTEM.value
    OPERATION_NAME = Label.OPERATION.value
    OPERATION_TYPE = "messaging.operation.type"
    DESTINATION_NAME = Label.MESSAGING_DESTINATION.value
    DESTINATION_TEMPLATE = "messaging.destination.template"
    ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
    MESSAGE_ID = "messaging.message.id"
    ADDRESS = "rtobs.address"
    CONSUMER_GROUP = "messaging.consumer.group.name"
    PENDING = "rtobs.message.pending"
    BATCH_COUNT = "messaging.batch.message_count"
    PARTITION = "messaging.destination.partition.id"
    KAFKA_OFFSET = "messaging.kafka.offset"
    KAFKA_KEY = "messaging.kafka.message.key"
    KAFKA_TOMBSTONE = "messaging.kafka.message.tombstone"
    ERROR_TYPE = Label.ERROR_TYPE.value
    HTTP_METHOD = "http.request.method"
    HTTP_STATUS = "http.response.status_code"
    HTTP_RESENDS = "http.request.resend_count"
    SERVER_ADDRESS = "server.address"
    SERVER_PORT = "server.port"
    RETRY_AFTER = "rtobs.retry_after"


class LogKey(StrEnum):
    """Keys of a log event; the same words as in spans, without prefix, as people type them at 3 a.m."""

    EVENT = "event"
    LEVEL = "level"
    TIMESTAMP = "timestamp"
    STREAM = "stream"
    SERVICE = "service"
    HOP = "hop"
    TENANT_ID = "tenant_id"
    EVENT_ID = "event_id"
    CORRELATION_ID = "correlation_id"
    DESTINATION = "destination"
    RETRY_COUNT = "retry_count"
    ERROR_CATEGORY = "error_category"
    OUTCOME = "outcome"
    REASON = "reason"
    TRACE_ID = "trace_id"
    SPAN_ID = "span_id"
    CHANNEL = "channel"
    PROVIDER = "provider"
    DURATION = "duration_s"
    LAG = "lag_s"
    AGE = "age_s"
    ERROR = "error"
    STAGE = "stage"
    EXPLAINS = "explains"


REQUIRED_LOG_KEYS: Final = (
    LogKey.TENANT_ID, LogKey.EVENT_ID, LogKey.CORRELATION_ID, LogKey.DESTINATION, LogKey.RETRY_COUNT,
    LogKey.ERROR_CATEGORY, LogKey.OUTCOME, LogKey.REASON, LogKey.TRACE_ID, LogKey.SPAN_ID,
)  # fmt: skip
"""Keys that every log event has, empty where nothing is known: people filter by them."""
