"""`rtobs doctor -- python app.py`, with real applications."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rtobs import doctor
from tests.support.scripts import environment

SCHEMA = json.loads((Path(doctor.__file__).parent / "doctor.schema.json").read_text(encoding="utf-8"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def examined(app: str, tmp_path: Path, *before: str, **variables: str) -> tuple[dict[str, Any], Any]:
    """Return what the doctor says of an application, and how the command ended."""
    (tmp_path / "app.py").write_text(app, encoding="utf-8")
    command = [sys.executable, "-m", "rtobs.cli", "doctor", "--json", "--"]
    done = subprocess.run(
        [*command, *before, sys.executable, str(tmp_path / "app.py")],
        env=environment(**{"PYTHONWARNINGS": "default", **variables}),
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["healthy"] == (done.returncode == 0)
    return found, done


def about(found: dict[str, Any]) -> list[str]:
    return [finding["about"] for finding in found["findings"]]


def test_a_client_that_nobody_wrapped_is_found(tmp_path):
    """The wrapped one is told apart from the other, and what the application prints and its exit code are its own."""
    app = "import redis, rtobs, sys\nrtobs.wrap(redis.Redis())\nredis.Redis()\nprint('mine')\nsys.exit(3)\n"
    found, done = examined(app, tmp_path)
    assert [(client["class"], client["wrapped"]) for client in found["clients"]] == [
        ("redis.client.Redis", False), ("redis.client.Redis", True),
    ]  # fmt: skip
    assert about(found) == ["client", "exporter"]
    assert found["app_exit"] == 3
    assert "mine" in done.stderr


def test_messages_that_no_hop_took_are_found(redis_url, unique, tmp_path):
    """A stream that is read without a scope is named; with a scope and somebody listening nothing is left to do."""
    app = (
        "import redis, rtobs\nclient = rtobs.wrap(redis.Redis.from_url({url!r}))\nclient.xadd({name!r}, dict(a=1))\n"
        "for _, entries in client.xread({{{name!r}: 0}}, count=1):\n    for entry in entries:\n        {scope}\n"
        "client.delete({name!r})\n"
    )
    name = unique("orders")
    found, _ = examined(app.format(url=redis_url, name=name, scope="pass"), tmp_path)
    assert about(found) == ["scope", "exporter"]
    assert name in found["findings"][0]["saw"]
    scope = f"with rtobs.consume({name!r}, entry): pass"
    found, _ = examined(app.format(url=redis_url, name=name, scope=scope), tmp_path, OTEL_METRICS_EXPORTER="prometheus")
    assert "scope" not in about(found)
    assert any("quick path" in note for note in found["notes"])


def test_an_iterator_without_a_scope_is_found(amqp_url, unique, tmp_path):
    """What aio-pika's iterator yields and no hop takes is counted, by its queue."""
    name = unique("orders")
    app = f"""
import asyncio, aio_pika, rtobs
async def main():
    connection = rtobs.wrap(await aio_pika.connect({amqp_url!r}))
    channel = await connection.channel()
    queue = await channel.declare_queue({name!r}, auto_delete=True)
    await channel.default_exchange.publish(aio_pika.Message(b"1"), routing_key={name!r})
    async with queue.iterator() as messages:
        async for message in messages:
            await message.ack()
            break
    await connection.close()
asyncio.run(main())
"""
    found, _ = examined(app, tmp_path)
    assert about(found) == ["iterator", "exporter"]


def test_a_collector_that_does_not_answer_is_found(tmp_path):
    """An endpoint at which nobody listens is a finding that says so."""
    found, _ = examined("import redis", tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert about(found) == ["exporter"]


def test_an_application_under_opentelemetry_instrument_is_examined_too(tmp_path):
    """Zero code wraps the client, contrib's instrumentation of it is a note, and nobody's start-up is in the way."""
    cli = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    found, done = examined("import redis\nredis.Redis()", tmp_path, cli)
    assert [client["wrapped"] for client in found["clients"]] == [True]
    assert any("DISABLED_INSTRUMENTATIONS=redis" in note for note in found["notes"])
    assert "sitecustomize" not in done.stderr


def test_the_environment_s_own_start_up_file_still_runs(tmp_path):
    """The probe stands in front of a sitecustomize and lets it through."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.mine = True\n")
    found, done = examined("import sys\nassert sys.mine", tmp_path, PYTHONPATH=str(tmp_path))
    assert found["app_exit"] == 0, done.stderr
    assert found["healthy"]


def test_what_cannot_be_started_is_a_wrong_argument():
    """A command that does not exist ends with code 2 and is named."""
    done = subprocess.run(
        [sys.executable, "-m", "rtobs.cli", "doctor", "--", "/no/such/program"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "/no/such/program" in done.stderr) == (2, True)
