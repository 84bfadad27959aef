"""A test's own RabbitMQ: real, private, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import aio_pika
import pytest

from tests.support import brokers
from tests.support.timing import wait_until

LISTENING = "0A"


def _listeners() -> dict[int, set[str]]:
    """Return the addresses (hexadecimal, as the kernel prints them) on which each port listens."""
    found: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == LISTENING:
                found.setdefault(int(port, 16), set()).add(address)
    return found


def _processes(folder: Path) -> list[str]:
    """Return the ids of running processes whose command line or environment names *folder*."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # it ended, or is not ours
            continue
        if os.fsencode(folder) in text and int(process.name) != os.getpid():
            found.append(process.name)
    return found


async def test_a_durable_message_survives_stop_and_start(own_rabbitmq):
    """The private broker keeps its port and its durable messages over a stop, and nobody answers in between."""
    connection = await aio_pika.connect(own_rabbitmq.url)
    channel = await connection.channel()
    await channel.declare_queue("kept", durable=True)
    message = aio_pika.Message(b"still here", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, "kept")
    await connection.close()

    own_rabbitmq.stop()
    assert "refused" in brokers.silence(own_rabbitmq.url, own_rabbitmq.port, brokers.AMQP.hello)
    with pytest.raises(ConnectionError):
        await aio_pika.connect(own_rabbitmq.url)

    own_rabbitmq.start()
    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        received = await queue.get(timeout=5)
        assert received.body == b"still here"
        await received.ack()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's tables, which only Linux has")
def test_it_listens_on_loopback_only_and_leaves_nothing_running(own_rabbitmq, tmp_path):
    """No port of the private broker is open to other machines, and after its end no process of it is left."""
    assert _processes(tmp_path)
    mine = {own_rabbitmq.port, *own_rabbitmq.inner_ports}
    loopback = {"0100007F", "00000000000000000000000001000000"}
    listeners = _listeners()
    assert mine <= listeners.keys()
    assert set().union(*(listeners[port] for port in mine)) <= loopback

    own_rabbitmq.stop()
    wait_until(lambda: _processes(tmp_path) == [], timeout=10)  # the kernel takes a moment to forget the last one
    assert mine.isdisjoint(_listeners())
