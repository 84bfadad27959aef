"""Where the live brokers are, and whether they answer."""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import NamedTuple
from urllib.parse import urlsplit


class Broker(NamedTuple):
    """A broker that tests talk to."""

    name: str
    variable: str
    """The environment variable that names another one."""
    default: str
    port: int
    hello: bytes
    """What a client says first; every broker answers it, so a silent port does not pass for a broker."""

    @property
    def url(self) -> str:
        """The address that tests use."""
        return os.environ.get(self.variable, self.default)


AMQP = Broker("RabbitMQ", "RTOBS_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672/", 5672, b"AMQP\x00\x00\x09\x01")
REDIS = Broker("Redis", "RTOBS_TEST_REDIS", "redis://127.0.0.1:6379/0", 6379, b"PING\r\n")
NATS = Broker("NATS", "RTOBS_TEST_NATS", "nats://127.0.0.1:4222", 4222, b"")
MQTT = Broker(
    "Mosquitto", "RTOBS_TEST_MQTT", "mqtt://127.0.0.1:1883", 1883, b"\x10\x10\x00\x04MQTT\x04\x02\x00\x05\x00\x04ping"
)

AWS = Broker("SQS and SNS", "AWS_ENDPOINT_URL", "", 0, b"")  # the tests start it themselves: see `aws`

# The fixtures that hand these out; conftest marks every test that asks for one as `broker`.
FIXTURES = {"amqp_url": AMQP, "redis_url": REDIS, "nats_url": NATS, "mqtt_url": MQTT, "aws_url": AWS}


def silence(url: str, port: int, hello: bytes) -> str:
    """Return why the broker at *url* cannot be used, or "" where it answers. Takes two seconds at most."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or port)
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, timeout=1.0) as connection:
            connection.sendall(hello)
            connection.settimeout(1.0)
            if not connection.recv(1):
                return f"{where} hung up"
    except TimeoutError:
        return f"{where} says nothing"
    except OSError as error:
        return f"{where}: {error.strerror or error}"
    return ""


@cache
def reason_to_skip(broker: Broker) -> str:
    """Return what to tell whoever runs the tests without *broker*, or "" where it answers; asked once in a run."""
    why = silence(broker.url, broker.port, broker.hello)
    return why and f"{broker.name} does not answer ({why}); run `make brokers`, or set {broker.variable}"
