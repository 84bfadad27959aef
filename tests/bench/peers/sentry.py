"""sentry-sdk: the queue instrumentation that its documentation describes, with a transport that throws away."""

from __future__ import annotations

from collections import deque
from typing import Any

import sentry_sdk
from sentry_sdk.transport import Transport

from tests.bench import floor as bare
from tests.bench.peers.common import Peer, Run, tell, times


class Nowhere(Transport):
    """Throws envelopes away."""

    def capture_envelope(self, envelope: Any) -> None:
        del envelope


def main() -> None:
    box: deque[tuple[bytes, dict[str, Any]]] = deque()

    def plain() -> None:
        box.append((bare.BODY, {}))
        box.popleft()

    def hop() -> None:
        with (
            sentry_sdk.start_transaction(op="function", name="producer"),
            sentry_sdk.start_span(op="queue.publish", name="orders") as span,
        ):
            _describe(span)
            headers = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
            box.append((bare.BODY, headers))
        _, found = box.popleft()
        with (
            sentry_sdk.start_transaction(sentry_sdk.continue_trace(found, op="function", name="consumer")),
            sentry_sdk.start_span(op="queue.process", name="orders") as span,
        ):
            _describe(span)
            span.set_data("messaging.message.receive.latency", 1.0)

    def at(rate: float) -> Run:
        def run(hops: int) -> None:
            sentry_sdk.init(
                dsn="http://key@127.0.0.1:9/1", transport=Nowhere, traces_sample_rate=rate, default_integrations=False,
                auto_enabling_integrations=False,
            )  # fmt: skip
            times(hop)(hops)

        return run

    what = "2 transactions, 2 spans, sentry-trace and baggage"
    tell(
        [
            Peer("sampled", "sentry-sdk", what, at(1.0), times(plain)),
            Peer("unsampled", "sentry-sdk, traces_sample_rate=0", f"{what}, not sampled", at(0.0), times(plain)),
        ],
        ("sentry-sdk", "opentelemetry-sdk"),
    )


def _describe(span: Any) -> None:
    span.set_data("messaging.message.id", "1")
    span.set_data("messaging.destination.name", "orders")
    span.set_data("messaging.message.body.size", len(bare.BODY))


main()
