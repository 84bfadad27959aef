"""The OTLP receiver: what real exporters send arrives; what is hostile is refused and bounded."""

from __future__ import annotations

import gzip
import http.client
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from rtobs.demo import receiver as receiving
from rtobs.demo.receiver import PROTOBUF, Forwarder, Receiver
from rtobs.demo.telemetry import Telemetry
from tests.demo import support


def post(address: str, path: str, body: bytes, **headers: str) -> int:
    """Send one raw request and return the status."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
    try:
        sent = {"Content-Type": PROTOBUF} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, sent)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_real_exporters(compression):
    """The SDK's own exporters, with every compression they know, deliver metrics and spans."""
    telemetry = Telemetry()
    resource = Resource({"service.name": "shop", "service.instance.id": "shop-1"})
    with Receiver(telemetry) as receiver:
        metric_exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics", compression=compression)
        meters = MeterProvider([PeriodicExportingMetricReader(metric_exporter)], resource)
        meters.get_meter("test").create_counter("sold").add(3, {"what": "tea"})
        meters.shutdown()
        tracers = TracerProvider(resource=resource)
        span_exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces", compression=compression)
        tracers.add_span_processor(SimpleSpanProcessor(span_exporter))
        with tracers.get_tracer("test").start_as_current_span("sell", attributes={"rtobs.correlation_id": "0a" * 16}):
            pass
        tracers.shutdown()
        assert telemetry.total("sold", what="tea") == 3
        assert [span.service for span in telemetry.journey("0a" * 16)] == ["shop"]


def test_bodies_are_bounded(monkeypatch):
    """A body beyond the limit is refused, also one that only becomes so large when it is unpacked."""
    monkeypatch.setattr(receiving, "BODY_LIMIT", 10_000)
    with Receiver(Telemetry()) as receiver:
        assert post(receiver.endpoint, "/v1/traces", b"x" * 10_001) == 413
        bomb = gzip.compress(b"\0" * 5_000_000)
        assert post(receiver.endpoint, "/v1/traces", bomb, Content_Encoding="gzip") == 413
        assert receiver.refused == 2


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/traces", b"", {}, 200),
        ("/v1/profiles", b"", {}, 404),
        ("/v1/traces", b"\xff\xff\xff", {}, 400),
        ("/v1/traces", b"not gzip", {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"")[:-8], {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", zlib.compress(b""), {"Content_Encoding": "deflate"}, 200),
        ("/v1/traces", b"", {"Content_Encoding": "br"}, 400),
        ("/v1/traces", b"{}", {"Content_Type": "application/json"}, 415),
    ],
)
def test_hostile_requests(path, body, headers, status):
    """Each malformed request gets the status that says what is wrong with it."""
    with Receiver(Telemetry()) as receiver:
        assert post(receiver.endpoint, path, body, **headers) == status


def test_length_is_required():
    """A request that does not say how long it is is refused, not waited for."""
    with Receiver(Telemetry()) as receiver:
        connection = http.client.HTTPConnection(receiver.endpoint.removeprefix("http://"), timeout=5)
        connection.putrequest("POST", "/v1/traces")
        connection.endheaders()
        assert connection.getresponse().status == 411
        connection.close()


class _Collector(BaseHTTPRequestHandler):
    got: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, self.headers["Content-Encoding"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_bodies_are_passed_on_as_they_came():
    """With a forwarding address another collector gets the same bytes, still compressed."""
    handler = type("Collector", (_Collector,), {"got": []})
    body = gzip.compress(support.counter("sold", [({}, 1)]).SerializeToString())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as collector:
        threading.Thread(target=collector.serve_forever, args=(0.05,), daemon=True).start()
        forwarder = Forwarder(f"http://127.0.0.1:{collector.server_address[1]}/")
        with Receiver(Telemetry(), forwarder) as receiver:
            assert post(receiver.endpoint, "/v1/metrics", body, Content_Encoding="gzip") == 200
        collector.shutdown()
    assert handler.got == [("/v1/metrics", "gzip", body)]
    assert forwarder.problem() == ""


def test_a_dead_address_is_no_obstacle():
    """Where nobody listens at the forwarding address, requests are answered all the same and the loss is told."""
    telemetry = Telemetry()
    forwarder = Forwarder("http://127.0.0.1:9")
    with Receiver(telemetry, forwarder) as receiver:
        body = support.counter("sold", [({}, 1)]).SerializeToString()
        assert [post(receiver.endpoint, "/v1/metrics", body) for _ in range(3)] == [200] * 3
    assert telemetry.total("sold") == 1
    assert "3 of 3 OTLP requests could not be passed on to http://127.0.0.1:9" in forwarder.problem()
