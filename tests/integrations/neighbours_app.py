"""An application beside another vendor's tracer; run as a program by test_neighbours.py, which says what it prints.

    python -m tests.integrations.neighbours_app ddtrace|sentry|nobody with|without

It sends by confluent-kafka, Redis Streams and Celery, handles what it sent, and posts to a webhook; ``with`` rtobs or
without. The names of the tracer's own spans, the hops, and what arrived are printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

from tests.support.http import listening
from tests.support.timing import wait_until

theirs: list[str] = []
"""Names of the spans that the other tracer has finished."""


def start_ddtrace() -> None:
    """Patch every client that ddtrace knows, and let it write into Kafka's headers, which it does not by itself."""
    os.environ.update(
        DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_REMOTE_CONFIGURATION_ENABLED="false",
        DD_TRACE_STARTUP_LOGS="false", DD_KAFKA_PROPAGATION_ENABLED="true", DD_TRACE_AGENT_URL="http://127.0.0.1:9",
    )  # fmt: skip
    from ddtrace import patch
    from ddtrace.trace import TraceFilter, tracer

    class Keep(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            theirs.extend(span.name for span in trace)

    tracer.configure(trace_processors=[Keep()])
    patch(redis=True, kafka=True, celery=True, httpx=True)


def start_sentry() -> None:
    """Start Sentry's SDK with the integrations that it switches on by itself, every transaction sampled."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Keep(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                if item.type == "transaction":
                    event = item.get_transaction_event()
                    theirs.append(event["transaction"])
                    theirs.extend(span["op"] for span in event["spans"])

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Keep, traces_sample_rate=1.0)


def around() -> Any:
    """Return what Sentry needs around spans of its own."""
    if sys.argv[1] == "sentry":
        from sentry_sdk import start_transaction

        return start_transaction(name="the application's")
    return nullcontext()


def work(wrap: Any) -> dict[str, Any]:
    """Send by each transport and handle what was sent; return which journeys arrived, and the webhook's headers."""
    import confluent_kafka
    import httpx
    import redis
    from celery import Celery
    from celery.contrib.testing.worker import start_worker

    import rtobs

    name, arrived = f"rtobs-test-neighbours-{os.getpid()}", {}
    address = os.environ["KAFKA"]
    producer = wrap(confluent_kafka.Producer({"bootstrap.servers": address}))
    reader = {"bootstrap.servers": address, "group.id": "workers", "auto.offset.reset": "earliest"}
    consumer = wrap(confluent_kafka.Consumer(reader))
    streams = wrap(redis.Redis.from_url(os.environ["REDIS"]))
    app = Celery("shop", broker=os.environ["REDIS"], set_as_current=False)
    app.conf.update(task_default_queue=f"{name}-tasks", task_ignore_result=True, worker_hijack_root_logger=False)
    wrap(app)

    @app.task(name="work", shared=False)
    def handle() -> None:
        arrived["celery"] = rtobs.current().correlation_id

    with listening() as webhook, around(), rtobs.accept("/orders") as hop:
        producer.produce(name, b"x", partition=0)
        producer.flush(10)
        streams.xadd(name, {"a": 1})
        handle.delay()
        with rtobs.deliver("webhook", "crm"), wrap(httpx.Client()) as client:
            client.post(webhook.url("/hook"))
        sent = hop.correlation_id
        posted = sorted(webhook.received[0].headers)
    consumer.assign([confluent_kafka.TopicPartition(name, 0, 0)])
    record = wait_until(lambda: (found := consumer.poll(1.0)) and not found.error() and found, 30)
    with rtobs.consume("orders", record) as again:
        arrived["kafka"] = again.correlation_id
    consumer.close()
    ((_, entries),) = streams.xread({name: "0"})
    with rtobs.consume("orders", entries[0]) as again:
        arrived["redis"] = again.correlation_id
    streams.delete(name)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
        wait_until(lambda: "celery" in arrived, 30)
    written = sorted(key for key, _ in record.headers() or ())
    return {"sent": sent, "arrived": arrived, "posted": posted, "written": written, "value": record.value().decode()}


def main(tracer: str, how: str) -> None:
    {"ddtrace": start_ddtrace, "sentry": start_sentry, "nobody": lambda: None}[tracer]()

    import rtobs
    from rtobs import _conventions as names
    from tests.support import telemetry

    found = telemetry.start(propagate_to=["127.0.0.1"])
    done = work(rtobs.wrap if how == "with" else lambda client: client)
    if tracer == "ddtrace":
        from ddtrace.trace import tracer as theirs_too

        theirs_too.flush()
    hops = sorted(span.attributes["rtobs.hop"] for span in found.spans() if "rtobs.hop" in span.attributes)
    print(json.dumps({**done, "hops": hops, "theirs": theirs, "errors": found.count(names.INTERNAL_ERRORS)}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
