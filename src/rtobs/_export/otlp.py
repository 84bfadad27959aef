"""The ways out: bytes that we join and post ourselves, or an exporter of the SDK's.

Must not know queues, the environment or when to try again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._export.convert import check_encodable, log_record
from rtobs._export.encoder import SpanEncoder, request
from rtobs._export.transport import Answer, Transport, Unit
from rtobs._journey.record import HopRecord
from rtobs._telemetry.foreign import cleaned
from rtobs._telemetry.readable import readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from rtobs._export.sender import Sender

MakeUnit = Callable[[Any], Unit]
Join = Callable[[list[Any]], bytes]


# By our own hands ----------------------------------------------------------------------------------------------------


def posted(signal: str, sender: Sender, timeout: float, resource: Resource, join: Join) -> Transport:
    """Return the way of *signal* through *sender*; *join* is what ``joining`` returns for it."""
    unit = _encoded(resource) if signal == "spans" else _converted(signal, resource)

    def send(units: Sequence[Unit], deadline: float) -> Answer:
        return sender.post(join([content for _, _, content in units]), deadline)

    return Transport(unit, send, sender.close, timeout, sender.where)


def _encoded(resource: Resource) -> MakeUnit:
    """Return what makes bytes of a hop with its stages, and of another library's span."""
    encoder = SpanEncoder(resource)

    def unit(item: Any) -> Unit:
        before = encoder.lost
        found = encoder.hop(item) if isinstance(item, HopRecord) else encoder.span(cleaned(item))
        if encoder.lost != before:
            _guard.tally(names.TELEMETRY_DROPPED, "attributes", "encode", by=encoder.lost - before)
            _guard.tell("export.attributes", "attributes that OTLP has no form for are left out of their spans")
        return found

    return unit


def joining(signal: str) -> Join:
    """Return what makes a request of the contents of units: spans are our bytes, the others the SDK encodes."""
    if signal == "spans":
        return request
    if signal == "logs":
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs  # it has no other name yet

        return lambda records: _bytes(encode_logs(records))
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    return lambda whole: _bytes(encode_metrics(whole[0]))


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


# By an exporter of the SDK's -----------------------------------------------------------------------------------------


def exported(signal: str, exporter: Any, resource: Resource) -> Transport:
    """Return the way of *signal* through an exporter, which has its own timeout and tries again by itself."""
    unit = _converted(signal, resource)

    def send(units: Sequence[Unit], _deadline: float) -> Answer:
        batch: Any = [content for _, _, content in units]
        if signal == "spans":
            batch = [span for spans in batch for span in spans]
        try:
            result = exporter.export(batch[0] if signal == "metrics" else batch)
        except Exception as error:  # noqa: BLE001  it may raise what it likes; the thread must live on
            return Answer("failed", "exporter", type(error).__name__, final=True)
        if result is None or getattr(result, "name", "") == "SUCCESS":
            return Answer("taken")
        return Answer("failed", "exporter", "its own log says why", final=True)

    return Transport(unit, send, exporter.shutdown, where=type(exporter).__module__)


def _converted(signal: str, resource: Resource) -> MakeUnit:
    """Return what puts an item into the SDK's own form."""

    def span(item: Any) -> Unit:
        if isinstance(item, HopRecord):
            spans = readable(item, resource)
            return len(spans), 0, spans
        foreign = cleaned(item)
        check_encodable(foreign)
        return 1, 0, [foreign]

    def log(item: Any) -> Unit:
        event, time_ns = item
        return 1, 0, log_record(event, resource, time_ns)

    def metrics(item: Any) -> Unit:
        return 1, 0, item

    return {"spans": span, "logs": log, "metrics": metrics}[signal]
